r"""Extraction of the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41";
bold text; a short text that is only its answer; the one number of the last line. A text that
settles on several answers, or takes one back, settles on none.
"""

# ruff: noqa: RUF001
import re
from fractions import Fraction
from itertools import zip_longest
from typing import NamedTuple

from dstools_distill.judge.reader import read
from dstools_distill.judge.spelling import unwrapped
from dstools_distill.judge.units import TIMES

UNSETTLED = ("taken-back", "part-of-formula")  # there is an answer, but which one is unknown
MAX_SHORT = 400  # characters of a text that may be only its answer


class Extracted(NamedTuple):
    """The answer that a text settles on, or why there is none."""

    text: str  # "" if there is a problem
    problem: str = ""  # "", "no-answer", "several-answers", or one of UNSETTLED
    parts: tuple[str, ...] = ()  # the different answers, if there are several


NO_ANSWER = Extracted("", "no-answer")


def final_answer(text: str) -> Extracted:
    """Return the answer that a text settles on, without what marks or announces it."""
    text = FENCE.sub("", CONTROL.sub(" ", STRUCK.sub("", text)))
    if DOUBTED.search(text):
        return Extracted("", "taken-back")
    for marks_of in (boxes, _tags, _announcements, _emphases):
        if marks := marks_of(text):
            return _settled(text, marks)
    short = stripped(text)
    if short and "\n" not in short and len(short) <= MAX_SHORT and not PROSE.search(short):
        return Extracted(short)
    return _stated(short.rpartition("\n")[2])


