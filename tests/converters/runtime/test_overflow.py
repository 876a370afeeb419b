import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError
from dstools_converters.model.decoder import DecoderLayer
from dstools_converters.model.rotary import rotary
from dstools_converters.runtime.overflow import LIMIT, judge_float16, largest_values
from dstools_converters.runtime.weights import load, sound_inventory

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
PROMPTS = [[0, 3, 59, 76, 270, 225, 77, 87, 225, 23, 15, 24, 35, 4], [7]]
MOE, MLA = "model.layers.3.mlp", "model.layers.2.self_attn"
LARGE = 1 << 40
pytestmark = pytest.mark.usefixtures("one_thread")


def scaled(out: Path, *powers: tuple[str, int]) -> Path:
    """Return the sample model with some tensors multiplied by powers of two."""
    shutil.copytree(SAMPLE, out)
    tensors = load_file(out / "model.safetensors")
    for name, power in powers:
        tensors[name] *= 2.0**power
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def judged(folder: Path, free_bytes: int = LARGE) -> str | None:
    with open_checkpoint(folder) as checkpoint:
        return judge_float16(sound_inventory(checkpoint, mtp=True), PROMPTS, free_bytes)


def test_a_model_whose_states_are_small_fits() -> None:
    assert judged(SAMPLE) is None


@pytest.mark.parametrize(
    ("place", "name", "power"),
    [
        # the states reach 1e5
        ("layer 1", "model.layers.1.mlp.shared_experts.down_proj.weight", 17),
        ("layer 0", "model.layers.0.mlp.up_proj.weight", 17),
        ("layer 2", "model.layers.2.self_attn.o_proj.weight", 20),
        ("layer 3", "model.layers.3.mlp.experts.0.down_proj.weight", 24),
        ("layer 4", "model.layers.4.eh_proj.weight", 17),  # MTP
        ("the head", "lm_head.weight", 17),
    ],
)
def test_a_layer_whose_states_float16_cannot_hold_is_named(
    place: str, name: str, power: int, tmp_path: Path
) -> None:
    folder = scaled(tmp_path / "model", (name, power))
    with pytest.raises(DstoolsError, match=rf"^{place}: a number of .* float16 ends at 65504"):
        judged(folder)


@pytest.mark.parametrize(
    ("place", "powers"),
    [
        ("layer 3", ((f"{MOE}.experts.0.up_proj", 17), (f"{MOE}.experts.0.down_proj", -17))),
        # an absorbed query is q' W_k, and a score its product with a latent
        ("layer 2", ((f"{MLA}.kv_b_proj", 17), (f"{MLA}.kv_a_layernorm", -17))),
    ],
)
def test_what_is_large_between_two_products_alone_is_named(
    place: str, powers: tuple[tuple[str, int], ...], tmp_path: Path
) -> None:
    """Powers of two that cancel: all other values are those of the sample."""
    folder = scaled(tmp_path / "model", *((f"{name}.weight", power) for name, power in powers))
    with pytest.raises(DstoolsError, match=f"^{place}: a number of "):
        judged(folder)


def test_a_quarter_of_what_float16_holds_is_the_limit(tmp_path: Path) -> None:
    """Other prompts may have larger states than those that were tried."""
    name = "model.layers.1.mlp.shared_experts.down_proj.weight"
    largest = largest_values(load(SAMPLE, torch.float32, torch.device("cpu")), PROMPTS)
    with pytest.raises(DstoolsError, match="layer 1") as caught:
        judged(scaled(tmp_path / "model", (name, 15)))
    assert largest["layer 1"] < LIMIT < float(str(caught.value).split()[5]) < 65504


def test_a_state_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    """Weights are finite; 2^123 squared is not."""
    name = "model.layers.1.mlp.shared_experts.up_proj.weight"
    folder = scaled(tmp_path / "model", (name, 123))
    with pytest.raises(DstoolsError, match=r"layer 1: a number of (inf|nan|[0-9.]+e)"):
        judged(folder)


def test_a_model_that_memory_does_not_hold_is_not_judged() -> None:
    found = judged(SAMPLE, free_bytes=1000)
    assert found is not None
    assert found.startswith("float16 was not judged: a run in float32 takes ")


def test_states_between_layers_are_those_of_the_whole_sequence(decoder_of: Any) -> None:
    """At least: within a layer some numbers are larger than the states on both sides."""
    decoder = decoder_of(SAMPLE)
    serving = load(SAMPLE, torch.float32, torch.device("cpu"))
    largest = largest_values(serving, PROMPTS[:1])
    ids = torch.tensor(PROMPTS[:1])
    angles = rotary(decoder.model.architecture, torch.arange(ids.shape[1]))
    with torch.inference_mode():
        x = decoder.model.embed_tokens(ids)
        for number, layer in enumerate(decoder.model.layers[:4]):
            assert isinstance(layer, DecoderLayer)
            assert largest[f"layer {number}"] >= float(x.abs().max()) - 1e-4
            x = layer(x, angles)
    assert not any(module._forward_hooks for module in serving.modules())
