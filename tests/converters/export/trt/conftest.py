"""Jobs of exported folders, and the library of plugins where TensorRT-RTX can take it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.export.deepseek import Job, Options, plan
from dstools_converters.export.trt.rtx import EXTRA, is_installed
from dstools_converters.runtime.weights import sound_inventory

SHORT = Options(context=128)


@pytest.fixture
def job() -> Iterator[Callable[..., Job]]:
    """Return a function that plans the export of a checkpoint."""
    with ExitStack() as stack:

        def make(folder: Path, options: Options = SHORT) -> Job:
            checkpoint = stack.enter_context(open_checkpoint(folder))
            return plan(sound_inventory(checkpoint, options.mtp), options, "dstools test")

        yield make


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library of plugins; skip where TensorRT-RTX is not installed."""
    if not is_installed():
        pytest.skip(f"not run: needs TensorRT-RTX, {EXTRA}")
    plugin = pytest.importorskip("dstools_kernels.plugin")
    out = tmp_path_factory.mktemp("plugins") / "libdstools_trt.so"
    plugin.build(out)
    return out
