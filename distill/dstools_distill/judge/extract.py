r"""Extraction of the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41";
bold text; a short text that is only its answer; the one value that the last line states. A text
that may take its answer back (remarks.py) settles on none, nor does one with different answers.
"""

# ruff: noqa: RUF001
import re
from itertools import zip_longest
from typing import NamedTuple

from dstools_distill.figures import SPELLED, in_figures
from dstools_distill.judge.reader import read
from dstools_distill.judge.remarks import (
    CHANGED,
    CHECK,
    DENIED,
    HEDGED,
    agree,
    is_corrected,
    is_taken_back,
)
from dstools_distill.judge.spelling import unwrapped
from dstools_distill.judge.units import TIMES


class Extracted(NamedTuple):
    """The answer that a text settles on, or why there is none."""

    text: str  # "" if there is a problem
    problem: str = ""  # "", "no-answer", "several-answers", "taken-back" or "part-of-formula"
    parts: tuple[str, ...] = ()  # several answers, or words that a sentence states


NO_ANSWER = Extracted("", "no-answer")
MAX_CLAUSE, MAX_SAID, MAX_LIST = 200, 1000, 4000  # characters
MAX_LAYERS = 20  # of emphasis, quotes and lead-ins
MAX_MARKS, MAX_ANSWERS = 100, 20  # the last announcements, and different texts of one answer


def final_answer(text: str) -> Extracted:
    """Return the answer that a text settles on, without what marks or announces it."""
    text = NOT_BUT.sub("", UNSAID.sub(" ", text))
    if GUESSED.search(text):
        return Extracted("", "taken-back")
    marks = _marks(text)
    return _settled(text, marks) if marks else _unmarked(text)


def _unmarked(text: str) -> Extracted:
    """Return the bold words of a text, all of a short one, or what the last line states."""
    if marks := _emphases(text):
        return _settled(text, marks)
    if items := ITEMS.search(text, max(0, len(text) - MAX_LIST)):
        if HEDGED.search(text[: items.start()].rstrip().rpartition("\n")[2]):
            return NO_ANSWER
        return Extracted("", "several-answers", tuple(ITEM.findall(items[0])))
    lines = [
        line for line in stripped(text).split("\n") if DENIED.search(line) or not CHECK.match(line)
    ]
    short = stripped(CONCLUSION.split(lines[-1])[-1]) if lines else ""
    if short and len(lines) == 1 and not PROSE.search(short):
        return Extracted(short)
    return _stated(short)


# control tokens, what is struck through, fences and quotation marks of Markdown
UNSAID = re.compile(r"(?m)<[|｜][^<>|｜\n]{1,40}[|｜]>|~~[^~\n]+~~|^```\w*[ \t]*$|^> ")
NOT_BUT = re.compile(r"\bnot \$?-?\d[\d.,]*\$? but (?=\S)")
GUESSED = re.compile(r"(?i)\b(?:a|my|I|I'll|will) guess\b|\bno idea\b|\bdo(?:n't| not) know\b")
ITEM = re.compile(r"(?m)^[ \t]*(?:\d+[.)]|[-*•])[ \t]+(\S.*)$")
ITEMS = re.compile(r"(?m)(?:^[ \t]*(?:\d+[.)]|[-*•])[ \t]+\S.*\s*){2,}\Z")
CONCLUSION = re.compile(r"(?<=[.!?])\s+(?=(?:So|Thus|Hence|Therefore)\b)")  # is what follows it
PROSE = re.compile(
    r"(?i)^[a-z ]+:|[\u4e00-\u9fff]{2}\D{0,200}\d|[\u4e00-\u9fff]\s*\$"
    r"|[^\W\d_]{2,} [^\W\d_]+ [^\W\d_]+|[^\W\d_]{2,} [^\W\d_]{2,} (?:\S?\d|\$)"
    r"|[.!?]\s+\S|\$.*(?<![\\A-Za-z])[a-z]{3}.*\$"
)


