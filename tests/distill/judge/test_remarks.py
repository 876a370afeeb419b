"""Tests of remarks: what may follow an answer, and what takes it back."""

import pytest

from dstools_distill.judge.remarks import is_taken_back


@pytest.mark.parametrize(
    "remark",
    [
        "I used 2 methods.",
        "Note: the sum of the digits is 5.",
        "Source: AIME 2019.",
        "For n = 3, the formula also holds.",
        "This follows from Theorem 3.",
        "41 = 40 + 1.",
        "Both have 2 digits.",
        "Hinweis: Für n = 1 wäre der Wert 3.",
        "当n=3时，公式也成立。",  # noqa: RUF001
        "It is the smallest such number above 40.",
        "Wait, let me verify this: 41 is right.",
        "(If the order mattered, there would be 82.)",
        "Time taken: 4 minutes. Difficulty: 3/10.",
        "Students often answer 40 here.",
        "One might be tempted to say 40.",
        "Explanation: there are two kinds of them. Each is counted by symmetry. The rest is odd.",
        "We add them: 20 + 20 = 40. With the one in the middle it is 41.",
        "So the value is $41$.",
        "Would you like to see another one?",
        "Actually, a neater way to see this uses symmetry.",
        "A common mistake is to answer 40, which happens when one forgets the empty set.",
        "Alternatively, use the formula with n = 6.",
        "Ein häufiger Fehler ist, die Mitte doppelt zu zählen; dann käme man auf 42.",
        "Типичная ошибка — забыть середину; тогда получилось бы 40.",
        "常见错误：漏掉中间的一个，得到 40。",  # noqa: RUF001
        "Check: 5·8 = 40 and 40 + 1 = 41, so both sides agree.",
        "Espero que te sirva. Si quieres, puedo darte 3 ejercicios más.",
        "出典：2019年 東京大学 第2問。",  # noqa: RUF001
        "Als Dezimalzahl: 41,0. Schwierigkeit: 3/10.",
        "42? Nein, die letzte zählt nicht mit. Es bleibt bei 41.",
        "42 かとも思いましたが、やはり 41 で間違いありません。",
        "En effet, $41 = 7 \\cdot 6 - 1$.",
        "注意两边不对称，所以不能除以 2。",  # noqa: RUF001
    ],
)
def test_a_number_after_the_answer_may_be_a_remark(remark: str) -> None:
    assert not is_taken_back("41", f".\n\n{remark}")


@pytest.mark.parametrize(
    "correction",
    [
        "Wait, it is 42.",
        "so I get 42",
        "make that 42",
        "Actually the number of pairs that are counted is 42.",
        "Sorry, it is 42 because I forgot one.",
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
def test_a_later_sentence_that_settles_on_another_number_takes_the_answer_back(
    correction: str,
) -> None:
    assert is_taken_back("41", f".\n\n{correction}")


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("B", ". A fails the second condition."),
        ("Paris", ".\n\nIt is the capital of France."),
        ("A", "。B 的定义域不对称，不选它。"),  # noqa: RUF001
        ("[0,4]", ". Both ends belong to it."),
    ],
)
def test_an_answer_that_is_not_a_number_is_taken_back_by_another_of_its_kind(
    answer: str, rest: str
) -> None:
    assert not is_taken_back(answer, rest)
    others = {
        "B": "Actually C.",
        "A": "注意，正确答案是C。",  # noqa: RUF001
        "Paris": "It is London.",
        "[0,4]": "So the domain is $[0,4)$.",
    }
    assert is_taken_back(answer, f"{rest} {others[answer]}")
