"""verify holds calibrated weights to what was noted of them: damage and false claims are found."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.errors import Finding
from dstools_converters.sidefiles.manifest import read_manifest
from dstools_converters.verify.calibrated import check_calibration
from dstools_converters.verify.folder import verify

Make = Callable[..., Path]
UP = "model.layers.1.mlp.shared_experts.up_proj.weight"  # [160, 256], scales [2, 2]
Q_B = "model.layers.0.self_attn.q_b_proj.weight"  # [192, 96], scales [2, 1]


class Folder:
    """A copy of a calibrated folder; `lie` writes calibration.json so that the manifest agrees."""

    def __init__(self, source: Path, path: Path) -> None:
        shutil.copytree(source, path)
        path.chmod(0o755)
        for file in path.iterdir():
            file.chmod(0o644)
        self.path = path
        self.calibration: dict[str, Any] = json.loads((path / "calibration.json").read_text())
        with open_checkpoint(path) as checkpoint:
            self.places = {
                info.name: (path / info.shard, info.offset, info.nbytes)
                for info in checkpoint.tensors.values()
            }

    def note(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.calibration["tensors"][name]
        return found

    def data(self, name: str) -> bytes:
        shard, offset, nbytes = self.places[name]
        return shard.read_bytes()[offset : offset + nbytes]

    def put(self, name: str, data: bytes, at: int = 0) -> None:
        shard, offset, nbytes = self.places[name]
        assert at + len(data) <= nbytes
        with shard.open("r+b") as file:
            file.seek(offset + at)
            file.write(data)

    def flip(self, name: str, bit: int) -> None:
        at = bit // 8
        self.put(name, bytes([self.data(name)[at] ^ 1 << bit % 8]), at)

    def sign(self, name: str) -> None:
        """Note the sha256 of the bytes that are there."""
        self.note(name)["sha256"] = sha256(
            self.data(name) + self.data(f"{name}_scale_inv")
        ).hexdigest()

    def lie(self) -> None:
        text = json.dumps(self.calibration)
        (self.path / "calibration.json").write_text(text)
        manifest = json.loads((self.path / "manifest.json").read_text())
        manifest["calibration"] = f"sha256:{sha256(text.encode()).hexdigest()}"
        (self.path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tiny: Path, calibrated: Make, tmp_path: Path) -> Folder:
    return Folder(calibrated(tiny), tmp_path / "folder")


@pytest.fixture
def searched(tiny: Path, calibrated: Make, tmp_path: Path) -> Folder:
    """By method mse, with float32 scales."""
    return Folder(calibrated(tiny, "mse"), tmp_path / "searched")


def found_in(folder: Folder, source: Path) -> list[Finding]:
    return verify(folder.path, source=source).findings


def only(folder: Folder, source: Path, name: str) -> Finding:
    (finding,) = found_in(folder, source)
    assert finding.level == "error"
    assert finding.hint
    assert finding.where.endswith(name)
    return finding


def test_a_copy_is_good_and_so_is_one_whose_notes_are_signed_anew(
    folder: Folder, tiny: Path
) -> None:
    folder.sign(UP)
    folder.lie()
    assert found_in(folder, tiny) == []


def test_every_flipped_bit_of_codes_and_scales_is_found(folder: Folder, tiny: Path) -> None:
    """One of each calibrated tensor, then one of the scales of each."""
    dice = np.random.default_rng(0)
    names = sorted(folder.calibration["tensors"])
    assert len(names) > 100
    for part in ("", "_scale_inv"):
        flips = {}
        for name in names:
            flips[name] = int(dice.integers(8 * folder.places[f"{name}{part}"][2]))
            folder.flip(f"{name}{part}", flips[name])
        errors = {f.where.split(": ")[-1] for f in found_in(folder, tiny) if f.level == "error"}
        assert {name.removesuffix("_scale_inv") for name in errors} == set(names)
        for name, bit in flips.items():
            folder.flip(f"{name}{part}", bit)
    assert found_in(folder, tiny) == []


def test_a_single_flipped_bit_is_one_finding(folder: Folder, tiny: Path) -> None:
    folder.flip(UP, 8 * 1000 + 1)
    finding = only(folder, tiny, UP)
    assert finding.code == "bytes-differ"
    assert "not those that calibration.json was written with" in finding.message


@pytest.mark.parametrize("change", ["missing", "edited", "replaced"])
def test_a_calibration_json_that_is_not_the_manifest_s_is_found(
    change: str, folder: Folder, tiny: Path
) -> None:
    path = folder.path / "calibration.json"
    if change == "missing":
        path.unlink()
    elif change == "edited":
        path.write_text(path.read_text().replace('"moved": ', '"moved": 1', 1))
    else:
        path.write_text("{}")
    (finding,) = found_in(folder, tiny)  # without notes there is nothing to hold the weights to
    assert (finding.level, finding.code, finding.where) == (
        "error", "calibration", "calibration.json",
    )  # fmt: skip
    assert "calibrated weights are not compared" in finding.message


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("moved", lambda value: value + 1),
        ("far", lambda value: value - 1),
        ("weight_error", lambda value: value * (1 + 1e-6)),
        ("weight_error", lambda value: value / 2),
        ("sha256", lambda value: value[::-1]),
        ("method", lambda value: "mse"),
        ("method", lambda value: "lossless"),
        ("method", lambda value: "nearest"),
        ("error", lambda value: 0.5),
        ("error", lambda value: None),
    ],
)
def test_a_note_that_says_something_else_is_found(
    key: str, change: Callable[[Any], Any], folder: Folder, tiny: Path
) -> None:
    assert folder.note(UP)["method"] == "gptq"
    folder.note(UP)[key] = change(folder.note(UP)[key])
    folder.lie()
    finding = only(folder, tiny, UP)
    assert finding.code == (
        "bytes-differ" if key == "sha256" or change(0) == "lossless" else "outside-bound"
    )


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_a_code_that_moved_is_found_by_the_figures_alone(
    steps: int, folder: Folder, tiny: Path
) -> None:
    """With its sha256 put right: the counts differ, or where they do not, the error does."""
    for element in range(0, 160 * 256, 9001):
        code = folder.data(UP)[element]
        moved = code & 0x80 | (code & 0x7F) - steps if code & 0x7F >= steps else code + steps
        assert moved & 0x7F != 0x7F
        folder.put(UP, bytes([moved]), element)
        folder.sign(UP)
        folder.lie()
        finding = only(folder, tiny, UP)
        assert finding.code == "outside-bound"
        folder.put(UP, bytes([code]), element)
        folder.sign(UP)
    folder.lie()
    assert found_in(folder, tiny) == []


def test_two_codes_that_changed_places_are_found_by_the_error(folder: Folder, tiny: Path) -> None:
    """As far from the nearest as before: the counts stay the same, the sum does not."""
    codes = bytearray(folder.data(UP))
    scale = np.frombuffer(folder.data(f"{UP}_scale_inv"), np.float32)
    assert scale.shape == (4,)
    note = folder.note(UP)
    # a code one step up, whose nearest is one below it, goes one step below its nearest instead
    nearest = nearest_codes(source_values(tiny).reshape(160, 256), scale.reshape(2, 2)).reshape(-1)
    for at, (code, plain) in enumerate(zip(codes, nearest.tolist(), strict=True)):
        if code == plain + 1 and 8 < plain & 0x7F < 100:
            codes[at] = plain - 1
            break
    folder.put(UP, bytes(codes))
    folder.sign(UP)
    folder.lie()
    finding = only(folder, tiny, UP)
    assert finding.message.startswith("its error is ")
    assert f"{note['weight_error']:.6g}" in finding.message


def test_codes_that_no_calibration_would_choose_are_found_though_the_note_counts_them(
    folder: Folder, tiny: Path
) -> None:
    """All zeros: the counts are those of the note, and so would be the sha256."""
    scale = np.frombuffer(folder.data(f"{UP}_scale_inv"), np.float32).reshape(2, 2)
    steps = nearest_codes(source_values(tiny).reshape(160, 256), scale) & 0x7F
    folder.put(UP, bytes(160 * 256))
    folder.note(UP).update(moved=int((steps > 0).sum()), far=int((steps > 1).sum()))
    folder.sign(UP)
    folder.lie()
    message = only(folder, tiny, UP).message
    share = f"{(steps > 1).mean():.0%} of its codes are more than a step from the nearest"
    assert message.endswith(f" times that of plain rounding, {share}")


def source_values(source: Path) -> np.ndarray:
    """The values of UP in the source, which is BF16, in a row."""
    with open_checkpoint(source) as checkpoint:
        info = checkpoint.tensors[UP]
        raw = bytes(checkpoint.read(info, 0, info.nbytes))
    return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)


def nearest_codes(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    import torch

    each = np.repeat(np.repeat(scale, 128, 0), 128, 1)[: weight.shape[0], : weight.shape[1]]
    quotient = torch.from_numpy(weight / each).clamp(-448, 448)
    found: np.ndarray = quotient.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return found


@pytest.mark.parametrize("factor", [np.float32(1 + 2**-23), np.float32(2.0), np.float32(1.025)])
def test_a_scale_that_is_not_the_method_s_is_found(
    factor: np.float32, folder: Folder, searched: Folder, tiny: Path
) -> None:
    for made, what in ((folder, "its amax over 448"), (searched, "no search of scales gives")):
        scales = np.frombuffer(made.data(f"{Q_B}_scale_inv"), np.float32).copy()
        scales[1] *= factor
        made.put(f"{Q_B}_scale_inv", scales.tobytes())
        made.sign(Q_B)
        made.lie()
        assert what in only(made, tiny, Q_B).message


def test_another_scale_of_the_search_needs_other_codes(searched: Folder, tiny: Path) -> None:
    name = next(n for n, note in searched.calibration["tensors"].items() if note["method"] == "mse")
    with open_checkpoint(tiny) as checkpoint:
        info = checkpoint.tensors[name]
        raw = bytes(checkpoint.read(info, 0, info.nbytes))
    weight = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    weight = weight.reshape(info.shape)
    scales = np.frombuffer(searched.data(f"{name}_scale_inv"), np.float32).copy()
    scales[0] = np.float32(np.abs(weight[:128, :128]).max() / np.float32(448)) * np.float32(1.3)
    searched.put(f"{name}_scale_inv", scales.tobytes())
    searched.sign(name)
    searched.lie()
    assert "codes are not the nearest" in only(searched, tiny, name).message
    rows, cols = info.shape
    grid = scales.reshape(-(-rows // 128), -(-cols // 128))
    searched.put(name, nearest_codes(weight, grid).tobytes())
    searched.sign(name)
    searched.lie()
    assert "its error is" in only(searched, tiny, name).message  # now it is only not the best


def test_a_claim_of_lossless_is_held_to_the_source(folder: Folder, tiny: Path) -> None:
    folder.note(UP)["method"] = "lossless"
    folder.lie()
    finding = only(folder, tiny, UP)
    assert finding.code == "bytes-differ"
    assert "within rows 0 to 159, though calibration.json says so" in finding.message


def test_another_source_is_found_for_every_tensor(folder: Folder, checkpoint: Make) -> None:
    findings = found_in(folder, checkpoint("tiny", seed=1))
    names = set(folder.calibration["tensors"])
    assert {f.where.split(": ")[-1] for f in findings if f.code == "outside-bound"} == names


def test_a_folder_that_was_not_calibrated_has_no_notes(tiny: Path, quantized: Make) -> None:
    with open_checkpoint(quantized(tiny)) as made:
        manifest = read_manifest(made.folder)
        assert manifest is not None
        assert check_calibration(take_inventory(made), manifest) == ({}, [])


def test_a_damaged_expert_load_json_is_found_and_the_weights_are_compared_all_the_same(
    folder: Folder, tiny: Path
) -> None:
    with (folder.path / "expert_load.json").open("a") as file:
        file.write("\n")
    folder.flip(UP, 8)
    damaged, weight = found_in(folder, tiny)
    assert (damaged.code, damaged.where) == ("calibration", "expert_load.json")
    assert "are not compared" not in damaged.message
    assert weight.where.endswith(UP)


def test_a_calibration_json_that_the_manifest_does_not_speak_of_is_not_believed(
    tiny: Path, quantized: Make, folder: Folder
) -> None:
    manifest = json.loads((folder.path / "manifest.json").read_text())
    del manifest["calibration"]
    (folder.path / "manifest.json").write_text(json.dumps(manifest))
    assert {finding.code for finding in found_in(folder, tiny)} == {"outside-bound"}


def test_cache_scales_of_a_calibrated_source_are_copied_and_held_to_the_source(
    tiny: Path, calibrated: Make, quantized: Make
) -> None:
    source = calibrated(tiny, kv_cache=True)
    for folder in (quantized(source), quantized(source, scale_format="ue8m0")):
        assert not (folder / "calibration.json").exists()
        assert verify(folder, source=source).findings == []
