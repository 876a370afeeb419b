"""A stream with rounded inputs gives what a model in memory gives with an independent rounding.

Each layer of a Decoder gets the input that the runner's had, and hooks round the inputs of the FP8
weights, found by their dtype in the shards. Attention and dense layers are the same calls on the
same batches: equal to the bit. In an MoE layer sums are in another order, and a value between two
codes may go the other way; what the rounding changes must be the same to a hundredth.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_converters.families.names import HUGGING_FACE, TensorName
from dstools_converters.layerwise.activations import InputRounding, rounded
from dstools_converters.layerwise.runner import Runner, Stream
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.decoder import Decoder, MoE
from dstools_converters.model.rotary import rotary
from dstools_converters.plan.plan import plan_quantize
from dstools_converters.plan.recipe import Recipe, Rule

Checkpoint = Callable[..., Path]
IDS = torch.randint(0, 1024, (3, 16), generator=torch.Generator().manual_seed(0))


class Nothing:
    """A watcher that keeps the inputs it is shown, of the layer that ran last."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Tensor]] = []
        self.experts = torch.empty(0)

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None: ...

    def see(self, source: str, values_TD: Tensor) -> None:
        self.seen.append((source, values_TD.clone()))

    def end(self) -> None: ...

    def route(self, experts_TK: Tensor, load: list[int]) -> None:
        self.experts = experts_TK

    def cache(self, first: Tensor, second: Tensor) -> None: ...


def runner_of(folder: Path, spilled: Path) -> Runner:
    inventory = require_sound(open_checkpoint(folder))
    architecture = read_architecture(inventory.checkpoint.config)
    return Runner(inventory, architecture, IDS, device="cpu", folder=spilled, ram_bytes=1 << 30)


