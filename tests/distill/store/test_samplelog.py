"""What is in a log is there for good, and nothing else is."""

from contextlib import closing
from pathlib import Path

from dstools_distill import records
from dstools_distill.store.samplelog import SampleLog


def test_a_torn_line_is_cut_off_before_more_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "answers.log"
    whole = records.dump({"number": 7, "record": {}}) + records.dump({"number": 2, "record": {}})
    path.write_bytes(whole + b'{"number": 3, "rec')
    with closing(SampleLog(path, 8)) as log:
        assert [number for number in range(8) if number in log] == [2, 7]
        assert len(log) == 2
        assert path.read_bytes() == whole
        assert log.read(7) == {"number": 7, "record": {}}
        log.add(3, {"record": {}})
        assert [log.read(number)["number"] for number in (7, 2, 3)] == [7, 2, 3]
    assert path.read_bytes() == whole + records.dump({"number": 3, "record": {}})


def test_of_a_number_that_came_twice_the_first_line_counts(tmp_path: Path) -> None:
    with closing(SampleLog(tmp_path / "log", 2)) as log:
        log.add(1, {"said": "first"})
        log.add(1, {"said": "second"})
        assert (len(log), log.read(1)["said"]) == (1, "first")
    with closing(SampleLog(tmp_path / "log", 2)) as log:
        assert (len(log), log.read(1)["said"]) == (1, "first")


def test_samples_that_came_to_nothing_are_known_without_reading_the_log(tmp_path: Path) -> None:
    with closing(SampleLog(tmp_path / "log", 3)) as log:
        log.add(0, {"failed": "too long"})
        log.add(2, {"raw": "4"})
        assert log.failed == {0}
    with closing(SampleLog(tmp_path / "log", 3)) as log:
        assert log.failed == {0}
