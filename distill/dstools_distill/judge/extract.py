r"""Extraction of the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41";
bold text; a short text that is only its answer; the one number of the last line. A text that may
take its answer back (remarks.py) settles on none, nor does one with several different answers.
"""

# ruff: noqa: RUF001
import re
from itertools import zip_longest
from typing import NamedTuple

from dstools_distill.judge.reader import read
from dstools_distill.judge.remarks import DOUBTED, agree, is_taken_back
from dstools_distill.judge.spelling import unwrapped
from dstools_distill.judge.units import TIMES

MAX_SHORT = 400  # characters of a text that may be only its answer


class Extracted(NamedTuple):
    """The answer that a text settles on, or why there is none."""

    text: str  # "" if there is a problem
    problem: str = ""  # "", "no-answer", "several-answers", "taken-back" or "part-of-formula"
    parts: tuple[str, ...] = ()  # the different answers, if there are several


NO_ANSWER = Extracted("", "no-answer")


def final_answer(text: str) -> Extracted:
    """Return the answer that a text settles on, without what marks or announces it."""
    text = FENCE.sub("", CONTROL.sub(" ", STRUCK.sub("", text)))
    if GUESSED.search(text):
        return Extracted("", "taken-back")
    marks = _marks(text)
    return _settled(text, marks) if marks else _unmarked(text)


def _unmarked(text: str) -> Extracted:
    """Return the bold words, or all of a short text, or what the last line states."""
    if marks := _emphases(text):
        return _settled(text, marks)
    if items := ITEMS.search(text):
        return Extracted("", "several-answers", tuple(ITEM.findall(items[0])))
    short = stripped(text)
    if short and "\n" not in short and len(short) <= MAX_SHORT and not PROSE.search(short):
        return Extracted(short)
    return _stated(short.rpartition("\n")[2])


