"""The doctor: what another trainer trains on, and what of a trace it loses.

TRL's own code is run. axolotl and LLaMA-Factory are judged by the data that they prepare.
"""

import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError, Finding, counted, merged, printable
from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_converters.model.tokenizer import Messages
from dstools_distill.data.sources import Reading, questions
from dstools_distill.tokens import trl_rows
from dstools_distill.tokens.faults import finding
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.prepared import parts
from dstools_distill.tokens.render import ROWS, check_tokenizer
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.turns import Reader, Row, has_trace, replies

TRAINERS = {  # keys that no trainer after it has
    "LLaMA-Factory": ("cutoff_len", "template", "stage", "finetuning_type", "dataset_dir"),
    "axolotl": ("base_model", "sequence_len", "sample_packing"),
    "TRL": ("assistant_only_loss", "dataset_name", "max_seq_length", "model_name_or_path"),
}
PREPARE = {  # the key of the folder of prepared data, its default, and the command that writes it
    "LLaMA-Factory": ("tokenized_path", "prepared", "llamafactory-cli train {} tokenized_path={}"),
    "axolotl": ("dataset_prepared_path", "last_run_prepared", "axolotl preprocess {}"),
}
NOT_SFT = (  # keys of other trainings
    "stage",
    "rl",
    "reward_model",
    "process_reward_model",
    "reward_funcs",
    "num_generations",
    "beta",
    "pretraining_dataset",
)
STEP = "Wait, 2+9=11, so I write 1 and carry 1. "
RUN_ROWS = 1000  # of --data that TRL is run on
SHOWN_ROWS = 2  # of a data set


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
    findings = _mtp(tokenizer)
    if config and trainer in PREPARE:
        findings.append(_not_checked(config, trainer, settings, tokenizer))
        return Diagnosis(trainer, "not run", [], findings)
    chats, notes = conversations(data) if data else (OWN, [])
    chats, loaded = chats[:RUN_ROWS], load_tokenizer(tokenizer)
    findings += notes + trl_rows.findings(settings)
    with TemporaryDirectory() as folder:
        try:
            trl_rows.prepare(loaded, settings, chats, Path(folder))
        except DstoolsError as error:
            findings.append(finding("refused", str(config or "TRL"), str(error), error.hint))
            return Diagnosis(trainer, "run", [], findings)
        return _judged(trainer, "run", tokenizer, loaded, Path(folder), chats, findings)


def diagnose_prepared(tokenizer: Path, prepared: Path, data: Path | None) -> Diagnosis:
    """Return what training on a tokenized data set would lose, see `prepared.parts`.

    tokenizer: the folder that is served. data: the rows that the data set was made of, see
    `conversations`, to tell lost traces and rows. Raises DstoolsError for what cannot be read.
    """
    chats, notes = conversations(data) if data else ([], [])
    is_own = prepared.name == ROWS or (prepared / ROWS).exists()  # of `dstools distill render`
    loaded, findings = load_tokenizer(tokenizer), [*([] if is_own else _mtp(tokenizer)), *notes]
    return _judged("prepared data", "read", tokenizer, loaded, prepared, chats, findings)


