"""The recipes that come with dstools read, run as published, and explain themselves."""

import re
import tomllib
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.inputs import identity_of
from dstools_distill.places import Places
from dstools_distill.recipe.presets import bundled, preset_text, presets
from dstools_distill.recipe.recipe import Recipe, read_recipe
from dstools_distill.recipe.stages import Inputs


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


PUBLISHED = {  # base, learning rate: DeepSeek-R1, arXiv 2501.12948 v2, table 6
    "qwen-1.5b": ("Qwen/Qwen2.5-Math-1.5B", 1e-4),
    "qwen-7b": ("Qwen/Qwen2.5-Math-7B", 8e-5),
    "qwen-14b": ("Qwen/Qwen2.5-14B", 7e-5),
    "qwen-32b": ("Qwen/Qwen2.5-32B", 6e-5),
    "llama-8b": ("meta-llama/Llama-3.1-8B", 5e-5),
    "llama-70b": ("meta-llama/Llama-3.3-70B-Instruct", 2e-5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_r1_presets_have_the_published_settings(tmp_path: Path, name: str) -> None:
    chain = read(tmp_path, f'preset = "r1-distill-{name}"\n').chains[0]
    sft = chain.stages["sft"]
    assert (chain.student.model, sft.learning_rate) == PUBLISHED[name]
    assert (sft.batch_size, sft.min_learning_rate_ratio) == (64, 0.1)
    assert 2 <= sft.epochs <= 3
    assert chain.stages["render"].max_length == chain.stages["generate"].max_tokens == 32768
    assert chain.stages["select"].reasoning_share == 600 / 800
    evaluated = chain.stages["eval"]
    assert (evaluated.temperature, evaluated.top_p, evaluated.samples) == (0.6, 0.95, 64)


@pytest.mark.parametrize("name", presets())
def test_every_preset_reads_alone_and_explains_itself(tmp_path: Path, name: str) -> None:
    text = preset_text(name)
    recipe = read(tmp_path, text)
    assert recipe.chains
    assert "$" not in text
    assert text.startswith("# ")
    assert text.count("#") >= 10


def test_an_unknown_preset_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(DstoolsError, match="none: no such preset") as caught:
        preset_text("none")
    assert caught.value.hint == f"there are {', '.join(presets())}"


def test_what_several_presets_share_is_not_a_preset() -> None:
    assert "r1-distill" not in presets()
    with pytest.raises(DstoolsError, match="r1-distill: no such preset"):
        preset_text("r1-distill")


def test_what_presets_name_of_dstools_is_there_and_goes_into_the_wheel() -> None:
    named = {
        path for name in presets() for path in re.findall(r'"(dstools:.+?)"', preset_text(name))
    }
    assert named == {"dstools:sample-v3", "dstools:toy-chat.jsonl"}
    assert all(bundled(path).exists() for path in named)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    samples = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["samples"]
    assert samples == {
        f"tests/data/{name}": f"dstools_distill/samples/{name}"
        for name in (path.removeprefix("dstools:") for path in named)
    }


def test_no_preset_names_a_path_of_the_repository() -> None:
    assert not [name for name in presets() if "tests/" in preset_text(name)]


def test_a_stage_is_the_same_whether_its_model_is_named_by_dstools_or_by_a_path(
    tmp_path: Path,
) -> None:
    names = {}
    for model in ("dstools:sample-v3", str(bundled("dstools:sample-v3"))):
        text = f'[generate]\nbackend = "hf"\nmodel = "{model}"\n[prompts]\nsource = []\n'
        places = Places(read(tmp_path, text), tmp_path / "out", Path)
        settings = places.recipe.chains[0].stages["generate"]
        inputs = Inputs(model=places.model(settings.model, "generate.model"))
        names[model] = identity_of(places, "generate", settings, inputs).name
    assert len(names) == 2
    assert len(set(names.values())) == 1
