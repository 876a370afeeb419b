"""MTP layers of a student: which tensors are carried over, and what becomes of the config."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dstools_distill.recipe.settings import Sft
from dstools_distill.training.untrained import mtp_prefixes, untrained, without_mtp_warning

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
LAYER = "model.layers.4."  # after four hidden ones


def config(**changes: int) -> Any:
    shape = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "vocab_size": 320}
    return SimpleNamespace(**shape | changes)


def weights() -> dict[str, Tensor]:
    return load_file(SAMPLE / "model.safetensors")


def shards(folder: Path, parts: list[dict[str, Tensor]]) -> Path:
    """Write a checkpoint of the sample's config whose shards hold `parts`."""
    folder.mkdir()
    shutil.copyfile(SAMPLE / "config.json", folder / "config.json")
    index = {}
    for number, part in enumerate(parts):
        save_file(part, folder / f"part-{number}.safetensors")
        index |= dict.fromkeys(part, f"part-{number}.safetensors")
    table = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


def is_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_a_class_of_transformers_ignores_the_layers_while_a_student_is_loaded() -> None:
    from transformers import AutoConfig, DeepseekV3ForCausalLM

    read = AutoConfig.from_pretrained(SAMPLE)
    before = DeepseekV3ForCausalLM._keys_to_ignore_on_load_unexpected
    with without_mtp_warning(read):
        inside = DeepseekV3ForCausalLM._keys_to_ignore_on_load_unexpected
    assert inside == [*before, r"model\.layers\.4\."]
    assert DeepseekV3ForCausalLM._keys_to_ignore_on_load_unexpected == before
    assert mtp_prefixes(config(num_nextn_predict_layers=2)) == (LAYER, "model.layers.5.")
    assert mtp_prefixes(config(num_nextn_predict_layers=0)) == ()


@pytest.mark.parametrize("is_sharded", [False, True])
def test_all_tensors_of_the_layers_are_read_as_they_are(is_sharded: bool, tmp_path: Path) -> None:
    """51 of experts, 2 of the router, 5 of attention, eh_proj, 7 norms, 2 copies: 68."""
    wanted = {name: tensor for name, tensor in weights().items() if name.startswith(LAYER)}
    folder = SAMPLE
    if is_sharded:
        names = list(weights())
        parts = [{name: weights()[name] for name in names[n::2]} for n in range(2)]
        folder = shards(tmp_path / "student", parts)
    model = config()
    rest = untrained(Sft(), folder, model)
    assert rest.fate == "carried over, not trained"
    assert rest.tensors.keys() == wanted.keys()
    assert len(wanted) == 68
    assert {tensor.dtype for tensor in wanted.values()} == {torch.bfloat16, torch.float32}
    assert all(is_same(tensor, wanted[name]) for name, tensor in rest.tensors.items())
    assert model.num_nextn_predict_layers == 1


def test_copies_of_the_embeddings_and_the_head_are_cut_with_the_vocabulary() -> None:
    rest = untrained(Sft(), SAMPLE, config(vocab_size=319))
    copies = {name for name, tensor in rest.tensors.items() if len(tensor) == 319}
    assert copies == {f"{LAYER}embed_tokens.weight", f"{LAYER}shared_head.head.weight"}


def test_on_request_they_are_dropped_from_the_config_too() -> None:
    model = config()
    rest = untrained(Sft(mtp="drop"), SAMPLE, model)
    assert (rest.tensors, rest.fate, model.num_nextn_predict_layers) == ({}, "dropped", 0)


def test_a_config_names_no_layer_that_the_folder_lacks(tmp_path: Path) -> None:
    trunk = {name: tensor for name, tensor in weights().items() if not name.startswith(LAYER)}
    for folder in (shards(tmp_path / "student", [trunk]), None):
        model = config()
        assert untrained(Sft(), folder, model).fate == "missing in the student"
        assert model.num_nextn_predict_layers == 0


def test_a_student_whose_config_names_none_is_left_alone(tmp_path: Path) -> None:
    for model in (config(num_nextn_predict_layers=0), SimpleNamespace()):
        before = dict(vars(model))
        assert untrained(Sft(), tmp_path / "not opened", model) == ({}, "")
        assert vars(model) == before
