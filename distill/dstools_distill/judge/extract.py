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
    marks = _marks(text)
    return _settled(text, marks) if marks else _unmarked(text)


def _unmarked(text: str) -> Extracted:
    """Return the bold words, or all of a short text, or what the last line states."""
    if marks := _emphases(text):
        return _settled(text, marks)
    short = stripped(text)
    if short and "\n" not in short and len(short) <= MAX_SHORT and not PROSE.search(short):
        return Extracted(short)
    return _stated(short.rpartition("\n")[2])


CONTROL = re.compile(r"<\|[^<>|\n]{1,40}\|>|<｜[^<>｜\n]{1,40}｜>")
STRUCK = re.compile(r"~~[^~\n]+~~|<(del|s)>[^<\n]*</\1>")
FENCE = re.compile(r"^```\w*[ \t]*$", re.MULTILINE)
DOUBTED = re.compile(
    r"(?i)\b(?:unable|not able|cannot|can't|could ?n[o']t) (?:to )?\w+ (?:the|this) (?:\w+ )?"
    r"(?:answer|problem)\b"
    r"|\b(?:a|my|best) guess\s*(?:is|would|:)|\bI(?:'ll|'d| will)?(?: just)? guess\b"
    r"|\bI (?:really )?(?:don't|do not)(?: really)? know\b|\bno idea\b|\bgrain of salt\b"
)
PROSE = re.compile(
    r"(?i)^[a-z ]+:|[\u4e00-\u9fff]\s*\$|[a-z]{2,} [a-z]+ [a-z]+|[a-z]{2,} [a-z]{2,} \S?\d"
    r"|[.!?]\s+\S|\$.*[a-z]{3}.*\$"
)


# ------------------------------------------------------------------------------------------ marks


