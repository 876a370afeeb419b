"""Steps L2 and L3 for the counting sort: equal to the definition, which is a stable argsort."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.permute import Permuted, gather, permute
from dstools_kernels.ops.triton import permute_triton
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, Race, reported

pytestmark = pytest.mark.usefixtures("watched")


def case(tokens: int, count: int, experts: int, local: int) -> tuple[Tensor, Tensor]:
    """Return ids [tokens, count] and a map that has `local` experts in some order."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(experts, generator=generator)[:count] for _ in range(tokens)])
    places = torch.full((experts,), -1, dtype=torch.int32)
    places[torch.randperm(experts, generator=generator)[:local]] = torch.arange(local).int()
    return ids.int(), places


def assert_equal(permuted: Permuted, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setenv("DSTOOLS_KERNELS", "reference")
    for part, wanted in zip(permuted, permute(*arguments), strict=True):  # type: ignore[arg-type]
        assert torch.equal(part, wanted)


@pytest.mark.parametrize(
    ("tokens", "count", "experts", "local"), [(37, 8, 256, 32), (1, 8, 256, 256), (64, 1, 5, 1)]
)
def test_rows_are_those_of_the_definition(
    tokens: int, count: int, experts: int, local: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, places = case(tokens, count, experts, local)
    assert_equal(permute(ids, places, local), monkeypatch, ids, places, local)


def test_what_is_out_of_range_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may time a layer on arbitrary ids; a load of the map beyond its end is an error."""
    ids, places = case(40, 4, 16, 12)
    ids[3, 1], ids[4], ids[5, 0] = 2**31 - 1, -5, 16
    places[places == 3] = 12
    places[places == 7] = -(2**31)
    assert_equal(permute(ids, places, 12), monkeypatch, ids, places, 12)


def test_more_blocks_than_are_added_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, places = case(300, 4, 16, 12)
    assert ids.numel() > permute_triton.BLOCK * permute_triton.BLOCKS
    assert_equal(permute(ids, places, 12), monkeypatch, ids, places, 12)


@pytest.mark.parametrize("columns", [1, 1024, 1500])
def test_gathered_rows_are_those_of_the_definition(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.tensor([3, 0, 0, -1, 4, 2**31 - 1, -(2**31)], dtype=torch.int32)
    ours = gather(x, tokens)
    monkeypatch.setenv("DSTOOLS_KERNELS", "reference")
    assert torch.equal(ours, gather(x, tokens))


@pytest.mark.parametrize(
    ("old", "new"), [("token < tokens", "token <= tokens"), ("(token >= 0) & ", "")]
)
def test_the_sanitizer_catches_unchecked_tokens(old: str, new: str, tmp_path: Path) -> None:
    mutant = mutate(permute_triton, old, new, tmp_path)
    with pytest.raises(OutOfBounds), reported():
        mutant.gather(torch.ones(4, 8).bfloat16(), torch.tensor([0, -1, 4]).int())


def test_no_token_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(permute_triton, "CONFIGS")
    ids, places = torch.empty(0, 4, dtype=torch.int32), case(1, 4, 16, 12)[1]
    assert permute(ids, places, 12).offsets.tolist() == [0] * 13
    assert gather(torch.ones(2, 8).bfloat16(), ids[:, 0]).shape == (0, 8)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("tl.where(local < G, local, -1)", "local", Race),
        ("mask=is_known, other=-1", "mask=at < count, other=-1", OutOfBounds),
        ("(ids >= 0) & (ids < E)", "(ids >= 0) & (ids <= E)", OutOfBounds),
        ("tl.cumsum(counts, 0) - counts", "tl.cumsum(counts, 0)", Race),
        ("row += tl.sum(counts, 0)", "row += 0", Race),
        ("is_kept & (at < count)", "at < count", Race),
    ],
)
def test_the_sanitizer_catches_a_mutant(
    old: str, new: str, fault: type[Exception], tmp_path: Path
) -> None:
    """Dropped ids and entries of the map are not followed, and no two copies share a row."""
    ids, places = case(400, 4, 16, 12)
    ids[3, 1], ids[4] = 16, -5
    places[places == 3] = 12
    places[places == 7] = -2
    mutant = mutate(permute_triton, old, new, tmp_path)
    with pytest.raises(fault), reported():
        mutant.permute(ids, places, 12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tl.cumsum(is_of, 0) - 1", "tl.sum(is_of, 0)[None, :] - tl.cumsum(is_of, 0)"),
        ("at // K", "at"),
    ],
    ids=["copies of a block in reverse", "a copy's number for its token's"],
)
def test_the_definition_catches_a_mutant(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, places = case(40, 4, 16, 12)
    mutant = mutate(permute_triton, old, new, tmp_path)
    permuted = Permuted(*mutant.permute(ids, places, 12))
    with pytest.raises(AssertionError):
        assert_equal(permuted, monkeypatch, ids, places, 12)
