"""The recipes that come with dstools read, run as published, and explain themselves."""

from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.presets import preset_text, presets
from dstools_distill.recipe.recipe import Recipe, read_recipe


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
