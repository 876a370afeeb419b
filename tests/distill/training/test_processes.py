"""Which process this is, by what launchers leave in the environment."""

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.training.launch import LOCKED, is_launched, rank, require_launcher, world_size

LEFT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", LOCKED)


@pytest.mark.parametrize(
    ("environment", "expected"),  # rank, processes, is launched
    [
        ({}, (0, 1, False)),
        ({"RANK": "1"}, (0, 1, False)),  # left over in a shell
        ({"RANK": "junk"}, (0, 1, False)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 2, True)),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            (0, 1, True),
        ),  # torchrun, one process
        (
            {LOCKED: "1"},
            (0, 1, True),
        ),  # ours, by a launcher that tells nothing: not to be launched again
    ],
)
def test_a_process_knows_its_place(
    environment: dict[str, str], expected: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LEFT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size(), is_launched()) == expected


def test_a_number_of_processes_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(DstoolsError, match="WORLD_SIZE=two in the environment is no number") as e:
        world_size()
    assert e.value.hint == "unset WORLD_SIZE"


def test_what_a_launcher_left_behind_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DstoolsError, match="LOCAL_RANK is set, and no launcher") as caught:
        require_launcher()
    assert "unset LOCAL_RANK" in caught.value.hint
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    require_launcher()
