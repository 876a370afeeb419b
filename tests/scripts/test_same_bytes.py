"""scripts/same_bytes.py: a checkout equals itself, and one changed constant shows."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {"float32": "quantize tiny OUT/fp8", "inspect": "inspect tiny --json"}


@pytest.fixture
def same_bytes(load_script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script with two short commands; its outputs are kept in `tmp_path`."""
    script = load_script("same_bytes")
    monkeypatch.setattr(script, "INPUTS", {"tiny": "tiny"})
    monkeypatch.setattr(script, "COMMANDS", COMMANDS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return script


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without its compiled library, and tiles scaled to 447 in place of 448."""
    folder = tmp_path_factory.mktemp("changed")
    for part in ("dstools", "kernels", "converters", "distill"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    constants = folder / "kernels" / "dstools_kernels" / "fp8.py"
    text = constants.read_text()
    assert text.count("E4M3_MAX = 448.0") == 1
    constants.write_text(text.replace("E4M3_MAX = 448.0", "E4M3_MAX = 447.0"))
    return folder


def test_a_checkout_equals_itself_and_nothing_is_kept(
    same_bytes: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["same_bytes.py", str(ROOT), str(ROOT)])
    same_bytes.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("command", "result"),
        ("float32", "equal"),
        ("inspect", "equal"),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_changed_constant_is_named_by_the_files_that_it_changes(
    same_bytes: Any,
    changed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["same_bytes.py", str(ROOT), str(changed)])
    with pytest.raises(SystemExit) as stopped:
        same_bytes.main()
    _, quantized, *differing, inspected = capsys.readouterr().out.splitlines()
    (kept,) = tmp_path.iterdir()
    folder = kept / "before" / "float32"
    shards = sorted(folder.glob("fp8/*.safetensors"))
    with_fp8 = [shard for shard in shards if b"F8_E4M3" in shard.read_bytes()]
    changed_files = [folder / "fp8" / "SHA256SUMS", *with_fp8]
    assert [line.strip() for line in differing] == [
        str(path.relative_to(folder)) for path in changed_files
    ]
    assert quantized.endswith(f"  {len(differing)} differ")
    assert inspected.endswith("  equal")
    where = f"see {kept}/before and {kept}/after"
    assert stopped.value.code == f"error: {len(differing)} files differ; {where}"


def test_a_command_that_fails_stops_with_its_message(
    same_bytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_bytes, "COMMANDS", {"float32": "quantize absent OUT/fp8"})
    monkeypatch.setattr(sys, "argv", ["same_bytes.py", str(ROOT), str(ROOT)])
    with pytest.raises(SystemExit, match=r"quantize absent out/float32/fp8\nerror: "):
        same_bytes.main()


def test_a_file_that_one_side_lacks_differs_and_timings_do_not(
    same_bytes: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for side, names in (("before", "ab"), ("after", "bc")):
        for name in names:
            file = tmp_path / side / "float32" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("text")
    (tmp_path / "after" / "float32" / "timing.json").write_text("{}")
    assert same_bytes.compare(tmp_path / "before", tmp_path / "after") == 2
    _, *lines, _ = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["float32", "2", "8", "2", "differ"]
    assert lines[1:] == ["    a (missing after)", "    c (missing before)"]
