r"""The gold answer of a row: from a column of its own, a worked solution, or options of a choice.

A worked solution is not a gold: its \boxed{} or what follows its #### is, and without either there
is no gold, as a proof has none, unless a column `solution` is a bare value. One with several
different boxes is refused, and so is a box that differs from the gold beside it. The gold of a
choice is a letter, as `choices.py` reads it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_distill.data.choices import Bases, Options, UnknownBaseError, right_label
from dstools_distill.data.columns import (
    TRUSTED,
    BadRowError,
    Columns,
    agreeing,
    answer_text,
    from_json,
    from_repr,
    shown,
    text,
)
from dstools_distill.judge.answers import compare
from dstools_distill.judge.extract import boxes, final_answer, last_boxed
from dstools_distill.judge.program import MAX_CASES
from dstools_distill.judge.referee import Referee

GOLD_KEYS = (
    *(*TRUSTED, "final_answer", "ground_truth", "correct_answer", "answer"),
    *("reference_answer", "answer_number"),  # GeneralThought, natural_reasoning; MGSM
)
SOLUTIONS = ("solution", "ground_truth_solution", "gold_standard_solution")
CODE_CASES = (
    *("input_output", "test_cases", "official_tests"),  # APPS, TACO; codeforces
    *("public_test_cases", "public_tests"),  # LiveCodeBench; code_contests
)
CONTEST_TESTS = ("public_tests", "private_tests", "generated_tests")
OTHER_JUDGES = ("input_file", "interaction_format", "generated_checker")  # than equal output
NESTED = (  # a column with an object that has the gold, and its key
    ("reward_model", "ground_truth"),  # verl
    ("verification_info", "ground_truth"),  # SYNTHETIC-1
)
ANNOTATED = (  # the same of lists, whose entries are a gold if all are the same
    ("answers", "text"),  # SQuAD
    ("answers_spans", "spans"),  # DROP
)
OBJECT_OR_TEXTS = ("{", '["')
GSM8K = "\n#### "  # openai/gsm8k: between a worked solution and the answer
PLACEHOLDERS = ("proof", "notfound", "n/a", "nan", "null")  # there is no answer; NuminaMath-1.5
TAGGED = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
FORMULA = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
CODE = re.compile(
    r"```|^\s*(?:def \w+\(|class \w+[(:]|import \w+|from \w+ import|#include\b|print\()",
    re.MULTILINE,
)
COMMAND = re.compile(r"\\[a-zA-Z]+")  # of TeX
WORD = re.compile(r"[^\W\d_]+")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # kana and Chinese characters
SENTENCE_END = re.compile(r"[.!?]\s+\S|[。！？]\s*\S")  # noqa: RUF001
MAX_WORDS, MAX_UNSPACED = 12, 24  # of an answer that is one sentence at most
MIN_WORDS = 6  # of a text of several sentences that is not a name with initials


class Gold(NamedTuple):
    """What a row says about the right answer."""

    gold: str | None
    worked: str | None = None  # the solution that comes with it
    answer_type: str = ""  # "" if the columns do not tell
    doubt: BadRowError | None = None  # why the row does not settle on one gold


def read_gold(
    columns: Columns, options: Options | None, taken: str, referee: Referee | None, bases: Bases
) -> Gold:
    """Return the gold of a row; `taken` names the column that is a teacher's answer, "" if none.

    There is a doubt if the box of a solution differs from the gold, if there are several and no
    gold, or if an index of an option may count from 0 or from 1 (`bases`). `referee` compares
    formulas; without one the first gold counts. Raises BadRowError if two columns for golds
    disagree, or if the gold of a choice is none of its options.
    """
    if options is not None:
        try:
            return Gold(right_label(columns, options, taken, bases), None, "choice")
        except UnknownBaseError as error:
            return Gold(None, None, "choice", error)
    golds, worked, doubt = {}, None, None
    names = [name for name in GOLD_KEYS if columns.has(name) and name != taken]
    for name in names:
        spelled = columns.spelled(name)
        gold, steps = _settled(answer_text(columns.take(name), spelled), spelled, name in TRUSTED)
        worked = worked or steps
        if gold is not None:
            golds[spelled] = gold
    golds |= _nested(columns)
    has_none = any(str(columns.take(name)).strip().lower() in PLACEHOLDERS for name in names)
    for spelled, solution, boxed, steps in _solutions(columns, taken, has_none):
        worked = solution if golds else steps or worked
        if boxed is not None and not golds:
            golds[spelled] = boxed
        elif referee is not None and boxed is not None and boxed != solution:
            doubt = doubt or _box_doubt(golds, spelled, boxed, referee)
    if referee is not None:
        golds = _distinct(golds, referee)
    gold = agreeing(golds, "gold") if referee is not None else next(iter(golds.values()), None)
    if gold is not None:
        return Gold(gold, worked, doubt=doubt)
    code = _of_code(columns, worked)
    if code.gold is not None:
        return code
    doubt = _boxes_doubt(columns, [name for name in (*names, *SOLUTIONS) if name != taken])
    return code._replace(doubt=doubt)


def _solutions(
    columns: Columns, taken: str, has_none: bool
) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Yield column and text of each solution, the gold in it, and the text again if it is worked.

    has_none: whether a column for golds says that there is none.
    """
    for name in SOLUTIONS:
        spelled = columns.spelled(name)
        if columns.has(name) and name != taken and not _are_several(columns.row[spelled]):
            solution = answer_text(columns.take(name), spelled)
            boxed, steps = _settled(solution, spelled, False)
            if boxed == solution and (has_none or not _is_value(solution)):
                boxed, steps = None, solution
            yield spelled, solution, boxed, steps


