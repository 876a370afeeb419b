"""The doctor finds what TRL and prepared data would lose, and nothing else.

TRL is the real one. The templates are those of the releases.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens.doctor import (
    Diagnosis,
    conversations,
    diagnose,
    diagnose_prepared,
    text,
)
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.trl_rows import prepare

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
ANSWER = "\n\nThe answer is 41.<｜end▁of▁sentence｜>"
TRACE = "<think>\nWait, 2+9=11, so I write 1 and carry 1.\n</think>"
PROMPT = "<｜begin▁of▁sentence｜><｜User｜>What is 12 + 29?"
LONG = "<｜begin▁of▁sentence｜><｜User｜>12 + 29?"  # the question with a long trace


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
    assert (diagnosis.trainer, diagnosis.how) == ("TRL", "2 conversations run")
    assert texts == [f"{PROMPT}<｜Assistant｜>{ANSWER}", f"{LONG}<｜Assistant｜>{ANSWER}"]
    assert losses(diagnosis) == {"row 1": ["trace-lost"], "row 2": ["trace-lost"]}


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
    assert losses(diagnosis) == {"row 2": ["truncated"]}


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
    assert texts == [f"{PROMPT}<｜Assistant｜>{ANSWER}", f"{LONG}<｜Assistant｜>{ANSWER}"]
    assert losses(diagnosis) == {"row 1": ["trace-lost"], "row 2": ["trace-lost"]}
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


def test_a_template_that_is_not_here_is_refused_and_not_downloaded(
    ask: Any, tmp_path: Path
) -> None:
    diagnosis = ask(chat_template_path="org/name", max_length=32768)
    assert losses(diagnosis) == {str(tmp_path / "config.yaml"): ["refused"]}
    assert "chat_template_path: org/name: no such file or folder" in text(diagnosis)


def test_keys_that_several_trainers_share_do_not_decide_whose_config_it_is(ask: Any) -> None:
    mixture = [{"path": "org/a", "split": "train"}, {"path": "org/b"}]
    diagnosis = ask(datasets=mixture, model_name_or_path="org/name", completion_only_loss=True)
    assert diagnosis.trainer == "TRL"
    assert losses(diagnosis) == {"row 2": ["truncated"]}


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
    assert losses(ask(**config))["row 1"] == ["packing"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"eos_token": "<|im_end|>"}, "The specified `eos_token` ('<|im_end|>') is not found"),
        ({"max_length": "lots"}, "--max-length: invalid int value: 'lots'"),
    ],
)
def test_a_config_that_trl_refuses_is_an_error_that_names_file_and_reason(
    ask: Any, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    diagnosis = ask(**config)
    assert losses(diagnosis) == {str(tmp_path / "config.yaml"): ["refused"]}
    assert words in text(diagnosis)


def test_rows_that_trl_drops_are_missed(ask: Any) -> None:
    """No label of a completion is left within nine tokens, and TRL drops such rows."""
    diagnosis = ask(max_length=9, completion_only_loss=True)
    assert losses(diagnosis) == {"all rows": ["left-out"]}


def test_a_sample_of_the_user_replaces_ours(ask: Any) -> None:
    reply = {"role": "assistant", "content": "<think>\n3*7=21\n</think>\n\n21"}
    row = {"messages": [{"role": "user", "content": "3*7?"}, reply]}
    diagnosis = ask(sample=row, max_length=4096, completion_only_loss=True)
    [case] = diagnosis.cases
    assert case.name == "row 1"
    assert case.trained_on == f"{reply['content']}<｜end▁of▁sentence｜>"
    assert losses(diagnosis) == {}


# ------------------------------------------------------------- labelled configurations of others

CASES = Path(__file__).parents[2] / "cases" / "distill"
LABELLED = [
    (folder, json.loads(line))
    for folder in (CASES / "doctor", CASES / "variants" / "doctor")
    for line in (folder / "expect.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize(
    ("folder", "label"), LABELLED, ids=[f"{f.parent.name}-{c['config']}" for f, c in LABELLED]
)
def test_labelled_configurations_are_judged_as_labelled(
    folder: Path, label: dict[str, Any], tokenizer_folder: Any, trl_template: Any, tmp_path: Path
) -> None:
    served = tokenizer_folder({"r1": "deepseek"}.get(label["tokenizer"], label["tokenizer"]))
    if label["tokenizer"] == "r1":
        served = shutil.copytree(served, tmp_path / "r1")
        (served / "chat_template.jinja").write_text(trl_template("deepseek_r1_distill"))
    sample = folder / label["sample"] if "sample" in label else None
    try:
        diagnosis = diagnose(served, folder / label["config"], sample)
    except DstoolsError:
        assert label.get("refused"), label["kind"]
        return
    codes = {finding.code for finding in diagnosis.findings}
    assert not label.get("refused")
    assert set(label.get("codes", [])) <= codes
    assert not codes & set(label.get("codes_not", []))
    if "errors" in label:
        assert bool(losses(diagnosis)) == label["errors"]


@pytest.mark.parametrize(
    ("config", "command"),
    [
        (
            {"stage": "sft", "template": "qwen3"},
            "llamafactory-cli train {} tokenized_path=prepared",
        ),
        (
            {"base_model": "org/name", "dataset_prepared_path": "made here"},
            "axolotl preprocess {} --dataset-prepared-path prepared",
        ),
        (
            {"base_model": "org/name", "datasets": 7},
            "axolotl preprocess {} --dataset-prepared-path prepared",
        ),
    ],
)
@pytest.mark.parametrize("sample", [None, {"problem": "2+2?"}])
def test_a_trainer_that_is_not_run_gives_the_command_that_prepares_its_data(
    ask: Any, tmp_path: Path, config: dict[str, Any], command: str, sample: dict[str, str] | None
) -> None:
    diagnosis = ask(sample=sample, **config)
    [finding] = diagnosis.findings
    assert (finding.level, finding.code) == ("error", "not-checked")
    prepare, check = finding.hint.split("; ")
    assert prepare == command.format(tmp_path / "config.yaml")
    data = f" --data {tmp_path / 'row.jsonl'}" if sample else ""
    assert check == f"dstools distill doctor {tmp_path / 'tokenizer'} --prepared prepared{data}"
    assert diagnosis.cases == []


def test_a_trainer_that_drops_mtp_layers_is_told_of(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"template": "deepseekr1", "cutoff_len": 32768}))
    diagnosis = diagnose(SAMPLE, config, None)
    assert warnings(diagnosis) == {"mtp-dropped"}
    assert "carries them over" in text(diagnosis)


def test_keys_that_trl_does_not_have_are_named(ask: Any) -> None:
    diagnosis = ask(max_seq_length=32768, assistant_only_los=True, completion_only_loss=True)
    named = {f.where: f.message for f in diagnosis.findings if f.code == "unknown-key"}
    assert list(named) == ["max_seq_length", "assistant_only_los"]
    assert "max_length, which is taken to be meant" in named["max_seq_length"]
    assert losses(diagnosis) == {}


# -------------------------------------------------------------------------------- prepared data


@pytest.fixture(scope="module")
def trl_data(tokenizer_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """trl_data(max_length): the folder that TRL's own prepared data set is saved to."""

    def get(max_length: int) -> Path:
        folder = tmp_path_factory.mktemp("trl") / "saved"
        chats = [[ASK, {"role": "assistant", "content": reply}] for reply in REPLIES]
        config = {"max_length": max_length, "completion_only_loss": True}
        prepare(tokenizer_of("sample-v3"), config, chats).save_to_disk(folder)
        return folder

    return get


