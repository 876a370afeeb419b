"""The options of a choice, and which of them is right.

The question of a choice is asked with its options as A, B, ..., and its gold is a letter. A row
may name the right option by that letter, by a label of its own, by the text of the option, or by an
index. An index counts from 0 or from 1: rows of the source tell which, as only one of both can be
the number of an option or agree with a letter beside it; where none tells, its settings have to.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from itertools import takewhile
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, NamedTuple

from dstools_distill.data.columns import (
    TRUSTED,
    BadRowError,
    Columns,
    answer_text,
    from_repr,
    plain,
    shown,
)
from dstools_distill.data.replies import MARKS
from dstools_distill.records import Record

OPTIONS = ("choices", "options", "endings")
NAMED_OPTIONS = ("option_{}", "option{}", "choice_{}", "choice{}")  # MILU, WinoGrande
LETTERED = ("{}", "op{}", *NAMED_OPTIONS, "answer{}")  # C-Eval; MedMCQA; ...; SocialIQA
NUMBERED = (*NAMED_OPTIONS, "mc_answer{}", "ending{}", "sol{}")  # ...; Belebele, SWAG, PIQA
CHOSEN = (
    *("answerkey", "correct", "correct_answer", "answer_idx", "answer_index", "cop", "answer"),
    *("target", "correct_option", "answer_choice", "answer_letter", "correct_answer_num", "label"),
    *TRUSTED,
)
WRONG = ("incorrect_answer_{}", "distractor{}")  # GPQA; SciQ
Bases = Callable[[], frozenset[int]]  # what indices of a source count from; it is read if needed
BASES = frozenset({0, 1})
MARK = r"(?<![\w(])\(?{}\s*[).:](?=\s|\w|\W*\d)"  # before an option in a text: "a ) 38 , b ) 9"
NAMED = re.compile(r"\(?([A-Za-z])[).:]?")  # "B", "b", "(B)", "B."
NOT_LETTER = re.compile(r"\\[a-z]+|[${}().\s]")  # around the letter: \textbf{(B)}
CHOICES = tuple("ABCDEFGH")  # I is a word
ALONE = re.compile(r"(?<![^\W\d_])[A-H](?![^\W\d_])")
SET_BASE = (
    "set first_option = 0 or 1 in the source, the number of the first option; or write letters"
)


class Options(NamedTuple):
    """The options of a choice."""

    labels: list[str]  # "A", "B", ..., as they are asked
    texts: list[str]
    right: str | None = None  # the text of the right one, in rows that list the wrong ones alone
    names: tuple[str, ...] = ()  # what the row itself calls them: "1" of ARC, "option1"
    first: int | None = None  # the number in the name of the first column


def read_options(columns: Columns) -> Options | None:
    """Return the options of a row; None if it has none. Raises BadRowError for an odd form."""
    for name in OPTIONS:
        if columns.has(name):
            return _listed(columns.take(name), columns.spelled(name))
    answers = columns.spelled("answers")
    if columns.has("label") and isinstance(columns.row.get(answers), list):
        return _listed(columns.take("answers"), answers)  # ReClor; without a label they are golds
    for names in _column_names():
        given = list(takewhile(columns.has, names))
        is_lettered = given and (len(given[0]) > 1 or all(n.upper() in columns.row for n in given))
        if is_lettered and len(given) > 1:
            texts = [answer_text(columns.take(name), columns.spelled(name)) for name in given]
            first = int(given[0][-1]) if given[0][-1] in digits else None
            letters = list(ascii_uppercase[: len(texts)])
            return Options(letters, texts, names=tuple(given), first=first)
    wrong = [name.format(n) for name in WRONG for n in range(1, 10) if columns.has(name.format(n))]
    if wrong and columns.has("correct_answer"):  # sorted, or the first would be right
        names = ("correct_answer", *wrong)
        texts = [answer_text(columns.take(n), columns.spelled(n)).strip() for n in names]
        return Options(list(ascii_uppercase[: len(texts)]), sorted(texts), right=texts[0])
    return None


def _column_names() -> Iterator[tuple[str, ...]]:
    """Yield the names of the columns of options, in order, for each way to name them."""
    for form in LETTERED:
        yield tuple(form.format(letter) for letter in ascii_lowercase[:10])
    for form in NUMBERED:
        yield tuple(form.format(number) for number in digits)
        yield tuple(form.format(number) for number in digits[1:])


def _listed(value: Any, name: str) -> Options:
    """Return options: a list, {"A": ...}, ARC's {"label": [...], "text": [...]}, or one text."""
    labels: list[Any] = []
    value = _in_text(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        labels, value = value.get("label", list(value)), value.get("text", list(value.values()))
    if not isinstance(value, list) or not isinstance(labels, list):
        raise BadRowError(
            f"{name} is not a list of options: {shown(value)}",
            f'write {name} as a list, such as ["4", "7"]',
        )
    texts = [answer_text(option, f"{name}[{n}]") for n, option in enumerate(value)]
    letters = list(ascii_uppercase[: len(texts)])
    marked = [re.match(rf"\s*\(?{letter}\s*[).:]\s*(?=\S)", option)
              for letter, option in zip(letters, texts, strict=False)]  # fmt: skip
    if all(marked):
        texts = [option[mark.end() :] for option, mark in zip(texts, marked, strict=True) if mark]
    labels = [str(label) for label in labels] or letters
    if len(labels) != len(texts) or len(set(labels)) != len(labels):
        raise BadRowError(f"{name} has {len(texts)} options and labels {shown(labels)}")
    if all(label in ascii_uppercase for label in labels):
        return Options(labels, texts)
    return Options(letters, texts, names=tuple(labels))  # "1" would be an answer of its own


def _in_text(value: str) -> Any:
    """Return the options in a text: a list in JSON or Python, or each after its letter.

    Letters are in order, and each is there once; other texts come back as they are. Sources: MuSR
    ("['x', 'y']"), MathQA ("a ) 38 , b ) 27.675").
    """
    listed = from_repr(value)
    if listed is not value:
        return listed
    for letters in (ascii_lowercase, ascii_uppercase):
        marks = list(re.finditer(MARK.format(f"([{letters[:10]}])"), value))
        found = "".join(mark[1] for mark in marks)
        if len(found) > 1 and letters.startswith(found) and not value[: marks[0].start()].strip():
            ends = [*(mark.start() for mark in marks[1:]), len(value)]
            parts = [value[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
            return [part.strip().rstrip(",;").strip() for part in parts]
    return value


def asked_with(question: str, options: Options) -> str:
    """Return a question with its options, which it may hold already."""
    pairs = list(zip(options.labels, options.texts, strict=True))
    if all(
        re.search(rf"(?<!\w){re.escape(label)}\s*[).:\]]\s*{re.escape(option.strip())}", question)
        for label, option in pairs
    ):
        return question
    return "\n".join([question + "\n", *(f"{label}. {option}" for label, option in pairs)])


# ---------------------------------------------------------------------------------- the right one


class UnknownBaseError(BadRowError):
    """An index may count from 0 or from 1."""


def right_label(columns: Columns, options: Options, taken: str, bases: Bases) -> str | None:
    """Return the label of the right option; None if the row does not tell.

    taken: a column that is a teacher's answer, "" if none. Raises UnknownBaseError if an index may
    count from 0 or from 1, and BadRowError if the columns disagree or name none of the options.
    """
    if options.right is not None:
        return options.labels[options.texts.index(options.right)]
    answers = _answers(columns, taken)
    counted = bases() if any(answer.isdecimal() for answer in answers.values()) else BASES
    meant = {name: _labels(answer, options, counted) for name, answer in answers.items()}
    if not meant:
        return None
    common = set.intersection(*meant.values())
    if len(common) == 1:
        return common.pop()
    name = min(meant, key=lambda name: len(meant[name]))
    for other in meant if not common and all(meant.values()) else ():
        if not meant[name] & meant[other]:
            raise BadRowError(
                f"{name} is {answers[name]!r} and {other} is {answers[other]!r}: "
                "either may be the gold",
                "keep only the column that holds the gold",
            )
    if _is_index(answers[name], options) and (common or not counted):
        rows_tell = "no row of the source tells" if counted else "rows of the source tell both"
        problem = f"{name} is {answers[name]!r}: an index from 0 or from 1, {rows_tell}"
        raise UnknownBaseError(problem, SET_BASE)
    problem = "may be the text of one option and the index of another" if common else "is none"
    raise BadRowError(
        f"{name} is {answers[name]!r}, which {problem} of the options {shown(options.texts)}",
        f"write the label of the right option in {name}: {', '.join(options.labels)}",
    )


def index_bases(rows: Iterable[Record]) -> frozenset[int]:
    """Return what indices of right options count from, as rows of a source show: 0 or 1.

    BASES if no row tells; nothing if some tell 0 and others 1.
    """
    told = set[int]()
    for row in rows:
        with suppress(BadRowError):
            told |= _told_bases(Columns(row))
    if not told:
        return BASES
    if told == BASES:
        return frozenset()
    return frozenset(told)


def _told_bases(columns: Columns) -> set[int]:
    """Return what the index in a row counts from, as far as the row tells."""
    options = read_options(columns)
    answers = list(_answers(columns, "").values())
    if options is None or not any(_is_index(answer, options) for answer in answers):
        return set()
    possible = {
        base
        for base in BASES
        if set.intersection(*(_labels(answer, options, {base}) for answer in answers))
    }
    named = set() if options.first is None else {options.first}
    return named | (possible if len(possible) == 1 else set())


def _answers(columns: Columns, taken: str) -> dict[str, str]:
    """Return the columns for the right option, by their names as spelled.

    `correct` is one of them, and not if it is true or false: that is the mark of an answer.
    """
    spelled = {name: columns.spelled(name) for name in CHOSEN if columns.has(name)}
    marks = {name for name in MARKS if isinstance(columns.row.get(columns.spelled(name)), bool)}
    return {
        spelled[name]: answer_text(columns.take(name), spelled[name]).strip()
        for name in spelled
        if name != taken and name not in marks
    }


def _labels(answer: str, options: Options, bases: Collection[int]) -> set[str]:
    """Return the labels that an answer may mean."""
    names = [plain(name) for name in options.names]
    if answer in options.labels:
        return {answer}
    if plain(answer) in names:
        return {options.labels[names.index(plain(answer))]}
    meant = {options.labels[n] for n, text in enumerate(options.texts) if text.strip() == answer}
    if not meant and (letter := NAMED.fullmatch(answer)):
        meant = {label for label in options.labels if label == letter[1].upper()}
    if answer.isdecimal() and not any(name.isdecimal() for name in names):
        places = {int(answer) - base for base in bases}
        meant |= {options.labels[n] for n in places if 0 <= n < len(options.texts)}
    return meant


def _is_index(answer: str, options: Options) -> bool:
    return answer.isdecimal() and answer not in (*options.names, *options.texts)


def lacks_options(gold: str | None, messages: list[dict[str, str]]) -> BadRowError | None:
    """Return a doubt if a gold is the letter of an option, and no message has options."""
    letter = NOT_LETTER.sub("", gold or "")
    if letter not in CHOICES:
        return None
    letters = {found for turn in messages for found in ALONE.findall(turn["content"])}
    if letter in letters and len(letters) > 1:
        return None
    return BadRowError(
        f"the gold is {gold!r}, the letter of an option, and there are no options",
        'add them as `options`, a list; or "answer_type": "string" where the letter is the answer',
    )
