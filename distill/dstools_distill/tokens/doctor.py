"""The doctor: what another trainer trains on, and what of a trace it loses.

TRL's own code is run. axolotl and LLaMA-Factory are judged by the data that they prepare.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError, Finding, Level, counted, merged, printable
from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_converters.model.tokenizer import Messages
from dstools_distill.data.sources import Reading, questions
from dstools_distill.tokens import trl_rows
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.prepared import parts
from dstools_distill.tokens.render import check_tokenizer
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.turns import Reader

TRAINERS = {  # keys that no trainer after it has, and what prepares the data: command, key, folder
    "LLaMA-Factory": (
        ("cutoff_len", "template", "stage", "finetuning_type", "dataset_dir"),
        ("llamafactory-cli train {} tokenized_path={}", "tokenized_path", "prepared"),
    ),
    "axolotl": (
        ("base_model", "sequence_len", "sample_packing"),
        ("axolotl preprocess {}", "dataset_prepared_path", "last_run_prepared"),
    ),
    "TRL": (("assistant_only_loss", "dataset_name", "max_seq_length", "model_name_or_path"), ()),
}
NOT_SFT = (  # keys of other trainings
    *("stage", "rl", "reward_model", "process_reward_model", "reward_funcs", "num_generations"),
    "beta",
)
STEP = "Wait, 2+9=11, so I write 1 and carry 1. "
RUN_ROWS = 1000  # of --data that TRL is run on
SHOWN_ROWS = 2  # of a data set
MILD = (  # codes of faults that lose nothing
    *("prompt-trained", "prompt-differs", "trained-behind-end", "text-changed", "no-trace"),
    "history-not-trained",
)
HINTS = {
    "trace-lost": "`dstools distill render` joins prompt and trace without the template",
    "truncated": "raise the limit above your longest row, or drop long rows; never cut one",
    "end-missing": "train on the token that ends a turn in the template",
    "start-missing": "train on the opening tag, or use a template that shows it when served",
    "prompt-trained": "mask it: set assistant_only_loss, or give prompt and completion apart",
    "prompt-differs": "make everything before the first label what serving shows",
    "padding-trained": f"set them to {IGNORED} where attention_mask is 0",
    "packing": "pack by bfd with flash attention, with neat_packing, or not at all",
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


def diagnose(tokenizer: Path, config: Path | None, data: Path | None) -> Diagnosis:
    """Return what the trainer that `config` is for would make of conversations.

    tokenizer: the folder that is served. config: YAML or JSON of TRL (its SFTConfig or script
    arguments), which is run; LLaMA-Factory's and axolotl's give one error, with the command that
    prepares their data. None: TRL's defaults. Relative paths in it start from the working folder.
    data: see `conversations`; None: a short and a long sample of our own. Raises DstoolsError for
    files that cannot be read, for other trainers and trainings, and if neither tokenizer nor config
    has a usable chat template.
    """
    settings = _read_config(config) if config else {}
    trainer = _trainer(config, settings) if config else "TRL"
    if config and TRAINERS[trainer][1]:
        told = [*_mtp(tokenizer), _not_checked(config, trainer, settings, tokenizer)]
        return Diagnosis(trainer, "not run", [], told)
    chats, findings = conversations(data) if data else (OWN, [])
    chats, loaded = chats[:RUN_ROWS], load_tokenizer(tokenizer)
    findings += trl_rows.findings(settings)
    with TemporaryDirectory() as folder:
        try:
            trl_rows.prepare(loaded, settings, chats, Path(folder))
        except DstoolsError as error:
            findings.append(Finding.error("refused", "TRL", str(error), error.hint))
            return Diagnosis(trainer, "run", [], [*findings, *_mtp(tokenizer)])
        return _judged((trainer, "run"), tokenizer, loaded, Path(folder), chats, findings)


def diagnose_prepared(tokenizer: Path, prepared: Path, data: Path | None) -> Diagnosis:
    """Return what training on a tokenized data set would lose, see `prepared.parts`.

    tokenizer: the folder that is served. data: the rows that the data set was made of, see
    `conversations`, to tell lost traces and rows. Raises DstoolsError for what cannot be read.
    """
    chats, notes = conversations(data) if data else ([], [])
    loaded = load_tokenizer(tokenizer)
    return _judged(("prepared data", "read"), tokenizer, loaded, prepared, chats, notes)


def text(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text for a terminal."""
    lines = [f"{diagnosis.trainer} ({diagnosis.how})"]
    for case in diagnosis.cases:
        lines.append(f"\n{case.name}: {case.trained_tokens} of {case.tokens} tokens are trained on")
        start, end = case.trained_on[:200], case.trained_on[200:][-200:]
        lines.append(f"  {start!r} ... {end!r}" if end else f"  {start!r}")
    lines.append("")
    for finding in diagnosis.findings:
        lines.append(f"{finding.level}: {finding.where}: {finding.message}")
        lines += [f"  {finding.hint}"] if finding.hint else []
    if not any(finding.level == "error" for finding in diagnosis.findings):
        lines.append("nothing would be lost")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------- the input


def _sample(question: str, trace: str) -> Messages:
    reply = f"{OPEN}\n{trace}\n{CLOSE}\n\nThe answer is 41."
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


