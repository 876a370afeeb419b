"""Tests of the language of a text, and of its repetition."""

import pytest

from dstools_distill.judge.prose import LANGUAGES, language_share, repetition

TEXTS = {
    "en": "First we add the two numbers and then we have to check that "
    "the sum is what they asked for.",
    "de": "Zuerst addieren wir die beiden Zahlen und dann prüfen wir, ob das Ergebnis auch stimmt.",
    "fr": "On additionne les deux nombres et on vérifie que la somme est bien ce qui est demandé.",
    "es": "Primero sumamos los dos números y después vemos que "
    "el resultado es lo que se pide para hoy.",
    "it": "Prima sommiamo i due numeri e poi vediamo che "
    "il risultato è quello che non ci aspettavamo.",
    "pt": "Primeiro somamos os dois números e depois vemos que "
    "não é o resultado que temos, mas isso sim.",
    "nl": "Eerst tellen we de twee getallen op en dan kijken we of het antwoord niet te groot is.",
    "ru": "Сначала сложим два числа, затем проверим ответ.",
    "zh": "首先我们把两个数相加,然后检查答案。",
    "ja": "まず二つの数を足して、それから答えを確かめる。",
    "ko": "먼저 두 수를 더하고 나서 답을 확인한다.",
    "ar": "نجمع العددين أولا ثم نتحقق من الجواب",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_in_its_language_and_in_no_other(language: str) -> None:
    assert language_share(TEXTS[language], language) == 1.0
    # Chinese characters are Japanese, too
    others = set(TEXTS) - {language} - ({"ja"} if language == "zh" else set())
    for other in others:
        share = language_share(TEXTS[language], other)
        assert share is not None
        assert share < (0.6 if {language, other} == {"zh", "ja"} else 0.1), other


def test_a_mixed_text_is_in_a_language_by_the_share_of_its_words() -> None:
    mixed = f"{TEXTS['en']}\n答案是四十一"  # 20 words and 6 characters
    assert language_share(mixed, "en") == 20 / 26
    assert language_share(mixed, "zh") == 6 / 26


def test_digits_formulas_and_code_have_no_language() -> None:
    assert language_share("57+68|7+8+0=15,5+6+1=12|125", "en") is None
    assert language_share("$\\frac{abc}{def}$ \\[ xyz \\] \\alpha <think>", "zh") is None
    assert language_share("```python\nprint(total)\n```\n答案", "zh") == 1.0


def test_every_language_of_a_recipe_can_be_recognized() -> None:
    assert all(language_share("word", language) in (0.0, 1.0) for language in LANGUAGES)


def test_repetition_is_the_share_of_repeated_words() -> None:
    once = " ".join(f"w{n}" for n in range(30))
    assert repetition(once) == 0.0
    assert repetition(f"{once} {once}") == 0.5
    assert repetition(" ".join([once] * 10)) == 0.9
    assert repetition("a " * 100) == 0.99  # from its second word on
    assert repetition("short text, short text") == 0.0
    # 19 repeated words are not a run of 20
    assert repetition(f"{once} " + " ".join(f"w{n}" for n in range(19))) == 0.0
    assert repetition(f"{once} " + " ".join(f"w{n}" for n in range(20))) == 20 / 50


def test_a_script_without_blanks_repeats_by_character() -> None:
    assert repetition("我们需要考虑所有的情况并且计算每一个值最后" * 5) > 0.7