ASK = {"role": "user", "content": "What is 12 + 29?"}
REPLIES = ["<think>\n2+9=11\n</think>\n\n41.", "<think>\n1+2=3, so 3+1=4\n</think>\n\n41."]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_data_that_trl_prepares_is_read_and_its_cut_row_found(
    trl_data: Callable[..., Path],
) -> None:
    intact = diagnose_prepared(SAMPLE, trl_data(64), None)
    assert losses(intact) == {}
    assert intact.how == "2 conversations read"
    assert intact.cases[0].trained_on == f"{REPLIES[0]}<｜end▁of▁sentence｜>"
    lengths = [case.tokens for case in intact.cases]
    cut = diagnose_prepared(SAMPLE, trl_data(min(lengths)), None)
    assert losses(cut) == {
        f"row {n + 1}": ["truncated"] for n in (0, 1) if lengths[n] > min(lengths)
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def encoded(tokenizer_of: Any) -> Callable[..., dict[str, Any]]:
    """encoded(prompt, target): a row, of which the target is trained on."""

    def make(prompt: str, target: str) -> dict[str, Any]:
        parts = [
            tokenizer_of("sample-v3").encode(part, add_special_tokens=False)
            for part in (prompt, target)
        ]
        return {"input_ids": [*parts[0], *parts[1]], "labels": [-100] * len(parts[0]) + parts[1]}

    return make


def test_rows_of_another_tokenizer_are_called_that_and_nothing_else(
    tokenizer_of: Any, tokenizer_folder: Any, tmp_path: Path
) -> None:
    ids = tokenizer_of("smollm2").encode("<|im_start|>user\n3*7?<|im_end|>\n<think>7*3</think>")
    prepared = write(tmp_path / "p.jsonl", [{"input_ids": ids, "labels": ids}])
    diagnosis = diagnose_prepared(tokenizer_folder("qwen3"), prepared, None)
    assert [(each.code, each.where) for each in diagnosis.findings] == [("tokenizer", "all rows")]


def test_rows_of_our_own_are_not_for_a_trainer_that_drops_mtp_layers(
    encoded: Any, tmp_path: Path
) -> None:
    table = pa.Table.from_pylist([encoded(f"{PROMPT}<｜Assistant｜>", TRACE + ANSWER)])
    for name, codes in (("rows.arrow", set()), ("other.arrow", {"mtp-dropped"})):
        with (
            pa.OSFile(str(tmp_path / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        assert warnings(diagnose_prepared(SAMPLE, tmp_path / name, None)) == codes


def test_source_rows_tell_of_lost_traces_and_rows(encoded: Any, tmp_path: Path) -> None:
    prepared = write(tmp_path / "p.jsonl", [encoded(f"{PROMPT}<｜Assistant｜>", ANSWER)])
    reply = {"role": "assistant", "content": TRACE + ANSWER.split("<｜")[0]}
    other = {"role": "user", "content": "3*7?"}
    data = write(tmp_path / "d.jsonl", [{"messages": [ASK, reply]}, {"messages": [other, reply]}])
    assert losses(diagnose_prepared(SAMPLE, prepared, data)) == {
        "row 1": ["trace-lost"],
        "data": ["left-out"],
    }


PREPARED = CASES / "prepared"


def left_out(diagnosis: Diagnosis) -> list[str]:
    return [each.message for each in diagnosis.findings if each.code == "left-out"]


def test_rows_that_a_trainer_left_out_are_counted(tokenizer_folder: Any) -> None:
    """Rows 9 and 11 were longer than sequence_len."""
    data = PREPARED / "rows" / "messages.jsonl"
    diagnosis = diagnose_prepared(tokenizer_folder("smollm2"), PREPARED / "axolotl-drop", data)
    assert losses(diagnosis) == {"data": ["left-out"]}
    assert "2 of its 13 conversations are in no row" in text(diagnosis)


def test_a_row_that_is_deleted_from_an_intact_data_set_is_missed(
    tokenizer_folder: Any, tmp_path: Path
) -> None:
    served, data = tokenizer_folder("smollm2"), PREPARED / "rows" / "messages.jsonl"
    [made] = (PREPARED / "axolotl-intact" / "prepared").glob("*/state.json")
    whole = datasets.load_from_disk(made.parent)
    assert left_out(diagnose_prepared(served, made.parent, data)) == []
    whole.select([n for n in range(len(whole)) if n != 4]).save_to_disk(tmp_path / "less")
    deleted = load_tokenizer(served).decode(whole[4]["input_ids"])
    [message] = left_out(diagnose_prepared(served, tmp_path / "less", data))
    assert message.startswith("1 of its 13 conversations are in no row, e.g. ")
    assert message.partition("e.g. '")[2][:-1] in deleted


def test_cut_rows_are_not_left_out_too(tokenizer_folder: Any) -> None:
    """Some have lost their question's end, so nothing tells which conversations they were.

    Of one the end token alone is cut, as if a trainer had left it out.
    """
    data = PREPARED / "rows" / "messages.jsonl"
    diagnosis = diagnose_prepared(tokenizer_folder("smollm2"), PREPARED / "llamafactory-cut", data)
    codes = {code for codes in losses(diagnosis).values() for code in codes}
    assert codes == {"truncated", "end-missing"}


@pytest.mark.parametrize(
    ("asked", "trace", "lost"),
    [
        ("What is 12 + 29?", "<think>\n12+29=41\n</think>", {}),
        ("12 + 30?", TRACE, {"data": ["left-out"]}),  # another question, and the same answer
    ],
)
def test_data_of_other_traces_or_other_questions_is_told(
    encoded: Any, tmp_path: Path, asked: str, trace: str, lost: dict[str, list[str]]
) -> None:
    row = encoded(f"{PROMPT}<｜Assistant｜>", TRACE + ANSWER)
    reply = {"role": "assistant", "content": f"{trace}\n\nThe answer is 41."}
    chat = {"messages": [{"role": "user", "content": asked}, reply]}
    prepared, data = write(tmp_path / "p.jsonl", [row]), write(tmp_path / "d.jsonl", [chat])
    diagnosis = diagnose_prepared(SAMPLE, prepared, data)
    assert losses(diagnosis) == lost
    assert warnings(diagnosis) == {"not-in-data", "mtp-dropped"}


def test_data_of_a_part_of_a_mix_is_no_loss_and_rows_that_are_not_of_it_are_counted(
    encoded: Any, tmp_path: Path
) -> None:
    """Ten of twelve rows are of another file. A conversation in no row is missed all the same."""
    reply = {"role": "assistant", "content": f"{TRACE}\n\nThe answer is 41."}
    start, end = "<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜>"
    rows = [encoded(f"{start}{n} + 29?{end}", TRACE + ANSWER) for n in range(12)]
    chats = [{"messages": [{"role": "user", "content": f"{n} + 29?"}, reply]} for n in (10, 11, 12)]
    prepared = write(tmp_path / "p.jsonl", rows)
    whole, lacking = (write(tmp_path / f"{n}.jsonl", chats[:n]) for n in (2, 3))
    diagnosis = diagnose_prepared(SAMPLE, prepared, whole)
    assert losses(diagnosis) == {}
    assert "row 1: no row of the data has its question and answer (and 9 more, e.g. row 2" in text(
        diagnosis
    )
    assert left_out(diagnose_prepared(SAMPLE, prepared, lacking)) == [
        "1 of its 3 conversations are in no row, e.g. '12 + 29?'"
    ]
    cut = [{key: values[:9] for key, values in row.items()} for row in rows]
    diagnosis = diagnose_prepared(SAMPLE, write(tmp_path / "c.jsonl", cut), whole)
    assert "not-in-data" in warnings(diagnosis)
    assert left_out(diagnosis) == []


def test_a_warning_of_packing_does_not_hide_that_conversations_are_left_out(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave_one_out(tokenizer: Any, config: Any, chats: list[Any]) -> Any:
        return prepare(tokenizer, config, chats[1:])

    monkeypatch.setattr("dstools_distill.tokens.trl_rows.prepare", leave_one_out)
    diagnosis = ask(packing=True, max_length=32768)
    assert losses(diagnosis) == {"data": ["left-out"]}
    assert "packing-attention" in warnings(diagnosis)


def test_a_data_set_without_rows_is_an_error(tmp_path: Path) -> None:
    diagnosis = diagnose_prepared(SAMPLE, write(tmp_path / "p.jsonl", []), None)
    assert losses(diagnosis) == {"all rows": ["left-out"]}


def test_a_row_is_compared_with_the_answer_it_has_where_several_share_a_question(
    encoded: Any, tmp_path: Path
) -> None:
    replies = [TRACE + "\n\nThe answer is 41.", "<think>\n9+2=11\n</think>\n\n41"]
    rows = [encoded(f"{PROMPT}<｜Assistant｜>", f"{r}<｜end▁of▁sentence｜>") for r in replies]
    chats = [{"messages": [ASK, {"role": "assistant", "content": r}]} for r in replies]
    prepared, data = write(tmp_path / "p.jsonl", rows), write(tmp_path / "d.jsonl", chats)
    assert losses(diagnose_prepared(SAMPLE, prepared, data)) == {}


def test_source_rows_that_hold_no_conversation_are_counted(encoded: Any, tmp_path: Path) -> None:
    row = encoded(f"{PROMPT}<｜Assistant｜>", TRACE + ANSWER)
    reply = {"role": "assistant", "content": TRACE + ANSWER.split("<｜")[0]}
    chats = [{"colour": "blue"}, {"messages": [ASK, reply]}, {"problem": "2+2?", "answer": "4"}]
    prepared, data = write(tmp_path / "p.jsonl", [row]), write(tmp_path / "d.jsonl", chats)
    diagnosis = diagnose_prepared(SAMPLE, prepared, data)
    assert losses(diagnosis) == {}
    assert notes(diagnosis) == [str(data)]
    assert "no question with an answer in 2 rows, e.g. " in text(diagnosis)
    assert "d.jsonl: line 1: has none of the keys" in text(diagnosis)


def test_a_source_row_with_a_doubtful_gold_is_still_one_that_data_is_made_from(
    tmp_path: Path,
) -> None:
    row = {"problem": "1+1", "answer": "2", "gold": "7", "solution": r"\boxed{3}"}
    row |= {"response": f"{TRACE}2"}
    chats, findings = conversations(write(tmp_path / "d.jsonl", [row]))
    assert [chat[-1]["content"] for chat in chats] == [f"{TRACE}2"]
    assert findings == []


def test_without_source_rows_data_with_no_trace_at_all_is_an_error(
    encoded: Any, tmp_path: Path
) -> None:
    plain = encoded(f"{PROMPT}<｜Assistant｜>", ANSWER)
    whole = encoded(f"{PROMPT}<｜Assistant｜>", TRACE + ANSWER)
    assert losses(diagnose_prepared(SAMPLE, write(tmp_path / "a.jsonl", [plain]), None)) == {
        "row 1": ["trace-lost"]
    }
    mixed = diagnose_prepared(SAMPLE, write(tmp_path / "b.jsonl", [plain, whole]), None)
    assert losses(mixed) == {}
    assert warnings(mixed) == {"no-trace", "mtp-dropped"}


def test_padding_with_labels_is_an_error_and_padding_without_is_none(
    encoded: Any, tmp_path: Path
) -> None:
    row = encoded(f"{PROMPT}<｜Assistant｜>", TRACE + ANSWER)
    row["attention_mask"] = [1] * len(row["labels"]) + [0, 0]
    row["input_ids"] += [1, 1]
    for label, found in ((-100, {}), (1, {"row 1": ["padding-trained"]})):
        path = write(tmp_path / "p.jsonl", [row | {"labels": [*row["labels"], label, label]}])
        assert losses(diagnose_prepared(SAMPLE, path, None)) == found


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", 'is not valid YAML: .* in ".*/config.yaml", line 1, column 5'),
        ("lr: 1\nmax_length: 9\nmax_length: 8", "max_length is given twice.* line 3, column 1"),
        ("datasets:\n- path: a\n  path: b", "path is given twice.* in .*, line 3, column 3"),
        ("a: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        ("a: !!bool x", "is not valid YAML: 'x'"),
        ("a: !!timestamp x", "is not valid YAML: "),
        ("- 1", "is not a mapping"),
        (
            "colour: blue",
            "is not a configuration of LLaMA-Factory, axolotl, TRL, by its keys colour",
        ),
        ("micro_batch_size: 1\ndatasets: [{path: a}]", "is not a configuration of LLaMA-Factory"),
        (
            "model_name: a\nmax_seq_length: 9\nload_in_4bit: true\nr: 16\ndataset: b",
            "is not a configuration of .*, by its keys model_name, ",
        ),
        ("max_length: 9\ncenter_rewards_coefficient: 0.1", "has center_rewards_coefficient: 0.1"),
        ("model_name_or_path: a\nbeta: 0.1", "has beta: 0.1, so it is not of supervised"),
        ("model_name_or_path: a\ndesirable_weight: 2", "has desirable_weight: 2"),
        ("model_name_or_path: a\nnum_generations: 4", "has num_generations: 4"),
        ("stage: rm\ntemplate: qwen3", "has stage: rm, so it is not of supervised fine-tuning"),
        ("base_model: a\nrl: kto", "has rl: kto"),
        ("base_model: a\npretraining_dataset: [{path: b}]", "has pretraining_dataset: "),
        ("base_model: a\ndatasets: [{path: b, type: completion}]", "has type: completion"),
        ("base_model: a\nreward_model: true", "has reward_model: True"),
        ("model_name_or_path: a\nreward_funcs: [length]", "has reward_funcs: "),
    ],
)
def test_a_file_that_is_not_the_config_of_a_known_trainer_is_refused(
    tokenizer_folder: Any, tmp_path: Path, content: str, reason: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    with pytest.raises(DstoolsError, match=reason):
        diagnose(tokenizer_folder("sample-v3"), config, None)


def test_a_recipe_is_no_config_of_a_trainer(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"a\.toml: is TOML") as error:
        diagnose(SAMPLE, tmp_path / "a.toml", None)
    assert "dstools distill check" in error.value.hint


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"colour": "blue"}, "no question with an answer in 1 row, e.g. .*: line 1: has none of"),
        ({"problem": "2+2?", "answer": "4"}, "no question with an answer in 1 row$"),
    ],
)
def test_data_without_an_answer_is_refused(ask: Any, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DstoolsError, match=reason):
        ask(sample=row, max_length=9)
