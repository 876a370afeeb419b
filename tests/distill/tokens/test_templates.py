"""Prompts are what serving shows; templates that cannot be trained with are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.model import tokenizer as tokenizer_module
from dstools_converters.model.tokenizer import answer_form, end_token_id, prompt_ids, prompt_text
from dstools_distill.recipe.settings import Template
from dstools_distill.tokens.templates import FAMILIES, load_tokenizer

SYSTEM = {"role": "system", "content": "Be brief.\n"}
ASK = {"role": "user", "content": "  What is 12 + 29? \n"}
THOUGHT = {"role": "assistant", "content": "<think>\n12+29=41\n</think>\n\nIt is 41."}
PLAIN = {"role": "assistant", "content": "It is 41."}
CONVERSATIONS = [
    [ASK],
    [SYSTEM, ASK],
    [ASK, PLAIN, ASK],
    [SYSTEM, ASK, THOUGHT, ASK],
    [ASK, THOUGHT, ASK, PLAIN, {"role": "user", "content": "Why? {{ 7 * 7 }} 世界"}],
]
USED = [  # tokenizer, family, the release's own template
    ("qwen2.5", "qwen2.5", "qwen2_5"),
    ("qwen3", "qwen3", "qwen3"),
    ("llama3", "llama3", "llama3"),
    ("deepseek", "r1-distill", "deepseek_r1_distill"),
    ("smollm2", "chatml", ""),  # its own
]


@pytest.fixture
def small(tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """small(chat_template=..., ...): the sample's tokenizer with another tokenizer_config.json."""

    def make(**changes: object) -> Path:
        folder = tmp_path / "small"
        shutil.copytree(tokenizer_folder("sample-v3"), folder)
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


@pytest.mark.parametrize(("name", "family", "release"), USED)
def test_a_family_asks_as_the_release_does(
    name: str, family: str, release: str, tokenizer_of: Any, trl_template: Callable[[str], str]
) -> None:
    ours = tokenizer_of(name, family)
    theirs = trl_template(release) if release else tokenizer_of(name).chat_template
    for messages in CONVERSATIONS:
        wanted = ours.apply_chat_template(
            messages, chat_template=theirs, tokenize=False, add_generation_prompt=True
        )
        assert prompt_text(ours, messages) == wanted


def test_deepseek_v3_asks_as_its_release_does(
    tokenizer_of: Any, trl_template: Callable[[str], str]
) -> None:
    """TRL's deepseekv3.jinja is R1-0528's: it opens the think block and cuts traces of history."""
    ours = tokenizer_of("deepseek", "deepseek-v3")
    for messages in (CONVERSATIONS[0], CONVERSATIONS[1], [SYSTEM, SYSTEM, ASK, PLAIN, ASK]):
        wanted = ours.apply_chat_template(
            messages,
            chat_template=trl_template("deepseekv3"),
            tokenize=False,
            add_generation_prompt=True,
        )
        assert prompt_text(ours, messages) + "<think>\n" == wanted


@pytest.mark.parametrize(("name", "family"), [(name, family) for name, family, _ in USED])
def test_ids_of_a_prompt_are_those_that_serving_makes(
    name: str, family: str, tokenizer_of: Any
) -> None:
    tokenizer = tokenizer_of(name, family)
    for messages in CONVERSATIONS:
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert prompt_ids(tokenizer, messages) == wanted


def test_qwen_prompts_have_the_ids_of_the_release(tokenizer_of: Any) -> None:
    ids = prompt_ids(tokenizer_of("qwen2.5"), [{"role": "user", "content": "Hello"}])
    # <|im_start|> system \n You ... <|im_end|> \n <|im_start|> user \n Hello <|im_end|> \n ...
    assert ids[:3] == [151644, 8948, 198]
    assert ids[-10:] == [198, 151644, 872, 198, 9707, 151645, 198, 151644, 77091, 198]


