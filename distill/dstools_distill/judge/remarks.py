"""Text after an answer: a remark, or one that takes the answer back.

No list of words for "no, it is 42" could be complete in all languages. The lists here know English;
in another language a sentence after an answer takes it back unless it opens as a remark does.
"""

# ruff: noqa: RUF001
import re
from fractions import Fraction

from dstools_distill.judge.reader import read


def value_of(answer: str) -> Fraction | str:
    """Return the number that an answer is, or its text."""
    value = read(answer)
    return value.number if value is not None and value.kind == "number" else answer


def is_retracted(rest: str) -> bool:
    """Return whether a text denies the answer before it, if not in favour of another value."""
    is_exclaimed = EXCLAIMED.search(rest) and not AFFIRMED.search(rest)
    return bool(RETRACTED.search(rest) or is_exclaimed)


def is_taken_back(answer: str, rest: str) -> bool:
    """Return whether the text after an answer may deny it, or settle on another value.

    The rest of the same sentence is a remark, unless it is an alternative: "or 42". A clause of a
    later sentence that ends on another number, letter or name settles on that if it concludes ("so
    I get 42"), says that something is it, or ends on a bare number. Others are remarks: "I used 2
    methods", "For n = 3, it holds", "Note: the sum of the digits is 5".
    """
    rest = rest.lstrip("$*}\\)] \t")
    if ALTERNATIVE.search(rest) or is_retracted(rest):
        return True
    here, *later = SENTENCE.split(rest)
    value, is_letter = value_of(answer), bool(re.fullmatch(r"\(?[A-J]\)?", answer))
    is_number = isinstance(value, Fraction)
    is_name = not is_number and answer.istitle()
    if not is_letter and not is_name and any(map(_is_foreign, later)):
        return True
    last = LAST_LETTER if is_letter else LAST_NAME if is_name else LAST_FORMULA
    last = LAST_NUMBER if is_number else last
    same = (value, answer.strip("()-"))
    own = rf"(?<![\w.]){re.escape(same[1])}\b"
    if re.search(rf"{own}\W+(?:is(?: not|n't) (?:the|right)|does(?: not|n't)|fails)", rest):
        return True
    equation = re.compile(rf"(?:^|[^-+*/\s])\s*{own}\s*=")  # 84 = 7 * 12
    for sentence in later if re.search(r"[^\W\d]|=", here) else (here, *later):
        for clause in CLAUSE.split(sentence):
            found = last.search(clause)
            if not found or value_of(found[1]) in same:
                continue
            if HEDGED.search(clause) or equation.search(clause):
                continue
            is_whole = not re.search("[A-Za-z]", clause[found.end(1) :])  # unlike 2 methods
            is_said = is_whole or found["right"] or STATED.search(clause, 0, found.start())
            is_remark = LABEL.match(sentence) or REMARK.search(clause[: found.start()])
            if SETTLES.search(sentence) or (is_said and not is_remark):
                return True
    return False


def _is_foreign(sentence: str) -> bool:
    """Return whether a sentence may say anything: it is not in English, nor a known remark."""
    has_words = re.search(r"[^\W\d_]{2}", re.sub(r"\$.*?\$|\\\w+", "", sentence))
    return bool(has_words) and not ENGLISH.search(sentence) and not LABEL.match(sentence)


