"""compare: the figures are those of plain torch, and nothing is left out of them in silence."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dstools_converters.checkpoint import rows
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.compare import Error, Report, compare
from dstools_converters.errors import DstoolsError

Checkpoint = Callable[..., Path]
Edit = Callable[[dict[str, Any]], None]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
UP_PROJ = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def compare_folders(a: Path, b: Path, workers: int = 1, **options: Any) -> Report:
    with open_checkpoint(a) as in_a, open_checkpoint(b) as in_b:
        return compare(require_sound(in_a), require_sound(in_b), workers=workers, **options)


def edited(folder: Path, out: Path, edit: Edit) -> Path:
    """A copy in one shard, after `edit` has had its tensors in hand."""
    from safetensors.torch import load_file, save_file

    held: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    edit(held)
    out.mkdir()
    shutil.copyfile(folder / "config.json", out / "config.json")
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    return out


def restored(folder: Path) -> dict[str, np.ndarray]:
    """Every weight in float64, FP8 as code times scale, worked out in torch."""
    import torch
    from safetensors.torch import load_file

    held: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    found = {}
    for name, tensor in held.items():
        if tensor.dtype == torch.float8_e4m3fn:
            rows, cols = tensor.shape
            scale = held[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            tensor = tensor.float() * scale[:rows, :cols]
        if not name.endswith("_scale_inv"):
            found[name] = tensor.double().numpy()
    return found


def assert_close(error: Error, a: np.ndarray, b: np.ndarray) -> None:
    diff, rms = b - a, np.sqrt(np.mean(a**2))
    # Sums in double of n terms, in another order: they differ by n ulp at most; n < 2^22 here.
    assert error.relative == pytest.approx(np.sqrt(np.mean(diff**2)) / rms, rel=1e-9)
    assert error.bias == pytest.approx(diff.mean() / rms, rel=1e-9, abs=1e-12)
    # FP8 is restored in float32 and the difference taken in double: the maximum is exact
    assert error.max_abs == np.abs(diff).max()
    assert error.numel == a.size


@pytest.mark.parametrize("slab_bytes", [1 << 20, 100 << 10])
@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
def test_the_figures_are_those_of_plain_torch(
    scale_format: str,
    slab_bytes: int,
    tiny: Path,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "SLAB_BYTES", slab_bytes)  # room for 100 rows of 256, not for a block
    fp8 = checkpoint("tiny", fp8=scale_format)
    report = compare_folders(tiny, fp8)
    a, b = restored(tiny), restored(fp8)
    assert report.compared == len(a) == len(b)
    assert report.identical == sum(np.array_equal(a[name], b[name]) for name in a)
    assert (report.only_in_a, report.only_in_b) == ([], [])

    relative = {n: float(np.sqrt(np.mean((b[n] - a[n]) ** 2) / np.mean(a[n] ** 2))) for n in a}
    assert [error.name for error in report.worst] == sorted(a, key=lambda n: -relative[n])[:10]
    for error in report.worst:
        assert_close(error, a[error.name], b[error.name])

    roles = {error.name: error for error in report.by_role}
    assert [error.relative for error in report.by_role] == sorted(
        (error.relative for error in report.by_role), reverse=True
    )
    for role, end in (
        ("kv_b_proj", ".kv_b_proj.weight"),
        ("shared_down", ".shared_experts.down_proj.weight"),
        ("router", ".mlp.gate.weight"),
        ("e_score_correction_bias", ".e_score_correction_bias"),
    ):
        names = [name for name in a if name.endswith(end)]
        assert len(names) >= 2
        assert_close(roles[role], *(np.concatenate([x[n].ravel() for n in names]) for x in (a, b)))
    assert_close(report.total, *(np.concatenate([x[n].ravel() for n in a]) for x in (a, b)))
    # Gaussian weights, F32 and UE8M0 scales: 2.639 and 2.658 %. A role has 10^5 weights or more, so
    # that its figure stands within a relative 1 / sqrt(2 x 10^5) x 2.3 = 0.5 % of that, four times.
    wanted = {"float32": 0.02639, "ue8m0": 0.02658}[scale_format]
    for role in ("routed_gate", "routed_up", "routed_down"):
        assert roles[role].relative == pytest.approx(wanted, rel=0.02)
        assert abs(roles[role].bias) < 4 * 0.027 / math.sqrt(roles[role].numel)


def test_identical_folders_do_not_differ(tiny: Path, tiny_fp8: Path, tmp_path: Path) -> None:
    for folder in (tiny, tiny_fp8):
        report = compare_folders(folder, folder)
        assert report.worst == []
        assert report.identical == report.compared
        assert report.total.relative == report.total.max_abs == report.total.bias == 0
    # the same numbers in another dtype are no difference either
    widened = edited(tiny, tmp_path / "f32", lambda held: held.update(lm_head_in_f32(held)))
    assert compare_folders(tiny, widened).worst == []


def lm_head_in_f32(held: dict[str, Any]) -> dict[str, Any]:
    return {"lm_head.weight": held["lm_head.weight"].float()}


def test_a_known_change_has_the_error_worked_by_hand(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch

    source = checkpoint("tiny-llama", dtype="fp32")

    def ones(held: dict[str, Any]) -> None:
        held[Q_PROJ] = torch.ones_like(held[Q_PROJ])

    def larger(held: dict[str, Any]) -> None:
        ones(held)
        held[Q_PROJ][0, 0] = 1 + 2.0  # one of 65536: rms 2 / 256, mean 2 / 65536
        held[UP_PROJ] *= 1.5
        held[NORM] -= 0.25 * held[NORM].abs().square().mean().sqrt()

    report = compare_folders(
        edited(source, tmp_path / "a", ones), edited(source, tmp_path / "b", larger)
    )
    up, norm, q = report.worst
    assert (up.name, norm.name, q.name) == (UP_PROJ, NORM, Q_PROJ)
    assert up.relative == pytest.approx(0.5, rel=1e-6)  # float32 rounds the products
    assert (norm.relative, norm.bias) == (
        pytest.approx(0.25, rel=1e-5),
        pytest.approx(-0.25, rel=1e-5),
    )
    assert (q.relative, q.max_abs, q.bias) == (2 / 256, 2.0, 2 / 65536)
    assert report.identical == report.compared - 3


@pytest.mark.parametrize("workers", [1, 3])
def test_nan_and_zero_tensors_come_first_and_stay_in_every_sum(
    workers: int, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("tiny-llama")

    def zero(held: dict[str, Any]) -> None:
        held[UP_PROJ].zero_()

    def damage(held: dict[str, Any]) -> None:
        held[Q_PROJ][255, 7] = math.nan

    a, b = edited(source, tmp_path / "a", zero), edited(source, tmp_path / "b", damage)
    report = compare_folders(a, b, workers=workers)
    nan, infinite = report.worst
    assert (nan.name, infinite.name) == (Q_PROJ, UP_PROJ)
    assert math.isnan(nan.relative)
    assert math.isnan(nan.max_abs)
    assert math.isinf(infinite.relative)
    assert math.isnan(report.total.relative)
    assert math.isnan(report.total.max_abs)
    roles = {error.name: error for error in report.by_role}
    assert math.isnan(roles["q_proj"].relative)
    assert math.isfinite(roles["dense_up"].relative)  # the other layers are not zero
    assert report.identical == report.compared - 2
    # zero against zero is no error, and no division
    assert compare_folders(a, a).worst == []


def test_nan_in_both_is_not_called_identical(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def damage(held: dict[str, Any]) -> None:
        held[NORM][0] = math.nan

    folder = edited(checkpoint("tiny-llama"), tmp_path / "a", damage)
    report = compare_folders(folder, folder)
    assert [error.name for error in report.worst] == [NORM]
    assert report.identical == report.compared - 1


def test_what_only_one_has_is_listed_and_another_shape_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch

    source = checkpoint("tiny-llama")

    def extra(held: dict[str, Any]) -> None:
        held["model.extra.weight"] = torch.zeros(2)

    other = edited(source, tmp_path / "b", extra)
    assert compare_folders(source, other).only_in_b == ["model.extra.weight"]
    report = compare_folders(other, source)
    assert (report.only_in_a, report.only_in_b) == (["model.extra.weight"], [])
    assert report.worst == []

    grown = edited(
        source, tmp_path / "c", lambda held: held.update({NORM: torch.ones(2, 128).view(256)[:128]})
    )
    with open_checkpoint(source) as in_a, open_checkpoint(grown) as in_b:
        from dstools_converters.checkpoint.inventory import take_inventory

        with pytest.raises(DstoolsError, match=r"model\.norm\.weight: is \[128\], in A \[256\]"):
            compare(take_inventory(in_a), take_inventory(in_b))


def test_models_without_a_common_tensor_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from dstools_converters.checkpoint.inventory import take_inventory

    def rename(held: dict[str, Any]) -> None:
        for name in list(held):
            held[f"other.{name}"] = held.pop(name)

    source = checkpoint("tiny-llama")
    renamed = edited(source, tmp_path / "b", rename)
    with (
        open_checkpoint(source) as in_a,
        open_checkpoint(renamed) as in_b,
        pytest.raises(DstoolsError, match="no tensor in common"),
    ):
        compare(take_inventory(in_a), take_inventory(in_b))


def test_tensors_that_are_no_numbers_are_compared_as_bytes(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch

    def table(value: int) -> Edit:
        return lambda held: held.update({"model.table": torch.full((3, 3), value)})

    source = checkpoint("tiny-llama")
    a = edited(source, tmp_path / "a", table(1))
    b = edited(source, tmp_path / "b", table(2))
    assert compare_folders(a, a).worst == []
    report = compare_folders(a, b)
    assert [error.name for error in report.worst] == ["model.table"]
    assert math.isnan(report.worst[0].relative)


def test_threads_and_progress_change_no_figure(tiny: Path, tiny_fp8: Path) -> None:
    told: list[int] = []
    alone = compare_folders(tiny, tiny_fp8, progress=told.append)
    assert compare_folders(tiny, tiny_fp8, workers=4) == alone
    with open_checkpoint(tiny) as opened:
        assert sum(told) == sum(info.nbytes for info in opened.tensors.values())
