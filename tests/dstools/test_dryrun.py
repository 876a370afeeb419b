"""The output of --dry-run: equal to what a run then writes, and short for any model."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools_converters.errors import DstoolsError, size
from dstools_converters.sidefiles.carried import carried_files
from dstools_converters.write.writer import Writer


def dstools(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ok(*args: str | Path) -> Result:
    result = dstools(*args)
    assert result.exit_code == 0, result.output
    return result


def dry_run(*args: str | Path) -> dict[str, Any]:
    plan = json.loads(ok(*args, "--dry-run", "--json").stdout)
    assert isinstance(plan, dict)
    return plan


CASES = [
    ("quantize", "bf16", []),
    ("quantize", "bf16", ["--format", "compressed-tensors"]),
    ("quantize", "fp8", ["--scale-fmt", "ue8m0"]),
    ("quantize", "bf16", ["--base", "fp8"]),
    ("dequantize", "fp8", []),
]


@pytest.mark.parametrize(("command", "source", "options"), CASES)
def test_a_dry_run_writes_nothing_and_its_json_is_what_a_run_writes(
    command: str,
    source: str,
    options: list[str],
    tiny: Path,
    tiny_fp8: Path,
    headers: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folders = {"bf16": tiny, "fp8": tiny_fp8}
    out = tmp_path / "out"
    args = [command, folders[source], out, *(folders.get(word, word) for word in options)]
    plan = dry_run(*args)
    ok(*args, "--dry-run")
    assert not list(tmp_path.iterdir())

    report = json.loads(ok(*args, "--json").stdout)
    _, written = headers(out)
    assert plan["shards"] == [
        {"name": name, "bytes": (out / name).stat().st_size} for name in written
    ]
    planned = {name: spec for tensor in plan["tensors"] for name, spec in tensor["outputs"].items()}
    assert planned == {
        name: [dtype, shape]
        for tensors in written.values()
        for name, (dtype, shape) in tensors.items()
    }
    assert plan["bytes_out"] == report["bytes_out"] == sum(s["bytes"] for s in plan["shards"])
    assert plan["bytes_in"] == report["bytes_in"]
    carried = sum(path.stat().st_size for path in carried_files(folders[source]).values())
    assert plan["disk_needed"] == report["bytes_out"] + carried
    actions = [tensor["action"] for tensor in plan["tensors"]]
    assert report["tensors"] == {action: actions.count(action) for action in set(actions)}
    sources = {name for tensors in headers(folders[source])[1].values() for name in tensors}
    named = {tensor["name"] for tensor in plan["tensors"]}
    assert named == {name for name in sources if not name.endswith("_scale_inv")}


@pytest.mark.parametrize(("command", "source", "options"), CASES)
def test_the_groups_add_up_to_the_tensors_and_the_bytes(
    command: str, source: str, options: list[str], tiny: Path, tiny_fp8: Path, tmp_path: Path
) -> None:
    folders = {"bf16": tiny, "fp8": tiny_fp8}
    words = [str(folders.get(word, word)) for word in options]
    plan = dry_run(command, folders[source], tmp_path / "out", *words)
    groups = plan["groups"]
    counted = {(group["action"], group["rule"]): 0 for group in groups}
    for group in groups:
        counted[group["action"], group["rule"]] += group["tensors"]
    reasons = [(tensor["action"], tensor["rule"]) for tensor in plan["tensors"]]
    assert counted == {reason: reasons.count(reason) for reason in reasons}
    assert sum(group["bytes_in"] for group in groups) == plan["bytes_in"]
    headers_and_padding = plan["bytes_out"] - sum(group["bytes_out"] for group in groups)
    assert 0 < headers_and_padding < 64_000 * len(plan["shards"])
    assert [g["bytes_in"] for g in groups] == sorted((g["bytes_in"] for g in groups), reverse=True)


def test_the_plan_of_deepseek_v3_is_a_table_of_one_line_a_role(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    lines = ok("quantize", checkpoint("v3-headers-bf16"), tmp_path / "o", "--dry-run").stdout
    *table, shards, disk = lines.splitlines()
    rows = [re.split(r" {2,}", line) for line in table]
    assert rows[0] == ["role", "tensors", "before", "after", "action (rule)"]
    assert len(rows) == 1 + 29 + 1
    by_role = {row[0]: row[1:] for row in rows}
    # 58 MoE layers and the MTP layer, 256 experts each; 2048 x 7168 in BF16, then FP8 and scales
    elements = 59 * 256 * 2048 * 7168
    fp8 = elements + elements // 128**2 * 4
    assert by_role["routed_down"] == [
        "15,104", size(elements * 2), size(fp8), "quantize (DeepSeek's own)",
    ]  # fmt: skip
    assert by_role["lm_head"] == ["1", "1.853 GB", "1.853 GB", "copy (DeepSeek's own)"]
    assert by_role["all"] == ["46,183", "1.369 TB", "688.6 GB", "375 copy, 45,808 quantize"]
    assert shards.startswith("shards: 163 of 4.146 GB to 6.144 GB, model-00001-of-000163.safe")
    assert re.fullmatch(rf"disk: 688.6 GB needed, [\d.]+ [kMGT]B free in {tmp_path}", disk)


def test_a_rule_of_a_recipe_gets_a_line_of_its_own(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "keep.toml"
    recipe.write_text('[[rule]]\nrole = "o_proj"\nlayers = "1"\nscheme = "keep"\n')
    groups = dry_run("quantize", tiny, tmp_path / "o", "--recipe", recipe)["groups"]
    found = {(g["action"], g["rule"]): g["tensors"] for g in groups if g["role"] == "o_proj"}
    # 3 layers and the MTP layer
    assert found == {("copy", "keep.toml, rule 1"): 1, ("quantize", "DeepSeek's own"): 3}


def test_biases_and_unknown_tensors_are_told_apart_from_weights(
    headers: Callable[..., Any],
    sparse: Callable[..., Path],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    config, shards = headers(checkpoint("tiny-qwen2"))
    next(iter(shards.values()))["model.extra.weight"] = ("BF16", [4])
    layers = config["num_hidden_layers"]
    groups = dry_run("quantize", sparse(config, shards), tmp_path / "o")["groups"]
    found = {g["role"]: (g["action"], g["tensors"], g["bytes_in"], g["bytes_out"]) for g in groups}
    assert found["unknown"] == ("copy", 1, 8, 8)
    assert found["q_proj bias"][:2] == ("copy", layers)
    assert found["q_proj"][:2] == ("quantize", layers)


def test_list_adds_a_line_for_each_tensor_before_the_table(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = dry_run("quantize", tiny, out)
    table = ok("quantize", tiny, out, "--dry-run").stdout
    listed = ok("quantize", tiny, out, "--dry-run", "--list").stdout
    assert listed.splitlines()[-3:-1] == table.splitlines()[-3:-1]  # the space left may change
    lines = listed.splitlines()[: len(plan["tensors"])]
    assert len(listed.splitlines()) == len(lines) + len(table.splitlines())
    for line, tensor in zip(lines, plan["tensors"], strict=True):
        outputs = " + ".join(f"{dtype} {shape}" for dtype, shape in tensor["outputs"].values())
        assert f"  {tensor['name']}  " in line
        assert line.endswith(f" -> {outputs}  {tensor['action']} ({tensor['rule']})")
    result = dstools("quantize", tiny, out, "--list")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--list needs --dry-run" in result.stderr


def test_a_calibrated_run_needs_room_for_hidden_states(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" the of in to and for is be on that as with it" * 9)
    data = ["--calibrate", text, "--samples", "2", "--seq-len", "8"]
    plan = dry_run("quantize", tiny, tmp_path / "o", *data)
    hidden_size = json.loads((tiny / "config.json").read_text())["hidden_size"]
    carried = sum(path.stat().st_size for path in carried_files(tiny).values())
    # two saved and three spilled, of 16 tokens in float32
    assert plan["disk_needed"] - plan["bytes_out"] - carried == 5 * 16 * hidden_size * 4


def test_the_hint_says_whether_the_same_command_would_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert "without --dry-run does it" in ok("quantize", tiny, out, "--dry-run").stderr
    needed = dry_run("quantize", tiny, out)["disk_needed"]
    for free, text in ((needed, "without --dry-run does it"), (needed - 1, "is too little")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        result = ok("quantize", tiny, out, "--dry-run")
        assert text in result.stderr
        assert f"disk: {size(needed)} needed, {size(free)} free" in result.stdout


def test_the_hint_says_why_the_same_command_would_not_run(tiny: Path, tmp_path: Path) -> None:
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nothing")
    (tmp_path / "out").mkdir()
    for out, why in (
        (tmp_path / "out", f"{tmp_path / 'out'}: exists"),
        (dangling, f"{dangling}: exists"),
        (tiny / "out", f"{tiny / 'out'}: is inside"),
    ):
        assert f"would fail: {why}" in ok("quantize", tiny, out, "--dry-run").stderr
    (tmp_path / "out.incomplete").mkdir()
    out = tmp_path / "out"
    assert f"would fail: {out}: exists" in ok("quantize", tiny, out, "--dry-run").stderr
    out.rmdir()  # an interrupted run, which may resume
    assert "--dry-run does it" in ok("quantize", tiny, out, "--dry-run").stderr


@pytest.fixture
def interrupted(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OUT of a run with ue8m0 scales that stopped before its last rename."""
    out = tmp_path / "out"

    def stop(writer: Writer, workers: int) -> None:
        raise DstoolsError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "publish", stop)
        assert dstools("quantize", tiny, out, "--scale-fmt", "ue8m0").exit_code == 1
    return out


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "file", "why"),
    [
        (["--scale-fmt", "ue8m0"], "", ""),
        ([], "", "out.incomplete: was begun with --scale-fmt ue8m0"),
        (["--scale-fmt", "ue8m0"], "notes.txt", "notes.txt: dstools did not write it"),
    ],
)
def test_an_interrupted_run_is_refused_by_both_or_by_neither(
    options: list[str], file: str, why: str, tiny: Path, interrupted: Path
) -> None:
    work = interrupted.with_name("out.incomplete")
    if file:
        (work / file).touch()
    before = content(work)
    stderr = ok("quantize", tiny, interrupted, *options, "--dry-run").stderr
    assert content(work) == before
    result = dstools("quantize", tiny, interrupted, *options)
    if why:
        assert "would fail: " in stderr
        assert why in stderr
        assert (result.exit_code, why in result.stderr) == (1, True)
    else:
        assert "without --dry-run does it" in stderr
        assert result.exit_code == 0


def test_a_run_at_work_is_named_by_a_dry_run(tiny: Path, interrupted: Path) -> None:
    descriptor = os.open(interrupted.with_name("out.incomplete"), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        stderr = ok("quantize", tiny, interrupted, "--scale-fmt", "ue8m0", "--dry-run").stderr
    finally:
        os.close(descriptor)
    assert "would fail: " in stderr
    assert "another run is writing it" in stderr


def test_one_shard_is_named_with_its_size(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("tiny", shard_bytes=10**9)
    plan = dry_run("quantize", source, tmp_path / "o")
    (shard,) = plan["shards"]
    lines = ok("quantize", source, tmp_path / "o", "--dry-run").stdout.splitlines()
    assert lines[-2] == f"shards: model.safetensors of {size(shard['bytes'])}"
