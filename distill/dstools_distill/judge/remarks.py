"""Text after an answer: a remark, or one that takes the answer back.

No list of words for "no, it is 42" could be complete, least of all in many languages. So a sentence
after a number or a formula takes it back unless it opens as a remark does, or states it again.
"""

# ruff: noqa: RUF001
import re
from fractions import Fraction
from itertools import takewhile

from dstools_distill.judge.reader import read


def value_of(answer: str) -> Fraction | str:
    """Return the number that an answer is, or its text."""
    value = read(answer)
    return value.number if value is not None and value.kind == "number" else answer


def is_taken_back(answer: str, rest: str) -> bool:
    """Return whether the text after an answer may deny it, or settle on another value.

    The rest of the same sentence is a remark, unless it is an alternative: "or 42". Of later
    sentences those that open as remarks do may still end on another value: "Check: 9 + 4 = 13, so
    it should be 8". After a letter or a name another of its kind counts, whatever the sentence.
    """
    rest = rest.lstrip("$*}\\)] \t")
    here, *later = SENTENCE.split(rest)
    if ALTERNATIVE.match(here) or RETRACTED.search(here):
        return True
    value, is_letter = value_of(answer), bool(re.fullmatch(r"\(?[A-J]\)?", answer))
    told = takewhile(lambda sentence: not EXPLAINS.match(sentence), later)
    last, is_open = LAST_FORMULA, not all(map(_is_known, told))
    if isinstance(value, Fraction):
        last = LAST_NUMBER
    elif is_letter or answer.istitle():
        last, is_open = LAST_LETTER if is_letter else LAST_NAME, False
    if later and _restates(answer, later[-1]):
        return False
    if is_open or RETRACTED.search(rest):
        return True
    sentences = later if re.search(r"[^\W\d]|=", here) else [here, *later]
    return any(_settles_on(sentence, last, value, answer.strip("()-")) for sentence in sentences)


def _settles_on(sentence: str, last: re.Pattern[str], value: Fraction | str, answer: str) -> bool:
    """Return whether a clause ends on another value than the answer's, and says that it is it."""
    equation = re.compile(rf"(?:^|[^-+*/\s])\s*(?<![\w.]){re.escape(answer)}\s*=")  # 84 = 7 * 12
    is_labelled = LABEL.match(sentence) and ":" in sentence
    for clause in CLAUSE.split(sentence):
        found = last.search(clause)
        if not found or value_of(found[1]) in (value, answer):
            continue
        if HEDGED.search(clause) or equation.search(clause):
            continue
        is_whole = not re.search("[A-Za-z]", clause[found.end(1) :])  # unlike 2 methods
        is_said = is_whole or found.lastgroup or STATED.search(clause, 0, found.start())
        is_remark = is_labelled or REMARK.search(clause[: found.start()])
        if SETTLES.search(sentence) or (is_said and not is_remark):
            return True
    return False


def _restates(answer: str, sentence: str) -> bool:
    """Return whether a sentence affirms an answer, ends on it, or concludes with it alone."""
    stated = sentence.rstrip(" $*.!)✓")
    ends = [match.end() for match in SAYS.finditer(stated)]
    same = (value_of(answer), value_of(answer.rpartition("=")[2]))
    is_last = ends and value_of(stated[ends[-1] :].strip(" *")) in same
    is_last = is_last and not HEDGED.search(stated[: ends[-1]])
    is_alone = re.findall(r"\d+(?:\.\d+)?", sentence) == [answer] and CONCLUDES.match(sentence)
    is_right = re.search(rf"(?<![\w.]){re.escape(answer)}\W? is (?:right|correct)\b", sentence)
    return bool(AFFIRMED.search(sentence) or is_right or is_last or is_alone)


def _is_known(sentence: str) -> bool:
    """Return whether a sentence has no words outside formulas, or opens as a remark does."""
    words = re.search(r"[^\W\d_]{2}", re.sub(r"\$.*?\$|\\\w+", "", sentence))
    return not words or bool(LABEL.match(sentence))


