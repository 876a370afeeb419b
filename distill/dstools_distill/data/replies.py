"""The answers of a teacher in a row of a data set, each with its trace and the word for its end.

A row may hold several answers: a list in one of REPLIES or GENERATIONS, each a text or an object
with one (ANSWER_KEYS), or the columns NUMBERED, with a word of `finish_reasons` for each. A list of
GENERATIONS may be JSON.
"""

from typing import Any

from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_distill.data.columns import BadRowError, Columns, agreeing, from_json, shown
from dstools_distill.data.conversations import (
    conversation,
    own_trace,
    split_last_question,
    user_turn,
    with_trace,
)
from dstools_distill.records import Reply

REPLIES = (
    *("completion", "response", "output", "generated_solution"),
    *("deepseek_solution", "deepseek_attempt", "attempt"),  # OpenThoughts, s1K
    *("generation", "llm_response", "model_answer"),  # codeforces-cots, SYNTHETIC-1
)
GENERATIONS = ("generations", "responses", "completions", "outputs")  # OpenR1-Math; vLLM's logs
ANSWER_KEYS = ("text", "response", "content", "generation", "output", "completion")
NUMBERED = ("r1_solution_1", "r1_solution_2", "r1_solution_3")  # DeepMath-103K
MARKS = ("label", "correct", "is_correct", "correctness")  # false: KTO's and others' bad answers


def single_reply(columns: Columns, name: str, in_question: str | None) -> str | None:
    """Return the teacher's answer from a column of its own; `name` is the column that is asked."""
    replies = {}
    for key in REPLIES:
        if columns.has(key) and not _listed(columns, key):
            value = columns.take(key)
            if isinstance(value, list):
                replies[key] = (
                    split_last_question([user_turn("?"), *conversation(value, key)])[1] or ""
                )
            else:
                replies[key] = columns.text(key)
    reply = agreeing(replies, "teacher's answer")
    if reply is not None and in_question is not None:
        raise BadRowError(f"has an answer both in {name} and in {next(iter(replies))}")
    return in_question if reply is None else reply


def listed_replies(columns: Columns) -> list[Reply]:
    """Return the answers of a row with several of them, each with the word for its end, if any.

    Raises BadRowError for lists in two columns, and for words that do not match the answers.
    """
    names = [name for name in (*GENERATIONS, *REPLIES) if _listed(columns, name)]
    if len(names) > 1:
        raise BadRowError(
            f"{names[0]} and {names[1]} are both lists of answers", "keep one of the columns"
        )
    answers = [columns.take(n) for n in NUMBERED if n in columns]
    if names:
        answers = _listed(columns, names[0])
        columns.take(names[0])
    if not answers:
        return []
    words: Any = columns.take("finish_reasons") or [None] * len(answers)
    if not isinstance(words, list) or len(words) != len(answers):
        raise BadRowError(
            f"finish_reasons is {shown(words)}, for {len(answers)} answers",
            "write a list of a word, or null, for each answer",
        )
    replies = [_listed_reply(*pair) for pair in zip(answers, words, strict=True)]
    return [reply for reply in replies if reply.raw.strip()]


def _listed(columns: Columns, name: str) -> list[Any]:
    """Return the answers that a column lists, some of which may be null; [] if it is another."""
    value = columns.row.get(columns.spelled(name))
    value = from_json(value, ("[",)) if name in GENERATIONS else value
    answers = value if isinstance(value, list) else []
    given = [answer for answer in answers if answer is not None]
    are_answers = all(isinstance(answer, str) or _answer_key(answer) for answer in given)
    return answers if given and are_answers else []


def _answer_key(answer: Any) -> str:
    """Return the key of the text of an answer that is an object; "" for a turn and others."""
    is_turn = not isinstance(answer, dict) or "role" in answer or "from" in answer
    keys = [] if is_turn else [key for key in ANSWER_KEYS if isinstance(answer.get(key), str)]
    return keys[0] if len(keys) == 1 else ""


def _listed_reply(answer: Any, word: Any) -> Reply:
    """Return an answer of several: a text, an object with one and its trace, or null."""
    if not isinstance(answer, dict):
        return Reply(answer if isinstance(answer, str) else "", word)
    key = _answer_key(answer)
    raw = with_trace(answer[key], own_trace(Columns(answer)), key)
    return Reply(raw, answer.get("finish_reason", word))


def all_replies(
    columns: Columns, one: str | None, several: list[Reply], reasoning: str | None
) -> tuple[Reply, ...]:
    """Return all answers of a row: `one` first, which may be among several, then the others.

    Raises BadRowError for several answers beside one trace.
    """
    if one is not None:
        word = columns.take("finish_reason") if columns.has("finish_reason") else None
        among = next((reply for reply in several if reply.raw.strip() == one.strip()), None)
        if among is not None and among.finish_reason is not None:
            word = among.finish_reason
        first = Reply(one if among is None else among.raw, word)
        several = [first, *(reply for reply in several if reply is not among)]
    if reasoning is not None and len(several) > 1:
        raise BadRowError(
            f"has one trace and {len(several)} answers", "write a row for each answer"
        )
    return tuple(
        reply._replace(raw=with_trace(reply.raw, reasoning, "the trace")) for reply in several
    )


def taken(columns: Columns, reasoning: str | None) -> str:
    """Return the column that holds the teacher's answer though its name may be a gold's, or ""."""
    for name in ("solution", "answer", "content"):
        if columns.has(name):
            value = str(columns.row[columns.spelled(name)])
            if reasoning is not None or OPEN in value or CLOSE in value:
                return name
    return ""


def refuse_bad(columns: Columns, replies: tuple[Reply, ...]) -> None:
    """Raise BadRowError if a column says that the answer in the row is a bad one."""
    for name in MARKS:
        if replies and columns.row.get(columns.spelled(name)) is False:
            raise BadRowError(
                f"{columns.spelled(name)} is false: the answer in the row is marked as bad",
                "leave such rows out, or their answers",
            )
