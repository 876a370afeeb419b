"""The doctor: what another trainer trains on, and what of a trace it loses.

TRL's own code is run. axolotl and LLaMA-Factory are judged by the data that they prepare.
"""

import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from dstools_converters.checkpoint.config import names_mtp
from dstools_converters.errors import DstoolsError, Finding, counted, merged, printable
from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_converters.model.tokenizer import Messages
from dstools_distill.data.sources import Reading, questions
from dstools_distill.tokens import trl_rows
from dstools_distill.tokens.faults import finding
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.prepared import Part, parts, read
from dstools_distill.tokens.render import ROWS, check_tokenizer
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.turns import Reader, Row, has_trace, replies

TRAINERS = {  # keys that no trainer after it has
    "LLaMA-Factory": ("cutoff_len", "template", "stage", "finetuning_type", "dataset_dir"),
    "axolotl": ("base_model", "sequence_len", "sample_packing"),
    "TRL": ("assistant_only_loss", "dataset_name", "max_seq_length", "model_name_or_path"),
}
PREPARE = {  # the commands that write the folder `prepared`
    "LLaMA-Factory": "llamafactory-cli train {} tokenized_path=prepared",
    "axolotl": "axolotl preprocess {} --dataset-prepared-path prepared",
}
NOT_SFT = (  # keys of other trainings, besides those of TRL's config classes
    *("stage", "rl", "reward_model", "process_reward_model", "reward_funcs"),
    "pretraining_dataset",
)
STEP = "Wait, 2+9=11, so I write 1 and carry 1. "
RUN_ROWS = 1000  # of --data that TRL is run on
SHOWN_ROWS = 2  # of a data set
NO_VALUE = (ValueError, LookupError, AttributeError)  # PyYAML's, for 2024-13-45 and !!bool x


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
    trainer, findings = _trainer(config, settings) if config else "TRL", _mtp(tokenizer)
    if trainer in PREPARE:
        given = (config, tokenizer, data)
        path, served, source = (shlex.quote(printable(str(each))) for each in given)
        command = PREPARE[trainer].format(path)
        hint = f"{command}; dstools distill doctor {served} --prepared prepared"
        hint += f" --data {source}" if data else ""
        what = f"{trainer} is not run here: have it prepare its data, stop it if it trains then, "
        what += "and check that"
        findings.append(finding("not-checked", str(config), what, hint))
        return Diagnosis(trainer, "not run", [], findings)
    chats, notes = conversations(data) if data else (OWN, [])
    chats, loaded = chats[:RUN_ROWS], load_tokenizer(tokenizer)
    findings += notes + trl_rows.findings(settings)
    try:
        made = trl_rows.prepare(loaded, settings, chats)
    except DstoolsError as error:
        findings.append(finding("refused", str(config or "TRL"), str(error), error.hint))
        return Diagnosis(trainer, "run", [], findings)
    rows = ((f"row {number}", row) for number, row in enumerate(made, start=1))
    made_parts = parts(rows, len(loaded), trainer)
    return _judged(Diagnosis(trainer, "run", [], findings), loaded, made_parts, chats)


def diagnose_prepared(tokenizer: Path, prepared: Path, data: Path | None) -> Diagnosis:
    """Return what training on a tokenized data set would lose, see `prepared`.

    tokenizer: the folder that is served. data: the rows that the data set was made of, see
    `conversations`, to tell lost traces and rows. Raises DstoolsError for what cannot be read.
    """
    chats, findings = conversations(data) if data else ([], [])
    if prepared.name != ROWS and not (prepared / ROWS).exists():  # of `dstools distill render`
        findings += _mtp(tokenizer)
    loaded = load_tokenizer(tokenizer)
    made_parts = parts(read(prepared), len(loaded), prepared)
    return _judged(Diagnosis("prepared data", "read", [], findings), loaded, made_parts, chats)


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


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # without types, all is Any
    """SafeLoader that refuses a key given twice, of which PyYAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} is given twice; remove one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _read_config(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; JSON is YAML too."""
    if path.suffix == ".toml":
        hint = "name a trainer's YAML or JSON; `dstools distill check` is for recipes"
        raise DstoolsError(f"{path}: is TOML, which no trainer that is known here reads", hint)
    try:
        with path.open("rb") as file:
            settings = _Loader(file).get_single_data()
    except (yaml.YAMLError, *NO_VALUE, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))
        raise DstoolsError(f"{path}: is not valid YAML: {reason}", "fix the file") from None
    if not isinstance(settings, dict):
        raise DstoolsError(f"{path}: is not a mapping", "name the configuration of a trainer")
    return {str(key): value for key, value in settings.items()}


