"""What a later stage would refuse is refused before the teacher is asked."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dstools_converters.errors import DstoolsError
from dstools_distill.places import Places
from dstools_distill.preflight import preflight
from dstools_distill.preview import check, preview
from dstools_distill.recipe.recipe import read_recipe

SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"
RECIPE = f"""
[[prompts.source]]
path = "rg:chain_sum"
[generate]
backend = "openai"
model = "teacher"
base_url = "http://127.0.0.1:1/v1"
[verify]
[select]
[student]
model = "{SAMPLE}"
[render]
[sft]
[mtp]
[eval]
[[eval.source]]
path = "rg:chain_sum"
seed = 7
"""


def places(tmp_path: Path, *changes: tuple[str, str]) -> Places:
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "a.toml").write_text(text)
    return Places(read_recipe(tmp_path / "a.toml"), tmp_path / "out", Path)


NEW = (f'model = "{SAMPLE}"', f'tokenizer = "{SAMPLE}"\ninit = {{ model_type = "qwen3" }}')


def strip(folder: Path, layers: int) -> None:
    """Write the sample with a config that names so many MTP layers, and one fewer in its shards."""
    shutil.copytree(SAMPLE, folder)
    config = json.loads((SAMPLE / "config.json").read_text())
    changed = config | {"num_nextn_predict_layers": layers}
    (folder / "config.json").write_text(json.dumps(changed))
    if layers == 1:  # as transformers saves it
        weights = load_file(SAMPLE / "model.safetensors")
        trunk = {name: weights[name] for name in weights if not name.startswith("model.layers.4.")}
        save_file(trunk, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ([("[sft]", '[sft]\noptimizer = "adamm"')], "sft.optimizer: adamm is not", "mean adamw_t"),
        ([("[sft]", '[sft]\nattention = "spda"')], "sft.attention: spda is not known", "sdpa"),
        ([("[verify]", '[verify]\nlanguage = "em"')], "verify.language: 'em' cannot", "known are"),
        (
            [("[mtp]", '[grpo]\nlanguage = "em"\nlanguage_weight = 1.0')],
            "grpo.language: 'em' cannot",
            "known are",
        ),
        ([("[sft]", '[sft]\nmtp = "drop"')], 'sft.mtp: "drop" leaves', '"keep"'),
        (
            [("[sft]", "[mtp]"), ("[mtp]\n[mtp]", "[mtp]"), NEW],
            "mtp: a new student has no",
            "[mtp]",
        ),
        ([NEW], "mtp: a new student has no MTP layer", "name a student.model"),
        ([(f'"{SAMPLE}"', '"empty"')], "student.model: .*empty has no weights", "tokenizer"),
        (
            [(f'"{SAMPLE}"', '"empty"'), ("[sft]\n[mtp]\n", ""), ("[eval]", "[eval]\nlimit = 3")],
            "student.model: .*empty has no weights",
            "download the whole model",
        ),
        (
            [("[mtp]", '[kd]\nteacher = "empty"')],
            "kd.teacher: .*empty has no weights",
            "download the whole model",
        ),
        (
            [(f'"{SAMPLE}"', '"plain"')],
            "mtp: .*plain has no MTP layer to fit",
            "name a student.model like DeepSeek-V3",
        ),
        (
            [(f'"{SAMPLE}"', '"stripped"')],
            "mtp: .*stripped: config.json names MTP layers, and no shard holds a tensor of them",
            "or leave out [mtp]",
        ),
        (
            [(f'"{SAMPLE}"', '"two"')],
            "mtp: config.json: num_nextn_predict_layers is 2, but the shards hold 1",
            "restore the tensors",
        ),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_first(
    changes: list[tuple[str, str]], message: str, hint: str, tmp_path: Path
) -> None:
    for name in ("empty", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "plain" / "model.safetensors").touch()
    if "stripped" in str(changes):
        strip(tmp_path / "stripped", 1)
    if "two" in str(changes):
        strip(tmp_path / "two", 2)
    given = places(tmp_path, *changes)
    for start in (check, lambda of: preview(of, "")):
        with pytest.raises(DstoolsError, match=rf"a\.toml: {message}") as caught:
            start(given)
        assert hint in caught.value.hint


TEACHER = 'model = "teacher"\nbase_url = "http://127.0.0.1:1/v1"'
FILES = {
    "text.ngrams": "AIME 2024\n",
    "empty.ngrams": "",
    "rows.ngrams": '{"problem": "1 + 1?"}\n',
    "garbage.jsonl": "no JSON\n",
    "asked.jsonl": '{"problem": "1 + 1?"}\n',
    "empty.jsonl": "",
}


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ([("[verify]\n", "")], "select needs verdicts, and the samples have none", 'keep = "all"'),
        (
            [("[verify]\n", ""), ("[select]", '[select]\nkeep = "all"\nmin_pass_rate = 0.5')],
            "select needs verdicts",
            "add [verify]",
        ),
        ([("[select]", '[select]\nkeep = "diverse"')], "needs select.per_prompt", "set it to 1"),
        (
            [
                ("[select]", "[decontaminate]\n[select]"),
                ('[eval]\n[[eval.source]]\npath = "rg:chain_sum"\nseed = 7\n', ""),
            ],
            "decontaminate.index names no file, and the recipe has no",
            "dstools distill index",
        ),
        *(
            (
                [("[select]", f'[decontaminate]\nindex = ["{name}.ngrams"]\n[select]')],
                f"{name}.ngrams: is not a contamination index",
                "build it again",
            )
            for name in ("text", "empty", "rows")
        ),
        *(
            ([("[select]", f'[select]\nnon_reasoning = "{name}.jsonl"')], message, hint)
            for name, message, hint in (
                ("garbage", "garbage.jsonl: line 1: is not valid JSON", "fix or remove the line"),
                ("asked", "asked.jsonl: line 1: has no answer", "end it with an assistant's"),
                ("empty", "empty.jsonl: is empty", "name a file of conversations"),
            )
        ),
        ([("[student]", '[student]\ntemplate = "qwen3"')], "<|im_start|> of the template", "add"),
        ([(TEACHER, 'base_url = "http://127.0.0.1:1/v1"')], "generate.model: is missing", "knows"),
        (
            [('"openai"', '"openai-batch"'), (TEACHER, "")],
            "generate.model: is missing",
            "give the name that the server knows",
        ),
        ([(TEACHER, 'model = "m"')], "generate.base_url: is missing", "http://127.0.0.1:8000/v1"),
        *(
            (
                [(TEACHER, f'model = "m"\nbase_url = "{url}"')],
                f"generate.base_url: '{url}' is not a web address",
                "http://127.0.0.1:8000/v1",
            )
            for url in ("127.0.0.1:1/v1", "localhost:1", "http://", "ftp://a/v1", "http://a:b/v1")
        ),
        (
            [(TEACHER, f"{TEACHER}\ntimeout_seconds = 0")],
            "generate.timeout_seconds: is 0",
            "give a request time",
        ),
        *(
            ([(f'path = "rg:chain_sum"\n{after}', f'path = "{name}"\n{after}')], message, hint)
            for after in ("[generate]", "seed = 7")
            for name, message, hint in (
                ("", "is a folder", "name a file in it"),
                (".", "is a folder", "name a file in it"),
                ("rg:nope", "rg:nope: reasoning-gym has no such task", "check the name"),
                ("garbage.jsonl", "garbage.jsonl: line 1: is not valid JSON", "fix or remove"),
                ("empty.jsonl", "empty.jsonl: is empty", "name a source with prompts"),
            )
        ),
    ],
)
def test_what_a_stage_of_data_would_refuse_is_refused_before_the_teacher_is_paid(
    changes: list[tuple[str, str]], message: str, hint: str, tmp_path: Path
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    given = places(tmp_path, *changes)
    for start in (check, lambda of: preview(of, "")):
        with pytest.raises(DstoolsError) as caught:
            start(given)
        assert message in str(caught.value)
        assert hint in caught.value.hint


def test_a_recipe_that_can_run_passes(tmp_path: Path) -> None:
    preflight(places(tmp_path))
    preflight(places(tmp_path, ("[sft]", '[sft]\noptimizer = "muon"\nattention = "eager"')))
    preflight(places(tmp_path, ("[sft]", '[sft]\nattention = "org/a-kernel"')))
    preflight(places(tmp_path, ("[sft]\n[mtp]", ""), ("[eval]", "[eval]\nbaseline = true")))


def test_a_student_of_an_earlier_phase_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        f'''
[student]
tokenizer = "{SAMPLE}"
[[phase]]
name = "cold"
sft = {{}}
student = {{ init = {{ model_type = "qwen3" }} }}
[[phase]]
name = "warm"
student = {{ model = "phase:cold/sft" }}
sft = {{}}
'''
    )
    preflight(Places(read_recipe(tmp_path / "a.toml"), tmp_path / "out", Path))
