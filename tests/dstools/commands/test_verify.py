"""`dstools verify`: findings, hints and a verdict."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]


def test_verify_prints_findings_hints_and_a_verdict(
    ok: Run, dstools: Run, tiny_fp8: Path, tmp_path: Path
) -> None:
    good = ok("verify", tiny_fp8)
    *_, verdict = good.stdout.splitlines()
    assert verdict.startswith(f"{tiny_fp8}: ok (")
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
    (error,) = [line for line in lines if line.startswith("error: ")]  # one, not hundreds
    assert error.startswith("error: model-")
    # 5 or 6 matrices of attention in 4 layers, 3 of the dense MLP, of 9 experts in 3 layers
    assert f"(and {5 * 4 + 3 + 3 * 9 * 3 - 1} more, e.g. model-" in error
    assert lines[lines.index(error) + 1].startswith("  hint: ")
    assert lines[-1].startswith(f"{bad}: falls short (")


def test_the_verdict_names_the_folder_as_it_was_typed(
    ok: Run, tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_fp8)
    assert ok("verify", ".", "--headers-only").stdout.splitlines()[-1].startswith(".: ok (")


def test_verify_prints_a_few_findings_of_a_kind_and_counts_the_rest(
    dstools: Run, tiny_fp8: Path, checkpoint: Checkpoint
) -> None:
    words = ["verify", tiny_fp8, "--source", checkpoint("tiny", seed=1)]
    lines = dstools(*words).stdout.splitlines()
    found = json.loads(dstools(*words, "--json").stdout)["findings"]
    codes = {finding["code"] for finding in found if finding["level"] == "error"}
    errors = [line for line in lines if line.startswith("error: model-")]
    assert len(errors) == 5 * len(codes) < len(found)
    assert f"error: {len(found) - len(errors)} more; --json lists all" in lines


@pytest.fixture(scope="module")
def quantized_by_command(ok: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ct") / "out"
    ok("quantize", tiny, out, "--format", "compressed-tensors")
    return out


@pytest.mark.parametrize("pattern", ["(", "(a+)+$", ".*.*.*.*x"])
def test_a_pattern_from_the_checkpoint_can_neither_break_nor_stall_verify(
    edited: Callable[..., Path],
    dstools: Run,
    pattern: str,
    tiny: Path,
    quantized_by_command: Path,
    tmp_path: Path,
) -> None:
    config = json.loads((quantized_by_command / "config.json").read_text())
    quantization = config["quantization_config"] | {"ignore": [f"re:{pattern}", "lm_head"]}
    folder = edited(quantized_by_command, tmp_path / "in", quantization_config=quantization)
    result = dstools("verify", folder)
    assert "warning: config.json: the pattern" in result.stdout


def test_sums_names_the_file_that_changed_and_exits_with_3(
    ok: Run, dstools: Run, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ok("quantize", tiny, out)
    assert "not checked: file hashes of SHA256SUMS: --sums; what" in ok("verify", out).stdout
    assert "hashes of 12 files from SHA256SUMS" in ok("verify", out, "--sums").stdout
    with (out / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    assert "error" not in ok("verify", out).stdout
    result = dstools("verify", out, "--sums")
    assert result.exit_code == 3
    assert "error: tokenizer.json: is not the file that SHA256SUMS lists" in result.stdout


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_sums_names_the_damaged_file_where_nothing_can_be_read_as_a_checkpoint(
    ok: Run, dstools: Run, tiny: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    ok("quantize", tiny, out)
    content = (out / name).read_bytes()
    (out / name).write_bytes(b"}" + content[1:])
    assert dstools("verify", out).exit_code == 1
    result = dstools("verify", out, "--sums")
    assert result.exit_code == 3
    assert f"error: {name}: is not the file that SHA256SUMS lists: its sha256 differs" in (
        result.stdout
    )
    assert f"error: {name}: is not valid JSON" in result.stdout
    assert "checked: hashes of 12 files" in result.stdout
    assert "not checked: " in result.stdout
    assert dstools("verify", tmp_path / "gone", "--sums").exit_code == 1


def test_a_link_to_nothing_beside_the_shards_is_only_a_warning(
    ok: Run, edited: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    folder = edited(tiny, tmp_path / "in")
    (folder / "extra.safetensors").symlink_to("gone")
    assert "warning: extra.safetensors: " in ok("verify", folder).stdout


def test_a_folder_is_signed_and_the_signature_checked(
    ok: Run, dstools: Run, tiny_fp8: Path, tmp_path: Path
) -> None:
    key, public, out = tmp_path / "key.pem", tmp_path / "public.pem", tmp_path / "out"
    openssl = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]
    subprocess.run(openssl, check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True)
    ok("dequantize", tiny_fp8, out, "--sign", key)
    assert "the signature: --signed-by" in ok("verify", out).stdout
    good = ok("verify", out, "--signed-by", public, "--sums").stdout
    assert "the signature of every file" in good
    with (out / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    result = dstools("verify", out, "--signed-by", public)
    assert result.exit_code == 3
    assert "error: tokenizer.json: is not the file that was signed" in result.stdout
    assert "tokenizer.json" in result.stdout
    result = dstools("quantize", tiny_fp8, tmp_path / "new", "--sign", tmp_path / "gone.pem")
    assert result.exit_code == 1
    assert not (tmp_path / "new.incomplete").exists()
