"""calibration.json and the scales of a KV cache: written, read back, and refused by key."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import TensorName
from dstools_converters.sidefiles.calibration import (
    CALIBRATION,
    is_kv_scale,
    kv_scales,
    read_calibration,
)

Make = Callable[..., Path]


def inventory(folder: Path) -> Inventory:
    with open_checkpoint(folder) as checkpoint:
        return take_inventory(checkpoint)


@pytest.fixture
def folder(tiny: Path, calibrated: Make, tmp_path: Path) -> Path:
    out = Path(shutil.copytree(calibrated(tiny), tmp_path / "out"))
    out.chmod(0o755)
    for file in out.iterdir():
        file.chmod(0o644)
    return out


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads((folder / CALIBRATION).read_text())
    edit(table)
    (folder / CALIBRATION).write_text(json.dumps(table))


def test_what_is_read_is_written_again_to_the_byte(folder: Path) -> None:
    calibration = read_calibration(folder, inventory(folder))
    text = json.dumps(asdict(calibration), indent=2) + "\n"  # type: ignore[call-overload]
    written = json.loads((folder / CALIBRATION).read_text())
    written["data"].setdefault("tokens_sha256", "")
    assert json.loads(text) == written
    assert list(json.loads(text)) == list(written)


def test_a_file_without_the_cpu_s_instructions_is_read(folder: Path) -> None:
    change(folder, lambda table: table.pop("cpu"))
    calibration = read_calibration(folder, inventory(folder))
    assert calibration is not None
    assert calibration.cpu == ""


def test_a_folder_without_the_file_was_not_calibrated(tiny: Path) -> None:
    assert read_calibration(tiny, inventory(tiny)) is None


def first(table: dict[str, Any]) -> dict[str, Any]:
    note: dict[str, Any] = next(iter(table["tensors"].values()))
    return note


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: first(t).update(method="magic"), r"method: 'magic' is none of gptq"),
        (lambda t: first(t).update(moved=-1), "moved"),
        (lambda t: first(t).update(numel=5), r"numel: is not the \d+ of the shard"),
        (lambda t: first(t).pop("sha256"), "sha256: is missing"),
        (lambda t: t["tensors"].update({"model.x": first(t)}), "is in no shard"),
        (lambda t: t["kv"].update(latent_amax={"61": 1.0}), "61 is none of the model's 4 layers"),
        (lambda t: t["kv"].update(other_amax={}), "kv.other_amax"),
        (lambda t: t.pop("data"), "data: is missing"),
    ],
)
def test_a_damaged_file_is_named_with_its_key(
    edit: Callable[[dict[str, Any]], None], message: str, folder: Path
) -> None:
    change(folder, edit)
    with pytest.raises(DstoolsError, match=message) as error:
        read_calibration(folder, inventory(folder))
    assert str(error.value).startswith(f"{folder / CALIBRATION}: ")


def test_cache_scales_by_hand() -> None:
    names = {part: TensorName("kv_cache", part, 2) for part in ("k_scale", "v_scale")}
    mla = kv_scales(names, {2: {"latent_amax": 448.0, "rope_amax": 896.0}})
    assert {name: scale.tolist() for name, scale in mla.items()} == {
        "k_scale": [2.0],
        "v_scale": [2.0],
    }
    heads = kv_scales(names, {2: {"k_amax": 448.0, "v_amax": 224.0}})
    assert [scale.tolist() for scale in heads.values()] == [[1.0], [0.5]]
    assert all(scale.dtype == np.float32 for scale in heads.values())


def test_a_cache_that_held_zeros_gets_the_smallest_scale() -> None:
    k = TensorName("kv_cache", "k_scale", 0)
    (scale,) = kv_scales({"k": k}, {}).values()
    assert scale == np.float32(1e-12) / np.float32(448)


def test_only_scales_of_the_added_shard_are_a_calibrations(
    tiny: Path, calibrated: Make, quantized: Make
) -> None:
    made = inventory(calibrated(tiny, kv_cache=True, format="compressed-tensors"))
    added = {info.name for info in made.tensors.values() if is_kv_scale(made, info)}
    assert added == {f"model.layers.{n}.self_attn.{p}_scale" for n in range(3) for p in "kv"}
