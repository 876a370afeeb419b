"""The doctor finds what TRL, LLaMA-Factory and axolotl would lose, and nothing else.

TRL is the real one. The tokenizers are small; the templates are those of the releases.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens.doctor import Diagnosis, diagnose, text

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
ANSWER = "\n\nThe answer is 41.<｜end▁of▁sentence｜>"
TRACE = "<think>\nWait, 2+9=11, so I write 1 and carry 1.\n</think>"
PROMPT = "<｜begin▁of▁sentence｜><｜User｜>What is 12 + 29?"


@pytest.fixture
def ask(
    tokenizer_folder: Callable[[str], Path], trl_template: Callable[[str], str], tmp_path: Path
) -> Callable[..., Diagnosis]:
    """ask(jinja, sample=..., **config): the diagnosis with the sample's tokenizer."""

    def start(
        jinja: str = "", /, *, sample: dict[str, Any] | None = None, **config: object
    ) -> Diagnosis:
        folder = tmp_path / "tokenizer"
        shutil.copytree(tokenizer_folder("sample-v3"), folder)
        (folder / "config.json").unlink()
        if jinja:
            file = folder / "tokenizer_config.json"
            changed = json.loads(file.read_text()) | {"chat_template": trl_template(jinja)}
            file.write_text(json.dumps(changed))
        settings, row = tmp_path / "config.yaml", tmp_path / "row.jsonl"
        settings.write_text(json.dumps(config))
        row.write_text(json.dumps(sample))
        return diagnose(folder, settings if config else None, row if sample else None)

    return start


