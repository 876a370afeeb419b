"""Let a teacher answer every prompt some times, and lose no answer.

samples.jsonl    while it runs: a line a sample, as they come; what is in there is not asked again
records.jsonl    in the end: prompt by prompt, sample by sample; see records.py
dropped.jsonl    samples that could not be had, with the reason
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError
from dstools_converters.files import replacing
from dstools_distill import records
from dstools_distill.recipe.presets import BUNDLED
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.store.stage import Report, Work, digest
from dstools_distill.teachers.teacher import (
    Answer,
    Ask,
    Failed,
    Missed,
    Teacher,
    in_process,
    references,
    replay,
)

logger = logging.getLogger(__name__)
RECORDS, DROPPED, LOG = "records.jsonl", "dropped.jsonl", "samples.jsonl"


def generate(settings: Generate, inputs: Inputs, work: Work) -> Report:
    """Write settings.samples answers to each prompt of a folder; return what came.

    Reads prompts and model: the teacher's folder (hf), or the file of samples (replay; None replays the
    references that came with the prompts). The report counts prompts in, samples out, reasons of those dropped, how answers ended,
    traces that are well formed, and tokens where the teacher counts them. Raises DstoolsError where the
    teacher is down, where it missed more than settings.max_failed of the samples, which another run asks for
    again, or where no sample can be had at all.
    """
    if settings.samples > 1 and settings.temperature == 0 and settings.backend != "replay":
        raise DstoolsError(
            f"generate.samples: {settings.samples} greedy answers are all the same",
            "set generate.temperature above 0, or generate.samples = 1",
        )
    asked, done = inputs.prompts / RECORDS, work.folder / RECORDS
    count = sum(1 for _ in records.lines(asked))
    if not done.exists():  # it gets that name when it is whole
        with closing(SampleLog(work.folder / LOG, count * settings.samples)) as log:
            missed = _fill(log, settings, asked, inputs.model, work)
            _write(settings, asked, log, missed, _who(settings, inputs.model), work.folder)
    (work.folder / LOG).unlink(missing_ok=True)
    if settings.backend == "openai-batch":
        from dstools_distill.teachers.batchfile import remove_batch_files

        remove_batch_files(work.folder)
    return _report(count, records.read(done), records.read(work.folder / DROPPED))


def _fill(
    log: SampleLog, settings: Generate, asked: Path, model: Path | None, work: Work
) -> dict[int, str]:
    """Ask for every sample that the log has not; return why some were missed, by their numbers."""
    missed: dict[int, str] = {}
    if len(log) < log.total:
        teacher = _teacher(settings, model, work.folder, log.total)
        warned: set[str] = set()
        outcomes = teacher(_asks(asked, settings.samples), log)
        with closing(outcomes), work.bar(log.total, "samples") as progress:
            progress(len(log))
            for number, outcome in outcomes:
                if isinstance(outcome, Missed):
                    missed[number] = outcome.reason
                else:
                    log.add(number, _logged(outcome))
                    progress(1)
                if not isinstance(outcome, Answer) and outcome.reason not in warned:
                    warned.add(outcome.reason)
                    logger.warning(
                        "sample %d failed: %s %s", number, outcome.reason, outcome.detail
                    )
    assert len(log) + len(missed) == log.total, "a teacher left samples out"
    if missed and len(missed) / log.total > settings.max_failed:
        reasons = ", ".join(f"{n} x {why}" for why, n in sorted(Counter(missed.values()).items()))
        enough = -(-100 * len(missed) // log.total) / 100  # up to the next hundredth
        raise DstoolsError(
            f"{len(missed)} of {log.total} samples could not be had: {reasons}",
            "run it again: what came is kept; "
            f"or accept their loss with generate.max_failed = {enough:g}",
        )
    if log.total and all(number in missed or _why(log, number) for number in range(log.total)):
        given = {missed.get(number) or _why(log, number) for number in range(log.total)}
        log.path.unlink()  # or the same failures would be found again
        raise DstoolsError(
            f"no sample of {log.total} could be had: {', '.join(sorted(given))}",
            "do the teacher and the prompts go together?",
        )
    return missed


def _why(log: SampleLog, number: int) -> str:
    """Return why a sample that was logged failed, "" where it did not."""
    return str(log.read(number).get("failed", ""))


def _logged(outcome: Answer | Failed) -> Record:
    return {"failed": outcome.reason} if isinstance(outcome, Failed) else outcome._asdict()


def _teacher(settings: Generate, model: Path | None, folder: Path, total: int) -> Teacher:
    match settings.backend:
        case "hf":
            assert model is not None
            return in_process(settings, model)
        case "openai":
            from dstools_distill.teachers.endpoint import endpoint

            return endpoint(settings)
        case "openai-batch":
            from dstools_distill.teachers.batchfile import batch_files

            return batch_files(settings, folder, total)
        case "replay":
            return replay(model) if model else references()


def _asks(asked: Path, samples: int) -> Iterator[Ask]:
    for row, prompt in enumerate(records.read(asked)):
        for sample in range(samples):
            yield Ask(row * samples + sample, sample, prompt)


def _who(settings: Generate, model: Path | None) -> dict[str, str | None]:
    """Return the teacher of the records; where its files lie is nobody's business."""
    if settings.backend in ("openai", "openai-batch"):
        return {"name": settings.model, "revision": None}
    if model is None:
        return {"name": "reference", "revision": None}
    is_path = Path(settings.model).is_absolute() or settings.model.startswith(("~", ".", BUNDLED))
    return {"name": model.name if is_path else settings.model, "revision": digest(model)[:16]}


