"""Row forms of question data sets, and their conversion to one form.

| form | what is asked |
|---|---|
| messages | messages: [{role, content}, ...], with or without an assistant's answer |
| sharegpt | conversations: [{from, value}, ...] |
| problem | problem, question, question_stem, question_content, or description with test cases |
| alpaca | instruction, input |
| prompt-completion | prompt, query or input: each a text or messages |

What a row is depends on all of its columns. Beside a trace (TRACES) and no other answer of a
teacher (`replies.py`), `solution`, `answer` or `content` is the teacher's, and not the gold: it
would be verified against itself. A text with a think block is a teacher's, too. A system prompt, a
history, a passage and options are asked with the question. Columns that disagree are refused, and
so is an answer that a column marks as bad. "auto" reads the columns of all forms, and a form that
is named those of its own alone.
"""

import json
import re
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from dstools_distill.data.choices import Bases, asked_with, lacks_options, read_options
from dstools_distill.data.columns import BadRowError, Columns, agreeing, answer_text, shown, text
from dstools_distill.data.conversations import (
    ROLES,
    Message,
    content_of,
    conversation,
    own_trace,
    refuse_rendered,
    role_of,
    split_last_question,
    user_turn,
)
from dstools_distill.data.golds import CODE_CASES, read_gold
from dstools_distill.data.replies import (
    all_replies,
    listed_replies,
    refuse_bad,
    single_reply,
    taken,
)
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import AnswerType, Form
from dstools_distill.records import Record, Reply

QUESTIONS: dict[str, Form] = {
    "messages": "messages",
    "conversations": "sharegpt",
    "problem": "problem",
    "question": "problem",
    "instruction": "alpaca",
    "prompt": "prompt-completion",
    "query": "prompt-completion",
    "input": "prompt-completion",
    "conversation": "messages",  # LMSYS-Chat-1M
    "question_stem": "problem",
    "question_content": "problem",
    "description": "problem",  # code_contests, codeforces; elsewhere it is of something else
}
SYSTEMS = ("system", "system_prompt")
PASSAGES = ("passage", "context", "article", "narrative", "flores_passage")  # before the question
TITLES = {  # what follows a description, as in the prompts of open-r1/codeforces-cots
    "input_format": "Input Format",
    "interaction_format": "Interaction Format",
    "output_format": "Output Format",
    "examples": "Examples",
    "note": "Note",
}
BEFORE: dict[str, tuple[str, ...]] = {"question": ("body",)}  # SVAMP
AFTER: dict[str, tuple[str, ...]] = {  # the question, by the column that is asked
    "instruction": ("input",),
    "description": tuple(TITLES),
}
ANSWER_TYPES = get_args(AnswerType)
SPELLED = 0.8  # likeness, 0 to 1, of a misspelled word; OlympiadBench has "Numerical"
NO_TESTS = "leave such rows out; its examples alone would pass wrong programs"
PICTURES = ("image", "images", "decoded_image")
TOOLS = ("tools", "functions")
TOOL_NAME = re.compile(r'"name"\s*:\s*"([^"]+)"')
NO_QUESTION = ("", "n/a", "none", "null")  # apart from dashes and dots; OpenCodeReasoning has "-"


class Question(NamedTuple):
    """A converted row."""

    form: Form  # of the row; never "auto"
    messages: list[Message]  # the last one is a user's
    gold: str | None
    answer_type: str  # "" if the row does not name it
    difficulty: float | None  # from 0, solved by all, to 1, solved by none
    replies: tuple[Reply, ...]  # the answers in the row, with their reasoning in <think>
    unread: tuple[str, ...] = ()  # columns with a value that nothing was taken from
    doubt: BadRowError | None = None  # why it cannot be judged

    @property
    def first_reply(self) -> str | None:
        """The first answer in the row, None if there is none."""
        return self.replies[0].raw if self.replies else None


def convert(row: Record, form: Form, referee: Referee | None, bases: Bases) -> Question:
    """Return the question in a row.

    `referee` compares golds, None if no gold is needed; `bases` tells what indices of options count
    from. Raises BadRowError if the row does not have the form, if a text is empty or not a string,
    if columns disagree about the question, the trace, the teacher's answer or the gold, or if the
    answer is marked as bad.
    """
    columns = Columns(row)
    for pictures in filter(columns.has, PICTURES):
        raise BadRowError(f"{pictures} holds a picture, which is not read", "leave such rows out")
    name = _asking(columns, form)
    messages, reply = split_last_question(_with_system(columns, _turns(columns, name)))
    refuse_rendered(messages)
    _refuse_tools(columns, messages)
    options = read_options(columns)
    if options is not None:
        messages[-1] = user_turn(asked_with(messages[-1]["content"], options))
    reasoning, teachers = own_trace(columns), ""
    if reply is None or QUESTIONS[name] == "prompt-completion":
        reply = single_reply(columns, name, reply)
    several = listed_replies(columns)
    if reply is None and not several:
        teachers = taken(columns, reasoning)
        reply = answer_text(columns.take(teachers), teachers) if teachers else None
    gold = read_gold(columns, options, teachers, referee, bases)
    reply = gold.worked if reply is None and not several else reply
    replies = all_replies(columns, reply, several, reasoning)
    refuse_bad(columns, replies)
    answer_type = _answer_type(columns) or gold.answer_type
    difficulty, doubt = _difficulty(columns), gold.doubt
    if not answer_type and not isinstance(row.get("task"), dict):
        doubt = doubt or lacks_options(gold.gold, messages)
    if name == "description" and not replies and not any(map(columns.has, CODE_CASES)):
        doubt = BadRowError("official_tests are missing: nothing judges a program", NO_TESTS)
    of, unread = QUESTIONS[name], columns.unread()
    return Question(of, messages, gold.gold, answer_type, difficulty, replies, unread, doubt)


