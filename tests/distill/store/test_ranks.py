"""The rank of a process, by what launchers leave in the environment."""

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.store.ranks import LOCKED, is_launched, rank, world_size

LEFT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", LOCKED)


@pytest.mark.parametrize(
    ("environment", "expected"),  # rank, world size, is launched
    [
        ({}, (0, 1, False)),
        ({"RANK": "1"}, (0, 1, False)),  # left over in a shell
        ({"RANK": "junk"}, (0, 1, False)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 2, True)),
        # torchrun with one process
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, True)),
        # started by dstools through a launcher that sets nothing: not to be launched again
        ({LOCKED: "1"}, (0, 1, True)),
    ],
)
def test_a_process_knows_its_rank(
    environment: dict[str, str], expected: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LEFT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size(), is_launched()) == expected


def test_a_number_of_processes_that_is_not_a_number_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(
        DstoolsError, match="WORLD_SIZE=two in the environment is not a number"
    ) as e:
        world_size()
    assert e.value.hint == "unset WORLD_SIZE"
