"""The select stage: keeps the best samples of each prompt and mixes in other conversations.

Memory holds 25 bytes of each row (offset, prompt, length, verdict) and the id of each prompt. The
rows are copied at the end, in an order drawn from the seed.
"""

import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dstools_converters.errors import DstoolsError
from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_distill import records
from dstools_distill.data.contamination import Index
from dstools_distill.data.ngrams import hashes, jaccard, shingles
from dstools_distill.data.sources import Reading, questions
from dstools_distill.recipe.settings import Select
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.stage import Report, Work

log = logging.getLogger(__name__)
VERDICTS = ("correct", "incorrect", "unverifiable", "none")
CORRECT, UNVERIFIABLE, NONE = 0, 2, 3
DIVERSE_WORDS = 3  # length of the n-grams by which samples are compared
MIXED = "mixed.jsonl"  # temporary; removed at the end of the stage

Ints = NDArray[np.int64]


def select(settings: Select, inputs: Inputs, work: Work) -> Report:
    """Write training rows to records.jsonl, in a random order; the rest to dropped.jsonl.

    Keeps at most `per_prompt` samples of a prompt. "all": of all samples, whatever their verdict;
    the others choose among correct ones. "all-correct": in order; "first", "shortest" (in
    characters): one if per_prompt is 0; "diverse": the first, then those that resemble the chosen
    ones least by word 3-grams. The pass rate of a prompt is that of its judged
    samples; it is unknown, and within any limits, without one.

    Inputs.mixed: conversations in any form that `prompts` reads, each with an answer; they are not
    verified. As many are drawn as make reasoning rows `reasoning_share` of all, or all if there are
    too few. Those that share text with a benchmark in Inputs.indexes go to dropped.jsonl and are
    counted under non_reasoning.

    Reasons, the first that applies: "incorrect", "unverifiable", "pass-rate", "per-prompt",
    "not-first", "not-shortest", "not-diverse", "limit".
    """
    check_select(settings, is_judged=True)
    source = inputs.samples / "records.jsonl"
    with source.open("rb") as file, work.bar(source.stat().st_size, "select") as progress:
        read = _Read(source, file, progress)
        reasons = _fates(settings, read, file)
        kept = np.flatnonzero(np.array([not reason for reason in reasons], bool))
        rng = np.random.Generator(np.random.PCG64(settings.seed))
        kept = rng.permutation(kept)
        mixed, contaminated = array("Q"), list[bytes]()
        if inputs.mixed is not None:
            rows = conversations(inputs.mixed, settings.licence)
            mixed, contaminated = _import(rows, Index(inputs.indexes), work.folder / MIXED)
        own, others = _shares(settings, len(kept), len(mixed))
        for number in kept[own:].tolist():
            reasons[number] = "limit"
        added = rng.permutation(len(mixed))[:others]
        order = rng.permutation(own + others)
        dropped = _write_dropped(work.folder, file, reasons, contaminated)
        places = read.offsets[kept[:own]].tolist(), [mixed[number] for number in added.tolist()]
        _write_kept(work.folder, file, *places, order.tolist())
    (work.folder / MIXED).unlink(missing_ok=True)
    return {
        "in": len(reasons),
        "out": own + others,
        "dropped": dict(sorted(dropped.items())),
        "verdicts": {name: int(np.sum(read.verdicts == n)) for n, name in enumerate(VERDICTS)},
        "prompts": {"in": len(read.prompts), "out": len(np.unique(read.groups[kept[:own]]))},
        "non_reasoning": {
            "in": len(mixed) + len(contaminated),
            "contaminated": len(contaminated),
            "out": others,
        },
        "reasoning_share": own / (own + others) if own + others else 0.0,
    }