@pytest.mark.parametrize(
    ("name", "family", "plain", "end"),
    [
        ("qwen2.5", "qwen2.5", "", 151645),
        ("qwen3", "qwen3", "<think>\n\n</think>\n\n", 151645),
        ("llama3", "llama3", "", 4),
        ("deepseek", "r1-distill", "\n</think>\n\n", 1),
        ("deepseek", "deepseek-v3", "", 1),
        ("smollm2", "chatml", "", 2),
        ("sample-v3", "", "", 1),
    ],
)
def test_what_surrounds_an_answer_is_found_by_rendering_the_template(
    name: str, family: str, plain: str, end: int, tokenizer_of: Any
) -> None:
    tokenizer = tokenizer_of(name, family)
    assert answer_form(tokenizer) == (plain, end)
    assert end_token_id(tokenizer) == tokenizer.eos_token_id == end


def test_the_opener_is_put_in_the_prompt_once(tokenizer_of: Any) -> None:
    plain, opening = tokenizer_of("deepseek", "deepseek-v3"), tokenizer_of("deepseek", "r1-distill")
    wanted = plain.encode("<｜begin▁of▁sentence｜><｜User｜>7<｜Assistant｜><think>\n")
    messages = [{"role": "user", "content": "7"}]
    assert prompt_ids(plain, messages, prefill=True) == wanted
    assert prompt_ids(opening, messages, prefill=True) == wanted == prompt_ids(opening, messages)


def test_the_r1_family_keeps_the_trace_of_the_last_answer(
    tokenizer_of: Any, trl_template: Callable[[str], str]
) -> None:
    tokenizer = tokenizer_of("deepseek", "r1-distill")
    text = tokenizer.apply_chat_template([ASK, THOUGHT], tokenize=False)
    assert text.endswith(f"<｜Assistant｜>{THOUGHT['content']}<｜end▁of▁sentence｜>")
    release = trl_template("deepseek_r1_distill")
    cut = tokenizer.apply_chat_template([ASK, THOUGHT], chat_template=release, tokenize=False)
    assert cut.endswith("<｜Assistant｜>\n\nIt is 41.<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_role_that_a_family_does_not_know_is_refused_and_never_left_out(
    family: str, tokenizer_of: Any
) -> None:
    names = {family: name for name, family, _ in USED} | {"deepseek-v3": "deepseek"}
    tokenizer = tokenizer_of(names[family], family)
    with pytest.raises(DstoolsError, match=r"refuses the messages: there is no role tool"):
        prompt_text(tokenizer, [ASK, {"role": "tool", "content": "41"}])


def test_a_family_makes_its_end_token_the_end_of_sequence(small: Callable[..., Path]) -> None:
    folder = small(eos_token="<｜▁pad▁｜>")
    assert load_tokenizer(folder).eos_token == "<｜▁pad▁｜>"
    assert load_tokenizer(folder, "deepseek-v3").eos_token == "<｜end▁of▁sentence｜>"


def test_a_tokenizer_without_a_token_of_the_family_is_refused(small: Callable[..., Path]) -> None:
    with pytest.raises(DstoolsError, match=r"<\|im_start\|> of the template qwen2.5 is not a") as e:
        load_tokenizer(small(), "qwen2.5")
    assert "add the token" in e.value.hint


def test_an_unknown_family_is_refused_with_the_known_ones(small: Callable[..., Path]) -> None:
    assert set(FAMILIES) == {*get_args(Template)} - {""}  # a recipe can name each of them
    with pytest.raises(DstoolsError, match="template 'vicuna' is not known") as error:
        load_tokenizer(small(), "vicuna")
    assert error.value.hint == "use one of qwen2.5, qwen3, llama3, r1-distill, deepseek-v3, chatml"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "the tokenizer has no chat template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes no end token after"),
        (
            "{% for m in messages %}{{ m.content }}</s>{% endfor %}",
            "</s>, which is not a single token",
        ),
        ("{{ messages[0].content }}{{ eos_token }}", "does not write an answer exactly once"),
        ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", "an answer exactly once"),
        ("{{ messages.__class__.__base__ }}", "chat template fails: access to attribute"),
        ("{% for m in messages %}", "chat template fails: Unexpected end of template"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    small: Callable[..., Path], template: str | None, reason: str
) -> None:
    with pytest.raises(DstoolsError, match=reason):
        end_token_id(load_tokenizer(small(chat_template=template)))


def test_a_template_that_loops_for_ever_is_stopped(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "TEMPLATE_SECONDS", 1)
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(DstoolsError, match="the chat template takes more than 1 s"):
        prompt_text(load_tokenizer(small(chat_template=loops)), [ASK])
