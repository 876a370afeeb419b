"""The generate stage: let a teacher answer each prompt several times, and lose no answer.

samples.jsonl    during the run: a line a sample, as they come; none of them is asked for again
records.jsonl    at the end: prompt by prompt, sample by sample; see records.py
dropped.jsonl    samples that failed, with the reason
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError
from dstools_converters.files import replacing
from dstools_converters.model.reasoning import split
from dstools_distill import records
from dstools_distill.recipe.presets import BUNDLED
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.store.stage import Report, Work, digest
from dstools_distill.teachers.kept import DROPPED, LOG, PAID, RECORDS, log_line, reread, reuse
from dstools_distill.teachers.replay import references, replay
from dstools_distill.teachers.request import request, request_key
from dstools_distill.teachers.teacher import (
    NO_REFERENCE,
    REFUSED,
    Answer,
    Ask,
    Missed,
    Teacher,
    accepting,
    in_process,
)

logger = logging.getLogger(__name__)
SHOWN = 60  # characters of a prompt


def generate(settings: Generate, inputs: Inputs, work: Work) -> Report:
    """Write settings.samples answers to each prompt of a folder; return the report.

    Reads inputs.prompts, and inputs.model: the teacher's folder (hf) or a file of samples (replay;
    None replays the references that came with the prompts). The report counts prompts in, samples
    out, reasons for drops, how answers ended, end tokens that were cut off, well-formed traces,
    tokens if the teacher counts them, and the samples of each teacher of a file. Raises
    DstoolsError if the teacher is down, if more than settings.max_failed of the samples did not
    come (another run asks for those again), or if every sample failed.
    """
    check_generate(settings)
    asked, done = inputs.prompts / RECORDS, work.folder / RECORDS
    count = sum(1 for _ in records.lines(asked))
    if not done.exists():  # it gets this name once it is complete
        with closing(SampleLog(work.folder / LOG, count * settings.samples)) as log:
            missed = _fill(log, settings, asked, inputs.model, work)
            _write(settings, asked, log, missed, _who(settings, inputs.model), work.folder)
    report = _report(count, records.read(done), records.read(work.folder / DROPPED))
    if settings.backend == "replay" and inputs.model:
        names = Counter(record["teacher"]["name"] for record in records.read(done))
        report["teachers"] = dict(sorted(names.items()))
    (work.folder / LOG).unlink(missing_ok=True)
    if settings.backend == "openai-batch":
        from dstools_distill.teachers.batchfile import remove_batch_files

        remove_batch_files(work.folder)
    return report


def check_generate(settings: Generate) -> None:
    """Raise DstoolsError for settings with which no teacher can be asked."""
    if settings.samples > 1 and settings.temperature == 0 and settings.backend != "replay":
        raise DstoolsError(
            f"generate.samples: {settings.samples} greedy answers are all the same",
            "set generate.temperature above 0, or generate.samples = 1",
        )
    if settings.backend in PAID and not settings.model:
        raise DstoolsError("generate.model: is missing", "give the name that the server knows")
    if settings.backend == "openai":
        from dstools_distill.teachers.endpoint import check_endpoint

        check_endpoint(settings)


def _fill(
    log: SampleLog, settings: Generate, asked: Path, model: Path | None, work: Work
) -> dict[int, Missed]:
    """Ask for every sample that is not in the log; return those that were missed, by number."""
    missed: dict[int, Missed] = {}
    if len(log) < log.total:
        asks, keys = _asks(asked, settings.samples), dict[int, Record]()
        if settings.backend in PAID:
            reused = reuse(log, settings, _asks(asked, settings.samples), work.folder)
            logger.info("%d samples of %d are answers to earlier runs", reused, log.total)
            asks = _named(asks, settings, log, keys)
        warned: set[str] = set()
        outcomes = _teacher(settings, model, work.folder, log.total)(asks, log)
        with closing(outcomes), work.bar(log.total, "samples") as progress:
            progress(len(log))
            for number, outcome in outcomes:
                key = keys.pop(number, {})
                if isinstance(outcome, Missed):
                    missed[number] = outcome
                else:
                    log.add(number, log_line(outcome) | key)
                    progress(1)
                if not isinstance(outcome, Answer) and outcome.reason not in warned:
                    warned.add(outcome.reason)
                    logger.warning(
                        "sample %d of %s failed: %s %s",
                        number % settings.samples, _question(asked, number // settings.samples),
                        outcome.reason, outcome.detail,
                    )  # fmt: skip
    assert len(log) + len(missed) == log.total, "a teacher left samples out"
    failed = {number: reread(log.read(number), settings) for number in log.failed}
    whys, kept = _whys(failed, missed), _kept(log, failed)
    _require_enough(log, settings, missed, whys, kept)
    _require_any(log, settings, whys, kept)
    return missed


def _question(asked: Path, row: int) -> str:
    """Return the end of a prompt as messages show it."""
    number, line = next(islice(records.lines(asked), row, None))
    text = records.parse(line, asked, number)["messages"][-1]["content"]
    return f"{'...' if len(text) > SHOWN else ''}{text[-SHOWN:]!r}"


def _require_enough(
    log: SampleLog,
    settings: Generate,
    missed: dict[int, Missed],
    whys: dict[int, Missed],
    kept: str,
) -> None:
    """Raise DstoolsError if more than max_failed of the samples are lost.

    What a replayed file does not have is not lost. Where all failed for good, `_require_any` says
    so.
    """
    lost = list((missed if settings.backend == "replay" else whys).values())
    if not lost or len(lost) / log.total <= settings.max_failed:
        return
    ways = list(_ways(log, settings, missed, is_unread=bool(kept)))
    if ways or len(whys) < log.total:
        counts = Counter(why.reason for why in lost)
        shown = ", ".join(f"{counts[reason]} x {text}" for reason, text in _shown(lost).items())
        raise DstoolsError(
            f"{len(lost)} of {log.total} samples are missing: {shown}{kept}",
            "; or ".join([*ways, accepting(len(lost), log.total)]),
        )


def _require_any(log: SampleLog, settings: Generate, whys: dict[int, Missed], kept: str) -> None:
    """Raise DstoolsError if there are samples, and all of them are lost."""
    if not log.total or len(whys) < log.total:
        return
    if not kept:
        log.path.unlink()  # or the next run would read the same failures
    shown = _shown(list(whys.values()))
    advice = "check that the teacher and the prompts match"
    if list(shown) == [NO_REFERENCE]:
        advice = "no row has an answer in a column that `prompts` reads; it named the others"
    if kept:
        (advice,) = _ways(log, settings, {}, is_unread=True)
    message = f"all {log.total} samples failed: {', '.join(shown.values())}{kept}"
    raise DstoolsError(message, advice)


def _whys(failed: dict[int, Record], missed: dict[int, Missed]) -> dict[int, Missed]:
    """Return why each lost sample is lost, by number."""
    return {
        number: Missed(logged["failed"], logged.get("detail", ""))
        for number, logged in failed.items()
        if "failed" in logged
    } | missed


def _kept(log: SampleLog, failed: dict[int, Record]) -> str:
    """Return the end of a message about replies in the log that cannot be read, "" without any."""
    is_unread = any("body" in logged for logged in failed.values())
    return f"; what the server said is kept in {log.path}" if is_unread else ""


def _shown(lost: list[Missed]) -> dict[str, str]:
    """Return each reason, in order, with the detail of the first sample that was lost for it."""
    details = {why.reason: why.detail for why in reversed(lost)}
    return {
        reason: f"{reason} ({detail})" if detail else reason
        for reason, detail in sorted(details.items())
    }


def _ways(
    log: SampleLog, settings: Generate, missed: dict[int, Missed], *, is_unread: bool
) -> Iterator[str]:
    """Yield what a user can do so that lost samples are asked for again."""
    answers = ""
    if settings.backend == "openai-batch":
        answers = f"{log.path.parent}/answers*.jsonl"
        if missed:
            yield f"delete their lines in {answers} and run it again: it writes requests for them"
    else:
        are_refused = {outcome.reason.startswith(REFUSED) for outcome in missed.values()}
        if False in are_refused:
            yield "run it again, finished samples are kept"
        if True in are_refused:
            yield "let the server take what it refused (a longer context?) and run it again"
    if is_unread:
        also = f" and theirs in {answers}" if answers else ""
        yield f'delete the lines with "body" in {log.path}{also}, and run it again to ask once more'


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
            return replay(model) if model else references(settings.samples)


def _asks(asked: Path, samples: int) -> Iterator[Ask]:
    for row, prompt in enumerate(records.read(asked)):
        for sample in range(samples):
            yield Ask(row * samples + sample, sample, prompt)


def _named(
    asks: Iterator[Ask], settings: Generate, log: SampleLog, keys: dict[int, Record]
) -> Iterator[Ask]:
    """Yield `asks`; note in `keys`, by number, the request of each that is not in the log."""
    for ask in asks:
        if ask.number not in log:
            keys[ask.number] = {"request": request_key(request(settings, ask))}
        yield ask


def _who(settings: Generate, model: Path | None) -> dict[str, str | None]:
    """Return the teacher as records name it, unless a replayed line names it: without a folder."""
    if settings.backend in PAID:
        return {"name": settings.model, "revision": None}
    if model is None:
        return {"name": "reference", "revision": None}
    if settings.backend == "replay":
        return {"name": f"replay of {model.name}", "revision": digest(model)[:16]}
    is_path = Path(settings.model).is_absolute() or settings.model.startswith(("~", ".", BUNDLED))
    return {"name": model.name if is_path else settings.model, "revision": digest(model)[:16]}


# ------------------------------------------------------------------------------------- the records


def _write(
    settings: Generate,
    asked: Path,
    log: SampleLog,
    missed: dict[int, Missed],
    teacher: dict[str, str | None],
    folder: Path,
) -> None:
    """Write records and dropped samples in the order of prompts and samples."""
    with replacing(folder / RECORDS) as kept, replacing(folder / DROPPED) as dropped:
        for ask in _asks(asked, settings.samples):
            number = ask.number
            logged: Record = {}
            if number in missed:
                logged = {"failed": missed[number].reason, "detail": missed[number].detail}
            if number in log:
                logged = reread(log.read(number), settings)
            record = ask.prompt | {
                "sample": ask.sample,
                "teacher": logged.get("teacher") or teacher,
                "sampling": _sampling(settings, ask.sample),
            }
            if "failed" in logged:
                more = {key: logged[key] for key in ("detail", "body") if logged.get(key)}
                dropped.write(records.dump(record | {"drop_reason": logged["failed"]} | more))
            else:
                kept.write(records.dump(record | _sample(logged)))


def _sampling(settings: Generate, sample: int) -> dict[str, Any]:
    """Return how a sample was drawn; only the index of a replayed one is known."""
    if settings.backend == "replay":
        return {"index": sample}
    names = ("temperature", "top_p", "max_tokens", "seed")
    return {name: getattr(settings, name) for name in names} | {"index": sample}


def _sample(logged: Record) -> Record:
    """Return the fields of a record that depend on the sample."""
    answer = Answer(**{name: logged[name] for name in Answer._fields if name in logged})
    parts = split(answer.raw, answer.prefilled_think)
    return {
        "raw": answer.raw,
        "reasoning": parts.reasoning,
        "answer": parts.answer,
        "finish_reason": answer.finish_reason,
        "prefilled_think": answer.prefilled_think,
        "usage": answer.usage,
    } | ({"end_token": answer.end_token} if answer.end_token else {})


def _report(prompts: int, kept: Iterable[Record], dropped: Iterable[Record]) -> Report:
    count: Counter[str] = Counter()
    finished: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for record in kept:
        count["out"] += 1
        count["reasoned"] += bool((record["reasoning"] or "").strip())
        finished[record["finish_reason"]] += 1
        tokens.update(record["usage"] or {})
        ends.update([record["end_token"]] if "end_token" in record else [])
    reasons, details = Counter[str](), dict[str, str]()
    for record in dropped:
        reasons[record["drop_reason"]] += 1
        if "detail" in record:
            details.setdefault(record["drop_reason"], record["detail"])
    report = {
        "in": prompts,
        "out": count["out"],
        "dropped": dict(sorted(reasons.items())),
        "finish_reasons": dict(sorted(finished.items())),
        "with_one_trace": count["reasoned"],
        "tokens": dict(sorted(tokens.items())),
    }
    if ends:
        report["end_tokens_cut"] = dict(sorted(ends.items()))
    if details:
        report["details"] = dict(sorted(details.items()))
    return report
