"""The answers in a tokenized conversation, and what training on its labels would lose of them."""

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError
from dstools_converters.model.reasoning import CLOSE, OPEN, answer_after, split
from dstools_converters.model.tokenizer import (
    QUESTION,
    Messages,
    answer_form,
    chat_text,
    prompt_ids,
)
from dstools_distill.tokens.invariant import IGNORED, Target, Trained, Violation, shown, violations

SYSTEM, USER, REPLY, NEXT = "qsystemq", "quserq", "qreplyq", "qnextq"  # not part of a template
CUT = ("truncated", "end-missing", "broken-think")  # all the same fault
WORDS = re.compile(rf"{OPEN}\s*[^\s<]|[^\s>]\s*{CLOSE}")  # a think block that is not empty


class Turn(NamedTuple):
    """An assistant's message in the ids of a row."""

    start: int  # after the template's header
    stop: int  # of the token that ends it; the row's length if none does


class Reader:
    """Reads rows that a template wrote back into messages, by what it writes around them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end = answer_form(tokenizer).end
        roles = (("user", USER), ("assistant", REPLY), ("user", NEXT))
        chat = [{"role": role, "content": text} for role, text in roles]
        text = chat_text(tokenizer, chat, add_generation_prompt=True)
        pieces = re.split(f"{USER}|{REPLY}|{NEXT}", text)
        if len(pieces) != 4 or not pieces[1].strip():
            raise DstoolsError(
                f"{tokenizer.name_or_path}: the chat template writes nothing before an answer, or "
                "no conversation of several questions",
                "give the tokenizer that serves the model",
            )
        before, header, between, _ = pieces
        self.mark = between.rpartition(tokenizer.decode([self.end]))[2].lstrip() or between
        self.closing = between.removesuffix(self.mark).strip()
        self.head = before.removesuffix(self.mark)
        with suppress(DstoolsError):  # the template may refuse system prompts
            text = chat_text(tokenizer, [{"role": "system", "content": SYSTEM}, *chat])
        self.system = text.partition(USER)[0].removesuffix(self.mark).partition(SYSTEM)
        openings = (before, self.system[0])
        self.openings = [opening for opening in openings if opening not in between]
        header = header.partition(OPEN)[0].partition(CLOSE)[0]  # some write an empty block
        self.header = tokenizer.encode(header, add_special_tokens=False)
        self.stem = tokenizer.encode(header.rstrip(), add_special_tokens=False)
        written = tokenizer.encode(text, add_special_tokens=False)
        added = tokenizer.added_tokens_decoder
        self.special = {n for n in added if added[n].special or n in {*written, self.end}}
        self.special -= set(tokenizer.convert_tokens_to_ids([OPEN, CLOSE]))
        self.begins_special = written[0] in self.special

    def turns(self, ids: list[int]) -> list[Turn]:
        """Return the assistant's messages of a row."""
        found: list[Turn] = []
        for at in (n for n, token in enumerate(ids) if token == self.stem[0]):
            for head in (self.header, self.stem):
                start = at + len(head)
                if ids[at:start] == head:
                    ends = (n for n in range(start, len(ids)) if ids[n] in self.special)
                    found.append(Turn(start, next(ends, len(ids))))
                    break
        return found

    def messages(self, ids: list[int], turns: list[Turn]) -> tuple[Messages, str]:
        """Return the messages of a row, as far as this template wrote it, and where it is cut.

        turns: its answers, or other parts of the row that are taken for them.
        """
        decode, stem = self.tokenizer.decode, self.tokenizer.decode(self.stem)
        opening, is_told, closing = self.system
        chat: Messages = []
        stop = 0
        if self.begins_special and ids[0] not in self.special:
            return [], f"the row starts within a message: {shown(decode(ids))}"
        for turn in turns:
            piece = decode(ids[stop : turn.start])
            lead, *asked = piece.rpartition(stem)[0].split(self.mark)
            if len(asked) > 1 or (stop and not lead.startswith(self.closing)):
                return [], f"a question or answer before the last is cut: {shown(piece)}"
            told = lead.removeprefix(opening).removesuffix(closing)
            has_system = not stop and lead == f"{opening}{told}{closing}" and opening not in told
            if is_told and has_system and lead != self.head:
                chat.append({"role": "system", "content": told})
            chat.append({"role": "user", "content": "".join(asked)})
            chat.append({"role": "assistant", "content": decode(ids[turn.start : turn.stop])})
            stop = turn.stop
        return chat, ""

    def question(self, ids: list[int], asked: Collection[str]) -> str:
        """Return which of some questions a row holds; "" if none."""
        chat, _ = self.messages(ids, self.turns(ids)[:1])
        if chat and chat[-2]["content"].strip() in asked:
            return chat[-2]["content"].strip()
        text = self.tokenizer.decode(ids) if asked else ""
        return next((question for question in asked if question in text), "")

    def has_trace(self, ids: list[int]) -> bool:
        """Return whether an answer in a row has a think block with words in it."""
        text, stem = self.tokenizer.decode(ids), self.tokenizer.decode(self.stem)
        return bool(WORDS.search(text.partition(stem)[2] or text))

    def faults(self, row: Trained, source: Messages | None = None) -> Iterator[Violation]:
        """Yield what training on a row would lose; `source`: the conversation it was made of."""
        decode, labels = self.tokenizer.decode, row.labels
        if all(label == IGNORED for label in labels):
            yield Violation("no-labels", "no token of the row is trained on")
            return
        # LLaMA-Factory's efficient_eos writes an end into the labels alone
        pairs = zip(row.ids, labels, strict=True)
        ids = [label if label == self.end else n for n, label in pairs]
        text, turns = decode(ids), self.turns(ids)
        rest = decode(ids[turns[0].stop :]) if turns else ""
        if any(opening in rest and text.count(opening) > 1 for opening in self.openings):
            message = f"several conversations with nothing to part them, not judged: {shown(rest)}"
            yield Violation("packing", message)
            return
        read, cut = self.messages(ids, turns) if turns else ([], "")
        turns = turns or _runs(ids, labels, self.end)
        chat = read if cut else source or read
        replies = [n for n, message in enumerate(chat) if message["role"] == "assistant"]
        if len(turns) < len(replies):
            cut = f"{len(turns)} of {len(replies)} answers are in the row"
        if cut:
            yield Violation("truncated", cut)
        outside = list(labels)
        for number, turn in enumerate(turns):
            stop = turn.stop + 1
            own = [IGNORED] * turn.start + labels[turn.start : stop]
            outside[turn.start : stop] = [IGNORED] * len(outside[turn.start : stop])
            if turn != turns[-1] and not any(label != IGNORED for label in own):
                yield Violation("history-not-trained", "an earlier answer is not trained on")
                continue
            asked, reply = [], decode(ids[turn.start : turn.stop])
            if number < len(replies):
                asked, reply = chat[: replies[number]], chat[replies[number]]["content"]
            yield from self._of_turn(Trained(ids[:stop], own), turn, asked, reply)
        after = turns[-1].stop + 1
        if told := _trained_text(decode, ids[:after], outside):
            yield Violation("prompt-trained", f"the prompt is trained on, {shown(told)}")
        told = _trained_text(decode, ids[after:], outside[after:])
        if told.replace(decode([self.end]), "").strip():
            is_question = self.mark.strip() in decode(ids[after:])
            code = "truncated" if is_question else "trained-behind-end"
            yield Violation(code, f"after the last answer, {shown(told)} is trained on")

    def _of_turn(
        self, row: Trained, turn: Turn, asked: Messages, reply: str
    ) -> Iterator[Violation]:
        """Yield the faults of one answer, which ends `row`; earlier labels are left out."""
        decode = self.tokenizer.decode
        before = row.ids[: turn.start]
        why = "" if asked else f" where {QUESTION[0]['content']} is asked"
        try:
            target = self._target(asked or QUESTION, reply)
        except DstoolsError as error:
            target, why = self._target(QUESTION, reply), f": {error}"
        if row.ids[: len(target.prompt)] != target.prompt:
            text, wanted = decode(before), decode(target.prompt)
            pairs = enumerate(zip(text, wanted, strict=False))
            at = next((n for n, (a, b) in pairs if a != b), len(text))
            message = f"{shown(text, at)}, but serving shows {shown(wanted, at)}{why}"
            yield Violation("prompt-differs", message)
            target = target._replace(prompt=before)
        first = next((n for n, label in enumerate(row.labels) if label != IGNORED), len(row.ids))
        opening = row.ids[len(target.prompt) : first]
        plain = decode(opening)
        if not target.trace and plain.rstrip().endswith(CLOSE):  # an empty block, as served
            target = target._replace(
                prompt=[*target.prompt, *opening], text=target.text.removeprefix(plain)
            )
        faults = violations(decode, row.ids, row.labels, target)
        if turn.stop == len(row.ids):
            ending = decode(row.ids)
            yield Violation("truncated", f"the row ends too early: {shown(ending, len(ending))}")
            faults = [fault for fault in faults if fault.code not in CUT]
        yield from faults

    def _target(self, asked: Messages, reply: str) -> Target:
        """Return what a row of this question and answer should train on."""
        prompt = prompt_ids(self.tokenizer, asked)
        answer = answer_after(self.tokenizer.decode(prompt), split(reply, prefilled=False), "")
        return Target(prompt, answer.text, answer.trace.strip("\n"), self.end)


def _runs(ids: list[int], labels: list[int], end: int) -> list[Turn]:
    """Return what is trained on in a row of another template, taken for its answers."""
    marks = [IGNORED, *labels, IGNORED]
    edges = [n for n in range(len(ids) + 1) if (marks[n] == IGNORED) != (marks[n + 1] == IGNORED)]
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [Turn(a, a + [*ids[a:b], end].index(end)) for a, b in runs]


def _trained_text(decode: Any, ids: list[int], labels: list[int]) -> str:
    """Return what is trained on of some ids, decoded."""
    trained = [n for n, label in zip(ids, labels, strict=False) if label != IGNORED]
    return str(decode(trained)).strip()
