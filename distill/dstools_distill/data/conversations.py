"""Conversations in a row of a data set: turns with roles, and the trace of an answer.

A trace may be in the answer's text, in a part of it, or under a key or in a column of its own
(records.TRACES). Keys and roles are those of OpenAI, ShareGPT and Gemini.
"""

import re
from typing import Any

from dstools_converters.model.reasoning import CLOSE, OPEN, thought, without_tags
from dstools_distill.data.columns import (
    BadRowError,
    Columns,
    agreeing,
    from_json,
    reasoning_and_text,
    shown,
    text,
)
from dstools_distill.records import TRACES, trace

Message = dict[str, str]
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"} | (
    dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant")
)
NOT_LEARNED = "leave such rows out, or their last answer"
WORD = re.compile("[A-Za-z]{1,16}")  # of a script with blanks: a trace has more
# Sky-T1, Bespoke-Stratos and OpenThoughts-114k write a trace and its answer between these
SECTIONS = re.compile(
    r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>"
    r"\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>\s*)?",
    re.DOTALL,
)
BEGUN = re.compile(  # how a text begins that a chat template has written already
    r"\s*(?:<s>\s*|<bos>|<\|endoftext\|>|\[gMASK\]<sop>)?("
    r"<\|im_start\|>(?:system|user)|<\|im_(?:system|user)\|>|<\|(?:system|user)\|>"
    r"|<\|begin_of_text\|>|<\|start_header_id\|>|<\|start\|>(?:system|user)"
    r"|<\|start_of_role\|>|\[\|(?:user|system)\|\]|<seed:bos>"
    r"|<\|START_OF_TURN_TOKEN\|>|<start_of_turn>user|<\|turn>user"
    r"|<｜begin▁of▁sentence｜>|<｜User｜>|\[INST\]|\[SYSTEM_PROMPT\]"
    r"|(?:Below is an instruction[^\n]*\n+)?\#\#\# Instruction:)"
)
ASKED = re.compile(r"\b(?:Human|User|USER): |\#\#\# Instruction:")  # and how it ends, after these
ENDED = re.compile(r"(?:^|\s)(### Response:|Assistant:|ASSISTANT:)\s*(?:<think>\s*)?\Z")


def conversation(turns: Any, name: str) -> list[Message]:
    """Return the turns of a conversation, each with role and content; no empty system message.

    turns: a list of them, or JSON of it. Raises BadRowError for an odd form, and for an answer at
    the end that is not to be trained on: its weight is 0, as OpenAI writes it.
    """
    turns = from_json(turns, ("[",))
    if not isinstance(turns, list) or not turns:
        raise BadRowError(f"{name} is not a list of turns")
    messages = []
    for number, turn in enumerate(turns):
        where = f"{name}[{number}]"
        if not isinstance(turn, dict):
            raise BadRowError(f"{where} is not an object")
        role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in ROLES:
            raise BadRowError(f"{where}.{role_key} is {role!r}, not one of {', '.join(ROLES)}")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise BadRowError(f"{where} calls a tool, which is not read", "leave such rows out")
        if turn.get(text_key) is None:
            raise BadRowError(f"{where}.{text_key} is missing")
        inner, content = reasoning_and_text(turn[text_key], f"{where}.{text_key}")
        if ROLES[role] == "system" and not content.strip():
            continue
        content = text(content, f"{where}.{text_key}")
        if ROLES[role] == "assistant":
            content = with_trace(content, inner or own_trace(Columns(turn)), where)
            if turn is turns[-1] and turn.get("weight") == 0:
                raise BadRowError(f"{where}.weight is 0: nothing is to be learned", NOT_LEARNED)
        messages.append({"role": ROLES[role], "content": content})
    return messages


def split_last_question(turns: list[Message]) -> tuple[list[Message], str | None]:
    """Return the turns up to the last one of a user, and the answer to it, if any."""
    last = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise BadRowError("has no turn of a user")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRowError("has a system message after its first message")
    answers = turns[last + 1 :]
    if len(answers) > 1:
        raise BadRowError(f"has {len(answers)} answers to its last question")
    return turns[: last + 1], answers[0]["content"] if answers else None


def refuse_rendered(turns: list[Message]) -> None:
    """Raise BadRowError if the text of a user or of the system is a whole rendered prompt."""
    for turn in turns:
        content = turn["content"] if turn["role"] != "assistant" else ""
        found = BEGUN.match(content) or (
            ENDED.search(content[-99:]) if ASKED.search(content) else None
        )
        if found:
            raise BadRowError(
                f"the question is rendered: it has {shown(found[1])}, which a template writes",
                "write the text of each turn alone, as messages: it is rendered for the student",
            )


def content_of(turn: Any) -> Any:
    """Return the content of a turn, or the text of a part of it."""
    keys = ("content", "value", "text")
    return next((turn[key] for key in keys if key in turn), "") if isinstance(turn, dict) else turn


def role_of(turn: Any) -> str:
    """Return the role that a turn names, as spelled; "" if it names none."""
    return str(turn.get("role", turn.get("from"))) if isinstance(turn, dict) else ""


def own_trace(columns: Columns) -> str | None:
    """Return the trace that a row has in a column of its own; a mode, such as "off", is not one.

    Raises BadRowError for another single word, which may be either.
    """
    traces = {}
    for name in TRACES:
        try:
            value = trace(columns.row, columns.spelled(name))
        except ValueError as error:
            raise BadRowError(str(error), "write a row for each, or keep one") from None
        if value is not None:
            if WORD.fullmatch(value.strip()):
                raise BadRowError(
                    f"{columns.spelled(name)} is {shown(value)}: a setting, or a trace of one word",
                    "rename the column of a setting; leave out rows whose trace is one word",
                )
            columns.take(name)
            traces[columns.spelled(name)] = value
    return agreeing(traces, "trace")


def with_trace(answer: str, reasoning: str | None, where: str) -> str:
    """Return an answer after its reasoning, unless it holds that reasoning already.

    A trace in SECTIONS is put between think tags.
    """
    if sections := SECTIONS.fullmatch(answer):
        answer = thought(sections[1].strip(), sections[2].strip(), prefilled=False)
    reasoning = reasoning and without_tags(reasoning)
    if reasoning is None or (CLOSE in answer and reasoning.strip() in answer):
        return answer
    if any(tag in part for tag in (OPEN, CLOSE) for part in (answer, reasoning)):
        raise BadRowError(f"{where}: reasoning holds a think block, or the answer another one")
    return thought(reasoning, answer, prefilled=False)


def user_turn(content: str) -> Message:
    """Return a turn of the user."""
    return {"role": "user", "content": content}
