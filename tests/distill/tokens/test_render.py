"""What rows train on: all of the trace and answer, and the end; or it is said why not."""

import json
import random
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_distill import records
from dstools_distill.recipe.settings import Render
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.tokens.invariant import IGNORED, Target, violations
from dstools_distill.tokens.render import _Renderer, render, row_id

USED = [
    ("deepseek", "r1-distill"),
    ("deepseek", "deepseek-v3"),
    ("smollm2", ""),
    ("sample-v3", ""),
    ("qwen2.5", ""),
    ("qwen3", ""),
    ("llama3", ""),
]
QUESTION = "What is 12 + 29?"
TAGS = ("<think>", "</think>")


def record(**changes: object) -> dict[str, Any]:
    """A record as `select` keeps it: the teacher wrote <think>, a line feed, and so on."""
    made = {"id": "f" * 32, "sample": 0, "messages": [{"role": "user", "content": QUESTION}]}
    made |= {"reasoning": "\n2+9=11, carry 1\n", "answer": "\n\nThe answer is 41."}
    return made | {"prefilled_think": False, "finish_reason": "stop"} | changes


def plain(answer: str) -> dict[str, Any]:
    return record(reasoning=None, answer=answer, finish_reason=None)


@pytest.fixture(scope="session")
def renderer(tokenizer_folder: Callable[[str], Path]) -> Callable[..., _Renderer]:
    """renderer(tokenizer, template="", **settings): what a worker has, made once."""
    made: dict[str, _Renderer] = {}

    def get(name: str, template: str = "", **options: Any) -> _Renderer:
        key = f"{name} {template} {options}"
        if key not in made:
            folder = tokenizer_folder(name)
            made[key] = _Renderer(Path("records.jsonl"), folder, template, Render(**options))
        return made[key]

    return get


Row = tuple[list[int], list[int]]  # ids, labels


def read(message: bytes) -> list[tuple[str, Row]]:
    import pyarrow as pa

    with pa.ipc.open_stream(message) as stream:
        table = stream.read_all().to_pydict()
    rows = zip(table["input_ids"], table["labels"], strict=True)
    return list(zip(table["id"], rows, strict=True))


