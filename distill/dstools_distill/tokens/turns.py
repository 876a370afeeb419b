"""The answers of a tokenized conversation, and what training on its labels would lose of them.

A row is decoded, and read by what the template that serves writes around questions and answers.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import compress, pairwise
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError
from dstools_converters.model.reasoning import CLOSE, OPEN, split
from dstools_converters.model.tokenizer import Messages, answer_form, chat_text, prompt_ids
from dstools_distill.tokens.faults import Violation, differing, shown
from dstools_distill.tokens.invariant import IGNORED, Trained

SYSTEM, USER, REPLY, NEXT = "qsystemq", "quserq", "qreplyq", "qnextq"  # not part of a template
ON, OFF = "1", "0"  # whether a character is trained on
WORDS = re.compile(rf"{OPEN}\s*[^\s<]|[^\s>]\s*{CLOSE}")  # a think block with words, maybe cut


class Answer(NamedTuple):
    """Where an answer is in the text of a row."""

    start: int  # after the template's header
    stop: int  # after the answer's text
    end: int  # after the token that ends it


class Row(NamedTuple):
    """A decoded row."""

    text: str
    mask: str  # ON or OFF for each character of `text`
    answers: list[Answer]
    chat: Messages  # a question before each answer; in another template all text before it
    spoiled: Violation | None  # why nobody can tell what an answer trains on; None if it is told


class Reader:
    """Reads rows by the template of a tokenizer, and tells their faults.

    Raises DstoolsError for a template that does not write conversations.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.decode = tokenizer, tokenizer.decode
        self.end = answer_form(tokenizer).end
        self.end_text = self.decode([self.end])
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
        before, header, between, prompt = pieces
        opening = header.partition(OPEN)[0].partition(CLOSE)[0]
        self.block = header.removeprefix(opening)  # some write an empty one into history
        self.header = opening.rstrip()
        line_feeds = re.escape(opening.removeprefix(self.header))
        self.headers = re.compile(f"{re.escape(self.header)}(?:{line_feeds})?")
        self.prefill = prompt.removeprefix(self.header).strip()
        self.mark = between.rpartition(self.end_text)[2].lstrip() or between
        with suppress(DstoolsError):  # the template may refuse system prompts
            text = chat_text(tokenizer, [{"role": "system", "content": SYSTEM}, *chat])
        start, _, closing = text.partition(USER)[0].removesuffix(self.mark).partition(SYSTEM)
        first, last = re.escape(start), re.escape(closing)
        self.system = re.compile(f"{first}((?:(?!{first}).)+){last}", re.DOTALL)
        self.beginnings = [part for part in (before, start) if part not in between]
        self.shows_start = before in self.beginnings
        written = {*tokenizer.encode(text, add_special_tokens=False), self.end}
        self.control = {
            n: str(token)
            for n, token in tokenizer.added_tokens_decoder.items()
            if (token.special or n in written) and str(token) not in (OPEN, CLOSE)
        }
        self.ends = tuple(self.control.values())
        self.control_text = re.compile("|".join(map(re.escape, self.ends)))

    def read(self, row: Trained) -> Row:
        """Return the text of a row, with its answers and messages."""
        pairs = zip(row.ids, row.labels, strict=True)
        # LLaMA-Factory's efficient_eos writes an end into the labels alone
        ids = [label if label == self.end else n for n, label in pairs]
        is_on = [label != IGNORED for label in row.labels]
        edges = [n for n in range(1, len(ids)) if is_on[n] != is_on[n - 1]]
        text = mask = ""
        for start, stop in pairwise([0, *edges, len(ids)]):
            before = ids[max(start - 1, 0) : start]  # as a first token may lose its blank
            run = self.decode(before + ids[start:stop])[len(self.decode(before)) :]
            text, mask = text + run, mask + (ON if is_on[start] else OFF) * len(run)
        answers, spoiled = self._answers(text, mask), None
        if any(label not in (IGNORED, n) for n, label in zip(ids, row.labels, strict=True)):
            spoiled = Violation("labels-differ", "a label differs from the id in its place")
        elif len(self.control_text.findall(text)) != sum(n in self.control for n in ids):
            spoiled = Violation("labels-differ", "a token of the template is spelled as text")
        elif not answers or ON not in mask:
            spoiled = Violation("no-labels", "no token of the row is trained on")
        return Row(text, mask, answers, self._messages(text, answers), spoiled)

    def _answers(self, text: str, mask: str) -> list[Answer]:
        """Return what follows a header; in a row without one, what has labels."""

        def answer(start: int, limit: int) -> Answer:
            control = self.control_text
            end = control.search(text, start, limit) or control.match(text, limit)
            return Answer(start, *(end.span() if end else (limit, limit)))

        found = [answer(header.end(), len(text)) for header in self.headers.finditer(text)]
        runs = (run.span() for run in re.finditer(f"{ON}+", mask))
        return found or [answer(*run) for run in runs if text[slice(*run)].strip()]

    def _messages(self, text: str, answers: list[Answer]) -> Messages:
        """Return the conversation that a row holds, as far as it is written as served."""
        chat, stop = Messages(), 0
        for answer in answers:
            asked = text[stop : answer.start].rstrip()
            if asked.endswith(self.header):
                lead, _, asked = asked.removesuffix(self.header).rpartition(self.mark)
                system = self.system.fullmatch(lead)
                if system and not chat:
                    chat.append({"role": "system", "content": system[1]})
            reply, stop = text[answer.start : answer.stop].removeprefix(self.block), answer.stop
            chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        return chat

    def faults(self, row: Row, source: Messages | None = None) -> Iterator[Violation]:
        """Yield what training on a row would lose; `source`: the conversation it was made of."""
        text, mask, answers, chat, spoiled = row
        if spoiled:
            yield spoiled
            return
        given, wanted, rest = replies(chat), replies(source or chat), text[answers[0].end :]
        begun = [part for part in self.beginnings if part in rest and text.count(part) > 1]
        if begun or len(given) > len(wanted):
            what = "several conversations with nothing to part them, not judged"
            yield Violation("packing", f"{what}: {shown(rest)}")
            return
        if len(given) < len(wanted):
            yield Violation("truncated", f"{len(given)} of {len(wanted)} answers are in the row")
            source, wanted = None, given
        is_trained = all(ON in mask[start:end] for start, _, end in answers)
        is_odd = is_trained and not self.shows_start and any(map(has_trace, given[:-1]))
        if source is None and is_odd:
            what = "several conversations, or one that keeps traces in its history"
            yield Violation("not-checked", what)
        yield from self._of_prompt(row, (source or chat)[:-1])
        last = 0
        for answer, reply, whole in zip(answers, given, wanted, strict=True):
            start, _, end = answer
            if asked := _trained(row, last, start):
                yield Violation("prompt-trained", f"the prompt is trained on, {shown(asked)}")
            if ON in mask[start:end]:
                lost = list(_lost(reply, whole))
                yield from self._of_answer(row, answer, is_whole=bool(source) and not lost)
                yield from lost
            else:
                code = "history-not-trained" if answer != answers[-1] else "no-labels"
                yield Violation(code, f"{shown(reply)} is not trained on")
            last = end
        if self.mark.strip() in text[last:]:
            yield Violation("truncated", f"the row ends after a question: {shown(text, len(text))}")
        # axolotl ends text that ends already; further ends are padding of a trainer that pads so
        elif after := _trained(row, last, len(text)).removeprefix(self.end_text):
            yield Violation("trained-after-end", f"{shown(after)} is trained on after the end")

    def _of_prompt(self, row: Row, asked: Messages) -> Iterator[Violation]:
        """Yield how a row differs before its last answer from what serving shows for `asked`."""
        text, before = row.text, row.text[: row.answers[-1].start]
        try:
            served = self.decode(prompt_ids(self.tokenizer, asked))
        except DstoolsError as error:
            yield Violation("prompt-differs", f"serving cannot show the prompt: {error}")
            return
        _, *turns = before.split(self.mark)
        is_within = self.control_text.match(served) and not self.control_text.match(text)
        has_ends = all(turn.rstrip().endswith(self.ends) for turn in turns[:-1])
        has_header = before.rstrip().endswith(self.header)
        if (turns and not (has_ends and has_header)) or (is_within and (turns or has_header)):
            yield Violation("truncated", f"a message before the answer is cut: {shown(before)}")
        elif not text.startswith(served):
            yield Violation("prompt-differs", differing(text, served, "serving shows"))

    def _of_answer(self, row: Row, answer: Answer, *, is_whole: bool) -> Iterator[Violation]:
        """Yield what of an answer and its end is not trained on, and how its think tags are odd."""
        start, stop, end = answer
        text, ended, mask = row.text[start:stop], row.text[stop:end], row.mask[start:end]
        first = mask.index(ON)
        unseen = "".join(text[:first].split())
        has_start = unseen in ("", OPEN + CLOSE, self.prefill)  # served, or no trace is meant
        has_end = ON in row.mask[stop:end]
        is_cut = stop == len(row.text) and not is_whole
        opened, closed = text.count(OPEN), text.count(CLOSE)
        tags = f"{OPEN} comes {opened} times, {CLOSE} {closed} times"
        wanted, lacks = self.end_text, "is not trained on"
        checks = (
            ("truncated", is_cut, f"the row ends too early: {shown(text, len(text))}"),
            ("start-missing", not has_start and unseen == OPEN, f"{OPEN} {lacks}"),
            ("trace-lost", not has_start and unseen != OPEN, f"{shown(text[:first])} {lacks}"),
            ("labels-gap", OFF in mask[first : len(text)], f"a part of the answer {lacks}"),
            ("wrong-end", has_end and ended != wanted, f"{ended} ends it, not {wanted}"),
            ("end-missing", not has_end and not is_cut, f"{wanted} {lacks} after the answer"),
            ("doubled-think", max(opened, closed) > 1, tags),
            ("broken-think", opened + closed == 1 and not is_cut, tags),
        )
        yield from (Violation(code, message) for code, is_so, message in checks if is_so)


def replies(chat: Messages) -> list[str]:
    """Return the answers of a conversation."""
    return [message["content"] for message in chat if message["role"] == "assistant"]


def has_trace(text: str) -> bool:
    """Return whether an answer has a think block with words in it, which may be cut."""
    return bool(WORDS.search(text))


def _trained(row: Row, start: int, stop: int) -> str:
    """Return what is trained on of a part of a row, without blanks around it."""
    return "".join(compress(row.text[start:stop], map(int, row.mask[start:stop]))).strip()


def _lost(text: str, whole: str) -> Iterator[Violation]:
    """Yield what an answer lacks of the one that it was made of, but for blanks around it."""
    trace, answer = ((part or "").strip() for part in split(whole, prefilled=False))
    if trace in text and text.rstrip().endswith(answer):
        return
    if "".join(whole.split()).startswith("".join(text.split())):
        yield Violation("truncated", f"the answer is cut: {shown(text, len(text))}")
    elif trace and not has_trace(text):
        yield Violation("trace-lost", f"the trace of {len(trace)} characters is not in the row")
    else:
        yield Violation("not-in-data", differing(text, whole, "the data has"))
