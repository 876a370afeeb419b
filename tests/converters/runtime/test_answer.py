"""An answer: text in whole pieces with the <think> of its prompt, tokens, reason and speed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.model.stream import decoded
from dstools_converters.model.tokenizer import load_tokenizer
from dstools_converters.runtime.answer import Answer, Prompt, answer_prompt, read_prompt
from dstools_converters.runtime.decode import Loop, Request
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
BOS, END = 0, 1
WORDS = "Hé 你好, 世界 👩\u200d💻!"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SAMPLE)


@pytest.fixture
def says(toy: Any, tokenizer: Any) -> Callable[..., tuple[Answer, list[str]]]:
    """says(ids, ...): the answer of a model that says these tokens, and the pieces written."""

    def run(
        ids: list[int], max_tokens: int = 100, drafts: int = 0, opening: str = ""
    ) -> tuple[Answer, list[str]]:
        prompt, pool, written = [BOS, 5], Pool(4, 64), list[str]()
        model = toy(pool, lambda tokens: ids[len(tokens) - len(prompt)])
        loop = Loop(model, pool, Sampling(), frozenset({END}), rows=1, drafts=drafts)
        request = Request(0, prompt, max_tokens)
        return answer_prompt(loop, request, opening, tokenizer, written.append), written

    return run


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_what_is_written_is_the_text_of_all_tokens_in_whole_characters(
    drafts: int, says: Callable[..., tuple[Answer, list[str]]], tokenizer: Any
) -> None:
    ids = tokenizer.encode(WORDS, add_special_tokens=False)
    answer, written = says([*ids, END, *ids], drafts=drafts)
    assert answer.ids == [*ids, END]
    assert answer.text == "".join(written) == decoded(tokenizer, ids) == WORDS
    assert not any("\ufffd" in piece for piece in written)
    assert (answer.prompt_ids, answer.reason) == ([BOS, 5], "stop")
    assert (answer.prompt_tokens, answer.tokens) == (2, len(ids) + 1)


def test_the_think_of_the_prompt_is_written_first(
    says: Callable[..., tuple[Answer, list[str]]], tokenizer: Any
) -> None:
    ids = tokenizer.encode("2</think>4", add_special_tokens=False)
    answer, written = says([*ids, END, END], opening="<think>\n")
    assert answer.text == "".join(written) == "<think>\n2</think>4"
    assert written[0] == "<think>\n2"


def test_a_limit_inside_a_character_shows_the_sign_of_the_decoder(
    says: Callable[..., tuple[Answer, list[str]]], tokenizer: Any
) -> None:
    ids = tokenizer.encode("a👩", add_special_tokens=False)
    answer, written = says([*ids, *ids], max_tokens=len(ids) - 1)
    assert answer.reason == "length"
    assert answer.text == "".join(written) == decoded(tokenizer, ids[:-1])
    assert answer.text.startswith("a\ufffd")


@pytest.mark.parametrize("good", [0, 3])
def test_logits_that_are_not_finite_end_it_with_what_was_said_before(
    good: int, says: Callable[..., tuple[Answer, list[str]]], tokenizer: Any
) -> None:
    ids = tokenizer.encode("1+2=3", add_special_tokens=False)[:good]
    answer, written = says([*ids, -1])
    assert (answer.reason, answer.ids) == ("error", ids)
    assert answer.text == "".join(written) == decoded(tokenizer, ids)


@pytest.mark.parametrize("good", [0, 3])
def test_ctrl_c_ends_it_with_what_there_is(good: int, toy: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("a👩!", add_special_tokens=False)
    written = list[str]()

    def interrupted(tokens: list[int]) -> int:
        if len(tokens) - 1 == good:
            raise KeyboardInterrupt
        return int(ids[len(tokens) - 1])

    pool = Pool(4, 64)
    loop = Loop(toy(pool, interrupted), pool, Sampling(), frozenset({END}), rows=1)
    answer = answer_prompt(loop, Request(0, [BOS], 100), "", tokenizer, written.append)
    assert (answer.reason, answer.ids) == ("interrupted", ids[:good])
    assert answer.text == "".join(written) == decoded(tokenizer, ids[:good])
    assert answer.speed.tokens_per_step == (1.0 if good else None)


def test_steps_and_drafts_are_counted_after_the_first_token(
    says: Callable[..., tuple[Answer, list[str]]],
) -> None:
    ids = [5, 6, 7, 8, 9]
    plain, _ = says([*ids, END, END])
    assert (plain.speed.tokens_per_step, plain.speed.drafted) == (1.0, [])
    fast, _ = says([*ids, END, END, END], drafts=1)
    assert fast.ids == plain.ids
    assert fast.speed.tokens_per_step == pytest.approx(5 / 3)  # two, two, and the end
    assert (fast.speed.drafted, fast.speed.kept) == ([3], [3])
    assert 0 < fast.speed.first_seconds < fast.speed.seconds
    single, _ = says([*ids, END], max_tokens=1)
    assert (single.speed.tokens_per_second, single.speed.tokens_per_step) == (None, None)


# ---------------------------------------------------------------------------------------- prompts


def test_a_text_has_the_bos_that_the_tokenizer_adds_once(tiny: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(tiny / name, tmp_path / name)
    settings = json.loads((tiny / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    settings["chat_template"] = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}"
        "{{ eos_token }}{% endif %}{% endfor %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    plain = read_prompt(loaded, "Hi", False)
    assert plain.ids[0] == loaded.bos_token_id
    assert read_prompt(loaded, f"{loaded.bos_token}Hi", False) == plain
    assert read_prompt(loaded, "Hi", True).ids.count(loaded.bos_token_id) == 1


def test_a_think_that_the_prompt_opens_is_the_opening(tokenizer: Any) -> None:
    assert read_prompt(tokenizer, "1 <think>\n", False).opening == "<think>\n"
    assert read_prompt(tokenizer, "<think>1</think> 2", False).opening == ""
    template, tokenizer.chat_template = tokenizer.chat_template, "{{ messages[0].content }}<think>"
    asked = read_prompt(tokenizer, "<think>7", True)
    tokenizer.chat_template = template
    wanted = tokenizer.encode("<think>7<think>", add_special_tokens=False)
    assert asked == Prompt(wanted, "<think>")


def test_chat_without_a_template_is_refused(tokenizer: Any) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, None
    with pytest.raises(DstoolsError, match="has no chat template"):
        read_prompt(tokenizer, "Hi", True)
    tokenizer.chat_template = template


def test_a_missing_template_is_told_with_the_path_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "copy")
    settings = tmp_path / "copy" / "tokenizer_config.json"
    table = json.loads(settings.read_text())
    table.pop("chat_template", None)
    settings.write_text(json.dumps(table))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DstoolsError, match=r"^copy: has no chat template"):
        read_prompt(load_tokenizer(Path("copy")), "Hi", True)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_an_error_of_the_chat_template_names_its_file(name: str, tmp_path: Path) -> None:
    folder, template = tmp_path / "copy", "{% for %}"
    shutil.copytree(SAMPLE, folder)
    if name == "tokenizer_config.json":
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    else:
        (folder / name).write_text(template)
    with pytest.raises(DstoolsError) as error:
        read_prompt(load_tokenizer(folder), "7", chat=True)
    assert str(error.value).startswith(f"{folder / name}: the chat template fails: Expected")