def rendered(made: _Renderer, *found: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """Return the rows made of records, and why the others are dropped."""
    chunk = made([(n, records.dump(each)) for n, each in enumerate(found, start=1)])
    dropped = [
        json.loads(line)["drop_reason"] for line in chunk.files["dropped.jsonl"].splitlines()
    ]
    assert chunk.counts["in"] == len(found) == chunk.counts["out"] + len(dropped)
    return [row for _, row in read(chunk.files["rows.arrow"])], dropped


def texts(made: _Renderer, row: Row) -> tuple[str, str]:
    """Return what a row shows and what it trains on."""
    ids, labels = row
    start = labels.count(IGNORED)
    assert labels == [IGNORED] * start + ids[start:]
    return made.decode(ids[:start]), made.decode(ids[start:])


@contextmanager
def bar(total: int, what: str) -> Any:
    yield lambda count: None


@pytest.fixture
def run(
    tmp_path: Path, tokenizer_folder: Callable[[str], Path]
) -> Callable[..., tuple[dict[str, Any], Path]]:
    """run(records, **settings): the stage with the sample's tokenizer; report and folder."""

    def start(
        found: list[dict[str, Any]],
        *,
        workers: int = 1,
        watch: Any = bar,
        resumed: bool = False,
        **options: Any,
    ) -> tuple[dict[str, Any], Path]:
        source, out = tmp_path / "select", tmp_path / "render"
        if not resumed:
            shutil.rmtree(out, ignore_errors=True)
        source.mkdir(exist_ok=True)
        records.write(source / "records.jsonl", found)
        out.mkdir(exist_ok=True)
        work = Work(out, workers, watch)
        inputs = Inputs(samples=source, tokenizer=tokenizer_folder("sample-v3"))
        return render(Render(**options), inputs, work), out

    return start


# ------------------------------------------------------------------------ golden, worked by hand

QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CHATML = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
DEEPSEEK = f"<｜begin▁of▁sentence｜><｜User｜>{QUESTION}<｜Assistant｜>"
LLAMA = (
    f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
PROMPTS = [
    f"{DEEPSEEK}<think>\n",
    DEEPSEEK,
    SMOL + CHATML,
    DEEPSEEK,
    QWEN + CHATML,
    CHATML,
    LLAMA,
]
ENDS = ["<｜end▁of▁sentence｜>"] * 2 + ["<|im_end|>", "<｜end▁of▁sentence｜>"]
ENDS += ["<|im_end|>"] * 2 + ["<|eot_id|>"]
EMPTY = ["\n</think>\n\n", "", "", "", "", "<think>\n\n</think>\n\n", ""]
GOLDEN = [
    (*used, prompt, empty, end)
    for used, prompt, empty, end in zip(USED, PROMPTS, EMPTY, ENDS, strict=True)
]


@pytest.mark.parametrize(("name", "template", "prompt", "empty", "end"), GOLDEN)
def test_golden_renderings(
    name: str, template: str, prompt: str, empty: str, end: str, renderer: Any
) -> None:
    made = renderer(name, template)
    prefilled = record(reasoning="2+9=11, carry 1\n", prefilled_think=True)
    no_thought = record(reasoning="\n\n", answer="\n\nParis.")
    rows, dropped = rendered(made, record(), prefilled, plain("Paris."), no_thought)
    opener = "" if template == "r1-distill" else "<think>\n"
    trace = f"{opener}2+9=11, carry 1\n</think>\n\nThe answer is 41.{end}"
    assert not dropped
    assert texts(made, rows[0]) == texts(made, rows[1]) == (prompt, trace)
    assert texts(made, rows[2]) == texts(made, rows[3]) == (prompt, f"{empty}Paris.{end}")


def test_golden_ids(renderer: Any) -> None:
    """Of the Llama stand-in: bytes are tokens from 5 on in the order of GPT-2's alphabet, ! first."""
    made = renderer("llama3")
    asked = record(messages=[{"role": "user", "content": "#"}], reasoning="!", answer='"')
    [(ids, labels)], _ = rendered(made, asked)
    word = made.tokenizer.convert_tokens_to_ids
    spell = [word(letter) for letter in '<think>!</think>"']
    assert word(["!", '"', "#"]) == [5, 6, 7]
    assert ids[0] == 0  # <|begin_of_text|>
    assert ids.count(4) == 2  # <|eot_id|>
    assert ids[-len(spell) - 1 :] == [*spell, 4]
    assert labels == [IGNORED] * (len(ids) - len(spell) - 1) + [*spell, 4]


# ----------------------------------------------------------------------------- every row, any text

VARIED = [
    "Wait, 2+9=11.\n\n  Indented\tand  spaced \r\n$$\\frac{1}{2}$$ …",
    "首先,我们计算 12 + 29。答案是四十一。",
    "🤔👨‍👩‍👧 naïve café — “quoted” … ½ ≈ 0.5 \u200b zero width",
    "```python\nprint('<b>41</b>')  # && || <|not a token|> <｜no｜>\n```",
    "x" * 3000 + "\n" * 50,
    " ",
    "\u0000\u0001\x7f\ufffd",
]


@pytest.mark.parametrize(("name", "template"), USED)
def test_every_row_trains_on_all_of_trace_and_answer_and_stops(
    name: str, template: str, renderer: Any
) -> None:
    made = renderer(name, template)
    end = made.decode([made.form.end])
    rng = random.Random(0)
    found = [
        record(id=f"{n:032x}", reasoning=rng.choice("abc") + rng.choice(VARIED), answer=answer)
        for n, answer in enumerate(VARIED * 10)
    ]
    rows, dropped = rendered(made, *found)
    assert not dropped
    for each, (ids, labels) in zip(found, rows, strict=True):
        prompt, target = texts(made, (ids, labels))
        serving = made.tokenizer.apply_chat_template(each["messages"], add_generation_prompt=True)
        assert ids[: labels.count(IGNORED)] == serving["input_ids"]
        said = target if template == "r1-distill" else target.removeprefix("<think>")
        assert said == f"{each['reasoning']}</think>{each['answer']}{end}"
        assert (prompt + target).count("<think>") == (prompt + target).count("</think>") == 1
        assert labels[-1] == made.form.end
        assert labels.count(made.form.end) == 1


@pytest.mark.parametrize(("name", "template"), USED)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    trace=st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    answer=st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
)
def test_any_text_survives_byte_for_byte_or_is_refused_with_a_reason(
    name: str, template: str, trace: str, answer: str, renderer: Any
) -> None:
    made = renderer(name, template)
    rows, dropped = rendered(made, record(reasoning=f"t{trace}", answer=answer))
    if dropped:
        block = f"t{trace}</think>{answer}"
        changed = made.decode(made.tokenizer.encode(block, add_special_tokens=False)) != block
        assert {
            "broken-think": any(tag in text for tag in TAGS for text in (trace, answer)),
            "control-token": any(token in block for token in made.control),
            "not-reversible": changed,
        }[dropped[0]]
    else:
        said = made.tokenizer.decode(rows[0][1][rows[0][1].count(IGNORED) : -1])
        wanted = f"t{trace}</think>{answer}"
        assert said.removeprefix("<think>") == wanted


# ------------------------------------------------------------------------------------- the traps


@pytest.fixture(scope="session")
def good(renderer: Any) -> tuple[Any, Row, Target]:
    """A row of the R1 template, what it is to train on, and its renderer."""
    made = renderer("deepseek", "r1-distill")
    [row], _ = rendered(made, record())
    prompt = row[0][: row[1].count(IGNORED)]
    target = made.decode(row[0][len(prompt) : -1])
    return made, row, Target(prompt, target, "2+9=11, carry 1\n", made.form.end)


def codes(good: tuple[Any, Row, Target], ids: list[int], labels: list[int]) -> list[str]:
    made, _, target = good
    return [each.code for each in violations(made.decode, ids, labels, target)]


def masked(good: tuple[Any, Row, Target], ids: list[int], start: int) -> list[str]:
    return codes(good, ids, [IGNORED] * start + ids[start:])


def test_a_good_row_has_nothing_wrong(good: Any) -> None:
    assert codes(good, *good[1]) == []


def test_padding_behind_a_good_row_with_the_end_token_is_not_trained_on(good: Any) -> None:
    """pad = end token: the place decides, so the one that ends the answer is still trained."""
    made, (ids, labels), target = good
    assert made.tokenizer.pad_token_id == target.end
    assert codes(good, ids + [target.end] * 3, labels + [IGNORED] * 3) == []


def test_pad_tokens_masked_by_their_id_take_the_end_away(good: Any) -> None:
    _, (ids, labels), target = good
    assert codes(good, ids, [IGNORED if n == target.end else n for n in labels]) == ["end-missing"]


def test_a_template_that_drops_the_trace_is_caught(good: Any, trl_template: Any) -> None:
    made, _, target = good
    said = {"role": "assistant", "content": f"<think>\n{target.text}"}
    ids = made.tokenizer.apply_chat_template(
        [*record()["messages"], said], chat_template=trl_template("deepseek_r1_distill")
    )["input_ids"]
    start = len(target.prompt) - 2  # <think> and the line feed are gone
    assert masked(good, ids, start) == ["trace-lost", "prompt-differs"]


def test_an_answer_alone_is_caught_where_a_trace_is_wanted(good: Any) -> None:
    made, _, target = good
    alone = [*made.tokenizer.encode("\n\nThe answer is 41."), target.end]
    assert masked(good, [*target.prompt, *alone], len(target.prompt)) == ["trace-lost"]


@pytest.mark.parametrize("kept", [2, 9, -2])
def test_a_cut_row_is_caught(good: Any, kept: int) -> None:
    _, (ids, _), target = good
    cut = ids[: len(target.prompt) + kept] if kept > 0 else ids[:kept]
    assert masked(good, cut, len(target.prompt)) == ["truncated", "end-missing"]


def test_a_missing_end_token_is_caught(good: Any) -> None:
    _, (ids, labels), _ = good
    assert codes(good, ids[:-1], labels[:-1]) == ["end-missing"]


def test_another_end_token_than_the_templates_is_caught(good: Any) -> None:
    made, (ids, _), target = good
    other = made.tokenizer.convert_tokens_to_ids("<|EOT|>")
    assert masked(good, [*ids[:-1], other], len(target.prompt)) == ["wrong-end"]


def test_an_opener_in_prompt_and_target_is_caught(good: Any) -> None:
    made, (ids, _), target = good
    start = len(target.prompt)
    twice = [*ids[:start], *made.tokenizer.encode("<think>\n"), *ids[start:]]
    assert masked(good, twice, start) == ["doubled-think"]


def test_a_template_that_does_not_open_the_block_that_serving_opens_is_caught(good: Any) -> None:
    _, (ids, _), target = good
    start = len(target.prompt) - 2
    assert masked(good, ids[:start] + ids[start + 2 :], start) == ["broken-think", "prompt-differs"]


def test_a_line_feed_trained_behind_the_end_is_caught(good: Any) -> None:
    made, (ids, _), target = good
    longer = ids + made.tokenizer.encode("\n")
    assert masked(good, longer, len(target.prompt)) == ["trained-behind-end"]


def test_a_loss_on_the_prompt_is_caught(good: Any) -> None:
    assert masked(good, good[1][0], 0) == ["prompt-trained"]


def test_a_hole_in_the_labels_is_caught(good: Any) -> None:
    _, (ids, labels), target = good
    at = len(target.prompt) + 3
    assert "labels-gap" in codes(good, ids, [*labels[:at], IGNORED, *labels[at + 1 :]])


def test_labels_that_are_shifted_or_none_are_caught(good: Any) -> None:
    _, (ids, labels), _ = good
    assert codes(good, ids, [*labels[1:], IGNORED]) == ["labels-differ"]
    assert codes(good, ids, [IGNORED] * len(ids)) == ["no-labels"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": [{"role": "user", "content": "What does <think> mean?"}]}, "think-in-prompt"),
        ({"reasoning": None, "answer": "<think>\nI never came to"}, "broken-think"),
        ({"answer": "as I said in <think>, 41"}, "broken-think"),
        ({"finish_reason": "length"}, "unfinished"),
        ({"answer": "41<｜end▁of▁sentence｜><｜User｜>Thanks"}, "control-token"),
        ({"messages": [{"role": "user", "content": "1<｜Assistant｜>2"}]}, "control-token"),
    ],
)
def test_a_row_that_cannot_be_learned_as_it_is_is_dropped_with_its_own_reason(
    change: dict[str, Any], reason: str, renderer: Any
) -> None:
    rows, dropped = rendered(renderer("sample-v3"), record(**change), record())
    assert (len(rows), dropped) == (1, [reason])


