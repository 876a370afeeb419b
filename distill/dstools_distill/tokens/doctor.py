"""The doctor: what another trainer trains on, and what of a trace it loses.

TRL's own code is run. axolotl and LLaMA-Factory are judged by the data that they prepare.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError, Finding, Level, counted, merged, printable
from dstools_converters.model.reasoning import CLOSE, OPEN, split
from dstools_converters.model.tokenizer import Messages, answer_form
from dstools_distill import records
from dstools_distill.data.columns import BadRowError
from dstools_distill.data.forms import convert
from dstools_distill.data.sources import rows as source_rows
from dstools_distill.records import Record
from dstools_distill.tokens.invariant import IGNORED, Trained, violations
from dstools_distill.tokens.prepared import parts
from dstools_distill.tokens.render import check_tokenizer
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.turns import Reader, target_of

COMMANDS = {  # what prepares the data of a configuration, and where
    "LLaMA-Factory": ("llamafactory-cli train {} tokenized_path={}", "tokenized_path", "prepared"),
    "axolotl": ("axolotl preprocess {}", "dataset_prepared_path", "last_run_prepared"),
}
TELLING = {  # keys that no trainer after it has, in this order
    "LLaMA-Factory": ("cutoff_len", "template", "stage", "finetuning_type", "dataset_dir"),
    "axolotl": ("base_model", "sequence_len", "sample_packing"),
}
STEP = "Wait, 2+9=11, so I write 1 and carry 1. "
SHOWN_ROWS = 2  # of a prepared data set
# codes of faults that lose nothing
MILD = (
    *("prompt-trained", "prompt-differs", "trained-behind-end", "text-changed", "no-trace"),
    "history-not-trained",
)
PACKING = "pack by bfd with flash attention, with neat_packing, or not at all"
HINTS = {
    "packing": PACKING,
    "trace-lost": "`dstools distill render` joins prompt and trace without the template",
    "truncated": "raise the limit above your longest row, or drop long rows; never cut one",
    "end-missing": "train on the token that ends a turn in the template",
    "start-missing": "train on the opening tag, or use a template that shows it when served",
    "other-template": "prepare with this template, or give the tokenizer that is served",
    "prompt-trained": "mask it: set assistant_only_loss, or give prompt and completion apart",
    "prompt-differs": "make everything before the first label what serving shows",
    "mtp-dropped": "`dstools distill sft` carries them over, `dstools distill mtp` fits them",
    "left-out": "raise the limit above your longest row, or be content with the others",
    "no-trace": "give the rows that they were made of with --data, to know whether one was lost",
}


@dataclass(frozen=True)
class Case:
    """One conversation as the trainer trains on it."""

    name: str
    tokens: int
    trained_tokens: int
    trained_on: str  # decoded, with special tokens


@dataclass(frozen=True)
class Diagnosis:
    """What a trainer would do; a finding of level "error" is a loss, or was not checked."""

    trainer: str
    how: str  # where the rows are from
    cases: list[Case]
    findings: list[Finding]


def diagnose(tokenizer: Path, config: Path | None, sample: Path | None) -> Diagnosis:
    """Return what the trainer that `config` is for would make of a sample.

    tokenizer: a folder. config: YAML or JSON of TRL (its SFTConfig or script arguments), which is
    run with messages and with prompt and completion; LLaMA-Factory's and axolotl's give one error,
    with the command that prepares their data. None: TRL's defaults. Relative paths in it start from
    the working folder. sample: a JSONL file whose first row is used, in any form that `prompts`
    reads, with the answer; None: a short and a long sample of our own. Raises DstoolsError for
    files that cannot be read, for other trainers and trainings, and if neither tokenizer nor config
    has a usable chat template.
    """
    settings = _read_config(config) if config else {}
    trainer = _which(config, settings) if config else "TRL"
    if config and trainer != "TRL":
        told = [*_mtp(tokenizer, trainer), _not_checked(config, trainer, settings, tokenizer)]
        return Diagnosis(trainer, "not run", [], told)
    samples = {"the first row": _read_sample(sample)} if sample else OWN
    loaded = load_tokenizer(tokenizer)
    rows, findings = _rows_of_trl(settings, loaded, samples)
    end = answer_form(loaded).end
    findings += _about(loaded, end, tokenizer, trainer) + _packing(settings)
    cases: list[Case] = []
    for name, chat, row in rows:
        cases.append(_case(loaded, name, row))
        for fault in violations(loaded.decode, row.ids, row.labels, target_of(loaded, end, chat)):
            findings.append(_finding(fault.code, name, fault.message))
    return Diagnosis(trainer, "run, up to its batches", cases, findings)


def diagnose_prepared(tokenizer: Path, prepared: Path, data: Path | None) -> Diagnosis:
    """Return what training on a tokenized data set would lose, see `prepared.parts`.

    tokenizer: the folder that is served. data: the rows that the data set was made of, in any form
    that `prompts` reads, to tell lost traces and rows. Raises DstoolsError as `parts` and `rows`.
    """
    loaded = load_tokenizer(tokenizer)
    reader = Reader(loaded)
    findings = _about(loaded, reader.end, tokenizer, "the trainer")
    sources = _sources(data) if data else {}
    cases: list[Case] = []
    used, plain, count, lengths = set[str](), [], 0, Counter[int]()
    for part in parts(prepared, len(loaded)):
        count += 1
        row, where = part.row, part.where
        lengths[len(row.ids)] += 1
        if len(cases) < SHOWN_ROWS:
            cases.append(_case(loaded, where, row))
        key = reader.question(row.ids) if sources else ""
        if sources and key not in sources:
            text = loaded.decode(row.ids)
            key = next((asked for asked in sources if asked in text), "")
        used.add(key)
        if not part.is_apart:
            what = "attention_mask does not part it from other conversations of its row"
            findings.append(Finding.warning("packing", where, what, PACKING))
        for fault in reader.faults(row, sources.get(key)):
            findings.append(_finding(fault.code, where, fault.message))
        if not data and not reader.has_trace(row.ids):
            plain.append(where)
    if len(plain) == count:
        findings.append(_finding("trace-lost", "all rows", "none has a trace", HINTS["no-trace"]))
    else:
        findings += [_finding("no-trace", where, "has no trace") for where in plain]
    for asked in sources.keys() - used:
        what = f"no prepared row holds the question {printable(asked)!r}"
        findings.append(_finding("left-out", str(data), what))
    length = max(lengths)
    if lengths[length] > 1 and any(finding.code == "truncated" for finding in findings):
        what = f"{lengths[length]} rows have the greatest length, {length} tokens: the limit"
        findings.append(Finding.note("limit", str(prepared), what))
    return Diagnosis(
        "prepared data", f"{counted(count, 'conversation')} read", cases, merged(findings)
    )


def text(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text for a terminal."""
    lines = [f"{diagnosis.trainer} ({diagnosis.how})"]
    for case in diagnosis.cases:
        lines.append(f"\n{case.name}: {case.trained_tokens} of {case.tokens} tokens are trained on")
        if case.trained_on:
            lines.append(f"  {_ends(case.trained_on)}")
    lines.append("")
    for finding in diagnosis.findings:
        lines.append(f"{finding.level}: {finding.where}: {finding.message}")
        lines += [f"  {finding.hint}"] if finding.hint else []
    if not any(finding.level == "error" for finding in diagnosis.findings):
        lines.append("nothing would be lost")
    return "\n".join(lines)


