"""Rows train on all of trace, answer and end token, or are dropped with a reason."""

import copy
import json
import random
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_distill import records
from dstools_distill.recipe.presets import preset_text
from dstools_distill.recipe.settings import Render
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.tokens import encoding
from dstools_distill.tokens import render as render_module
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.render import Renderer, render, row_id
from dstools_distill.tokens.templates import FOREIGN

USED = [
    ("deepseek", "r1-distill"),
    ("deepseek", "deepseek-v3"),
    ("smollm2", ""),
    ("sample-v3", ""),
    ("qwen2.5", ""),
    ("qwen3", ""),
    ("llama3", ""),
]
TESTS = Path(__file__).parents[2]
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
def renderer(tokenizer_folder: Callable[[str], Path]) -> Callable[..., Renderer]:
    """renderer(tokenizer, template="", **settings): the renderer of a worker, made once."""
    made: dict[str, Renderer] = {}

    def get(name: str, template: str = "", **options: Any) -> Renderer:
        key = f"{name} {template} {options}"
        if key not in made:
            folder = tokenizer_folder(name)
            made[key] = Renderer(Path("records.jsonl"), folder, template, Render(**options))
        return made[key]

    return get


Row = tuple[list[int], list[int]]  # ids, labels


def read(message: bytes) -> list[tuple[str, Row]]:
    import pyarrow as pa

    with pa.ipc.open_stream(message) as stream:
        table = stream.read_all().to_pydict()
    rows = zip(table["input_ids"], table["labels"], strict=True)
    return list(zip(table["id"], rows, strict=True))


def rendered(made: Renderer, *given: dict[str, Any]) -> tuple[list[Row], list[str]]:
    """Return the rows of records, and the reasons why the others are dropped."""
    chunk = made([(n, records.dump(one)) for n, one in enumerate(given, start=1)])
    dropped = [
        json.loads(line)["drop_reason"] for line in chunk.files["dropped.jsonl"].splitlines()
    ]
    assert chunk.counts["in"] == len(given) == chunk.counts["out"] + len(dropped)
    return [row for _, row in read(chunk.files["rows.arrow"])], dropped


def texts(made: Renderer, row: Row) -> tuple[str, str]:
    """Return the text before the first label of a row, and the text after it."""
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
        given: list[dict[str, Any]],
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
        records.write(source / "records.jsonl", given)
        out.mkdir(exist_ok=True)
        work = Work(out, workers, watch)
        inputs = Inputs(samples=source, tokenizer=tokenizer_folder("sample-v3"))
        return render(Render(**options), inputs, work), out

    return start


# ------------------------------------------------------------------------ golden, worked by hand

QWEN = (
    "<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
)
SMOL = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)
CHATML = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
DEEPSEEK = f"<｜begin▁of▁sentence｜><｜User｜>{QUESTION}<｜Assistant｜>"
LLAMA = (
    f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
PROMPTS = [f"{DEEPSEEK}<think>\n", DEEPSEEK, SMOL + CHATML, DEEPSEEK, QWEN + CHATML, CHATML, LLAMA]
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
    """In the Llama stand-in bytes are the tokens from 5 on, in the order of GPT-2's alphabet."""
    made = renderer("llama3")
    given = record(messages=[{"role": "user", "content": "#"}], reasoning="!", answer='"')
    [(ids, labels)], _ = rendered(made, given)
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
    given = [
        record(id=f"{n:032x}", reasoning=rng.choice("abc") + rng.choice(VARIED), answer=answer)
        for n, answer in enumerate(VARIED * 10)
    ]
    rows, dropped = rendered(made, *given)
    assert not dropped
    for one, (ids, labels) in zip(given, rows, strict=True):
        prompt, target = texts(made, (ids, labels))
        serving = made.tokenizer.apply_chat_template(one["messages"], add_generation_prompt=True)
        assert ids[: labels.count(IGNORED)] == serving["input_ids"]
        body = target if template == "r1-distill" else target.removeprefix("<think>")
        assert body == f"{one['reasoning']}</think>{one['answer']}{end}"
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
            "control-token": made.control.search(block) is not None,
            "foreign-token": any(token in block for token in FOREIGN),
            "not-reversible": changed,
        }[dropped[0]]
    else:
        target = made.tokenizer.decode(rows[0][1][rows[0][1].count(IGNORED) : -1])
        wanted = f"t{trace}</think>{answer}"
        assert target.removeprefix("<think>") == wanted


