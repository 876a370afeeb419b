"""Row forms of question data sets, and their conversion to one form.

| form | what is asked |
|---|---|
| messages | messages: [{role, content}, ...], with or without an assistant's answer |
| sharegpt | conversations: [{from, value}, ...] |
| problem | problem, question, question_stem, question_content, or description with test cases |
| alpaca | instruction, input |
| prompt-completion | prompt, query or input: each a text or messages |

What a row is depends on all of its columns. Beside a trace (TRACES) and no other answer of a
teacher (REPLIES), `solution`, `answer` or `content` is the teacher's, and not the gold: it would be
verified against itself. A text with a think block is a teacher's, too. A system prompt, a history,
a passage and options are asked with the question. Columns that disagree are refused, and so is an
answer that a column marks as bad. "auto" reads the columns of all forms, and a form that is named
those of its own alone.
"""

import re
from typing import Any, NamedTuple, get_args

from dstools_converters.model.reasoning import CLOSE, OPEN, thought
from dstools_distill.data.columns import (
    BadRowError,
    Columns,
    agreeing,
    answer_text,
    reasoning_and_text,
    shown,
    text,
)
from dstools_distill.data.golds import CODE_CASES, asked_with, read_gold, read_options
from dstools_distill.recipe.settings import AnswerType, Form
from dstools_distill.records import TRACES, Record, trace

Message = dict[str, str]
QUESTIONS: dict[str, Form] = {
    "messages": "messages",
    "conversations": "sharegpt",
    "problem": "problem",
    "question": "problem",
    "instruction": "alpaca",
    "prompt": "prompt-completion",
    "query": "prompt-completion",
    "input": "prompt-completion",
    "question_stem": "problem",
    "question_content": "problem",
    "description": "problem",  # code_contests, codeforces; elsewhere it is of something else
}
SYSTEMS = ("system", "system_prompt")
PASSAGES = ("passage", "context", "article")  # before the question
AFTER: dict[str, tuple[str, ...]] = {  # the question, by the column that is asked
    "instruction": ("input",),
    "description": ("input_format", "output_format"),
}
REPLIES = (
    *("completion", "response", "output", "generated_solution"),
    *("deepseek_solution", "deepseek_attempt", "attempt"),  # OpenThoughts, s1K
)
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user"} | (
    dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant")
)
ANSWER_TYPES = get_args(AnswerType)
MARKS = ("label", "correct", "is_correct", "correctness")  # false: KTO's and others' bad answers
WORD = re.compile("[A-Za-z]{1,16}")  # of a script with blanks: a trace has more


class Question(NamedTuple):
    """A converted row."""

    form: Form  # of the row; never "auto"
    messages: list[Message]  # the last one is a user's
    gold: str | None
    answer_type: str  # "" if the row does not name it
    difficulty: float | None  # from 0, solved by all, to 1, solved by none
    reference: str | None  # the answer in the row, with its reasoning in <think>
    unread: tuple[str, ...] = ()  # columns with a value that nothing was taken from


def convert(row: Record, form: Form = "auto") -> Question:
    """Return the question in a row.

    Raises BadRowError if the row does not have the form, if a text is empty or not a string, if
    columns disagree about the question, the trace, the teacher's answer or the gold, or if the
    answer is marked as bad.
    """
    columns = Columns(row)
    name = _asking(columns, form)
    messages, reply = _asked(_with_system(columns, _turns(columns, name)))
    options = read_options(columns)
    if options is not None:
        messages[-1] = _user(asked_with(messages[-1]["content"], options))
    reasoning, taken = _own_trace(columns), ""
    if reply is None or QUESTIONS[name] == "prompt-completion":
        reply = _reply(columns, name, reply)
    if reply is None:
        taken = _taken(columns, reasoning)
        reply = answer_text(columns.take(taken), taken) if taken else None
    gold = read_gold(columns, options, taken)
    reply = gold.worked if reply is None else reply
    reference = None if reply is None else _with_trace(reply, reasoning, "the trace")
    _refuse_bad(columns, reference)
    answer_type = _answer_type(columns) or gold.answer_type
    difficulty = _difficulty(columns)
    return Question(
        QUESTIONS[name], messages, gold.gold, answer_type, difficulty, reference, columns.unread()
    )


