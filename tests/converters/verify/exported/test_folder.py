"""An exported folder and its export.json, in both directions: what is damaged is named."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.ranks import Ranks
from dstools_converters.sidefiles.sums import MAKE
from dstools_converters.verify.folder import verify
from dstools_converters.verify.hashes import Digests

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
Export = Callable[..., Path]
Damaged = Callable[[Path], Any]


@pytest.fixture
def copy(exported: Export, damaged: Damaged) -> Any:
    """The sample model with MTP in float32, exported, to be damaged."""
    return damaged(exported(SAMPLE))


@pytest.mark.parametrize(
    "options",
    [{}, {"mtp": False, "ranks": Ranks(tp=2)}, {"ranks": Ranks(ep=2), "expert_inputs": True}],
    ids=["mtp", "ranks", "expert inputs"],
)
def test_an_intact_folder_is_clean_and_equals_its_source(
    exported: Export, options: dict[str, Any]
) -> None:
    report = verify(exported(SAMPLE, **options), source=SAMPLE)
    assert report.findings == []
    assert report.elements_compared > 3_000_000
    assert any("byte by byte" in line for line in report.checked)
    assert any("converted" in line for line in report.checked)
    assert any("made anew" in line for line in report.checked)


def test_an_intact_folder_of_fp8_is_clean_and_equals_its_source(
    exported: Export, sample_fp8: Path
) -> None:
    report = verify(exported(sample_fp8), source=sample_fp8)
    assert report.findings == []
    assert "98 tensors against the checkpoint, byte by byte" in report.checked


def test_a_check_without_a_source_imports_neither_torch_nor_onnx(exported: Export) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from dstools_converters.verify.folder import verify;"
        f"assert verify(Path({str(exported(SAMPLE))!r})).ok;"
        "print([name for name in ('torch', 'onnx', 'onnx_ir', 'onnxruntime')"
        " if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_a_comparison_without_onnx_says_what_to_install(exported: Export) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from dstools.cli import main\n"
        f"main(['verify', {str(exported(SAMPLE))!r}, '--source', {str(SAMPLE)!r}])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        "error: --source: comparing the weights of graphs needs onnx",
        'hint: pip install "dstools-llm[export]"',
    ]


def test_what_is_not_checked_is_said(exported: Export) -> None:
    folder = exported(SAMPLE)
    assert verify(folder).not_checked == [
        "tensors against their source: --source",
        f"export.json itself, which nothing lists: `{MAKE}` there, then --sums",
        "whether it runs: dstools generate, or dstools export --check",
    ]
    unread = verify(folder, headers_only=True)
    assert "tensors by their sha256: leave out --headers-only" in unread.not_checked


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "genai_config.json"])
def test_a_file_with_another_byte_is_named(copy: Any, name: str) -> None:
    copy.flip(name, 500)
    assert ("file-differs", name) in copy.faults()


@pytest.mark.parametrize("name", ["model.data", "mtp.onnx", "tokenizer_config.json"])
def test_a_file_that_is_gone_is_named(copy: Any, name: str) -> None:
    (copy.path / name).unlink()
    assert ("file-missing", name) in copy.faults()


@pytest.mark.parametrize("name", ["other.onnx", "model.onnx.data", "libdstools_trt.so", "a.json"])
def test_a_file_that_somebody_may_load_and_nothing_lists_is_an_error(copy: Any, name: str) -> None:
    (copy.path / name).write_bytes(b"x")
    assert [(f.code, f.where, f.level) for f in copy.findings()] == [
        ("file-unlisted", name, "error")
    ]


@pytest.mark.parametrize("name", ["evil.so", "libevil.so.1", "evil.DLL"])
def test_a_library_that_export_does_not_write_is_an_error_though_it_is_listed(
    copy: Any, name: str
) -> None:
    copy.put(name, b"code")
    assert copy.faults() == [("native-code", name)]


def test_notes_of_people_are_a_warning_and_cards_are_nothing(copy: Any) -> None:
    for name in ("README.md", "LICENSE.txt", "report.html", "SHA256SUMS", ".gitattributes"):
        (copy.path / name).write_text("x\n")
    (copy.path / "notes.txt").write_text("x")
    assert [(f.code, f.where, f.level) for f in copy.findings()] == [
        ("file-unlisted", "notes.txt", "warning")
    ]


def test_an_engine_that_is_not_listed_is_an_error(copy: Any) -> None:
    (copy.path / "model.plan").write_bytes(b"engine")
    assert copy.faults() == [("engine-unlisted", "model.plan")]


def test_an_engine_that_is_not_the_listed_one_is_an_error(copy: Any) -> None:
    (copy.path / "model.plan").write_bytes(b"engine")
    copy.table["engines"]["model.plan"] = hashlib.sha256(b"another").hexdigest()
    assert copy.faults() == [("engine-differs", "model.plan")]
    copy.table["engines"]["model.plan"] = hashlib.sha256(b"engine").hexdigest()
    assert copy.faults() == []


def test_an_engine_that_was_left_behind_is_a_note(copy: Any) -> None:
    copy.table["engines"]["model.plan"] = "0" * 64
    assert [(f.code, f.where, f.level) for f in copy.findings()] == [
        ("engine-missing", "model.plan", "note")
    ]


@pytest.mark.parametrize("name", ["../model.data", "/etc/hostname", "rank0/../../x", ""])
def test_a_listed_name_that_leads_out_of_the_folder_is_never_opened(copy: Any, name: str) -> None:
    copy.table["files"][name] = "0" * 64
    assert [code for code, _ in copy.faults()] == ["path-outside"]


def test_files_of_weights_outside_of_the_folder_are_never_opened(copy: Any) -> None:
    copy.table["weights"]["../model.data"] = copy.table["weights"].pop("model.data")
    assert ("path-outside", "../model.data") in copy.faults()


# ------------------------------------------------------------------------------------------ links


@pytest.fixture
def snapshot(exported: Export, tmp_path: Path) -> Path:
    """An exported folder of two ranks as the Hub's cache has it: links into blobs/."""
    source = exported(SAMPLE, ranks=Ranks(ep=2), expert_inputs=True)
    repository = tmp_path / "models--org--name"
    folder = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    for path in (p for p in source.rglob("*") if p.is_file()):
        link = folder / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def test_a_snapshot_of_the_hubs_cache_is_clean(snapshot: Path) -> None:
    report = verify(snapshot)
    assert report.findings == []
    assert report.tensors == 196


