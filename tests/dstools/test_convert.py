"""Running a plan: outputs that are refused, and what is reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Checkpoint = Callable[..., Path]
Run = Callable[..., Result]


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
