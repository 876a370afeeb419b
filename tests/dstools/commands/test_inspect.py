"""`dstools inspect`: the numbers it shows are those of the headers."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]


def test_inspect_shows_the_numbers_of_the_json(
    headers: Callable[..., Any], ok: Run, tiny_fp8: Path
) -> None:
    report = json.loads(ok("inspect", tiny_fp8, "--json").stdout)
    text = ok("inspect", tiny_fp8).stdout
    rows = dict(re.findall(r"^(\w+) {2,}(.*)$", text, re.MULTILINE))
    stored = [entry for header in headers(tiny_fp8)[1].values() for entry in header.items()]
    weights = [entry for name, entry in stored if not name.endswith("_scale_inv")]
    elements = sum(math.prod(shape) for _, shape in weights)
    assert report["parameters"] + report["parameters_mtp"] == elements
    assert rows["layers"] == "1 dense, 2 MoE, 1 MTP"
    assert rows["experts"] == "8 routed, 4 active, 1 shared"
    assert rows["parameters"].startswith(f"{report['parameters'] / 1e6:.4g}M, ")
    assert rows["quantization"] == report["quantization"]
    assert rows["files"].startswith(f"{report['shards']} shards, {len(stored)} tensors")


def test_inspect_counts_the_671_billion_in_a_second(ok: Run, checkpoint: Checkpoint) -> None:
    report = json.loads(ok("inspect", checkpoint("v3-headers"), "--json").stdout)
    assert round(report["parameters"] / 1e9) == 671
    assert round(report["parameters_active"] / 1e9) == 38  # 37B and the head, DeepSeek-V3 says
    assert report["shards"] == 163


def test_inspect_warns_of_what_config_and_shards_do_not_share(
    edited: Callable[..., Path], ok: Run, tiny: Path, tmp_path: Path
) -> None:
    assert "warning" not in ok("inspect", tiny).stderr
    more = edited(tiny, tmp_path / "more", n_routed_experts=9, num_nextn_predict_layers=0)
    stderr = ok("inspect", more).stderr
    assert "warning: config.json: num_nextn_predict_layers is 0, but the shards hold 1" in stderr
    assert "n_routed_experts is 9, but the layers in the shards have experts 0-7" in stderr
    assert "dstools verify" in stderr
    assert "dstools quantize" not in stderr
    assert json.loads(ok("inspect", more, "--json").stdout)["disagreements"]


@pytest.mark.parametrize(
    "block",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"producer": {"name": "modelopt"}, "quant_algo": "FP8"},
        {},
    ],
)
def test_inspect_shows_a_merged_model_and_warns_of_the_block_of_its_training(
    block: dict[str, Any], edited: Callable[..., Path], ok: Run, tiny: Path, tmp_path: Path
) -> None:
    folder = edited(tiny, tmp_path / "merged", quantization_config=block)
    result = ok("inspect", folder)
    assert result.stdout == ok("inspect", tiny).stdout
    assert "warning: config.json: " in result.stderr
    assert "hint: remove quantization_config from config.json" in result.stderr
    assert "None" not in result.stderr
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]  # as the hint says
    (folder / "config.json").write_text(json.dumps(config))
    ok("quantize", folder, tmp_path / "out", "--dry-run")


def test_inspect_hints_at_quantize_only_where_quantize_would_take_it(
    edited: Callable[..., Path], ok: Run, dstools: Run, tiny: Path, tmp_path: Path
) -> None:
    for number, (folder, is_taken) in enumerate({
        tiny: True,
        edited(tiny, tmp_path / "block", quantization_config={}): False,
        edited(tiny, tmp_path / "expert", n_routed_experts=9): False,
        edited(tiny, tmp_path / "layers", num_hidden_layers=2): False,
    }.items()):  # fmt: skip
        hints = [line for line in ok("inspect", folder).stderr.splitlines() if "dstools" in line]
        command = "quantize" if is_taken else "verify"
        assert hints[-1].startswith(f"hint: dstools {command} {folder}")
        result = dstools("quantize", folder, tmp_path / f"out{number}", "--dry-run")
        assert (result.exit_code == 0) == is_taken


def test_inspect_refuses_modelopt_by_name(
    headers: Callable[..., Any], sparse: Callable[..., Path], dstools: Run, tiny_fp8: Path
) -> None:
    config, shards = headers(tiny_fp8)
    del config["quantization_config"]
    folder = sparse(config, shards)
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    result = dstools("inspect", folder)
    assert result.exit_code == 1
    assert "hf_quant_config.json: ModelOpt FP8 is not supported" in result.stderr
    assert "dstools quantize" not in result.output