# ----------------------------------------------------------------------------------- the question


def _asking(columns: Columns, form: Form) -> str:
    """Return the column that is asked: a conversation, or the text that holds all the others.

    The others are its parts or doubles, and count as read. Raises BadRowError if they are not.
    """
    names = [name for name, of in QUESTIONS.items() if form in ("auto", of)]
    if not any(columns.has(name) for name in CODE_CASES):
        names = [name for name in names if name != "description"]
    given = [name for name in names if columns.has(name)]
    if len(given) > 1:
        given = [name for name in given if name != "description"]
    if "instruction" in given or form == "alpaca":
        given = [name for name in given if name != "input"]
    if not given:
        if empty := [name for name in names if name in columns]:
            return empty[0]
        if form != "auto":
            return names[0]
        raise BadRowError(
            f"has none of the keys {', '.join(names)}, but {', '.join(columns.row) or 'none'}",
            "name the column with the question `problem`; a rendered text must be messages again",
        )

    if len(given) == 1:
        return given[0]

    def size(name: str) -> tuple[bool, int]:
        return isinstance(columns.row.get(columns.spelled(name)), list), len(texts[name])

    texts = {name: _plain(columns.row[columns.spelled(name)]) for name in given}
    asking = max(given, key=size)
    for name in given:
        if _plain_question(columns.row[columns.spelled(name)]) not in texts[asking]:
            raise BadRowError(
                f"{asking} is {shown(texts[asking])} and {name} is {shown(texts[name])}: "
                "either may be the question",
                f"keep only the one that is asked, or set form = {QUESTIONS[asking]!r}",
            )
        columns.take(name)
    return asking


def _plain(value: Any) -> str:
    """Return all words of a text or a conversation."""
    if not isinstance(value, list):
        return " ".join(str(value).split())
    return " ".join(_plain(_content_of(turn)) for turn in value)


def _plain_question(value: Any) -> str:
    """Return the words of a text, or of the last turn of a conversation that a user says."""
    if not isinstance(value, list):
        return _plain(value)
    users = [_plain(_content_of(turn)) for turn in value if ROLES.get(_role(turn)) == "user"]
    return users[-1] if users else ""


def _content_of(turn: Any) -> Any:
    """Return the content of a turn, or the text of a part of it."""
    keys = ("content", "value", "text")
    return next((turn[key] for key in keys if key in turn), "") if isinstance(turn, dict) else turn


def _role(turn: Any) -> str:
    return str(turn.get("role", turn.get("from"))) if isinstance(turn, dict) else ""


def _turns(columns: Columns, name: str) -> list[Message]:
    """Return the turns of a row: of its conversation, or of a text and what belongs to it."""
    if QUESTIONS[name] in ("messages", "sharegpt") or isinstance(columns.take(name), list):
        return _conversation(columns.take(name), columns.spelled(name))
    question = columns.text(name)
    passages = [columns.text(column) for column in PASSAGES if columns.has(column)]
    after = (*AFTER.get(name, ()), "starter_code")
    after_texts = [columns.text(column) for column in after if columns.has(column)]
    parts = [
        part
        for part in (*passages, question, *after_texts)
        if part == question or part not in question
    ]
    return [*_history(columns), _user("\n\n".join(parts))]


def _history(columns: Columns) -> list[Message]:
    """Return the turns of LLaMA-Factory's and ms-swift's history: pairs of question and answer."""
    if not columns.has("history"):
        return []
    pairs, name = columns.take("history"), columns.spelled("history")
    turns = []
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
        where = f"{name}[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRowError(f"{where} is not a pair of a question and an answer: {shown(pair)}")
        answer = {"role": "assistant", "content": text(pair[1], where)}
        turns += [_user(text(pair[0], where)), answer]
    return turns


