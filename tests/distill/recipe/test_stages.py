"""The table of stages: every row can be run, and names nothing that is not there."""

import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest

from dstools_distill.recipe.settings import Verify
from dstools_distill.recipe.stages import STAGES, TRAINED, UNREAD, Inputs

PATHS = {"samples": Path("s"), "tokenizer": Path("t")}


@pytest.mark.parametrize("name", STAGES)
def test_the_function_of_every_stage_is_there_and_takes_what_the_pipeline_gives(name: str) -> None:
    run = STAGES[name].load()
    taken = run.__code__.co_varnames[: run.__code__.co_argcount]
    if name == "card":
        assert taken == ("settings", "students", "stages", "work")
    else:
        assert [word.lstrip("_") for word in taken] == ["settings", "inputs", "work"]
    assert run.__annotations__[taken[0]] is STAGES[name].settings


@pytest.mark.parametrize("name", STAGES)
def test_a_row_names_settings_and_inputs_and_packages_that_exist(name: str) -> None:
    row = STAGES[name]
    assert {*row.paths, *row.how} <= {field.name for field in fields(row.settings)}
    assert set(row.reads) <= {field.name for field in fields(Inputs)}
    for package in row.packages:
        assert version(package)


@pytest.mark.parametrize("name", STAGES)
def test_the_help_of_a_stage_fits_a_line_of_a_list(name: str) -> None:
    text = STAGES[name].help
    assert len(text) <= 50
    assert text.endswith(".")


def test_those_that_train_are_these() -> None:
    assert TRAINED == ("sft", "kd", "grpo", "mtp")
    assert [name for name in TRAINED if STAGES[name].trains] == ["sft", "kd", "grpo"]


def test_the_table_is_read_without_any_library_of_a_stage() -> None:
    code = (
        "import sys; import dstools_distill.recipe.stages; "
        "print({'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_inputs_are_named_as_in_manifests_and_what_is_missing_is_left_out() -> None:
    inputs = Inputs(
        **PATHS,
        sources=(None, Path("b")),
        indexes=(Path("i"),),
        models={"after": Path("m")},
        template="qwen3",
    )
    assert inputs.paths() == {
        "source 1": Path("b"),
        "index 0": Path("i"),
        "samples": Path("s"),
        "tokenizer": Path("t"),
        "after": Path("m"),
    }
    assert inputs.rows is UNREAD


def test_of_the_settings_of_a_chain_those_that_a_stage_reads_are_its_own() -> None:
    inputs = Inputs(template="qwen3", init={"a": 1}, judge=Verify(steps=False))
    assert inputs.shared_settings(("rows",)) == {}
    assert inputs.shared_settings(("template", "init")) == {"template": "qwen3", "init": {"a": 1}}
    assert inputs.shared_settings(("judge",))["verify"]["steps"] is False
