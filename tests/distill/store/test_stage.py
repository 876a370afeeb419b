"""A stage is a pure function: found again, gone on with, the same bytes whatever happened."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.store.stage import (
    Identity,
    Report,
    Work,
    digest,
    find,
    identify,
    locked,
    run_stage,
)


def work(folder: Path, workers: int = 1) -> Work:
    return Work(folder, workers)


def identity(settings: dict[str, Any], **inputs: Path) -> Identity:
    return identify("verify", 1, settings, inputs, ("numpy",))


def count_up(_work: Work) -> Report:
    (_work.folder / "records.jsonl").write_text("{}\n")
    return {"in": 1, "out": 1, "dropped": {}}


# ------------------------------------------------------------------------------------- identity


def test_a_finished_stage_is_found_again_and_not_made_twice(tmp_path: Path) -> None:
    def never(_work: Work) -> Report:
        raise AssertionError

    first = run_stage(tmp_path, identity({"a": 1}), count_up, work)
    again = run_stage(tmp_path, identity({"a": 1}), never, work)
    assert (first.is_reused, again.is_reused) == (False, True)
    assert (first.folder, first.report) == (again.folder, again.report)


def test_other_settings_inputs_or_code_make_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("1")
    known = {identity({"a": 1}, x=source).name, identity({"a": 2}, x=source).name}
    known.add(identify("verify", 2, {"a": 1}, {"x": source}, ("numpy",)).name)
    known.add(identify("verify", 1, {"a": 1}, {"x": source}, ()).name)
    source.write_text("2")
    known.add(identity({"a": 1}, x=source).name)
    assert len(known) == 5


def test_an_input_is_told_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("[]")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_a_stage_that_gives_the_same_bytes_leaves_the_next_one_as_it_was(tmp_path: Path) -> None:
    """Another setting upstream without effect does not repeat what follows."""
    first = run_stage(tmp_path, identity({"a": 1}), count_up, work)
    other = run_stage(tmp_path, identity({"a": 2}), count_up, work)
    assert first.folder != other.folder
    assert digest(first.folder) == digest(other.folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        ("{}", "was changed after verify wrote it"),
        ("[]\n", "was changed after verify wrote it"),
    ],
)
def test_a_finished_stage_whose_files_are_not_as_it_left_them_is_not_used(
    content: str | None, problem: str, tmp_path: Path
) -> None:
    done = run_stage(tmp_path, identity({}), count_up, work)
    (tmp_path / "verify").symlink_to(done.folder)
    records = done.folder / "records.jsonl"
    (done.folder / "notes.txt").write_text("another file does not matter")
    assert find(tmp_path, identity({})) is not None
    records.unlink()
    if content is not None:
        records.write_text(content)
    for use in (lambda: find(tmp_path, identity({})), lambda: digest(tmp_path / "verify")):
        with pytest.raises(DstoolsError) as error:
            use()
        assert str(error.value) == f"{records}: {problem}"
        assert error.value.hint == (
            f"put it back, or delete {done.folder}; the next run makes it again"
        )


def test_a_large_file_of_a_finished_stage_is_compared_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_stage(tmp_path, identity({}), count_up, work)
    monkeypatch.setattr("dstools_distill.store.stage.WHOLE_BYTES", 2)
    (done.folder / "records.jsonl").write_text("[]\n")
    assert find(tmp_path, identity({})) is not None
    (done.folder / "records.jsonl").write_text("[]")
    with pytest.raises(DstoolsError, match="was changed"):
        find(tmp_path, identity({}))


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"none: no such file"):
        identity({}, x=tmp_path / "none")


def test_a_failed_stage_leaves_no_folder_that_looks_done(tmp_path: Path) -> None:
    def fail(_work: Work) -> Report:
        count_up(_work)
        raise DstoolsError("no")

    with pytest.raises(DstoolsError):
        run_stage(tmp_path, identity({}), fail, work)
    assert find(tmp_path, identity({})) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".incomplete"]


def test_the_manifest_has_the_sha256_of_every_output_and_no_time(tmp_path: Path) -> None:
    done = run_stage(tmp_path, identity({"a": 1}), count_up, work)
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["outputs"] == {
        "records.jsonl": {"bytes": 3, "sha256": sha256(b"{}\n").hexdigest()}
    }
    assert manifest["report"] == done.report
    assert set(manifest) == {
        "stage", "revision", "settings", "inputs", "versions", "dstools", "outputs", "report",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["/proc/none/out", "a-file", "a-file/out"])
def test_a_folder_that_cannot_be_made_is_named_with_the_option(place: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    with (
        pytest.raises(DstoolsError, match=f"{place}: cannot be written: ") as caught,
        locked(tmp_path / place),  # /proc/... is absolute
    ):
        pass
    assert caught.value.hint == "name another --out"


def test_two_runs_do_not_meet_in_a_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "out"),
        pytest.raises(DstoolsError, match="another run"),
        locked(tmp_path / "out"),
    ):
        pass
    with locked(tmp_path / "out"):
        pass
