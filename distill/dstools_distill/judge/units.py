# ruff: noqa: RUF001, SIM905
"""Units after a number: what they are of, their conversion, and the words that multiply."""

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit: `times` multiplies the number itself, `factor` converts it to the bases in `of`."""

    times: Fraction = Fraction(1)
    factor: Fraction = Fraction(1)
    of: tuple[tuple[str, int], ...] = ()  # (base, power), sorted; () for none


NONE = Unit()


class UnreadableError(Exception):
    """A text is not an answer that can be compared, or not a number or a unit."""


METRIC = {  # base: its spellings, to which prefixes are put
    "m": "m metre meter", "g": "g gram", "s": "s sec second", "l": "l L litre liter",
    "ohm": "Ω ohm", "Hz": "Hz hertz", "N": "N newton", "J": "J joule", "W": "W watt", "V": "V volt",
    "A": "A amp ampere", "Pa": "Pa pascal", "eV": "eV electronvolt", "mol": "mol mole",
    "K": "K kelvin", "B": "B byte", "bit": "bit",
}  # fmt: skip
DERIVED: dict[str, tuple[int, dict[str, int]]] = {  # in units of the International System
    "l": (-3, {"m": 3}), "Hz": (0, {"s": -1}), "N": (3, {"g": 1, "m": 1, "s": -2}),
    "Pa": (3, {"g": 1, "m": -1, "s": -2}), "J": (3, {"g": 1, "m": 2, "s": -2}),
    "W": (3, {"g": 1, "m": 2, "s": -3}), "V": (3, {"g": 1, "m": 2, "s": -3, "A": -1}),
    "ohm": (3, {"g": 1, "m": 2, "s": -3, "A": -2}),
}  # fmt: skip
OTHERS = {  # and those of its multiples
    "m": "inch=0.0254 in=0.0254 foot=0.3048 feet=0.3048 ft=0.3048 yard=0.9144 mi=1609.344 "
    "mile=1609.344 米 公里=1000 千米=1000 分米=0.1 厘米=0.01 毫米=0.001 "
    "м км=1000 см=0.01 мм=0.001",
    "s": "min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800 秒 分钟=60 小时=3600 "
    "時間=3600 天=86400 ч=3600 час=3600 мин=60", "l": "升 毫升=0.001",
    "Pa": "atm=101325 bar=1e5",
    "g": "kilo=1000 tonne=1e6 ton=1e6 克 千克=1000 公斤=1000 吨=1e6 г кг=1000",
    "$": "$ dollar usd cent=0.01 ¢=0.01", "€": "€ euro eur", "₹": "₹ rupee rs", "rad": "rad radian",
    "£": "£ gbp pence=0.01 penny=0.01", "¥": "¥ 元 yuan 角=0.1", "円": "円 yen", "₩": "₩ 원 won",
    "°": "° degree deg '=1/60", "%": "% percent prozent ‰=0.1", "unit": "unit",
    "R$": "R$ real reais", "C": "C celsius", "F": "F fahrenheit",
}  # fmt: skip
PREFIXES = {  # and their powers of ten
    "k": 3, "M": 6, "G": 9, "T": 12, "d": -1, "c": -2, "m": -3, "µ": -6, "n": -9, "p": -12,
    "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "deci": -1, "centi": -2, "milli": -3, "micro": -6,
    "nano": -9, "pico": -12,
}  # fmt: skip
ATOMS = {
    prefix + name: (base, Fraction(10) ** power)
    for base, names in METRIC.items()
    for name in names.split()
    for prefix, power in {"": 0, **PREFIXES}.items()
    if (len(name) <= 3 if len(prefix) < 2 else len(name) > 2) or not prefix
}
ATOMS |= {
    name: (base, Fraction(size or 1))
    for base, names in OTHERS.items()
    for name, _, size in (word.partition("=") for word in names.split())
}
SAME_AS = {"mph": "mile/h", "kph": "km/h", "per cent": "percent", "percentage point": "percent"}
TIMES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "mn": 10**6, "billion": 10**9, "bn": 10**9,
    "trillion": 10**12, "dozen": 12, "lakh": 10**5, "crore": 10**7, "万": 10**4, "亿": 10**8,
    "만": 10**4, "億": 10**8,
}  # fmt: skip
NOT_UNITS = set(  # words that change a number, deny it, or say something of it
    "plus minus times less fewer more or and to not no nor if but either wrong false instead "
    "except without off loss debt short lost each score pair couple halve half third quarter fail "
    "two three four five six seven eight nine ten eleven twelve negative below above zero".split()
)
NUMERAL = re.compile(  # sixths, docenas, 千; and what begins with one: 万人
    r".*(?:six|seven|eigh|nin|ten|eleven|twelf|teen|tie|hundred|thousand|illion)ths?$"
    r"|mil(?!k|eage)|[bt]r?illi|cent(?:o|aine)|cien|docen|douzaine|tiers|quarts|tercio|cuarto"
    r"|tausend|hundert|dutzend|decena|dizaine|d[ée]cim|sext|medi[oa]"
    r"|.*(?:이상|이하|아니|ではない|じゃない|以[上下]|未満|不|没)"
    r"|[十百千万亿兆半多余만억천割双错誤误倍的]|左右|分之|打|个百分点"
)
PLURAL = (
    re.compile(  # of a thing to count, of German, too; Chinese, Japanese, Korean do not show it
        r"s$(?<!ous)(?<!wards)(?<!ss)|^(?:people|children|\w*men|feet|fish|sheep)$"
        r"|[\u3040-\u9fff\uac00-\ud7af]|^[A-ZÄÖÜ][a-zäöüß]{2,}(?:[ae]n|eln|ern)$"
    )
)
RAISED = re.compile(r"(?i)\b(?:(sq(?:uare)?)|cu(?:bic)?)\.? (\w+)")
SPELLED = re.compile(rf"(?i)\b({'|'.join(SAME_AS)})s?\b")
WORD = re.compile(r"/|[^\s/*·^.]+(?:\^-?\d)?")


def read_unit(words: str) -> Unit:
    """Return the unit that the words after a number name: "km per hour", "cm^2", "million $".

    A word that is not known is a unit of its own name, without a plural s. Raises UnreadableError
    for text that changes the number or is not a unit.
    """
    words = " ".join(words.replace("°", "° ").split()).rstrip(".,")
    words = re.sub(r"(^|/ ?)\((.*)\)$", r"\1\2", words)  # J/(mol K)
    words = SPELLED.sub(lambda match: SAME_AS[match[1].lower()], words)
    words = re.sub(r"(?<![^\W\d_])([万亿만億])(?=\w)", r"\1 ", words)  # 1万元
    words = re.sub(r"(平方|立方)(\w+)", lambda m: f"{m[2]}^{2 if m[1] == '平方' else 3}", words)
    words = RAISED.sub(lambda match: f"{match[2]}^{2 if match[1] else 3}", words)
    if len(words) > 40 or re.search(r"[=<>+]|\d|\bin [a-z]", re.sub(r"\^-?\d", "", words)):
        raise UnreadableError(words)
    times, factor, sign = Fraction(1), Fraction(1), 1
    of: dict[str, int] = {}
    for word in WORD.findall(words):
        name, _, power = word.partition("^")
        if name in ("/", "per"):
            sign = -1
        elif multiple := TIMES.get(name.lower().removesuffix("s") if len(name) > 2 else name):
            times *= multiple
        else:
            base, size = _atom(name, is_first=not of)
            exponent = sign * int(power or 1)
            tens, parts = DERIVED.get(base, (0, {base: 1}))
            for part, times_part in parts.items():
                of[part] = of.get(part, 0) + times_part * exponent
            factor *= (size * Fraction(10) ** tens) ** exponent
    return Unit(times, factor, tuple(sorted(pair for pair in of.items() if pair[1])))


def _atom(name: str, is_first: bool) -> tuple[str, Fraction]:
    """Return base and size of a unit of one word; the case of short ones counts.

    The first word after a number, if it is not known, must be a plural.
    """
    lower = name.lower()
    single = lower.removesuffix("s") if len(lower) > 2 else lower
    for spelling in (name, lower, single, lower.removesuffix("es")):
        if spelling in ATOMS and (spelling == name or len(spelling) > 2):
            return ATOMS[spelling]
    is_word = is_first and not (PLURAL.search(lower) or PLURAL.search(name))
    if (
        is_word
        or {lower, single} & NOT_UNITS
        or NUMERAL.match(lower)
        or not re.fullmatch(r"[^\W\d_][\w'()-]*", name)
    ):
        raise UnreadableError(name)
    return name if len(name) < 3 else single, Fraction(1)  # kb is not kB
