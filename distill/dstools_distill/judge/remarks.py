"""Text after an answer: a remark, or one that takes the answer back.

No list of words for "no, it is 42" could be complete, least of all in many languages. So a sentence
after a number or a formula takes it back unless it opens as a remark does, or states it again. Even
a remark takes it back if it denies it, or says of another value that it is the answer.
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
    here, *later = _sentences(rest.lstrip("$*}\\)] \t"))
    later = [sentence for sentence in later if sentence.strip()]
    if ALTERNATIVE.match(here) or RETRACTED.search(here):
        return True
    value, is_letter = value_of(answer), bool(re.fullmatch(r"\(?[A-J]\)?", answer))
    before = takewhile(lambda sentence: not EXPLAINS.match(sentence), later)
    last, is_open = LAST_FORMULA, not all(map(_is_known, before))
    if isinstance(value, Fraction):
        last = LAST_NUMBER
    elif is_letter or answer.istitle():
        last, is_open = LAST_LETTER if is_letter else LAST_NAME, False
    if any(_denies(answer, sentence) for sentence in later):
        return True
    if later and _restates(answer, later[-1]):
        return False
    told = [sentence for sentence in (here, *later) if _role(sentence) != "mistake"]
    if is_open or RETRACTED.search("\n".join(told)):
        return True
    sentences = later if re.search(r"[^\W\d]|=", here) else [here, *later]
    return any(_settles_on(sentence, last, value, answer.strip("()-")) for sentence in sentences)


def _settles_on(sentence: str, last: re.Pattern[str], value: Fraction | str, answer: str) -> bool:
    """Return whether a clause ends on another value than the answer's, and says that it is it."""
    equation = re.compile(rf"(?:^|[^-+*/\s])\s*(?<![\w.]){re.escape(answer)}\s*=")  # 84 = 7 * 12
    role = _role(sentence)
    is_labelled = role in KNOWN_BY_ROLE or (role and re.search("[:：]", sentence))
    for clause in CLAUSE.split(sentence)[role == "mistake" :]:
        found = last.search(clause)
        if not found or value_of(found[1]) in (value, answer):
            continue
        if HEDGED.search(clause) or equation.search(clause):
            continue
        lead = clause[: found.start()]
        is_whole = not re.search("[A-Za-z]", clause[found.end(1) :])  # unlike 2 methods
        is_bare = FIRMNESS.keys() >= {*LEADING.findall(lead.lower())}  # thanks, it is 42
        if is_whole and is_bare and role not in ("source", "rating", "form"):
            return True
        is_said = is_whole or found.lastgroup or STATED.search(clause, 0, found.start())
        is_remark = is_labelled or REMARK.search(lead)
        if SETTLES.search(clause) or (is_said and not is_remark):
            return True
    return False


def _denies(answer: str, sentence: str) -> bool:
    """Return whether a remark names an answer with a negation, or as a mistake."""
    is_named = re.search(rf"(?<![\w.,]){re.escape(answer)}(?![\w.,]*\d)", sentence)
    role = _role(sentence) if is_named else ""
    return role == "mistake" or bool(
        role and DENIED.search(sentence) and not AFFIRMED.search(sentence)
    )


def _restates(answer: str, sentence: str) -> bool:
    """Return whether a sentence affirms an answer, ends on it, or concludes with it alone."""
    stated = sentence.rstrip(" $*.!)✓")
    ends = [match.end() for match in SAYS.finditer(stated)]
    same = (value_of(answer), value_of(answer.rpartition("=")[2]))
    is_last = ends and value_of(stated[ends[-1] :].strip(" *")) in same
    is_last = is_last and not HEDGED.search(stated[: ends[-1]])
    is_alone = re.findall(r"\d+(?:\.\d+)?", sentence) == [answer] and CONCLUDES.match(sentence)
    clause = re.split("[,;:，；：、]", sentence)[-1]
    is_right = (
        not re.fullmatch("[A-J]", answer)
        and not HEDGED.search(clause)
        and re.search(rf"(?<![\w.]){re.escape(answer)}\W?{SURE}", clause)
    )
    return bool(AFFIRMED.search(sentence) or is_right or is_last or is_alone)


def _is_known(sentence: str) -> bool:
    """Return whether a sentence has no words outside formulas, or opens as a remark does."""
    words = re.search(r"[^\W\d_]{2}", re.sub(r"\$.*?\$|\\\w+", "", sentence))
    return not words or bool(_role(sentence))


def _role(sentence: str) -> str:
    """Return the role of a remark, one of OPENINGS; "" if it is not known to be one."""
    opening = OPENING.match(sentence)
    return (opening and opening.lastgroup) or ""


def _sentences(text: str) -> list[str]:
    """Return the sentences of a text, and the parts between semicolons unless of a mistake."""
    return [
        part
        for sentence in SENTENCE.split(text)
        for part in ([sentence] if _role(sentence) == "mistake" else SEMICOLON.split(sentence))
    ]


