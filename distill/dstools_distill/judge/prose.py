"""In which language a text is, and how much of it repeats."""

import re

SCRIPTS = {  # the letters of languages that have a script of their own
    "zh": "\u4e00-\u9fff\u3400-\u4dbf",
    "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7af\u1100-\u11ff",
    "ru": "\u0400-\u04ff",
    "uk": "\u0400-\u04ff",
    "bg": "\u0400-\u04ff",
    "el": "\u0370-\u03ff",
    "ar": "\u0600-\u06ff\u0750-\u077f",
    "fa": "\u0600-\u06ff\u0750-\u077f",
    "he": "\u0590-\u05ff",
    "hi": "\u0900-\u097f",
    "th": "\u0e00-\u0e7f",
}
ALONE = "\u4e00-\u9fff\u3400-\u4dbf\u3040-\u30ff\u0e00-\u0e7f"  # written without blanks: a letter, a word
STOP_WORDS = {  # of languages in Latin letters: frequent words, few of which are of two languages
    "en": "the of and to is that it was for with as be this have from are we so but not which then what",
    "de": "der die das und ist nicht ein eine mit von zu den auf sich wir es dem auch aber wenn dann also",
    "fr": "le la les et est des une du que qui dans pour pas nous sur avec donc il ce par plus sont alors",
    "es": "el los las y es que una por con para del se lo como pero entonces sus tenemos son esta muy hay",
    "it": "il di che è una per con non sono della quindi gli nel più anche allora abbiamo questo se ha",
    "pt": "os as que é uma por com não para da do em então se mas temos são como isso mais pelo",
    "nl": "het een van en dat niet zijn met voor we dus maar als ook wordt deze naar kan er dan",
}
LANGUAGES = (*STOP_WORDS, *SCRIPTS)
STOPS = {word: tuple(name for name in STOP_WORDS if word in STOP_WORDS[name].split())
         for words in STOP_WORDS.values() for word in words.split()}  # fmt: skip
UNSPOKEN = re.compile(  # code, formulas, commands, tags
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+|</?\w+>",
    re.DOTALL,
)
WORD = re.compile(rf"[{ALONE}]|[^\W\d_{ALONE}]{{2,}}")
LATIN = re.compile(r"[a-z\u00c0-\u024f]", re.IGNORECASE)
LETTER = re.compile(r"[^\W\d_]{2}")
WINDOW = 20  # words


def language_share(text: str, language: str) -> float | None:
    """Return the share of words that are of a language, one of LANGUAGES; None: there are no words.

    Words are runs of two letters or more; in scripts without blanks, each letter. Code and formulas do not
    count. A word of another script is of another language. A language in Latin letters is told from others
    line by line: the words of a line are of the language that has most of its frequent words there,
    of the one asked for where there are as many or none. Languages of one script are not told apart.
    """
    if not LETTER.search(text) and text.isascii():
        return None
    text = UNSPOKEN.sub(" ", text)
    if (letters := SCRIPTS.get(language)) is not None:
        words = WORD.findall(text)
        own = re.compile(f"[{letters}]")
        return sum(1 for word in words if own.match(word)) / len(words) if words else None
    ours = total = 0
    for line in text.split("\n"):
        words = WORD.findall(line.lower())
        total += len(words)
        latin = sum(1 for word in words if LATIN.match(word)) if not line.isascii() else len(words)
        if latin and _speaks(words, language):
            ours += latin
    return ours / total if total else None


def _speaks(words: list[str], language: str) -> bool:
    """Tell whether no other language has more of its frequent words here."""
    counts = dict.fromkeys(STOP_WORDS, 0)
    for word in words:
        for name in STOPS.get(word, ()):
            counts[name] += 1
    return counts[language] == max(counts.values())


def repetition(text: str) -> float:
    """Return the share of words that lie in runs of 20 words which the text had before."""
    words = text.split() if text.isascii() else WORD_OR_SIGN.findall(text)
    last = len(words) - WINDOW
    if last < 1:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    covered = end = 0  # words that are covered, and where the last covered run ends
    for start in range(last + 1):
        window = tuple(words[start : start + WINDOW])
        if window in seen:
            covered += start + WINDOW - max(start, end)
            end = start + WINDOW
        else:
            seen.add(window)
    return covered / len(words)


WORD_OR_SIGN = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")
