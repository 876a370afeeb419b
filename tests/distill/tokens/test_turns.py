"""What real trainers wrote is judged row by row as labelled: see tests/cases/distill/prepared."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import chat_text, prompt_ids
from dstools_distill.data.choices import BASES
from dstools_distill.data.forms import convert
from dstools_distill.data.sources import Reading, rows
from dstools_distill.tokens.faults import Violation
from dstools_distill.tokens.invariant import IGNORED, Trained
from dstools_distill.tokens.prepared import parts, read
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.turns import Reader, has_trace

PREPARED = Path(__file__).parents[2] / "cases" / "distill" / "prepared"
LABELS = [
    json.loads(line)
    for line in (PREPARED / "expect.jsonl").read_text(encoding="utf-8").splitlines()
]
CODES = {  # by the kinds of the labels
    "prompt-trained": {"prompt-trained"},
    "prompt-cut": {"truncated"},
    "trace-lost": {"trace-lost"},
    "trace-cut": {"truncated"},
    "trace-not-trained": {"trace-lost"},
    "opener-not-trained": {"start-missing"},
    "end-not-trained": {"end-missing", "truncated"},
    # an earlier answer whose header was cut away is not seen: the row is called cut instead
    "history-not-trained": {"history-not-trained", "truncated"},
    "nothing-trained": {"no-labels"},
}
FOREIGN_IDS = "llamafactory-wrong-template"  # its end is an id that the tokenizer does not have
UNREAD = (  # the sources are no conversations, or of a role that `prompts` does not read
    *("axolotl-bot-role", "axolotl-completion", "axolotl-completion-split", "axolotl-segments"),
    "llamafactory-pretraining",
)
PIECES = "llamafactory-pretraining"  # blocks of running text, cut anywhere: not labelled as cut


@pytest.fixture(scope="module")
def reader_of(tokenizer_of: Any) -> Any:
    """reader_of(name): the reader of a tokenizer; DeepSeek's, which has no template, gets one."""
    made: dict[str, Reader] = {}

    def get(name: str) -> Reader:
        if name not in made:
            template = "deepseek-v3" if name == "deepseek" else ""
            made[name] = Reader(tokenizer_of(name, template))
        return made[name]

    return get


@pytest.mark.parametrize("label", LABELS, ids=[f"{c['folder']}-{c['part'][:8]}" for c in LABELS])
def test_planted_losses_are_found_and_intact_rows_are_clean(
    label: dict[str, Any], reader_of: Any
) -> None:
    """Each row is judged alone, and beside the source row that it was made of."""
    reader = reader_of(label["tokenizer"])
    folder = PREPARED / label["folder"] / "prepared"
    found: dict[int, list[Trained]] = defaultdict(list)
    if label.get("refused") or label["folder"] == FOREIGN_IDS:
        with pytest.raises(DstoolsError, match=r"preference data|is not one of 49152 tokens"):
            list(parts(read(folder), len(reader.tokenizer), folder))
        return
    for part in parts(read(folder), len(reader.tokenizer), folder):
        if part.where.startswith(label["part"]):
            number = part.where.partition("row ")[2].partition(",")[0]
            found[int(number) - 1].append(part.row)
    assert sorted(found) == list(range(label["rows"]))
    sources = [
        row
        for name in label["source"]
        for _, row in rows(PREPARED / "rows" / f"{name}.jsonl", Reading())
    ]
    for number, made in found.items():
        source = label["sources"][number] if label["sources"] else None
        chats: list[Any] = [None]
        if isinstance(source, int) and label["folder"] not in UNREAD:
            made_of = convert(sources[source], "auto", None, lambda: BASES)
            reply = {"role": "assistant", "content": made_of.first_reply or ""}
            chats.append([*made_of.messages, reply])
        kinds = [each["kind"] for each in label["losses"] if number in each["rows"]]
        kinds = [kind for kind in kinds if kind in CODES]  # row-dropped numbers rows of the source
        for chat in chats:
            codes = {fault.code for row in made for fault in faults(reader, row, chat)}
            missed = [kind for kind in kinds if not CODES[kind] & codes]
            assert [kind for kind in missed if kind != "trace-lost" or chat] == []
            allowed = {"prompt-differs"}.union(*(CODES[kind] for kind in kinds))
            if not chat and "prompt-differs" in codes and label["tokenizer"] == "qwen3":
                allowed.add("not-checked")  # a template that does not show where a row starts
            assert codes - allowed <= ({"truncated"} if label["folder"] == PIECES else set())
            differs = label["prompt_differs"]
            if not chat and differs is not None and "prompt-differs" in codes:
                assert number in differs


