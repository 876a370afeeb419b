"""`dstools dequantize`: an FP8 checkpoint becomes BF16 that quantizes to the same FP8."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

Run = Callable[..., Result]


def test_the_output_is_bf16_without_scales_and_makes_the_same_fp8_again(
    ok: Run,
    headers: Callable[..., Any],
    digest: Callable[[Path], dict[str, str]],
    tiny_fp8: Path,
    tmp_path: Path,
) -> None:
    report = json.loads(ok("dequantize", tiny_fp8, tmp_path / "bf16", "--json").stdout)
    before, after = headers(tiny_fp8)[1], headers(tmp_path / "bf16")[1]
    dtypes = [dtype for shard in before.values() for dtype, _ in shard.values()]
    assert report["tensors"]["dequantize"] == dtypes.count("F8_E4M3")
    stored = {name: spec for shard in after.values() for name, spec in shard.items()}
    assert not any(name.endswith("_scale_inv") for name in stored)
    assert {dtype for dtype, _ in stored.values()} == {"BF16", "F32"}  # F32: the router's bias
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())
    ok("quantize", tmp_path / "bf16", tmp_path / "fp8", "--lossless", "auto")
    shards = [name for name in digest(tiny_fp8) if name.endswith(".safetensors")]
    ok("quantize", tiny_fp8, tmp_path / "copy")  # the same bytes, laid out as ours
    again, copied = digest(tmp_path / "fp8"), digest(tmp_path / "copy")
    assert [again[name] for name in shards] == [copied[name] for name in shards]


def test_a_checkpoint_that_is_not_quantized_is_refused(
    dstools: Run, tiny: Path, tmp_path: Path
) -> None:
    result = dstools("dequantize", tiny, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing to dequantize" in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("hint: ")
    assert not list(tmp_path.iterdir())