def _conversation(turns: Any, name: str) -> list[Message]:
    """Return the turns of a conversation, each with role and content; no empty system message."""
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
        if turn.get(text_key) is None:
            raise BadRowError(f"{where}.{text_key} is missing")
        inner, content = reasoning_and_text(turn[text_key], f"{where}.{text_key}")
        if ROLES[role] == "system" and not content.strip():
            continue
        content = text(content, f"{where}.{text_key}")
        if ROLES[role] == "assistant":
            content = _with_trace(content, inner or _own_trace(Columns(turn)), where)
        messages.append({"role": ROLES[role], "content": content})
    return messages


def _with_system(columns: Columns, turns: list[Message]) -> list[Message]:
    """Return the turns after the system prompt that has a column of its own, if any."""
    prompts = {name: columns.text(name) for name in SYSTEMS if columns.has(name)}
    if turns and turns[0]["role"] == "system" and prompts:
        prompts |= {"the first message": turns[0]["content"]}
    system = agreeing(prompts, "system prompt")
    if system is None or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _asked(turns: list[Message]) -> tuple[list[Message], str | None]:
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


# -------------------------------------------------------------------------------- trace and answer


def _own_trace(columns: Columns) -> str | None:
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


def _reply(columns: Columns, name: str, in_question: str | None) -> str | None:
    """Return the teacher's answer from a column of its own; `name` is the column that is asked."""
    replies = {}
    for key in REPLIES:
        if columns.has(key):
            value = columns.take(key)
            if isinstance(value, list):
                replies[key] = _asked([_user("?"), *_conversation(value, key)])[1] or ""
            else:
                replies[key] = columns.text(key)
    reply = agreeing(replies, "teacher's answer")
    if reply is not None and in_question is not None:
        raise BadRowError(f"has an answer both in {name} and in {next(iter(replies))}")
    return in_question if reply is None else reply


def _taken(columns: Columns, reasoning: str | None) -> str:
    """Return the column that holds the teacher's answer though its name may be a gold's, or ""."""
    for name in ("solution", "answer", "content"):
        if columns.has(name):
            value = str(columns.row[columns.spelled(name)])
            if reasoning is not None or OPEN in value or CLOSE in value:
                return name
    return ""


def _refuse_bad(columns: Columns, reference: str | None) -> None:
    """Raise BadRowError if a column says that the answer in the row is a bad one."""
    for name in MARKS:
        if reference is not None and columns.row.get(columns.spelled(name)) is False:
            raise BadRowError(
                f"{columns.spelled(name)} is false: the answer in the row is marked as bad",
                "leave such rows out, or their answers",
            )


def _with_trace(answer: str, reasoning: str | None, where: str) -> str:
    """Return an answer after its reasoning, unless it holds that reasoning already."""
    if reasoning is None or (CLOSE in answer and reasoning.strip() in answer):
        return answer
    if any(tag in part for tag in (OPEN, CLOSE) for part in (answer, reasoning)):
        raise BadRowError(f"{where}: reasoning holds a think block, or the answer another one")
    return thought(reasoning, answer, prefilled=False)


def _answer_type(columns: Columns) -> str:
    answer_type = columns.take("answer_type")
    if answer_type is None:
        return ""
    if answer_type not in ANSWER_TYPES:
        raise BadRowError(f"answer_type is {answer_type!r}, not one of {', '.join(ANSWER_TYPES)}")
    return str(answer_type)


def _difficulty(columns: Columns) -> float | None:
    """Return 1 - pass_rate, or difficulty if it is between 0 and 1: other scales are unknown.

    A difficulty of exactly 1 may be the easiest of 1 to 10, and one of 0 is on no scale for sure.
    """
    for name in ("pass_rate", "difficulty"):
        share = columns.row.get(columns.spelled(name))
        if isinstance(share, int | float) and not isinstance(share, bool):
            if name == "pass_rate" and 0 <= share <= 1:
                columns.take(name)
                return 1 - float(share)
            if name == "difficulty" and 0 < share < 1:
                columns.take(name)
                return float(share)
    return None


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