def faults(reader: Reader, row: Trained, source: Any = None) -> list[Violation]:
    return list(reader.faults(reader.read(row), source))


PROMPT = "<｜begin▁of▁sentence｜><｜User｜>3+4?<｜Assistant｜>"
END = "<｜end▁of▁sentence｜>"
ANSWER = f"<think>\n3+4=7\n</think>\n\n7{END}"


@pytest.mark.parametrize(
    ("masked", "trained", "codes"),
    [
        (PROMPT, ANSWER, []),
        ("", PROMPT + ANSWER, ["prompt-trained"]),
        (f"{PROMPT}<think>\n", ANSWER.removeprefix("<think>\n"), ["start-missing"]),
        (PROMPT, ANSWER.replace("<｜end▁of▁sentence｜>", ""), ["truncated"]),
        (PROMPT, ANSWER + "<｜User｜>9", ["truncated"]),
        (PROMPT, ANSWER + "9", ["trained-after-end"]),
        (PROMPT, ANSWER + END, []),  # as axolotl ends text that ends already
        (PROMPT, ANSWER + END * 2, ["trained-after-end"]),  # padding
        (PROMPT, ANSWER.replace("<｜end▁of▁sentence｜>", "<｜User｜>"), ["wrong-end"]),
        (f"{PROMPT}<think>\n3+4=7\n", "</think>\n\n7<｜end▁of▁sentence｜>", ["trace-lost"]),
        (PROMPT, ANSWER.replace("<think>\n", ""), ["broken-think"]),
        (PROMPT, f"<think>\n9\n</think>{ANSWER}", ["doubled-think"]),
        (PROMPT, ANSWER + PROMPT + ANSWER, ["packing"]),
        (PROMPT.partition("<｜User｜>")[2], ANSWER, ["truncated"]),
        (PROMPT + ANSWER, "", ["no-labels"]),
        ("", "Q: 3+4? A: 7<｜end▁of▁sentence｜>", ["prompt-differs"]),
        (
            PROMPT.replace("<｜User｜>", "<｜begin▁of▁sentence｜><｜User｜>"),
            ANSWER,
            ["prompt-differs"],
        ),
        (
            f"{PROMPT}5<｜end▁of▁sentence｜><｜User｜>3+4?<｜Assistant｜>",
            ANSWER,
            ["history-not-trained"],
        ),
    ],
)
def test_faults_of_one_row(masked: str, trained: str, codes: list[str], reader_of: Any) -> None:
    reader = reader_of("sample-v3")
    first, second = (
        reader.tokenizer.encode(text, add_special_tokens=False) for text in (masked, trained)
    )
    row = Trained(first + second, [IGNORED] * len(first) + second)
    assert [fault.code for fault in faults(reader, row)] == codes