def independent(x: Tensor, width: int, is_ue8m0: bool) -> Tensor:
    """Round one group of inputs after the other."""
    parts = []
    for part in x.split(width, -1):
        scale = part.abs().amax(-1, keepdim=True).clamp(min=1e-4) / torch.tensor(448.0)
        if is_ue8m0:
            scale = torch.exp2(scale.double().log2().ceil()).float()
        parts.append((part / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)
    return torch.cat(parts, -1)


def fp8_modules(folder: Path) -> set[str]:
    """Names of the modules whose weight is FP8, except those that engines absorb."""
    names = set()
    for shard in folder.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            if tensor.dtype == torch.float8_e4m3fn and "kv_b_proj" not in name:
                names.add(name.removesuffix(".weight"))
    return names


def check_layers(
    folder: Path, decoder: Decoder, place: Path, width: int = 128, is_ue8m0: bool = False
) -> set[str]:
    """Compare both streams of all layers but MTP's; return the last names of what was rounded."""
    names, used = fp8_modules(folder), set()

    def hook(module: nn.Module, args: Any, name: str) -> Any:
        used.add(name.rpartition(".")[2])
        return (independent(args[0], width, is_ue8m0),)

    runner, alone = runner_of(folder, place), runner_of(folder, place)
    plain, hidden = alone.embed(IDS.flatten()), [runner.embed(IDS.flatten()) for _ in range(2)]
    for layer in range(runner.inventory.model.num_hidden_layers):
        before = [states.read(0, states.rows).view(*IDS.shape, -1) for states in hidden]
        watchers = [Nothing(), Nothing()]
        hidden = runner.run_streams(
            layer,
            [Stream(s, w, n == 1) for n, (s, w) in enumerate(zip(hidden, watchers, strict=True))],
        )
        plain = alone.run_layer(layer, plain, Nothing())
        unrounded, after = (states.read(0, states.rows) for states in hidden)
        assert torch.equal(unrounded, plain.read(0, plain.rows))
        module = decoder.model.layers[layer]
        angles = rotary(decoder.model.architecture, torch.arange(IDS.shape[1]))
        without = module(before[1], angles).flatten(0, 1)
        hooks = [
            part.register_forward_pre_hook(lambda m, a, name=name: hook(m, a, name))
            for name, part in decoder.named_modules()
            if name in names
        ]
        wanted = module(before[1], angles).flatten(0, 1)
        for registered in hooks:
            registered.remove()
        if isinstance(module.mlp, MoE):
            assert (after - wanted).norm() <= 0.01 * (without - wanted).norm()
        else:
            assert torch.equal(after, wanted)
        assert not torch.equal(wanted, without)
    for states in (*hidden, plain):
        states.close()
    return used


# -------------------------------------------------------------------------------------- the streams


@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("tiny", "q_a_proj q_b_proj kv_a_proj_with_mqa o_proj gate_proj up_proj down_proj"),
        ("tiny-v2", "q_a_proj q_b_proj kv_a_proj_with_mqa o_proj gate_proj up_proj down_proj"),
        ("tiny-v2-lite", "q_proj kv_a_proj_with_mqa o_proj gate_proj up_proj down_proj"),
        ("tiny-v32", "q_a_proj q_b_proj kv_a_proj_with_mqa o_proj gate_proj up_proj down_proj"),
        ("tiny-llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("tiny-qwen2", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("tiny-qwen3", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    ],
)
@torch.inference_mode()
def test_rounded_layers_are_those_of_a_model_in_memory(
    kind: str,
    roles: str,
    scale_format: str,
    checkpoint: Checkpoint,
    quantized: Callable[..., Path],
    decoder_of: Callable[[Path], Decoder],
    tmp_path: Path,
) -> None:
    """Dense, grouped and latent attention, MoE; inputs of 336, 160 and 640 have a short group."""
    folder = quantized(checkpoint(kind), scale_format=scale_format)
    used = check_layers(folder, decoder_of(folder), tmp_path, is_ue8m0=scale_format == "ue8m0")
    assert used == set(roles.split())


@torch.inference_mode()
def test_compressed_tensors_are_rounded_alike(
    tiny_aligned: Path,
    quantized: Callable[..., Path],
    decoder_of: Callable[[Path], Decoder],
    tmp_path: Path,
) -> None:
    folder = quantized(tiny_aligned, "compressed-tensors")
    assert "o_proj" in check_layers(folder, decoder_of(folder), tmp_path)


@pytest.mark.parametrize(
    ("rule", "rest"),
    [
        (Rule("1", "keep", roles=("o_proj", "q_b_proj")), {"kv_a_proj_with_mqa", "q_a_proj"}),
        (Rule("1", "keep", roles=("q_a_proj", "kv_a_proj_with_mqa")), {"q_b_proj", "o_proj"}),
        (Rule("1", "keep", roles=("dense_down",)), {"gate_proj", "up_proj"}),
        (Rule("1", "keep", layers=((0, 1),)), {"o_proj"}),
        (Rule("1", "keep", roles=("routed_gate", "routed_up", "routed_down")), {"gate_proj"}),
    ],
)
@torch.inference_mode()
def test_kept_weights_get_their_inputs_unrounded(
    rule: Rule,
    rest: set[str],
    tiny: Path,
    convert: Any,
    decoder_of: Callable[[Path], Decoder],
    tmp_path: Path,
) -> None:
    """Beside those that are FP8; where whole layers are kept, the streams stay the same."""
    with open_checkpoint(tiny) as opened:
        plan = plan_quantize(require_sound(opened), Recipe(rules=(rule,)), "native", None)
        folder = convert(f"kept {rule}", plan)
    if rule.layers:
        runner = runner_of(folder, tmp_path)
        streams = [Stream(runner.embed(IDS.flatten()), Nothing(), n == 1) for n in range(2)]
        plain, after = runner.run_streams(0, streams)
        assert torch.equal(plain.read(0, plain.rows), after.read(0, after.rows))
        return
    assert rest <= check_layers(folder, decoder_of(folder), tmp_path)


@pytest.mark.parametrize("block", [(64, 64), (64, 32), (256, 96)])
@torch.inference_mode()
def test_groups_are_as_wide_as_the_blocks_of_the_weights(
    block: tuple[int, int], checkpoint: Checkpoint, decoder_of: Any, tmp_path: Path
) -> None:
    """vLLM, SGLang and transformers take the columns of weight_block_size."""
    source = checkpoint("tiny-qwen3")
    config = json.loads((source / "config.json").read_text())
    stored: dict[str, Tensor] = {}
    for shard in source.glob("*.safetensors"):
        stored |= load_file(shard)
    fp8, plain = dict(stored), {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in stored.items():
        if not name.endswith("proj.weight"):
            continue
        rows, cols = (-(-side // size) for side, size in zip(tensor.shape, block, strict=True))
        scale = torch.full((rows, cols), 2.0**-10)
        codes = (tensor.float() * 2**10).clamp(-448, 448).to(torch.float8_e4m3fn)
        fp8 |= {name: codes, f"{name}_scale_inv": scale}
        plain[name] = codes.float() * 2**-10
    block_config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    block_config |= {"weight_block_size": list(block)}
    for place, tensors in (("fp8", fp8), ("plain", plain)):
        (tmp_path / place).mkdir()
        extra = {"quantization_config": block_config} if place == "fp8" else {}
        (tmp_path / place / "config.json").write_text(json.dumps(config | extra))
        save_file(tensors, tmp_path / place / "model.safetensors", {"format": "pt"})
    check_layers(tmp_path / "fp8", decoder_of(tmp_path / "plain"), tmp_path, width=block[1])


@torch.inference_mode()
def test_an_mtp_layer_runs_in_two_streams(tiny_fp8: Path, tmp_path: Path) -> None:
    runner = runner_of(tiny_fp8, tmp_path)
    layer = runner.inventory.model.num_hidden_layers
    states = torch.randn(IDS.numel(), 256, generator=torch.Generator().manual_seed(1))
    streams = []
    for is_rounded in (False, True, False):
        streams.append(Stream(runner.spill(IDS.numel()), Nothing(), is_rounded))
        streams[-1].hidden.write(0, states)
    last = streams.pop()
    alone = runner.run_layer(layer, last.hidden, last.watcher)
    plain, after = runner.run_streams(layer, streams)
    assert plain.rows == after.rows == alone.rows == IDS.numel() - len(IDS)
    assert torch.equal(plain.read(0, plain.rows), alone.read(0, alone.rows))
    assert not torch.equal(plain.read(0, plain.rows), after.read(0, after.rows))


@torch.inference_mode()
def test_weights_are_read_once_for_all_streams_and_watchers_see_unrounded_inputs(
    tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    real = Runner.load

    def load(self: Runner, name: TensorName) -> Tensor:
        loaded.append(HUGGING_FACE.spell(name))
        return real(self, name)

    monkeypatch.setattr(Runner, "load", load)
    runner = runner_of(tiny_fp8, tmp_path)
    watchers = [Nothing(), Nothing()]
    streams = [Stream(runner.embed(IDS.flatten()), w, n == 1) for n, w in enumerate(watchers)]
    hidden = runner.run_streams(0, streams)
    assert len(loaded) == len(set(loaded)) > 8
    first = [dict(reversed(watcher.seen)) for watcher in watchers]  # the first of each source
    assert torch.equal(first[0]["hidden"], first[1]["hidden"])  # both layers have the same input
    watchers = [Nothing(), Nothing()]
    streams = [Stream(s, w, n == 1) for n, (s, w) in enumerate(zip(hidden, watchers, strict=True))]
    for states in runner.run_streams(1, streams):
        states.close()
    for source, values in watchers[1].seen:
        assert not torch.equal(values, independent(values, 128, is_ue8m0=False)), source


# ----------------------------------------------------------------------------------------- the hook


def test_an_input_that_maps_share_is_rounded_once() -> None:
    hook = InputRounding(QuantScheme("native", "float32", (128, 128)))
    x, y = torch.randn(2, 5, 200)
    first, again, other = (hook(nn.Identity(), (part,))[0] for part in (x, x, y))
    assert first is again
    assert first is not None
    assert other is not None
    assert torch.equal(first, independent(x, 128, is_ue8m0=False))
    assert torch.equal(other, independent(y, 128, is_ue8m0=False))


def test_scales_follow_scale_fmt() -> None:
    x = torch.randn(5, 200)
    for scale_format in ("float32", "ue8m0"):
        scheme = QuantScheme("native", scale_format, (128, 64))  # type: ignore[arg-type]
        assert torch.equal(rounded(x, scheme), independent(x, 64, scale_format == "ue8m0"))