# ----------------------------------------------------------------------------------- the question


def _asking(columns: Columns, form: Form) -> str:
    """Return the column that is asked: a conversation, or the text that holds all the others.

    The others are its parts or doubles, and count as read. Raises BadRowError if they are not.
    """
    names = [name for name, of in QUESTIONS.items() if form in ("auto", of)]
    if "official_tests" not in columns and not any(columns.has(name) for name in CODE_CASES):
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
                _one_question([asking, name]),
            )
        columns.take(name)
    return asking


def _one_question(names: list[str]) -> str:
    """Return what to do about two columns that may be the question."""
    forms = [QUESTIONS[name] for name in names]
    if forms[0] == forms[1]:
        return f"keep only the one that is asked: rename {names[1]} in the file, or {names[0]}"
    ways = (f"form = {form!r} to ask {name}" for form, name in zip(forms, names, strict=True))
    return f"keep only the one that is asked, or set {' or '.join(ways)}"


def _plain(value: Any) -> str:
    """Return all words of a text or a conversation."""
    if not isinstance(value, list):
        return " ".join(str(value).split())
    return " ".join(_plain(content_of(turn)) for turn in value)


def _plain_question(value: Any) -> str:
    """Return the words of a text, or of the last turn of a conversation that a user says."""
    if not isinstance(value, list):
        return _plain(value)
    users = [_plain(content_of(turn)) for turn in value if ROLES.get(role_of(turn)) == "user"]
    return users[-1] if users else ""


def _turns(columns: Columns, name: str) -> list[Message]:
    """Return the turns of a row: of its conversation, or of a text and what belongs to it."""
    if QUESTIONS[name] in ("messages", "sharegpt") or isinstance(columns.take(name), list):
        return conversation(columns.take(name), columns.spelled(name))
    question = columns.text(name)
    if question.strip(" .-—").lower() in NO_QUESTION:
        raise BadRowError(
            f"{name} is {question!r}, which is not a question", "fill in the questions"
        )
    before = (*PASSAGES, *BEFORE.get(name, ()))
    passages = [columns.text(column) for column in before if columns.has(column)]
    after = (*AFTER.get(name, ()), "starter_code")
    after_texts = [_titled(columns, column) for column in after if columns.has(column)]
    parts = [
        part
        for part in (*passages, question, *after_texts)
        if part == question or part not in question
    ]
    return [*_history(columns), user_turn("\n\n".join(parts))]


def _refuse_tools(columns: Columns, messages: list[Message]) -> None:
    """Raise BadRowError if a row has tools that its messages do not describe."""
    said = "\n".join(turn["content"] for turn in messages)
    for name in filter(columns.has, TOOLS):
        tools = columns.take(name)
        listed = tools if isinstance(tools, str) else json.dumps(tools)
        if any(tool not in said for tool in TOOL_NAME.findall(listed)):
            raise BadRowError(
                f"{columns.spelled(name)} are not rendered",
                "describe them in the system prompt, or leave such rows out",
            )


def _titled(columns: Columns, name: str) -> str:
    """Return the text of a column that follows the question, below its title if it has one.

    Examples are a list of {"input", "output"}.
    """
    if name == "examples":
        examples = columns.take(name)
        pairs = examples if isinstance(examples, list) else [examples]
        if not all(isinstance(pair, dict) and {"input", "output"} <= pair.keys() for pair in pairs):
            problem = f"{columns.spelled(name)} are not inputs and outputs: {shown(examples)}"
            raise BadRowError(problem, 'write a list of {"input", "output"}, or leave them out')
        body = "\n".join(
            f"```{key}\n{str(pair[key]).strip()}\n```"
            for pair in pairs
            for key in ("input", "output")
        )
    else:
        body = columns.text(name)
    return f"## {TITLES[name]}\n{body}" if name in TITLES else body


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
        turns += [user_turn(text(pair[0], where)), answer]
    return turns


def _with_system(columns: Columns, turns: list[Message]) -> list[Message]:
    """Return the turns after the system prompt that has a column of its own, if any."""
    prompts = {name: columns.text(name) for name in SYSTEMS if columns.has(name)}
    if turns and turns[0]["role"] == "system" and prompts:
        prompts |= {"the first message": turns[0]["content"]}
    system = agreeing(prompts, "system prompt")
    if system is None or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _answer_type(columns: Columns) -> str:
    """Return the type that a row names; "" for a word of another data set, which is not read.

    Raises BadRowError for a misspelled one.
    """
    value = columns.row.get(columns.spelled("answer_type"))
    answer_type = value.lower() if isinstance(value, str) else ""
    if answer_type in ANSWER_TYPES:
        columns.take("answer_type")
        return answer_type
    if get_close_matches(answer_type, ANSWER_TYPES, cutoff=SPELLED):
        raise BadRowError(f"answer_type is {answer_type!r}, not one of {', '.join(ANSWER_TYPES)}")
    return ""


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