def text(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text for a terminal."""
    lines = [f"{diagnosis.trainer} ({diagnosis.how})"]
    for case in diagnosis.cases:
        lines.append(f"\n{case.name}: {case.trained_tokens} of {case.tokens} tokens are trained on")
        start, end = case.trained_on[:200], case.trained_on[200:][-200:]
        lines.append(f"  {start!r} ... {end!r}" if end else f"  {start!r}")
    lines.append("")
    for found in diagnosis.findings:
        lines.append(f"{found.level}: {found.where}: {found.message}")
        lines += [f"  {found.hint}"] if found.hint else []
    if not any(found.level == "error" for found in diagnosis.findings):
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
        [*question.messages, {"role": "assistant", "content": question.first_reply}]
        for question in asked
        if question.first_reply
    ]
    odd = reading.bad + len(asked) - len(chats)
    why = f"no question with an answer in {counted(odd, 'row')}"
    why += f", e.g. {reading.first_bad}" if reading.bad else ""
    if not chats:
        hint = f'a row is {{"messages": [..., {{"role": "assistant", "content": "{OPEN}..."}}]}}'
        raise DstoolsError(f"{path}: {why}", hint)
    return chats, [finding("not-read", str(path), why)] if odd else []


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
    named = [name for name, keys in TRAINERS.items() if settings.keys() & set(keys)]
    if not named and trl_rows.unknown_keys(settings):
        keys = printable(", ".join(settings))
        raise DstoolsError(
            f"{path}: is not a configuration of {', '.join(TRAINERS)}, by its keys {keys}",
            "for another trainer, save its tokenized rows and give them with --prepared",
        )
    others = {key: settings.get(key) for key in NOT_SFT}
    listed = settings.get("datasets")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and entry.get("type") == "completion":
            others["type"] = "completion"
    for key, value in others.items():
        if value and value != "sft":
            what = printable(f"{key}: {value}")
            raise DstoolsError(
                f"{path}: has {what}, so it is not of supervised fine-tuning",
                "the doctor reads configurations of supervised fine-tuning",
            )
    return named[0] if named else "TRL"


def _not_checked(path: Path, trainer: str, settings: dict[str, Any], tokenizer: Path) -> Finding:
    """Return the error for a trainer that is not run, with the command that prepares its data."""
    key, default, command = PREPARE[trainer]
    named = (path, settings.get(key) or default, tokenizer)
    config, folder, served = (shlex.quote(printable(str(each))) for each in named)
    then = f"dstools distill doctor {served} --prepared {folder}"
    goes_on = trainer == "LLaMA-Factory"
    stop = " (it trains after that: stop it then)" if goes_on else ""
    what = (
        f"{trainer} is not run here: prepare its data with the command below{stop}, then check it"
    )
    hint = f"{command.format(config, folder)}{'; ' if goes_on else ' && '}{then}"
    return finding("not-checked", str(path), what, hint)


# ------------------------------------------------------------------------------------ the judgement


class Sources:
    """The conversations that a data set was made of, with those that no row has been found for."""

    def __init__(self, chats: list[Messages]) -> None:
        self.chats, self.by_key = chats, defaultdict[str, list[Messages]](list)
        self.missing = {str(chat): chat for chat in chats}
        self.unmatched = 0  # rows that none of them is found for
        for chat in chats:
            for key in _keys(chat):
                self.by_key[key].append(chat)

    def faults(self, reader: Reader, row: Row) -> dict[str, str]:
        """Return codes and messages of a row, beside the conversation that it fits best.

        Its question is in the row. Of equally good ones, one that no row has been found for is
        taken.
        """
        asked, *answers = _keys(row.chat)
        likely = next((self.by_key[key] for key in (asked, *answers) if key in self.by_key), [])
        judged = [
            (dict(reader.faults(row, chat)), str(chat))
            for chat in likely
            if _keys(chat)[0] in asked
        ]
        if judged:
            faults, source = min(
                judged, key=lambda each: (len(each[0]), each[1] not in self.missing)
            )
            self.missing.pop(source, None)
            return faults
        faults = dict(reader.faults(row))
        if self.chats:
            self.unmatched += 1
            if not faults.keys() & {"truncated", "packing"}:
                faults["not-in-data"] = "no row of the data has its question and answer"
        return faults

    def left_out(self) -> list[Finding]:
        """Return an error if more conversations are in no row than there are unmatched rows."""
        count = len(self.missing) - self.unmatched
        if count <= 0:
            return []
        asked = printable(_keys(next(iter(self.missing.values())))[0])
        what = f"{count} of its {counted(len(self.chats), 'conversation')}"
        return [finding("left-out", "data", f"{what} are in no row, e.g. {asked!r}")]


def _keys(chat: Messages) -> list[str]:
    """Return the first question of a conversation, and its answers without their traces."""
    asked = next((turn["content"] for turn in chat if turn["role"] == "user"), "")
    answers = (reply.rpartition(CLOSE)[2] for reply in replies(chat))
    return [text.strip() for text in (asked, *answers)]


def _judged(
    trainer: str,
    how: str,
    folder: Path,
    tokenizer: Any,
    prepared: Path,
    chats: list[Messages],
    findings: list[Finding],
) -> Diagnosis:
    """Return the diagnosis of a tokenized data set, beside the conversations it was made of."""
    reader, sources = Reader(tokenizer), Sources(chats)
    cases, plain, found, count = list[Case](), list[Finding](), list[Finding](), 0
    is_foreign = True
    try:
        check_tokenizer(tokenizer, reader.end, folder, reasoning=True)
    except DstoolsError as error:
        findings.append(finding("tokenizer", str(folder), str(error), error.hint))
    for count, (where, made, padding) in enumerate(parts(prepared, len(tokenizer)), start=1):
        row = reader.read(made)
        is_foreign = is_foreign and reader.control.keys().isdisjoint(made.ids)
        if count <= SHOWN_ROWS:
            trained = [label for label in made.labels if label != IGNORED]
            cases.append(Case(where, len(made.ids), len(trained), tokenizer.decode(trained)))
        if padding:
            found.append(finding("padding-trained", where, f"{padding} labels are of padding"))
        faults = sources.faults(reader, row)
        found += [finding(code, where, message) for code, message in faults.items()]
        if not any(map(has_trace, replies(row.chat))):
            plain.append(finding("no-trace", where, "the row has no trace"))
    if not count:
        found.append(finding("left-out", "all rows", "there are none"))
    elif is_foreign:  # nothing else that is told of the rows means anything
        what = "have no token of the template, as if of another tokenizer"
        hint = "give the tokenizer that prepared the data"
        found, plain = [finding("tokenizer", "all rows", what, hint)], []
    elif all(each.code != "packing" for each in found):
        found += sources.left_out()
    if not chats and len(plain) < count:
        found += plain
    elif not chats and plain:
        what = f"none of {counted(count, 'conversation')} has a trace"
        found.append(finding("trace-lost", "all rows", what, plain[0].hint))
    how = f"{counted(count, 'conversation')} {how}"
    return Diagnosis(trainer, how, cases, merged([*findings, *found]))


def _mtp(folder: Path) -> list[Finding]:
    """Return a warning for MTP layers, which the trainers drop."""
    what = "a full or merged model of the trainer lacks them, and its config.json names them"
    return [finding("mtp-dropped", "MTP layers", what)] if names_mtp(folder) else []