CONCLUDES = re.compile(r"(?i)\W*(?:so|hence|thus|therefore|there (?:is|are)|所以|因此)\b")
SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？])|\n+|</answer>|(?=\bbut\b)")
CLAUSE = re.compile(r"[,;，；。．:：](?!\d)|\.\s|\b(?:because|since)\b")
START = r"(?:^|(?<=[.!?;]\s)|(?<=[\n。]))\W*"
ALTERNATIVE = re.compile(r"(?i)\W*(?:or|either|maybe|perhaps|oder|ou|或)\b(?!\s+equivalently)")
AFFIRMED = re.compile(r"(?i)\b(?:answer|result|value) (?:stands|checks out)\b|\bno mistake\b|✓")
EXPLAINS = re.compile(
    r"(?i)\W*(?:(?:explanation|reasoning|proof|solution|justification|erklärung|begründung"
    r"|explication|explicación|justificación|spiegazione|explicação|объяснение|решение)\b"
    r"|解析|解释|解答|解説|理由|풀이)"
)
RETRACTED = re.compile(
    rf"(?i){START}(?:(?:wait|hold on|oops|hmm|correction|update|edit|sorry|moment|momento"
    r"|korrektur|corrección)\b\W*?[,.:!—]|let me re(?:check|count|do|comp)|(?:but )?i (?:forgot"
    r"|now see|realize)\b|on (?:second thought|reflection)|等|其实|更正|いや)"
    r"|(?:^\W*is|\b(?:that|this|it|answer|result|value|above))\b[^.;,]*"
    r"\b(?:wrong|incorrect|not right)\b"
    r"|\b(?:disregard|(?:cannot|can't|not) be (?:right|correct)|contradicts|unsure|not sure"
    r"|(?:might|could) be(?! tempted)|otherwise|is what (?:one|you|we) gets?|i mis\w+|never ?mind"
    r"|scratch that|take (?:it|that) back|off by|perdón"
    r"|(?:check|verification|it) (?:fails|does not))\b"
    r"|\b(?:no|non|nein|нет)\s*[.!:,;]|\bequivo|\bошиб|不对(?!称|等)|错[的了误]"
    r"|^\W*(?:is|are|ist|n'est|does|do) (?:(?:not|nicht|pas) (?:the|die|la|satisf|work|hold)|fals)"
)
SETTLES = re.compile(
    r"(?i)^\W*(?:actually|but|i meant)\b|\b(?:so|hence|therefore|thus|gives|giving|should be)\b"
)
LABEL = re.compile(  # the opening of a remark; what is not here is not known to be one
    r"(?i)\W*(?:(?:note|notice|remark|observe|recall|source|reference|(?:estimated )?time|topics?"
    r"|word count|difficulty|confidence|score|level|summary|steps?|key|[\w -]*check|verif\w*|why"
    r"|(?:i )?hope|(?:please )?let me know|feel free|sorry for|thank|great|would you|done|thanks"
    r"|here|see|(?:i|we) used|both|indeed|if you|students often|in (?:general|words|decimals?)"
    r"|this (?:is because|is (?:about|problem)|follows|uses|took|matches|completes)|fun fact"
    r"|(?:an?|another) \w+ way|actually, a|(?:\w+ )?tip|alternatively, (?:use|one|you)"
    r"|so we are done|(?:which|this) can (?:also|equivalently)|i am confident|it makes"
    r"|(?:the|an?) (?:most )?(?:common|frequent|typical) (?:mistake|error)|if\b.*\bwould"
    r"|no (?:other|smaller|larger|two)|for\b.*\b(?:also|holds)|(?:one|you) might be tempted"
    r"|it is the (?:only|smallest|largest)|hinweis|anmerkung|quelle|(?:die )?probe|kontrolle"
    r"|häufiger fehler|en effet|remarque|nota|on vérifie|vérif\w*|récapitulatif|fuente|fonte"
    r"|erreur (?:fréquente|courante)|comprobación|nivel|error (?:común|frecuente)|no hay más"
    r"|un errore tipico|erro comum|verificação|примечание|источник|проверка|типичная ошибка)\b"
    r"|注(?!定)|点评|来源|难度|检验|验证|总结|常见错误|易错|当|以上|本题|参考|検算|.*のとき|출처|확인|검산)"
)
REMARK = re.compile(  # after a condition or such a word a value is none that was asked for
    r"(?i)^\W*(?:(?:for|when|where|at|with|see|für|bei|pour|para|при|для)\b|当|若)"
    r"|\b(?:part|step|case|theorem|lemma|problem|question|method|figure|equation|page|section"
    r"|(?-i:[A-Z]{3,})|(?:with|where|when|for|that|using|at)\s+\$?\w\w?\s*=)\W*$"
    r"|\b(?:after|by|within|in|at|above|of|than|for|(?<!left )with|(?<!out )to|on|per|until"
    r"|exceed|als|que|à)(?: the)?\s+$"
)
SAYS = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals|costs?|makes?|gives?|becomes|get|so|total|beträgt|vaut"
    r"|lautet|est(?: de)?|ist|es|sind|son|donne|bleibt)\b\s*|'s\s*|[=:$€£为是]\s*)"
)
STATED = re.compile(f"{SAYS.pattern}$")
ASSUMED = r"(?i)\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b"
HEDGED = re.compile(  # what is denied, bounded, supposed or asked is not stated
    rf"{ASSUMED}|\b(?:(?:can)?not|no|nor|never|neither|nicht|kein\w*|nunca|pas|не|either"
    r"|between|about|approximately|roughly|least|most|less|fewer|over|under|nearly|almost|let"
    r"|might|may|or|would|w[äü]re?n?|mistake)\b|n't\b|[≈?不没]|ない"
)
RIGHT = r"(?P<right>\W? (?:is |are |also )+(?:the )?(?:right|correct|answer|possible|works?)\b)"
LAST_LETTER = re.compile(rf"\b([A-J])(?:{RIGHT}|\)?\W*$)")  # or of which it says that it is right
LAST_NAME = re.compile(rf"\b([A-Z]\w+(?: [A-Z]\w+)*)(?:{RIGHT}|\W*$)")
LAST_FORMULA = re.compile(r"\$([^$]+)\$\W*$")
LAST_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.])([-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?)"
    r"\s*[$%]?\s*(?:(?!is\b|are\b)[a-zA-Z\u0080-\u2fff\uac00-\ud7af]+|[\u3000-\u9fff]{1,2})?\W*$"
)
