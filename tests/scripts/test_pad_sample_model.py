"""scripts/pad_sample_model.py: the padded sample model computes what the sample model computes."""

import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.verify.engines import Engine, check_engine

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = Path(__file__).parents[1] / "data"
SAMPLE = DATA / "sample-v3"


@pytest.fixture(scope="module", params=["padded", "heads copied"])
def models(
    load_script: Any,
    padded_sample: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> list[tuple[Any, Any]]:
    """The sample model and a padded one, each with its tokenizer, in float32."""
    script = load_script("train_sample_model")
    if request.param == "heads copied":
        padded_sample = tmp_path_factory.mktemp("copied") / "sample"
        load_script("pad_sample_model").pad(SAMPLE, padded_sample, copies_heads=True)
    return [script.load(folder) for folder in (SAMPLE, padded_sample)]


def test_the_logits_of_a_conversation_are_the_same_but_for_the_norm_s_eps(
    models: list[tuple[Any, Any]],
) -> None:
    import torch

    lines = (DATA / "sample-v3-heldout.jsonl").read_text().splitlines()[:16]
    for line in lines:
        rows = []
        for model, tokenizer in models:
            messages = json.loads(line)["messages"]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
            with torch.inference_mode():
                rows.append(model(ids).logits[0])
        # The sum of a matrix is the same, in another order: 2^-24 of it, a hundred times over in
        # four layers. eps, 1e-6, counts four times beside the latent's mean square of 1e-2 or more.
        assert float((rows[0] - rows[1]).abs().max() / rows[0].abs().max()) < 1e-3
        assert rows[0].argmax(-1).equal(rows[1].argmax(-1))


def test_the_mtp_module_drafts_the_same_tokens(
    load_script: Any, models: list[tuple[Any, Any]]
) -> None:
    script = load_script("train_sample_model")
    entries = list(itertools.islice(script.problems("evaluate"), 4))
    ours, padded = ([script.draft(*pair, entry) for entry in entries] for pair in models)
    assert padded == ours  # as many tokens, from as many forwards
    assert all(answer.is_identical for answer in padded)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_engines_serve_the_padded_model_alone(
    engine: Engine, padded_sample: Path, make_fp8: Any
) -> None:
    def codes(folder: Path) -> list[str]:
        inventory = require_sound(open_checkpoint(make_fp8(folder)))
        return [f.code for f in check_engine(inventory, engine, 1) if f.level != "note"]

    assert codes(padded_sample) == []
    assert "engine-shape" in codes(SAMPLE)


def test_another_latent_is_refused(load_script: Any, padded_sample: Path, tmp_path: Path) -> None:
    script: ModuleType = load_script("pad_sample_model")
    with pytest.raises(ValueError, match="kv_lora_rank must be 128, got 512"):
        script.pad(padded_sample, tmp_path / "twice")
