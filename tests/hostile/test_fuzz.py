"""Readers of files of unknown origin: whatever the bytes, they return or refuse in plain text."""

import pytest
from fuzz import TARGETS, fuzz

EXAMPLES = 200  # tests/hostile/fuzz.py --minutes 60 tries some more


@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_returns_or_refuses(target: str) -> None:
    fuzz(target, EXAMPLES, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_reads_its_sound_files(
    target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sound, read = TARGETS[target]
    for raw in sound[:1]:
        read(tmp_path_factory.mktemp("sound"), raw)
