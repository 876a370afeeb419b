"""The forms that questions come in, and the one they leave in.

| form | keys |
|---|---|
| messages | messages: [{role, content}, ...], with or without an assistant's answer |
| sharegpt | conversations: [{from, value}, ...] |
| problem | problem or question |
| alpaca | instruction, input, output |
| prompt-completion | prompt, completion or response: each a text or messages |

A gold answer stands beside, in any form. An assistant's reasoning may stand in its content, as <think>, or in
a key of its own. "auto" takes the first form of this table whose first key a row has.
"""

from typing import Any, NamedTuple, get_args

from dstools_distill.recipe.settings import AnswerType, Form
from dstools_distill.records import CLOSE, OPEN, Record, thought

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
ROLES = {
    "system": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
ANSWER_TYPES = get_args(AnswerType)
GSM8K = "\n#### "  # openai/gsm8k: a worked solution, then this and the answer


class BadRowError(ValueError):
    """Why a row is no question."""


class Question(NamedTuple):
    """A row, converted."""

    form: Form  # as found
    messages: list[Message]  # the last one is a user's
    gold: str | None
    answer_type: str  # "" where the row does not say
    difficulty: float | None  # 0: everybody solves it, 1: nobody
    reference: str | None  # the answer that came with it, reasoning in <think>


def convert(row: Record, form: Form = "auto") -> Question:
    """Return the question in a row; numbers among the gold answers are texts already.

    Raises BadRowError where the row has not that form, or a text is empty or none.
    """
    if form == "auto":
        form = next((found for key, found in FIRST_KEYS.items() if key in row), form)
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
            given = f"\n\n{_text(row, 'input')}" if row.get("input") else ""
            messages = [_user(_text(row, "instruction") + given)]
            reference = _reference(row, _optional(row, "output"))
        case "prompt-completion":
            messages, reference = _prompt_completion(row)
        case _:
            raise BadRowError(f"has none of the keys {', '.join(FIRST_KEYS)}")
    return Question(form, messages, gold, _answer_type(row), _difficulty(row), reference)


def _prompt_completion(row: Record) -> tuple[list[Message], str | None]:
    turns = (
        _conversation(row, "prompt", "role", "content")
        if isinstance(row.get("prompt"), list)
        else [_user(_text(row, "prompt"))]
    )
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
        raise BadRowError(f"{key} is no list of turns")
    found = []
    for number, turn in enumerate(turns):
        where = f"{key}[{number}]"
        if not isinstance(turn, dict):
            raise BadRowError(f"{where} is no object")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in ROLES:
            raise BadRowError(
                f"{where}.{role_key} is {role!r}, which is none of {', '.join(ROLES)}"
            )
        content = _text(turn, text_key, where)
        if ROLES[role] == "assistant":
            content = _with_thinking(content, turn, where)
        found.append({"role": ROLES[role], "content": content})
    return found


def _asked(turns: list[Message]) -> tuple[list[Message], str | None]:
    """Return the turns up to the last one of a user, and the answer to it where there is one."""
    last = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise BadRowError("nobody asks anything: no turn of a user")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRowError("has a system message that is not its first one")
    answers = turns[last + 1 :]
    if len(answers) > 1:
        raise BadRowError(f"has {len(answers)} answers to its last question")
    return turns[: last + 1], answers[0]["content"] if answers else None


def _gold(row: Record) -> tuple[str | None, str | None]:
    """Return the gold answer, and the worked solution around it where there is one."""
    solution = _optional(row, "solution")
    key = next((key for key in GOLD_KEYS if row.get(key) is not None), None)
    if key is not None:
        gold = _text(row, key)
        worked, mark, answer = gold.rpartition(GSM8K)
        if mark and not answer.strip():
            raise BadRowError(f"{key} has nothing behind ####")
        return (answer.strip(), solution or worked) if mark else (gold, solution)
    if solution is None:
        return None, None
    boxed = last_boxed(solution)
    return (solution, None) if boxed is None else (boxed, solution)


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last \boxed{...} or \fbox{...} of a text; braces may nest."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at].strip() or None
    return None


def _reference(row: Record, answer: str | None) -> str | None:
    return None if answer is None else _with_thinking(answer, row, "")


def _with_thinking(answer: str, said: dict[str, Any], where: str) -> str:
    """Return an answer behind its reasoning, which may stand in a key of its own."""
    key = _thinking_key(said)
    if key is None:
        return answer
    thinking = _text(said, key, where)
    if OPEN in answer or CLOSE in answer or OPEN in thinking or CLOSE in thinking:
        raise BadRowError(f"{_name(key, where)} stands beside a think block, or holds one")
    return thought(thinking, answer, prefilled=False)


def _thinking_key(said: dict[str, Any]) -> str | None:
    return next((key for key in THINKING_KEYS if said.get(key)), None)


def _answer_type(row: Record) -> str:
    found = row.get("answer_type")
    if found is None:
        return ""
    if found not in ANSWER_TYPES:
        raise BadRowError(f"answer_type is {found!r}, which is none of {', '.join(ANSWER_TYPES)}")
    return str(found)


def _difficulty(row: Record) -> float | None:
    """Return 1 - pass_rate, or difficulty where it is a share: others mean what they mean elsewhere."""
    for key in ("pass_rate", "difficulty"):
        found = row.get(key)
        if isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found <= 1:
            return 1 - float(found) if key == "pass_rate" else float(found)
    return None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _optional(row: dict[str, Any], key: str) -> str | None:
    return _text(row, key) if row.get(key) not in (None, "") else None


def _text(said: dict[str, Any], key: str, where: str = "") -> str:
    found = said.get(key)
    if not isinstance(found, str):
        what = "is missing" if found is None else f"is no text: {type(found).__name__}"
        raise BadRowError(f"{_name(key, where)} {what}")
    if not found.strip():
        raise BadRowError(f"{_name(key, where)} is empty")
    return found


def _name(key: str, where: str) -> str:
    return f"{where}.{key}" if where else key
