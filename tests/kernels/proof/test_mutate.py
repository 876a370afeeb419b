"""Step L6: a planted fault is where it was meant to be, and nowhere else."""

from pathlib import Path

import pytest

from dstools_kernels import fp8
from dstools_kernels.proof.mutate import mutate


def test_a_mutant_differs_in_one_place_and_the_module_not_at_all(tmp_path: Path) -> None:
    mutant = mutate(fp8, "E4M3_MAX = 448.0", "E4M3_MAX = 240.0", tmp_path)
    assert (mutant.E4M3_MAX, fp8.E4M3_MAX) == (240.0, 448.0)
    assert mutant.AMAX_FLOOR == fp8.AMAX_FLOOR
    assert mutate(fp8, "E4M3_MAX = 448.0", "E4M3_MAX = 1.0", tmp_path).E4M3_MAX == 1.0
    assert mutant.E4M3_MAX == 240.0


@pytest.mark.parametrize(("old", "count"), [("E4M3_MIN", 0), ("F8_E5M2", 3)])
def test_a_mutation_that_does_not_apply_is_refused(old: str, count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{old}' has to occur once .* it does {count} times"):
        mutate(fp8, old, "X", tmp_path)
    assert not list(tmp_path.iterdir())
