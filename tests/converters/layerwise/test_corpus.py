"""Samples from a file of text: exactly cut, the same every time, with errors that name the line."""

import builtins
import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise import corpus as module
from dstools_converters.layerwise.corpus import Corpus, read_corpus
from dstools_converters.model import tokenizer as tokenizer_module

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
DOCUMENTS = [f"Sample {n}: the tensor of layer {n} has {n * 7} rows.\n\tNext" for n in range(40)]
VOCABULARY = 129280


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Loading 128,000 tokens takes a second; a folder is edited before it is loaded, if at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_tokenizer", functools.cache(module.load_tokenizer))
        yield


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def edited(tiny: Path, tmp_path: Path) -> Path:
    """The tokenizer of `tiny` in a folder that may be changed."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(tiny / name, folder / name)
    return folder


def set_config(folder: Path, **values: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write(path: Path, *documents: object) -> Path:
    """Write a line of JSON each; a text that begins with ! is written as it is."""
    lines = [d[1:] if isinstance(d, str) else json.dumps(d) for d in documents]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(
    path: Path, folder: Path, samples: int = 2, seq_len: int = 8, seed: int = 0, **more: int
) -> Corpus:
    vocab_size = more.get("vocab_size", VOCABULARY)
    return read_corpus(
        path, folder, samples=samples, seq_len=seq_len, seed=seed, vocab_size=vocab_size
    )


def failure(path: Path, folder: Path, **options: int) -> DstoolsError:
    with pytest.raises(DstoolsError) as caught:
        read(path, folder, **options)
    assert caught.value.hint
    return caught.value


# ------------------------------------------------------------------------------------ valid files


def test_samples_are_the_shuffled_documents_joined_and_cut(
    tiny: Path, tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", *({"text": text, "id": 7} for text in DOCUMENTS))
    samples = read(path, tiny, samples=5, seq_len=33, seed=3)
    # by hand: tokenize all of them, order them as PCG64(3) does, join, take the first 5 * 33
    order = np.random.Generator(np.random.PCG64(3)).permutation(len(DOCUMENTS))
    joined: list[int] = []
    documents = 0
    while len(joined) < 165:
        joined += tokenizer(DOCUMENTS[order[documents]])["input_ids"]
        documents += 1
    assert samples.ids.tolist() == [joined[33 * n : 33 * n + 33] for n in range(5)]
    assert samples.ids.dtype == np.int32
    assert (samples.documents, samples.tokens_available) == (documents, len(joined))
    assert documents < len(DOCUMENTS)
    assert (samples.samples, samples.seq_len, samples.seed) == (5, 33, 3)
    assert (samples.name, samples.sha256) == ("data.jsonl", sha256(path.read_bytes()).hexdigest())


def test_a_seed_gives_the_same_samples_and_another_gives_others(tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *({"text": text} for text in DOCUMENTS))
    first, again, other = (read(path, tiny, seed=seed).ids for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_very_last_token_may_be_needed_and_not_one_more(
    tiny: Path, tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", {"text": DOCUMENTS[1]}, {"text": DOCUMENTS[2]})
    total = sum(len(tokenizer(text)["input_ids"]) for text in DOCUMENTS[1:3])
    assert read(path, tiny, samples=1, seq_len=total).tokens_available == total
    error = failure(path, tiny, samples=1, seq_len=total + 1)
    assert str(error) == (
        f"{path}: holds {total:,} tokens; 1 of --samples and {total + 1} of --seq-len take "
        f"{total + 1:,}"
    )
    assert error.hint == f"--seq-len {total} would do, or add text"
    assert failure(path, tiny, samples=total, seq_len=total + 1).hint == "add text"
    error = failure(path, tiny, samples=total, seq_len=7)
    assert f"--samples {total // 7} would do" in error.hint


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_paragraphs_of_plain_text_are_its_documents(
    tiny: Path, tokenizer: Any, tmp_path: Path, end: str
) -> None:
    text = ["", "One line", "and its second.", "", " \t", "  Indented.", "", "Last."]
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xef\xbb\xbf" + end.join(text).encode())
    expected = {f"One line{end}and its second.", "  Indented.", "Last."}
    tokens = sorted(token for text in expected for token in tokenizer(text)["input_ids"])
    samples = read(path, tiny, samples=1, seq_len=len(tokens))
    assert samples.documents == 3
    assert sorted(samples.ids.flatten().tolist()) == tokens


def test_messages_go_through_the_chat_template(
    edited: Path, tokenizer: Any, tmp_path: Path
) -> None:
    set_config(edited, chat_template=TEMPLATE)
    messages = [{"role": "user", "content": "Hi", "id": 1}, {"role": "assistant", "content": "Yes"}]
    path = write(tmp_path / "data.jsonl", {"messages": messages, "source": "x"})
    spelled = f"{tokenizer.bos_token}<user>Hi<assistant>Yes"
    wanted = tokenizer(spelled, add_special_tokens=False)["input_ids"]
    assert wanted[0] == tokenizer.bos_token_id
    set_config(edited, add_bos_token=True)  # the template's own BOS is the only one
    assert read(path, edited, samples=1, seq_len=len(wanted)).ids.tolist() == [wanted]


def test_every_document_begins_with_bos_where_the_tokenizers_config_says_so(
    edited: Path, tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", *({"text": text} for text in DOCUMENTS[:3]))
    plain = sum(len(tokenizer(text)["input_ids"]) for text in DOCUMENTS[:3])
    set_config(edited, add_bos_token=True)  # as DeepSeek-V3 has it, beside this tokenizer.json
    samples = read(path, edited, samples=1, seq_len=plain + 3)
    assert samples.ids[0, 0] == tokenizer.bos_token_id
    assert np.count_nonzero(samples.ids == tokenizer.bos_token_id) == 3


def test_blank_lines_are_not_documents_and_a_byte_order_mark_is_not_text(
    tiny: Path, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "One"}\r\n\r\n \n{"text": "One"}')
    one = tokenizer("One")["input_ids"]
    samples = read(path, tiny, samples=2, seq_len=len(one))
    assert samples.documents == 2
    assert samples.ids.tolist() == [one, one]


def test_only_as_many_documents_are_tokenized_as_are_needed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.jsonl", *({"text": "ten words " * 50} for _ in range(5000)))
    read_lines: list[int] = []
    tokens = module._Reader.tokens

    def counted(self: Any, number: int) -> Any:
        read_lines.append(number)
        return tokens(self, number)

    monkeypatch.setattr(module._Reader, "tokens", counted)
    one = read(path, tiny, samples=1, seq_len=1)
    assert one.documents == len(read_lines) == 1
    # two samples are two whole documents here, and the third is not looked at
    two = read(path, tiny, samples=2, seq_len=one.tokens_available)
    assert two.documents == 2
    assert len(read_lines) == 1 + 2


def test_a_count_that_is_not_positive_is_the_callers_mistake(tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {"text": "One"})
    for options in ({"samples": 0}, {"seq_len": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            read(path, tiny, **options)


# ---------------------------------------------------------------------------------- invalid files

GOOD = {"text": "good"}
BROKEN = {
    '!{"text": "cut': "is not valid JSON",
    '!{"text": NaN}': "NaN is not JSON",
    '!{"text": "a", "x": -Infinity}': "-Infinity is not JSON",
    '!{"text": "a", "text": "b"}': "text twice",
    '!{"text": "a"} {"text": "b"}': "is not valid JSON: Extra data",
    "!" + "[" * 100_000: "is not valid JSON",
    '!{"text": "\\ud800"}': "text holds half a surrogate pair",
    '!["text"]': "is not a JSON object",
    '!"text"': "is not a JSON object",
    '!{"prompt": "a", "id": 7}': "has neither text nor messages, but prompt, id",
    "!{}": "has neither text nor messages, but no keys",
    '!{"text": "a", "messages": []}': "has both text and messages",
    '!{"text": null}': "text is not a string",
    '!{"text": ["a"]}': "text is not a string",
    '!{"text": ""}': "text is empty",
    '!{"text": " \\n"}': "text is empty",
    '!{"messages": []}': "messages must be a list of messages",
    '!{"messages": {"role": "user"}}': "messages must be a list of messages",
    '!{"messages": ["Hi"]}': "messages[0] must have role and content",
    '!{"messages": [{"role": "user"}]}': "messages[0] must have role and content",
    '!{"messages": [{"role": "user", "content": [{}]}]}': "[0].content is not a string",
    '!{"messages": [{"role": 1, "content": "a"}]}': "messages[0].role is not a string",
    '!{"messages": [{"role": "user", "content": ""}]}': "messages[0].content is empty",
    '!{"messages": [{"role": "user", "content": "a"}]}': "has no chat template",
}


@pytest.mark.parametrize("line", BROKEN, ids=[why[:30] for why in BROKEN.values()])
def test_a_broken_line_is_named_with_its_file_and_number(
    line: str, tiny: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, GOOD, "!", line, GOOD)
    error = failure(path, tiny, samples=100)
    assert str(error).startswith(f"{path}: line 4: ")
    assert BROKEN[line] in str(error)


def test_a_role_that_the_template_refuses_is_named(edited: Path, tmp_path: Path) -> None:
    set_config(edited, chat_template=TEMPLATE)
    path = write(tmp_path / "data.jsonl", {"messages": [{"role": "tool", "content": "a"}]})
    assert "line 1: the chat template refuses the messages: no such role" in str(
        failure(path, edited)
    )


def test_a_token_without_a_row_in_the_embedding_is_named(tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {"text": "a"}, {"text": " the"})  # number 270
    error = failure(path, tiny, samples=100, vocab_size=200)
    assert str(error) == f"{path}: line 2: token 270 (Ġthe) is beyond the vocabulary of 200"
    assert failure(path, tiny, samples=100, vocab_size=270).hint == error.hint
    assert "holds 2 tokens" in str(failure(path, tiny, samples=100, vocab_size=271))


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
def test_a_byte_that_is_not_utf8_is_named_with_its_line_and_offset(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    # the document begins in line 3, byte 16; the byte that is wrong is 0xE9, in text a line further
    start = b'{"text": "one"}\n' if name == "data.jsonl" else b"one, two, three\n"
    between = b" " if name == "data.jsonl" else b"\n"
    path.write_bytes(start + b'\n{"text":' + between + b'"caf\xe9"}')
    line, offset = (4 if between == b"\n" else 3), 16 + 1 + 8 + 1 + 4
    error = failure(path, tiny, samples=100)
    assert str(error) == f"{path}: line {line}: byte {offset} of the file is not UTF-8"


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", ["data.txt", "data.jsonl"])
def test_a_file_without_a_document_is_empty(
    name: str, content: bytes, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert str(failure(path, tiny)) == f"{path}: is empty"


def test_a_path_that_is_not_a_regular_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    assert str(failure(tmp_path / "none", tiny)).endswith("none: no such file")
    assert str(failure(tmp_path, tiny)).endswith(": is a folder")
    os.mkfifo(tmp_path / "fifo")
    assert str(failure(tmp_path / "fifo", tiny)).endswith("is not a regular file")
    (tmp_path / "file").write_text("text")
    assert "Not a directory" in str(failure(tmp_path / "file" / "data.txt", tiny))


def test_a_document_beyond_the_limit_is_refused_before_it_is_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 100)
    path = write(tmp_path / "data.jsonl", GOOD, {"text": "a" * 1000}, GOOD)
    error = failure(path, tiny, samples=100)
    assert str(error) == f"{path}: line 2: a document of 1013 bytes; 100 is the limit"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"version": '),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": []}'),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}}'),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(
    name: str, content: str, edited: Path, tmp_path: Path
) -> None:
    (edited / name).write_text(content)
    error = failure(write(tmp_path / "data.jsonl", GOOD), edited)
    if name == "tokenizer_config.json" and "auto_map" not in content:
        assert str(error).startswith(f"{edited / name}: is not ")
    elif name == "tokenizer.json":
        assert re.match(rf"{edited / name}: (is not valid JSON: |has no \w+$)", str(error))
    else:
        assert str(error).startswith(f"{edited}: its tokenizer cannot be read: ")


def test_a_checkpoint_without_a_tokenizer_says_so(edited: Path, tmp_path: Path) -> None:
    for path in edited.glob("tokenizer*"):
        path.unlink()
    error = failure(write(tmp_path / "data.jsonl", GOOD), edited)
    assert str(error) == f"{edited}: has no tokenizer"


def test_without_transformers_the_hint_installs_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if re.match(r"transformers\b", name):
            raise ModuleNotFoundError("No module named 'transformers'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    error = failure(write(tmp_path / "data.jsonl", GOOD), tiny.parent)
    assert error.hint == 'pip install "dstools-llm[torch]"'


def test_a_chat_template_that_loops_for_ever_is_stopped(
    edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "TEMPLATE_SECONDS", 1)
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    set_config(edited, chat_template=loops)
    data = write(tmp_path / "data.jsonl", {"messages": [{"role": "user", "content": "7"}]})
    with pytest.raises(
        DstoolsError, match=r"data\.jsonl: line 1: the chat template takes more than"
    ):
        read_corpus(data, edited, samples=1, seq_len=1, seed=0, vocab_size=VOCABULARY)