CONTROL = re.compile(r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>")
STRUCK = re.compile(r"~~[^~\n]+~~|<(del|s)>[^<\n]*</\1>")
FENCE = re.compile(r"^```\w*[ \t]*$", re.MULTILINE)
DOUBTED = re.compile(
    r"\b(?:unable|not able|cannot|can't|could ?n[o']t) (?:to )?\w+ (?:the|this) (?:\w+ )?"
    r"(?:answer|problem)\b"
    r"|\b(?:a|my|best) guess\s*(?:is|would|:)|\bI(?:'ll|'d| will)?(?: just)? guess\b",
    re.IGNORECASE,
)
PROSE = re.compile(
    r"^[a-z ]+:|[a-z]{2,} [a-z]+ [a-z]+|[a-z]{2,} [a-z]{2,} \S?\d|[.!?]\s+\S|\$.*[a-z]{3}.*\$",
    re.IGNORECASE,
)


# ------------------------------------------------------------------------------------------ marks


class Mark(NamedTuple):
    """A place of a text that marks an answer: its start and end, and the answer.

    The answer is None if the mark is never closed.
    """

    start: int
    end: int
    answer: str | None


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
        start = mark.end() + len(text[mark.end() :]) - len(text[mark.end() :].lstrip())
        sentence = _sentence(text[start:])
        answer = " ".join(sentence.split())
        if "{" not in answer:
            answer = answer.rstrip('"} ')  # of JSON
        answer = re.sub(r",?\s+not\s+[^\s,]+$", "", answer.rstrip("."))
        marks.append(Mark(mark.start(), start + len(sentence), answer))
    return marks


def _sentence(text: str) -> str:
    """Return the sentence or the line at the start of a text; all of a displayed formula."""
    if text.startswith(("$$", "\\[")):
        return text.partition("\n\n")[0]
    return re.split(r"(?<=\S)\.\s+(?=[A-Z\\$])|[。；]|\n", text)[0]


ANNOUNCED = re.compile(
    r"\#{4}\s*"
    r"|(?:\b(?:final|correct|right)\s+)?\b(?:answer|result|solution|option|choice)s?\b"
    r"(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?"
    r"(?:[”\x22]?\s*[*_]{0,2}\s*[:：]\s*[*_]{0,2}"
    r"|\s+(?:is|are|equals|would be|will be|should be|=)\b:?)\s*"
    r"|\bfinal answer[*_]*\s*\n+\s*"
    r"|\b(?:réponse|respuesta|Antwort|Lösung|Ergebnis)(?:\s+(?!no\b)[^\W\d]+)?\s+(?:est|es|ist|lautet)"
    r"(?:\s+(?:donc|also))?\s+|Ответ\s*[:—-]\s*|答えは\s*|정답은\s*"
    r"|(?:答案|结果)(?:是|为|[:：])+\s*|(?<!不)故?选\s*[:：]?\s*(?=[A-J])",
    re.IGNORECASE,
)
NEGATED = re.compile(
    r"(?:(?:not|n't|\bnever|\bimpossible)\s+(?:that\s+|be\s+|equal(?:\s+to)?\s+|the\s+)*|不是)"
    r"[^\w\\]*$|\b(?:false|untrue|wrong|incorrect) that\b[^.\n]*$",
    re.IGNORECASE,
)
ASSUMED = re.compile(r"\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b", re.IGNORECASE)
LEAD_IN = re.compile(r"\W*(?:it is not \w+\W+)?(?:the|so|my|our)?\W*", re.IGNORECASE)


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
    answers = [
        stripped(mark.answer or "") for mark in marks if not EMPTY.fullmatch(mark.answer or "")
    ]
    if all(map(PLAIN_NUMBER.fullmatch, answers)):
        announced = [stripped(mark.answer or "") for mark in _announcements(text)]
        answers += filter(PLAIN_NUMBER.fullmatch, announced)
    different = tuple({_value(answer): answer for answer in reversed(answers)}.values())[::-1]
    if not any(different):
        return NO_ANSWER
    if len(different) > 1:
        return Extracted("", "several-answers", different)
    problem = "taken-back" if _is_taken_back(different[0], text[marks[-1].end :]) else ""
    return Extracted("" if problem else different[0], problem)


# a box of the question: 7 + \boxed{\phantom{0}} = 11
EMPTY = re.compile(r"(?:\\(?:[hv]?phantom|hspace\*?|q?quad|[,;:! ])\s*(?:\{[^{}]*\})?|[\s~_?])*")
PLAIN_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _value(answer: str) -> Fraction | str:
    """Return the number that an answer is, or its text."""
    value = read(answer)
    return value.number if value is not None and value.kind == "number" else answer


def _is_part(text: str, mark: Mark) -> bool:
    r"""Return whether a marked answer is only a part of a value: -\boxed{12}, \boxed{12} million.

    In 7 + \boxed{5} = 12 the box is what was asked for.
    """
    rest = re.split(r"[$\n]", text[mark.end :].lstrip("$ "))[0]
    is_part = BEFORE.search(text, 0, mark.start) or AFTER.match(text, mark.end)
    return bool(is_part) and "=" not in rest


BEFORE = re.compile(r"(?:(?<!-)-|\$\s*-\s*|[+/^]\s*|\\(?:cdot|times|div)\s*)\{?$")
AFTER = re.compile(
    r"\s*\$?\s*(?:\^(?!\s*\{?\s*\\circ)|\\(?:cdot|times|div)(?![a-z])|[/+]|[万亿]"
    rf"|(?:{'|'.join(name for name in TIMES if name.isascii())})s?\b)|k\b",
    re.IGNORECASE,
)


def _is_taken_back(answer: str, rest: str) -> bool:
    """Return whether the text after an answer denies it, or settles on another value.

    The rest of the same sentence is a remark, unless it is an alternative: "or 42". A clause of a
    later sentence that ends on another number, letter or name settles on that if the sentence
    corrects ("wait, it is 42"), the clause concludes ("so I get 42"), or is hardly more than the
    value, in whatever language ("es sind 42"). Others are remarks: "I used 2 methods".
    """
    rest = rest.lstrip("$*}\\)] \t")
    here, *later = SENTENCE.split(rest)
    if any(map(ALTERNATIVE.match, [here, *later])) or DENIAL.search(rest):
        return True
    is_letter, value = bool(re.fullmatch(r"\(?[A-J]\)?", answer)), _value(answer)
    if isinstance(value, str) and not is_letter and not answer.istitle():
        return False
    last = LAST["letter" if is_letter else "name" if isinstance(value, str) else "number"]
    same = (value, answer.strip("()-"))
    is_remark = re.search(r"[^\W\d]|=", here) and not CORRECTS.match(here)
    for sentence in later if is_remark else (here, *later):
        if CITES.match(sentence):
            continue
        is_check = CHECK.search(sentence) and not DENIED.search(sentence)
        for clause in CLAUSE.split(sentence):
            is_named = same[1] in re.findall(r"\w+(?:\.\w+)*", clause)
            is_remark = DENIED.search(clause) and not is_named  # unlike: not 9 but 10
            if is_remark or OPEN_END.search(clause) or (is_check and is_named and "=" in clause):
                continue
            found = last.search(clause)
            if not found or _value(found[1].strip()) in same:
                continue
            if CORRECTS.match(sentence) or CONCLUDES.search(clause) or _is_all(clause, found):
                return True
    return False


def _is_all(clause: str, value: re.Match[str]) -> bool:
    """Return whether a clause is hardly more than the value that it ends on."""
    lead, unit = clause[: value.start()], clause[value.end(1) :]
    words = len(re.findall(r"[^\W\d_][^\W\d_'’]*", lead))
    is_bare = words <= 2 and not re.search("[a-z]", unit)
    is_stated = value["right"] or (words <= 4 and STATED.search(lead))
    return bool(is_bare or is_stated) and not CONDITION.match(lead)


SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+|</answer>")
CLAUSE = re.compile(r"[,;，；。．:：](?!\d)|\.\s|\b(?:because|since)\b")
ALTERNATIVE = re.compile(r"\W*(?:or|maybe|perhaps|oder|ou|或)\b(?!\s+equivalently)", re.IGNORECASE)
CORRECTS = re.compile(
    r"\W*(?:wait|no|nein|non|actually|correction|oops|sorry|hmm|hold on|scratch|edit|on second"
    r"|let me re|but|however|checking again|that said|нет|ошибка"
    r"|i (?:now|made|mis\w*|forgot|was|meant))\b",
    re.IGNORECASE,
)
CONCLUDES = re.compile(
    r"\b(?:so|hence|therefore|thus|giv(?:es|ing)|which is|(?:should|must) be|there (?:is|are)"
    r"|(?:answer|result|total|count|value)\b.* (?:is|=))\b",
    re.IGNORECASE,
)
CONDITION = re.compile(
    r"\W*(?:(?:for|when|where|at|with|see|für|bei|pour|para|при|для)\b|当|若)", re.IGNORECASE
)
CITES = re.compile(r"\W*(?:source|quelle|fuente|来源)\s*[:：]", re.IGNORECASE)
# the equation of a check has the answer in it: 9 - 4 = 5
CHECK = re.compile(
    r"check|verif|vérif|compr?ob|prob[ea]\b|kontroll|验|检|検|확인|провер", re.IGNORECASE
)
DENIED = re.compile(
    r"\b(?:(?:can)?not|no|nor|never|neither|nicht|kein\w*|nunca|pas|не)\b|n't\b|不|没|ない",
    re.IGNORECASE,
)
DENIAL = re.compile(  # of the text before, without another value
    r"(?:^\W*is|\b(?:that|this|it|answer|result|value|above))\b[^.;,]*"
    r"\b(?:wrong|incorrect|not right)\b"
    r"|\b(?:disregard|(?:cannot|can't|not) be (?:right|correct)|contradicts|unsure|not sure)\b"
    r"|^\W*(?:is|are|ist|n'est|does|do) (?:(?:not|nicht|pas) (?:the|die|la|satisf|work|hold)|fals)"
    r"|\bno\s*[.!:,;]|\b(?:might|could) be\b|\botherwise\b|不对|错的",
    re.IGNORECASE,
)
RIGHT = r"\W? (?:is |are |also )+(?:right|correct|possible|works?|the answer)\b"
UNIT = r"(?:(?!is\b|are\b)[a-zA-Z\u0080-\u2fff\uac00-\ud7af]+(?: [a-z]+)?|[\u3000-\u9fff]{1,2})"
FRACTION = r"\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?"
LAST = {  # the value that a clause ends on, or says to be right
    name: re.compile(rf"(?<![A-Za-z\d_.])(?<![-+*/] )({value})(?:(?P<right>{RIGHT})|{unit}\W*$)")
    for name, value, unit in (
        ("letter", "[A-J]", r"\)?"),
        ("name", r"[A-Z]\w+(?: [A-Z]\w+)*", ""),
        ("number", rf"[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|{FRACTION}", rf"\s*[$%]?\s*{UNIT}?"),
    )
}


def _stated(line: str) -> Extracted:
    """Return the only formula or number of a line, or of its last clause."""
    line = re.sub(r",? (?:since|because) .*", "", stripped(line))
    if any(pattern.search(line) for pattern in (DENIAL, OPEN_END, DENIED, ASSUMED)):
        return NO_ANSWER
    formulas, others = [max(groups) for groups in INLINE.findall(line)], INLINE.sub("", line)
    if not formulas and (copula := COPULA.search(line)):
        formulas, others = [copula[1]], ""
    if formulas:
        is_only = len(formulas) == 1 and not re.search(r"\d", others)
        return Extracted(stripped(formulas[0])) if is_only else NO_ANSWER
    clauses = re.findall(r"([^\d,]*?)([-−]?\d.*?)(?=, |$)", line.rpartition("=")[2])
    if not clauses:
        return NO_ANSWER
    lead, answer = clauses[-1]
    answer = MORE.sub("", answer.strip(" .,!;:*$"))
    has_more = "=" in line or re.search(r"[^\W\d]", answer)
    is_stated = STATED.search(lead) or (len(clauses) == 1 and has_more)
    value = None if OF_ANOTHER.search(lead) else read(answer, letters_are_units=True)
    is_number = value is not None and value.kind == "number"
    return Extracted(answer) if is_stated and is_number else NO_ANSWER


MORE = re.compile(  # around the unit
    r"(?<=\d) more (?=[a-z]+)|,? (?:altogether|tomorrow|today|now)$|,? in (?:total|all)$"
    r"| (?:a|at|in|of) .*$"
)
# as in Pandoc: no blank after an opening dollar, none before a closing one, and no digit after that
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")
STATED = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals|costs?|makes?|gives?|becomes|get|so|total|beträgt|vaut"
    r"|lautet|est|ist|es|sind|son)\s*|'s\s*|[=:$€£]\s*)$",
    re.IGNORECASE,
)
OF_ANOTHER = re.compile(  # a number after these is none that was asked for
    r"\b(?:after|by|within|in|at|of|than|for|with|to|on|per|until|exceed|step|als|que|à)"
    r"(?: the)?\s+$",
    re.IGNORECASE,
)
OPEN_END = re.compile(
    r"\?|\b(?:if|either|between|about|least|most|less|fewer|over|under|nearly|almost|let|assume"
    r"|suppose|might|may|or)\b|≈",
    re.IGNORECASE,
)
# a formula after "is", with no word of three letters in it
COPULA = re.compile(
    r"\b(?:is|are|equals)\s+"
    r"((?=[^\s\d]*[\\(\[√−½×]|\d[^ ]*[×½√])(?:(?!\b[A-Za-z]{3,}\b(?<!\\)).)+)$"
)


def stripped(text: str) -> str:
    """Return an answer without white space, emphasis, quotes, a final full stop or a lead-in.

    Dollar signs stay, as they may be money; so do brackets, as they may be a tuple.
    """
    before = None
    while text != before:
        before = text
        text = re.sub(
            r"\s*(?:です|입니다)?(?<!\.)[.。．]?$|\s*(?:です|입니다)$", "", text.strip("*_` \n\t")
        )
        text = LEAD.sub("", unwrapped(text))
    return text


LEAD = re.compile(
    r"^(?:(?:so|thus|hence|therefore|we (?:get|have)|(?:i think )?it is|it's|that is|approximately"
    r"|exactly)[\s,:]+"
    r"|\\text\s*\{[^{}]*\b(?:is|are)\s*\}|(?:\\approx(?![a-z])|≈)\s*"
    r"|(?:\\text\s*\{[^{}]{3,40}\}|(?:[A-Za-z]{3,}[ ]?){1,4})\s*=(?!=)\s*)",
    re.IGNORECASE,
)
