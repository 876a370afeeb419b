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
from dstools_converters.model.tokenizer import chat_text, load_tokenizer, time_limit

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


def test_messages_are_rendered_by_the_template(folder: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer = loaded(folder, chat_template=template)
    assert chat_text(tokenizer, ASKED) == "<user>Hi"
    assert chat_text(tokenizer, ASKED, add_generation_prompt=True) == "<user>Hi<assistant>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only system') }}", "only system"),
        ("{{ messages[7].content.x }}", ".*"),
        ("{{ messages.__class__.__mro__ }}", ".*"),  # the sandbox
    ],
)
def test_a_template_that_refuses_is_an_error(template: str, reason: str, folder: Path) -> None:
    tokenizer = loaded(folder, chat_template=template)
    with pytest.raises(DstoolsError, match=f"^the chat template refuses the messages: {reason}"):
        chat_text(tokenizer, ASKED)


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
