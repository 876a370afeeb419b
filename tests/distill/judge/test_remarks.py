"""Tests of remarks: what may follow an answer, and what makes it uncertain."""

import pytest

from dstools_distill.judge.remarks import is_taken_back


@pytest.mark.parametrize(
    "remark",
    [
        "Source: AIME 2019.",
        "Let me verify this: 41 is right.",
        "We add them: 20 + 20 = 40. With the one in the middle it is 41.",
        "So the value is $41$.",
        "42? Nein, die letzte zählt nicht mit. Es bleibt bei 41.",
        "There is no other solution.",
        "No smaller number works.",
        "Therefore there are 41 of them.",
        "I hope this helps!",
        "Double-check: 41 - 1 = 40. ✓",
        "Check: 5·8 = 40 and 40 + 1 = 41, so both sides agree.",
        "So the answer stands.",
        "$\\blacksquare$",
    ],
)
def test_a_sentence_that_restates_or_checks_the_answer_is_harmless(remark: str) -> None:
    assert not is_taken_back("41", f".\n\n{remark}")


@pytest.mark.parametrize(
    "rest",
    [
        ", which is attained at x = 2 or x = 3.",
        " square units.",
        " is the sum of 20 and 21.",
        ", not counting the boundary.",
        " (or equivalently 82/2).",
        ", unabhängig davon, ob n gerade ist oder nicht.",
        ", y no depende de k.",
        ", no matter which side is chosen.",
    ],
)
def test_the_rest_of_its_sentence_is_a_remark_on_the_answer(rest: str) -> None:
    assert not is_taken_back("41", rest)


@pytest.mark.parametrize(
    "rest",
    [
        ", actually 42.",
        " — no wait, 42.",
        " is too large.",
        " would be the answer if n were even.",
        " is wrong.",
        ", no: 42.",
        " or 42.",
        ", but 42 also works.",
        " ist falsch.",
        ", depending on the reading.",
        " 42",
    ],
)
def test_the_rest_of_its_sentence_may_deny_the_answer(rest: str) -> None:
    assert is_taken_back("41", rest)


@pytest.mark.parametrize(
    "remark",
    [
        "I used 2 methods.",
        "Note: the sum of the digits is 5.",
        "For n = 3, the formula also holds.",
        "This follows from Theorem 3.",
        "41 = 40 + 1.",
        "Both have 2 digits.",
        "Hinweis: Für n = 1 wäre der Wert 3.",
        "当n=3时，公式也成立。",  # noqa: RUF001
        "It is the smallest such number above 40.",
        "(If the order mattered, there would be 82.)",
        "Time taken: 4 minutes. Difficulty: 3/10.",
        "Students often answer 40 here.",
        "One might be tempted to say 40.",
        "Explanation: there are two kinds of them. Each is counted by symmetry. The rest is odd.",
        "Would you like to see another one?",
        "Actually, a neater way to see this uses symmetry.",
        "A common mistake is to answer 40, which happens when one forgets the empty set.",
        "Alternatively, use the formula with n = 6.",
        "Ein häufiger Fehler ist, die Mitte doppelt zu zählen; dann käme man auf 42.",
        "Типичная ошибка — забыть середину; тогда получилось бы 40.",
        "常见错误：漏掉中间的一个，得到 40。",  # noqa: RUF001
        "Espero que te sirva. Si quieres, puedo darte 3 ejercicios más.",
        "出典：2019年 東京大学 第2問。",  # noqa: RUF001
        "Als Dezimalzahl: 41,0. Schwierigkeit: 3/10.",
        "42 かとも思いましたが、やはり 41 で間違いありません。",
        "En effet, $41 = 7 \\cdot 6 - 1$.",
        "注意两边不对称，所以不能除以 2。",  # noqa: RUF001
    ],
)
def test_a_remark_that_no_list_knows_makes_the_answer_uncertain(remark: str) -> None:
    assert is_taken_back("41", f".\n\n{remark}")


@pytest.mark.parametrize(
    "correction",
    [
        "Wait, it is 42.",
        "so I get 42",
        "make that 42",
        "Actually the number of pairs that are counted is 42.",
        "Sorry, it is 42 because I forgot one.",
        "Because I forgot one, it is 42.",
        "Recounting, there are 42 such pairs.",
        "Adding the missing case gives 42.",
        "The final count becomes 42.",
        "$n = 42$",
        "Nein, 42 Stück.",
        "En realidad son 42.",
        "いや、42です。",
        "42 also works.",
        "Hold on. Each pair was counted twice, hence half of this.",
        "Never mind, I misread the question.",
        "But this overcounts by a factor of 2.",
        "Stimmt nicht. Es bleibt nur 42.",
        "En fait non, il faut retirer un cas, ce qui donne 42.",
        "Not 41: 42.",
        "Mejor dicho, son cinco.",
        "Besser gesagt: Es sind mindestens 41.",
        "正しくは三通りです。",
        "Strictly speaking, the system has no solution.",
        "That was only the approximation used along the way.",
        "41 doesn't satisfy the second condition.",
        "I take that back.",
        "It is 42.",
        "One more case remains: the empty set.",
        "This is only a lower bound.",
        "Since order matters, double it.",
        "The check fails.",
        "Recomputing everything once more by hand yields 42.",
        "抱歉，上面的结果有误。",  # noqa: RUF001
        "Either 41 or 42.",
        "On second thought the empty set should be excluded, giving 42 in total.",
        "Moment, ich habe falsch addiert: richtig ist 42.",
        "Ich habe eine Möglichkeit vergessen und komme auf die Summe: das sind 42.",
        "The number of all such arrangements is 42.",
        "Note: the correct value is 42.",
        "Note: 41 doesn't satisfy the second condition.",
        "Hinweis: Es sind 42.",
        "Remarque : j'ai oublié un cas.",
        "Nota: a resposta correta é 42.",
        "Примечание: на самом деле 42.",
        "注：漏了一种情况。",  # noqa: RUF001
        "検算：41は条件を満たさない。",  # noqa: RUF001
        "A common mistake is to answer 41.",
        "Ein häufiger Fehler ist, 40 zu sagen; richtig ist 42.",
        "Thanks for waiting, it is 42.",
    ],
)
def test_a_correction_in_any_words_and_language_takes_the_answer_back(correction: str) -> None:
    assert is_taken_back("41", f".\n\n{correction}")


@pytest.mark.parametrize(
    ("answer", "rest", "is_back"),
    [
        ("B", ". Option A fails because it is not continuous.", False),
        ("B", ".\n\nExplanation: it is the only even one.", False),
        ("B", ".\n\nExplanation: it is even, so the answer is C.", True),
        ("B", ". Actually C.", True),
        ("B", ". Or C.", True),
        ("A", "。注意，正确答案是C。", True),  # noqa: RUF001
        ("New York", ".\n\nSo it is New York.", False),
        ("Paris", ".\n\nIt is London.", True),
        ("[0,4]", ". So the domain is $[0,4)$.", True),
    ],
)
def test_letters_names_and_formulas_are_judged_like_numbers(
    answer: str, rest: str, is_back: bool
) -> None:
    assert is_taken_back(answer, rest) is is_back
