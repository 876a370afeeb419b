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

A row may hold several answers: a list in one of REPLIES or GENERATIONS, each a text or an object
with one (ANSWER_KEYS), or the columns NUMBERED, with a word of `finish_reasons` for each. A list of
GENERATIONS may be JSON.
"""

from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_distill.data.columns import (
    BadRowError,
    Columns,
    agreeing,
    answer_text,
    from_json,
    shown,
    text,
)
from dstools_distill.data.conversations import (
    ROLES,
    Message,
    content_of,
    conversation,
    own_trace,
    role_of,
    split_last_question,
    user_turn,
    with_trace,
)
from dstools_distill.data.golds import CODE_CASES, asked_with, read_gold, read_options
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
    *("generation", "llm_response", "model_answer"),  # codeforces-cots, SYNTHETIC-1
)
GENERATIONS = ("generations", "responses", "completions", "outputs")  # OpenR1-Math; vLLM's logs
ANSWER_KEYS = ("text", "response", "content", "generation", "output", "completion")
NUMBERED = ("r1_solution_1", "r1_solution_2", "r1_solution_3")  # DeepMath-103K
ANSWER_TYPES = get_args(AnswerType)
SPELLED = 0.8  # likeness, 0 to 1, of a misspelled word; OlympiadBench has "Numerical"
PICTURES = ("image", "images", "decoded_image")
MARKS = ("label", "correct", "is_correct", "correctness")  # false: KTO's and others' bad answers


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


def convert(row: Record, form: Form, referee: Referee | None) -> Question:
    """Return the question in a row.

    `referee` compares golds, None if no gold is needed. Raises BadRowError if the row does not have
    the form, if a text is empty or not a string, if columns disagree about the question, the trace,
    the teacher's answer or the gold, or if the answer is marked as bad.
    """
    columns = Columns(row)
    for pictures in filter(columns.has, PICTURES):
        raise BadRowError(f"{pictures} holds a picture, which is not read", "leave such rows out")
    name = _asking(columns, form)
    messages, reply = split_last_question(_with_system(columns, _turns(columns, name)))
    options = read_options(columns)
    if options is not None:
        messages[-1] = user_turn(asked_with(messages[-1]["content"], options))
    reasoning, taken = own_trace(columns), ""
    if reply is None or QUESTIONS[name] == "prompt-completion":
        reply = _single_reply(columns, name, reply)
    several = _listed_replies(columns)
    if reply is None and not several:
        taken = _taken(columns, reasoning)
        reply = answer_text(columns.take(taken), taken) if taken else None
    gold = read_gold(columns, options, taken, referee)
    reply = gold.worked if reply is None and not several else reply
    replies = _all_replies(columns, reply, several, reasoning)
    _refuse_bad(columns, replies)
    answer_type = _answer_type(columns) or gold.answer_type
    difficulty = _difficulty(columns)
    of, unread = QUESTIONS[name], columns.unread()
    return Question(of, messages, gold.gold, answer_type, difficulty, replies, unread, gold.doubt)


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
    passages = [columns.text(column) for column in PASSAGES if columns.has(column)]
    after = (*AFTER.get(name, ()), "starter_code")
    after_texts = [columns.text(column) for column in after if columns.has(column)]
    parts = [
        part
        for part in (*passages, question, *after_texts)
        if part == question or part not in question
    ]
    return [*_history(columns), user_turn("\n\n".join(parts))]


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


# -------------------------------------------------------------------------------- trace and answer


def _single_reply(columns: Columns, name: str, in_question: str | None) -> str | None:
    """Return the teacher's answer from a column of its own; `name` is the column that is asked."""
    replies = {}
    for key in REPLIES:
        if columns.has(key) and not _answers(columns, key):
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


def _listed_replies(columns: Columns) -> list[Reply]:
    """Return the answers of a row with several of them, each with the word for its end, if any.

    Raises BadRowError for lists in two columns, and for words that do not match the answers.
    """
    names = [name for name in (*GENERATIONS, *REPLIES) if _answers(columns, name)]
    if len(names) > 1:
        raise BadRowError(
            f"{names[0]} and {names[1]} are both lists of answers", "keep one of the columns"
        )
    answers = [columns.take(n) for n in NUMBERED if n in columns]
    if names:
        answers = _answers(columns, names[0])
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


def _answers(columns: Columns, name: str) -> list[Any]:
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


def _all_replies(
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


def _taken(columns: Columns, reasoning: str | None) -> str:
    """Return the column that holds the teacher's answer though its name may be a gold's, or ""."""
    for name in ("solution", "answer", "content"):
        if columns.has(name):
            value = str(columns.row[columns.spelled(name)])
            if reasoning is not None or OPEN in value or CLOSE in value:
                return name
    return ""


def _refuse_bad(columns: Columns, replies: tuple[Reply, ...]) -> None:
    """Raise BadRowError if a column says that the answer in the row is a bad one."""
    for name in MARKS:
        if replies and columns.row.get(columns.spelled(name)) is False:
            raise BadRowError(
                f"{columns.spelled(name)} is false: the answer in the row is marked as bad",
                "leave such rows out, or their answers",
            )


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
