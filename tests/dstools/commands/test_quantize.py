"""`dstools quantize`: the bytes it writes, the files it copies, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]


def test_threads_fsync_and_the_kernel_change_no_byte(
    digest: Callable[[Path], dict[str, str]], ok: Run, tiny: Path, tmp_path: Path
) -> None:
    ok("quantize", tiny, tmp_path / "a", "--workers", "1")
    ok("quantize", tiny, tmp_path / "b", "--workers", "7", "--no-fsync")
    environment = os.environ | {"DSTOOLS_NATIVE": "0"}
    command = [sys.executable, "-m", "dstools", "quantize", str(tiny), str(tmp_path / "c")]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


def test_small_files_travel_and_the_source_is_left_alone(
    headers: Callable[..., Any],
    digest: Callable[[Path], dict[str, str]],
    ok: Run,
    tiny: Path,
    tmp_path: Path,
) -> None:
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
    assert made.keys() - before.keys() == {"manifest.json", "SHA256SUMS"}
    assert set(index["weight_map"].values()) == set(headers(source)[1])


def test_a_recipe_is_followed_and_the_command_line_overrides_it(
    headers: Callable[..., Any], ok: Run, dstools: Run, tiny: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'scale_fmt = "ue8m0"\n[[rule]]\nrole = ["dense_down"]\nlayers = "0"\nscheme = "keep"\n'
    )
    out = tmp_path / "out"
    ok("quantize", tiny, out, "--recipe", recipe)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["scale_fmt"] == "ue8m0"
    assert "model.layers.0.mlp.down_proj" in config["modules_to_not_convert"]
    _, shards = headers(out)
    dtypes = {name: dtype for header in shards.values() for name, (dtype, _) in header.items()}
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


def test_a_base_that_is_not_fp8_or_not_of_this_model_is_refused(
    dstools: Run, tiny: Path, tiny_fp8: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for args, message in (
        ((tiny, out, "--base", tiny), "is not quantized"),
        ((tiny_fp8, out, "--base", tiny_fp8), "the source is FP8 already"),
        ((tiny, out, "--base", tiny_fp8, "--scale-fmt", "ue8m0"), "has float32 scales"),
        ((tiny, out, "--base", checkpoint("tiny-aligned", fp8="float32")), "is ["),
    ):
        result = dstools("quantize", *args)
        assert result.exit_code == 1
        assert message in result.stderr.splitlines()[0]
        assert result.stderr.splitlines()[1].startswith("hint: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [["--method", "gptq"], ["--method", "mse"], ["--min-coverage", "1"], ["--kv-cache", "fp8"]],
    ids=" ".join,
)
def test_what_needs_data_is_refused_without(
    dstools: Run, options: list[str], tiny: Path, tmp_path: Path
) -> None:
    result = dstools("quantize", tiny, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "--calibrate" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_amax_needs_no_data(ok: Run, tiny: Path, tmp_path: Path) -> None:
    ok("quantize", tiny, tmp_path / "out", "--method", "amax")
    assert not (tmp_path / "out" / "calibration.json").exists()
