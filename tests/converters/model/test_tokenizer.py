"""A tokenizer is read from the folder alone, and its chat template is bounded in time."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.model import tokenizer as module
from dstools_converters.model.tokenizer import (
    answer_form,
    chat_text,
    end_ids,
    end_token_id,
    load_tokenizer,
    prompt_ids,
    prompt_text,
    question_text,
    time_limit,
)

ASKED = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """The tokenizer of `tiny` in a folder that may be changed."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(tiny / name, folder / name)
    return folder


def loaded(folder: Path, **settings: object) -> Any:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return load_tokenizer(folder)


@pytest.mark.parametrize("asked", [True, False])
def test_bos_is_added_where_the_config_says_so(asked: bool, folder: Path) -> None:
    tokenizer = loaded(folder, add_bos_token=asked)
    assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) == asked


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"has no tokenizer$") as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in error.value.hint


def test_code_of_a_checkpoint_is_not_run(folder: Path) -> None:
    (folder / "code.py").write_text("raise SystemExit('was run')")
    tokenizer = loaded(folder, auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    assert tokenizer("Hi")["input_ids"]  # by transformers' own class


TEXT = "Hello world, how are you? 12 + 34 = 46\n    indented, 你好 👩\u200d💻"


def of_file(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        ("qwen2", "PreTrainedTokenizerFast"),
        ("qwen2", "LlamaTokenizerFast"),
        ("deepseek_v3", "Qwen2Tokenizer"),
    ],
)
def test_a_class_with_other_ids_than_tokenizer_json_gives_way_to_it_with_one_warning(
    model_type: str, tokenizer_class: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    settings = {"tokenizer_class": tokenizer_class, "add_bos_token": True, "chat_template": None}
    for _ in range(2):
        tokenizer = loaded(folder, **settings)
        wanted = of_file(folder, TEXT)
        assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == wanted
        assert tokenizer(TEXT)["input_ids"] == [tokenizer.bos_token_id, *wanted]
        assert tokenizer.eos_token == "<｜end▁of▁sentence｜>"
        assert tokenizer.chat_template == template
    (record,) = caplog.records
    assert f"{folder}: Qwen2Tokenizer, which transformers chooses, gives other ids" in (
        record.getMessage()
    )


@pytest.mark.parametrize("model_type", ["deepseek_v3", "llama", "qwen3"])
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_a_tokenizer_that_agrees_with_its_file_is_loaded_without_a_word(
    model_type: str, tokenizer_class: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = loaded(folder, tokenizer_class=tokenizer_class)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == of_file(folder, TEXT)
    assert [r for r in caplog.records if r.name == module.__name__] == []


def test_truncation_and_padding_of_the_file_and_tokens_of_the_config_are_no_difference(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    path.write_text(json.dumps(content))
    tokenizer = loaded(folder, extra_special_tokens=["<|more|>"])
    assert len(tokenizer("<|more|>", add_special_tokens=False)["input_ids"]) == 1
    assert [r for r in caplog.records if r.name == module.__name__] == []


def test_ids_that_differ_even_by_the_file_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ids", lambda tokenizer, text: [7])
    with pytest.raises(DstoolsError, match=r"gives other ids than tokenizer\.json says") as error:
        load_tokenizer(folder)
    assert "tokenizer_config.json" in error.value.hint


def test_a_config_that_transformers_refuses_is_named_with_the_reason(folder: Path) -> None:
    path = folder / "config.json"
    odd = {"head_dim": 99, "qk_rope_head_dim": 99, "rope_parameters": {"rope_type": "default"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    with pytest.raises(DstoolsError, match=r"requires an even rotary dimension") as error:
        load_tokenizer(folder)
    assert str(error.value).startswith(f"{path}: transformers refuses it: ")
    assert error.value.hint == "restore the file from the model's release"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "has no added_tokens"),
        ('{"added_tokens": []}', "has no model"),
        ('{"version": 1', "is not valid JSON: Expecting ',' delimiter: line 1 column 14 (char 13)"),
        (None, "is missing, and the other files make no tokenizer"),
    ],
)
def test_a_tokenizer_json_without_a_tokenizer_is_named_with_the_reason(
    content: str | None, reason: str, folder: Path
) -> None:
    path = folder / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DstoolsError) as error:
        load_tokenizer(folder)
    assert str(error.value) == f"{path}: {reason}"
    assert error.value.hint == module.RELEASE_HINT


def test_a_broken_settings_file_is_to_be_restored_and_not_deleted(folder: Path) -> None:
    """Without it there would be no chat template."""
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DstoolsError, match=r"tokenizer_config\.json: is not valid JSON") as error:
        load_tokenizer(folder)
    assert error.value.hint == "restore the file from the model's release"


def test_messages_are_rendered_by_the_template(folder: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = loaded(folder, chat_template=template)
    assert chat_text(tokenizer, ASKED) == "<user>Hi"
    assert chat_text(tokenizer, ASKED, add_generation_prompt=True) == "<user>Hi<assistant>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[7].content.x }}", ".*"),
        ("{{ messages.__class__.__mro__ }}", ".*"),  # the sandbox
        ("{% for a in range(100000000) %}x{% endfor %}", "Range too big"),
        ("{{ nothing.of_it }}", "'nothing' is undefined"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ 1 // 0 }}", ".*zero"),
        ("{{ {}.pop('x') }}", ".*"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "maximum recursion"),
    ],
)
def test_a_template_that_fails_is_an_error(template: str, reason: str, folder: Path) -> None:
    tokenizer = loaded(folder, chat_template=template)
    with pytest.raises(DstoolsError, match=f"^the chat template fails: {reason}") as error:
        chat_text(tokenizer, ASKED)
    assert error.value.hint == module.RESTORE