def test_packing_is_told_by_the_source_if_the_template_does_not_show_where_a_row_starts(
    reader_of: Any,
) -> None:
    """Qwen3's writes no system prompt: packed rows look like turns that keep their traces."""
    reader = reader_of("qwen3")
    prompt, reply = prompt_ids(reader.tokenizer, [ASK]), "<think>\n3+4=7\n</think>\n\n7"
    answer = [*reader.tokenizer.encode(reply), reader.end]
    row = Trained([*prompt, *answer] * 2, [*[IGNORED] * len(prompt), *answer] * 2)
    source = [ASK, {"role": "assistant", "content": reply}]
    assert [fault.code for fault in faults(reader, row, source)] == ["packing"]
    assert [fault.code for fault in faults(reader, row)] == ["not-checked", "prompt-differs"]
    assert [fault.code for fault in faults(reader, row, source * 2)] == ["prompt-differs"]


def test_packing_is_told_if_the_conversations_have_system_prompts(reader_of: Any) -> None:
    reader = reader_of("qwen3")
    system = {"role": "system", "content": "Be brief."}
    prompt = prompt_ids(reader.tokenizer, [system, ASK])
    ids = [*prompt, *reader.tokenizer.encode("7"), reader.end]
    for times, code in ((2, "packing"), (1, "prompt-trained")):
        [fault] = faults(reader, Trained(ids * times, ids * times))
        assert fault.code == code


def test_a_template_that_keeps_traces_does_not_show_packing_without_the_source(
    tokenizer_folder: Any,
) -> None:
    """Plain ChatML: two conversations are the same text as two turns. Nobody masks those packed."""
    tokenizer = load_tokenizer(tokenizer_folder("smollm2"))
    tokenizer.chat_template = CHATML
    reader, reply = Reader(tokenizer), {"role": "assistant", "content": "<think>\n3\n</think>\n\n7"}
    prompt = prompt_ids(tokenizer, [ASK])
    answer = [*tokenizer.encode(reply["content"]), reader.end]
    for times, source, codes in (
        (2, None, ["not-checked"]),
        (2, [ASK, reply], ["packing"]),
        (2, [ASK, reply] * 2, []),
        (1, None, []),
    ):
        line_feed = tokenizer.encode("\n")
        ids = ([*prompt, *answer, *line_feed] * times)[:-1]
        labels = ([*[IGNORED] * len(prompt), *answer, IGNORED] * times)[:-1]
        assert [fault.code for fault in faults(reader, Trained(ids, labels), source)] == codes
        if times == 2 and source is None:
            labels = [*[IGNORED] * (len(ids) - len(answer)), *answer]
            [fault] = faults(reader, Trained(ids, labels))
            assert fault.code == "history-not-trained"


def test_an_end_that_is_missing_after_a_whole_answer_is_no_cut(reader_of: Any) -> None:
    reader = reader_of("sample-v3")
    reply = ANSWER.partition("<｜")[0]
    first, second = (
        reader.tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, reply)
    )
    row = Trained(first + second, [IGNORED] * len(first) + second)
    for content, code in ((reply, "end-missing"), (f"{reply}, sure", "truncated")):
        source = [ASK, {"role": "assistant", "content": content}]
        assert {fault.code for fault in faults(reader, row, source)} == {code}


def test_padding_that_is_trained_on_is_no_answer(reader_of: Any) -> None:
    """There is no attention_mask, and a line feed without a label parts it from the answer."""
    reader = reader_of("sample-v3")
    first, second, gap, pad = (
        reader.tokenizer.encode(text, add_special_tokens=False)
        for text in (PROMPT, ANSWER, "\n", "<｜▁pad▁｜><｜▁pad▁｜>")
    )
    labels = [*[IGNORED] * len(first), *second, *[IGNORED] * len(gap), *pad]
    found = faults(reader, Trained([*first, *second, *gap, *pad], labels))
    assert [fault.code for fault in found] == ["trained-after-end"]


def test_a_doubled_start_is_not_taken_for_packing(reader_of: Any) -> None:
    reader = reader_of("deepseek")
    first, second = (
        reader.tokenizer.encode(text, add_special_tokens=False)
        for text in (f"<｜begin▁of▁sentence｜>{PROMPT}", ANSWER)
    )
    row = Trained(first + second, [IGNORED] * len(first) + second)
    assert [fault.code for fault in faults(reader, row)] == ["prompt-differs"]