CONTROL = re.compile(r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>")
STRUCK = re.compile(r"~~[^~\n]+~~|<(del|s)>[^<\n]*</\1>")
FENCE = re.compile(r"(?m)^```\w*[ \t]*$|^> ")
GUESSED = re.compile(
    r"(?i)\b(?:unable|not able|cannot|can't|could ?n[o']t) (?:to )?\w+ (?:the|this) (?:\w+ )?"
    r"(?:answer|problem)\b"
    r"|\b(?:a|my|best) guess\s*(?:is|would|:)|\bI(?:'ll|'d| will)?(?: just)? guess\b"
    r"|\bI (?:really )?(?:don't|do not)(?: really)? know\b|\bno idea\b|\bgrain of salt\b"
)
ITEM = re.compile(r"(?m)^[ \t]*(?:\d+[.)]|[-*•])[ \t]+(\S.*)$")
ITEMS = re.compile(r"(?m)(?:^[ \t]*(?:\d+[.)]|[-*•])[ \t]+\S.*\s*){2,}\Z")
PROSE = re.compile(
    r"(?i)^[a-z ]+:|[\u4e00-\u9fff]{2}\D*\d|[\u4e00-\u9fff]\s*\$|[^\W\d_]{2,} [^\W\d_]+ [^\W\d_]+"
    r"|[^\W\d_]{2,} [^\W\d_]{2,} \S?\d"
    r"|[.!?]\s+\S|\$.*[a-z]{3}.*\$"
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
    """Return the boxes of a text, or its tags, or else its announcements.

    Beside numbers in boxes, other numbers that are announced count, too.
    """
    marks, announced = boxes(text) or _tags(text), _announcements(text)
    if not marks:
        return announced
    if all(PLAIN_NUMBER.fullmatch(stripped(mark.answer or "")) for mark in marks):
        marks += [m for m in announced if PLAIN_NUMBER.fullmatch(stripped(m.answer or ""))]
    return sorted(marks)


PLAIN_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} or \fbox{...} of a text; braces may nest."""
    found = boxes(text)
    return (found[-1].answer or "").strip() or None if found else None


def boxes(text: str) -> list[Mark]:
    """Return the boxes of a text; of a box in a box the inner one."""
    found, at = [], 0
    while mark := BOX.search(text, at):
        content, at, depth = mark[1], mark.end(), int(mark[1] is None)
        for brace in BRACE.finditer(text, at) if depth else ():
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                content, at = text[at : brace.start()], brace.end()
                break
        inner = boxes(content or "")
        found.append(Mark(mark.start(), at, inner[-1].answer if inner else content))
    return found


BOX, BRACE = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{]\S*))"), re.compile(r"\\.|[{}]")


def _tags(text: str) -> list[Mark]:
    found = re.finditer(r"<answer>(?:(.*?)(?=</answer>)|)", text, re.DOTALL)
    return [Mark(tag.start(), tag.end(), tag[1]) for tag in found]


def _announcements(text: str) -> list[Mark]:
    """Return what follows phrases that announce an answer, up to the end of sentence or line.

    Of adjacent phrases only the last counts: "Final answer:" and "the answer is".
    """
    found, marks = list(ANNOUNCED.finditer(text)), []
    for mark, after in zip_longest(found, found[1:]):
        is_open = after and (
            LEAD_IN.fullmatch(text, mark.end(), after.start())
            or re.match(r"[^.\n]*\?", text[mark.end() :])
        )
        before = re.split(r"[.\n]", text[: mark.start()])[-1]
        if is_open or NEGATED.search(text, 0, mark.end()) or ASSUMED.search(before):
            continue
        listed, said = ITEMS.match(text, mark.end()), SAID.match(text, mark.end())
        if listed:
            marks.append(Mark(mark.end(), listed.end(), ", ".join(ITEM.findall(listed[0]))))
            continue
        answer = " ".join(said[0].split()) if said else ""
        if "{" not in answer:
            answer = answer.rstrip('"} |')  # of JSON
        answer = re.sub(r",?\s+not\s+[^\s,]+$", "", REASON.sub("", answer.rstrip(".")))
        if PROSE.search(answer) and re.search(r"\bis\b", answer):
            answer = _unmarked(answer).text or answer
        marks.append(Mark(mark.end(), said.end() if said else mark.end(), answer))
    return marks


# a displayed formula, or the rest of the sentence or line
SAID = re.compile(
    r"\$\$.*?\$\$|\\\[.*?\\\]|\S.*?(?=(?<=\S)(?<![\s(*][A-J])\.\s+[A-Z\\$]|[。；\n]|\Z)", re.DOTALL
)
ANNOUNCED = re.compile(
    r"(?im)(?:\#{4}|(?:\b(?:final|correct|right)\s+)?\b(?:answer|result|solution|option|choice)s?\b"
    r"(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?"
    r"(?:[”\x22]?\s*[*_]{0,2}\s*[:：|]\s*[*_]{0,2}"
    r"|\s+(?:is|are|equals|would be|will be|should be|=)\b:?)"
    r"|(?:^[#*_]+\s*|\bfinal )(?:answer|答え|答案|Antwort|réponse|respuesta)[*_]*\s*\n"
    r"|\btotal[*_]*\s*\||\bchoose (?:option )?(?=\(?[A-J]\b)"
    r"|\b(?:réponse|respuesta|resposta|risposta|opci[óo]n|opção|Antwort|Lösung|Ergebnis)(?:\s+(?!no\b)[^\W\d]+)?"
    r"(?:\s*:|\s+(?:est|es|é|è|ist|lautet)\b)(?:\s+(?:donc|also|la|(?-i:a))\b)?|ответ\s*[:—-]?"
    r"|(?:答え|正解)は|답[은:]|【答案】|(?:答案|结果)(?:是|为|[:：])+|(?<!不)故?选\s*[:：]?\s*(?=[A-J]))\s*"
)
REASON = re.compile(r",? (?:since|because) (?:(?!\b(?:but|so|hence|thus|therefore|[A-J])\b).)*$")
NEGATED = re.compile(
    r"(?i)(?:(?:not|n't|\bnever|\bimpossible|\bif)(?:\s+\w+){0,3}\s+|不是)[^\w\\]*$"
    r"|\b(?:false|untrue|wrong|incorrect) that\b[^.\n]*$"
)
ASSUMED = re.compile(r"(?i)\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b")
HEDGED = re.compile(  # what is supposed, denied, bounded or asked is not stated
    rf"{ASSUMED.pattern}|\b(?:(?:can)?not|no|nor|never|neither|nicht|kein\w*|nunca|pas|не|either"
    r"|between|about|approximately|roughly|least|most|less|fewer|over|under|nearly|almost|let"
    r"|might|may|or|would|w[äü]re?n?|mistake)\b|n't\b|[≈?不没]|ない"
)
LEAD_IN = re.compile(r"(?i)\W*(?:it is not \w+\W+)?(?:the|so|my|our)?\W*")


def _emphases(text: str) -> list[Mark]:
    """Return the bold words of a text if all are the same."""
    found = [Mark(*bold.span(), bold[1]) for bold in re.finditer(r"\*\*([^*\n]+)\*\*", text)]
    is_one = len({mark.answer for mark in found}) == 1
    return found if is_one and not NEGATED.search(text, 0, found[0].start) else []


# --------------------------------------------------------------------------------------- settling


def _settled(text: str, marks: list[Mark]) -> Extracted:
    """Return the answer of all marks if it is one, whole, and not denied before or after."""
    if any(mark.answer is None for mark in marks):
        return NO_ANSWER
    if any(NEGATED.search(text, 0, mark.start) for mark in marks):
        return Extracted("", "taken-back")
    if any(_is_part(text, mark) for mark in marks):
        return Extracted("", "part-of-formula")
    ends = [mark.start for mark in marks[1:]] + [marks[-1].end]  # of what one may be denied in
    answers = [
        stripped(mark.answer or "")
        for mark, end in zip(marks, ends, strict=True)
        if not EMPTY.fullmatch(mark.answer or "")
        and not DOUBTED.search(LEAD_OF_NEXT.sub("", text[mark.end : end]))
    ]
    different = tuple(a for n, a in enumerate(answers) if not any(agree(a, b) for b in answers[:n]))
    if not any(different):
        return NO_ANSWER
    if is_taken_back(different[-1], text[marks[-1].end :]):
        return Extracted("", "taken-back")
    if len(different) > 1:
        return Extracted("", "several-answers", different)
    return Extracted(different[0])


LEAD_OF_NEXT = re.compile(r"[^.;!。\n]*$")
# a box of the question: 7 + \boxed{\phantom{0}} = 11
EMPTY = re.compile(r"(?:\\(?:[hv]?phantom|hspace\*?|q?quad|[,;:! ])\s*(?:\{[^{}]*\})?|[\s~_?])*")


def _is_part(text: str, mark: Mark) -> bool:
    r"""Return whether a marked answer is only a part of a value: -\boxed{12}, \boxed{12} million.

    In 7 + \boxed{5} = 12 the box is what was asked for.
    """
    rest = re.split(r"[$\n]", text[mark.end :].lstrip("$ "))[0]
    is_part = BEFORE.search(text, 0, mark.start) or AFTER.match(text, mark.end)
    return bool(is_part) and "=" not in rest


BEFORE = re.compile(r"(?:(?<!-)-|\$\s*-\s*|[+/^]\s*|\\(?:cdot|times|div|sqrt|pi)\s*)\{?$")
AFTER = re.compile(
    r"(?i)\s*\$?\s*(?:\^(?!\s*\{?\s*\\circ)|\\(?:cdot|times|div|sqrt|pi|[dt]?frac)(?![a-z])|[/+]|[万亿]"
    rf"|(?:{'|'.join(name for name in TIMES if name.isascii())})s?\b)|k\b"
)


def _stated(line: str) -> Extracted:
    """Return the only formula or number of a line, or of its last clause."""
    line = REASON.sub("", stripped(line))
    if DOUBTED.search(line) or HEDGED.search(line) or LISTED.search(line):
        return NO_ANSWER
    if formulas := list(INLINE.finditer(line)):
        is_only = len(formulas) == 1 and not re.search(r"\d", INLINE.sub("", line))
        stated = [f for f in formulas if is_only or STATED.search(line, 0, f.start())]
        if len(stated) != 1 or ANOTHER.match(line, stated[0].end()):
            return NO_ANSWER
        return Extracted(stripped(stated[0][1] or stated[0][2]))
    if copula := COPULA.search(line):
        return Extracted(stripped(copula[1]))
    clauses = re.findall(r"([^\d,]*?)([-−]?\d.*?)(?=, |$)", line.rpartition("=")[2])
    if not clauses:
        return NO_ANSWER
    lead, answer = clauses[-1]
    answer = MORE.sub("", answer.strip(" .,!;:*$"))
    has_more = "=" in line or re.search(r"[^\W\d]", answer)
    is_stated = STATED.search(lead) or (len(clauses) == 1 and has_more)
    value = None if REMARK.search(lead) else read(answer)
    is_number = value is not None and value.kind == "number"
    return Extracted(answer) if is_stated and is_number else NO_ANSWER


STATED = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals|costs?|makes?|so|total|beträgt|vaut|lautet|est|ist|es"
    r"|sind|son)\b\s*|[=:$€£为是]\s*)$"
)
REMARK = re.compile(  # a value after one of these was not asked for
    r"\b(?:after|by|within|in|at|above|of|than|for|(?<!left )with|(?<!out )to|on|per|until|exceed"
    r"|step|als|que|à)(?: the)?\s+$"
)
LISTED = re.compile(r"=[^$]*[^\W\d_][^$]*=")  # x = 6 and x = -1
MORE = re.compile(  # around the unit
    r"(?<=\d) more(?= [a-z]+)|,? (?:altogether|tomorrow|today|now)$|,? in (?:total|all)$"
    r"| (?:a|at|in|of) .*$"
)
# as in Pandoc: no blank after an opening dollar, none before a closing one, and no digit after that
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")
ANOTHER = re.compile(r"\s*(?:,\s*)?(?:\$|\\|and\b|or\b|和|或)")
# a formula after "is", with no word of three letters in it but "and"
COPULA = re.compile(
    r"\b(?:is|are|equals)\s+"
    r"((?=[^\s\d]*[\\(\[√−½×]|\d[^ ]*[×½√]|\d+,)(?:(?!\b(?!and\b)[A-Za-z]{3,}\b(?<!\\)).)+)$"
)


def stripped(text: str) -> str:
    """Return an answer without white space, emphasis, quotes, a final full stop or a lead-in.

    Dollar signs stay, as they may be money; so do brackets, as they may be a tuple.
    """
    before = None
    while text != before:
        before = text
        text = re.sub(
            r"\s*(?:です|である|입니다|이다)?(?<!\.)[.。．]?$|(?<=\$)!$", "", text.strip("*_` \n\t")
        )
        text = LEAD.sub("", unwrapped(text))
    return text


LEAD = re.compile(
    r"(?i)^(?:(?:so|thus|hence|therefore|we (?:get|have)|(?:i think )?it is|it's|that is"
    r"|approximately|exactly)[\s,:]+"
    r"|\\text\s*\{[^{}]*\b(?:is|are)\s*\}|(?:\\approx(?![a-z])|≈)\s*"
    r"|(?:\\text\s*\{[^{}]{3,40}\}|(?:[A-Za-z]{3,}[ ]?){1,4})\s*=(?!=)\s*)"
)
