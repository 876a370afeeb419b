"""The answers in a tokenized conversation, and what training on its labels would lose of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError
from dstools_converters.model.reasoning import CLOSE, OPEN, opens_think, split
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


class Turn(NamedTuple):
    """An assistant's message in the ids of a row."""

    start: int  # after the template's header
    stop: int  # of the token that ends it; the row's length if none does


def target_of(tokenizer: Any, end: int, messages: Messages) -> Target:
    """Return what a conversation that ends with an answer should train on."""
    prompt = prompt_ids(tokenizer, messages[:-1])
    whole = messages[-1]["content"]
    trace = split(whole, prefilled=False).reasoning or ""
    if opens_think(prompt_text := tokenizer.decode(prompt)):
        opened = prompt_text[prompt_text.rindex(OPEN) + len(OPEN) :]
        whole = whole.removeprefix(OPEN).removeprefix(opened)
    return Target(prompt, whole, trace.strip("\n"), end)


class Reader:
    """Reads rows that a template wrote back into messages, by what it writes around them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end = answer_form(tokenizer).end
        chat = [
            {"role": role, "content": text}
            for role, text in (("user", USER), ("assistant", REPLY), ("user", NEXT))
        ]
        text = chat_text(tokenizer, chat, add_generation_prompt=True)
        self.before, _, rest = text.partition(USER)
        header, _, rest = rest.partition(REPLY)
        self.between = rest.partition(NEXT)[0]
        self.header = header.partition(OPEN)[0].partition(CLOSE)[0]  # some write an empty block
        self.head_ids = tokenizer.encode(self.header, add_special_tokens=False)
        self.opener = tokenizer.encode(self.before + "a", add_special_tokens=False)[0]
        self.stem = tokenizer.encode(self.header.rstrip(), add_special_tokens=False)
        if not self.stem or not self.between:
            raise DstoolsError(
                f"{tokenizer.name_or_path}: the chat template writes nothing before an answer, or "
                "no conversation of several questions",
                "give the tokenizer that serves the model",
            )
        try:
            text = chat_text(tokenizer, [{"role": "system", "content": SYSTEM}, *chat])
            self.system = (text.partition(SYSTEM)[0], text.partition(SYSTEM)[2].partition(USER)[0])
        except DstoolsError:  # the template refuses system prompts
            self.system = (self.before, "")
        added = tokenizer.added_tokens_decoder
        written = {*self.stem, *tokenizer.encode(text, add_special_tokens=False), self.end}
        self.special = {n for n in added if added[n].special or n in written}
        self.special -= set(tokenizer.convert_tokens_to_ids([OPEN, CLOSE]))

    def turns(self, ids: list[int]) -> list[Turn]:
        """Return the assistant's messages of a row."""
        found: list[Turn] = []
        size = len(self.stem)
        heads = [n for n, token in enumerate(ids) if token == self.stem[0]]
        for at in heads:
            if ids[at : at + size] == self.stem:
                is_whole = ids[at : at + len(self.head_ids)] == self.head_ids
                start = at + (len(self.head_ids) if is_whole else size)
                ends = (n for n in range(start, len(ids)) if ids[n] in self.special)
                found.append(Turn(start, next(ends, len(ids))))
        return found

    def messages(self, text: str) -> Messages | None:
        """Return the messages of a prompt, None if the template does not write it like this."""
        chat: Messages = []
        opening, closing = self.system
        if text.startswith(self.before):
            rest = text.removeprefix(self.before)
        elif text.startswith(opening) and closing and closing in text:
            content, _, rest = text.removeprefix(opening).partition(closing)
            chat.append({"role": "system", "content": content})
        else:
            return None
        *asked, last = rest.split(self.header)
        for n, piece in enumerate(asked):
            reply, cut, question = piece.partition(self.between)
            if n and not cut:
                return None
            chat += [{"role": "assistant", "content": reply}] if n else []
            chat.append({"role": "user", "content": question if n else piece})
        return None if last or not asked else chat

    def question(self, ids: list[int]) -> str:
        """Return the first question in a row; "" if the template does not write it like this."""
        first = self.turns(ids)[:1]
        chat = self.messages(self.tokenizer.decode(ids[: first[0].start])) if first else None
        return chat[-1]["content"].strip() if chat else ""

    def has_trace(self, ids: list[int]) -> bool:
        """Return whether an answer in a row has a think block with words in it."""
        turns = self.turns(ids) or [Turn(0, len(ids))]
        texts = [self.tokenizer.decode(ids[turn.start : turn.stop]) for turn in turns]
        blocks = [
            text.partition(OPEN)[2] or text.partition(CLOSE)[0] * (CLOSE in text) for text in texts
        ]
        return any(block.partition(CLOSE)[0].strip() for block in blocks)

    def faults(self, row: Trained, source: Messages | None = None) -> Iterator[Violation]:
        """Yield what training on a row would lose; `source`: the conversation it was made of."""
        labels = row.labels
        pairs = list(zip(row.ids, labels, strict=True))
        if any(label not in (IGNORED, n, self.end) for n, label in pairs):
            yield Violation("labels-differ", "a label differs from the id in its place")
            return
        if all(label == IGNORED for label in labels):
            yield Violation("no-labels", "no token of the row is trained on")
            return
        # LLaMA-Factory's efficient_eos writes an end into the labels alone
        ids = [n if label == IGNORED else label for n, label in pairs]
        decode = self.tokenizer.decode
        turns = self.turns(ids)
        openings = tuple(text for text in (self.before, self.system[0]) if text)
        is_written = bool(turns)  # by this template
        starts = [decode(ids).count(text) for text in openings if text not in self.between]
        if max(starts, default=0) > 1:
            message = f"{max(starts)} conversations with nothing to part them, which are not judged"
            yield Violation("packing", message)
            return
        if not turns and not decode(ids).startswith(openings):
            turns = self._runs(ids, labels)
        after = turns[-1].stop + 1 if turns else 0
        rest = decode(ids[after:])
        is_trained = any(label != IGNORED for label in labels[after:])
        question = self.between.rpartition(decode([self.end]))[2].strip() or self.between
        goes_on = is_trained and bool(rest.replace(decode([self.end]), "").strip())
        if goes_on and (not turns or question in rest):
            message = f"the last question is cut, and what follows is trained on: {shown(rest)}"
            yield Violation("truncated", message)
            goes_on = False
        wanted = [n for n, turn in enumerate(source or []) if turn["role"] == "assistant"]
        if is_written and (cut := self._cut(ids, turns, question)):
            yield Violation("truncated", cut)
            source = None  # its turns are not those of the row
        elif turns and len(turns) < len(wanted):
            yield Violation("truncated", f"{len(turns)} of {len(wanted)} answers are in the row")
        outside = labels[:after]
        for number, turn in enumerate(turns):
            stop = turn.stop + 1
            outside[turn.start : stop] = [IGNORED] * (stop - turn.start)
            is_last = number == len(turns) - 1
            if is_last and goes_on:
                stop = len(ids)
            own = [IGNORED] * turn.start + labels[turn.start : stop]
            if all(label == IGNORED for label in own):
                code, which = (
                    ("no-labels", "last") if is_last else ("history-not-trained", "earlier")
                )
                yield Violation(code, f"the {which} answer is not trained on")
                continue
            chat = source[: wanted[number] + 1] if source and number < len(wanted) else None
            yield from self._of_turn(Trained(ids[:stop], own), turn, chat)
        trained = [n for n, label in zip(ids, outside, strict=False) if label != IGNORED]
        if text := decode(trained).strip():
            yield Violation("prompt-trained", f"the prompt is trained on, {shown(text)}")

    def _cut(self, ids: list[int], turns: list[Turn], question: str) -> str:
        """Return where a row lacks a part before its last answer; "" if it does not."""
        decode = self.tokenizer.decode
        if self.opener in self.special and ids[0] not in self.special:
            return f"the row starts within a message: {shown(decode(ids))}"
        starts = [0, *(turn.stop for turn in turns)]
        for start, turn in zip(starts, turns, strict=False):
            between = decode(ids[start : turn.start])
            is_ended = not start or ids[start] == self.end or decode([self.end]) not in self.between
            if between.count(question) > 1 or not is_ended:
                return f"a question or answer before the last is cut: {shown(between)}"
        return ""

    def _runs(self, ids: list[int], labels: list[int]) -> list[Turn]:
        """Return what is trained on in a row of another template, taken for its answers."""
        marks = [IGNORED, *labels, IGNORED]
        edges = [
            n for n in range(len(ids) + 1) if (marks[n] == IGNORED) != (marks[n + 1] == IGNORED)
        ]
        runs = zip(edges[::2], edges[1::2], strict=True)
        return [Turn(a, a + [*ids[a:b], self.end].index(self.end)) for a, b in runs]

    def _of_turn(self, row: Trained, turn: Turn, chat: Messages | None) -> Iterator[Violation]:
        """Yield the faults of one answer, which ends `row`; earlier labels are left out."""
        decode = self.tokenizer.decode
        text = decode(row.ids[turn.start : turn.stop])
        before = row.ids[: turn.start]
        asked = chat[:-1] if chat else self.messages(decode(before))
        reply = chat[-1] if chat else {"role": "assistant", "content": text}
        refused = ""
        try:
            target = target_of(self.tokenizer, self.end, [*(asked or QUESTION), reply])
        except DstoolsError as error:
            asked, refused = None, f": {error}"
            target = target_of(self.tokenizer, self.end, [*QUESTION, reply])
        if not asked:
            message = f"the template does not write {ending(decode(before))}{refused}"
            yield Violation("prompt-differs", message)
            target = target._replace(prompt=before)
        elif row.ids[: len(target.prompt)] != target.prompt:
            text_of_row, wanted = decode(before), decode(target.prompt)
            pairs = enumerate(zip(text_of_row, wanted, strict=False))
            at = next((n for n, (a, b) in pairs if a != b), len(text_of_row))
            message = f"{shown(text_of_row, at)}, but serving shows {shown(wanted, at)}"
            yield Violation("prompt-differs", message)
            target = target._replace(prompt=before)
        first = next(n for n, label in enumerate(row.labels) if label != IGNORED)
        opening = row.ids[len(target.prompt) : first]
        plain = decode(opening)
        if not target.trace and plain.rstrip().endswith(CLOSE):  # an empty block, as served
            target = target._replace(
                prompt=[*target.prompt, *opening], text=target.text.removeprefix(plain)
            )
        faults = violations(decode, row.ids, row.labels, target)
        if turn.stop == len(row.ids):
            yield Violation("truncated", f"the row ends within an answer: {ending(text)}")
            faults = [fault for fault in faults if fault.code not in CUT]
        yield from faults


def ending(text: str) -> str:
    """Return the last characters of a text, escaped."""
    return shown(text, len(text))
