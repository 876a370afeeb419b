"""Text after an answer: harmless, or one that may take the answer back.

No list of words for "no, it is 42" could be complete, least of all in many languages. So whatever
follows the sentence of an answer makes it uncertain, unless it ends on the same answer again, or
every sentence is known to say nothing of it.
"""

# ruff: noqa: RUF001
import re

from dstools_distill.judge.reader import read
from dstools_distill.judge.units import NONE


def agree(one: str, other: str) -> bool:
    """Return whether two answers are one text, or one number, of which either may lack its unit."""
    first, second = read(one), read(other)
    if first is None or second is None or {first.kind, second.kind} != {"number"}:
        return one == other
    return first.number == second.number and (
        first.unit == second.unit or NONE in (first.unit, second.unit)
    )


def is_taken_back(answer: str, rest: str) -> bool:
    """Return whether the text after an answer may deny it, or settle on another value."""
    here, *later = SENTENCE.split(CLOSED.sub("", rest).lstrip("$*}\\)] \t"))
    said_of_it = ASIDE.split(here)[0]
    if OTHERWISE.match(here) or DOUBTED.search(here) or HEDGED.search(said_of_it):
        return True
    later = [sentence for sentence in later if re.search(r"\w", sentence)]
    if later and _restates(answer, later[-1]):
        return False
    return not all(_is_harmless(answer, sentence) for sentence in later)


def is_corrected(between: str) -> bool:
    """Return whether the text between two answers says that only the later one is right."""
    concluded = re.split(r"[.!?]\s|\n\n", between.strip())[-1]
    words = between if CHECKED.search(between) else re.sub("[≠?]", "", between)
    is_said = WRONG.search(words) or (CORRECTED.search(between) and SETTLES.search(concluded))
    return bool(is_said and not EARLIER.search(between))


def _restates(answer: str, sentence: str) -> bool:
    """Return whether a sentence ends on an answer, or concludes with no other number.

    In an equation other numbers may stand before it: 4 + 5 = 9.
    """
    said = sentence.strip(" $*.!。！)✓}\n")
    if HEDGED.search(said):
        return False
    if "=" in said and agree(answer, said.rpartition("=")[2].strip(" $*")):
        return True
    if CONCLUDES.match(said) or said.endswith(answer):
        numbers = NUMBER.findall(said)
        return all(agree(answer, number) for number in numbers or [said[-len(answer) :]])
    return False


def _is_harmless(answer: str, sentence: str) -> bool:
    """Return whether a sentence restates or checks an answer, or is known to be of other things."""
    if _restates(answer, sentence) or CONFIRMS.fullmatch(sentence):
        return True
    is_named = bool(re.search(rf"\b{re.escape(answer)}\b", sentence))
    if OTHERS.match(sentence):
        return not is_named
    if option := OPTION.match(answer):
        if {*LETTER.findall(sentence)} - {option[1]}:
            return False
        if not (
            re.search(r"\d", sentence) or HEDGED.search(sentence) or OPTION_WORDS.search(sentence)
        ):
            return True
    is_check = is_named and CHECK.match(sentence)
    return bool(is_check or HARMLESS.fullmatch(sentence)) and not (
        DENIED if is_check else DOUBTED
    ).search(sentence)