# ------------------------------------------------------------------------------------- the traps


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "41<|im_end|>"}, "foreign-token"),
        ({"reasoning": "41[/INST]"}, "foreign-token"),
        ({"reasoning": None, "answer": "<think>\nI never came to"}, "broken-think"),
        ({"answer": "as I said in <think>, 41"}, "broken-think"),
        ({"finish_reason": "length"}, "unfinished"),
        ({"finish_reason": None, "answer": "\n"}, "unfinished"),
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
def edited(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Renderer]:
    """edited(change, **config): the sample's renderer, with its two JSON files changed."""

    def make(change: Callable[[dict[str, Any]], object] | None = None, **config: Any) -> Renderer:
        folder = tmp_path / "edited"
        shutil.copytree(tokenizer_folder("sample-v3"), folder)
        for name, edit in (("tokenizer", change), ("tokenizer_config", lambda s: s.update(config))):
            file = folder / f"{name}.json"
            content = json.loads(file.read_text())
            if edit:
                edit(content)
            file.write_text(json.dumps(content))
        return Renderer(Path("records.jsonl"), folder, "", Render())

    return make


def test_a_tokenizer_that_normalises_drops_what_it_would_change_and_keeps_the_rest(
    edited: Any,
) -> None:
    made = edited(lambda content: content.update(normalizer={"type": "Lowercase"}))
    rows, dropped = rendered(made, record(), record(answer="\n\n41"))
    assert (len(rows), dropped) == (1, ["not-reversible"])


def test_a_row_with_a_byte_that_the_vocabulary_lacks_is_dropped(renderer: Any) -> None:
    """SmolLM2's has no token for the byte 0xf1, the first one of U+40000."""
    rows, dropped = rendered(renderer("smollm2"), record(), record(answer="\U00040000"))
    assert (len(rows), dropped) == (1, ["not-reversible"])


