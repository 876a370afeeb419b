"""The doctor: what another trainer would train on, and what of a trace it would lose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError, Finding, Level, printable
from dstools_converters.model.reasoning import CLOSE, OPEN, opens_think, split
from dstools_converters.model.tokenizer import Messages, answer_form, prompt_ids
from dstools_distill import records
from dstools_distill.data.columns import BadRowError
from dstools_distill.data.forms import convert
from dstools_distill.records import Record
from dstools_distill.tokens import axolotl_rows, llama_factory_rows, trl_rows
from dstools_distill.tokens.invariant import IGNORED, Target, Trained, shown, violations
from dstools_distill.tokens.render import check_tokenizer
from dstools_distill.tokens.templates import load_tokenizer

TRAINERS = {  # in this order: TELLING has keys that no trainer after it shares
    "LLaMA-Factory": llama_factory_rows,
    "axolotl": axolotl_rows,
    "TRL": trl_rows,
}
STEP = "Wait, 2+9=11, so I write 1 and carry 1. "
ASK = {"role": "user", "content": "What is 12 + 29?"}
# codes of faults that lose nothing
MILD = ("prompt-trained", "prompt-differs", "trained-behind-end", "text-changed")
HINTS = {
    "trace-lost": "`dstools distill render` joins prompt and trace without the template",
    "truncated": "raise the limit above your longest row, or drop long rows; never cut one",
    "end-missing": "train on the token that ends a turn in the template",
    "prompt-trained": "mask it: set assistant_only_loss, or give prompt and completion apart",
    "prompt-differs": "make everything before the first label what serving shows",
    "mtp-dropped": "`dstools distill sft` carries them over, `dstools distill mtp` fits them",
}


class Sample(NamedTuple):
    """A conversation that ends with an assistant's message, trace included."""

    name: str
    messages: Messages


@dataclass(frozen=True)
class Case:
    """One sample as the trainer trains on it."""

    name: str
    tokens: int  # 0 if the row is left out
    trained_tokens: int
    trained_on: str  # decoded, with special tokens


@dataclass(frozen=True)
class Diagnosis:
    """What a trainer would do; a finding of level "error" is a loss."""

    trainer: str
    how: str  # whether the trainer was run or its rows derived
    cases: list[Case]
    findings: list[Finding]


def diagnose(tokenizer: Path, config: Path | None, sample: Path | None) -> Diagnosis:
    """Return what the trainer that `config` is for would make of a sample.

    tokenizer: a folder. config: YAML or JSON of TRL (its SFTConfig or script arguments),
    LLaMA-Factory or axolotl, recognised by its keys; None: TRL's defaults. Relative paths in it
    start from the working folder. sample: a JSONL file whose first row is used, in any form that
    `prompts` reads, with the answer; None: a short and a long sample of our own. TRL is run, with
    messages and with prompt and completion; rows of the others are derived. Keys that may change
    the result but are ignored become notes. Raises DstoolsError for files that cannot be read, and
    if neither tokenizer nor config has a usable chat template.
    """
    settings = _read_config(config) if config else {}
    trainer = _which(config, settings) if config else "TRL"
    samples = [_read_sample(sample)] if sample else OWN
    loaded = load_tokenizer(tokenizer)
    rows, findings = _rows(trainer, settings, loaded, tokenizer, samples)
    end = answer_form(loaded).end
    try:
        check_tokenizer(loaded, end, tokenizer, reasoning=True)
    except DstoolsError as error:
        findings.append(Finding.error("tokenizer", str(tokenizer), str(error), error.hint))
    findings += _packing(trainer, settings)
    if names_mtp(tokenizer):
        what = f"a full or merged model of {trainer} lacks them, and its config.json names them"
        findings.append(Finding.warning("mtp-dropped", "MTP layers", what, HINTS["mtp-dropped"]))
    findings += _ignored_keys(trainer, settings)
    cases: list[Case] = []
    for name, used, row in rows:
        if row is None:
            cases.append(Case(name, 0, 0, ""))
            what = "the row is over the length limit and left out; only a count shows it"
            findings.append(Finding.warning("left-out", name, what, HINTS["truncated"]))
            continue
        trained = [label for label in row.labels if label != IGNORED]
        cases.append(Case(name, len(row.ids), len(trained), loaded.decode(trained)))
        target = _target(loaded, end, used)
        for fault in violations(loaded.decode, row.ids, row.labels, target):
            level: Level = "warning" if fault.code in MILD else "error"
            hint = HINTS.get(fault.code, "")
            findings.append(Finding(level, fault.code, name, fault.message, hint))
    how = "run, up to its batches" if trainer == "TRL" else "derived from its source, not run"
    return Diagnosis(trainer, how, cases, findings)


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


def _sample(name: str, trace: str) -> Sample:
    content = f"{OPEN}\n{trace}\n{CLOSE}\n\nThe answer is 41."
    return Sample(name, [ASK, {"role": "assistant", "content": content}])


OWN = [_sample("a short trace", STEP.strip()), _sample("a long trace", (STEP * 250).strip())]


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
    return settings


def _which(path: Path, settings: dict[str, Any]) -> str:
    """Return the trainer whose keys a configuration has."""
    for trainer, module in TRAINERS.items():
        if any(key in settings for key in module.TELLING):
            return trainer
    raise DstoolsError(
        f"{path}: has no key of {', '.join(TRAINERS)}", "is it the configuration of a trainer?"
    )


