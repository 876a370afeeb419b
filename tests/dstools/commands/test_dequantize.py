"""`dstools dequantize`: an FP8 checkpoint becomes BF16 that quantizes to the same FP8."""

import json
import shutil
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


SCALES = {  # as AutoFP8, ModelOpt and llm-compressor write them beside the weights of a layer
    "self_attn.k_scale": [], "self_attn.v_scale": [1], "self_attn.k_proj.k_scale": [],
    "self_attn.kv_scale": [1], "self_attn.q_scale": [], "self_attn.o_proj.input_scale": [1],
    "mlp.gate_proj.input_scale": [],
}  # fmt: skip


def with_scales(source: Path, folder: Path, scales: dict[str, list[int]]) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    shard = min(folder.glob("*.safetensors"))
    added = {f"model.layers.0.{name}": torch.full(shape, 0.5) for name, shape in scales.items()}
    save_file(load_file(shard) | added, shard, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"] |= dict.fromkeys(added, shard.name)
    listed["metadata"]["total_size"] += 4 * len(added)
    index.write_text(json.dumps(listed))
    return folder


def test_scales_of_activations_are_left_out_and_named(
    ok: Run, headers: Callable[..., Any], tiny_fp8: Path, tmp_path: Path
) -> None:
    source = with_scales(tiny_fp8, tmp_path / "fp8", SCALES)
    result = ok("dequantize", source, tmp_path / "bf16")
    stored = {n for shard in headers(tmp_path / "bf16")[1].values() for n in shard}
    assert not [name for name in stored if "scale" in name]
    (warning,) = [line for line in result.stderr.splitlines() if "left out" in line]
    assert "7 scales" in warning
    assert "model.layers.0.mlp.gate_proj.input_scale" in warning
    checked = ok("verify", tmp_path / "bf16", "--source", source, "--json")
    assert json.loads(checked.stdout)["findings"] == []
    dry = ok("dequantize", source, tmp_path / "dry", "--dry-run")
    assert warning in dry.stderr


def test_quantize_carries_scales_of_a_cache_and_leaves_out_those_of_inputs(
    ok: Run, headers: Callable[..., Any], tiny_fp8: Path, tmp_path: Path
) -> None:
    source = with_scales(tiny_fp8, tmp_path / "fp8", SCALES)
    result = ok("quantize", source, tmp_path / "out", "--format", "compressed-tensors")
    stored = {n: e for shard in headers(tmp_path / "out")[1].values() for n, e in shard.items()}
    for name, shape in SCALES.items():
        is_kept = "input_scale" not in name
        assert (f"model.layers.0.{name}" in stored) == is_kept
        if is_kept:
            assert stored[f"model.layers.0.{name}"] == ("F32", shape)
    (warning,) = [line for line in result.stderr.splitlines() if "left out" in line]
    assert "2 scales" in warning
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8
    checked = ok("verify", tmp_path / "out", "--source", source, "--json")
    assert json.loads(checked.stdout)["findings"] == []


def test_inspect_does_not_count_scales_of_activations(
    ok: Run, tiny_fp8: Path, tmp_path: Path
) -> None:
    source = with_scales(tiny_fp8, tmp_path / "fp8", SCALES)
    report, plain = (
        json.loads(ok("inspect", folder, "--json").stdout) for folder in (source, tiny_fp8)
    )
    assert report["parameters"] == plain["parameters"]
    assert report["disagreements"] == []