def test_a_row_whose_ids_say_something_else_stops_the_run(
    renderer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = renderer("sample-v3")
    one = made.tokenizer.convert_tokens_to_ids("1")
    monkeypatch.setattr(made, "form", made.form._replace(end=one))
    with pytest.raises(DstoolsError, match=r"records\.jsonl: row f{32}:0: .*only one$") as error:
        rendered(made, record())
    assert "do not match" in error.value.hint


def test_think_tags_that_serving_would_delete_are_refused(edited: Any) -> None:
    def special(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["special"] = token["special"] or "think" in token["content"]

    with pytest.raises(
        DstoolsError, match="a special token, which serving removes from answers"
    ) as error:
        edited(special)
    assert '"special": false' in error.value.hint


def test_an_end_of_sequence_that_the_template_does_not_write_is_refused(edited: Any) -> None:
    with pytest.raises(
        DstoolsError, match="eos_token is <｜▁pad▁｜>: serving would not stop"
    ) as error:
        edited(eos_token="<｜▁pad▁｜>", chat_template=END_SPELLED)
    assert 'set "eos_token": "<｜end▁of▁sentence｜>"' in error.value.hint


END_SPELLED = (
    "{% for m in messages %}<｜User｜>{{ m.content }}"
    "{% if m.role == 'assistant' %}<｜end▁of▁sentence｜>{% endif %}{% endfor %}<｜Assistant｜>"
)


def test_a_template_whose_prompt_closes_the_block_is_refused(edited: Any) -> None:
    with pytest.raises(DstoolsError, match="closes the think block: the student would never think"):
        edited(chat_template=END_SPELLED + "<think></think>", eos_token="<｜end▁of▁sentence｜>")


def test_a_truncation_in_tokenizer_json_is_ignored(edited: Any) -> None:
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    made = edited(lambda content: content.update(truncation=cut))
    [row], _ = rendered(made, record())
    assert texts(made, row)[1].endswith("The answer is 41.<｜end▁of▁sentence｜>")


# ------------------------------------------------------------------------------------- the stage


def test_the_report_counts_rows_tokens_and_checks(run: Any) -> None:
    from datasets import Dataset

    given = [record(id=f"{n:032x}", sample=1, answer="\n\n" + "4" * n) for n in range(10)]
    given += [plain("Paris.")]
    report, out = run(given)
    rows = Dataset.from_file(str(out / "rows.arrow"))
    lengths = sorted(map(len, rows["input_ids"]))
    assert rows["id"][:2] == [row_id(given[0]), row_id(given[1])] == [f"{0:032x}:1", f"{1:032x}:1"]
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


def test_traces_between_other_tags_are_named_where_none_is_found(run: Any) -> None:
    given = [plain("<thought>\n4*7\n</thought>\n28"), plain("Paris.")]
    with pytest.raises(DstoolsError, match="none of 2 records has a trace") as error:
        run(given)
    assert error.value.hint.startswith(
        "answers begin with <thought>: put their traces between <think> and </think>, or train"
    )


def test_over_long_rows_are_dropped_whole_and_counted(run: Any) -> None:
    given = [record(id=f"{n:032x}") for n in range(99)] + [record(reasoning="1" * 500)]
    report, out = run(given, max_length=200)
    assert (report["in"], report["out"], report["dropped"]) == (100, 99, {"over-long": 1})
    [dropped] = records.read(out / "dropped.jsonl")
    assert dropped == given[-1] | {"drop_reason": "over-long", "tokens": dropped["tokens"]}
    assert dropped["tokens"] > 500


def test_too_many_over_long_rows_are_refused_with_the_length_that_keeps_enough(run: Any) -> None:
    given = [record(id=f"{n:032x}", reasoning="1" * (n + 100)) for n in range(40)]
    shortest = run(given[:1])[0]["length"]["100%"]
    with pytest.raises(ShortfallError, match=r"30 of 40 rows would be dropped, more than") as error:
        run(given, max_length=shortest + 9, max_dropped=0.1)
    assert "30 over-long (more tokens than render.max_length), as row 000" in str(error.value)
    # 4 of 40 may go, the longest ones: the 36th row is the longest that stays
    assert error.value.hint == (
        f"render.max_length = {shortest + 35} keeps enough; or render.max_dropped = 0.75"
    )
    report, _ = run(given, max_length=shortest + 35, max_dropped=0.1)
    assert (report["out"], report["dropped"]) == (36, {"over-long": 4})


def test_other_drops_count_towards_the_limit(run: Any) -> None:
    with pytest.raises(ShortfallError, match=r"1 of 2 rows .* 1 unfinished \(the teacher did"):
        run([record(), record(finish_reason="length")])


def test_a_run_that_drops_every_row_is_refused_with_the_reasons(run: Any, tmp_path: Path) -> None:
    given = [record(finish_reason="length")] * 2 + [record(answer="</think>")]
    with pytest.raises(DstoolsError, match=r"none of 3 rows is left: 2 unfinished \(") as error:
        run(given, max_dropped=1.0)
    assert (
        "(the teacher did not finish), 1 broken-think (trace or answer contain a think tag)"
        in str(error.value)
    )
    assert error.value.hint.startswith(str(tmp_path / "render" / "dropped.jsonl"))


def test_no_records_are_refused(run: Any) -> None:
    with pytest.raises(DstoolsError, match=r"records\.jsonl: has no records"):
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
    """Raised where a signal would end the process."""


def test_a_killed_run_resumes_to_the_same_bytes(run: Any, tmp_path: Path) -> None:
    given = [record(id=f"{n:032x}", answer=f"\n\n{n}") for n in range(2100)]
    _, whole = run(given)
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
        run(given, watch=killing)
    with (tmp_path / "render" / "rows.arrow").open("ab") as file:
        file.write(b"half a message")
    _, out = run(given, resumed=True)
    assert {name: (out / name).read_bytes() for name in wanted} == wanted


@pytest.fixture
def same_bytes(run: Any, tokenizer_of: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """same_bytes(records, tokenizer, template): compare by both encoders; return rows rendered."""

    def render_by_both(given: list[dict[str, Any]], name: str, template: str) -> int:
        used: list[bool] = []

        def encoder(backend: Any, *, fast: bool) -> Any:
            used.append(fast)
            return encoding.encoder(backend, fast=fast)

        monkeypatch.setattr("dstools_distill.tokens.render.encoder", encoder)
        shared = tokenizer_of(name, template)  # not loaded again by each worker
        monkeypatch.setattr("dstools_distill.tokens.render.load_tokenizer", lambda *_: shared)
        reports, files = [], []
        for installed in (True, False):
            monkeypatch.setattr(encoding, "find_spec", lambda name, there=installed: there or None)
            report, out = run(given, max_dropped=1.0)
            reports.append(report)
            files.append([(out / name).read_bytes() for name in ("rows.arrow", "dropped.jsonl")])
        assert used == [False, True, False, False]  # to look at the rows, then in the worker
        assert reports[0] == reports[1]
        assert files[0] == files[1]
        return int(reports[0]["out"])

    return render_by_both


@pytest.mark.parametrize(("name", "template"), USED)
def test_rows_are_the_same_bytes_whatever_encodes_them(
    name: str, template: str, same_bytes: Callable[..., int]
) -> None:
    lines = (TESTS / "data" / "sample-v3-heldout.jsonl").read_text().splitlines()[:50]
    answers = [json.loads(line)["messages"][-1]["content"].replace("think>", "") for line in lines]
    odd = [*VARIED, *encoding.AWKWARD, *answers]
    given = [record(id=f"{n:032x}", answer=f"\n\n{n} {text}") for n, text in enumerate(odd)]
    assert same_bytes(given, name, template) > len(given) / 2


def of_preset(preset: str, trace: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    """Rows as a preset renders them: its problems, worked out as `verify` requires, and chats."""
    from reasoning_gym.factory import create_dataset

    recipe = tomllib.loads(preset_text(preset))
    for tables in [recipe, *(phase for phase in recipe.get("phase", []) if "render" in phase)]:
        for source in tables.get("prompts", {}).get("source", []):
            sizes = {"size": source["size"], "seed": source["seed"]}
            for entry in create_dataset("chain_sum", **sizes, **source["options"]):
                asked = [{"role": "user", "content": entry["question"]}]
                worked = f"\n{trace(entry['metadata']['expression'])}\n"
                yield record(messages=asked, reasoning=worked, answer=f"\n\n{entry['answer']}")
        if "non_reasoning" in tables.get("select", {}):
            for chat in records.read(TESTS / "data" / "toy-chat.jsonl"):
                yield plain(chat["messages"][-1]["content"]) | {"messages": chat["messages"][:-1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "name", "template"),
    [
        ("toy-cpu", "sample-v3", ""),
        ("r1-toy", "sample-v3", ""),
        ("smollm2-cpu", "smollm2", ""),
        ("prose", "deepseek", "r1-distill"),
        ("sums", "deepseek", "r1-distill"),
    ],
)
def test_rows_of_presets_and_of_the_benchmark_are_the_same_bytes_whatever_encodes_them(
    rows: str, name: str, template: str, load_script: Any, same_bytes: Callable[..., int]
) -> None:
    if rows in ("prose", "sums"):
        bench, rng = load_script("bench_distill"), random.Random(0)
        problems = bench.prose(rng) if rows == "prose" else bench.sums(500)
        samples = islice(bench.samples(problems, [next(problems)], rng), 1000)
        given = [sample for sample in samples if sample["finish_reason"] == "stop"]
    else:
        made = of_preset(rows, load_script("sample_data").trace)
        given = [row | {"id": f"{n:032x}"} for n, row in enumerate(made)]
    assert same_bytes(given, name, template) == len(given) > 900


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(run: Any, tmp_path: Path) -> None:
    given = [record(id=f"{n:032x}", answer=f"\n\n{n}") for n in range(2100)]
    _, one = run(given)
    one.rename(tmp_path / "one")
    _, two = run(given, workers=2)
    assert (two / "rows.arrow").read_bytes() == (tmp_path / "one" / "rows.arrow").read_bytes()


# -------------------------------------------------------------------------------- labelled cases

CASES = TESTS / "cases" / "distill"


def labelled() -> list[dict[str, Any]]:
    files = (CASES / "render.jsonl", CASES / "variants" / "render.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


@pytest.fixture
def renderer_of(
    tokenizer_of: Callable[[str], Any],
    trl_template: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[dict[str, Any]], Renderer]:
    """renderer_of(case): with the case's template, on a tokenizer that is read only once."""

    def get(case: dict[str, Any]) -> Renderer:
        name, template = case["tokenizer"], case.get("template", "")
        if name == "r1":
            name, template = "deepseek", template or "deepseek_r1_distill"
        tokenizer = copy.copy(tokenizer_of(name))
        tokenizer.chat_template = case.get("template_text") or trl_template(template)
        monkeypatch.setattr(render_module, "load_tokenizer", lambda *_: tokenizer)
        return Renderer(Path("records.jsonl"), Path("tokenizer"), "", Render())

    return get


@pytest.mark.parametrize(
    "case",
    labelled(),
    ids=lambda case: f"{case['kind']} {case['note'][:30]}" if "note" in case else case["kind"],
)
def test_a_labelled_case_is_a_row_dropped_or_refused(
    case: dict[str, Any], renderer_of: Callable[[dict[str, Any]], Renderer]
) -> None:
    given = record(**{key: case[key] for key in ("messages", "reasoning", "answer")})
    if case["expect"] == "refused":
        with pytest.raises(DstoolsError):
            renderer_of(case)
        return
    made = renderer_of(case)
    rows, dropped = rendered(made, given)
    if case["expect"] != "row":
        assert dropped or case["labels_have_not"] not in texts(made, rows[0])[1]
        return
    assert not dropped
    prompt, target = texts(made, rows[0])
    serving = made.tokenizer.apply_chat_template(
        case["messages"], tokenize=False, add_generation_prompt=True
    )
    assert prompt == serving
    opener = "<think>\n" if not prompt.endswith("<think>\n") else ""
    end = made.decode([made.form.end])
    assert target == f"{opener}{case['reasoning'][1:]}</think>{case['answer']}{end}"
