"""The values of scales: positive, finite, believable, and in the format of whoever made them."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.errors import Finding
from dstools_converters.sidefiles.manifest import read_manifest
from dstools_converters.verify.scales import check_kv_scales, check_scales

Make = Callable[..., Path]
Edited = Callable[[Path], Any]
Ask = Callable[..., tuple[int, Any]]
O_PROJ = "model.layers.1.self_attn.o_proj.weight"  # [256, 128], scales [2, 1]
O_SCALE = f"{O_PROJ}_scale_inv"
K_SCALE = "model.layers.0.self_attn.k_scale"


def scales_of(folder: Path) -> list[Finding]:
    with open_checkpoint(folder) as opened:
        return list(check_scales(take_inventory(opened), read_manifest(folder)))


def kv_scales_of(folder: Path) -> list[Finding]:
    with open_checkpoint(folder) as opened:
        return list(check_kv_scales(take_inventory(opened)))


@pytest.mark.parametrize("is_ours", [True, False])
def test_scales_that_are_no_powers_of_two_are_an_error_in_our_outputs_and_a_note_in_others(
    is_ours: bool, tiny: Path, quantized: Make, edited: Edited, ask: Ask
) -> None:
    """V3.1 itself has some: deepseek-ai/DeepSeek-V3#961."""
    folder = edited(quantized(tiny, scale_format="ue8m0"))
    folder.scale(O_PROJ).floats()[1] *= np.float32(1.32288)
    path = folder.write()
    if not is_ours:
        (path / "manifest.json").unlink()
    code, report = ask(path)
    (finding,) = report["findings"]
    assert finding["code"] == "scale-ue8m0"
    assert O_SCALE in finding["where"]
    assert "[1, 0]" in finding["message"]
    assert (finding["level"], code) == (("error", 3) if is_ours else ("note", 0))


@pytest.mark.parametrize(("dtype", "level"), [("BF16", "warning"), ("F8_E8M0", "")])
def test_scales_of_others_may_be_exponents_and_had_better_not_be_bf16(
    dtype: str, level: str, checkpoint: Make, edited: Edited, ask: Ask
) -> None:
    """transformers stores F8_E8M0 under the native names; llm-compressor rounds to BF16."""
    folder = edited(checkpoint("tiny", fp8="ue8m0"))
    tensor = folder.scale(O_PROJ)
    if dtype == "BF16":
        tensor.to_bf16()
    else:
        exponents = np.log2(tensor.floats()) + 127
        tensor.dtype, tensor.data = dtype, bytearray(exponents.astype(np.uint8).tobytes())
    code, report = ask(folder.write(), "--source", str(checkpoint("tiny", fp8="ue8m0")))
    assert code == 0
    assert [(f["level"], f["code"]) for f in report["findings"]] == (
        [(level, "scale-not-f32")] if level else []
    )


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        (22.3, []),  # a weight of 9990, below 1e4
        (22.4, ["warning"]),
        (0.0, ["error"]),
        (-1.0, ["error"]),
        (float("nan"), ["error"]),
        (float("inf"), ["error"]),
    ],
)
def test_a_scale_is_positive_finite_and_of_a_weight_below_ten_thousand(
    value: float, levels: list[str], tiny: Path, quantized: Make, edited: Edited
) -> None:
    folder = edited(quantized(tiny))
    folder.scale(O_PROJ).floats()[1, 0] = value
    findings = scales_of(folder.write())
    assert [(f.level, f.code) for f in findings] == [(level, "scale-value") for level in levels]
    assert all(f.where.endswith(O_SCALE) and "[1, 0]" in f.message for f in findings)


def test_an_unquantized_checkpoint_has_no_scales_to_check(tiny: Path) -> None:
    assert scales_of(tiny) == kv_scales_of(tiny) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e-30, ""),
        (0.0, "is 0; scales are positive"),
        (-2.0, "is -2; scales are positive"),
        (float("nan"), "is nan; scales are positive"),
        (float("inf"), "is inf; scales are positive"),
    ],
)
def test_a_scale_of_a_kv_cache_is_positive_and_finite(
    value: float, message: str, tiny: Path, quantized: Make, edited: Edited
) -> None:
    folder = edited(quantized(tiny))
    folder.put(K_SCALE, "F32", [1], struct.pack("<f", value))
    findings = kv_scales_of(folder.write())
    assert [f.message for f in findings] == ([message] if message else [])
    assert all(f.code == "kv-scale" and f.where.endswith(K_SCALE) for f in findings)


def test_a_scale_of_a_kv_cache_is_a_float(tiny: Path, quantized: Make, edited: Edited) -> None:
    folder = edited(quantized(tiny))
    folder.put(K_SCALE, "I32", [1], bytes(4))
    (finding,) = kv_scales_of(folder.write())
    assert finding.message == "is I32, not a scale's dtype"


@pytest.mark.parametrize("name", ["k_scale", "k_proj.k_scale", "kv_scale", "prob_scale"])
def test_a_scalar_of_any_spelling_is_held_to_the_same(
    name: str, tiny: Path, quantized: Make, edited: Edited
) -> None:
    folder = edited(quantized(tiny))
    folder.put(f"model.layers.0.self_attn.{name}", "F32", [], struct.pack("<f", -1.0))
    folder.put(f"model.layers.1.self_attn.{name}", "BF16", [], b"\x80\x3f")
    (finding,) = kv_scales_of(folder.write())
    assert finding.message == "is -1; scales are positive"
    assert finding.where.endswith(f"model.layers.0.self_attn.{name}")