# ------------------------------------------------------------------------------------------ marks


class Mark(NamedTuple):
    """A marked answer: the start of the box or of the announced words, the end, and the answer.

    The answer is None if the mark is never closed.
    """

    start: int
    end: int
    answer: str | None


def _marks(text: str) -> list[Mark]:
    """Return the boxes of a text, or its tags, and numbers announced beside them, or all such."""
    marks, announced = boxes(text), _announcements(text)
    if marks:
        announced = [m for m in announced if PLAIN_NUMBER.fullmatch(stripped(m.answer or ""))]
    return sorted(marks + announced)


PLAIN_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} or \fbox{...} of a text; braces may nest."""
    found = boxes(text)
    return (found[-1].answer or "").strip() or None if found else None


def boxes(text: str) -> list[Mark]:
    """Return the boxes and tags of a text; of a box in a box the inner one."""
    found = []
    for box in BOX.finditer(text):
        content = box[box.lastindex] if box.lastindex else None
        inner = boxes(content or "")
        found.append(Mark(*box.span(), inner[-1].answer if inner else content))
    return found


NESTED = r"(?:[^{}\\]|\\.|\{\})*+"
for _ in range(10):  # braces in braces
    NESTED = rf"(?:[^{{}}\\]|\\.|\{{{NESTED}\}})*+"
BOX = re.compile(
    rf"\\(?:boxed|fbox)\s*(?:\{{({NESTED})\}}|([^\s{{]\S*)|)|<answer>(?:(.*?)(?=</answer>)|)",
    re.DOTALL,
)


def _announcements(text: str) -> list[Mark]:
    """Return what follows phrases that announce an answer, up to the end of sentence or line.

    Of adjacent phrases only the last counts: "Final answer:" and "the answer is".
    """
    marks = [
        Mark(*right.span(), right[1] or right[2])
        for right in RIGHT.finditer(text)
        if not _is_denied(text, right.start())
    ]
    for mark in [*ANNOUNCED.finditer(text)][-MAX_MARKS:]:
        if ITEMS.match(text, mark.end()) or _is_denied(text, mark.start(), mark[0]):
            continue
        said = SAID.match(text, mark.end(), mark.end() + MAX_SAID)
        answer = " ".join(said[0].split()) if said else ""
        if PROSE.search(answer) and not LETTERED.match(answer):
            answer = _unmarked(answer).text or answer
        answer = re.sub(r"(?<!\w)\*\*|\*\*(?!\w)", "", answer)  # but 2**3
        marks.append(Mark(mark.end(), said.end() if said else mark.end(), answer))
    return marks


RIGHT = re.compile(
    r"(?:^|[.:;,\n]\s)(?:(?:So|Thus|Hence|Therefore),? )?[Oo]ption \(?([A-J])\)? is (?:the )?"
    r"(?:correct|right)(?: (?:one|answer|option))?(?=[.!\n]|\Z| because| since)"
    r"|\((?:option|choice|answer) ([A-J])\)\.?\s*\Z"
)
LETTERED = re.compile(r"\(?[A-J][).:]\s(?=[A-Z\d$\\])")  # B. 1.5 eV
# a displayed formula, or the rest of the sentence or line
SAID = re.compile(
    r"\$\$.*?\$\$|\\\[.*?\\\]"
    r"|\S.*?(?=(?<=\S)(?<![\s(*][A-J])[.?!]\s+[A-Z\\$]|[。；]|[\"} ]*(?:\s\|\s*)?(?:\n|\Z)"
    r"|(?<=[\s(*][A-J])\.\s+(?=Options?\b|Choices?\b|This\b)|,? (?:since|because|not)\b)",
    re.DOTALL,
)
VERB = re.compile(
    r"\b(?:é|es|est) (?:de|égale? à|igual a)\b|s'élève à\b|\bin (?:the|a) ratio(?: of)?\b"
    r"|\b(?:is|are|was|were|be|equals|costs?|makes?|gives|beträgt|lautet|vaut|est|ist|es|sind|son|é|è)\b"
    r"|\b(?:diverg|converg|tend|simplif|evaluat|reduc|com|amount|sum)(?:i?e)?s to\b"
    r"|(?<![\d\s]):|[=：为是は은]"
)
ANSWER = (
    r"(?:\b(?:answers?|réponse|respuesta|resposta|risposta|Antwort|Ergebnis)\b"
    r"|ответ|答え|正解|答案|正确选项|답)"
)
PHRASE = (
    rf"(?:\#{{4}}|(?:{ANSWER}|\b(?:result|solution|option|choice)s?\b|opci[óo]n|opção|Lösung|结果)"
    r"(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?|\s+(?!no\b|(?-i:[A-J])\b)[^\W\d]+)?[”\x22】*_\s]*"
    rf"(?:{VERB.pattern}|(?<=】)|[|—:])[:：\s*_]*(?:(?:donc|also|la|(?-i:a))\b)?"
    rf"|(?:^[#*_]+\s*|\bfinal ){ANSWER}[*_]*\s*\n"
    r"|\btotal[*_]*\s*\||(?<![不别没误能应人])故?选[:：\s]*(?=[A-J]))\s*"
)
ANNOUNCED = re.compile(rf"(?im){PHRASE}(?:\W*(?:(?:the|so|my|our)\s+)?{PHRASE})*")


LABEL = re.compile(
    rf"(?i)(?:(?:final|correct) )?(?:{ANSWER}|result|solutions?|roots?|total(?: \w+)?)\s?[:：]"
)
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")


def _emphases(text: str) -> list[Mark]:
    """Return the bold words of a text, but labels, if all are the same."""
    found = [Mark(*bold.span(), bold[1]) for bold in BOLD.finditer(text)]
    found = [mark for mark in found if not LABEL.fullmatch(mark.answer or "")]
    if any(HEDGED.search(CLAUSE.split(text[: mark.start])[-1]) for mark in found):
        return []
    return found if len({mark.answer for mark in found}) == 1 else []


def _is_denied(text: str, start: int, phrase: str = "") -> bool:
    """Return whether the clause before an answer, or the phrase that announces it, denies it."""
    edges = r"[.\n]" if "would" in phrase else CLAUSE  # if x were 3, the answer would be 5
    clause = re.split(edges, text[max(0, start - MAX_CLAUSE) : start])[-1]
    clause = re.sub(r"^\s*but\b", "", clause) if phrase else clause
    changed = phrase and CHANGED.search(clause + phrase)
    return bool(changed or DENIED.search(clause + phrase))


CLAUSE = re.compile(r"[.,:;!?](?!\w)|[\n。，；：]")


# --------------------------------------------------------------------------------------- settling


def _settled(text: str, marks: list[Mark]) -> Extracted:
    """Return the answer of all marks if it is one, whole, and not denied before or after."""
    if any(mark.answer is None for mark in marks):
        return NO_ANSWER
    marks = [mark for mark in marks[:-1] if not _is_denied(text, mark.start)] + marks[-1:]
    if _is_denied(text, marks[-1].start):
        return Extracted("", "taken-back")
    if any(_is_part(text, mark) for mark in marks):
        return Extracted("", "part-of-formula")
    answers = [
        stripped(mark.answer or "")
        for mark, after in zip_longest(marks, marks[1:])
        if not EMPTY.fullmatch(mark.answer or "")
        and not (after and is_corrected(text[mark.end : after.start]))
    ]
    answers = [*dict.fromkeys(answers)]
    if len(answers) > MAX_ANSWERS:
        return Extracted("", "several-answers", tuple(answers[-MAX_ANSWERS:]))
    different = tuple(a for n, a in enumerate(answers) if not any(agree(a, b) for b in answers[:n]))
    if not any(different):
        return NO_ANSWER
    if is_taken_back(different[-1], text[marks[-1].end :]):
        return Extracted("", "taken-back")
    if len(different) > 1:
        return Extracted("", "several-answers", different)
    return Extracted(different[0])


# a box of the question: 7 + \boxed{\phantom{0}} = 11
EMPTY = re.compile(r"(?:\\(?:[hv]?phantom|hspace\*?|q?quad|[,;:! ])\s*(?:\{[^{}]*\})?|[\s~_?])*")


def _is_part(text: str, mark: Mark) -> bool:
    r"""Return whether a marked answer is only a part of a value: -\boxed{12}, \boxed{12} million.

    In 7 + \boxed{5} = 12 the box is what was asked for.
    """
    is_part = BEFORE.search(text, max(0, mark.start - MAX_CLAUSE), mark.start)
    if not is_part and not AFTER.match(text, mark.end):
        return False
    return "=" not in re.split(r"[$\n]", text[mark.end :].lstrip("$ "), maxsplit=1)[0]


BEFORE = re.compile(
    r"(?:\d|(?<!-)-|[\d$][ ]*-[ ]*|[\d)][ ]?\*[ ]?|[+/^×]\s*|\\(?:cdot|times|div|sqrt|pi|cancel)\s*"
    r"|\\[dt]?frac)\{?\Z"
)
AFTER = re.compile(
    r"(?i)[ \t]*\$?[ \t]*(?:\^(?!\s*\{?\s*\\circ)"
    r"|\\(?:cdot|times|div|sqrt|pi|[dt]?frac|pm|mp|pmod)(?![a-z])"
    r"|[/+±×²³万亿]|_[\d{]|[-–:][ ]*\d|\\?%[ ]of\b|\{?\.\}?\d"
    r"|(?:\\text[ ]*\{)?[ (]*(?:mod|plus|minus|times|squared|cubed|per ?cent|in base(?! 10\b)|pairs"
    r"|[ke]\d*"
    rf"|(?:to|through|and|bis|à)[ ]\d+|(?:{'|'.join(filter(str.isascii, TIMES))})s?)\b)"
    r"|[a-z]\b|!"
)


def _stated(line: str) -> Extracted:
    """Return the only value that a sentence states: after "is" or "=", or a number with a unit."""
    line = REASON.sub("", INLINE.sub(r"\1\2", stripped(line)))
    if (so := SO.match(line)) and NO.search(so[0]):
        return NO_ANSWER
    line = SO.sub("=", line)
    if pairs := NAMED_VALUES.search(line):
        before = line[: pairs.start()]
        if not re.search(r"\d", before) and not HEDGED.search(before):
            return Extracted(pairs[0].strip())
    line = line if re.search(r"\d", line) else _counted(line)
    *verbs, said = VERB.split(line)
    if SECOND.search(line) or HEDGED.search(line.removesuffix(said)):
        return NO_ANSWER
    if EQUALS.search(line[: -len(said)]) and not PHRASES.search(said):
        return Extracted(said.strip())  # mv^2/2
    if not (stated := VALUE.fullmatch(said)):
        return NO_ANSWER._replace(parts=(said.strip(),) if verbs else ())
    if HEDGED.search(said):
        return NO_ANSWER
    lead, answer = stated[1], MORE.sub("", stated[2])
    if MEMBER.match(said):
        lead, answer = "", said
    value = read(answer)
    is_number = value is not None and value.kind in ("number", "base")
    if lead or not verbs:
        is_measured = UNIT.search(answer) or not (lead or verbs)
        is_stated = is_number and is_measured and not LOOSE.search(lead)
    else:
        is_stated = value is not None and (is_number or not WORDS.search(value.text or answer))
    return Extracted(answer) if is_stated else NO_ANSWER


def _counted(line: str) -> str:
    """Return a sentence with its one number that is in words in figures: five marbles.

    "One" may be a pronoun, and "no", "all three" or "the two" say something else.
    """
    counted = in_figures(line.lower())
    numbers = re.findall(rf"{SPELLED}?\d[\d,./ ]*", counted)
    if len(numbers) != 1 or numbers[0] == f"{SPELLED}1" or NOT_COUNTED.search(counted):
        return line
    return counted.replace(SPELLED, "")


NOT_COUNTED = re.compile(
    r"\b(?:all|any|the|these|those|both|other|every|each|of|mod|his|her|my|their|its|this|first|last"
    rf"|next) {SPELLED}?\d"
    r"|\b(?:no|none|not|unique|single|undefined|unknown)\b"
)
REASON = re.compile(r",? (?:since|because|rather than) .*$|, not .*$")
SO = re.compile(r"^.*\b(?:so|which)\b")
NO = re.compile(r"(?i)\b(?:no|none|nobody|nothing)\b")
VALUE = re.compile(r"\s*([^\d\\(\[√π]*?)((?:[-+−$€£]\s?)*[\d\\(\[√π].*)")
NAME = r"(?<![A-Za-z\\])[A-Za-z](?:_\{?\d\}?)? ?= ?"
NAMED_VALUES = re.compile(rf"(?:{NAME}[^\s=,]+(?:,? and |, ?))+{NAME}[^\s=,]+$")  # x = 0 and x = 2
EQUALS = re.compile(r"(?:^|\b(?:is|are|ist|est|es)\s)\S{1,8}\s?=$")  # is K =
PHRASES = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}|[a-z]{2,} [a-z]{2}")
MEMBER = re.compile(r"\s*[a-z]\s*(?:\\in(?![a-z])|∈)")
SECOND = re.compile(r"\d\D*[\s,，。、](?!and\b)[^\W\d]\D*\d")  # another number after words
LOOSE = re.compile(  # the number after one of these was not asked for
    r"\b(?:after|by|within|in|at|above|of|than|for|(?<!left )with|(?<!out )to|on|per|until|exceed"
    r"|step|als|que|à|minus|negative|below|beyond|before)(?: the)?\s+$"
)
UNIT = re.compile(r"[^\W\d]|[$€£]")
MORE = re.compile(  # around the unit
    r"(?<=\d) more(?= [a-z]+)|,? (?:altogether|tomorrow|today|now)$"
    r"| (?:a|at|in|of) .*$|(?<=[a-z]) to [a-z]{3,} (?:the|an?|all|his|her|its|their) .*$"
    r"|(?<=[a-z}]) (?:square|cubic) \w+$"
)
WORDS = re.compile(r"\b(?!and\b)(?<!\\)[A-Za-z]{2,}")
# as in Pandoc: no blank after an opening dollar, none before a closing one, and no digit after that
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")


def stripped(text: str) -> str:
    """Return an answer without white space, emphasis, quotes, a final full stop or a lead-in.

    Dollar signs stay, as they may be money; so do brackets, as they may be a tuple.
    """
    for _ in range(MAX_LAYERS):
        before = text
        text = unwrapped(END.sub("", text.strip("*_` \n\t")))
        text = text.lstrip('"') if text.count('"') == 1 else text
        lead = LEAD.match(text)
        if lead and not (DENIED.search(lead[0]) or CHANGED.search(lead[0])):
            text = text[lead.end() :]
        if text == before:
            break
    return text


END = re.compile(r"(?<!\s)\s*(?:です|である|입니다|이다)?(?<!\.)[.。．]?$|(?<=\$)!$")
LEAD = re.compile(
    r"(?i)^(?:(?:so|thus|hence|therefore|we (?:get|have)|(?:i think )?it (?:is|was)|it's"
    r"|that is|there (?:is|are)(?= no))[\s,:]+"
    r"|\\text\s*\{[^{}]*\b(?:is|are)\s*\}|(?:\\approx(?![a-z])|≈)\s*"
    r"|(?:\\text\s*\{[^{}]{3,40}\}|[A-Za-z]{3,}(?:[ ][A-Za-z]{3,}){0,3})\s*=(?!=)\s*)"
)