def test_line_feeds_that_merge_with_the_header_s_do_not_hide_an_answer(reader_of: Any) -> None:
    """The answer begins with a line feed, which is one token with that of the header."""
    reader = reader_of("qwen2.5")
    text = f"{chat_text(reader.tokenizer, [ASK], add_generation_prompt=True)}\n\n7<|im_end|>"
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    assert reader.read(Trained(ids, ids)).chat[-1]["content"] == "\n\n7"


def test_shifted_labels_are_named(reader_of: Any) -> None:
    """A trainer shifts them itself: such data set trains on the token after the next.

    All are trained on, those of the prompt too.
    """
    reader = reader_of("sample-v3")
    ids = reader.tokenizer.encode(PROMPT + ANSWER, add_special_tokens=False)
    row = Trained(ids, [*ids[1:], IGNORED])
    assert [fault.code for fault in faults(reader, row)] == ["labels-differ"]


@pytest.mark.parametrize(
    ("name", "template"),
    [("deepseek", "deepseek_r1_distill"), ("qwen3", "qwen3_8"), ("smollm2", "")],
)
@pytest.mark.parametrize("has_source", [False, True])
def test_rows_as_serving_shows_them_are_clean(
    name: str, template: str, has_source: bool, tokenizer_folder: Any, trl_template: Any
) -> None:
    """R1's drops earlier traces, but for the line feeds; Qwen3.8's writes empty blocks instead."""
    tokenizer = load_tokenizer(tokenizer_folder(name))
    if template:
        tokenizer.chat_template = trl_template(template)
    reader, reply = Reader(tokenizer), {"role": "assistant", "content": "<think>\na\n</think>\n\n7"}
    for chat, codes in (
        ([ASK], []),
        ([{"role": "system", "content": "Be brief."}, ASK], []),
        ([ASK, reply, ASK], ["history-not-trained"]),
    ):
        prompt = prompt_ids(tokenizer, chat)
        text = reply["content"].removeprefix("<think>\n" if reader.prefill else "")
        answer = [*tokenizer.encode(text, add_special_tokens=False), reader.end]
        row = Trained(prompt + answer, [IGNORED] * len(prompt) + answer)
        source = [*chat, reply] if has_source else None
        assert [fault.code for fault in faults(reader, row, source)] == codes


def test_a_part_of_an_answer_without_labels_is_told(reader_of: Any) -> None:
    reader = reader_of("sample-v3")
    first, second = (
        reader.tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, ANSWER)
    )
    labels = [IGNORED] * len(first) + second[:4] + [IGNORED] * 2 + second[6:]
    assert [fault.code for fault in faults(reader, Trained(first + second, labels))] == [
        "labels-gap"
    ]


def test_padding_with_the_end_token_is_left_out_and_masked_by_its_id_takes_the_end_away(
    reader_of: Any,
) -> None:
    reader = reader_of("deepseek")
    first, second = (
        reader.tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, ANSWER)
    )
    assert reader.tokenizer.pad_token_id == reader.end
    labels = [IGNORED] * len(first) + second
    padded = Trained(first + second + [reader.end] * 3, [*labels, *[IGNORED] * 3])
    assert list(faults(reader, padded)) == []
    masked = [IGNORED if label == reader.end else label for label in padded.labels]
    assert [fault.code for fault in faults(reader, Trained(padded.ids, masked))] == ["end-missing"]


def test_tokens_of_the_template_that_are_spelled_as_text_are_told(tokenizer_folder: Any) -> None:
    """The row looks right once it is decoded, and serving shows other ids."""
    tokenizer = load_tokenizer(tokenizer_folder("smollm2"))
    text = chat_text(tokenizer, [ASK, {"role": "assistant", "content": "7"}])
    pieces = text.split("<|im_end|>")
    end = [n for part in ("<|", "im", "_", "end", "|>") for n in tokenizer.encode(part)]
    ids = [n for piece in pieces for n in (*tokenizer.encode(piece), *end)][: -len(end)]
    assert tokenizer.decode(ids) == text
    [fault] = faults(Reader(tokenizer), Trained(ids, ids))
    assert (fault.code, "spelled as text" in fault.message) == ("labels-differ", True)


