"""Row forms of question data sets, and their conversion to one form.

| form | keys |
|---|---|
| messages | messages: [{role, content}, ...], with or without an assistant's answer |
| sharegpt | conversations: [{from, value}, ...] |
| problem | problem or question |
| alpaca | instruction, input, output |
| prompt-completion | prompt, completion or response: each a text or messages |

All forms may have a gold answer in a key of GOLD_KEYS, and an assistant's reasoning in its content,
as <think>, or in a key of THINKING_KEYS. "auto" takes the first form above whose first key a row
has.
"""

from typing import Any, NamedTuple, get_args

from dstools_converters.model.reasoning import CLOSE, OPEN, thought
from dstools_distill.judge.extract import last_boxed
from dstools_distill.recipe.settings import AnswerType, Form
from dstools_distill.records import Record

Message = dict[str, str]
FIRST_KEYS: dict[str, Form] = {
    "messages": "messages",
    "conversations": "sharegpt",
    "problem": "problem",
    "question": "problem",
    "instruction": "alpaca",
    "prompt": "prompt-completion",
}
GOLD_KEYS = ("gold", "expected", "expected_answer", "final_answer", "answer")
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
ROLES = {"system": "system", "user": "user", "human": "user"} | dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "model"), "assistant"
)
ANSWER_TYPES = get_args(AnswerType)
GSM8K = "\n#### "  # openai/gsm8k: between a worked solution and the answer


class BadRowError(ValueError):
    """A row does not hold a question."""


class Question(NamedTuple):
    """A converted row."""

    form: Form  # of the row; never "auto"
    messages: list[Message]  # the last one is a user's
    gold: str | None
    answer_type: str  # "" if the row does not name it
    difficulty: float | None  # from 0, solved by all, to 1, solved by none
    reference: str | None  # the answer in the row, with its reasoning in <think>


def convert(row: Record, form: Form = "auto") -> Question:
    """Return the question in a row, whose numeric gold answers must already be strings.

    Raises BadRowError if the row does not have the form, or if a text is empty or not a string.
    """
    if form == "auto":
        form = next((candidate for key, candidate in FIRST_KEYS.items() if key in row), form)
    gold, worked = _gold(row)
    match form:
        case "messages":
            messages, reference = _asked(_conversation(row, "messages", "role", "content"))
        case "sharegpt":
            turns = _conversation(row, "conversations", "from", "value")
            if row.get("system"):
                turns.insert(0, {"role": "system", "content": _text(row, "system")})
            messages, reference = _asked(turns)
        case "problem":
            key = "problem" if "problem" in row else "question"
            if worked is None and _thinking_key(row):
                worked = gold
            messages, reference = [_user(_text(row, key))], _reference(row, worked)
        case "alpaca":
            context = f"\n\n{_text(row, 'input')}" if row.get("input") else ""
            messages = [_user(_text(row, "instruction") + context)]
            reference = _reference(row, _optional(row, "output"))
        case "prompt-completion":
            messages, reference = _prompt_completion(row)
        case _:
            raise BadRowError(f"has none of the keys {', '.join(FIRST_KEYS)}")
    return Question(form, messages, gold, _answer_type(row), _difficulty(row), reference)


def _prompt_completion(row: Record) -> tuple[list[Message], str | None]:
    if isinstance(row.get("prompt"), list):
        turns = _conversation(row, "prompt", "role", "content")
    else:
        turns = [_user(_text(row, "prompt"))]
    key = "completion" if "completion" in row else "response"
    if isinstance(row.get(key), list):
        return _asked(turns + _conversation(row, key, "role", "content"))
    messages, reference = _asked(turns)
    answer = _reference(row, _optional(row, key))
    if answer is not None and reference is not None:
        raise BadRowError(f"has an answer both in prompt and in {key}")
    return messages, reference if answer is None else answer


def _conversation(row: Record, key: str, role_key: str, text_key: str) -> list[Message]:
    """Return the turns of a conversation, each with role and content."""
    turns = row.get(key)
    if not isinstance(turns, list) or not turns:
        raise BadRowError(f"{key} is not a list of turns")
    messages = []
    for number, turn in enumerate(turns):
        where = f"{key}[{number}]"
        if not isinstance(turn, dict):
            raise BadRowError(f"{where} is not an object")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in ROLES:
            raise BadRowError(f"{where}.{role_key} is {role!r}, not one of {', '.join(ROLES)}")
        content = _text(turn, text_key, where)
        if ROLES[role] == "assistant":
            content = _with_thinking(content, turn, where)
        messages.append({"role": ROLES[role], "content": content})
    return messages


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


def _gold(row: Record) -> tuple[str | None, str | None]:
    """Return the gold answer, and the worked solution that comes with it, if any."""
    solution = _optional(row, "solution")
    key = next((key for key in GOLD_KEYS if row.get(key) is not None), None)
    if key is not None:
        gold = _text(row, key)
        worked, mark, answer = gold.rpartition(GSM8K)
        if mark and not answer.strip():
            raise BadRowError(f"{key} has nothing after ####")
        return (answer.strip(), solution or worked) if mark else (gold, solution)
    if solution is None:
        return None, None
    boxed = last_boxed(solution)
    return (solution, None) if boxed is None else (boxed, solution)


def _reference(row: Record, answer: str | None) -> str | None:
    return None if answer is None else _with_thinking(answer, row, "")


def _with_thinking(answer: str, holder: dict[str, Any], where: str) -> str:
    """Return an answer after its reasoning, if the row or turn holds one in a key of its own."""
    key = _thinking_key(holder)
    if key is None:
        return answer
    thinking = _text(holder, key, where)
    if OPEN in answer or CLOSE in answer or OPEN in thinking or CLOSE in thinking:
        raise BadRowError(f"{_name(key, where)} holds a think block, or the answer does")
    return thought(thinking, answer, prefilled=False)


def _thinking_key(holder: dict[str, Any]) -> str | None:
    return next((key for key in THINKING_KEYS if holder.get(key)), None)


def _answer_type(row: Record) -> str:
    answer_type = row.get("answer_type")
    if answer_type is None:
        return ""
    if answer_type not in ANSWER_TYPES:
        raise BadRowError(f"answer_type is {answer_type!r}, not one of {', '.join(ANSWER_TYPES)}")
    return str(answer_type)


def _difficulty(row: Record) -> float | None:
    """Return 1 - pass_rate, or difficulty if it is from 0 to 1: other scales are unknown."""
    for key in ("pass_rate", "difficulty"):
        share = row.get(key)
        if isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1:
            return 1 - float(share) if key == "pass_rate" else float(share)
    return None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _optional(row: dict[str, Any], key: str) -> str | None:
    return _text(row, key) if row.get(key) not in (None, "") else None


def _text(holder: dict[str, Any], key: str, where: str = "") -> str:
    text = holder.get(key)
    if not isinstance(text, str):
        problem = "is missing" if text is None else f"is not a string: {type(text).__name__}"
        raise BadRowError(f"{_name(key, where)} {problem}")
    if not text.strip():
        raise BadRowError(f"{_name(key, where)} is empty")
    return text


def _name(key: str, where: str) -> str:
    return f"{where}.{key}" if where else key
