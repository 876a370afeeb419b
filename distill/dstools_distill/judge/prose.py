"""Language of a text, and the share of it that repeats."""

import re

from dstools_converters.errors import DstoolsError
from dstools_converters.tables import nearest

SCRIPTS = {  # the letters of languages that are not written in Latin letters
    "zh": "\u4e00-\u9fff\u3400-\u4dbf",
    "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7af\u1100-\u11ff",
    **dict.fromkeys(("ru", "uk", "bg"), "\u0400-\u04ff"),
    "el": "\u0370-\u03ff",
    **dict.fromkeys(("ar", "fa"), "\u0600-\u06ff\u0750-\u077f"),
    "he": "\u0590-\u05ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
}
ALONE = "\u4e00-\u9fff\u3400-\u4dbf\u3040-\u30ff\u0e00-\u0e7f"  # without blanks: letters are words
STOP_WORDS = {  # frequent words of languages in Latin letters; few are shared
    "en": "the of and to is that it was for with as be this have from are we so but not which "
    "then what",
    "de": "der die das und ist nicht ein eine mit von zu den auf sich wir es dem auch aber wenn "
    "dann also",
    "fr": "le la les et est des une du que qui dans pour pas nous sur avec donc il ce par plus "
    "sont alors",
    "es": "el los las y es que una por con para del se lo como pero entonces sus tenemos son esta "
    "muy hay",
    "it": "il di che è una per con non sono della quindi gli nel più anche allora abbiamo questo "
    "se ha",
    "pt": "os as que é uma por com não para da do em então se mas temos são como isso mais pelo",
    "nl": "het een van en dat niet zijn met voor we dus maar als ook wordt deze naar kan er dan",
}
LANGUAGES = (*STOP_WORDS, *SCRIPTS)
STOPS = {
    word: tuple(name for name in STOP_WORDS if word in STOP_WORDS[name].split())
    for words in STOP_WORDS.values()
    for word in words.split()
}
UNSPOKEN = re.compile(  # code, formulas, commands, tags
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+|</?\w+>",
    re.DOTALL,
)
WORD = re.compile(rf"[{ALONE}]|[^\W\d_{ALONE}]{{2,}}")
LATIN = re.compile(r"[a-z\u00c0-\u024f]", re.IGNORECASE)
LETTER = re.compile(r"[^\W\d_]{2}")
WINDOW = 20  # words


def require_language(name: str, where: str) -> None:
    """Raise DstoolsError unless texts in a language can be recognized; `where` is the key of it."""
    if name not in LANGUAGES:
        raise DstoolsError(f"{where}: {name!r} cannot be recognized", nearest(name, LANGUAGES))


def language_share(text: str, language: str) -> float | None:
    """Return the share of words in a language, one of LANGUAGES; None if there are no words.

    Words are runs of two or more letters, or single letters in scripts without blanks. Code and
    formulas do not count. A word in another script is in another language. Among languages in
    Latin letters each line counts for the one with the most stop words in it; on a tie, or without
    any, for the language asked for. Languages that share another script are not distinguished.
    """
    if not LETTER.search(text) and text.isascii():
        return None
    text = UNSPOKEN.sub(" ", text)
    if (letters := SCRIPTS.get(language)) is not None:
        words = WORD.findall(text)
        own = re.compile(f"[{letters}]")
        return sum(1 for word in words if own.match(word)) / len(words) if words else None
    matching = total = 0
    for line in text.split("\n"):
        words = WORD.findall(line.lower())
        total += len(words)
        latin = sum(1 for word in words if LATIN.match(word)) if not line.isascii() else len(words)
        if latin and _is_in(words, language):
            matching += latin
    return matching / total if total else None


def _is_in(words: list[str], language: str) -> bool:
    """Return whether no other language has more of its stop words here."""
    counts = dict.fromkeys(STOP_WORDS, 0)
    for word in words:
        for name in STOPS.get(word, ()):
            counts[name] += 1
    return counts[language] == max(counts.values())


def repetition(text: str) -> float:
    """Return the share of words that belong to a run of 20 words seen earlier in the text."""
    words = text.split() if text.isascii() else WORD_OR_SIGN.findall(text)
    seen: set[tuple[str, ...]] = set()
    repeated: set[int] = set()
    for start in range(len(words) - WINDOW + 1):
        window = tuple(words[start : start + WINDOW])
        if window in seen:
            repeated.update(range(start, start + WINDOW))
        seen.add(window)
    return len(repeated) / max(len(words), 1)


WORD_OR_SIGN = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")
