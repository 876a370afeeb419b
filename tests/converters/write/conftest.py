"""Conversions without calibration.

plain_plan(folder)                                 the plan of `dstools quantize`, no options
quantize(folder, out, workers=2, is_synced=False)  run it; return the input bytes resumed
interrupted(folder, out, after, is_synced=False)   stop it after so many input bytes
writable_copy(source, folder)                      a copy that may be damaged
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.plan.plan import Plan, plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.write.stream import run


@pytest.fixture(scope="session")
def plain_plan() -> Callable[[Path], Plan]:
    def get(folder: Path) -> Plan:
        return plan_quantize(require_sound(open_checkpoint(folder)), Recipe(), "native", None)

    return get


@pytest.fixture(scope="session")
def quantize(plain_plan: Callable[[Path], Plan]) -> Callable[..., int]:
    def get(folder: Path, out: Path, workers: int = 2, is_synced: bool = False) -> int:
        plan = plain_plan(folder)
        report = run(plan, out, tool="dstools test", workers=workers, is_synced=is_synced)
        return report.bytes_resumed

    return get


@pytest.fixture(scope="session")
def interrupted(plain_plan: Callable[[Path], Plan]) -> Callable[..., Checkpoint]:
    def get(source: Path, out: Path, after: int, is_synced: bool = False) -> Checkpoint:
        """Stop a run with an error after some progress, as Ctrl-C would."""
        plan = plain_plan(source)
        done = 0

        def stop(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if done > after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(plan, out, tool="dstools test", workers=1, is_synced=is_synced, progress=stop)
        return plan.inventory.checkpoint

    return get


@pytest.fixture(scope="session")
def writable_copy() -> Callable[[Path, Path], Path]:
    def get(source: Path, folder: Path) -> Path:
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return get
