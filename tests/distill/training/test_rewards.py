"""What GRPO pays for answers to "What is 2 + 2?", by the real tokenizer and the real judge."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from dstools_distill import records
from dstools_distill.judge.verify import Judge
from dstools_distill.recipe.settings import Grpo, Verify
from dstools_distill.training.rewards import logging_flat_groups, rewards, sample

END = "<｜end▁of▁sentence｜>"
TRACE = "\nThe sum is four.\n"  # four words, two of them English alone: share 1
RIGHT = f"<think>{TRACE}</think>\n\n4{END}"
PAID = {  # text, is <think> in the prompt, what accuracy, format and language pay
    "right and well formed": (RIGHT, False, 1, 1, 1),
    "right, behind a prefilled opener": (f"{TRACE}</think>\n\n4{END}", True, 1, 1, 1),
    "right, with tokens behind the end": (f"{RIGHT}<think>5{END}", False, 1, 1, 1),
    "right, without a think block": (f"4{END}", False, 0, 0, 0),
    "right, but the opener is missing": (f"{TRACE}</think>\n\n4{END}", False, 0, 0, 0),
    "right, but the prefilled opener comes again": (RIGHT, True, 0, 0, 0),
    "right, behind an empty think block": (f"<think>\n\n</think>\n\n4{END}", False, 0, 0, 0),
    "right, behind a prefilled opener closed at once": (f"\n</think>\n\n4{END}", True, 0, 0, 0),
    "right, with two think blocks": (f"<think>{TRACE}</think>{RIGHT}", False, 0, 0, 0),
    "right, but cut at the length limit": (RIGHT.removesuffix(END), False, 0, 0, 1),
    "cut within the trace": (f"<think>{TRACE}", False, 0, 0, 0),
    "wrong": (f"<think>{TRACE}</think>\n\n5{END}", False, 0, 1, 1),
    "nothing behind the think block": (f"<think>{TRACE}</think>\n\n{END}", False, 0, 0, 1),
    # four English words, and five letters that are a word each
    "right, half in Chinese": (f"<think>{TRACE}所以答案是\n</think>\n\n4{END}", False, 1, 1, 4 / 9),
    # four English words, and four German: das, ist and die speak for it
    "right, half in German": (
        f"<think>{TRACE}das ist die Summe\n</think>\n\n4{END}", False, 1, 1, 4 / 8,
    ),
    "right, without a word": (f"<think>\n2+2=4\n</think>\n\n4{END}", False, 1, 1, 0),
}  # fmt: skip
ALL_THREE = Grpo(group_size=1, accuracy_weight=1.0, format_weight=0.5, language_weight=0.25)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with closing(Judge(Verify())) as judge:
        yield judge


def record(gold: str | None, prefilled: bool) -> str:
    asked = {"gold": gold, "answer_type": "integer", "task": None, "prefilled_think": prefilled}
    return records.dump(asked).decode()


def pay(settings: Grpo, judge: Judge, tokenizer: Any, asked: list[str], answers: list[str]) -> Any:
    """What each function pays for each answer, by name."""
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in answers]
    paid = {}
    for function in rewards(settings, judge, tokenizer, [tokenizer.eos_token_id]).functions:
        paid[function.__name__] = function(
            completion_ids=ids, record=asked, log_metric=lambda name, value: None
        )
    return paid


@pytest.mark.parametrize("name", PAID)
def test_an_answer_earns_what_was_worked_by_hand(
    tokenizer_of: Any, judge: Judge, name: str
) -> None:
    text, prefilled, *wanted = PAID[name]
    paid = pay(ALL_THREE, judge, tokenizer_of("sample-v3"), [record("4", prefilled)], [text])
    assert paid == dict(zip(("accuracy", "format", "language"), ([n] for n in wanted), strict=True))


def test_each_answer_of_a_batch_is_paid_by_its_own_record(tokenizer_of: Any, judge: Judge) -> None:
    asked = [record(gold, False) for gold in ("4", "5", "4")]
    answers = [RIGHT, RIGHT, f"4{END}"]
    paid = pay(ALL_THREE, judge, tokenizer_of("sample-v3"), asked, answers)
    assert paid == {
        "accuracy": [1.0, 0.0, 0.0],
        "format": [1.0, 1.0, 0.0],
        "language": [1.0, 1.0, 0.0],
    }


def test_what_nobody_can_judge_earns_nothing_for_accuracy(tokenizer_of: Any, judge: Judge) -> None:
    tokenizer = tokenizer_of("sample-v3")
    asked = record(None, False)
    ids = tokenizer.encode(RIGHT, add_special_tokens=False)
    assert (
        judge.judge(sample(json.loads(asked), ids, tokenizer, [tokenizer.eos_token_id]))["verdict"]
        == "unverifiable"
    )
    paid = pay(ALL_THREE, judge, tokenizer, [asked], [RIGHT])
    assert (paid["accuracy"], paid["format"]) == ([0.0], [1.0])


def test_an_answer_ends_at_any_of_the_ends_of_the_model(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("sample-v3")
    ids = tokenizer.encode("<think>2\n</think>\n\n4", add_special_tokens=False)
    end, other, asked = tokenizer.eos_token_id, 7, json.loads(record("4", False))
    assert other not in ids
    cut = sample(asked, [*ids, other, *ids, end], tokenizer, [end, other])
    assert (cut["answer"].strip(), cut["finish_reason"]) == ("4", "stop")
    assert sample(asked, [*ids, other], tokenizer, [end])["finish_reason"] == "length"


def test_the_language_is_the_one_that_was_asked_for(tokenizer_of: Any, judge: Judge) -> None:
    settings = Grpo(group_size=1, language_weight=1.0, language="zh")
    text = f"<think>{TRACE}所以答案是\n</think>\n\n4{END}"
    paid = pay(settings, judge, tokenizer_of("sample-v3"), [record("4", False)], [text])
    assert paid["language"] == [5 / 9]


def test_a_reward_of_weight_0_is_not_asked_for(tokenizer_of: Any, judge: Judge) -> None:
    tokenizer = tokenizer_of("sample-v3")
    paid = rewards(ALL_THREE, judge, tokenizer, [])
    assert [each.__name__ for each in paid.functions] == ["accuracy", "format", "language"]
    assert paid.weights == [1.0, 0.5, 0.25]
    paid = rewards(Grpo(format_weight=0.0, language_weight=0.1), judge, tokenizer, [])
    assert [each.__name__ for each in paid.functions] == ["accuracy", "language"]
    assert paid.weights == [1.0, 0.1]
    assert [each.__name__ for each in rewards(Grpo(), judge, tokenizer, []).functions] == [
        "accuracy",
        "format",
    ]


def test_a_group_is_flat_where_all_answers_earned_the_same_whatever_the_weights() -> None:
    """Three groups of two: (1, 0.2) twice, 1 and 0, 0 twice with other formats: one is flat."""
    logged: list[tuple[str, float]] = []
    rewarded: list[list[float | None]] = [[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.2] * 5 + [0.0]]
    functions: list[Any] = [lambda n=n: rewarded[n] for n in range(2)]
    for function in logging_flat_groups(functions, 2):
        function(log_metric=lambda name, value: logged.append((name, value)))
    assert logged == [("groups_without_spread", 1 / 3)]