OWN = [_sample("What is 12 + 29?", STEP.strip()), _sample("12 + 29?", (STEP * 250).strip())]


def conversations(path: Path) -> tuple[list[Messages], list[Finding]]:
    """Return the conversations of a file, in any form that `prompts` reads, with the answer.

    Rows without one are counted in a note. Raises DstoolsError if all of them are.
    """
    reading = Reading(max_bad=sys.maxsize)
    asked = [question for _, _, question in questions(path, "auto", reading)]
    chats = [
        [*question.messages, {"role": "assistant", "content": question.reference}]
        for question in asked
        if question.reference
    ]
    odd = reading.bad + len(asked) - len(chats)
    why = f"no question with an answer in {counted(odd, 'row')}"
    why += f", e.g. {reading.first_bad}" if reading.bad else ""
    if not chats:
        hint = f'a row is {{"messages": [..., {{"role": "assistant", "content": "{OPEN}..."}}]}}'
        raise DstoolsError(f"{path}: {why}", hint)
    return chats, [Finding.note("not-read", str(path), why)] if odd else []


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


def _trainer(path: Path, settings: dict[str, Any]) -> str:
    """Return the trainer whose keys a configuration has."""
    named = [name for name, (keys, _) in TRAINERS.items() if settings.keys() & keys]
    if not named and trl_rows.unknown_keys(settings):
        keys = printable(", ".join(settings))
        raise DstoolsError(
            f"{path}: is not a configuration of {', '.join(TRAINERS)}, by its keys {keys}",
            "for another trainer, save its tokenized rows and give them with --prepared",
        )
    for key in NOT_SFT:
        if settings.get(key) not in (None, False, "sft"):
            what = printable(f"{key}: {settings[key]}")
            raise DstoolsError(
                f"{path}: is not of supervised fine-tuning, by its {what}",
                "the doctor reads configurations of supervised fine-tuning",
            )
    return named[0] if named else "TRL"


def _not_checked(path: Path, trainer: str, settings: dict[str, Any], tokenizer: Path) -> Finding:
    """Return the error for a trainer that is not run, with the command that prepares its data."""
    command, key, folder = TRAINERS[trainer][1]
    folder = printable(str(settings.get(key) or folder))
    then = f"dstools distill doctor {tokenizer} --prepared {folder}"
    what = f"{trainer} is not run here: let it prepare its data, and have that checked"
    return Finding.error("not-checked", str(path), what, f"{command.format(path, folder)}; {then}")


# ------------------------------------------------------------------------------------ the judgement


def _judged(
    made_by: tuple[str, str],
    folder: Path,
    tokenizer: Any,
    prepared: Path,
    chats: list[Messages],
    findings: list[Finding],
) -> Diagnosis:
    """Return the diagnosis of a tokenized data set, beside the conversations it was made of."""
    reader = Reader(tokenizer)
    sources: dict[str, list[Messages]] = {}
    for chat in chats:
        asked = next(turn["content"].strip() for turn in chat if turn["role"] == "user")
        sources.setdefault(asked, []).append(chat)
    cases, used, plain, count = list[Case](), set[str](), list[str](), 0

    def tell(code: str, where: str, message: str, hint: str = "") -> None:
        level: Level = "warning" if code in MILD else "error"
        findings.append(Finding(level, code, where, message, hint or HINTS.get(code, "")))

    try:
        check_tokenizer(tokenizer, reader.end, folder, reasoning=True)
    except DstoolsError as error:
        tell("tokenizer", str(folder), str(error), error.hint)
    for part in parts(prepared, len(tokenizer)):
        count += 1
        ids, labels = part.row
        if len(cases) < SHOWN_ROWS:
            trained = [label for label in labels if label != IGNORED]
            cases.append(Case(part.where, len(ids), len(trained), tokenizer.decode(trained)))
        if not part.is_apart:
            what = "attention_mask does not part it from other conversations of its row"
            findings.append(Finding.warning("packing", part.where, what, HINTS["packing"]))
        if part.padding:
            tell("padding-trained", part.where, f"{part.padding} labels of padding are trained on")
        asked = reader.question(ids, sources)
        used.add(asked)
        choices = [list(reader.faults(part.row, chat)) for chat in sources.get(asked, [None])]
        for fault in min(choices, key=len):
            tell(fault.code, part.where, fault.message)
        if not chats and not reader.has_trace(ids):
            plain.append(part.where)
    if not count:
        tell("left-out", "all rows", "there are none")
    elif len(plain) == count:
        tell("trace-lost", "all rows", "none has a trace", HINTS["no-trace"])
    else:
        for where in plain:
            tell("no-trace", where, "has no trace")
    for asked in sources.keys() - used:
        tell("left-out", "data", f"no tokenized row holds the question {printable(asked)!r}")
    how = f"{counted(count, 'conversation')} {made_by[1]}"
    return Diagnosis(made_by[0], how, cases, merged([*findings, *_mtp(folder)]))


def _mtp(folder: Path) -> list[Finding]:
    if not names_mtp(folder):
        return []
    what = "a full or merged model of the trainer lacks them, and its config.json names them"
    return [Finding.warning("mtp-dropped", "MTP layers", what, HINTS["mtp-dropped"])]