def check_select(settings: Select, *, is_judged: bool) -> None:
    """Raise DstoolsError for settings with which nothing can be selected.

    is_judged: whether all samples have a verdict.
    """
    band = settings.min_pass_rate > 0 or settings.max_pass_rate < 1
    if (settings.keep != "all" or band) and not is_judged:
        problem = "select needs verdicts, and the samples have none"
        raise DstoolsError(problem, 'add [verify], or keep = "all"')
    if settings.keep == "diverse" and not settings.per_prompt:
        raise DstoolsError('select.keep = "diverse" needs select.per_prompt', "set it to 1 or more")
    if settings.non_reasoning and not settings.reasoning_share:
        raise DstoolsError("select.reasoning_share is 0", "set it above 0, or add no rows")


class _Read:
    """The rows of a file, reduced to what selection needs."""

    def __init__(self, source: Path, file: BinaryIO, progress: Callable[[int], object]) -> None:
        offsets, groups, lengths, verdicts = array("Q"), array("q"), array("q"), array("B")
        self.prompts: dict[str, int] = {}
        at = 0
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)  # what an earlier stage wrote
                offsets.append(at)
                groups.append(self.prompts.setdefault(row["id"], len(self.prompts)))
                lengths.append(len(row["raw"]))
                verdicts.append(VERDICTS.index(row.get("verdict", "none")))
            except (KeyError, ValueError) as error:
                problem = f"{source}: line {number}: is not a sample: {error}"
                raise DstoolsError(problem, "name a folder of samples") from None
            at += len(line)
            progress(len(line))
        self.offsets = np.frombuffer(offsets, np.uint64)
        self.groups: Ints = np.frombuffer(groups, np.int64)
        self.lengths: Ints = np.frombuffer(lengths, np.int64)
        self.verdicts = np.frombuffer(verdicts, np.uint8)


def _fates(settings: Select, read: _Read, file: BinaryIO) -> list[str]:
    """Return why each row is dropped, "" if it is kept."""
    reasons = np.full(len(read.offsets), "", object)
    check_select(settings, is_judged=not np.any(read.verdicts == NONE))
    if settings.keep != "all":
        for value in (1, 2):
            reasons[read.verdicts == value] = VERDICTS[value]
    if settings.min_pass_rate > 0 or settings.max_pass_rate < 1:
        judged = np.bincount(read.groups, read.verdicts != UNVERIFIABLE)
        rate = np.bincount(read.groups, read.verdicts == CORRECT) / np.maximum(judged, 1)
        outside = (rate < settings.min_pass_rate) | (rate > settings.max_pass_rate)
        outside &= judged > 0
        reasons[outside[read.groups] & (reasons == "")] = "pass-rate"
    _choose(settings, read, file, reasons)
    return list(reasons)


def _choose(settings: Select, read: _Read, file: BinaryIO, reasons: NDArray[np.object_]) -> None:
    """Set the reason of rows beyond the number to keep of each prompt."""
    left = np.flatnonzero(reasons == "")
    group = read.groups[left]
    if settings.keep == "shortest":
        order = np.lexsort((left, read.lengths[left], group))
    else:
        order = np.argsort(group, kind="stable")
    left, group = left[order], group[order]
    rank = np.arange(len(left)) - np.searchsorted(group, group, "left")
    most = settings.per_prompt or (1 if settings.keep in ("first", "shortest") else len(left))
    over = left[rank >= most]
    if settings.keep != "diverse":
        plain = settings.keep in ("all", "all-correct")
        reasons[over] = "per-prompt" if plain else f"not-{settings.keep}"
        return
    crowded = np.unique(read.groups[over])
    lows = np.searchsorted(group, crowded, "left").tolist()
    highs = np.searchsorted(group, crowded, "right").tolist()
    for low, high in zip(lows, highs, strict=True):
        members = left[low:high]
        grams = [_grams(file, int(read.offsets[number])) for number in members.tolist()]
        chosen = _most_different(grams, most)
        reasons[np.delete(members, chosen)] = "not-diverse"


def _grams(file: BinaryIO, offset: int) -> NDArray[np.uint64]:
    file.seek(offset)
    return shingles(hashes(json.loads(file.readline())["raw"]), DIVERSE_WORDS)


