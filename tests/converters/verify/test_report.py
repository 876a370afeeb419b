"""How a report grows, and when it falls short."""

from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.verify.hashes import Hashing
from dstools_converters.verify.report import Results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Nothing yet, of an empty folder."""
    return Results(Hashing(tmp_path))


@pytest.mark.parametrize(("level", "ok"), [("error", False), ("warning", True), ("note", True)])
def test_only_an_error_falls_short(results: Results, level: str, ok: bool, tmp_path: Path) -> None:
    results.findings.append(getattr(Finding, level)("code", "where", "message"))
    report = results.report(tmp_path, tensors=3)
    assert (report.ok, report.tensors, report.folder) == (ok, 3, str(tmp_path))


def test_an_error_is_asked_for_by_its_code(results: Results) -> None:
    results.findings.append(Finding.warning("shape", "a", "b"))
    assert not results.has_error({"shape"})
    results.findings.append(Finding.error("shape", "a", "b"))
    assert results.has_error({"shape", "other"})
    assert not results.has_error({"other"})


def test_what_hashes_find_comes_first(tmp_path: Path) -> None:
    results = Results(Hashing(tmp_path, is_asked=True))
    results.findings.append(Finding.error("later", "a", "b"))
    codes = [finding.code for finding in results.report(tmp_path, 0).findings]
    assert codes == ["sums", "later"]


def test_a_refusal_names_its_file_and_says_that_nothing_else_was_checked(results: Results) -> None:
    results.add_refusal(DstoolsError("config.json: is empty", "restore it"))
    assert results.findings == [
        Finding.error("unreadable", "config.json", "is empty", "restore it")
    ]
    assert results.not_checked == ["everything else: first mend the errors above"]


def test_a_config_that_cannot_be_read_is_not_also_one_to_remove(results: Results) -> None:
    results.findings.append(Finding.warning("quantization-file", "quant_config.json", "is stale"))
    results.add_config(DstoolsError("quant_config.json: is not JSON"))
    assert [finding.code for finding in results.findings] == ["config"]


def test_a_signature_that_is_not_checked_is_said(results: Results, tmp_path: Path) -> None:
    results.add_signature(tmp_path, None)
    assert results.not_checked == []
    (tmp_path / "model.sig").write_text("{}")
    results.add_signature(tmp_path, None)
    assert results.not_checked == ["the signature: --signed-by"]
