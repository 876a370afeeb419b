"""Each command by itself: what it prints is what is there."""

import hashlib
import json
import math
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools.options import size

Checkpoint = Callable[..., Path]


def dstools(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ok(*args: str | Path) -> Result:
    result = dstools(*args)
    assert result.exit_code == 0, result.output
    return result


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """{shard: {tensor: header entry}}"""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        del header["__metadata__"]
        found[path.name] = header
    return found


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --------------------------------------------------------------------------------- quantize and back


def test_threads_fsync_and_the_kernel_change_no_byte(tiny: Path, tmp_path: Path) -> None:
    ok("quantize", tiny, tmp_path / "a", "--workers", "1")
    ok("quantize", tiny, tmp_path / "b", "--workers", "7", "--no-fsync")
    environment = os.environ | {"DSTOOLS_NATIVE": "0"}
    command = [sys.executable, "-m", "dstools", "quantize", str(tiny), str(tmp_path / "c")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


def test_small_files_travel_and_the_source_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    source.chmod(0o755)
    (source / "inference").mkdir()
    (source / "inference" / "config_671B.json").write_text("{}")
    (source / "LICENSE").write_text("as it is")
    (source / ".cache").mkdir()
    (source / ".cache" / "lock").write_text("")
    before = digest(source)
    ok("quantize", source, tmp_path / "out")
    assert digest(source) == before
    made = digest(tmp_path / "out")
    carried = {name for name in made if made[name] == before.get(name)}
    assert carried == {
        "LICENSE", "inference/config_671B.json",
        "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    }  # fmt: skip
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert made.keys() - before.keys() == {"manifest.json"}
    assert set(index["weight_map"].values()) == set(headers(source))


def test_a_recipe_is_followed_and_the_command_line_overrides_it(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'scale_fmt = "ue8m0"\n[[rule]]\nrole = ["dense_down"]\nlayers = "0"\nscheme = "keep"\n'
    )
    out = tmp_path / "out"
    ok("quantize", tiny, out, "--recipe", recipe)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["scale_fmt"] == "ue8m0"
    assert "model.layers.0.mlp.down_proj" in config["modules_to_not_convert"]
    dtypes = {name: e["dtype"] for header in headers(out).values() for name, e in header.items()}
    assert dtypes["model.layers.0.mlp.down_proj.weight"] == "BF16"
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == "F8_E4M3"
    ok("verify", out, "--source", tiny)

    ok("quantize", tiny, tmp_path / "f32", "--recipe", recipe, "--scale-fmt", "float32")
    config = json.loads((tmp_path / "f32" / "config.json").read_text())["quantization_config"]
    assert "scale_fmt" not in config

    recipe.write_text('scale_format = "ue8m0"\n')
    result = dstools("quantize", tiny, tmp_path / "none", "--recipe", recipe)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1] == "hint: did you mean scale_fmt"
    assert not (tmp_path / "none").exists()


def test_a_tensor_of_no_known_role_is_carried_and_named(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = tmp_path / "source"
    shutil.copytree(checkpoint("tiny-llama"), source)
    source.chmod(0o755)
    shard = sorted(source.glob("*.safetensors"))[0]
    shard.chmod(0o644)
    save_file(load_file(shard) | {"model.extra.weight": torch.arange(4)}, shard)
    index = source / "model.safetensors.index.json"
    index.chmod(0o644)
    listed = json.loads(index.read_text())
    listed["weight_map"]["model.extra.weight"] = shard.name
    listed["metadata"]["total_size"] += 32
    index.write_text(json.dumps(listed))
    result = ok("quantize", source, tmp_path / "out", "--json")
    assert json.loads(result.stdout)["unknown_tensors"] == ["model.extra.weight"]
    assert "warning: copied, but of unknown role: model.extra.weight" in result.stderr
    code = ok("verify", tmp_path / "out", "--source", source, "--json")
    assert [f["code"] for f in json.loads(code.stdout)["findings"]] == ["unknown-tensor"]


def test_nothing_to_dequantize_and_a_base_that_is_no_fp8_are_refused(
    tiny: Path, tiny_fp8: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for args, message in (
        (("dequantize", tiny, out), "nothing to dequantize"),
        (("quantize", tiny, out, "--base", tiny), "is not quantized"),
        (("quantize", tiny_fp8, out, "--base", tiny_fp8), "the source is FP8 already"),
        (("quantize", tiny, out, "--base", tiny_fp8, "--scale-fmt", "ue8m0"), "has float32 scales"),
        (("quantize", tiny, out, "--base", checkpoint("tiny-aligned", fp8="float32")), "is ["),
    ):
        result = dstools(*args)
        assert result.exit_code == 1
        assert message in result.stderr.splitlines()[0]
        assert result.stderr.splitlines()[1].startswith("hint: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [".", "", "/", ".."])
def test_a_folder_that_is_always_there_is_no_out(
    out: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dstools("quantize", tiny, out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0] == f"error: {out}: exists"
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- verify and compare


def test_compare_exits_3_past_the_bound_asked_for(tiny: Path, tiny_fp8: Path) -> None:
    relative = json.loads(ok("compare", tiny, tiny_fp8, "--json").stdout)["worst"][0]["relative"]
    assert 0.02 < relative < 0.04
    assert dstools("compare", tiny, tiny_fp8, "--max-error", f"{relative:.17g}").exit_code == 0
    for options in ([], ["--json"]):
        result = dstools("compare", tiny, tiny_fp8, "--max-error", "0.02", *options)
        assert result.exit_code == 3
        assert re.fullmatch(r"error: model\.\S+ is off by 2\.\d+%\n", result.stderr)
    assert dstools("compare", tiny, tiny, "--max-error", "0").exit_code == 0


def test_compare_prints_roles_total_and_the_worst_ten(tiny: Path, tiny_fp8: Path) -> None:
    report = json.loads(ok("compare", tiny, tiny_fp8, "--json").stdout)
    lines = ok("compare", tiny, tiny_fp8).stdout.splitlines()
    at = lines.index("  worst tensors")
    names = [line.split()[-1] for line in lines]
    assert names[1:at] == [error["name"] for error in [*report["by_role"], report["total"]]]
    assert names[at + 1 : at + 11] == [error["name"] for error in report["worst"]]
    assert lines[1].split()[0] == f"{report['by_role'][0]['relative']:.4%}"
    assert lines[-1] == f"{report['compared']} tensors compared, {report['identical']} identical"


def test_nan_is_past_every_bound_and_null_in_json(checkpoint: Checkpoint, tmp_path: Path) -> None:
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


def test_verify_prints_findings_hints_and_a_verdict(tiny_fp8: Path, tmp_path: Path) -> None:
    good = ok("verify", tiny_fp8)
    *_, verdict = good.stdout.splitlines()
    assert verdict.startswith(f"{tiny_fp8.name}: ok (")
    assert good.stderr == ""

    bad = tmp_path / "bad"
    shutil.copytree(tiny_fp8, bad)
    (bad / "config.json").chmod(0o644)
    config = json.loads((bad / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [64, 64]
    (bad / "config.json").write_text(json.dumps(config))
    result = dstools("verify", bad)
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    errors = [line for line in lines if line.startswith("error: model-")]
    assert len(errors) == 20  # not hundreds, and the rest is counted
    assert lines[lines.index(errors[0]) + 1].startswith("  hint: ")
    (more,) = [line for line in lines if line.startswith("error: ") and line not in errors]
    shown = json.loads(dstools("verify", bad, "--json").stdout)["findings"]
    assert more == f"error: {len(shown) - 20} more; --json lists all"
    assert lines[-1].startswith("bad: falls short (")


# --------------------------------------------------------------------------------- inspect and env


def test_inspect_shows_the_numbers_of_the_json(tiny_fp8: Path) -> None:
    report = json.loads(ok("inspect", tiny_fp8, "--json").stdout)
    text = ok("inspect", tiny_fp8).stdout
    rows = dict(re.findall(r"^(\w+) {2,}(.*)$", text, re.MULTILINE))
    stored = [entry for header in headers(tiny_fp8).values() for entry in header.items()]
    weights = [entry for name, entry in stored if not name.endswith("_scale_inv")]
    elements = sum(math.prod(entry["shape"]) for entry in weights)
    assert report["parameters"] + report["parameters_mtp"] == elements
    assert rows["layers"] == "1 dense, 2 MoE, 1 MTP"
    assert rows["experts"] == "8 routed, 4 active, 1 shared"
    assert rows["parameters"].startswith(f"{report['parameters'] / 1e6:.4g}M, ")
    assert rows["quantization"] == report["quantization"]
    assert rows["files"].startswith(f"{report['shards']} shards, {len(stored)} tensors")


def test_inspect_counts_the_671_billion_in_a_second(checkpoint: Checkpoint) -> None:
    report = json.loads(ok("inspect", checkpoint("v3-headers"), "--json").stdout)
    assert round(report["parameters"] / 1e9) == 671
    assert round(report["parameters_active"] / 1e9) == 38  # 37B and the head, DeepSeek-V3 says
    assert report["shards"] == 163


@pytest.mark.parametrize("is_native", [True, False])
def test_env_says_which_kernels_are_in_use(is_native: bool) -> None:
    environment = os.environ | ({} if is_native else {"DSTOOLS_NATIVE": "0"})
    command = [sys.executable, "-m", "dstools", "env"]
    shown = [
        subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for options in (["--json"], [])
    ]
    report = json.loads(shown[0])
    assert shown[1].split() == " ".join(f"{k} {v}" for k, v in report.items()).split()
    from dstools_kernels.cpu import native

    assert report["cpu_kernels"] == (native.instruction_set() if is_native else "numpy")
    levels = list(native.levels()) if is_native else ["numpy"]
    assert report["cpu_levels"].split(", ") == levels
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["cpus"] == len(os.sched_getaffinity(0))


# ------------------------------------------------------------------------------------------ streams


def test_the_progress_bar_is_in_bytes_and_only_for_a_terminal(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dstools", "quantize", str(tiny)]
    piped = subprocess.run(
        [*command, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert len(piped.stderr.splitlines()) == 1  # the hint
    mine, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    ended = subprocess.run(
        [*command, str(tmp_path / "b")],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(mine, 4096):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(mine)
    assert "convert: 100%" in shown.decode()
    assert "B/s" in shown.decode()
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (5e9, "5 GB"), (1.3421e12, "1.342 TB"),
     (5e15, "5000 TB")],
)  # fmt: skip
def test_a_size_is_spelled_in_powers_of_a_thousand(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


# ------------------------------------------------------------------- what a stranger may have written


def edited(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of a checkpoint with other values in its config.json."""
    shutil.copytree(source, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def renamed(source: Path, folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of a checkpoint in which a tensor has another name of the same length."""
    assert len(old) == len(json.dumps(new.decode())[1:-1])
    edited(source, folder)
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.write_bytes(path.read_bytes().replace(old, json.dumps(new.decode())[1:-1].encode()))
    return folder


def test_names_cannot_act_on_the_terminal(tiny: Path, tmp_path: Path) -> None:
    evil = b"model.\x1b]0;x\x07"
    old = b"model.layers.1.input_layernorm.weight"[: len(json.dumps(evil.decode())) - 2]
    folder = renamed(tiny, tmp_path / "in", old, evil)
    for args in (["inspect", folder], ["compare", folder, folder], ["verify", folder]):
        output = dstools(*args).output
        assert "\x1b" not in output
        assert "\x07" not in output


def test_an_output_inside_its_source_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = edited(tiny, tmp_path / "in")
    (tmp_path / "link").symlink_to(folder)
    before = digest(folder)
    for out in (folder, folder / "out", tmp_path / "link" / "out"):
        result = dstools("quantize", folder, out)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {out}: is inside {folder}\nhint: ")
    assert digest(folder) == before


def test_inspect_warns_of_what_config_and_shards_do_not_share(tiny: Path, tmp_path: Path) -> None:
    assert "warning" not in ok("inspect", tiny).stderr
    more = edited(tiny, tmp_path / "more", n_routed_experts=9, num_nextn_predict_layers=0)
    stderr = ok("inspect", more).stderr
    assert "warning: unlike config.json, 2 routed_up.weight [160, 256] missing" in stderr
    assert "1 eh_proj.weight [256, 512] of MTP layers too many" in stderr
    assert json.loads(ok("inspect", more, "--json").stdout)["disagreements"]


def test_an_unknown_instruction_set_is_an_error_and_no_traceback(
    tiny: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "dstools", "quantize", str(tiny), str(tmp_path / "out")]
    env = os.environ | {"DSTOOLS_ISA": "foo"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: DSTOOLS_ISA must be one that runs here")
    assert hint == "hint: unset DSTOOLS_ISA, or name one of these"


def test_compare_with_a_bound_exits_3_where_b_lacks_tensors(
    tiny: Path, checkpoint: Checkpoint
) -> None:
    sparse = checkpoint("tiny-v32")
    assert dstools("compare", sparse, sparse, "--max-error", "0").exit_code == 0
    aligned = checkpoint("tiny-aligned")
    result = dstools("compare", sparse, aligned, "--max-error", "1e9")
    assert result.exit_code == 3
    assert "tensors are not in B, e.g. model.layers.0.self_attn.indexer" in result.stderr


@pytest.mark.parametrize("pattern", ["(", "(a+)+$", ".*.*.*.*x"])
def test_a_pattern_from_the_checkpoint_can_neither_break_nor_stall_verify(
    pattern: str, tiny: Path, quantized_by_command: Path, tmp_path: Path
) -> None:
    config = json.loads((quantized_by_command / "config.json").read_text())
    quantization = config["quantization_config"] | {"ignore": [f"re:{pattern}", "lm_head"]}
    folder = edited(quantized_by_command, tmp_path / "in", quantization_config=quantization)
    result = dstools("verify", folder)
    assert "warning: config.json: the pattern" in result.stdout


@pytest.fixture(scope="module")
def quantized_by_command(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ct") / "out"
    ok("quantize", tiny, out, "--format", "compressed-tensors")
    return out
