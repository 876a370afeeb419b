import os
from pathlib import Path

import pytest
import torch

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.export import writer
from dstools_converters.export.data import lay_out
from dstools_converters.export.graph import Form
from dstools_converters.export.sources import sources
from dstools_converters.export.writer import DataFile, folder, work_folder

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return require_sound(open_checkpoint(SAMPLE))


def data_file(inventory: Inventory) -> DataFile:
    known = sources(inventory, Form(torch.float32, 64, 64), 0).items()
    entries = lay_out((name, source) for name, source in known if source.pieces)
    return DataFile("model.data", b"", entries, {})


def fill(inventory: Inventory, out: Path, plan: str = "plan") -> bytes:
    with folder(out, plan, 1) as target:
        if target is not None:
            target.fill(inventory, data_file(inventory), 2, lambda nbytes: None)
            target.put("sub/small.txt", b"small")
            target.publish()
    return (out / "model.data").read_bytes()


def test_a_folder_appears_whole_and_leaves_no_other(inventory: Inventory, tmp_path: Path) -> None:
    fill(inventory, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (tmp_path / "out" / "sub" / "small.txt").read_bytes() == b"small"


def test_a_run_that_was_stopped_resumes_to_the_same_bytes(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(inventory, tmp_path / "whole")
    write, written = writer.write, []

    def stops(*given: object) -> str:
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(given)
        return write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        fill(inventory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again: list[object] = []
    monkeypatch.setattr(writer, "write", lambda *given: again.append(given) or write(*given))
    assert fill(inventory, tmp_path / "out") == wanted
    assert len(again) == len(data_file(inventory).entries) - 20


def test_bytes_that_a_power_failure_has_lost_are_written_again(
    inventory: Inventory, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def killed() -> None:
        with folder(out, "plan", 1) as target:
            assert target is not None
            target.fill(inventory, data_file(inventory), 1, lambda nbytes: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    path = work_folder(out) / "model" / "model.data"
    wanted = path.read_bytes()
    path.write_bytes(bytes(len(wanted)))
    assert fill(inventory, out) == wanted


def test_a_run_that_was_killed_while_it_cleaned_up_is_finished(
    inventory: Inventory, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wanted = fill(inventory, out)
    work_folder(out).mkdir()
    (work_folder(out) / "journal.jsonl").write_text('{"plan": "plan"}\n')
    assert fill(inventory, out) == wanted
    assert not work_folder(out).exists()


def test_what_is_in_the_way_is_named(inventory: Inventory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DstoolsError, match="out: exists"):
        fill(inventory, out)
    out.rmdir()
    work_folder(out).mkdir()
    (work_folder(out) / "notes.txt").touch()
    with pytest.raises(DstoolsError, match=r"notes\.txt: dstools export did not write it"):
        fill(inventory, out)
    (work_folder(out) / "notes.txt").unlink()
    (work_folder(out) / "journal.jsonl").write_text('{"plan": "another"}\n')
    with pytest.raises(DstoolsError, match="begun from another source"):
        fill(inventory, out)


def test_two_runs_do_not_share_a_folder(inventory: Inventory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder(out, "plan", 1) as target:
        assert target is not None
        with pytest.raises(DstoolsError, match="another run"):
            fill(inventory, out)
        target.publish()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    with (
        pytest.raises(DstoolsError, match=r"out: needs .* the disk has"),
        folder(tmp_path / "out", "plan", 2 * free.f_blocks * free.f_frsize),
    ):
        pass
    assert not list(tmp_path.iterdir())