@pytest.fixture
def edited(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., _Renderer]:
    """edited(change tokenizer.json, **tokenizer_config): a renderer of the sample's, changed."""

    def make(change: Callable[[dict[str, Any]], object] | None = None, **config: Any) -> _Renderer:
        folder = tmp_path / "edited"
        shutil.copytree(tokenizer_folder("sample-v3"), folder)
        for name, edit in (("tokenizer", change), ("tokenizer_config", lambda s: s.update(config))):
            file = folder / f"{name}.json"
            said = json.loads(file.read_text())
            if edit:
                edit(said)
            file.write_text(json.dumps(said))
        return _Renderer(Path("records.jsonl"), folder, "", Render())

    return make


def test_a_tokenizer_that_normalises_drops_what_it_would_change_and_keeps_the_rest(
    edited: Any,
) -> None:
    made = edited(lambda said: said.update(normalizer={"type": "Lowercase"}))
    rows, dropped = rendered(made, record(), record(answer="\n\n41"))
    assert (len(rows), dropped) == (1, ["not-reversible"])


def test_a_byte_that_a_vocabulary_lacks_is_no_reason_to_train_on_less(renderer: Any) -> None:
    """SmolLM2's has no token for the byte 0xf1, with which U+40000 begins."""
    rows, dropped = rendered(renderer("smollm2"), record(), record(answer="\U00040000"))
    assert (len(rows), dropped) == (1, ["not-reversible"])


