import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_converters.export.deepseek import Job, Options
from dstools_converters.export.folder import DATA, Precision, require_export
from dstools_converters.export.trt import logits
from dstools_converters.export.trt.logits import require_same_logits, require_twin_space, runnable

SHORT = Options(context=128)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_exported_gives_the_logits_of_its_checkpoint(
    dtype: Precision,
    exported: Callable[..., Path],
    job: Callable[..., Job],
    tiny_fp8: Path,
    one_thread: None,
) -> None:
    options = Options(dtype, 128)
    folder = exported(tiny_fp8, options)
    require_same_logits(folder, require_export(folder), job(tiny_fp8, options))
    assert not list(folder.parent.glob("*.twin*"))


def test_a_scale_of_other_bytes_is_seen(
    exported: Callable[..., Path],
    job: Callable[..., Job],
    tiny_fp8: Path,
    tmp_path: Path,
    one_thread: None,
) -> None:
    folder = Path(shutil.copytree(exported(tiny_fp8, SHORT), tmp_path / "copy"))
    export = require_export(folder)
    scale = next(w for w in export.weights[DATA] if w.name.endswith("o_proj.weight_scale_inv"))
    with (folder / DATA).open("r+b") as file:
        file.seek(scale.offset)
        value = np.frombuffer(file.read(4), "f4") * 1.5
        file.seek(scale.offset)
        file.write(value.astype("f4").tobytes())
    with pytest.raises(ShortfallError, match=r"model.onnx: logits .* differ from the checkpoint's"):
        require_same_logits(folder, export, job(tiny_fp8))


def test_a_twin_is_the_graph_in_float32_over_the_weights_of_the_folder(
    exported: Callable[..., Path], tiny_fp8: Path
) -> None:
    folder = exported(tiny_fp8, Options("bfloat16", 128))
    export = require_export(folder)
    with runnable(folder, export, ["model.onnx", "mtp.onnx"]) as (main, draft):
        twin = onnx.load(main, load_external_data=False)
        kinds = {tensor.data_type for tensor in twin.graph.initializer}
        assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT8E4M3FN, 6}
        name = "model.embed_tokens.weight"
        (held,) = (weight for weight in export.weights[DATA] if weight.name == name)
        data = (folder / DATA).read_bytes()[held.offset : held.offset + held.nbytes]
        wanted = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float()
        for file in (main, draft):
            model = onnx.load(file)
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
            given = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            assert torch.equal(given.flatten(), wanted)
            inputs = {value.name: value.type.tensor_type for value in model.graph.input}
            assert inputs["past_key_values.0.key"].elem_type == onnx.TensorProto.FLOAT
    assert not main.parent.exists()


def test_a_twin_needs_room_and_what_a_killed_check_left_is_gone_before_it_is_asked_for(
    exported: Callable[..., Path],
    job: Callable[..., Job],
    tiny_fp8: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options("bfloat16", 128)
    folder = Path(shutil.copytree(exported(tiny_fp8, options), tmp_path / "out"))
    export = require_export(folder)
    with runnable(folder, export, ["model.onnx", "mtp.onnx"]) as (main, _):
        nbytes = (main.parent / DATA).stat().st_size
        left = main.parent.parent
        shutil.copytree(left, tmp_path / "copy")
        with pytest.raises(DstoolsError, match="another run is writing it"):
            require_twin_space(folder, job(tiny_fp8, options), 0)
    (tmp_path / "copy").rename(left)  # as SIGKILL leaves it
    free = [nbytes]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    require_twin_space(folder, job(tiny_fp8, options), 0)  # the file has a few bytes of alignment
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for more, available in ((0, nbytes * 9 // 10), (nbytes, nbytes * 19 // 10)):
        free[0] = available
        with pytest.raises(DstoolsError, match=r"out\.twin: needs .*, the disk has "):
            require_twin_space(folder, job(tiny_fp8, options), more)
    require_twin_space(folder, job(tiny_fp8), nbytes)  # of float32, which is its own twin
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_full_is_one_error_and_leaves_nothing(
    exported: Callable[..., Path], tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "out"
    folder.symlink_to(exported(tiny_fp8, Options("bfloat16", 128)))
    monkeypatch.setattr(logits, "_widen", full)
    with (
        pytest.raises(DstoolsError, match="No space left on device"),
        runnable(folder, require_export(folder), ["model.onnx"]),
    ):
        pass
    assert not list(folder.resolve().parent.glob("*.twin*"))


def test_a_folder_in_float32_is_its_own_twin(exported: Callable[..., Path], tiny_fp8: Path) -> None:
    folder = exported(tiny_fp8, SHORT)
    with runnable(folder, require_export(folder), ["model.onnx"]) as files:
        assert files == [folder / "model.onnx"]


def test_the_difference_that_rounding_explains_grows_with_the_logits() -> None:
    wanted = torch.tensor([2000.0, -1.0])
    logits._require(Path("model.onnx"), "others", wanted + 1e-3, wanted, 1e-6)
    with pytest.raises(ShortfallError, match=r"differ from others by 0.00\d+, more than 0.0002"):
        logits._require(Path("model.onnx"), "others", wanted + 1e-3, wanted, 1e-7)
    with pytest.raises(ShortfallError, match="by nan"):
        logits._require(Path("model.onnx"), "others", wanted * torch.nan, wanted, 1e-6)
