"""What each stage reads, where it comes from, and the identity that follows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.inputs import gather, identity_of, read_from
from dstools_distill.places import PendingError, Places
from dstools_distill.recipe.recipe import read_recipe
from dstools_distill.recipe.settings import Verify
from dstools_distill.recipe.stages import STAGES, Inputs
from dstools_distill.store.stage import Identity

Finish = Callable[..., Path]
RECIPE = """
[student]
model = "student"
template = "qwen3"
[[prompts.source]]
path = "asked.jsonl"
[[prompts.source]]
path = "rg:chain_sum"
[generate]
backend = "hf"
model = "teacher"
[verify]
steps = false
[decontaminate]
index = ["bench.ngrams"]
[select]
non_reasoning = "chat.jsonl"
[render]
[sft]
[kd]
teacher = "teacher"
[grpo]
[mtp]
[[eval.source]]
path = "exam.jsonl"
"""


class Made:
    """In the place of the stages that are run for evaluations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def __call__(self, identity: Identity, _body: Any) -> Path:
        self.names.append(identity.stage)
        made = self.folder / identity.stage
        made.mkdir(exist_ok=True)
        (made / "eval.ngrams").write_text("")
        return made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def read(tmp_path: Path, text: str = RECIPE) -> Places:
    for name in ("asked.jsonl", "exam.jsonl", "bench.ngrams", "chat.jsonl"):
        (tmp_path / name).write_text(name)
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "a.toml").write_text(text)
    return Places(read_recipe(tmp_path / "a.toml"), tmp_path / "out", lambda name: Path(name))


def test_each_stage_gets_what_its_row_names(tmp_path: Path, made: Made, finish: Finish) -> None:
    places = read(tmp_path)
    (chain,) = places.recipe.chains
    folders = {name: finish(name) for name in chain.stages}
    student, teacher, bench = (tmp_path / name for name in ("student", "teacher", "bench.ngrams"))
    of_eval = {"tokenizer": student, "template": "qwen3"}
    kept_out = {"indexes": (bench, tmp_path / "index" / "eval.ngrams")}
    asked = {"prompts": folders["prompts"]}
    wanted: dict[str, dict[str, Any]] = {
        "prompts": {"sources": (tmp_path / "asked.jsonl", None)},
        "generate": asked | {"model": teacher},
        "verify": {"samples": folders["generate"]},
        "decontaminate": {"samples": folders["verify"]} | kept_out,
        "select": {"samples": folders["decontaminate"], "mixed": tmp_path / "chat.jsonl"}
        | kept_out,
        "render": {"samples": folders["select"]} | of_eval,
        "sft": {"rows": folders["render"], "model": student} | of_eval,
        "kd": asked | {"model": folders["sft"], "teacher": teacher} | of_eval | kept_out,
        "grpo": asked | {"model": folders["kd"], "judge": Verify(steps=False)} | of_eval | kept_out,
        "mtp": {"rows": folders["render"], "model": folders["grpo"]},
        "eval": {
            "problems": tmp_path / "prompts",
            "models": {"before": student, "after": folders["mtp"]},
            "judge": Verify(steps=False),
        }
        | of_eval,
    }
    assert list(wanted) == [name for name in STAGES if name != "card"]
    for stage, fields in wanted.items():
        assert gather(places, chain, stage, made) == Inputs(**fields), stage


def test_indexes_are_made_only_for_stages_that_read_them(
    tmp_path: Path, made: Made, finish: Finish
) -> None:
    places = read(tmp_path, RECIPE.replace('non_reasoning = "chat.jsonl"', ""))
    (chain,) = places.recipe.chains
    finish("decontaminate")
    assert gather(places, chain, "select", made).indexes == ()
    assert made.names == []
    finish("verify")
    gather(places, chain, "decontaminate", made)
    assert made.names == ["prompts", "index"]


@pytest.mark.parametrize(
    ("backend", "model"), [("hf", "teacher"), ("replay", "samples.jsonl"), ("openai", None)]
)
def test_a_teacher_is_a_folder_or_a_file_or_a_name_elsewhere(
    tmp_path: Path, made: Made, finish: Finish, backend: str, model: str | None
) -> None:
    text = f'[[prompts.source]]\npath = "asked.jsonl"\n[generate]\nbackend = "{backend}"\n'
    places = read(tmp_path, f'{text}model = "{model or "gpt"}"\n')
    finish("prompts")
    inputs = gather(places, places.recipe.chains[0], "generate", made)
    assert inputs.model == (tmp_path / model if model else None)