def test_a_template_that_refuses_is_an_error_about_the_roles(folder: Path) -> None:
    tokenizer = loaded(folder, chat_template="{{ raise_exception('only system') }}")
    message = "^the chat template refuses the messages: only system$"
    with pytest.raises(DstoolsError, match=message) as error:
        chat_text(tokenizer, ASKED)
    assert "knows the roles" in error.value.hint


def test_a_template_that_writes_far_more_than_the_messages_is_an_error(folder: Path) -> None:
    tokenizer = loaded(folder, chat_template="{{ messages[0].content }}{{ 'a' * 100000000 }}")
    with pytest.raises(DstoolsError, match="the chat template writes 100,000,002 characters"):
        chat_text(tokenizer, ASKED)
    tokenizer = loaded(folder, chat_template="{{ messages[0].content * 2 }}{{ 'a' * 9999 }}")
    long = "a" * (1 << 20)
    assert len(chat_text(tokenizer, [{"role": "user", "content": long}])) == (2 << 20) + 9999


def test_a_template_that_is_a_number_is_an_error(folder: Path) -> None:
    tokenizer = loaded(folder)
    tokenizer.chat_template = 3
    with pytest.raises(DstoolsError, match=r"^chat_template is 3, not a template$"):
        chat_text(tokenizer, ASKED)


def test_templates_of_which_none_is_the_default_are_named(folder: Path) -> None:
    named = [
        {"name": name, "template": "{{ messages[0].content }}"} for name in ("rag", "tool_use")
    ]
    with pytest.raises(DstoolsError) as error:
        chat_text(loaded(folder, chat_template=named), ASKED)
    assert "several templates, rag, tool_use, and none is called default" in str(error.value)
    assert error.value.hint == "call the one to use default, in tokenizer_config.json"
    named[0]["name"] = "default"
    assert chat_text(loaded(folder, chat_template=named), ASKED) == "Hi"


STRING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PARTS = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}"
PARTS += "{% endfor %}"
PICKY = PARTS.replace("{{ p.text }}", "{{ p['text'] + '' }}")  # fails for the letters of a string


@pytest.mark.parametrize("template", [STRING, PARTS, PICKY])
def test_a_question_is_written_as_a_string_or_in_parts(template: str, folder: Path) -> None:
    assert question_text(loaded(folder, chat_template=template), " Hi ") == "<user> Hi "


def test_a_template_that_does_not_write_the_question_is_an_error(folder: Path) -> None:
    with pytest.raises(DstoolsError, match="does not write the message of a user"):
        question_text(loaded(folder, chat_template="7"), "7")
    with pytest.raises(DstoolsError, match="refuses the messages: no users"):
        question_text(loaded(folder, chat_template="{{ raise_exception('no users') }}"), "7")


def test_a_template_that_loops_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEMPLATE_SECONDS", 1)
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    tokenizer = loaded(folder, chat_template=loops)
    with pytest.raises(DstoolsError, match=r"^the chat template takes more than 1 s$"):
        chat_text(tokenizer, ASKED)


def test_a_time_limit_stops_what_takes_longer_and_then_stops_nothing() -> None:
    with pytest.raises(TimeoutError), time_limit(1):
        time.sleep(5)
    with time_limit(1):
        pass
    time.sleep(1.1)  # the alarm is off


def test_a_thread_has_no_time_limit() -> None:
    done = []

    def run() -> None:
        with time_limit(1):
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 7847602\n"


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"],
)
def test_a_git_lfs_pointer_or_an_empty_file_is_named(name: str, folder: Path) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(DstoolsError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == f"{folder / name}: is a Git LFS pointer, not the file"
    assert "git lfs pull" in caught.value.hint
    (folder / name).write_bytes(b"")
    with pytest.raises(DstoolsError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == f"{folder / name}: is empty"
    assert caught.value.hint


# ------------------------------------------------------------------------------------ the template

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def test_a_prompt_has_one_bos_and_opens_the_answer() -> None:
    tokenizer = load_tokenizer(SAMPLE)
    ids = prompt_ids(tokenizer, ASKED)
    assert ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.decode(ids)
    assert (
        text
        == prompt_text(tokenizer, ASKED)
        == "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>"
    )
    assert tokenizer.decode(prompt_ids(tokenizer, ASKED, prefill=True)) == f"{text}<think>\n"
    assert answer_form(tokenizer) == ("", end_token_id(tokenizer)) == ("", 1)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, None, {1}),  # the template's alone
        (2, None, {1, 2}),
        (None, [3, 4], {1, 3, 4}),
        ([2, 5], 3, {1, 2, 3, 5}),
        (-1, [-1, 3], {1, 3}),
    ],
)
def test_ends_are_those_of_both_configs_and_of_the_template(
    generation: Any, config: Any, ends: set[int], tmp_path: Path
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    assert end_ids(tmp_path, load_tokenizer(SAMPLE)) == ends


def test_without_a_template_only_the_configs_name_ends(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = None
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert end_ids(folder, tokenizer) == {7}
    (folder / "config.json").write_text("{}")
    assert end_ids(folder, tokenizer) == frozenset()


@pytest.mark.parametrize("template", [STRING, PARTS, "{% for m in messages %}", "7"])
def test_a_template_that_writes_no_end_leaves_those_of_the_configs(
    template: str, folder: Path
) -> None:
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert end_ids(folder, loaded(folder, chat_template=template)) == {7}


@pytest.mark.parametrize("wrong", ["</s>", [1, True], -2, 1.0])
def test_an_end_that_is_not_a_token_id_is_refused(wrong: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(DstoolsError, match=r"config.json: eos_token_id is .*, not token ids"):
        end_ids(tmp_path, load_tokenizer(SAMPLE))