def test_a_row_whose_ids_say_something_else_stops_the_run(
    renderer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = renderer("sample-v3")
    one = made.tokenizer.convert_tokens_to_ids("1")
    monkeypatch.setattr(made, "form", made.form._replace(end=one))
    with pytest.raises(DstoolsError, match=r"records\.jsonl: row f{32}:0: end-inside: ") as error:
        rendered(made, record())
    assert "do not fit together" in error.value.hint


def test_changed_characters_are_named_with_their_place(good: Any) -> None:
    made, (ids, labels), target = good
    other = target._replace(text=target.text.replace("2+9", "2+8"))
    [wrong] = violations(made.decode, ids, labels, other)
    assert wrong.code == "text-changed"
    assert wrong.message.startswith("at character 2 the labels decode to")


def test_think_tags_that_serving_would_delete_are_refused(edited: Any) -> None:
    def special(said: dict[str, Any]) -> None:
        for token in said["added_tokens"]:
            token["special"] = token["special"] or "think" in token["content"]

    with pytest.raises(DstoolsError, match="a special token, which serving deletes") as error:
        edited(special)
    assert '"special": false' in error.value.hint


def test_an_end_of_sequence_that_the_template_does_not_write_is_refused(edited: Any) -> None:
    with pytest.raises(DstoolsError, match="eos_token is <｜▁pad▁｜>: the student would") as error:
        edited(eos_token="<｜▁pad▁｜>", chat_template=END_SPELLED)
    assert 'set "eos_token": "<｜end▁of▁sentence｜>"' in error.value.hint


END_SPELLED = (
    "{% for m in messages %}<｜User｜>{{ m.content }}"
    "{% if m.role == 'assistant' %}<｜end▁of▁sentence｜>{% endif %}{% endfor %}<｜Assistant｜>"
)


def test_a_template_whose_prompt_closes_the_block_is_refused(edited: Any) -> None:
    with pytest.raises(DstoolsError, match="closes the think block: the student would be served"):
        edited(chat_template=END_SPELLED + "<think></think>", eos_token="<｜end▁of▁sentence｜>")


def test_a_truncation_that_tokenizer_json_asks_for_is_not_done(edited: Any) -> None:
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    made = edited(lambda said: said.update(truncation=cut))
    [row], _ = rendered(made, record())
    assert texts(made, row)[1].endswith("The answer is 41.<｜end▁of▁sentence｜>")


# ------------------------------------------------------------------------------------- the stage


def test_the_report_counts_rows_tokens_and_checks(run: Any) -> None:
    from datasets import Dataset

    found = [record(id=f"{n:032x}", sample=1, answer="\n\n" + "4" * n) for n in range(10)]
    found += [plain("Paris.")]
    report, out = run(found)
    rows = Dataset.from_file(str(out / "rows.arrow"))
    lengths = sorted(map(len, rows["input_ids"]))
    assert rows["id"][:2] == [row_id(found[0]), row_id(found[1])] == [f"{0:032x}:1", f"{1:032x}:1"]
    assert (report["in"], report["out"], report["dropped"]) == (11, 11, {})
    assert (report["rows_with_a_trace"], report["rows_without_a_trace"]) == (10, 1)
    assert report["trains_on"] == "trace and answer"
    assert report["tokens"] == sum(lengths)
    assert report["target_tokens"] == sum(n != IGNORED for row in rows["labels"] for n in row)
    # of 11 lengths: the 6th is that of 6/11 >= 50 %, the 10th of 10/11 >= 90 %
    assert report["length"] == {
        "50%": lengths[5],
        "90%": lengths[9],
        "99%": lengths[10],
        "100%": lengths[10],
    }
    assert set(report["checks"].values()) == {11}
    assert len(report["checks"]) == 5


def test_without_reasoning_the_answer_alone_is_trained_on_and_the_report_says_so(
    run: Any, renderer: Any
) -> None:
    made = renderer("sample-v3", reasoning=False)
    [row], _ = rendered(made, record())
    assert texts(made, row)[1] == "The answer is 41.<｜end▁of▁sentence｜>"
    report, _ = run([record()], reasoning=False)
    assert report["trains_on"].startswith("the answer alone")
    assert report["rows_with_a_trace"] == 0


def test_without_reasoning_a_template_that_opens_the_block_gets_it_closed(renderer: Any) -> None:
    made = renderer("deepseek", "r1-distill", reasoning=False)
    [row], _ = rendered(made, record())
    assert texts(made, row)[1] == "\n</think>\n\nThe answer is 41.<｜end▁of▁sentence｜>"


def test_answers_alone_are_refused_where_traces_are_wanted(run: Any) -> None:
    with pytest.raises(DstoolsError, match="none of 2 records has a trace") as error:
        run([plain("Paris."), plain("Rome.")])
    assert "render.reasoning = false" in error.value.hint


def test_over_long_rows_are_dropped_whole_and_counted(run: Any) -> None:
    found = [record(id=f"{n:032x}") for n in range(99)] + [record(reasoning="1" * 500)]
    report, out = run(found, max_length=200)
    assert (report["in"], report["out"], report["dropped"]) == (100, 99, {"over-long": 1})
    [dropped] = records.read(out / "dropped.jsonl")
    assert dropped == found[-1] | {"drop_reason": "over-long", "tokens": dropped["tokens"]}
    assert dropped["tokens"] > 500


def test_too_many_over_long_rows_are_refused_with_the_length_that_keeps_enough(run: Any) -> None:
    found = [record(id=f"{n:032x}", reasoning="1" * (n + 100)) for n in range(40)]
    shortest = run(found[:1])[0]["length"]["100%"]
    with pytest.raises(ShortfallError, match=r"30 of 40 rows would be dropped, more than") as error:
        run(found, max_length=shortest + 9, max_dropped=0.1)
    assert "30 over-long (more tokens than render.max_length), as row 000" in str(error.value)
    # 4 of 40 may go, the longest ones: the 36th row is the longest that stays
    assert error.value.hint == (
        f"render.max_length = {shortest + 35} keeps enough; or render.max_dropped = 0.75"
    )
    report, _ = run(found, max_length=shortest + 35, max_dropped=0.1)
    assert (report["out"], report["dropped"]) == (36, {"over-long": 4})


def test_other_drops_count_towards_the_limit(run: Any) -> None:
    with pytest.raises(ShortfallError, match=r"1 of 2 rows .* 1 unfinished \(the teacher did"):
        run([record(), record(finish_reason="length")])


def test_no_records_are_refused(run: Any) -> None:
    with pytest.raises(DstoolsError, match=r"records\.jsonl: holds no record"):
        run([])


def test_a_record_without_a_field_is_refused_with_its_line(run: Any) -> None:
    broken = record()
    del broken["answer"]
    with pytest.raises(DstoolsError, match=r"records\.jsonl: line 2: has no answer"):
        run([record(), broken])


def test_a_conversation_that_the_template_refuses_stops_the_run(edited: Any) -> None:
    made = edited(chat_template=NO_SYSTEM)
    two = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7"}]
    with pytest.raises(DstoolsError, match=r"row f{32}:0: the chat template refuses .*no system"):
        rendered(made, record(messages=two))


NO_SYSTEM = (
    "{{ raise_exception('no system') if messages[0].role == 'system' }}"
    "{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}"
    "{{ '<｜Assistant｜>' if add_generation_prompt else eos_token }}"
)


class Killed(BaseException):
    """What a signal would do."""


def test_a_killed_run_goes_on_to_the_same_bytes(run: Any, tmp_path: Path) -> None:
    found = [record(id=f"{n:032x}", answer=f"\n\n{n}") for n in range(2100)]
    _, whole = run(found)
    wanted = {name: (whole / name).read_bytes() for name in ("rows.arrow", "dropped.jsonl")}
    whole.rename(tmp_path / "whole")

    @contextmanager
    def killing(total: int, what: str) -> Any:
        calls = []

        def progress(count: int) -> None:
            calls.append(count)
            if len(calls) == 3:  # where it starts, then two chunks
                raise Killed

        yield progress

    with pytest.raises(Killed):
        run(found, watch=killing)
    with (tmp_path / "render" / "rows.arrow").open("ab") as file:
        file.write(b"half a message")
    _, out = run(found, resumed=True)
    assert {name: (out / name).read_bytes() for name in wanted} == wanted


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(run: Any, tmp_path: Path) -> None:
    found = [record(id=f"{n:032x}", answer=f"\n\n{n}") for n in range(2100)]
    _, one = run(found)
    one.rename(tmp_path / "one")
    _, two = run(found, workers=2)
    assert (two / "rows.arrow").read_bytes() == (tmp_path / "one" / "rows.arrow").read_bytes()
