"""manifest.json: what was written is read back, and damage or another tool's file is told apart."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.manifest import (
    MANIFEST,
    load_manifest,
    read_manifest,
    require_digest,
)

Make = Callable[..., Path]
MINIMAL = {"tool": "dstools 0", "source_headers": {}, "tensors": {}, "unknown_tensors": []}
# printf hello | sha256sum
HELLO = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_written_manifest_is_read_back(tiny: Path, quantized: Make) -> None:
    manifest = load_manifest(quantized(tiny, scale_format="ue8m0"))
    assert manifest is not None
    assert manifest.tool == "dstools 0"
    assert manifest.scale_fmt == "ue8m0"
    assert not manifest.has_foreign_scales
    assert manifest.recovered is None
    assert sum(manifest.tensors.values()) == 135
    assert sorted(manifest.source_headers) == sorted(path.name for path in tiny.glob("*.safe*s"))


def test_scales_of_an_fp8_source_are_foreign(tiny_fp8: Path, quantized: Make) -> None:
    manifest = load_manifest(quantized(tiny_fp8))
    assert manifest is not None
    assert manifest.has_foreign_scales


def test_a_dequantized_folder_has_no_scale_format(tiny_fp8: Path, dequantized: Make) -> None:
    manifest = load_manifest(dequantized(tiny_fp8))
    assert manifest is not None
    assert manifest.scale_fmt is None


def test_a_source_in_the_hub_s_cache_is_named_by_repository_and_commit(
    tiny: Path, tiny_fp8: Path, quantized: Make, dequantized: Make, tmp_path: Path
) -> None:
    commit = "0123abcd" * 5
    for name, source, make in (("V3", tiny, quantized), ("V3-FP8", tiny_fp8, dequantized)):
        folder = tmp_path / f"models--deep-org--{name}" / "snapshots" / commit
        shutil.copytree(source, folder)
        manifest = load_manifest(make(folder))
        assert manifest is not None
        assert manifest.source == f"deep-org/{name}@{commit}"


def test_a_source_elsewhere_is_not_named(tiny: Path, quantized: Make) -> None:
    written = json.loads((quantized(tiny) / MANIFEST).read_text())
    assert "source" not in written
    assert "source_card" not in written  # it has none


def test_the_card_of_the_source_has_its_sha256(tiny: Path, quantized: Make, tmp_path: Path) -> None:
    """So that a card which was only copied is not taken for one that a person wrote."""
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    source.chmod(0o755)
    (source / "README.md").write_text("hello")
    out = quantized(source)
    manifest = load_manifest(out)
    assert manifest is not None
    assert manifest.source_card == HELLO
    assert (out / "README.md").read_text() == "hello"


@pytest.mark.parametrize("content", ['{"tool": "modelopt 1"}', "{}", '{"name": "an app"}'])
def test_the_manifest_of_another_tool_is_not_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    assert load_manifest(tmp_path) is None


@pytest.mark.parametrize(
    "damaged",
    ["", "{", json.dumps(MINIMAL | {"tensors": []}), json.dumps(MINIMAL | {"scale_fmt": "e5m2"})],
)
def test_a_damaged_manifest_is_an_error_by_file_or_none(damaged: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(damaged)
    with pytest.raises(DstoolsError, match=r"manifest\.json"):
        load_manifest(tmp_path)
    assert read_manifest(tmp_path) is None


def test_a_manifest_of_before_sources_were_named_is_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(MINIMAL))
    manifest = load_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.source, manifest.source_card) == (None, None)


def test_a_manifest_without_a_word_on_scales_takes_them_for_foreign(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(MINIMAL))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.has_foreign_scales


def test_a_side_file_must_be_the_one_of_the_digest(tmp_path: Path) -> None:
    assert require_digest(tmp_path, "a.json", None) is None
    with pytest.raises(DstoolsError, match=r"a\.json: No such file"):
        require_digest(tmp_path, "a.json", HELLO)
    (tmp_path / "a.json").write_text("hello")
    assert require_digest(tmp_path, "a.json", HELLO) == b"hello"
    (tmp_path / "a.json").write_text("hello\n")
    with pytest.raises(DstoolsError, match=r"is not the file that manifest\.json was written"):
        require_digest(tmp_path, "a.json", HELLO)


def test_recovered_weights_are_looked_up_by_name(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(MINIMAL | {"recovered": ["a", "b"]}))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.recovered_weights == {"a", "b"}


def test_a_copy_of_a_folder_has_the_same_manifest(
    tiny: Path, quantized: Make, tmp_path: Path
) -> None:
    source = quantized(tiny)
    shutil.copy(source / MANIFEST, tmp_path)
    assert load_manifest(tmp_path) == load_manifest(source)