def _distinct(golds: dict[str, str], referee: Referee) -> dict[str, str]:
    """Return the golds without those that have the value of the first."""
    first = next(iter(golds.values()), "")
    return {
        name: gold
        for name, gold in golds.items()
        if gold == first or _same_value(gold, first, referee) is not True
    }


def _box_doubt(
    golds: dict[str, str], name: str, boxed: str, referee: Referee
) -> BadRowError | None:
    """Return a doubt if the box of a solution differs in value from a gold beside it."""
    for other, gold in golds.items():
        if boxed.strip() != gold.strip() and _same_value(gold, boxed, referee) is False:
            return BadRowError(
                f"{other} is {shown(gold)} and the box of {name} is {shown(boxed)}: "
                "either may be the gold",
                "mend the wrong one, or leave out the solution",
            )
    return None


def _same_value(one: str, other: str, referee: Referee) -> bool | None:
    """Return whether two golds have one value, None if they cannot be compared.

    Each is compared as an answer to the other: 33 answers 033, but 033 does not answer 33.
    """
    verdicts = set[str]()
    for answer, gold in ((one, other), (other, one)):
        verdicts.add(compare(answer, gold, "auto", referee).verdict)
        if "correct" in verdicts:
            return True
    return False if verdicts == {"incorrect"} else None


def _boxes_doubt(columns: Columns, names: list[str]) -> BadRowError | None:
    """Return a doubt if a text in one of the columns settles on several boxed answers."""
    for name in names:
        value = columns.row.get(columns.spelled(name))
        if isinstance(value, str) and (parts := _several_boxed(value)):
            return BadRowError(
                f"{columns.spelled(name)} has {len(parts)} boxed answers: {shown(list(parts))}",
                'write the one that is wanted in a column `gold`, such as "3, -3" with '
                '"answer_type": "set"',
            )
    return None


def _several_boxed(answer: str) -> tuple[str, ...]:
    """Return the different answers in the boxes of a text, () if it settles on one of them."""
    if len(boxes(answer)) < 2 or OPEN in answer or CLOSE in answer:
        return ()
    found = final_answer(answer)
    return found.parts if found.problem == "several-answers" else ()


def _settled(answer: str, name: str, is_trusted: bool) -> tuple[str | None, str | None]:
    """Return the gold in a text, and the text itself if it is a worked solution."""
    if OPEN in answer or CLOSE in answer:
        return None, None  # a teacher's
    worked, mark, final = answer.rpartition(GSM8K)
    if mark:
        if not final.strip():
            raise BadRowError(f"{name} has nothing after ####")
        return final.strip(), worked
    if is_trusted:
        return answer, None
    if tagged := TAGGED.fullmatch(answer):
        return text(tagged[1], name).strip(), None
    if answer.strip().lower() in PLACEHOLDERS:
        return None, None
    if (boxed := last_boxed(answer)) is not None:
        return (None if _several_boxed(answer) else boxed), answer
    return (None, answer) if is_worked(answer) else (answer, None)


def is_worked(answer: str) -> bool:
    """Return whether a text explains: several sentences, a program, or too many words.

    Formulas do not count, so a long one is still an answer.
    """
    if answer.lstrip().startswith(("[", "{")):
        return False  # JSON, or a formula
    if CODE.search(answer):
        return True
    prose = FORMULA.sub(" x ", answer)
    unspaced, words = len(UNSPACED.findall(prose)), len(WORD.findall(UNSPACED.sub(" ", prose)))
    if "\\" in prose and not SENTENCE_END.search(prose):
        return False  # TeX without dollar signs
    if SENTENCE_END.search(prose.strip()):
        return words >= MIN_WORDS or unspaced >= MIN_WORDS
    return words > MAX_WORDS or unspaced > MAX_UNSPACED


