"""What somebody's trainer would really train on, and what of a trace it would lose."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, Finding, Level, printable
from dstools_distill import records
from dstools_distill.data.forms import BadRowError, convert
from dstools_distill.records import CLOSE, OPEN, Record
from dstools_distill.tokens.invariant import IGNORED, Target, shown, violations
from dstools_distill.tokens.render import check_tokenizer
from dstools_distill.tokens.stacks import (
    AXOLOTL_OF_ENTRIES,
    Form,
    Messages,
    Trained,
    axolotl_entries,
    axolotl_row,
    axolotl_template,
    llama_factory_row,
    trl_rows,
    unread,
)
from dstools_distill.tokens.templates import answer_form, load_tokenizer, opens_think, prompt_ids

TELLING = {  # keys that none of those below has; `datasets` and `chat_template` are of several
    "LLaMA-Factory": ("cutoff_len", "template", "stage", "finetuning_type", "dataset_dir"),
    "axolotl": ("base_model", "sequence_len", "sample_packing"),  # the first is required
    "TRL": (
        "chat_template_path",
        "max_length",
        "assistant_only_loss",
        "completion_only_loss",
        "packing",
        "packing_strategy",
        "dataset_name",
        "model_name_or_path",
        "per_device_train_batch_size",
        "learning_rate",
    ),
}
STEP = "Wait, 2+9=11, so I write 1 and carry 1. "
ASK = {"role": "user", "content": "What is 12 + 29?"}
MILD = ("prompt-trained", "prompt-differs", "trained-behind-end", "text-changed")
HINTS = {
    "trace-lost": "`dstools distill render` puts the trace behind the prompt, past the template",
    "truncated": "raise the limit over your longest row, or drop long rows; never cut one",
    "end-missing": "the token that ends a turn in the template must be trained on",
    "prompt-trained": "mask it: assistant_only_loss, or prompt and completion apart",
    "prompt-differs": "what serving shows must stand before the first label",
}


class Sample(NamedTuple):
    """A conversation that ends with an assistant's message, trace and all."""

    name: str
    messages: Messages


@dataclass(frozen=True)
class Case:
    """One sample, as one trainer trains on it."""

    name: str
    tokens: int  # 0: the row is left out
    trained_tokens: int
    trained_on: str  # decoded, special tokens kept


@dataclass(frozen=True)
class Diagnosis:
    """What a trainer would do; an "error" among the findings is a loss."""

    trainer: str
    how: str  # that it was run, or that it was derived
    cases: list[Case]
    findings: list[Finding]


def diagnose(tokenizer: Path, config: Path | None, sample: Path | None) -> Diagnosis:
    """Return what the trainer of `config` makes of a sample with the tokenizer in a folder.

    config: YAML or JSON of TRL (its SFTConfig or script arguments), LLaMA-Factory or axolotl, told apart
    by their keys; None: TRL's defaults. Relative paths in it start from the working folder. sample: a JSONL
    of which the first row is taken, in any form that `prompts` reads, with the answer; None: a short and a
    long sample of ours. TRL is run, as messages and as prompt and completion; the others are derived. Keys
    that may change what is told, and are not read, are notes. Raises DstoolsError for files that cannot be
    read, and for a tokenizer that has no usable chat template and gets none from the config.
    """
    said = _read_config(config) if config else {}
    trainer = _which(config, said) if config else "TRL"
    samples = [_read_sample(sample)] if sample else OWN
    read = load_tokenizer(tokenizer)
    rows, findings = _rows(trainer, said, read, tokenizer, samples)
    end = answer_form(read).end
    try:
        check_tokenizer(read, end, tokenizer, reasoning=True)
    except DstoolsError as error:
        findings.append(Finding.error("tokenizer", str(tokenizer), str(error), error.hint))
    findings += _packing(trainer, said)
    findings += _not_taken(trainer, said)
    cases: list[Case] = []
    for name, each, row in rows:
        if row is None:
            cases.append(Case(name, 0, 0, ""))
            what = "the row is over the length limit and left out, which only a count tells"
            findings.append(Finding.warning("left-out", name, what, HINTS["truncated"]))
            continue
        trained = [label for label in row.labels if label != IGNORED]
        cases.append(Case(name, len(row.ids), len(trained), read.decode(trained)))
        for wrong in violations(read.decode, row.ids, row.labels, _target(read, end, each)):
            level: Level = "warning" if wrong.code in MILD else "error"
            hint = HINTS.get(wrong.code, "")
            findings.append(Finding(level, wrong.code, name, wrong.message, hint))
    how = "run, up to its batches" if trainer == "TRL" else "derived from its source, not run"
    return Diagnosis(trainer, how, cases, findings)


