r"""Extraction of the answer that a text settles on: boxed, tagged, announced, or the text itself.

In this order: \boxed{...}; <answer>...</answer>; #### 41, "Final answer: 41", "the answer is 41"; a
short text that is only its answer; the one number of the last line. A text that settles on several
answers, or takes one back, settles on none.
"""

# ruff: noqa: RUF001
import re
from fractions import Fraction
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
    if BOX.search(text):
        return _boxed(text)
    if "<answer>" in text:
        tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return _single(
            [stripped(inner) for inner in tagged], "\n" + text.rpartition("</answer>")[2]
        )
    if marks := _announcements(text):
        rest = text[marks[-1].end() :].lstrip()
        return _single([_announced(text, mark) for mark in marks], rest[len(_sentence(rest)) :])
    short = stripped(text)
    if not short:
        return NO_ANSWER
    bold = list(BOLD.finditer(text))
    if len({mark[1] for mark in bold}) == 1 and not NEGATED.search(text, 0, bold[0].start()):
        return _single([stripped(bold[0][1])], text[bold[-1].end() :])
    if "\n" not in short and len(short) <= MAX_SHORT and not PROSE.search(short):
        return Extracted(short)
    return _last_number(text)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} or \fbox{...} of a text; braces may nest."""
    found = boxes(text)
    return (found[-1].content or "").strip() or None if found else None


class Box(NamedTuple):
    """A box of a text: where it starts and ends, and its content; None if it is never closed."""

    start: int
    end: int
    content: str | None


def boxes(text: str) -> list[Box]:
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
        found.append(Box(mark.start(), at, inner[-1].content if inner else content))
    return found


BOX, BRACE = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{]\S*))"), re.compile(r"\\.|[{}]")
# a box of the question: 7 + \boxed{\phantom{0}} = 11
EMPTY = re.compile(r"(?:\\(?:[hv]?phantom|hspace\*?|q?quad|[,;:! ])\s*(?:\{[^{}]*\})?|[\s~_?])*")
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
CONTROL = re.compile(r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>")
STRUCK = re.compile(r"~~[^~\n]+~~|<(del|s)>[^<\n]*</\1>")
FENCE = re.compile(r"^```\w*[ \t]*$", re.MULTILINE)
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
PROSE = re.compile(
    r"^[a-z ]+:|[a-z]{2,} [a-z]+ [a-z]+|[a-z]{2,} [a-z]{2,} \S?\d|[.!?]\s+\S|\$.*[a-z]{3}.*\$",
    re.IGNORECASE,
)


def _announcements(text: str) -> list[re.Match[str]]:
    """Return the phrases that announce an answer; of adjacent ones only the last.

    Adjacent are for instance "Final answer:" and "the answer is".
    """
    marks = list(ANNOUNCED.finditer(text))
    return [
        mark
        for n, mark in enumerate(marks)
        if not NEGATED.search(text, 0, mark.end())
        and not (n + 1 < len(marks) and re.match(r"[^.\n]*\?", text[mark.end() :]))
        and not ASSUMED.search(re.split(r"[.\n]", text[: mark.start()])[-1])
        and not (n + 1 < len(marks) and LEAD_IN.fullmatch(text, mark.end(), marks[n + 1].start()))
    ]


ASSUMED = re.compile(r"\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b", re.IGNORECASE)
LEAD_IN = re.compile(r"\W*(?:it is not \w+\W+)?(?:the|so|my|our)?\W*", re.IGNORECASE)


def _boxed(text: str) -> Extracted:
    found = boxes(text)
    if any(box.content is None for box in found):
        return NO_ANSWER
    if any(NEGATED.search(text, 0, box.start) for box in found):
        return Extracted("", "taken-back")
    if any(_is_part(text, box) for box in found):
        return Extracted("", "part-of-formula")
    answers = [
        stripped(box.content or "") for box in found if not EMPTY.fullmatch(box.content or "")
    ]
    if all(PLAIN_NUMBER.fullmatch(answer) for answer in answers):
        announced = [_announced(text, mark) for mark in _announcements(text)]
        answers += [answer for answer in announced if PLAIN_NUMBER.fullmatch(answer)]
    return _single(answers, text[found[-1].end :])


def _is_part(text: str, box: Box) -> bool:
    r"""Return whether a box is only a part of a value: -\boxed{12}, \boxed{12} million.

    In 7 + \boxed{5} = 12 the box is what was asked for.
    """
    rest = re.split(r"[$\n]", text[box.end :].lstrip("$ "))[0]
    is_part = BEFORE.search(text, 0, box.start) or AFTER.match(text, box.end)
    return bool(is_part) and "=" not in rest


BEFORE = re.compile(r"(?:(?<!-)-|\$\s*-\s*|[+/^]\s*|\\(?:cdot|times|div)\s*)\{?$")
AFTER = re.compile(
    r"\s*\$?\s*(?:\^(?!\s*\{?\s*\\circ)|\\(?:cdot|times|div)(?![a-z])|[/+]|[万亿]"
    rf"|(?:{'|'.join(name for name in TIMES if name.isascii())})s?\b)|k\b",
    re.IGNORECASE,
)
PLAIN_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _single(answers: list[str], rest: str) -> Extracted:
    """Return the answer if all are the same and what follows does not settle on another."""
    different = tuple({_value(answer): answer for answer in reversed(answers)}.values())[::-1]
    if not different or not any(different):
        return NO_ANSWER
    if len(different) > 1:
        return Extracted("", "several-answers", different)
    problem = "taken-back" if _is_taken_back(different[0], rest) else ""
    return Extracted("" if problem else different[0], problem)


def _value(answer: str) -> Fraction | str:
    """Return the number that an answer is, or its text."""
    value = read(answer)
    return value.number if value is not None and value.kind == "number" else answer


def _is_taken_back(answer: str, rest: str) -> bool:
    """Return whether the text after an answer denies it, or settles on another value.

    The rest of the same sentence is a remark, unless it is an alternative: "or 42". A clause of a
    later sentence that ends on another number or letter settles on that, whatever its language or
    verb ("so I get 42", "make that 42"); what it denies or bounds is a remark.
    """
    rest = rest.lstrip("$*}\\)] \t")
    here, *later = SENTENCE.split(rest)
    if any(map(ALTERNATIVE.match, [here, *later])) or DENIAL.search(rest):
        return True
    is_letter, value = bool(re.fullmatch(r"\(?[A-J]\)?", answer)), _value(answer)
    if isinstance(value, str) and not is_letter and not answer.istitle():
        return False
    pattern = LAST_LETTER if is_letter else LAST_NAME if isinstance(value, str) else LAST_NUMBER
    answer = answer.strip("()-")
    for sentence in later if re.search(r"[^\W\d]|=", here) else (here, *later):
        is_check = CHECK.search(sentence) and not DENIED.search(sentence)
        for clause in CLAUSE.split(sentence):
            is_named = answer in re.findall(r"\w+(?:\.\w+)*", clause)
            is_remark = DENIED.search(clause) and not is_named  # unlike: not 9 but 10
            if is_remark or OPEN_END.search(clause) or (is_check and is_named and "=" in clause):
                continue
            last = pattern.search(clause)
            if last and _value(last[last.lastindex or 0]) not in (value, answer):
                return True
    return False


SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
CLAUSE = re.compile(r"[,;，；。．](?!\d)|[:：](?!\d)|\.\s")
ALTERNATIVE = re.compile(r"\W*(?:or|maybe|perhaps|oder|ou|或)\b(?!\s+equivalently)", re.IGNORECASE)
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
LAST_NUMBER = re.compile(
    r"(?<![\w.])(?:([-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)|(\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?))"
    r"\s*[$%]?\s*(?:[a-zA-Z\u0080-\u2fff\uac00-\ud7af]+|[\u3000-\u9fff]{1,2})?\W*$|(?<=[\u3000-\u9fff])(\d[\d.]*)\W*$"
    rf"|(\d[\d,.]*){RIGHT}"
)
LAST_NAME = re.compile(r"(?:\b(?:is|was|be)\s|'s\s|^)\W*((?:[A-Z]\w+ ?)+)\W*$")
LAST_LETTER = re.compile(rf"\b([A-J])\)?(?:\W*$|{RIGHT})")


def _sentence(rest: str) -> str:
    """Return the sentence or the line at the start of a text; all of a displayed formula."""
    if rest.startswith(("$$", "\\[")):
        return rest.partition("\n\n")[0]
    return re.split(r"(?<=\S)\.\s+(?=[A-Z\\$])|[。；]|\n", rest)[0]


def _announced(text: str, mark: re.Match[str]) -> str:
    """Return what follows an announcement, up to the end of its sentence or line."""
    sentence = " ".join(_sentence(text[mark.end() :].lstrip()).split())
    if "{" not in sentence:
        sentence = sentence.rstrip('"} ')  # of JSON
    return stripped(re.sub(r",?\s+not\s+[^\s,]+$", "", sentence.rstrip(".")))


def _last_number(text: str) -> Extracted:
    """Return the only formula or number of the last line, or the number after its last "="."""
    line = re.sub(r",? (?:since|because) .*", "", stripped(text.strip().rpartition("\n")[2]))
    if any(pattern.search(line) for pattern in (DENIAL, OPEN_END, DENIED, ASSUMED)):
        return NO_ANSWER
    formulas, others = [max(groups) for groups in INLINE.findall(line)], INLINE.sub("", line)
    if not formulas and (copula := COPULA.search(line)):
        formulas, others = [copula[1]], ""
    if formulas:
        is_only = len(formulas) == 1 and not re.search(r"\d", others)
        return Extracted(stripped(formulas[0])) if is_only else NO_ANSWER
    right_side = line.rpartition("=")[2]
    is_last = len(NUMBER.findall(right_side)) > 1  # 3 dozen, which is 36 eggs
    match = ONE_NUMBER.fullmatch(right_side.rpartition(", ")[2] if is_last else right_side)
    if not match or OF_ANOTHER.search(match[1]):
        return NO_ANSWER
    words = MORE.sub("", match[3].strip(" .,!;:*$"))
    is_stated = STATED.search(match[1]) or (not is_last and ("=" in line or match[3].strip(" .")))
    answer = f"{match[2]} {words}".strip()
    value = read(answer, letters_are_units=True)
    is_number = value is not None and value.kind == "number"
    return Extracted(answer) if is_stated and is_number else NO_ANSWER


NUMBER = re.compile(
    r"[-−]?(?:\d{1,3}(?:\.\d{3}){2,}(?!\d)|\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?[%°]?)"
)
ONE_NUMBER = re.compile(rf"(\D*?)({NUMBER.pattern})(\D*)")
MORE = re.compile(  # around the unit
    r"^more (?=[a-z]+)|,? (?:altogether|tomorrow|today|now)$|(?:^|,? )in (?:total|all)$"
    r"| (?:a|at|in|of) .*$"
)
# as in Pandoc: no blank after an opening dollar, none before a closing one, and no digit after that
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")
STATED = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals|costs?|makes?|so|total|beträgt|vaut|lautet|est|ist|es|sind"
    r"|son)\s*|[:$€£]\s*)$",
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