def _read_sample(path: Path) -> Sample:
    """Return the conversation in the first row of a JSONL file."""
    for row in records.read(path):
        try:
            prompt = convert(row)
        except BadRowError as error:
            raise DstoolsError(f"{path}: the first row: {error}", SAMPLE_HINT) from None
        answer = _answer(row) or prompt.reference
        if not answer or split(answer, prefilled=False).reasoning is None:
            raise DstoolsError(
                f"{path}: the first row has no answer with one think block", SAMPLE_HINT
            )
        reply = {"role": "assistant", "content": answer}
        return Sample("the first row", [*prompt.messages, reply])
    raise DstoolsError(f"{path}: has no rows", SAMPLE_HINT)


SAMPLE_HINT = f'a row is {{"messages": [..., {{"role": "assistant", "content": "{OPEN}..."}}]}}'


def _answer(row: Record) -> str:
    """Return the whole answer of a record of a distill run; "" for any other row."""
    if not (isinstance(row.get("reasoning"), str) and isinstance(row.get("answer"), str)):
        return ""
    opener = f"{OPEN}\n" if row.get("prefilled_think") else OPEN
    return f"{opener}{row['reasoning']}{CLOSE}{row['answer']}"


# ------------------------------------------------------------------------------------- the result


Rows = list[tuple[str, Sample, Trained | None]]  # name, sample and row of each case


def _rows(
    trainer: str, settings: dict[str, Any], tokenizer: Any, folder: Path, samples: list[Sample]
) -> tuple[Rows, list[Finding]]:
    """Return the rows that are trained on, and findings about what the trainer refuses.

    Changes `tokenizer`, which is from `folder`, into the one that the trainer saves for serving.
    """
    if trainer == "TRL":
        return _rows_of_trl(settings, tokenizer, samples)
    if trainer == "LLaMA-Factory":
        row_of = llama_factory_rows.llama_factory_row
        return [(s.name, s, row_of(tokenizer, settings, s.messages)) for s in samples], []
    rows: Rows = []
    axolotl_rows.set_axolotl_template(tokenizer, settings)
    entries = axolotl_rows.axolotl_entries(settings)
    for n, entry in entries.items():
        own = load_tokenizer(folder)
        axolotl_rows.set_axolotl_template(own, entry)
        of = f"as datasets[{n}], " if len(entries) > 1 else ""
        for s in samples:
            rows.append((of + s.name, s, axolotl_rows.axolotl_row(own, entry, s.messages)))
    return rows, []


def _rows_of_trl(
    settings: dict[str, Any], tokenizer: Any, samples: list[Sample]
) -> tuple[Rows, list[Finding]]:
    forms: list[trl_rows.Form] = ["messages", "prompt-completion"]
    if settings.get("assistant_only_loss"):
        forms = ["messages"]
    elif settings.get("completion_only_loss"):
        forms = ["prompt-completion"]
    rows: Rows = []
    refused: list[Finding] = []
    for form in forms:
        try:
            made = trl_rows.trl_rows(tokenizer, settings, form, [s.messages for s in samples])
        except DstoolsError as error:
            refused.append(Finding.error("refused", f"as {form}", str(error), error.hint))
            continue
        rows += [(f"as {form}, {s.name}", s, row) for s, row in zip(samples, made, strict=True)]
    return rows, refused


def _target(tokenizer: Any, end: int, sample: Sample) -> Target:
    """Return what a sample should train on."""
    prompt = prompt_ids(tokenizer, sample.messages[:-1])
    whole = sample.messages[-1]["content"]
    trace = split(whole, prefilled=False).reasoning or ""
    if opens_think(prompt_text := tokenizer.decode(prompt)):
        opened = prompt_text[prompt_text.rindex(OPEN) + len(OPEN) :]
        whole = whole.removeprefix(OPEN).removeprefix(opened)
    return Target(prompt, whole, trace.strip("\n"), end)


def _packing(trainer: str, settings: dict[str, Any]) -> list[Finding]:
    """Return what the packing that `settings` ask for would mix up."""
    if trainer == "TRL" and settings.get("packing"):
        kind = settings.get("packing_strategy", "bfd")
        attention = str(settings.get("attn_implementation", "unset"))
        if kind == "wrapped":
            return [_mixes("packing_strategy", "wrapped cuts rows and lets them see each other")]
        if kind == "bfd" and "flash" not in attention:
            what = f"packing with attention {shown(attention)} may let rows see each other"
            return [Finding.warning("packing", "packing", what)]
    if trainer == "LLaMA-Factory" and settings.get("packing") and not settings.get("neat_packing"):
        return [_mixes("packing", "without neat_packing rows see each other")]
    if (
        trainer == "axolotl"
        and settings.get("sample_packing")
        and not settings.get("flash_attention", True)
    ):
        return [_mixes("sample_packing", "without flash_attention rows see each other")]
    return []


def _ignored_keys(trainer: str, settings: dict[str, Any]) -> list[Finding]:
    """Return findings about keys that are ignored: here, or by the trainer where they are."""
    keys = [key for key in TRAINERS[trainer].UNREAD if settings.get(key)]
    misplaced: list[Finding] = []
    if trainer == "axolotl":
        keys += axolotl_rows.unread_of_entries(settings)
        what, hint = "axolotl reads this only in an entry of datasets", "move it there"
        misplaced = [
            Finding.warning("misplaced", key, what, hint)
            for key in axolotl_rows.OF_ENTRIES
            if key in settings
        ]
    what = "affects ids, masks or length, and is ignored here"
    return [Finding.note("not-read", key, what) for key in keys] + misplaced


def _mixes(where: str, what: str) -> Finding:
    hint = "pack by bfd with flash attention, or not at all"
    return Finding.error("packing", where, what, hint)