def text(found: Diagnosis) -> str:
    """Return a diagnosis for a person."""
    lines = [f"{found.trainer} ({found.how})"]
    for case in found.cases:
        lines.append(f"\n{case.name}: {case.trained_tokens} of {case.tokens} tokens are trained on")
        if case.trained_on:
            lines.append(f"  {_ends(case.trained_on)}")
    lines.append("")
    for each in found.findings:
        lines.append(f"{each.level}: {each.where}: {each.message}")
        lines += [f"  {each.hint}"] if each.hint else []
    if not any(each.level == "error" for each in found.findings):
        lines.append("nothing would be lost")
    return "\n".join(lines)


def _ends(said: str) -> str:
    """Return a text, or where it is long its beginning and its end."""
    return repr(said) if len(said) <= 400 else f"{said[:200]!r} ... {said[-200:]!r}"


# ----------------------------------------------------------------------------- what is asked about


def _sample(name: str, trace: str) -> Sample:
    content = f"{OPEN}\n{trace}\n{CLOSE}\n\nThe answer is 41."
    return Sample(name, [ASK, {"role": "assistant", "content": content}])


OWN = [_sample("a short trace", STEP.strip()), _sample("a long trace", (STEP * 250).strip())]


def _read_config(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML or JSON file; YAML reads both."""
    import yaml  # type: ignore[import-untyped]

    try:
        said = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DstoolsError(f"{path}: {error.strerror}", "is the path right?") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))
        raise DstoolsError(f"{path}: is no YAML: {reason}", "mend it") from None
    if not isinstance(said, dict):
        raise DstoolsError(f"{path}: holds no keys", "name the configuration of a trainer")
    return said


def _which(path: Path, said: dict[str, Any]) -> str:
    for trainer, keys in TELLING.items():
        if any(key in said for key in keys):
            return trainer
    raise DstoolsError(
        f"{path}: is of none of {', '.join(TELLING)}", "is it the configuration of a trainer?"
    )


def _read_sample(path: Path) -> Sample:
    """Return the conversation in the first row of a JSONL file."""
    for row in records.read(path):
        try:
            asked = convert(row)
        except BadRowError as error:
            raise DstoolsError(f"{path}: the first row: {error}", SAMPLE_HINT) from None
        answer = _answer(row) or asked.reference
        if not answer or records.split(answer, prefilled=False).reasoning is None:
            raise DstoolsError(
                f"{path}: the first row has no answer with one think block", SAMPLE_HINT
            )
        said = {"role": "assistant", "content": answer}
        return Sample("the first row", [*asked.messages, said])
    raise DstoolsError(f"{path}: holds no row", SAMPLE_HINT)


SAMPLE_HINT = f'a row is {{"messages": [..., {{"role": "assistant", "content": "{OPEN}..."}}]}}'


def _answer(row: Record) -> str:
    """Return the whole answer of a record of ours, or ""."""
    if not (isinstance(row.get("reasoning"), str) and isinstance(row.get("answer"), str)):
        return ""
    opener = f"{OPEN}\n" if row.get("prefilled_think") else OPEN
    return f"{opener}{row['reasoning']}{CLOSE}{row['answer']}"


# ----------------------------------------------------------------------------- what comes of it


Rows = list[tuple[str, Sample, Trained | None]]  # name, sample and row of each case


def _rows(
    trainer: str, said: dict[str, Any], read: Any, folder: Path, samples: list[Sample]
) -> tuple[Rows, list[Finding]]:
    """Return the rows that are trained on, and what the trainer refuses.

    read: the tokenizer in `folder`; it becomes the one that the trainer saves, which serving then has.
    """
    if trainer == "LLaMA-Factory":
        return [(s.name, s, llama_factory_row(read, said, s.messages)) for s in samples], []
    found: Rows = []
    if trainer == "axolotl":
        axolotl_template(read, said)
        entries = axolotl_entries(said)
        for n, entry in entries.items():
            tokenizer = load_tokenizer(folder)
            axolotl_template(tokenizer, entry)
            of = f"as datasets[{n}], " if len(entries) > 1 else ""
            found += [(of + s.name, s, axolotl_row(tokenizer, entry, s.messages)) for s in samples]
        return found, []
    forms: list[Form] = ["messages", "prompt-completion"]
    if said.get("assistant_only_loss"):
        forms = ["messages"]
    elif said.get("completion_only_loss"):
        forms = ["prompt-completion"]
    refused: list[Finding] = []
    for form in forms:
        try:
            rows = trl_rows(read, said, form, [s.messages for s in samples])
        except DstoolsError as error:
            refused.append(Finding.error("refused", f"as {form}", str(error), error.hint))
            continue
        found += [(f"as {form}, {s.name}", s, row) for s, row in zip(samples, rows, strict=True)]
    return found, refused


def _target(tokenizer: Any, end: int, sample: Sample) -> Target:
    """Return what a sample should train on."""
    prompt = prompt_ids(tokenizer, sample.messages[:-1])
    whole = sample.messages[-1]["content"]
    trace = records.split(whole, prefilled=False).reasoning or ""
    if opens_think(shows := tokenizer.decode(prompt)):
        whole = whole.removeprefix(OPEN).removeprefix(shows[shows.rindex(OPEN) + len(OPEN) :])
    return Target(prompt, whole, trace.strip("\n"), end)


def _packing(trainer: str, said: dict[str, Any]) -> list[Finding]:
    """Return what the packing that is asked for would mix up."""
    if trainer == "TRL" and said.get("packing"):
        kind = said.get("packing_strategy", "bfd")
        if kind == "wrapped":
            return [
                _mixes("packing_strategy", "wrapped cuts rows anywhere, and rows see each other")
            ]
        if kind == "bfd" and "flash" not in str(said.get("attn_implementation", "")):
            what = f"packing with attention {shown(str(said.get('attn_implementation', 'unset')))}"
            return [Finding.warning("packing", "packing", f"{what} may let rows see each other")]
    if trainer == "LLaMA-Factory" and said.get("packing") and not said.get("neat_packing"):
        return [_mixes("packing", "without neat_packing rows see each other")]
    if (
        trainer == "axolotl"
        and said.get("sample_packing")
        and not said.get("flash_attention", True)
    ):
        return [_mixes("sample_packing", "without flash_attention rows see each other")]
    return []


def _not_taken(trainer: str, said: dict[str, Any]) -> list[Finding]:
    """Return the keys that may change what is told here, and those that change nothing where they stand."""
    what = "bears on ids, masks or length, and is not taken into account here"
    found = [Finding.note("not-read", key, what) for key in unread(trainer, said)]
    if trainer == "axolotl":
        what = "axolotl reads this in an entry of datasets alone"
        hint = "move it there"
        found += [
            Finding.warning("misplaced", key, what, hint)
            for key in AXOLOTL_OF_ENTRIES
            if key in said
        ]
    return found


def _mixes(where: str, what: str) -> Finding:
    return Finding.error("packing", where, what, "pack by bfd with flash attention, or not at all")
