"""The twin of `mla_decode`, interpreted: float64, unwritten rows, row invariance, mutants."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.mla_decode import mla_decode
from dstools_kernels.ops.triton import mla_decode_triton as twin
from dstools_kernels.proof.mutate import mutate
from dstools_kernels.proof.sanitizer import OutOfBounds, sanitized

Make = Callable[..., Any]

LENGTHS = [150, 65, 1, 0, 64, 129]
V3 = {"rank": 512, "rope": 64, "dtype": torch.bfloat16}
SPLIT = 64  # tokens; as small as can be, so that short rows have several splits

# Shares, latents of code x scale and the output are rounded to BF16, by 2^-9 of each at most and
# independently, so that the norm is off by less; sums are in float32.
BOUND = 2**-8


def decode(
    case: Any, module: ModuleType = twin, split_tokens: int = SPLIT, **changed: Any
) -> Tensor:
    """Run the twin with splits of few tokens."""
    form = twin.form_of(case.q.shape[1], case.cache.dtype == torch.uint8)
    out: Tensor = module.decode(*case.arguments(**changed)[:6], split_tokens, form)
    return out


@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize(
    ("heads", "lengths", "counts"),
    [
        (16, LENGTHS, [1, 1, 1, 0, 1, 1]),
        (16, LENGTHS, [2, 2, 1, 1, 2, 1]),
        (5, [70], [1]),
        (32, [70], [2]),
        (64, [130, 1], [2, 1]),
        (128, [100], [1]),
        (130, [65], [1]),
    ],
)
def test_ragged_rows_equal_float64_without_stray_accesses(
    decode_case: Make, heads: int, lengths: list[int], counts: list[int], is_fp8: bool
) -> None:
    case = decode_case(lengths, counts, heads=heads, is_fp8=is_fp8, **V3)
    with sanitized():
        out = decode(case)
    assert case.error(out) < BOUND


def test_the_op_runs_its_twin_with_the_split_of_its_heads(decode_case: Make) -> None:
    case = decode_case([300, 20], [1, 2], heads=16, **V3)
    out = mla_decode(*case.arguments())
    assert torch.equal(out, decode(case, split_tokens=twin.SPLIT_TOKENS[16]))
    assert not torch.equal(out, decode(case))
    assert case.error(out) < BOUND


@pytest.mark.parametrize("changed", [{"rank": 256}, {"dtype": torch.float32}])
def test_shapes_that_the_twin_lacks_take_the_definition(
    decode_case: Make, changed: dict[str, Any]
) -> None:
    case = decode_case([70], [1], **{**V3, **changed})
    assert case.error(mla_decode(*case.arguments())) < BOUND


def test_pages_that_the_twin_lacks_are_refused_where_it_was_asked_for(decode_case: Make) -> None:
    case = decode_case([70], [1], page_size=16, **V3)
    with pytest.raises(ValueError, match="for pages of 64 tokens, not of 16; DSTOOLS_KERNELS=auto"):
        mla_decode(*case.arguments())


def test_tokens_that_are_taken_in_parts_have_the_same_bits(
    decode_case: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tokens of row 0, none of row 1, two of row 2; four at a time, which divides row 0."""
    case = decode_case([70, 9, 300], [5, 0, 2], heads=16, **V3)
    whole = mla_decode(*case.arguments())
    splits = -(-case.table.shape[1] * 64 // twin.SPLIT_TOKENS[16])
    monkeypatch.setattr(twin, "MAX_PARTIAL_BYTES", 4 * 4 * 512 * 16 * splits)
    assert torch.equal(mla_decode(*case.arguments()), whole)
    assert case.error(whole) < BOUND


def test_nothing_to_do_launches_nothing(decode_case: Make) -> None:
    case = decode_case([0, 0], [0, 0], **V3)
    assert mla_decode(*case.arguments()).shape == (0, 4, 512)
    case = decode_case([0], [1], **V3)
    assert not mla_decode(*case.arguments(table=case.table[:, :0])).any()


@pytest.mark.parametrize("is_fp8", [False, True])
def test_a_row_has_the_same_bits_alone_among_eight_and_before_a_second_token(
    decode_case: Make, is_fp8: bool
) -> None:
    lengths = [200, 1, 64, 150, 65, 0, 129, 90]
    case = decode_case(lengths, [2] * 8, heads=16, is_fp8=is_fp8, **V3)
    both = decode(case)
    ends = case.lengths
    firsts = decode(  # the first of the two tokens of each row, among eight
        case,
        q=case.q[::2].contiguous(),
        lengths=(ends - 1).clamp(min=0),
        cumulative=torch.arange(9, dtype=torch.int32),
    )
    assert torch.equal(both[::2], firsts)
    for row in (0, 3, 6):
        alone = decode(
            case,
            q=case.q[2 * row : 2 * row + 1],
            table=case.table[row : row + 1],
            lengths=ends[row : row + 1] - 1,
            cumulative=torch.tensor([0, 1], dtype=torch.int32),
        )
        assert torch.equal(alone[0], both[2 * row])


@pytest.mark.parametrize("garbage", [-1, 4, 2**31 - 1, -(2**31)])
def test_a_page_out_of_range_counts_as_one_without_tokens(decode_case: Make, garbage: int) -> None:
    case = decode_case([150], [1], heads=16, **V3)
    assert len(case.cache) == 4
    latents = case.cache[case.table[0].long()].flatten(0, 1)[:150]
    table = case.table.clone()
    table[0, 1] = garbage
    with sanitized():
        out = decode(case, table=table, split_tokens=128)
    wanted = case.attend(0, torch.cat((latents[:64], latents[128:])))
    assert (out[0].double() - wanted).norm() < BOUND * wanted.norm()


def test_a_row_of_garbage_pages_alone_gives_0(decode_case: Make) -> None:
    case = decode_case([150], [1], heads=16, **V3)
    assert not decode(case, table=torch.full_like(case.table, -5)).any()


@pytest.mark.parametrize("lengths", [[4000, 65], [2**31 - 1, 65], [-(2**31), 65]])
def test_lengths_out_of_range_read_the_table_alone(decode_case: Make, lengths: list[int]) -> None:
    case = decode_case([128, 65], [1, 1], heads=16, **V3)
    with sanitized():
        out = decode(case, lengths=torch.tensor(lengths, dtype=torch.int32))
    assert torch.equal(out[1], decode(case)[1])
    assert torch.equal(out[0], decode(case)[0] if lengths[0] > 0 else torch.zeros_like(out[0]))


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
def test_nan_in_the_query_and_in_a_written_latent_reach_their_tokens_alone(
    decode_case: Make,
) -> None:
    case = decode_case([70, 70, 70], [2, 1, 1], heads=16, **V3)
    cache, q = case.cache.clone(), case.q.clone()
    cache[case.table[0, 1], 5] = math.nan  # the last token of row 0
    q[2] = math.nan
    out = decode(case, cache=cache, q=q)
    assert out.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert torch.equal(out[[0, 3]], decode(case)[[0, 3]])


def far(decode_case: Make) -> Any:
    """Return a case whose page begins past byte 2^31; what is not touched costs no memory."""
    case = decode_case([60], [1], heads=16, is_fp8=True, **V3)
    page = 2**31 // (64 * 656) + 1
    cache = torch.empty(page + 1, 64, 656, dtype=torch.uint8)
    cache[page] = case.cache[case.table[0, 0]]
    return case._replace(cache=cache, table=torch.full_like(case.table, page))


def test_pages_past_2_to_the_31_bytes_are_read(decode_case: Make) -> None:
    case = far(decode_case)
    with sanitized():
        assert case.error(decode(case)) < BOUND


# ----------------------------------------------------------------------------------------- mutants


def wrong(case: Any, mutant: ModuleType) -> bool:
    """Return whether a mutant is away from float64, or has NaN."""
    return not case.error(decode(case, mutant, split_tokens=128)) < BOUND


@pytest.mark.parametrize("is_fp8", [False, True])
def test_without_a_mutation_the_same_case_is_right(decode_case: Make, is_fp8: bool) -> None:
    assert not wrong(decode_case([190, 70], [2, 1], heads=16, is_fp8=is_fp8, **V3), twin)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # rows that no one wrote
        (
            "    return tl.load(k_row + d[None, :], mask=is_seen, other=0.0)",
            "    return tl.load(k_row + d[None, :])",
        ),
        ("i + n < seen * is_page", "i + n < (seen + BN) * is_page"),
        # one page further
        ("tl.load(table_row + i // 64)", "tl.load(table_row + (i // 64 ^ 1))"),
        ("tl.where(is_seen[None, :], scores, LOWEST)", "scores"),
        ("length - (end - 1 - token)", "length"),
        ("d1 = (1 - half) * 256", "d1 = half * 256"),
        ("scale * LOG2_E", "scale"),
    ],
)
def test_a_mutant_is_away_from_float64(
    decode_case: Make, old: str, new: str, tmp_path: Path
) -> None:
    mutant = mutate(twin, old, new, tmp_path)
    assert wrong(decode_case([190, 70], [2, 1], heads=16, **V3), mutant)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("codes * tl.where(d[None, :] // 128 == group, low, high)", "codes * low"),
        ("(k_row + 512).to(", "(k_row + 516).to("),
        ("+ i % 64 + n)", "+ n)"),  # steps of half a page
        ("(k_row + 528).to(", "(k_row + 526).to("),
        (
            "tl.load(pointer, mask=is_seen, other=0.0).to(tl.float32)",
            "tl.load(pointer).to(tl.float32)",
        ),
    ],
)
def test_a_mutant_of_fp8_latents_is_away_from_float64(
    decode_case: Make, old: str, new: str, tmp_path: Path
) -> None:
    mutant = mutate(twin, old, new, tmp_path)
    assert wrong(decode_case([190, 70], [2, 1], heads=16, is_fp8=True, **V3), mutant)


def test_splits_by_the_number_of_rows_are_not_row_invariant(
    decode_case: Make, tmp_path: Path
) -> None:
    first = "tokens, heads = q.shape[:2]\n"
    mutant = mutate(twin, first, first + "    split_tokens *= len(table)\n", tmp_path)
    case = decode_case([190, 200], [1, 1], heads=16, **V3)
    alone = {name: getattr(case, name)[:1] for name in ("q", "table", "lengths")}
    alone["cumulative"] = case.cumulative[:2]
    for module, is_invariant in ((twin, True), (mutant, False)):
        among = decode(case, module)[0]
        assert torch.equal(decode(case, module, **alone)[0], among) == is_invariant


def test_an_offset_of_32_bits_misses_far_pages(decode_case: Make, tmp_path: Path) -> None:
    mutant = mutate(twin, "page.to(tl.int64) * 64", "page * 64", tmp_path)
    with pytest.raises(OutOfBounds), sanitized():
        decode(far(decode_case), mutant)
