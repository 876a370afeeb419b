"""`dstools compare`: the errors it prints, and its exit code with a bound."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]


def test_compare_exits_3_past_the_bound_asked_for(
    ok: Run, dstools: Run, tiny: Path, tiny_fp8: Path
) -> None:
    relative = json.loads(ok("compare", tiny, tiny_fp8, "--json").stdout)["worst"][0]["relative"]
    assert 0.02 < relative < 0.04
    assert dstools("compare", tiny, tiny_fp8, "--max-error", f"{relative:.17g}").exit_code == 0
    for options in ([], ["--json"]):
        result = dstools("compare", tiny, tiny_fp8, "--max-error", "0.02", *options)
        assert result.exit_code == 3
        assert re.fullmatch(r"error: model\.\S+ is off by 2\.\d+%\n", result.stderr)
    assert dstools("compare", tiny, tiny, "--max-error", "0").exit_code == 0


def test_compare_prints_roles_total_and_the_worst_ten(ok: Run, tiny: Path, tiny_fp8: Path) -> None:
    report = json.loads(ok("compare", tiny, tiny_fp8, "--json").stdout)
    lines = ok("compare", tiny, tiny_fp8).stdout.splitlines()
    at = lines.index("  worst tensors")
    names = [line.split()[-1] for line in lines]
    assert names[1:at] == [error["name"] for error in [*report["by_role"], report["total"]]]
    assert names[at + 1 : at + 11] == [error["name"] for error in report["worst"]]
    assert lines[1].split()[0] == f"{report['by_role'][0]['relative']:.4%}"
    assert lines[-1] == f"{report['compared']} tensors compared, {report['identical']} identical"


def test_nan_is_past_every_bound_and_null_in_json(
    dstools: Run, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source, damaged = checkpoint("tiny-llama"), tmp_path / "damaged"
    shutil.copytree(source, damaged)
    for shard in damaged.glob("*.safetensors"):
        shard.chmod(0o644)
        raw = bytearray(shard.read_bytes())
        raw[-2:] = b"\xc0\x7f"  # the last element of the last tensor
        shard.write_bytes(raw)
    result = dstools("compare", source, damaged, "--max-error", "1e9", "--json")
    assert result.exit_code == 3
    worst = json.loads(result.stdout, parse_constant=pytest.fail)["worst"][0]
    assert (worst["relative"], worst["max_abs"]) == (None, None)
    assert "is off by nan%" in result.stderr


def test_compare_with_a_bound_exits_3_where_b_lacks_tensors(
    dstools: Run, tiny: Path, checkpoint: Checkpoint
) -> None:
    sparse = checkpoint("tiny-v32")
    assert dstools("compare", sparse, sparse, "--max-error", "0").exit_code == 0
    aligned = checkpoint("tiny-aligned")
    result = dstools("compare", sparse, aligned, "--max-error", "1e9")
    assert result.exit_code == 3
    assert "tensors are not in B, e.g. model.layers.0.self_attn.indexer" in result.stderr
