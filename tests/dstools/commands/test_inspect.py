"""`dstools inspect`: the numbers it shows are those of the headers."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    assert "warning: unlike config.json, 2 routed_up.weight [160, 256] missing" in stderr
    assert "1 eh_proj.weight [256, 512] of MTP layers too many" in stderr
    assert json.loads(ok("inspect", more, "--json").stdout)["disagreements"]
