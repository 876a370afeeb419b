"""A graph that computes something else is found out, whatever is wrong in it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import ShortfallError
from dstools_converters.export import dense_check
from dstools_converters.export.dense_check import check, refer
from dstools_converters.model.architecture import read_architecture

Change = Callable[[np.ndarray], None]


@pytest.fixture
def llama(dense_folder: Callable[..., Path]) -> Path:
    return dense_folder("tiny-llama")


def change_weight(folder: Path, name: str, change: Change) -> None:
    """Edit a tensor of model.onnx.data in place."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    data = np.memmap(
        folder / entries["location"], np.float32, "r+", int(entries["offset"]), tuple(tensor.dims)
    )
    change(data)
    data.flush()


def judge(folder: Path, source: Path) -> dense_check.Agreement:
    architecture = read_architecture(open_checkpoint(source).config)
    return check(folder, refer(source), architecture)


def scale(data: np.ndarray) -> None:
    data *= 1.01


def negate(data: np.ndarray) -> None:
    data *= -1


def one_more(data: np.ndarray) -> None:
    data[-1, -1] += 1e-3


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.layers.2.mlp.down_proj.MatMul.weight", scale, "the logits of"),
        ("model.layers.0.input_layernorm.weight", negate, "the logits of"),
        ("cos_cache", one_more, "cos_cache of"),  # of position 4095, which no prompt reaches
        ("sin_cache", negate, "sin_cache of"),
    ],
)
def test_a_weight_or_a_position_that_differs_is_found(
    name: str,
    change: Change,
    message: str,
    llama: Path,
    dense_source: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(llama, tmp_path / "out")
    source = dense_source("tiny-llama")
    agreement = judge(folder, source)
    assert agreement.max_abs_logits <= agreement.bound
    assert agreement.tokens == 3 * 17
    change_weight(folder, name, change)
    with pytest.raises(ShortfallError, match=message) as caught:
        judge(folder, source)
    assert "may not know a setting" in caught.value.hint


def test_logits_that_are_nan_are_a_difference(
    llama: Path, dense_source: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(llama, tmp_path / "out")
    change_weight(folder, "model.layers.1.input_layernorm.weight", lambda w: w.fill(np.nan))
    with pytest.raises(ShortfallError, match="differ by inf"):
        judge(folder, dense_source("tiny-llama"))
