"""scripts/engines/cases.py: each case can be written, and its questions fit the model."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest


@pytest.fixture
def script(load_script: Any) -> Any:
    return load_script("engines.cases")


def test_every_format_and_engine_has_a_case_that_runs(script: Any) -> None:
    for engine in get_args(script.Engine):
        assert any(engine not in case.fails_in for case in script.CASES), engine
    assert {case.format for case in script.CASES} == set(get_args(script.Format))
    assert len({str(case) for case in script.CASES}) == len(script.CASES)


def test_a_kept_role_stays_bf16_in_its_layer_alone(script: Any, tmp_path: Path) -> None:
    source = script.make_source("sample", tmp_path)
    assert script.make_source("sample", tmp_path) == source  # once
    case = script.Case("sample", "native", ("kv_b_proj",))
    assert script.quantize(case, source, tmp_path / "out") == ""
    names = script.fp8_weights(tmp_path / "out", mtp=True)
    kv_b = {name for name in names if "kv_b_proj" in name}
    assert {name.split(".")[2] for name in kv_b} == {"0", "2", "3", "4"}
    assert len(names) == 231
    without = script.fp8_weights(tmp_path / "out", mtp=False)
    assert without == {name for name in names if not name.startswith("model.layers.4.")}


def test_the_error_of_quantize_is_returned(script: Any, tmp_path: Path) -> None:
    case = script.Case("sample", "native", ("q_b_proj",), layers="9")
    error = script.quantize(case, script.make_source("sample-as-is", tmp_path), tmp_path / "out")
    assert error.startswith("error: ")
    assert "rule 1" in error


def test_trained_models_are_asked_sums_and_scored_on_their_answers(
    script: Any, tmp_path: Path
) -> None:
    source = script.make_source("sample", tmp_path)
    asked = script.inputs("sample", source, 3)
    assert [len(part) for part in asked] == [3, 3, 3]
    for question, prompt, sequence in zip(*asked, strict=True):
        assert question
        assert 3 < len(prompt) < len(sequence)
        assert sequence[: len(prompt) - 1] == prompt[:-1]


def test_random_models_are_scored_on_ids_of_their_vocabulary(script: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50}))
    questions, prompts, sequences = script.inputs("tiny-llama", tmp_path, 3)
    assert (questions, prompts) == ([], [])
    assert {len(ids) for ids in sequences} == {64}
    assert max(map(max, sequences)) < 50
    assert script.inputs("tiny-llama", tmp_path, 3).sequences == sequences