# ------------------------------------------------------------------------------------- the records


def _write(
    settings: Generate,
    asked: Path,
    log: SampleLog,
    missed: dict[int, str],
    teacher: dict[str, str | None],
    folder: Path,
) -> None:
    """Write records and dropped samples in the order of prompts and samples."""
    with replacing(folder / RECORDS) as kept, replacing(folder / DROPPED) as dropped:
        for ask in _asks(asked, settings.samples):
            number = ask.number
            found = {"failed": missed[number]} if number in missed else log.read(number)
            record = ask.prompt | {
                "sample": ask.sample,
                "teacher": teacher,
                "sampling": _sampling(settings, ask.sample),
            }
            if "failed" in found:
                dropped.write(records.dump(record | {"drop_reason": found["failed"]}))
            else:
                kept.write(records.dump(record | _sample(found)))


def _sampling(settings: Generate, sample: int) -> dict[str, Any]:
    """Return how a sample was drawn; of a replayed one only its index is known."""
    if settings.backend == "replay":
        return {"index": sample}
    names = ("temperature", "top_p", "max_tokens", "seed")
    return {name: getattr(settings, name) for name in names} | {"index": sample}


def _sample(found: Record) -> Record:
    """Return the fields of a record that one sample decides."""
    answer = Answer(*(found[name] for name in Answer._fields))
    parts = records.split(answer.raw, answer.prefilled_think)
    return {
        "raw": answer.raw,
        "reasoning": parts.reasoning,
        "answer": parts.answer,
        "finish_reason": answer.finish_reason,
        "prefilled_think": answer.prefilled_think,
        "usage": answer.usage,
    }


def _report(prompts: int, kept: Iterable[Record], dropped: Iterable[Record]) -> Report:
    count: Counter[str] = Counter()
    finished: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for record in kept:
        count["out"] += 1
        count["reasoned"] += record["reasoning"] is not None
        finished[record["finish_reason"]] += 1
        tokens.update(record["usage"] or {})
    reasons = Counter(record["drop_reason"] for record in dropped)
    return {
        "in": prompts,
        "out": count["out"],
        "dropped": dict(sorted(reasons.items())),
        "finish_reasons": dict(sorted(finished.items())),
        "with_one_trace": count["reasoned"],
        "tokens": dict(sorted(tokens.items())),
    }