def _trainer(path: Path, settings: dict[str, Any]) -> str:
    """Return the trainer whose keys a configuration has."""
    named = [name for name, keys in TRAINERS.items() if settings.keys() & set(keys)]
    trainer = named[0] if named else "TRL"
    listed = settings.get("datasets")
    entries = listed if isinstance(listed, list) else []
    others = {key: settings.get(key) for key in NOT_SFT}
    if "completion" in [entry.get("type") for entry in entries if isinstance(entry, dict)]:
        others["type"] = "completion"
    if trainer == "TRL":
        others |= {key: settings[key] for key in trl_rows.keys_of_others(settings)}
    for key, value in others.items():
        if value and value != "sft":
            raise DstoolsError(
                f"{path}: has {printable(f'{key}: {value}')}, so it is not of supervised "
                "fine-tuning",
                "the doctor reads configurations of supervised fine-tuning",
            )
    if trainer != "TRL":
        return trainer
    unknown = set(trl_rows.unknown_keys(settings)) - trl_rows.RENAMED.keys()
    if len(unknown) > (len(settings) // 2 if named else 0):
        keys = printable(", ".join(settings))
        raise DstoolsError(
            f"{path}: is not a configuration of {', '.join(TRAINERS)}, by its keys {keys}",
            "for another trainer, save its tokenized rows and give them with --prepared",
        )
    return trainer


# ------------------------------------------------------------------------------------ the judgement


class Sources:
    """The conversations that a data set was made of."""

    def __init__(self, chats: list[Messages]) -> None:
        self.missing = {str(chat): chat for chat in chats}  # no row has been found for them
        self.by_key = defaultdict[str, list[Messages]](list)
        self.cut = 0  # rows that none is found for, maybe because they are cut
        for chat in self.missing.values():
            for key in _keys(chat):
                self.by_key[key].append(chat)

    def faults(self, reader: Reader, row: Row) -> dict[str, str]:
        """Return codes and messages of a row, beside the conversation that it fits best.

        Its question is in the row. Of equally good ones, one that no row has been found for is
        taken.
        """
        asked, *answers = _keys(row.chat)
        likely = next((self.by_key[key] for key in (asked, *answers) if key in self.by_key), [])
        asking: list[Messages | None] = [chat for chat in likely if _keys(chat)[0] in asked]
        judged = [(dict(reader.faults(row, chat)), str(chat)) for chat in asking or [None]]
        faults, source = min(judged, key=lambda each: (len(each[0]), each[1] not in self.missing))
        self.missing.pop(source, None)
        if self.by_key and not asking:
            self.cut += not faults.keys().isdisjoint({"truncated", "packing"})
            faults["not-in-data"] = "no row of the data has its question and answer"
        return faults


def _keys(chat: Messages) -> list[str]:
    """Return the first question of a conversation, and its answers without their traces."""
    asked = next((turn["content"] for turn in chat if turn["role"] == "user"), "")
    answers = (reply.rpartition(CLOSE)[2] for reply in replies(chat))
    return [text.strip() for text in (asked, *answers)]


def _judged(
    start: Diagnosis, tokenizer: Any, made_parts: Iterable[Part], chats: list[Messages]
) -> Diagnosis:
    """Return a diagnosis with that of a tokenized data set; chats: what it was made of, or none."""
    reader, sources, folder = Reader(tokenizer), Sources(chats), tokenizer.name_or_path
    cases, found, plain, count, is_foreign = list[Case](), list[Finding](), list[str](), 0, True
    for count, (where, made, padding) in enumerate(made_parts, start=1):
        row = reader.read(made)
        is_foreign = is_foreign and reader.control.keys().isdisjoint(made.ids)
        if count <= SHOWN_ROWS:
            trained = [label for label in made.labels if label != IGNORED]
            cases.append(Case(where, len(made.ids), len(trained), tokenizer.decode(trained)))
        faults = sources.faults(reader, row)
        if padding:
            faults["padding-trained"] = f"{padding} labels are of padding"
        found += [finding(code, where, message) for code, message in faults.items()]
        if not any(map(has_trace, replies(row.chat))):
            plain.append(where)
    if plain and not chats:
        code = "no-trace" if len(plain) < count else "trace-lost"
        what = "the row has no trace, and without --data nobody knows whether it had one"
        found += [finding(code, where, what) for where in plain]
    left_out = len(sources.missing) - sources.cut
    if not count:
        found.append(finding("left-out", "all rows", "there are none"))
    elif is_foreign:  # nothing else that is told of the rows means anything
        what = "have no token of the template, as if of another tokenizer"
        hint = "give the tokenizer that prepared the data"
        found = [finding("tokenizer", "all rows", what, hint)]
    elif left_out > 0 and all(each.code != "packing" for each in found):
        asked = printable(_keys(next(iter(sources.missing.values())))[0])
        what = f"{left_out} of its {counted(len(chats), 'conversation')} are in no row"
        found.append(finding("left-out", "data", f"{what}, e.g. {asked!r}"))
    try:
        check_tokenizer(tokenizer, reader.end, folder, reasoning=True)
    except DstoolsError as error:
        found.append(finding("tokenizer", str(folder), str(error), error.hint))
    how = f"{counted(count, 'conversation')} {start.how}"
    return Diagnosis(start.trainer, how, cases, merged([*start.findings, *found]))


def _mtp(folder: Path) -> list[Finding]:
    """Return a warning for MTP layers, which the trainers drop."""
    what = "a full or merged model of the trainer lacks them, and its config.json names them"
    return [finding("mtp-dropped", "MTP layers", what)] if names_mtp(folder) else []
