"""The loop gives every row what it gets alone, whatever the pool, the chunks and the drafts are."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dstools_converters.errors import DstoolsError
from dstools_converters.runtime.decode import Loop, Piece, Request
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.sampling import Sampling

GREEDY = Sampling()
NO_END = frozenset[int]()
Answers = dict[int, tuple[list[int], str]]


def next_token(ids: list[int]) -> int:
    return (31 * sum(ids) + 7 * len(ids)) % 997 + 2  # depends on every token before it


def alone(prompt: list[int], count: int, ends: frozenset[int] = NO_END) -> tuple[list[int], str]:
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        ids.append(next_token(ids))
        if ids[-1] in ends:
            return ids[len(prompt) :], "stop"
    return ids[len(prompt) :], "length"


def joined(pieces: list[Piece]) -> Answers:
    ids: dict[int, list[int]] = defaultdict(list)
    reasons: dict[int, str] = {}
    for piece in pieces:
        assert piece.prompt_index not in reasons  # nothing comes after the end
        ids[piece.prompt_index] += piece.ids
        if piece.reason:
            reasons[piece.prompt_index] = piece.reason
    assert ids.keys() == reasons.keys()
    return {place: (ids[place], reasons[place]) for place in ids}


PROMPTS = [
    [3 + i, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 4][: 14 - i] for i in range(9)
]


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
@pytest.mark.parametrize(("pages", "rows"), [(60, 100), (60, 1), (12, 4), (5, 9)])
def test_every_row_gets_what_it_gets_alone(pages: int, rows: int, drafts: int, toy: Any) -> None:
    pool = Pool(pages, 16)
    pool.take(pages)
    pool.give(torch.randperm(pages).tolist())  # the order in which they are taken
    loop = Loop(toy(pool, next_token), pool, GREEDY, NO_END, rows=rows, drafts=drafts)
    found = joined(list(loop.run([Request(i, p, 60 - i) for i, p in enumerate(PROMPTS)])))
    assert found == {i: alone(p, 60 - i) for i, p in enumerate(PROMPTS)}
    assert pool.free == pages
    assert loop.counts.tokens == sum(60 - i for i in range(9))
    assert loop.counts.drafted == loop.counts.kept  # this drafter is the model itself
    # and no more steps than the rows one after another: a prompt, and the tokens after the first
    assert loop.counts.steps <= sum(60 - i for i in range(9))


@pytest.mark.parametrize("chunk", [1, 7, 16, 4096])
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_the_chunks_of_prompts_change_neither_answers_nor_drafts(
    chunk: int, drafts: int, toy: Any
) -> None:
    def drafter(ids: list[int]) -> int:
        return next_token(ids) if sum(ids) % 3 else 0  # right two times in three

    def run(chunk: int) -> tuple[Answers, list[int], list[int]]:
        pool = Pool(60, 16)
        model = toy(pool, next_token, drafter=drafter)
        loop = Loop(model, pool, GREEDY, NO_END, rows=9, drafts=drafts, chunk=chunk)
        requests = [Request(i, p * 3, 20) for i, p in enumerate(PROMPTS)]
        answers = joined(list(loop.run(requests)))
        assert max(len(batch.input_ids) for batch in model.steps) <= max(chunk, 9 * (1 + drafts))
        return answers, loop.counts.drafted, loop.counts.kept

    found = run(chunk)
    assert found == run(10_000)
    assert found[0] == {i: alone(p * 3, 20) for i, p in enumerate(PROMPTS)}


@pytest.mark.parametrize("drafts", [0, 1])
@pytest.mark.parametrize("chunk", [5, 16])
def test_a_row_gets_tokens_every_second_step_while_prompts_are_read(
    chunk: int, drafts: int, toy: Any
) -> None:
    pool = Pool(100, 16)
    loop = Loop(toy(pool, next_token), pool, GREEDY, NO_END, rows=3, drafts=drafts, chunk=chunk)
    prompts = [PROMPTS[0], PROMPTS[1] * 20, PROMPTS[2], PROMPTS[3] * 9, PROMPTS[4]]
    counts = [80, 20, 6, 30, 50]
    steps: dict[int, list[int]] = defaultdict(list)
    pieces = []
    requests = [Request(i, p, n) for i, (p, n) in enumerate(zip(prompts, counts, strict=True))]
    for piece in loop.run(requests):
        pieces.append(piece)
        steps[piece.prompt_index].append(loop.counts.steps)
    wanted = {i: alone(p, n) for i, (p, n) in enumerate(zip(prompts, counts, strict=True))}
    assert joined(pieces) == wanted
    gaps = [b - a for at in steps.values() for a, b in pairwise(at)]
    assert max(gaps) == 2  # and prompts are read meanwhile


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_acceptance_is_counted_by_position_of_the_draft(drafts: int, toy: Any) -> None:
    """The second draft in a row is always wrong: it is made where one was appended before."""

    def drafter(ids: list[int]) -> int:
        return next_token(ids) if len(ids) % 2 else 0

    pool = Pool(10, 16)
    model = toy(pool, lambda ids: next_token(ids), drafter=drafter)
    loop = Loop(model, pool, GREEDY, NO_END, rows=1, drafts=drafts)
    # prompts of even length: the first draft follows an odd number of tokens and is right, the
    # one after it is wrong; the loop then has an odd number again
    assert joined(list(loop.run([Request(0, PROMPTS[0], 41)]))) == {0: alone(PROMPTS[0], 41)}
    # 40 tokens after the first, two in each of 20 steps; the last has room for one draft alone
    assert loop.counts.steps == 21
    assert loop.counts.kept == [20, *[0] * (drafts - 1)]
    assert loop.counts.drafted == [20, 19, 0][:drafts]


# ------------------------------------------------------------------------------------------- ends

CHAIN = [5, 6, 7, 1, 8, 9, 10, 2, 11, 12]


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("ends", "limit", "ids", "reason"),
    [
        ({1}, 9, [5, 6, 7, 1], "stop"),
        ({1, 2}, 9, [5, 6, 7, 1], "stop"),
        ({2}, 9, [5, 6, 7, 1, 8, 9, 10, 2], "stop"),
        ({99}, 6, [5, 6, 7, 1, 8, 9], "length"),
        ({1}, 4, [5, 6, 7, 1], "stop"),  # the last token allowed is an end: it ended by itself
        ({1}, 3, [5, 6, 7], "length"),
        ({6}, 1, [5], "length"),
        ({5}, 9, [5], "stop"),  # the token that follows the prompt
    ],
)
def test_an_end_or_a_limit_inside_a_draft_ends_the_answer_there(
    ends: set[int], limit: int, ids: list[int], reason: str, drafts: int, toy: Any
) -> None:
    pool = Pool(4, 4)
    model = toy(pool, lambda history: CHAIN[min(len(history) - 1, len(CHAIN) - 1)])
    loop = Loop(model, pool, GREEDY, frozenset(ends), rows=1, drafts=drafts)
    assert joined(list(loop.run([Request(0, [4], limit)]))) == {0: (ids, reason)}
    assert pool.free == 4
    # nothing is fed past the limit: its last token needs no cache
    assert max(int(batch.past_sequence_lengths[0]) for batch in model.steps) < max(limit, 1)


@pytest.mark.parametrize("drafter", [None, lambda _: 1, lambda ids: 100 + len(ids) % 2])
@pytest.mark.parametrize("chunk", [1, 5, 4096])
@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_rows_end_each_at_its_own_place_of_a_draft(
    drafts: int, chunk: int, drafter: Any, toy: Any
) -> None:
    """Row i ends with token i: the one after the prompt, a first, second or third draft, or never.

    The drafter is the model, or always drafts an end, or is right half of the time or less.
    """
    limit, prompts = 6, [[10 + i] * (3 * i + 1) for i in range(8)]

    def said(ids: list[int]) -> int:
        row = ids[0] - 10
        place = len(ids) - len(prompts[row])
        return 1 + place % 2 if place == row else 100 + len(ids) % 2  # 1 and 2 are ends

    pool = Pool(20, 4)
    model = toy(pool, said, drafter=drafter)
    loop = Loop(model, pool, GREEDY, frozenset({1, 2}), rows=5, drafts=drafts, chunk=chunk)
    answers = joined(list(loop.run([Request(i, p, limit) for i, p in enumerate(prompts)])))
    for row, (ids, reason) in answers.items():
        wanted = [said([*prompts[row], *ids[:place]]) for place in range(min(row + 1, limit))]
        assert (ids, reason) == (wanted, "stop" if row < limit else "length")
    assert len(answers) == len(prompts)
    assert pool.free == 20
    if drafts and drafter is None:
        assert loop.counts.kept == loop.counts.drafted  # drafts after an end are not checked
    for batch in model.steps:
        ends = batch.past_sequence_lengths + batch.cumulative_sequence_lengths.diff()
        assert int(ends.max()) < len(prompts[-1]) + limit  # the last token needs no cache


@pytest.mark.parametrize("chunk", [3, 4096])
@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_sampled_answers_end_at_their_first_end_inside_drafts(
    drafts: int, chunk: int, toy: Any
) -> None:
    ends = frozenset({0, 1, 2, 3})  # of 40 tokens, so that answers of 12 end early or not

    def run(drafts: int) -> Answers:
        pool = Pool(60, 16)
        model = Mixed(toy(pool, next_token))
        loop = Loop(model, pool, Sampling(0.8, 0.9, 5), ends, rows=4, drafts=drafts, chunk=chunk)
        requests = [Request(i, [t % 40 for t in p], 12) for i, p in enumerate(PROMPTS)]
        return joined(list(loop.run(requests)))

    answers = run(drafts)
    assert answers == run(0)
    assert {reason for _, reason in answers.values()} == {"stop", "length"}
    for ids, reason in answers.values():
        assert not ends & {*ids[:-1]}
        assert (ids[-1] in ends) == (reason == "stop")


@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("positions", [15, 16, 17, 40])
def test_an_answer_ends_where_positions_do_and_no_draft_passes_them(
    positions: int, drafts: int, toy: Any
) -> None:
    pool = Pool(10, 8)
    model = toy(pool, next_token, positions=positions)  # which fails for a token past them
    loop = Loop(model, pool, GREEDY, NO_END, rows=2, drafts=drafts)
    found = joined(list(loop.run([Request(0, PROMPTS[0], 100), Request(1, PROMPTS[5], 100)])))
    assert found == {i: alone(PROMPTS[j], positions - 14 + j) for i, j in ((0, 0), (1, 5))}


@pytest.mark.parametrize("drafts", [0, 2])
def test_rows_that_end_leave_and_waiting_ones_enter(drafts: int, toy: Any) -> None:
    pool = Pool(30, 16)
    model = toy(pool, next_token)
    loop = Loop(model, pool, GREEDY, NO_END, rows=2, drafts=drafts)
    lengths = [40, 3, 5, 30, 1]
    pieces = list(loop.run([Request(i, PROMPTS[i], n) for i, n in enumerate(lengths)]))
    assert joined(pieces) == {i: alone(PROMPTS[i], n) for i, n in enumerate(lengths)}
    assert [piece.prompt_index for piece in pieces if piece.reason][:2] == [1, 2]
    assert max(len(batch.past_sequence_lengths) for batch in model.steps) == 2


def test_tokens_come_as_they_are_drawn(toy: Any) -> None:
    pool = Pool(4, 16)
    model = toy(pool, next_token)
    pieces = Loop(model, pool, GREEDY, NO_END, rows=1).run([Request(7, PROMPTS[0], 3)])
    wanted = alone(PROMPTS[0], 3)[0]
    for step, token in enumerate(wanted, start=1):
        assert next(pieces) == Piece(7, [token], "length" if step == 3 else None)
        assert len(model.steps) == step


# ------------------------------------------------------------------------------------ random draws


class Mixed:
    """Logits that depend on all tokens before, and a drafter whose logits are near them."""

    def __init__(self, model: Any) -> None:
        self.model, self.vocab_size, self.positions = model, 40, model.positions

    def logits(self, ids: list[int], noise: float) -> Tensor:
        generator = torch.Generator().manual_seed(next_token(ids))
        plain = torch.randn(40, generator=generator)
        return plain + noise * torch.randn(40, generator=generator)

    def step(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        said: list[Tensor] = []
        self.model.next_token = lambda ids: said.append(self.logits(ids, 0)) or 0
        _, hidden = self.model.step(batch, rows)
        return torch.stack(said)[rows], hidden

    def draft(self, batch: Batch, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        said: list[Tensor] = []
        self.model.drafter = lambda ids: said.append(self.logits(ids, 0.2)) or 0
        _, state = self.model.draft(batch, hidden, rows)
        return torch.stack(said)[rows], state


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_drafts_change_no_answer_at_any_temperature(
    temperature: float, top_p: float, toy: Any
) -> None:
    def run(drafts: int, rows: int, seed: int = 3) -> tuple[Answers, Any]:
        pool = Pool(60, 16)
        model = Mixed(toy(pool, next_token))
        sampling = Sampling(temperature, top_p, seed)
        loop = Loop(model, pool, sampling, frozenset({0}), rows=rows, drafts=drafts)
        requests = [Request(10 + i, [t % 40 for t in p], 20) for i, p in enumerate(PROMPTS)]
        return joined(list(loop.run(requests))), loop.counts

    plain, _ = run(0, 9)
    for drafts in (1, 2, 3):
        for rows in (9, 2):
            answers, counts = run(drafts, rows)
            assert answers == plain
            assert 0 < counts.kept[0] < counts.drafted[0]
    assert (run(0, 9, seed=4)[0] == plain) == (temperature == 0)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("bad", [0, 1, 5, 6])
def test_a_row_whose_logits_are_not_finite_ends_with_an_error_and_harms_no_other(
    bad: int, drafts: int, toy: Any
) -> None:
    """Its tokens so far come; the next owner of its pages has what it gets alone."""

    def breaks(ids: list[int]) -> int:
        return -1 if ids[0] == 4 and len(ids) == len(PROMPTS[1]) + bad else next_token(ids)

    pool = Pool(12, 16)
    loop = Loop(toy(pool, breaks), pool, GREEDY, NO_END, rows=3, drafts=drafts)
    found = joined(list(loop.run([Request(i, p, 30) for i, p in enumerate(PROMPTS)])))
    assert found.pop(1) == (alone(PROMPTS[1], bad)[0], "error")
    assert found == {i: alone(p, 30) for i, p in enumerate(PROMPTS) if i != 1}
    assert pool.free == 12


def test_a_drafter_without_finite_logits_drafts_nothing(toy: Any) -> None:
    pool = Pool(12, 16)
    model = toy(pool, next_token, drafter=lambda ids: -1 if len(ids) % 2 else next_token(ids))
    loop = Loop(model, pool, GREEDY, NO_END, rows=3, drafts=2)
    found = joined(list(loop.run([Request(i, p, 30) for i, p in enumerate(PROMPTS)])))
    assert found == {i: alone(p, 30) for i, p in enumerate(PROMPTS)}
    assert loop.counts.drafted[0] == loop.counts.kept[0] > 0


def test_drafts_without_finite_logits_are_counted(toy: Any) -> None:
    pool = Pool(12, 16)
    loop = Loop(toy(pool, next_token, drafter=lambda _: -1), pool, GREEDY, NO_END, rows=1, drafts=2)
    found = joined(list(loop.run([Request(0, PROMPTS[0], 30)])))
    assert found == {0: alone(PROMPTS[0], 30)}
    assert loop.counts.drafted == [0, 0]
    # one after each token, but for the last two: after them there is no room for a draft
    assert loop.counts.not_finite == 28


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 5, "prompt 1 is empty"),
        ([4], 0, "max_tokens must be at least 1, got 0 for prompt 1"),
        ([4, 1000], 5, "prompt 1 has the token 1000; the model has 1000"),
        ([4, -1], 5, "prompt 1 has the token -1"),
        ([4] * 100, 5, "prompt 1 has 100 tokens; the model has 100 positions"),
        ([4] * 50, 40, r"prompt 1 of 50 tokens and its answer need 6 pages of 16 tokens; .* has 5"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused_before_the_first_token(
    prompt: list[int], tokens: int, message: str, toy: Any
) -> None:
    pool = Pool(5, 16)
    model = toy(pool, next_token, positions=100)
    loop = Loop(model, pool, GREEDY, NO_END, rows=2)
    with pytest.raises(DstoolsError, match=message):
        next(loop.run([Request(0, PROMPTS[0], 5), Request(1, prompt, tokens)]))
    assert model.steps == []


def test_errors_do_not_number_a_prompt_that_is_alone(toy: Any) -> None:
    pool = Pool(5, 16)
    loop = Loop(toy(pool, next_token), pool, GREEDY, NO_END, rows=2)
    with pytest.raises(DstoolsError, match=r"^the prompt is empty$"):
        next(loop.run([Request(0, [], 5)]))


@pytest.mark.parametrize("drafts", [0, 1])
def test_a_row_that_just_fits_the_pool_runs(drafts: int, toy: Any) -> None:
    pool = Pool(5, 16)
    loop = Loop(toy(pool, next_token), pool, GREEDY, NO_END, rows=2, drafts=drafts)
    prompt = PROMPTS[0]
    found = joined(list(loop.run([Request(0, prompt, 81 - len(prompt))])))  # 80 are cached
    assert found == {0: alone(prompt, 81 - len(prompt))}


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"chunk": 0}, {"drafts": -1}])
def test_a_loop_without_rows_or_chunks_is_refused(wrong: dict[str, int], toy: Any) -> None:
    pool = Pool(5, 16)
    with pytest.raises(DstoolsError, match="cannot run"):
        Loop(toy(pool, next_token), pool, GREEDY, NO_END, **{"rows": 1} | wrong)