def _ends(trained_on: str) -> str:
    """Return a text, quoted; only its beginning and its end if it is long."""
    if len(trained_on) <= 400:
        return repr(trained_on)
    return f"{trained_on[:200]!r} ... {trained_on[-200:]!r}"


# ------------------------------------------------------------------------------------- the input


def _sample(trace: str) -> Messages:
    content = f"{OPEN}\n{trace}\n{CLOSE}\n\nThe answer is 41."
    question = {"role": "user", "content": "What is 12 + 29?"}
    return [question, {"role": "assistant", "content": content}]


OWN = {"a short trace": _sample(STEP.strip()), "a long trace": _sample((STEP * 250).strip())}


def _read_config(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; JSON is YAML too."""
    import yaml  # type: ignore[import-untyped]

    try:
        settings = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DstoolsError(f"{path}: {error.strerror}", "is the path right?") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))
        raise DstoolsError(f"{path}: is not valid YAML: {reason}", "fix the file") from None
    if not isinstance(settings, dict):
        raise DstoolsError(f"{path}: is not a mapping", "name the configuration of a trainer")
    return {str(key): value for key, value in settings.items()}


def _which(path: Path, settings: dict[str, Any]) -> str:
    """Return the trainer whose keys a configuration has."""
    named = [name for name, keys in TELLING.items() if any(key in settings for key in keys)]
    trainer = named[0] if named else "TRL"
    if not named:
        from dstools_distill.tokens import trl_rows

        is_trl = any(key in settings for key in trl_rows.TELLING)
        shared = any(key in settings for key in trl_rows.SHARED)
        if not (is_trl or (shared and not trl_rows.unknown_keys(settings))):
            raise DstoolsError(
                f"{path}: is not a configuration of {', '.join(TELLING)} or TRL, by its keys "
                f"{printable(', '.join(settings))}",
                "for another trainer, save its tokenized rows and give them with --prepared",
            )
    stage = settings.get("stage", "sft") if trainer == "LLaMA-Factory" else settings.get("rl")
    other = [key for key in NOT_SFT if settings.get(key)]
    if stage not in ("sft", None, False) or other:
        what = other[0] if other else f"{stage}"
        raise DstoolsError(
            f"{path}: {trainer} would not do supervised fine-tuning, but {printable(what)}",
            "the doctor reads configurations of supervised fine-tuning",
        )
    return trainer


NOT_SFT = ("reward_model", "process_reward_model", "reward_funcs", "num_generations", "beta")


def _not_checked(path: Path, trainer: str, settings: dict[str, Any], tokenizer: Path) -> Finding:
    """Return the error for a trainer that is not run, with the command that prepares its data."""
    command, key, folder = COMMANDS[trainer]
    folder = printable(str(settings.get(key) or folder))
    then = f"dstools distill doctor {tokenizer} --prepared {folder}"
    what = f"{trainer} is not run here: let it prepare its data, and have that checked"
    return Finding.error("not-checked", str(path), what, f"{command.format(path, folder)}; {then}")


def _read_sample(path: Path) -> Messages:
    """Return the conversation in the first row of a JSONL file."""
    for row in records.read(path):
        chat = conversation(row, f"{path}: the first row")
        if chat[-1]["role"] != "assistant" or split(chat[-1]["content"], False).reasoning is None:
            raise DstoolsError(
                f"{path}: the first row has no answer with one think block", SAMPLE_HINT
            )
        return chat
    raise DstoolsError(f"{path}: has no rows", SAMPLE_HINT)


SAMPLE_HINT = f'a row is {{"messages": [..., {{"role": "assistant", "content": "{OPEN}..."}}]}}'


def conversation(row: Record, where: str) -> Messages:
    """Return the messages of a row, with the answer if it has one."""
    try:
        prompt = convert(row)
    except BadRowError as error:
        raise DstoolsError(f"{where}: {error}", SAMPLE_HINT) from None
    answer = prompt.reference
    if isinstance(row.get("reasoning"), str) and isinstance(row.get("answer"), str):
        opener = f"{OPEN}\n" if row.get("prefilled_think") else OPEN  # a record of a run
        answer = f"{opener}{row['reasoning']}{CLOSE}{row['answer']}"
    return [*prompt.messages, *([{"role": "assistant", "content": answer}] if answer else [])]


def _sources(path: Path) -> dict[str, Messages]:
    """Return the conversations of a file by their first question."""
    chats = [conversation(row, f"{path}: line {number}") for number, row in source_rows(path)]
    first = [next(turn for turn in chat if turn["role"] == "user") for chat in chats]
    return {asked["content"].strip(): chat for asked, chat in zip(first, chats, strict=True)}


# ------------------------------------------------------------------------------------- the result


def _case(tokenizer: Any, name: str, row: Trained) -> Case:
    trained = [label for label in row.labels if label != IGNORED]
    return Case(name, len(row.ids), len(trained), tokenizer.decode(trained))


def _finding(code: str, where: str, message: str, hint: str = "") -> Finding:
    level: Level = "warning" if code in MILD else "error"
    return Finding(level, code, where, message, hint or HINTS.get(code, ""))


def _about(tokenizer: Any, end: int, folder: Path, trainer: str) -> list[Finding]:
    """Return what harms every row: a fault of the tokenizer, and MTP layers that are dropped."""
    try:
        check_tokenizer(tokenizer, end, folder, reasoning=True)
    except DstoolsError as error:
        fault = Finding.error("tokenizer", str(folder), str(error), error.hint)
        return [fault, *_mtp(folder, trainer)]
    return _mtp(folder, trainer)


def _mtp(folder: Path, trainer: str) -> list[Finding]:
    if not names_mtp(folder):
        return []
    what = f"a full or merged model of {trainer} lacks them, and its config.json names them"
    return [Finding.warning("mtp-dropped", "MTP layers", what, HINTS["mtp-dropped"])]


def _rows_of_trl(
    settings: dict[str, Any], tokenizer: Any, samples: dict[str, Messages]
) -> tuple[list[tuple[str, Messages, Trained]], list[Finding]]:
    """Return name, conversation and row of each case, and what TRL refuses or does not read.

    Changes `tokenizer` into the one that TRL saves for serving.
    """
    from dstools_distill.tokens import trl_rows

    forms: list[trl_rows.Form] = ["messages", "prompt-completion"]
    if settings.get("assistant_only_loss"):
        forms = ["messages"]
    elif settings.get("completion_only_loss"):
        forms = ["prompt-completion"]
    rows: list[tuple[str, Messages, Trained]] = []
    findings = trl_rows.findings(settings)
    chats = list(samples.values())
    for form in forms:
        try:
            made = trl_rows.trl_rows(tokenizer, settings, form, chats)
        except DstoolsError as error:
            findings.append(Finding.error("refused", f"as {form}", str(error), error.hint))
            continue
        names = [f"as {form}, {name}" for name in samples]
        rows += zip(names, chats, made, strict=True)
    return rows, findings


def _packing(settings: dict[str, Any]) -> list[Finding]:
    """Return what TRL's packing would mix up."""
    kind = settings.get("packing_strategy", "bfd") if settings.get("packing") else ""
    attention = str(settings.get("attn_implementation", "unset"))
    if kind == "wrapped":
        what = "wrapped cuts rows and lets them see each other"
        return [Finding.error("packing", "packing_strategy", what, PACKING)]
    if kind == "bfd" and "flash" not in attention:
        what = f"packing with attention {printable(attention)} may let rows see each other"
        return [Finding.warning("packing", "packing", what, PACKING)]
    return []
