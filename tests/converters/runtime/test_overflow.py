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
LARGE = 1 << 40
pytestmark = pytest.mark.usefixtures("one_thread")


def scaled(out: Path, name: str, factor: float) -> Path:
    """Return the sample model with one tensor multiplied."""
    shutil.copytree(SAMPLE, out)
    tensors = load_file(out / "model.safetensors")
    tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def judged(folder: Path, free_bytes: int = LARGE) -> str | None:
    with open_checkpoint(folder) as checkpoint:
        return judge_float16(sound_inventory(checkpoint, mtp=True), PROMPTS, free_bytes)


def test_a_model_whose_states_are_small_fits() -> None:
    assert judged(SAMPLE) is None


@pytest.mark.parametrize(
    ("layer", "name", "power"),
    [
        (1, "model.layers.1.mlp.shared_experts.down_proj.weight", 17),  # the states reach 1e5
        (0, "model.layers.0.mlp.up_proj.weight", 17),
        (2, "model.layers.2.self_attn.o_proj.weight", 20),
        (3, "model.layers.3.mlp.experts.0.down_proj.weight", 24),
        (4, "model.layers.4.eh_proj.weight", 17),  # MTP
    ],
)
def test_a_layer_whose_states_float16_cannot_hold_is_named(
    layer: int, name: str, power: int, tmp_path: Path
) -> None:
    folder = scaled(tmp_path / "model", name, 2.0**power)
    with pytest.raises(
        DstoolsError, match=rf"^layer {layer}: a number of .* float16 ends at 65504"
    ):
        judged(folder)


def test_a_quarter_of_what_float16_holds_is_the_limit(tmp_path: Path) -> None:
    """Other prompts may have larger states than those that were tried."""
    name = "model.layers.1.mlp.shared_experts.down_proj.weight"
    largest = largest_values(load(SAMPLE, torch.float32, torch.device("cpu")), PROMPTS)[1]
    with pytest.raises(DstoolsError, match="layer 1") as caught:
        judged(scaled(tmp_path / "model", name, 2.0**15))
    assert largest < LIMIT < float(str(caught.value).split()[5]) < 65504


def test_a_state_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    """Weights are finite; 1e38 squared is not."""
    folder = scaled(tmp_path / "model", "model.layers.1.mlp.shared_experts.up_proj.weight", 1e37)
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
        for layer in decoder.model.layers[:4]:
            assert isinstance(layer, DecoderLayer)
            assert largest.pop(0) >= float(x.abs().max()) - 1e-4
            x = layer(x, angles)
    assert not any(module._forward_hooks for module in serving.modules())