CLOSED = re.compile(r"^[\s$}\\]*\\end\s*\{\w+\*?\}")  # the environment of a box
ASIDE = re.compile(r"[,，(—–:]|\bthe only\b|\b(?:and|und)\b")
SENTENCE = re.compile(r"(?<=[.!?;])(?<!\bi\.e\.)\s+|(?<=[。！？；])|\n+|</answer>")
NUMBER = re.compile(r"(?<![A-Za-z\d_.])[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
OTHERWISE = re.compile(  # in place of a remark on the answer
    r"(?i)\W*(?:(?:or|maybe|perhaps|oder|ou|或)\b(?! equivalently)|no[.,:;!]"
    r"|(?:is|are|was|must|needs?|does|do|would|ist|sind|n'est|est|es|son|é|è)\b"
    r"(?! the (?!answer|wrong)))|[\s$,;]*\d|\s*[<>]"
    r"|.*\b(?:otherwise|depending|so(?! that)|hence|thus|therefore)\b"
)
# of an answer: that it is wrong; also doubted; also denied or supposed; also bounded or asked for
WRONG = re.compile(
    r"(?i)\b(?:wrong|incorrect\w*|mistake\w*|false|untrue|impossible|fails|contradict\w*"
    r"|falsch\w*|faux|falso|sbagliat\w+|errad\w+)\b|не ?(?:верн|прав)|틀[렸린]|错|不对(?!称)"
    r"|誤|間違|[≠?]|\\neq?(?![a-z])"
)
CORRECTED = re.compile(  # of an earlier answer, by a later one
    r"(?i)\b(?:correct(?:ing|ed|ion)|mis(?:read|count\w*)|forgot|oops|the correct \w+ (?:is|are))\b"
)
CHECKED = re.compile(r"(?i)\b(?:wait|hmm|check|verif\w+)\b")
SETTLES = re.compile(
    r"(?i)\b(?:answer|result|so|thus|hence|therefore|correct \w+ (?:is|are))\b|答案|所以|因此"
)
EARLIER = re.compile(
    r"(?i)\b(?:earlier|previous\w*|before|had|would|should|if|key|students?|lists?|common\w*)\b|\([a-e]\)"
)
DOUBTED = re.compile(
    rf"{WRONG.pattern}|\b(?:doubt\w*|unsure|not sure|guess|no idea|unable|actually|wait|but"
    r"|(?<!answer )should be|may|might|could)\b"
)
DENIED = re.compile(
    rf"{DOUBTED.pattern}|\b(?:not|(?:cannot|can't)(?! be \w+ed)|never|no es|nicht|kein\w*|non|não"
    r"|nunca|pas|не|if|assume|suppose|thought|said)\b|n't\b|不是"
)
CHANGED = re.compile(  # the value of another thing than the answer
    r"\b(?:half|twice|doubled?|tripled?|squared|square of|(?:opposite|negative) of|whose"
    r"|Hälfte|moitié|used to|without|originally|previous|initial|intermediate|extraneous"
    r"|reject\w*|discard\w*|worst|similar|students?"
    r"|naive|tempting|(?:first|old|another|one) (?:answer|result|solution))\b|一半|可能|约"
    r"|(?:\d\s*[*/]\s*|(?<![\w-])-)(?:answer|result)",
    re.IGNORECASE,
)
HEDGED = re.compile(
    rf"{DENIED.pattern}|{CHANGED.pattern}"
    r"|\b(?:nor|neither|either|or|too|only|instead of|given|bound|let(?! me)"
    r"|between|about|more than|approximately|roughly|least|most|less|fewer|over|under|nearly"
    r"|almost|would|except|excluding|other than|apart from|w[äü]re?n?|mindestens|höchstens"
    r"|au (?:moins|plus)|al menos|como máximo|almeno|pelo menos)\b|[<>≤≥≈没]|不(?!同)|ない|至少"
    r"|至多|最多"
)
CONFIRMS = re.compile(
    r"(?i)\W*(?:yes,? )?(?:the answer|the result|this|it) is (?:right|correct)\W*"
)
CONCLUDES = re.compile(
    r"(?i)\W*(?:(?:so|hence|thus|therefore|note that|there are)\b|所以|因此)"
    r"|.*\bis (?:right|correct)$"
)
CHECK = re.compile(
    r"(?i)[^\w\n]{0,9}(?:[\w -]{0,40}check|verif\w+|probe|vérif\w+|проверка|验证|检验|検算)\b"
)
OPTION = re.compile(r"\(?([A-J])(?:[).:]|$)")
LETTER = re.compile(r"(?<![A-Za-z])(?:[B-J]|A(?! [a-z]))(?![A-Za-z])")  # of an option
OPTION_WORDS = re.compile(
    r"(?i)\b(?:options?|choices?|first|second|third|last|former|latter|closer)\b"
)
OTHERS = re.compile(r"(?i)\W*(?:options?|choices?) [A-J]\b")
HARMLESS = re.compile(
    r"(?i)\W*(?:(?:(?:this|the) )?(?:maximum|minimum|equality|bound) (?:is )?(?:attained|achieved"
    r"|reached|holds|occurs)\b[^=\d]*(?:=[^=,]*)?|this (?:completes|concludes|finishes)\b\D*"
    r"|(?:source|reference|difficulty|confidence|time|topics?)\W*:.*"
    r"|(?:explanation|reasoning|proof)\W*:\D*|(?:this is )?because\b\D*|.*のとき.*"
    r"|(?:there (?:is|are) )?no (?:other|further|smaller|larger|two)\b.*"
    r"|(?:it makes no difference|(?:i )?hope|(?:please )?let me know|feel free|thank(?:s| you)"
    r"|sorry for the long)\b\D*|(?:so )?(?:the )?answer stands|q\.?e\.?d|blacksquare)\W*",
    re.DOTALL,
)