def losses(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Return the codes of errors, by case."""
    cases: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        if finding.level == "error":
            cases.setdefault(finding.where, []).append(finding.code)
    return cases


def warnings(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.level == "warning"}


def notes(diagnosis: Diagnosis) -> list[str]:
    """Return the keys that were ignored."""
    assert {finding.code for finding in diagnosis.findings if finding.level == "note"} <= {
        "not-read"
    }
    return [finding.where for finding in diagnosis.findings if finding.level == "note"]


# --------------------------------------- TRL 1.16: the table in section 3 of the design, row by row


def test_trl_drops_the_trace_by_default_with_the_r1_template(ask: Any) -> None:
    diagnosis = ask("deepseek_r1_distill")
    texts = [case.trained_on for case in diagnosis.cases]
    assert (diagnosis.trainer, diagnosis.how) == ("TRL", "run, up to its batches")
    assert texts == [f"{PROMPT}<｜Assistant｜>{ANSWER}"] * 2 + [ANSWER] * 2
    assert losses(diagnosis) == {case.name: ["trace-lost"] for case in diagnosis.cases}
    assert [case.name for case in diagnosis.cases] == [
        "as messages, a short trace",
        "as messages, a long trace",
        "as prompt-completion, a short trace",
        "as prompt-completion, a long trace",
    ]


def test_trl_keeps_the_trace_with_assistant_only_loss_and_the_r1_template(ask: Any) -> None:
    diagnosis = ask("deepseek_r1_distill", assistant_only_loss=True, max_length=32768)
    assert diagnosis.cases[0].trained_on == f"<｜Assistant｜>{TRACE}{ANSWER}"
    assert losses(diagnosis) == {}
    assert "nothing would be lost" in text(diagnosis)


def test_trl_drops_the_trace_with_assistant_only_loss_and_the_v3_template(ask: Any) -> None:
    diagnosis = ask("deepseekv3", assistant_only_loss=True, max_length=32768)
    assert [case.trained_on for case in diagnosis.cases] == [f"<｜Assistant｜>{ANSWER}"] * 2
    assert losses(diagnosis) == {case.name: ["trace-lost"] for case in diagnosis.cases}


def test_trl_cuts_a_long_trace_by_default(ask: Any) -> None:
    diagnosis = ask("deepseek_r1_distill", assistant_only_loss=True)
    assert diagnosis.cases[1].tokens == 1024
    assert losses(diagnosis) == {"as messages, a long trace": ["truncated", "end-missing"]}


@pytest.mark.parametrize("kind", ["inline", "file", "folder"])
def test_the_template_that_a_config_puts_in_is_the_one_that_is_trained_on_and_served(
    ask: Any, trl_template: Any, tmp_path: Path, kind: str
) -> None:
    """The sample's own template keeps the trace; R1's in its place drops it and opens <think>."""
    template = trl_template("deepseek_r1_distill")
    file, folder = tmp_path / "r1.jinja", tmp_path / "r1"
    file.write_text(template)
    shutil.copytree(SAMPLE, folder)
    own = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(own | {"chat_template": template}))
    config = {
        "inline": {"chat_template": template},  # open-r1's key
        "file": {"chat_template_path": str(file)},
        "folder": {"chat_template_path": str(folder)},
    }[kind]
    diagnosis = ask(max_length=32768, assistant_only_loss=False, **config)
    texts = [case.trained_on for case in diagnosis.cases]
    assert texts == [f"{PROMPT}<｜Assistant｜>{ANSWER}"] * 2 + [ANSWER] * 2
    assert losses(diagnosis) == {case.name: ["trace-lost"] for case in diagnosis.cases}
    assert notes(diagnosis) == []


def test_a_tokenizer_without_a_template_takes_that_of_the_config(
    tokenizer_folder: Any, trl_template: Any, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    template = {"chat_template": trl_template("deepseek_r1_distill")}
    options = {"assistant_only_loss": True, "max_length": 32768}
    config.write_text(json.dumps(options | template))
    diagnosis = diagnose(tokenizer_folder("deepseek"), config, None)
    assert losses(diagnosis) == {}
    assert diagnosis.cases[0].trained_on == f"<｜Assistant｜>{TRACE}{ANSWER}"


def test_a_template_that_is_not_here_is_refused_and_not_downloaded(ask: Any) -> None:
    diagnosis = ask(chat_template_path="org/name", max_length=32768)
    assert losses(diagnosis) == {"as messages": ["refused"], "as prompt-completion": ["refused"]}
    assert "chat_template_path: org/name: no such file or folder" in text(diagnosis)


def test_keys_that_several_trainers_share_do_not_decide_whose_config_it_is(ask: Any) -> None:
    mixture = [{"path": "org/a", "split": "train"}, {"path": "org/b"}]
    diagnosis = ask(datasets=mixture, model_name_or_path="org/name", completion_only_loss=True)
    assert diagnosis.trainer == "TRL"
    assert losses(diagnosis) == {"as prompt-completion, a long trace": ["truncated", "end-missing"]}


def test_keys_that_may_change_the_result_but_are_ignored_are_noted(ask: Any) -> None:
    config = {"max_length": 32768, "completion_only_loss": True, "learning_rate": 1e-5}
    diagnosis = ask(**config, padding_free=True, dataset_kwargs={"skip_prepare_dataset": True})
    assert notes(diagnosis) == ["dataset_kwargs", "padding_free"]
    assert "note: padding_free: affects ids, masks or length, and is ignored here" in text(
        diagnosis
    )
    assert losses(diagnosis) == {}


def test_wrapped_packing_is_an_error(ask: Any) -> None:
    config = {"packing": True, "packing_strategy": "wrapped", "max_length": 32768}
    assert losses(ask(**config)) == {"packing_strategy": ["packing"]}


def test_a_config_that_trl_refuses_is_an_error_with_its_words(ask: Any) -> None:
    diagnosis = ask(max_length=32768, eos_token="<|im_end|>")
    assert losses(diagnosis) == {"as messages": ["refused"], "as prompt-completion": ["refused"]}
    assert "The specified `eos_token` ('<|im_end|>') is not found" in text(diagnosis)


def test_a_sample_of_the_user_replaces_ours(ask: Any) -> None:
    reply = {"role": "assistant", "content": "<think>\n3*7=21\n</think>\n\n21"}
    row = {"messages": [{"role": "user", "content": "3*7?"}, reply]}
    diagnosis = ask(sample=row, max_length=4096, completion_only_loss=True)
    [case] = diagnosis.cases
    assert case.name == "as prompt-completion, the first row"
    assert case.trained_on == f"{reply['content']}<｜end▁of▁sentence｜>"
    assert losses(diagnosis) == {}


# ------------------------------------------------------------------------------- LLaMA-Factory


def test_llama_factory_cuts_at_2048_and_keeps_the_trace(ask: Any) -> None:
    diagnosis = ask(template="deepseek3", stage="sft")
    assert diagnosis.how == "derived from its source, not run"
    assert diagnosis.cases[0].trained_on == TRACE + ANSWER
    assert diagnosis.cases[1].tokens == 2048
    assert losses(diagnosis) == {"a long trace": ["truncated", "end-missing"]}
    assert warnings(diagnosis) == set()


@pytest.mark.parametrize(
    ("config", "lost", "warned"),
    [
        ({}, [], set()),
        ({"train_on_prompt": True}, [], {"prompt-trained"}),
        ({"enable_thinking": False}, ["trace-lost"], set()),
        ({"packing": True}, ["packing"], set()),
        ({"packing": True, "neat_packing": True}, [], set()),
    ],
)
def test_settings_of_llama_factory(
    ask: Any, config: dict[str, Any], lost: list[str], warned: set[str]
) -> None:
    diagnosis = ask(template="deepseekr1", cutoff_len=32768, **config)
    assert sorted({code for codes in losses(diagnosis).values() for code in codes}) == lost
    assert warnings(diagnosis) == warned


def test_llama_factory_trains_on_the_opener_that_serving_shows(ask: Any) -> None:
    diagnosis = ask("deepseek_r1_distill", template="deepseekr1", cutoff_len=32768)
    assert losses(diagnosis) == {}
    assert warnings(diagnosis) == {"prompt-trained"}


def test_a_trainer_that_drops_mtp_layers_is_told_of(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"template": "deepseekr1", "cutoff_len": 32768}))
    diagnosis = diagnose(SAMPLE, config, None)
    assert warnings(diagnosis) == {"mtp-dropped"}
    assert "carries them over" in text(diagnosis)


# -------------------------------------------------------------------------------------- axolotl


def test_axolotl_trains_on_trace_and_end_and_leaves_long_rows_out(ask: Any) -> None:
    diagnosis = ask(base_model="org/name", sequence_len=2048)
    assert diagnosis.trainer == "axolotl"
    assert diagnosis.cases[0].trained_on == TRACE + ANSWER
    assert diagnosis.cases[1].tokens == 0
    assert losses(diagnosis) == {}
    assert warnings(diagnosis) == {"left-out"}


@pytest.mark.parametrize(
    ("template", "config", "lost"),
    [
        ("", {"excess_length_strategy": "truncate"}, {"truncated", "end-missing"}),
        ("", {"datasets": [{"train_on_eos": "none"}]}, {"end-missing"}),
        ("", {"datasets": [{"train_on_eos": "none", "train_on_eot": "turn"}]}, set()),
        ("", {"datasets": [{"train_on_eos": "last"}]}, set()),
        ("", {"datasets": [{"roles_to_train": ["gpt"]}]}, set()),
        ("", {"datasets": [{"roles_to_train": ["user"]}]}, {"end-missing", "trace-lost"}),
        ("", {"datasets": [{"roles_to_train": []}]}, {"no-labels"}),
        (
            "",
            {"eot_tokens": ["<｜User｜>"], "datasets": [{"train_on_eos": "none"}]},
            {"end-missing"},
        ),
        ("", {"sample_packing": True, "flash_attention": False}, {"packing"}),
        ("deepseek_r1_distill", {}, {"trace-lost"}),
    ],
)
def test_settings_of_axolotl(
    ask: Any, template: str, config: dict[str, Any], lost: set[str]
) -> None:
    diagnosis = ask(template, base_model="org/name", **config)
    assert {code for codes in losses(diagnosis).values() for code in codes} == lost


def test_axolotl_reads_masks_from_entries_of_datasets_and_not_from_the_top(ask: Any) -> None:
    """At the top they are ignored, with a warning; an entry of another type is left out."""
    entries = [{"type": "chat_template"}, {"type": "alpaca"}, {"train_on_eos": "none"}]
    top = {"train_on_eos": "none", "roles_to_train": ["user"]}
    diagnosis = ask(base_model="org/name", sequence_len=32768, datasets=entries, **top)
    assert {case.name: case.trained_on for case in diagnosis.cases if "short" in case.name} == {
        "as datasets[0], a short trace": TRACE + ANSWER,
        "as datasets[2], a short trace": TRACE + ANSWER.removesuffix("<｜end▁of▁sentence｜>"),
    }
    assert losses(diagnosis) == {
        f"as datasets[2], a {n} trace": ["end-missing"] for n in ("short", "long")
    }
    assert notes(diagnosis) == ["datasets[1].type"]
    moved = [finding.where for finding in diagnosis.findings if finding.code == "misplaced"]
    assert moved == ["roles_to_train", "train_on_eos"]


def test_axolotl_trains_with_the_template_of_an_entry_and_serves_that_of_the_top(
    ask: Any, trl_template: Any, tmp_path: Path
) -> None:
    file = tmp_path / "r1.jinja"
    file.write_text(trl_template("deepseek_r1_distill"))
    jinja = {"chat_template": "jinja", "chat_template_jinja": str(file)}
    entries = [{}, jinja, {"chat_template": "tokenizer_default"}]
    diagnosis = ask(base_model="org/name", sequence_len=32768, datasets=entries)
    texts = {case.name: case.trained_on for case in diagnosis.cases if "short" in case.name}
    assert texts["as datasets[0], a short trace"] == TRACE + ANSWER
    assert "trace-lost" in losses(diagnosis)["as datasets[1], a short trace"]
    assert "as datasets[0], a short trace" not in losses(diagnosis)
    assert all(case.tokens > 0 for case in diagnosis.cases)  # the length at the top holds for all


def test_a_template_written_into_the_config_is_axolotls_too(ask: Any, trl_template: Any) -> None:
    diagnosis = ask(base_model="org/name", chat_template_jinja=trl_template("deepseek_r1_distill"))
    assert "trace-lost" in losses(diagnosis)["a short trace"]


def test_axolotl_leaves_out_rows_over_512_tokens_unless_a_length_is_set(ask: Any) -> None:
    diagnosis = ask(base_model="org/name")
    assert [case.tokens > 0 for case in diagnosis.cases] == [True, False]


def test_ignored_keys_of_axolotl_are_noted_with_their_entry(ask: Any) -> None:
    entries = [{"path": "org/a", "split_thinking": True}]
    diagnosis = ask(base_model="org/name", special_tokens={"pad_token": "a"}, datasets=entries)
    assert notes(diagnosis) == ["special_tokens", "datasets[0].split_thinking"]


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not valid YAML: "),
        ("- 1", "is not a mapping"),
        ("colour: blue", "has no key of LLaMA-Factory, axolotl, TRL"),
        ("template: vicuna", "vicuna of LLaMA-Factory is not known here"),
        ("base_model: a\nchat_template: gemma", "gemma of axolotl is not known here"),
        (
            "base_model: a\nchat_template_jinja: none.jinja",
            "chat_template_jinja: none.jinja: No such",
        ),
        (
            "base_model: a\ndatasets: [{type: alpaca}]",
            "datasets: type alpaca of axolotl is not known",
        ),
        ("base_model: a\ndatasets: org/name", "datasets: is not a list"),
        ("base_model: a\ndatasets: [org/name]", "datasets: an entry is not a mapping"),
        ("micro_batch_size: 1\ndatasets: [{path: a}]", "has no key of LLaMA-Factory, axolotl, TRL"),
    ],
)
def test_a_file_that_is_not_the_config_of_a_known_trainer_is_refused(
    tokenizer_folder: Any, tmp_path: Path, content: str, reason: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    with pytest.raises(DstoolsError, match=reason):
        diagnose(tokenizer_folder("sample-v3"), config, None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"colour": "blue"}, "the first row: "),
        ({"problem": "2+2?", "answer": "4"}, "has no answer with one think block"),
    ],
)
def test_a_sample_without_a_trace_is_refused(ask: Any, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DstoolsError, match=reason):
        ask(sample=row, cutoff_len=1)
