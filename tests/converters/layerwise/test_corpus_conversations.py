"""Conversations and packed files become samples; what is missing of them is named."""

import gzip
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise.corpus import Corpus, read_corpus
from dstools_converters.model.tokenizer import load_tokenizer

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
DOCUMENTS = [f"Sample {n}: the tensor of layer {n} has {n * 7} rows." for n in range(40)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER_ONLY = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}<A>"
ASK, SAY = {"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}
THOUGHT = {"role": "assistant", "content": "Say", "reasoning_content": "Think"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLE / name, folder / name)
    return folder


def set_config(folder: Path, **values: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write(path: Path, *documents: object) -> Path:
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    return path


def read(path: Path, folder: Path, samples: int = 2, seq_len: int = 8) -> Corpus:
    return read_corpus(path, folder, samples=samples, seq_len=seq_len, seed=0, vocab_size=9999)


def failure(path: Path, folder: Path, **options: int) -> DstoolsError:
    with pytest.raises(DstoolsError) as caught:
        read(path, folder, **options)
    assert caught.value.hint
    return caught.value


def lines_of(path: Path, folder: Path, count: int) -> Corpus:
    """All documents of a file with `count` lines."""
    corpus = read_corpus(path, folder, samples=9999, seq_len=1, seed=0, vocab_size=9999, at_least=1)
    assert corpus.documents == count
    return corpus


def test_questions_without_answers_are_refused_where_they_are_many(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE)
    path = tmp_path / "data.jsonl"
    good, bad = {"messages": [ASK, SAY]}, {"messages": [ASK]}
    write(path, *[good] * 9, bad)  # a tenth
    (warning,) = lines_of(path, folder, 10).warnings
    assert warning.startswith(f"{path}: line 10: the conversation ends without an answer, as do 10")
    write(path, *[good] * 8, bad)
    error = failure(path, folder, samples=100, seq_len=9)
    assert str(error).startswith(f"{path}: line 9: the conversation ends without an answer")
    assert "11.1%" in str(error)
    # the hint works
    write(path, *[good] * 8, {"text": "Ask"}, bad | {"raw": "Say"})
    assert lines_of(path, folder, 10).warnings == ()


def test_answers_that_the_template_drops_are_refused_where_they_are_many(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=USER_ONLY)
    path = write(tmp_path / "data.jsonl", {"messages": [ASK, SAY]}, {"messages": [ASK, SAY] * 2})
    error = failure(path, folder, samples=100, seq_len=9)
    assert str(error) == (
        f"{path}: line 2: the chat template drops or changes answers: 33.3% of the characters of "
        "the assistant's turns in all that was read"  # three of nine
    )
    long = {"role": "assistant", "content": "Say " * 50}
    write(path, {"messages": [ASK, SAY, ASK, long]})
    (warning,) = lines_of(path, folder, 1).warnings
    assert "drops or changes answers: 1.5%" in warning  # 3 of 3 + 199


def test_reasoning_of_earlier_turns_is_left_out_with_a_warning(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE.replace("m.content", "m.content.split('>')[-1]"))
    path = write(tmp_path / "data.jsonl", {"messages": [ASK, THOUGHT, ASK, THOUGHT]})
    corpus = lines_of(path, folder, 1)
    assert corpus.warnings == (
        f"{path}: line 1: the chat template leaves out the reasoning of earlier turns, as in "
        "serving: 31.2% of the characters of the assistant's turns in all that was read",  # 5 of 16
    )


def test_text_under_a_key_that_nobody_reads_is_refused_where_it_is_much(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE)
    trace = "I think of it."
    row = {"messages": [ASK, SAY | {"cot": trace}]}
    path = write(tmp_path / "data.jsonl", {"text": "a"}, row)
    error = failure(path, folder, samples=100, seq_len=9)
    assert str(error).startswith(
        f"{path}: line 2: text of the assistant is under cot, which neither"
    )
    assert "82.4%" in str(error)  # 14 of 3 + 14
    # the hint works
    assert "rename the key to reasoning_content" in error.hint
    write(path, {"text": "a"}, {"messages": [ASK, SAY | {"reasoning_content": trace}]})
    assert lines_of(path, folder, 2).warnings == ()
    (warning,) = lines_of(write(path, row, *[{"messages": [ASK, SAY]}] * 50), folder, 51).warnings
    assert "under cot" in warning


def test_calls_of_tools_that_the_template_leaves_out_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE)
    call = {"function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, ASK, SAY]
    path = write(tmp_path / "data.jsonl", {"messages": turns})
    error = failure(path, folder, samples=100, seq_len=9)
    assert "line 1: the chat template drops or changes answers: 84.2%" in str(error)  # 16 of 19


def test_a_record_that_contradicts_its_messages_is_named_by_its_line(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE)
    path = write(tmp_path / "data.jsonl", {"text": "a"}, {"messages": [ASK, SAY], "raw": "No"})
    error = failure(path, folder, samples=100, seq_len=9)
    assert str(error) == f"{path}: line 2: the last of messages is another answer than raw"


def test_a_text_that_begins_with_bos_has_one(folder: Path, tmp_path: Path) -> None:
    set_config(folder, chat_template=TEMPLATE, add_bos_token=True)
    tokenizer = load_tokenizer(folder)
    once = tokenizer.apply_chat_template([ASK, SAY], tokenize=False)
    assert once.startswith(tokenizer.bos_token)
    path = tmp_path / "data.jsonl"
    rows = {"messages": [ASK, SAY]}, {"text": once}
    first, again = (lines_of(write(path, row), folder, 1).ids.flatten().tolist() for row in rows)
    assert first == again
    assert first.count(tokenizer.bos_token_id) == 1
    (plain,) = (lines_of(write(path, {"text": "Ask"}), folder, 1).ids.flatten().tolist(),)
    assert plain[0] == tokenizer.bos_token_id  # others get theirs


def test_messages_that_went_through_the_template_are_refused_where_they_are_many(
    folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE)
    bos = load_tokenizer(folder).bos_token
    good, bad = (
        {"messages": [ASK, SAY]},
        {"messages": [{"role": "user", "content": f"{bos}A"}, SAY]},
    )
    path = write(tmp_path / "data.jsonl", good, bad)
    error = failure(path, folder, samples=100, seq_len=9)
    assert str(error).startswith(f"{path}: line 2: a message begins or ends with {bos}, which the")
    assert "in 50.0% of the conversations" in str(error)
    (warning,) = lines_of(write(path, bad, *[good] * 9), folder, 10).warnings
    assert f"{path}: line 1: a message begins or ends with" in warning
    # the hint works
    assert lines_of(write(path, good, {"text": f"{bos}A"}), folder, 2).warnings == ()


def test_gzip_and_parquet_give_the_samples_of_the_same_jsonl(folder: Path, tmp_path: Path) -> None:
    plain = write(tmp_path / "data.jsonl", *({"text": text} for text in DOCUMENTS))
    packed, table = tmp_path / "data.jsonl.gz", tmp_path / "data.parquet"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    parquet.write_table(pa.table({"text": DOCUMENTS, "id": [*range(len(DOCUMENTS))]}), table)
    wanted = read(plain, folder, samples=5, seq_len=33)
    for path in (packed, table):
        samples = read(path, folder, samples=5, seq_len=33)
        assert np.array_equal(samples.ids, wanted.ids)
        assert samples.provenance["sha256"] == sha256(path.read_bytes()).hexdigest()
    parquet.write_table(pa.table({"text": ["a", "", "b"], "messages": [None, None, [ASK]]}), table)
    assert "row 3: has both text and messages" in str(failure(table, folder, samples=9))


def test_a_file_of_one_line_and_of_a_byte_order_mark_inside_gzip_are_read(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "One"}'))
    assert read(path, folder, samples=1, seq_len=1).documents == 1
    path.write_bytes(gzip.compress(b""))
    assert str(failure(path, folder)) == f"{path}: is empty"


@pytest.mark.parametrize("role", ["tool", "function"])
def test_results_of_tools_are_text_where_the_template_takes_the_role(
    role: str, folder: Path, tmp_path: Path
) -> None:
    set_config(folder, chat_template=TEMPLATE)
    path = tmp_path / "data.jsonl"
    for content in ("56", ""):  # a tool may have nothing to say
        write(
            path, {"messages": [ASK, SAY, {"role": role, "name": "times", "content": content}, SAY]}
        )
        corpus = lines_of(path, folder, 1)
        text = load_tokenizer(folder).decode(corpus.ids.flatten())
        assert text.endswith(f"<user>Ask<assistant>Say<{role}>{content}<assistant>Say")
        assert corpus.warnings == ()