def test_a_link_out_of_the_folder_is_one_finding(copy: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.data"
    (copy.path / "model.data").rename(elsewhere)
    (copy.path / "model.data").symlink_to(elsewhere)
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("link-outside", "model.data")
    assert finding.message == "is a link out of the folder"
    assert "ONNX Runtime refuses links" in finding.hint


def test_a_link_to_nothing_is_one_finding(copy: Any) -> None:
    (copy.path / "tokenizer.json").unlink()
    (copy.path / "tokenizer.json").symlink_to("gone.json")
    (finding,) = copy.findings()
    assert (finding.code, finding.message) == ("link-outside", "is a link to nothing")


# ------------------------------------------------------------------------------------ export.json


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{\n  "tool"', '{\n  "tool', "is not valid JSON"),
        ('"dstools ', '"other ', "was not written by dstools"),
        ('"num_blocks"', '"blocks"', "pool.num_blocks: is missing"),
        ('"kind": "onnx"', '"kind": "tflite"', "kind: 'tflite' is none of"),
        ('"making": "copy"', '"making": "guess"', "'guess' is none of"),
        ('"offset": 0', '"offset": -1', "offset: -1 is out of range"),
    ],
)
def test_an_export_json_that_is_damaged_is_named_with_its_key(
    copy: Any, old: str, new: str, message: str
) -> None:
    path = copy.path / "export.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    report = verify(copy.path)
    assert not report.ok
    (finding,) = report.findings
    assert (finding.code, finding.where) == ("export", "export.json")
    assert message in finding.message
    assert report.not_checked == ["everything else: first mend the errors above"]


def test_sums_find_a_byte_of_export_json_that_nothing_else_lists(copy: Any) -> None:
    said = "export.json itself, which nothing lists: "
    (line,) = [line for line in verify(copy.path).not_checked if line.startswith(said)]
    command = line.split("`")[1]  # as a person follows it
    subprocess.run(["sh", "-c", command], cwd=copy.path, check=True)
    assert f"{said}--sums" in verify(copy.path).not_checked
    checked = verify(copy.path, checks_sums=True)
    assert checked.ok
    assert not [line for line in checked.not_checked if line.startswith("export.json")]
    text = (copy.path / "export.json").read_text()
    (copy.path / "export.json").write_text(text.replace('"dstools', '"dstools x', 1))
    assert verify(copy.path).ok
    found = verify(copy.path, checks_sums=True).findings
    assert [(f.code, f.where) for f in found] == [("sum-differs", "export.json")]


def test_the_hash_of_a_file_of_weights_comes_from_the_read_that_checks_it(copy: Any) -> None:
    digests, counts = Digests(["model.data", "config.json"]), []
    assert verify(copy.path, digests=digests, progress=counts.append).ok
    for name in digests.names:
        content = (copy.path / name).read_bytes()
        assert digests.found[name].sha256 == hashlib.sha256(content).hexdigest()
    listed = json.loads((copy.path / "export.json").read_text())["files"]
    small = sum((copy.path / name).stat().st_size for name in listed if name != "README.md")
    again = (copy.path / "config.json").stat().st_size
    assert sum(counts) == (copy.path / "model.data").stat().st_size + small + again


def test_an_engine_of_checkpoints_is_refused(exported: Export) -> None:
    with pytest.raises(DstoolsError, match="vllm reads checkpoints"):
        verify(exported(SAMPLE), engine="vllm")