def test_an_evaluation_without_any_model_is_refused(tmp_path: Path, made: Made) -> None:
    text = '[student]\ninit = { model_type = "qwen3" }\ntokenizer = "student"\n'
    places = read(tmp_path, text + '[[eval.source]]\npath = "exam.jsonl"\n')
    with pytest.raises(DstoolsError, match="eval has no model") as caught:
        gather(places, places.recipe.chains[0], "eval", made)
    assert "eval.baseline = true" in caught.value.hint


def test_what_is_wrong_counts_before_what_is_pending(tmp_path: Path, finish: Finish) -> None:
    def pending(identity: Identity, _body: Any) -> Path:
        raise PendingError(identity.name)

    places = read(tmp_path)
    (chain,) = places.recipe.chains
    finish("mtp")
    with pytest.raises(PendingError):
        gather(places, chain, "eval", pending)
    wrong = replace(chain, stages={"eval": replace(chain.stages["eval"], baseline=False)})
    with pytest.raises(DstoolsError, match="eval has no model"):
        gather(places, wrong, "eval", pending)


def test_the_stages_that_one_reads_are_named_as_its_inputs(tmp_path: Path) -> None:
    (chain,) = read(tmp_path).recipe.chains
    assert {stage: read_from(chain, stage) for stage in chain.stages} == {
        "prompts": {},
        "generate": {"prompts": "prompts"},
        "verify": {"samples": "generate"},
        "decontaminate": {"samples": "verify"},
        "select": {"samples": "decontaminate"},
        "render": {"samples": "select"},
        "sft": {"rows": "render"},
        "kd": {"prompts": "prompts", "model": "sft"},
        "grpo": {"prompts": "prompts", "model": "kd"},
        "mtp": {"rows": "render", "model": "grpo"},
        "eval": {"after": "mtp"},
    }


def test_how_a_stage_runs_and_where_its_inputs_are_is_not_its_identity(tmp_path: Path) -> None:
    places = read(tmp_path)
    (chain,) = places.recipe.chains
    settings = chain.stages["generate"]
    (tmp_path / "elsewhere" / "teacher").mkdir(parents=True)
    for file in (tmp_path / "teacher").iterdir():
        (tmp_path / "elsewhere" / "teacher" / file.name).write_bytes(file.read_bytes())

    def name(**changes: Any) -> str:
        changed = replace(settings, **changes)
        model = tmp_path / changed.model if changed.backend == "hf" else None
        inputs = Inputs(prompts=tmp_path / "asked.jsonl", model=model)
        return identity_of(places, "generate", changed, inputs).name

    assert name() == name(retries=9) == name(concurrency=1) == name(model="elsewhere/teacher")
    assert len({name(), name(seed=1), name(samples=2), name(model="student")}) == 4
    served = [name(backend="openai", model=model) for model in ("teacher", "elsewhere/teacher")]
    assert served[0] != served[1]  # what a server knows by a name is not a folder here


def test_the_settings_of_the_chain_that_a_stage_reads_are_its_identity(tmp_path: Path) -> None:
    places = read(tmp_path)
    settings = places.recipe.chains[0].stages["render"]
    source = tmp_path / "asked.jsonl"
    inputs = Inputs(samples=source, tokenizer=source, template="qwen3")
    identity = identity_of(places, "render", settings, inputs)
    assert identity.parts["settings"]["template"] == "qwen3"
    assert (
        identity.name
        != identity_of(places, "render", settings, replace(inputs, template="llama3")).name
    )
    assert (
        identity.name
        == identity_of(places, "render", settings, replace(inputs, init={"a": 1})).name
    )


def test_what_becomes_of_mtp_layers_counts_where_a_student_has_some(tmp_path: Path) -> None:
    places = read(tmp_path)
    (chain,) = places.recipe.chains
    kept, student = chain.stages["sft"], tmp_path / "student"

    def names() -> set[str]:
        inputs = Inputs(rows=tmp_path / "asked.jsonl", model=student, tokenizer=student)
        both = (kept, replace(kept, mtp="drop"))
        return {identity_of(places, "sft", settings, inputs).name for settings in both}

    assert len(names()) == 1
    (student / "config.json").write_text('{"num_nextn_predict_layers": 1}')
    assert len(names()) == 2