CONCLUDES = re.compile(r"(?i)\W*(?:so|hence|thus|therefore|there (?:is|are)|所以|因此)\b")
SENTENCE = re.compile(
    r"(?<=[.!?])\s+|(?<=[。！？])|\n+|</answer>|(?=\b(?:but|aber|mais|pero|mas|но)\b|但|不过|しかし)"
)
SEMICOLON = re.compile(r"(?<=;)\s+|(?<=；)")
CLAUSE = re.compile(
    r"(?<!\bso)(?<!\bthus)(?<!hence)(?<!therefore)[,;，；。．:：](?!\d)|\.\s|\b(?:because|since)\b"
)
KNOWN_BY_ROLE = ("mistake", "source", "rating", "offer", "form")  # even without a colon
START = r"(?:^|(?<=[.!?;]\s)|(?<=[\n。]))\W*"
ALTERNATIVE = re.compile(r"(?i)\W*(?:or|either|maybe|perhaps|oder|ou|或)\b(?!\s+equivalently)")
SURE = (
    r" ?(?:(?:is|ist|est|es|è|está) (?:right|richtig|correct[eoa]?|corretto|correto)|верно"
    r"|が正しい(?:です)?|で間違いありません)\W*$"
)
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
    r"|\b(?:i|we) (?:forgot|overlooked|missed)|vergessen|übersehen|verrechnet|oublié|trompé|olvid"
    r"|dimenticat|sbagliat|esquec|engan|забыл|漏|忘れ|間違え"
    r"|\b(?:no|non|nein|нет)\s*[.!:,;]|\bequivo|\bошиб|不对(?!称|等)|错[的了误]"
    r"|^\W*(?:is|are|ist|n'est|does|do) (?:(?:not|nicht|pas) (?:the|die|la|satisf|work|hold)|fals)"
)
FIRMNESS = {  # all words of which a clause may consist that announces an answer and says no more
    word: firmness
    for firmness, words in enumerate(
        (
            "so thus hence therefore then now but and the my our is are be must should remains it"
            " there also daher somit damit aber und die das mein meine unsere ist lautet sind es"
            " donc ainsi mais et la le l ma notre est ce il por tanto lo entonces pero y el mi es"
            " son quindi dunque e è sono mia portanto logo mas o a é são minha"
            " итак значит поэтому но мой это то"
            " 所以 因此 故 为 是 应为 应该是 したがって よって は",
            "answer result antwort ergebnis réponse résultat respuesta resultado risposta risultato"
            " resposta ответ результат итого 答案 结果 答え 답",
            "final correct corrected right richtig richtige richtiges korrekt korrekte korrigierte"
            " endgültige finale correcte corrigée bonne définitive correcta corregida definitiva"
            " corretta giusta definitiva correta certa corrigida правильный правильно верный верно"
            " окончательный исправленный 正确 最终 更正后 正しい 正しくは 正解 最終 정답",
        )
    )
    for word in words.split()
}
LEADING = re.compile("|".join([*filter(re.compile("[⺀-힣]").match, FIRMNESS), r"[^\W_]+"]))
SETTLES = re.compile(
    r"(?i)^\W*(?:but|i meant)\b|\b(?:so|hence|therefore|thus|gives|giving|should|actually|really"
    "|en fait|en realidad|in realtà|na verdade|eigentlich|на самом деле"
    rf"|{'|'.join(word for word in FIRMNESS if FIRMNESS[word] and word < '⺀')})\b"
    rf"|{'|'.join(word for word in FIRMNESS if FIRMNESS[word] and word >= '⺀')}|应"
)
# openings of remarks: English, German, French, Spanish, Italian, Portuguese, Russian, then Chinese,
# Japanese and Korean; one that is missing here costs an answer, and is not taken for a remark
OPENINGS = {
    "mistake": (
        r"(?:the |an? )?(?:most )?(?:common|frequent|typical) (?:mistake|error)s?"
        r"|(?:many )?students often|(?:one|you) might be tempted"
        r"|(?:eine? )?(?:häufige|typische)r? (?:fehler|irrtum)"
        r"|(?:une )?erreur (?:fréquente|courante)|(?:un )?error (?:común|frecuente|típico)"
        r"|(?:un )?errore (?:comune|frequente|tipico)|(?:um )?erro (?:comum|frequente|típico)"
        r"|(?:типичная|частая) ошибка|常见(?:的)?错误|易错|よくある(?:間違い|ミス|誤り)|흔한 실수"
    ),
    "check": (
        r"[\w -]*check|verif\w*|done|alternatively, (?:use|one|you)|(?:an?|another) \w+ way"
        r"|actually, a|(?:(?:die|zur) )?(?:probe|kontrolle)|(?:on )?vérif\w*|comprobación"
        r"|controllo|проверка|проверим|检验|验证|验算|検算|確認|확인|검산"
    ),
    "source": (
        r"source|reference|this is (?:about|problem)|see|quelle|fuente|fonte|источник|задача"
        r"|来源|改编自|出典|출처"
    ),
    "rating": (
        r"(?:estimated )?time|topics?|word count|difficulty|confidence|score|level"
        r"|schwierigkeit\w*|zeitaufwand|difficulté|niveau|barème|dificultad|nivel|difficoltà|livello"
        r"|dificuldade|nível|сложность|уровень|难度|考点|難易度|난이도"
        r"|konfidenz|confian[zç]a|confiance|confidenza|уверенность|置信度|確信度|bearbeitungszeit"
        r"|t(?:iempo|empo|emps) (?:estimado|stimato|estimé)|用时|所要時間|分值|配点"
    ),
    "offer": (
        r"(?:i )?hope|(?:please )?let me know|feel free|sorry for|thanks?|great|would you|if you"
        r"|i am confident|ich hoffe|(?:wenn|falls) (?:du|sie) (?:möcht|woll|willst|frag)\w*"
        r"|j'espère|n'hésite\w*|(?:voulez|souhaitez)-vous|espero|si (?:quieres|necesitas|deseas)"
        r"|(?:te|le) gustaría|spero|se (?:vuoi|desideri|quiser|precisar|desejar)|gostaria|надеюсь"
        r"|если (?:хотите|нужно)|希望|如(?:果需要|有)|ほかにも|他にも|お気軽"
        r"|viel erfolg|möchtest du|bonne (?:chance|continuation)|avísame|fammi sapere|me avise"
    ),
    "form": (
        r"in (?:general|words|decimals?|percent\w*)|as an? (?:decimal|percentage|fraction)"
        r"|(?:which|this) can (?:also|equivalently)|with more digits|als dezimalzahl|in prozent"
        r"|gerundet|(?:das )?entspricht|zur einordnung|sous forme décimale"
        r"|en (?:pourcentage|décimales|(?:forma )?decimal|porcentaje)|aproximadamente"
        r"|in (?:forma )?(?:decimale|percentuale)|em (?:forma )?(?:decimal|porcentagem)"
        r"|в процентах|для справки|用小数|化为小数|换算|小数で|小数にすると|秒速に直すと"
    ),
    "summary": (
        r"summary|steps?|key|why|here|(?:i|we) used|both|indeed|it makes|so we are done"
        r"|this (?:is because|follows|uses|took|matches|completes)"
        r"|it is the (?:only|smallest|largest)|no (?:other|smaller|larger|two)"
        r"|for\b.*\b(?:also|holds)|(?:kurz )?zusammen(?:gefasst|fassung)|en effet|récapitulatif"
        r"|(?:en )?(?:résumé|resumen)|no hay más|in sintesi|riepilogo|infatti|(?:em )?resumo"
        r"|итоги|кратко|总结|小结|まとめ|요약"
    ),
    "note": (
        r"not(?:e|ice|a)|remar(?:k|que)|observe|recall|fun fact|(?:\w+ )?tip|if\b.*\bwould"
        r"|hinweis|anmerkung|bemerkung|observación|osservazione|observação|примечание|замечание"
        r"|注(?!定)|点评|当|以上|本题|参考|補足|なお|.*のとき|참고"
        r"|beachte|(?:zur|pour|per) informa\w+|à noter|recuerda|ricorda|lembre|обратите внимание"
    ),
}
OPENING = re.compile(
    rf"(?i)\W*(?:{'|'.join(f'(?P<{role}>{words})' for role, words in OPENINGS.items())})"
    r"(?:(?<=[⺀-힣])|\b)"
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
    r"|lautet|est(?: de)?|ist|es|sind|son|donne|bleibt(?: bei)?|remains|stays|reste|rimane"
    r"|sigue siendo|permanece|остаётся)\b\s*|'s\s*|[=:$€£为是]\s*)"
)
STATED = re.compile(f"{SAYS.pattern}$")
DENIED = re.compile(
    r"(?i)\b(?:not|nicht|kein\w*|pas|no|non|não|не|falsch|faux|wrong|fails?)\b|n't\b|[不≠]|\\ne"
    "|ない|ません"
)
ASSUMED = r"(?i)\b(?:assume|suppose|if|wrong|incorrect|mistaken)\b"
HEDGED = re.compile(  # what is denied, bounded, supposed or asked is not stated
    rf"{ASSUMED}|\b(?:(?:can)?not|no|nor|never|neither|nicht|kein\w*|nunca|pas|не|either"
    r"|between|about|approximately|roughly|least|most|less|fewer|over|under|nearly|almost|let"
    r"|might|may|or|would|w[äü]re?n?|mistake)\b|n't\b|[≈?不没]|ない"
)
RIGHT = r"(?P<right>\W? (?:is |are |also )+(?:the )?(?:right|correct|answer|possible|works?)\b)"
# or of which it says that it is right
LAST_LETTER = re.compile(rf"(?<![A-Za-z\d])([A-J])(?:{RIGHT}|\)?(?:です|입니다)?\W*$)")
LAST_NAME = re.compile(rf"\b([A-Z]\w+(?: [A-Z]\w+)*)(?:{RIGHT}|\W*$)")
LAST_FORMULA = re.compile(r"\$([^$]+)\$\W*$")
LAST_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.])([-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?)"
    r"\s*[$%]?\s*(?:(?!is\b|are\b)[a-zA-Z\u0080-\u2fff\uac00-\ud7af]+|[\u3000-\u9fff]{1,2})?\W*$"
)