class Mark(NamedTuple):
    """A place of a text that marks an answer: its start and end, and the answer.

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
    if all(PLAIN_NUMBER.fullmatch(stripped(mark.answer or "")) for mark in marks):
        marks += [
            m for m in announced if not marks or PLAIN_NUMBER.fullmatch(stripped(m.answer or ""))
        ]
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
        if is_open or NEGATED.search(text, 0, mark.end()) or re.search(ASSUMED, before):
            continue
        said = SAID.match(text, mark.end())
        answer = " ".join(said[0].split()) if said else ""
        if "{" not in answer:
            answer = answer.rstrip('"} ')  # of JSON
        answer = re.sub(r",?\s+not\s+[^\s,]+$", "", answer.rstrip("."))
        if PROSE.search(answer) and re.search(r"\bis\b", answer):
            answer = _unmarked(answer).text or answer
        marks.append(Mark(mark.start(), said.end() if said else mark.end(), answer))
    return marks


# a displayed formula, or the rest of the sentence or line
SAID = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\S.*?(?=(?<=\S)\.\s+[A-Z\\$]|[。；\n]|\Z)", re.DOTALL)
ANNOUNCED = re.compile(
    r"(?im)(?:\#{4}|(?:\b(?:final|correct|right)\s+)?\b(?:answer|result|solution|option|choice)s?\b"
    r"(?:\s+(?:to|of|for)\s[^.:\n]{1,60}?)?"
    r"(?:[”\x22]?\s*[*_]{0,2}\s*[:：]\s*[*_]{0,2}"
    r"|\s+(?:is|are|equals|would be|will be|should be|=)\b:?)"
    r"|(?:^[#*_]+\s*|\bfinal )answer[*_]*\s*\n|\bchoose (?:option )?(?=\(?[A-J]\b)"
    r"|\b(?:réponse|respuesta|resposta|risposta|Antwort|Lösung|Ergebnis)(?:\s+(?!no\b)[^\W\d]+)?"
    r"(?:\s*:|\s+(?:est|es|é|è|ist|lautet)\b)(?:\s+(?:donc|also)\b)?|ответ\s*[:—-]?"
    r"|(?:答え|正解)は|답[은:]|【答案】|(?:答案|结果)(?:是|为|[:：])+|(?<!不)故?选\s*[:：]?\s*(?=[A-J]))\s*"
)
NEGATED = re.compile(
    r"(?i)(?:(?:not|n't|\bnever|\bimpossible|\bif)\s+(?:that\s+|be\s+|equal(?:\s+to)?\s+|the\s+)*|不是)"
    r"[^\w\\]*$|\b(?:false|untrue|wrong|incorrect) that\b[^.\n]*$"
)
ASSUMED = r"(?i)\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b"
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
        if not EMPTY.fullmatch(mark.answer or "") and not _is_retracted(text[mark.end : end])
    ]
    different = tuple({_value(answer): answer for answer in reversed(answers)}.values())[::-1]
    if not any(different):
        return NO_ANSWER
    if len(different) > 1:
        return Extracted("", "several-answers", different)
    problem = "taken-back" if _is_taken_back(different[0], text[marks[-1].end :]) else ""
    return Extracted("" if problem else different[0], problem)


# a box of the question: 7 + \boxed{\phantom{0}} = 11
EMPTY = re.compile(r"(?:\\(?:[hv]?phantom|hspace\*?|q?quad|[,;:! ])\s*(?:\{[^{}]*\})?|[\s~_?])*")


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
    r"(?i)\s*\$?\s*(?:\^(?!\s*\{?\s*\\circ)|\\(?:cdot|times|div)(?![a-z])|[/+]|[万亿]"
    rf"|(?:{'|'.join(name for name in TIMES if name.isascii())})s?\b)|k\b"
)


def _is_retracted(rest: str) -> bool:
    """Return whether a text denies the answer before it, if not in favour of another value."""
    is_exclaimed = EXCLAIMED.search(rest) and not AFFIRMED.search(rest)
    return bool(RETRACTED.search(rest) or is_exclaimed)


def _is_taken_back(answer: str, rest: str) -> bool:
    """Return whether the text after an answer denies it, or settles on another value.

    The rest of the same sentence is a remark, unless it is an alternative: "or 42". A clause of a
    later sentence that ends on another number, letter or name settles on that if it concludes ("so
    I get 42"), or is hardly more than the value, in whatever language ("es sind 42"). Others are
    remarks: "I used 2 methods".
    """
    rest = rest.lstrip("$*}\\)] \t")
    if ALTERNATIVE.search(rest) or _is_retracted(rest):
        return True
    value = _value(answer)
    if isinstance(value, Fraction):
        last = LAST_NUMBER
    elif re.fullmatch(r"\(?[A-J]\)?", answer):
        last = LAST_LETTER
    elif answer.istitle():
        last = LAST_NAME
    else:
        return False
    same = (value, answer.strip("()-"))
    own = rf"(?<![\w.]){re.escape(same[1])}\b"
    if re.search(rf"{own}\W+(?:is(?: not|n't) (?:the|right)|does(?: not|n't)|fails)", rest):
        return True
    equation = re.compile(rf"(?:^|[^-+*/\s])\s*{own}\s*=")  # 84 = 7 * 12
    here, *later = SENTENCE.split(rest)
    for sentence in later if re.search(r"[^\W\d]|=", here) else (here, *later):
        for clause in CLAUSE.split(sentence):
            found = last.search(clause)
            if not found or _value(found[1]) in same:
                continue
            if HEDGED.search(clause) or equation.search(clause):
                continue
            is_whole = not re.search("[A-Za-z]", clause[found.end(1) :])  # unlike 2 methods
            is_said = is_whole or found["right"] or STATED.search(clause, 0, found.start())
            is_remark = LABEL.match(sentence) or REMARK.search(clause[: found.start()])
            if SETTLES.search(sentence) or (is_said and not is_remark):
                return True
    return False


SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？])|\n+|</answer>|(?=\bbut\b)")
CLAUSE = re.compile(r"[,;，；。．:：](?!\d)|\.\s|\b(?:because|since)\b")
START = r"(?:^|(?<=[.!?;]\s)|(?<=[\n。]))\W*"
ALTERNATIVE = re.compile(rf"(?i){START}(?:or|either|maybe|perhaps|oder|ou|或)\b(?!\s+equivalently)")
EXCLAIMED = re.compile(
    rf"(?i){START}(?:(?:wait|hold on|oops|scratch that|hmm|correction|update|edit|sorry|moment"
    r"|halt|attends|espera|momento)\b\W*?[,.:!—]|on second thought|i forgot\b|等|待って|잠깐|стоп"
    r"|let me re(?:check|count|do|comp|think|calc))"
)
AFFIRMED = re.compile(r"(?i)\b(?:stands|right|correct|fine|holds|yes)\b|✓")
RETRACTED = re.compile(
    r"(?i)(?:^\W*is|\b(?:that|this|it|answer|result|value|above))\b[^.;,]*"
    r"\b(?:wrong|incorrect|not right)\b"
    r"|\b(?:disregard|(?:cannot|can't|not) be (?:right|correct)|contradicts|unsure|not sure"
    r"|(?:might|could) be(?! tempted)|otherwise|is what (?:one|you|we) gets?|i mis\w+|never ?mind"
    r"|scratch that|take (?:it|that) back|mistaken|off by|no,? wait|richtig (?:ist|wäre))\b"
    r"|\bhalf of (?:it|that|this)\b|\bone (?:less|more)\.|\bcannot be\s*[.!]"
    r"|^\W*(?:is|are|ist|n'est|does|do) (?:(?:not|nicht|pas) (?:the|die|la|satisf|work|hold)|fals)"
    r"|\b(?:no|non|nein|нет)\s*[.!:,;]|\b(?:wrongly|stimmt (?:so )?nicht|falsch|faux|falso)\b"
    r"|\btromp|\bequivo|\bverrechnet|\bошиб(?:ся|лась)|неверн|неправильн|不对(?!称|等)|错[的了误]"
    r"|有误|間違|訂正|틀렸|잘못|\bshould (?:also )?be (?:ex|in)cluded\b"
)
SETTLES = re.compile(
    r"(?i)^\W*(?:wait|no|nein|non|actually|however|but|checking again|that said|нет|ошибка|i now"
    r"|i meant)\b"
    r"|\b(?:so|hence|therefore|thus|giv(?:es|ing)|which is|there (?:is|are)"
    r"|(?:should|must) (?:be|have been)|(?:we|i) (?:find|get)"
    r"|(?:answer|result|total|count|value)\b.* (?:is|=))\b"
)
LABEL = re.compile(
    r"(?i)\W*(?:note|source|reference|quelle|fuente|来源|注|time|word count|difficulty|confidence"
    r"|score|level|[\w -]*check|verif\w*|vérif\w*|prob[ea]|kontrolle|[验检検]\w*|확인|проверка)\b"
    r"[^.:：]*[:：]"
)
REMARK = re.compile(  # after a condition or such a word a value is none that was asked for
    r"(?i)^\W*(?:(?:for|when|where|at|with|see|für|bei|pour|para|при|для)\b|当|若)"
    r"|\b(?:part|step|case|theorem|lemma|problem|question|method|figure|equation|page|section|(?-i:[A-Z]{3,})"
    r"|(?:with|where|when|for|that|using|at)\s+\$?\w\w?\s*=)\W*$"
    r"|\b(?:after|by|within|in|at|above|of|than|for|(?<!left )with|(?<!out )to|on|per|until"
    r"|exceed|als|que|à)(?: the)?\s+$"
)
HEDGED = re.compile(  # what is denied, bounded, supposed or asked is not stated
    rf"{ASSUMED}|\b(?:(?:can)?not|no|nor|never|neither|nicht|kein\w*|nunca|pas|не|either"
    r"|between|about|least|most|less|fewer|over|under|nearly|almost|let|might|may|or|would"
    r"|w[äü]re?n?|serait|first (?:thought|got|found)|initially)\b|n't\b|[≈?不没]|ない"
)
RIGHT = r"(?P<right>\W? (?:is |are |also )+(?:(?:the )?(?:right|correct|answer)|possible|works?)\b)"
LAST_LETTER = re.compile(rf"\b([A-J])(?:{RIGHT}|\)?\W*$)")  # or of which it says that it is right
LAST_NAME = re.compile(rf"\b([A-Z]\w+(?: [A-Z]\w+)*)(?:{RIGHT}|\W*$)")
LAST_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.])([-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?)"
    rf"(?:{RIGHT}|\s*[$%]?\s*(?:such |more |different |distinct )?"
    r"(?:(?!is\b|are\b)[a-zA-Z\u0080-\u2fff\uac00-\ud7af]+"
    r"|[\u3000-\u9fff]{1,2})?(?: in (?:total|all))?\W*$)"
)


def _stated(line: str) -> Extracted:
    """Return the only formula or number of a line, or of its last clause."""
    line = re.sub(r",? (?:since|because) .*", "", stripped(line))
    if RETRACTED.search(line) or HEDGED.search(line):
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
    value = None if REMARK.search(lead) else read(answer, letters_are_units=True)
    is_number = value is not None and value.kind == "number"
    return Extracted(answer) if is_stated and is_number else NO_ANSWER


MORE = re.compile(  # around the unit
    r"(?<=\d) more (?=[a-z]+)|,? (?:altogether|tomorrow|today|now)$|,? in (?:total|all)$"
    r"| (?:a|at|in|of) .*$"
)
# as in Pandoc: no blank after an opening dollar, none before a closing one, and no digit after that
INLINE = re.compile(r"(?<![\\$])\$(?=[^\s$])((?:[^$\\]|\\.)*?)(?<=\S)\$(?![\d$])|\\\((.+?)\\\)")
ANOTHER = re.compile(r"\s*(?:,\s*)?(?:\$|\\|and\b|or\b|和|或)")
STATED = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals|costs?|makes?|gives?|becomes|get|so|total|beträgt|vaut"
    r"|lautet|est(?: de)?|ist|es|sind|son|donne|bleibt)\s*|'s\s*|[=:$€£为是]\s*)$"
)
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