ENGLISH = re.compile(
    r"(?i)\b(?:the|is|this|that|it|we|you|and|to|of|for|with|are|be|not|by|from|have|has|which|there"
    r"|here|both|all|each|get|any|other|above|see|used|always|because)\b"
)
SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？])|\n+|</answer>|(?=\bbut\b)")
CLAUSE = re.compile(r"[,;，；。．:：](?!\d)|\.\s|\b(?:because|since)\b")
START = r"(?:^|(?<=[.!?;]\s)|(?<=[\n。]))\W*"
ALTERNATIVE = re.compile(rf"(?i){START}(?:or|either|maybe|perhaps|oder|ou|或)\b(?!\s+equivalently)")
EXCLAIMED = re.compile(
    rf"(?i){START}(?:(?:wait|hold on|oops|scratch that|hmm|correction|update|edit|sorry|moment"
    r"|attends|espera|momento|korrektur|corrección)\b\W*?[,.:!—]|let me re(?:check|count|do|comp)"
    r"|(?:but )?i (?:forgot|now see|realize)\b|on (?:second thought|reflection)|strictly speaking"
    r"|en (?:réalité|fait|realidad)\b|na verdade|на самом деле|等|其实|实际上|更正|待って|いや)"
)
AFFIRMED = re.compile(r"(?i)\b(?:stands|right|correct|fine|holds|yes)\b|✓")
RETRACTED = re.compile(
    r"(?i)(?:^\W*is|\b(?:that|this|it|answer|result|value|above))\b[^.;,]*"
    r"\b(?:wrong|incorrect|not right)\b"
    r"|\b(?:disregard|(?:cannot|can't|not) be (?:right|correct)|contradicts|unsure|not sure"
    r"|(?:might|could) be(?! tempted)|otherwise|is what (?:one|you|we) gets?|i mis\w+|never ?mind"
    r"|scratch that|take (?:it|that) back|mistaken|off by|that was (?:just|only)|no,? wait|wrongly"
    r"|should (?:also )?be (?:ex|in)cluded|half of (?:it|that|this)|falsch|faux|falso)\b"
    r"|\bone (?:less|more)\.|\bcannot be\s*[.!]|\b(?:no|non|nein|нет)\s*[.!:,;]|\btromp|\bequivo"
    r"|^\W*(?:is|are|ist|n'est|does|do) (?:(?:not|nicht|pas) (?:the|die|la|satisf|work|hold)|fals)"
    r"|\bverrechnet|\bошиб(?:ся|лась)|неверн|неправильн|不对(?!称|等)|错[的了误]|有误|間違|訂正|틀렸"
)
SETTLES = re.compile(
    r"(?i)^\W*(?:wait|no|nein|non|actually|however|but|checking again|that said|нет|ошибка|i now"
    r"|i meant)\b"
    r"|\b(?:so|hence|therefore|thus|giv(?:es|ing)|which is|there (?:is|are)"
    r"|(?:should|must) (?:be|have been)|(?:we|i) (?:find|get)"
    r"|(?:answer|result|total|count|value)\b.* (?:is|=))\b"
)
LABEL = re.compile(  # of a remark; what is not here is not known to be one
    r"(?i)\W*(?:(?:note|source|reference|(?:estimated )?time|topics?|word count|difficulty"
    r"|confidence|score|level|tip|[\w -]*check|verif\w*|hinweis|anmerkung|quelle|(?:die )?probe"
    r"|kontrolle|häufiger fehler|en effet|remarque|on vérifie|vérif\w*|récapitulatif|nota|fuente"
    r"|erreur (?:fréquente|courante)|comprobación|error (?:común|frecuente)|nivel|no hay más|fonte"
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
STATED = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals|costs?|makes?|gives?|becomes|get|so|total|beträgt|vaut"
    r"|lautet|est(?: de)?|ist|es|sind|son|donne|bleibt)\s*|'s\s*|[=:$€£为是]\s*)$"
)
ASSUMED = r"(?i)\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b"
HEDGED = re.compile(  # what is denied, bounded, supposed or asked is not stated
    rf"{ASSUMED}|\b(?:(?:can)?not|no|nor|never|neither|nicht|kein\w*|nunca|pas|не|either"
    r"|between|about|approximately|roughly|least|most|less|fewer|over|under|nearly|almost|let|might|may|or|would"
    r"|w[äü]re?n?|serait|first (?:thought|got|found)|initially|mistake|käme)\b|n't\b|[≈?不没]|ない"
)
RIGHT = r"(?P<right>\W? (?:is |are |also )+(?:(?:the )?(?:right|correct|answer)|possible|works?)\b)"
LAST_LETTER = re.compile(rf"\b([A-J])(?:{RIGHT}|\)?\W*$)")  # or of which it says that it is right
LAST_NAME = re.compile(rf"\b([A-Z]\w+(?: [A-Z]\w+)*)(?:{RIGHT}|\W*$)")
LAST_FORMULA = re.compile(rf"\$([^$]+)\$(?:{RIGHT}|\W*$)")
LAST_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.])([-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?)"
    rf"(?:{RIGHT}|\s*[$%]?\s*(?:such |more |different |distinct )?"
    r"(?:(?!is\b|are\b)[a-zA-Z\u0080-\u2fff\uac00-\ud7af]+"
    r"|[\u3000-\u9fff]{1,2})?(?: in (?:total|all))?\W*$)"
)
