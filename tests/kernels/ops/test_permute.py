"""The order of rows by expert: by hand, against a loop over experts, and with ids out of range."""

import pytest
import torch
from torch import Tensor

from dstools_kernels.ops.permute import gather, permute


def int32(*values: object) -> Tensor:
    return torch.tensor(*values, dtype=torch.int32)


def test_three_tokens_by_hand() -> None:
    """Experts 2 and 0 are here, as 0 and 1; expert 1 is elsewhere.

    Expert 2 was chosen by tokens 0 and 2 (rows 0 and 1), expert 0 by tokens 1 and 2 (rows 2, 3).
    """
    permuted = permute(int32([[2, 1], [0, 1], [0, 2]]), int32([1, -1, 0]), 2)
    assert permuted.tokens.tolist() == [0, 2, 1, 2, 0, 0]
    assert permuted.destination.tolist() == [[0, -1], [2, -1], [3, 1]]
    assert permuted.offsets.tolist() == [0, 2, 4]
    assert {part.dtype for part in permuted} == {torch.int32}


def test_rows_are_those_of_a_loop_over_experts() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(20, generator=generator)[:4] for _ in range(50)]).int()
    places = torch.full((20,), -1, dtype=torch.int32)
    places[3:15] = torch.randperm(12, generator=generator).int()
    tokens, destination, offsets = permute(ids, places, 12)
    row = 0
    for local in range(12):
        assert offsets[local] == row
        for token, slot in (places[ids.long()] == local).nonzero().tolist():
            assert destination[token, slot] == row
            assert tokens[row] == token
            row += 1
    assert offsets[12] == row
    assert (destination >= 0).sum() == row
    assert (tokens[row:] == 0).all()


def test_what_is_out_of_range_is_dropped() -> None:
    ids = int32([[0, 3], [-1, 1], [2, 2**31 - 1]])
    permuted = permute(ids, int32([7, 0, -(2**31)]), 2)
    assert permuted.destination.tolist() == [[-1, -1], [-1, 0], [-1, -1]]
    assert permuted.offsets.tolist() == [0, 1, 1]


def test_no_token_and_tokens_of_other_ranks_give_no_rows() -> None:
    none = permute(torch.empty(0, 4, dtype=torch.int32), int32([0, 1]), 2)
    assert [list(part.shape) for part in none] == [[0], [0, 4], [3]]
    assert none.offsets.tolist() == [0, 0, 0]
    elsewhere = permute(int32([[0, 1]]), int32([-1, -1]), 2)
    assert elsewhere.offsets.tolist() == [0, 0, 0]
    assert elsewhere.destination.tolist() == [[-1, -1]]


def test_gathered_rows_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows = gather(x, int32([1, 0, 1, 2, -1]))
    assert rows.tolist() == [[3, 4], [1, 2], [3, 4], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match=r"got \[2, 2\] and torch\.int64 \[1\]"):
        gather(x, torch.tensor([0]))


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be int32, got torch\.int64"):
        permute(torch.zeros(1, 1, dtype=torch.int64), int32([0]), 1)
    with pytest.raises(ValueError, match="num_local must be at least 1, got 0"):
        permute(int32([[0]]), int32([0]), 0)
