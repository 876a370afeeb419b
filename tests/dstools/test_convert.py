"""Running a plan: outputs that are refused, and what is reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 7847602\n"


def test_a_tensor_of_no_known_role_is_carried_and_named(
    ok: Run, checkpoint: Checkpoint, tmp_path: Path
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


@pytest.mark.parametrize("out", [".", "", "/", ".."])
def test_a_folder_that_is_always_there_is_no_out(
    dstools: Run, out: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dstools("quantize", tiny, out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0] == f"error: {out}: exists"
    assert not list(tmp_path.iterdir())


def test_a_link_out_of_the_source_leaves_nothing_behind(
    dstools: Run, edited: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    folder = edited(tiny, tmp_path / "in")
    (folder / "notes.txt").symlink_to("/etc/passwd")
    result = dstools("quantize", folder, tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: notes.txt: is a link out of the folder\nhint: ")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_output_that_is_a_link_to_itself_is_refused(
    dstools: Run, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.symlink_to("out")
    result = dstools("quantize", tiny, out)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, f"error: {out}: exists")


def test_an_output_inside_its_source_is_refused(
    digest: Callable[[Path], dict[str, str]],
    edited: Callable[..., Path],
    dstools: Run,
    tiny: Path,
    tmp_path: Path,
) -> None:
    folder = edited(tiny, tmp_path / "in")
    (tmp_path / "link").symlink_to(folder)
    before = digest(folder)
    for out in (folder, folder / "out", tmp_path / "link" / "out"):
        result = dstools("quantize", folder, out)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {out}: is inside {folder}\nhint: ")
    assert digest(folder) == before


def test_what_cannot_work_is_named_left_out_and_no_difference_for_verify(
    ok: Run, edited: Callable[..., Path], tiny: Path, tiny_fp8: Path, tmp_path: Path
) -> None:
    for source, command in ((tiny, "quantize"), (tiny_fp8, "dequantize")):
        folder = edited(
            source,
            tmp_path / command,
            auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
            torch_dtype="float8_e4m3fn",
        )
        (folder / "adapter_config.json").write_text("{}")
        (folder / "chat_template.jinja").write_text(POINTER)
        (folder / "hf_quant_config.json").write_text("{}")
        (folder / "vocab.json").symlink_to("gone")
        (folder / "checkpoint-5").mkdir()
        (folder / "checkpoint-5" / "config.json").write_text("{}")
        names = ["adapter_config.json", "chat_template.jinja", "hf_quant_config.json", "vocab.json"]
        names += ["checkpoint-5/", "config.json: auto_map", "config.json: torch_dtype"]
        out = tmp_path / f"{command}-out"
        for options in (["--dry-run"], []):
            stderr = ok(command, folder, out, *options).stderr
            for name in names:
                assert f"warning: {name}" in stderr
        assert not {"adapter_config.json", "chat_template.jinja", "hf_quant_config.json"} & {
            path.name for path in out.iterdir()
        }
        assert not (out / "checkpoint-5").exists()
        config = json.loads((out / "config.json").read_text())
        assert "auto_map" not in config
        assert config["torch_dtype"] == "bfloat16"
        assert json.loads(ok("verify", out, "--source", folder, "--json").stdout)["findings"] == []
        found = json.loads(ok("verify", folder, "--json").stdout)["findings"]
        assert {f["where"] for f in found} >= {"config.json", *names[:5]}
        assert "error" not in {f["level"] for f in found}


UP = "model.layers.1.mlp.up_proj.weight"


def zeroed(source: Path, folder: Path, *names: str) -> Path:
    """A copy in which these tensors hold zeros."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in tensors.keys() & set(names):
            tensors[name] = tensors[name] * 0
        save_file(tensors, shard, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "options", [[], ["--lossless", "auto"], ["--format", "compressed-tensors"], ["--workers", "1"]]
)
def test_weights_that_are_all_zeros_are_named(
    ok: Run, checkpoint: Checkpoint, tmp_path: Path, options: list[str]
) -> None:
    names = [UP, "model.embed_tokens.weight", "model.layers.2.input_layernorm.weight"]
    bias = "model.layers.0.self_attn.q_proj.bias"  # as a new layer has them
    source = zeroed(checkpoint("tiny-qwen2"), tmp_path / "source", *names, bias)
    result = ok("quantize", source, tmp_path / "out", *options, "--json")
    assert sorted(json.loads(result.stdout)["zero_weights"]) == sorted(names)
    warnings = [line for line in result.stderr.splitlines() if "all zeros" in line]
    assert sorted(warnings) == [f"warning: {name}: is all zeros" for name in sorted(names)]
    checked = json.loads(ok("verify", tmp_path / "out", "--source", source, "--json").stdout)
    assert sorted(f["where"] for f in checked["findings"] if f["code"] == "all-zero") == sorted(
        names
    )
    back = ok("dequantize", tmp_path / "out", tmp_path / "back", "--json")
    assert sorted(json.loads(back.stdout)["zero_weights"]) == sorted(names)


def test_nothing_is_said_of_zeros_where_there_are_none(ok: Run, tiny: Path, tmp_path: Path) -> None:
    result = ok("quantize", tiny, tmp_path / "out", "--json")
    assert json.loads(result.stdout)["zero_weights"] == []
    assert "all zeros" not in result.stderr


def test_a_resumed_run_names_the_zeros_of_the_run_before(
    ok: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dstools_converters.write import jobs
    from dstools_converters.write.writer import Writer

    source = zeroed(checkpoint("tiny-llama"), tmp_path / "source", UP)
    with monkeypatch.context() as patched:
        patched.setattr(
            Writer, "publish", lambda self, workers: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises((KeyboardInterrupt, SystemExit, AssertionError)):
            ok("quantize", source, tmp_path / "out")
    monkeypatch.setattr(jobs, "do", None)  # nothing is done again
    result = ok("quantize", source, tmp_path / "out", "--json")
    assert json.loads(result.stdout)["zero_weights"] == [UP]


@pytest.mark.parametrize("command", ["quantize", "dequantize"])
def test_odd_values_are_warned_of_on_stderr_and_in_json(
    ok: Run, tiny_fp8: Path, tmp_path: Path, command: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_fp8, source)
    for path in (source, *source.iterdir()):
        path.chmod(0o755)
    for shard in source.glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        entry = json.loads(content[8:start]).get("model.norm.weight")
        if entry is not None:
            begin = start + entry["data_offsets"][0]
            content[begin : begin + 2] = b"\x7f\x7f"
            shard.write_bytes(content)
            where = f"{shard.name}: model.norm.weight"
    result = ok(command, source, tmp_path / "out", "--json")
    (warning,) = json.loads(result.stdout)["warnings"]
    assert (warning["code"], warning["where"]) == ("clamped", where)
    assert f"warning: {where}: {warning['message']}\n" in result.stderr