@pytest.mark.parametrize(
    ("reply", "codes"),
    [
        ("<think>\n3+4=7\n</think>\n\n7", []),
        ("<think>3+4=7</think>7", []),
        ("<think>\n4+3=7\n</think>\n\n7", ["not-in-data"]),
        ("<think>\n3+4=7\n</think>\n\n7, as said.", ["truncated"]),
        ("7", []),
    ],
)
def test_an_answer_is_compared_with_the_one_it_was_made_of(
    reply: str, codes: list[str], reader_of: Any
) -> None:
    """Blanks beside the tags do not count. That the source has no trace is no loss."""
    reader = reader_of("sample-v3")
    first, second = (
        reader.tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, ANSWER)
    )
    row = Trained(first + second, [IGNORED] * len(first) + second)
    source = [ASK, {"role": "assistant", "content": reply}]
    assert [fault.code for fault in faults(reader, row, source)] == codes


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ("<think>\n3+4=7\n</think>\n\n7", True),
        ("<think>\n3+4", True),  # cut, but not lost
        ("3+4=7\n</think>\n\n7", True),
        ("<think>\n\n</think>\n\n7", False),
        ("<think>\n", False),
        ("7", False),
    ],
)
def test_a_trace_is_there_if_a_think_block_has_words_even_if_it_is_cut(
    text: str, is_there: bool
) -> None:
    assert has_trace(text) == is_there


def test_tags_that_are_special_tokens_do_not_end_an_answer(tokenizer_folder: Any) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("sample-v3"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    first, second = (tokenizer.encode(t, add_special_tokens=False) for t in (PROMPT, ANSWER))
    row = Trained(first + second, [IGNORED] * len(first) + second)
    assert list(faults(Reader(tokenizer), row)) == []


def test_a_prompt_that_differs_is_shown_where_it_differs(reader_of: Any) -> None:
    reader = reader_of("smollm2")
    text = chat_text(reader.tokenizer, [{"role": "user", "content": "3+4?"}])
    text = text.replace("named SmolLM", "called SmolLM") + "<|im_start|>assistant\n7<|im_end|>"
    ids = reader.tokenizer.encode(text, add_special_tokens=False)
    row = Trained(ids, [IGNORED] * (len(ids) - 2) + ids[-2:])
    [fault] = faults(reader, row, [ASK, {"role": "assistant", "content": "7"}])
    assert fault.code == "prompt-differs"
    assert " called Smol" in fault.message.partition("serving")[0]
    assert " named Smol" in fault.message.partition("serving")[2]


ASK = {"role": "user", "content": "3+4?"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)


def test_a_source_that_the_template_refuses_is_told_of_its_row(tokenizer_folder: Any) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("smollm2"))
    refuses = "{%- if messages[0].content == '3+4?' %}{{ raise_exception('no sums') }}{%- endif %}"
    tokenizer.chat_template = refuses + CHATML
    ids = tokenizer.encode(
        "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>",
        add_special_tokens=False,
    )
    row = Trained(ids, [IGNORED] * (len(ids) - 2) + ids[-2:])
    [fault] = faults(Reader(tokenizer), row, [ASK, {"role": "assistant", "content": "7"}])
    assert fault.code == "prompt-differs"
    assert "no sums" in fault.message


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}<|im_end|>\n", "{{ messages[-1].content }}<|im_end|>"]
)
def test_a_template_that_does_not_write_conversations_is_refused(
    tokenizer_folder: Any, template: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("smollm2"))
    tokenizer.chat_template = template
    with pytest.raises(DstoolsError, match="the chat template"):
        Reader(tokenizer)