def _are_several(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _is_value(solution: str) -> bool:
    """Return whether a solution without a box is an answer alone, such as "17", "$x = 5$", "9 km".

    Words are an explanation or an excuse ("See the figure.", "none"), but for yes, no and a unit.
    """
    if solution.strip("$ ").lower() in ("yes", "no", "true", "false"):
        return True
    words = [word for word in WORD.findall(COMMAND.sub(" ", solution)) if len(word) > 1]
    begins_with_word = words and solution.lstrip("([{$ ").startswith(words[0])
    is_measured = (not words and solution.strip("$- ")) or re.search(r"\d|\\", solution) is not None
    is_phrase = begins_with_word or len(words) > 1 or solution.rstrip().endswith((".", "?"))
    return bool(is_measured) and not is_phrase


def _nested(columns: Columns) -> dict[str, str]:
    """Return the golds in objects, or in JSON of them, by their paths."""
    golds = {}
    for column, key in (*NESTED, *ANNOTATED):
        value = from_repr(columns.row.get(columns.spelled(column)))
        if isinstance(value, dict) and value.get(key) is not None:
            gold = from_json(value[key], OBJECT_OR_TEXTS)
            if (column, key) in ANNOTATED and isinstance(gold, list):
                gold = [*dict.fromkeys(map(str, gold))]
                if len(gold) != 1:
                    continue
            columns.take(column)
            path = f"{columns.spelled(column)}.{key}"
            golds[path] = answer_text(gold, path)
    turns = columns.row.get("messages")
    for number, turn in enumerate(turns if isinstance(turns, list) else []):
        info = turn.get("info") if isinstance(turn, dict) else None
        if isinstance(info, dict) and info.get("reference_answer"):
            path = f"messages[{number}].info.reference_answer"
            golds[path] = answer_text(info["reference_answer"], path)
    return golds


def _of_code(columns: Columns, worked: str | None) -> Gold:
    """Return test cases as a gold, as `judge/program.py` reads them.

    Cases of a program that reads a file, talks to another one, or has several right outputs are
    not a gold. Sources: the cards of code_contests and of open-r1/codeforces.
    """
    name = next((name for name in CODE_CASES if columns.has(name)), "")
    if not name and (listed := _listed_cases(columns)):
        return Gold(json.dumps(listed, ensure_ascii=False), worked, "code")
    is_file = columns.row.get("input_mode") == "file"
    if not name or is_file or any(columns.has(judge) for judge in OTHER_JUDGES):
        return Gold(None, worked)
    is_contest = name == "public_tests" and isinstance(columns.row.get(name), dict)
    cases = _contest_cases(columns) if is_contest else columns.take(name)
    gold = cases if isinstance(cases, str) else json.dumps(cases, ensure_ascii=False)
    return Gold(gold, worked, "code")


def _listed_cases(columns: Columns) -> list[dict[str, str]]:
    """Return the first MAX_CASES tests in SYNTHETIC-1's verification_info, [] if it has others.

    Each is of a program in Python that reads stdin: {"input", "output"}.
    """
    info = from_repr(columns.row.get(columns.spelled("verification_info")))
    tests = info.get("test_cases") if isinstance(info, dict) else None
    if not isinstance(tests, list) or info.get("language") != "python":
        return []
    keys = ("input", "output")
    for test in tests:
        if not isinstance(test, dict) or test.get("type") != "stdin_stdout":
            return []
        if not all(isinstance(test.get(key), str) for key in keys):
            return []
    columns.take("verification_info")
    return [{key: test[key] for key in keys} for test in tests[:MAX_CASES]]


def _contest_cases(columns: Columns) -> dict[str, list[Any]]:
    """Return the first MAX_CASES tests of code_contests, each {"input": [...], "output": [...]}.

    The generated ones count: without them, 62% of the accepted programs were wrong, with them 4%.
    Source: AlphaCode, arXiv:2203.07814, table 2. Raises BadRowError for tests of another form.
    """
    joined: dict[str, list[Any]] = {"input": [], "output": []}
    for name in CONTEST_TESTS:
        tests = columns.take(name) or {"input": [], "output": []}
        texts = [tests.get(key) for key in joined] if isinstance(tests, dict) else []
        lists = [text for text in texts if isinstance(text, list)]
        if len(lists) != 2 or len(lists[0]) != len(lists[1]):
            raise BadRowError(f"{name} does not have as many inputs as outputs: {shown(tests)}")
        for key, more in zip(joined, lists, strict=True):
            joined[key] += more
    return {key: texts[:MAX_CASES] for key, texts in joined.items()}