def _most_different(grams: list[NDArray[np.uint64]], count: int) -> list[int]:
    """Return the first, then repeatedly the one least similar to the most similar chosen one."""
    chosen, nearest = [0], np.array([jaccard(grams[0], other) for other in grams])
    while len(chosen) < count:
        nearest[chosen] = 2  # above any similarity
        chosen.append(int(np.argmin(nearest)))
        last = grams[chosen[-1]]
        nearest = np.maximum(nearest, [jaccard(last, other) for other in grams])
    return chosen


def _shares(settings: Select, kept: int, mixed: int) -> tuple[int, int]:
    """Return the number of reasoning rows and of other rows to write."""
    share = settings.reasoning_share if settings.non_reasoning else 1.0
    own = min(kept, round(settings.limit * share)) if settings.limit else kept
    others = min(mixed, round(own * (1 - share) / share))
    if settings.limit:
        others = min(others, settings.limit - own)
    if share < 1 and others < round(own * (1 - share) / share):
        log.warning("mixing all %d rows without a trace, fewer than reasoning_share needs", mixed)
    return own, others


def _import(rows: Iterator[Record], index: Index, path: Path) -> "tuple[array[int], list[bytes]]":
    """Write clean rows to a file; return the offset of each, and the lines of contaminated ones."""
    offsets, contaminated = array("Q"), list[bytes]()
    with path.open("wb") as file:
        for row, shared in index.annotate(rows):
            if shared:
                fields = {"contamination": shared, "drop_reason": "contaminated"}
                contaminated.append(records.dump(row | fields))
            else:
                offsets.append(file.tell())
                file.write(records.dump(row))
    return offsets, contaminated


def conversations(file: Path, licence: str) -> Iterator[Record]:
    """Yield the records of a file of conversations.

    Raises DstoolsError for a conversation without an answer, for one with a think tag in its
    answer, and if there are none.
    """
    number = 0
    for number, _, question in questions(file, "auto", Reading()):
        answer, where = question.first_reply, f"{file}: line {number}"
        if answer is None:
            raise DstoolsError(f"{where}: has no answer", "end it with an assistant's message")
        if OPEN in answer or CLOSE in answer:
            hint = "pass rows with a trace as samples: [generate] can replay them"
            raise DstoolsError(f"{where}: its answer holds a think tag", hint)
        messages = question.messages
        source = {"id": records.prompt_id(messages, file.name), "source": file.name}
        gold = {"gold": None, "answer_type": "none", "task": None, "difficulty": None}
        sample = {"reference": answer, "sample": 0, "teacher": None, "sampling": None}
        parts = {"raw": answer, "reasoning": None, "answer": answer}
        end = {"finish_reason": "stop", "prefilled_think": False, "usage": None}
        yield source | {"licence": licence, "messages": messages} | gold | sample | parts | end
    if number == 0:
        raise DstoolsError(f"{file}: is empty", "name a file of conversations")


def _write_dropped(
    folder: Path, file: BinaryIO, reasons: list[str], contaminated: list[bytes]
) -> Counter[str]:
    """Write dropped.jsonl; return the number of samples for each reason."""
    file.seek(0)
    with (folder / "dropped.jsonl").open("wb") as dropped:
        for line, reason in zip(file, reasons, strict=True):
            if reason:
                dropped.write(records.extended(line, {"drop_reason": reason}))
        dropped.writelines(contaminated)
    return Counter(reason for reason in reasons if reason)


def _write_kept(
    folder: Path, file: BinaryIO, offsets: list[int], mixed: list[int], order: list[int]
) -> None:
    """Write records.jsonl in the given order: numbers of `offsets`, then of `mixed`."""
    with ExitStack() as stack:
        other = stack.enter_context((folder / MIXED).open("rb")) if mixed else file
        out = stack.enter_context((folder / "records.jsonl").open("wb"))
        for number in order:
            is_own = number < len(offsets)
            lines = file if is_own else other
            lines.seek(offsets[number] if is_own else mixed[number - len(offsets)])
            out.write(records.extended(lines.readline(), {"split": "train"}))
