"""Selection: which traces of each prompt are kept, and what is mixed in.

Of each row only its place, prompt, verdict and length are remembered, 25 bytes, and of each prompt its id; the
rows themselves are copied at the end, in an order drawn from the seed.
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
from dstools_distill import records
from dstools_distill.data.contamination import Index
from dstools_distill.data.forms import BadRowError, convert
from dstools_distill.data.ngrams import hashes, jaccard, shingles
from dstools_distill.data.sources import rows
from dstools_distill.recipe.settings import Select
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import CLOSE, OPEN, Record
from dstools_distill.store.stage import Report, Work

log = logging.getLogger(__name__)
VERDICTS = ("correct", "incorrect", "unverifiable", "none")
CORRECT, NONE = 0, 3
DIVERSE_WORDS = 3  # of the n-grams that samples are compared by
MIXED = "mixed.jsonl"  # gone when the stage is done

Ints = NDArray[np.int64]


def select(settings: Select, inputs: Inputs, work: Work) -> Report:
    """Write what is trained on as records.jsonl, in the order drawn, the rest as dropped.jsonl.

    Of each prompt, in the order of its samples, at most `per_prompt` are kept. "all": of all samples, whatever
    their verdict; "all-correct": of the correct ones, and so in all that follow; "first", "shortest" (in
    characters): one where per_prompt is 0; "diverse": those that resemble each other least by word
    3-grams, the first one to begin with. The pass rate is that of all samples of a prompt in `samples`.
    Inputs.mixed: conversations, as `prompts` reads them, each with an answer. So many are drawn that
    reasoning rows are `reasoning_share` of all; where there are too few, all are taken. Nobody verifies them.
    Inputs.indexes: files in which they are looked up, as `decontaminate` does it with the samples; what shares text
    with a benchmark goes to dropped.jsonl, too, and is counted under non_reasoning.

    Dropped, the first reason counts: "incorrect", "unverifiable", "pass-rate", "per-prompt", "not-first",
    "not-shortest", "not-diverse", "limit".
    """
    _check(settings)
    source = inputs.samples / "records.jsonl"
    with source.open("rb") as file, work.bar(source.stat().st_size, "select") as progress:
        read = _Read(source, file, progress)
        reasons = _fates(settings, read, file)
        kept = np.flatnonzero(np.array([not reason for reason in reasons], bool))
        rng = np.random.Generator(np.random.PCG64(settings.seed))
        kept = rng.permutation(kept)
        mixed, contaminated = array("Q"), list[bytes]()
        if inputs.mixed is not None:
            talks = _conversations(inputs.mixed, settings.licence)
            mixed, contaminated = _import(talks, Index(inputs.indexes), work.folder / MIXED)
            if not mixed and not contaminated:
                raise DstoolsError(f"{inputs.mixed}: is empty", "name a file of conversations")
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
        "prompts": {
            "in": len(read.prompts),
            "out": len(np.unique(read.groups[kept[:own]])),
        },
        "non_reasoning": {
            "in": len(mixed) + len(contaminated),
            "contaminated": len(contaminated),
            "out": others,
        },
        "reasoning_share": own / (own + others) if own + others else 0.0,
    }


def _check(settings: Select) -> None:
    if settings.keep == "diverse" and not settings.per_prompt:
        raise DstoolsError('select.keep = "diverse" needs select.per_prompt', "how many of each?")
    if settings.non_reasoning and not 0 < settings.reasoning_share <= 1:
        raise DstoolsError(
            f"select.reasoning_share is {settings.reasoning_share}", "a share is over 0 and up to 1"
        )


class _Read:
    """What is remembered of the rows of a file."""

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
                raise DstoolsError(
                    f"{source}: line {number}: is no sample: {error}", "name a folder of samples"
                ) from None
            at += len(line)
            progress(len(line))
        self.offsets = np.frombuffer(offsets, np.uint64)
        self.groups: Ints = np.frombuffer(groups, np.int64)
        self.lengths: Ints = np.frombuffer(lengths, np.int64)
        self.verdicts = np.frombuffer(verdicts, np.uint8)


def _fates(settings: Select, read: _Read, file: BinaryIO) -> list[str]:
    """Return why each row goes, "" where it stays."""
    reasons = np.full(len(read.offsets), "", object)
    band = settings.min_pass_rate > 0 or settings.max_pass_rate < 1
    if (settings.keep != "all" or band) and np.any(read.verdicts == NONE):
        raise DstoolsError(
            "select goes by verdicts, and samples have none", 'add [verify], or keep = "all"'
        )
    if settings.keep != "all":
        for value in (1, 2):
            reasons[read.verdicts == value] = VERDICTS[value]
    if band:
        count = np.bincount(read.groups)
        rate = np.bincount(read.groups, read.verdicts == CORRECT) / np.maximum(count, 1)
        outside = (rate < settings.min_pass_rate) | (rate > settings.max_pass_rate)
        reasons[outside[read.groups] & (reasons == "")] = "pass-rate"
    _choose(settings, read, file, reasons)
    return list(reasons)


def _choose(settings: Select, read: _Read, file: BinaryIO, reasons: NDArray[np.object_]) -> None:
    """Give a reason to the rows that are too many of a prompt."""
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
    for low, high in zip(
        np.searchsorted(group, crowded, "left").tolist(),
        np.searchsorted(group, crowded, "right").tolist(),
        strict=True,
    ):
        members = left[low:high]
        grams = [_grams(file, int(read.offsets[number])) for number in members.tolist()]
        chosen = _most_different(grams, most)
        reasons[np.delete(members, chosen)] = "not-diverse"


def _grams(file: BinaryIO, offset: int) -> NDArray[np.uint64]:
    file.seek(offset)
    return shingles(hashes(json.loads(file.readline())["raw"]), DIVERSE_WORDS)


def _most_different(grams: list[NDArray[np.uint64]], count: int) -> list[int]:
    """Return the first, then each time the one whose nearest of those chosen is the farthest."""
    chosen, nearest = [0], np.array([jaccard(grams[0], other) for other in grams])
    while len(chosen) < count:
        nearest[chosen] = 2  # above any similarity
        chosen.append(int(np.argmin(nearest)))
        last = grams[chosen[-1]]
        nearest = np.maximum(nearest, [jaccard(last, other) for other in grams])
    return chosen


def _shares(settings: Select, kept: int, mixed: int) -> tuple[int, int]:
    """Return the number of reasoning rows, and of others."""
    share = settings.reasoning_share if settings.non_reasoning else 1.0
    own = min(kept, round(settings.limit * share)) if settings.limit else kept
    others = min(mixed, round(own * (1 - share) / share))
    if settings.limit:
        others = min(others, settings.limit - own)
    if share < 1 and others < round(own * (1 - share) / share):
        log.warning("%d rows without a trace are fewer than the mix asks for", mixed)
    return own, others


def _import(talks: Iterator[Record], known: Index, into: Path) -> "tuple[array[int], list[bytes]]":
    """Write conversations as records; return where each begins, and the contaminated ones that are left out."""
    offsets, contaminated = array("Q"), list[bytes]()
    with into.open("wb") as written:
        for talk, shared in known.each(talks):
            if shared:
                why = {"contamination": shared, "drop_reason": "contaminated"}
                contaminated.append(records.dump(talk | why))
            else:
                offsets.append(written.tell())
                written.write(records.dump(talk))
    return offsets, contaminated


def _conversations(file: Path, licence: str) -> Iterator[Record]:
    """Yield the records of a file of conversations; fail where one has no answer."""
    for number, row in rows(file):
        where = f"{file}: line {number}"
        try:
            question = convert(row)
        except BadRowError as error:
            raise DstoolsError(f"{where}: {error}", "mend or remove it") from None
        answer = question.reference
        if answer is None:
            raise DstoolsError(f"{where}: has no answer", "an assistant's message ends it")
        if OPEN in answer or CLOSE in answer:
            raise DstoolsError(
                f"{where}: its answer holds a think tag", "rows with a trace are samples: replay"
            )
        yield _without_trace(file.name, licence, question.messages, answer)


def _without_trace(
    source: str, licence: str, messages: list[dict[str, str]], answer: str
) -> Record:
    return {
        "id": records.prompt_id(messages, source),
        "source": source,
        "licence": licence,
        "messages": messages,
        "gold": None,
        "answer_type": "none",
        "task": None,
        "difficulty": None,
        "reference": answer,
        "sample": 0,
        "teacher": None,
        "sampling": None,
        "raw": answer,
        "reasoning": None,
        "answer": answer,
        "finish_reason": "stop",
        "prefilled_think": False,
        "usage": None,
    }


def _write_dropped(
    folder: Path, file: BinaryIO, reasons: list[str], contaminated: list[bytes]
) -> Counter[str]:
    """Write dropped.jsonl; return the number of samples for each reason."""
    file.seek(0)
    with (folder / "dropped.jsonl").open("wb") as gone:
        for line, reason in zip(file, reasons, strict=True):
            if reason:
                gone.write(records.extended(line, {"drop_reason": reason}))
        gone.writelines(contaminated)
    return Counter(reason for reason in reasons if reason)


def _write_kept(
    folder: Path, file: BinaryIO, offsets: list[int], mixed: list[int], order: list[int]
) -> None:
    """Write records.jsonl in that order: numbers of offsets, behind them those of mixed rows."""
    with ExitStack() as stack:
        other = stack.enter_context((folder / MIXED).open("rb")) if mixed else file
        out = stack.enter_context((folder / "records.jsonl").open("wb"))
        for number in order:
            is_own = number < len(offsets)
            place = offsets[number] if is_own else mixed[number - len(offsets)]
            lines = file if is_own else other
            lines.seek(place)
            out.write(records.extended(lines.readline(), {"split": "train"}))
