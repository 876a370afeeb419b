"""A run from disk gives the states of the whole model in memory, and the watcher sees all of it.

In memory, each layer of a Decoder gets the input that the runner's had. Attention and dense layers
are the same calls on the same batches, so their bits are equal. In an MoE layer the runner adds the
experts' outputs to the residual one by one, `MoE.combine` adds them up first: the K + 2 terms are
the same numbers, and sums of n terms in two orders differ by 2 (n - 1) u times the sum of
magnitudes.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.families.names import HUGGING_FACE, TensorName
from dstools_converters.layerwise import runner as layerwise
from dstools_converters.layerwise.runner import INPUTS, Runner
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.decoder import Decoder, DecoderLayer, MoE, MTPLayer
from dstools_converters.model.rotary import rotary

Checkpoint = Callable[..., Path]
DecoderOf = Callable[[Path], Decoder]
U = 2.0**-24  # unit roundoff of float32
KINDS = ["tiny", "tiny-v2", "tiny-v2-lite", "tiny-v32", "tiny-llama", "tiny-qwen2", "tiny-qwen3"]
SHAPES = {  # samples, length, tokens a forward pass takes
    "one batch": (6, 16, 2048),
    "an odd number of samples, a short last batch": (5, 13, 30),
    "a sample longer than a pass": (2, 16, 10),
}


def tokens(samples: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 1024, (samples, length), generator=torch.Generator().manual_seed(seed))


class Recorder:
    """A watcher that keeps everything."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}  # weight -> its inputs, of all tokens
        self.stages: list[tuple[set[str], int]] = []  # weights, tokens
        self.experts = torch.empty(0)
        self.load: list[int] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._weights: dict[TensorName, Tensor] = {}
        self._parts: dict[str, list[Tensor]] = {}

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        self._weights, self._parts = weights, defaultdict(list)
        self.stages.append(({HUGGING_FACE.spell(name) for name in weights}, tokens))

    def see(self, source: str, values_TD: Tensor) -> None:
        self._parts[source].append(values_TD.clone())

    def end(self) -> None:
        for name, weight in self._weights.items():
            assert weight.device.type == "cpu"  # still in memory
            if name.part == "weight" and name.role in INPUTS and INPUTS[name.role] in self._parts:
                self.seen[HUGGING_FACE.spell(name)] = torch.cat(self._parts[INPUTS[name.role]])

    def route(self, experts_TK: Tensor, load: list[int]) -> None:
        self.experts, self.load = experts_TK, load

    def cache(self, first: Tensor, second: Tensor) -> None:
        self.kept.append((first.clone(), second.clone()))


def runner_of(folder: Path, ids: Tensor, spilled: Path, ram_bytes: int = 1 << 30) -> Runner:
    inventory = require_sound(open_checkpoint(folder))
    architecture = read_architecture(inventory.checkpoint.config)
    return Runner(inventory, architecture, ids, device="cpu", folder=spilled, ram_bytes=ram_bytes)


def run(runner: Runner) -> list[tuple[Tensor, Tensor, Recorder]]:
    """Return the input and output of each layer, and what its watcher saw."""
    hidden, layers = runner.embed(runner.ids.flatten()), []
    for layer in range(runner.num_layers):
        before, recorder = hidden.read(0, hidden.rows), Recorder()
        hidden = runner.run_layer(layer, hidden, recorder)
        assert hidden.rows == runner.rows(layer)
        layers.append((before, hidden.read(0, hidden.rows), recorder))
    hidden.close()
    return layers


class InMemory:
    """A layer of a Decoder, run on the runner's batches, with hooks on all of its weights."""

    def __init__(self, decoder: Decoder, layer: int, samples: int, limit: int) -> None:
        self.module: DecoderLayer = decoder.model.layers[layer]  # type: ignore[assignment]
        self.architecture = decoder.model.architecture
        self.samples, self.limit = samples, limit
        self.seen: dict[str, list[Tensor]] = defaultdict(list)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.terms = torch.empty(0)  # the sum of their magnitudes
        for path, linear in self.module.named_modules():
            if isinstance(linear, torch.nn.Linear):
                name = f"model.layers.{layer}.{path}.weight"
                linear.register_forward_pre_hook(
                    lambda _, args, name=name: self.seen[name].append(args[0].flatten(0, -2))
                )
        self.module.self_attn.cache.register_forward_pre_hook(
            lambda _, kept: self.kept.append(kept)
        )

    def run(self, hidden_TD: Tensor) -> Tensor:
        length = len(hidden_TD) // self.samples
        angles = rotary(self.architecture, torch.arange(length))
        batches = hidden_TD.split(max(self.limit // length, 1) * length)
        attended = [
            self.module.attend(batch.view(-1, length, batch.shape[1]), angles).flatten(0, 1)
            for batch in batches
        ]
        normed = [self.module.post_attention_layernorm(batch) for batch in attended]
        mlp = self.module.mlp
        if not isinstance(mlp, MoE):
            return torch.cat([a + mlp(n) for a, n in zip(attended, normed, strict=True)])
        shared, mlp.shared_experts = mlp.shared_experts, None
        residual, normed_TD = torch.cat(attended), torch.cat(normed)
        routes = [mlp.gate(batch) for batch in normed]
        self.experts, weights = (torch.cat(part) for part in zip(*routes, strict=True))
        self.terms = residual.abs()

        def in_order(expert: int, x_TD: Tensor) -> Tensor:
            """Run an expert on its tokens in their order, which `combine` has by slots."""
            _, at = torch.where(self.experts.T.eq(expert))
            order = at.argsort()
            parts = x_TD[order].split(self.limit)
            made = torch.cat([mlp.experts[expert](part) for part in parts])
            share = weights[at[order], (self.experts[at[order]] == expert).long().argmax(1)]
            self.terms.index_add_(0, at[order], (made * share[:, None]).abs())
            return made[order.argsort()]

        routed = mlp.combine(normed_TD, self.experts, weights, in_order)
        assert shared is not None
        shared_TD = torch.cat([shared(batch) for batch in normed])
        self.terms += shared_TD.abs()
        mlp.shared_experts = shared
        return residual + (routed + shared_TD)


@pytest.fixture
def passes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda limit: monkeypatch.setattr(layerwise, "TOKENS_AT_A_TIME", limit)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kind", [*KINDS, "tiny, FP8"])
@torch.inference_mode()
def test_every_layer_gives_what_it_gives_in_memory_and_shows_what_hooks_show(
    kind: str,
    shape: tuple[int, int, int],
    checkpoint: Checkpoint,
    decoder_of: DecoderOf,
    tmp_path: Path,
    passes_of: Callable[[int], None],
) -> None:
    samples, length, limit = shape
    folder = checkpoint("tiny", fp8="float32") if "FP8" in kind else checkpoint(kind)
    passes_of(limit)
    decoder, ids = decoder_of(folder), tokens(samples, length)
    layers = run(runner_of(folder, ids, tmp_path))
    assert len(layers) == len(decoder.model.layers)
    assert torch.equal(layers[0][0], decoder.model.embed_tokens(ids).flatten(0, 1))
    for layer, (before, after, recorder) in enumerate(layers):
        memory = InMemory(decoder, layer, samples, limit)
        if isinstance(memory.module, MTPLayer):
            before = entering_mtp(decoder, layer, before, ids)
        wanted = memory.run(before)
        if isinstance(memory.module.mlp, MoE):
            count = memory.experts.shape[1] + 2
            assert ((after - wanted).abs() <= 2 * (count - 1) * U * 1.01 * memory.terms).all()
            assert torch.equal(recorder.experts, memory.experts)
            load = memory.experts.flatten().bincount(minlength=len(memory.module.mlp.experts))
            assert recorder.load == load.tolist()
            assert sum(recorder.load) == memory.experts.numel()
        else:
            assert torch.equal(after, wanted)
            assert recorder.load == []
        for name, parts in memory.seen.items():
            if "eh_proj" not in name:
                assert torch.equal(recorder.seen.pop(name), torch.cat(parts)), name
        # V3.2's indexer does not run; its weights have the inputs of those beside them
        for name in list(recorder.seen):
            beside = {"wk": "q_a_proj", "wq_b": "q_b_proj"}.get(name.split(".")[-2])
            if beside is not None and "indexer" in name:
                path = f"model.layers.{layer}.self_attn.{beside}.weight"
                assert torch.equal(recorder.seen.pop(name), torch.cat(memory.seen[path]))
        assert recorder.seen == {}
        for ours, theirs in zip(recorder.kept, memory.kept, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


def entering_mtp(decoder: Decoder, layer: int, before: Tensor, ids: Tensor) -> Tensor:
    """The input of the block of the first MTP layer: its projection, one sample at a time."""
    module = decoder.model.layers[layer]
    assert isinstance(module, MTPLayer)
    hidden = decoder.model.norm(before).view(*ids.shape, -1)
    embedded = decoder.model.embed_tokens(ids)
    return torch.cat([module.project(e[1:], h[:-1]) for e, h in zip(embedded, hidden, strict=True)])


@torch.inference_mode()
def test_a_dense_model_gives_the_states_of_the_decoder_to_the_bit(
    checkpoint: Checkpoint, decoder_of: DecoderOf, tmp_path: Path
) -> None:
    folder = checkpoint("tiny-qwen3")
    ids = tokens(3, 20)
    after = run(runner_of(folder, ids, tmp_path))[-1][1]
    decoder = decoder_of(folder)
    assert torch.equal(decoder.model.norm(after).view(3, 20, -1), decoder.model(ids))


@torch.inference_mode()
def test_an_mtp_layer_gives_the_states_of_the_decoder(
    tiny: Path, decoder_of: DecoderOf, tmp_path: Path
) -> None:
    """The whole module, as `use_mtp` of transformers calls it, except for the norm after it."""
    ids = tokens(1, 30)
    trunk, after, _ = run(runner_of(tiny, ids, tmp_path))[-1]
    decoder = decoder_of(tiny)
    mtp = decoder.model.layers[-1]
    assert isinstance(mtp, MTPLayer)
    states = decoder.model.norm(trunk)[None, :-1]
    angles = rotary(decoder.model.architecture, torch.arange(29))
    wanted = mtp(decoder.model.embed_tokens(ids[:, 1:]), states, angles)[0]
    normed = mtp.shared_head["norm"](after)
    # normed values are near 1; sums of six terms in another order move them in their last bits
    assert (normed - wanted).abs().max() <= 64 * U * wanted.abs().max()


@torch.inference_mode()
def test_a_second_mtp_layer_reads_one_token_further(
    tiny: Path, decoder_of: DecoderOf, tmp_path: Path
) -> None:
    """Its tensors are copies of those of the first; transformers has no such model."""
    from safetensors.torch import save_file

    folder = tmp_path / "two"
    folder.mkdir()
    config = json.loads((tiny / "config.json").read_text()) | {"num_nextn_predict_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    weights: dict[str, Tensor] = {}
    for shard in sorted(tiny.glob("*.safetensors")):
        weights |= load_file(shard)
    for name in [name for name in weights if "layers.3." in name]:
        weights[name.replace("layers.3.", "layers.4.")] = weights[name].clone()
    save_file(weights, folder / "model.safetensors")
    ids = tokens(2, 12)
    runner = runner_of(folder, ids, tmp_path)
    assert [runner.rows(layer) for layer in range(5)] == [24, 24, 24, 22, 20]
    _, first, _ = run(runner)[3]
    before, _, recorder = run(runner)[4]
    assert torch.equal(before, first)
    decoder = decoder_of(folder)
    module = decoder.model.layers[4]
    assert isinstance(module, MTPLayer)
    normed = decoder.model.layers[3].shared_head["norm"](first).view(2, 11, -1)
    embedded = decoder.model.embed_tokens(ids[:, 2:])
    entering = [module.project(e, h[:-1]) for e, h in zip(embedded, normed, strict=True)]
    hidden = torch.cat([module.input_layernorm(part) for part in entering])
    assert torch.equal(recorder.seen["model.layers.4.self_attn.q_a_proj.weight"], hidden)


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
def test_on_the_disk_or_in_memory_the_bits_are_the_same(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    ids, files = tokens(3, 17), set()
    real = layerwise.Spill

    def spill(rows: int, width: int, file: Path | None) -> Any:
        files.add(file is None)
        return real(rows, width, file)

    (tmp_path / "spilled").mkdir()
    in_memory = run(runner_of(checkpoint(kind), ids, tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise, "Spill", spill)
        # three of [51, 256] float32 need 156,672 bytes
        on_disk = run(runner_of(checkpoint(kind), ids, tmp_path / "spilled", 3 * 51 * 256 * 4 - 1))
        assert files == {False} if kind == "tiny-llama" else {False, True}
    for ours, theirs in zip(in_memory, on_disk, strict=True):
        assert torch.equal(ours[1], theirs[1])
        for name, seen in ours[2].seen.items():
            assert torch.equal(seen, theirs[2].seen[name])
    assert list((tmp_path / "spilled").iterdir()) == []


def test_a_stage_holds_its_own_weights_and_no_others(tiny: Path, tmp_path: Path) -> None:
    _, _, recorder = run(runner_of(tiny, tokens(2, 8), tmp_path))[1]
    attention, shared, *experts = recorder.stages
    layer = "model.layers.1"
    assert attention[1] == shared[1] == 16
    assert all("self_attn" in name or "input_layernorm" in name for name in attention[0])
    assert {name.removeprefix(f"{layer}.") for name in shared[0]} == {
        "post_attention_layernorm.weight",
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
        "mlp.shared_experts.down_proj.weight",
    }
    for expert, (names, count) in enumerate(experts):
        parts = ("gate_proj", "up_proj", "down_proj")
        assert names == {f"{layer}.mlp.experts.{expert}.{part}.weight" for part in parts}
        assert count == recorder.load[expert]
    with open_checkpoint(tiny) as checkpoint:
        held = {name for name in checkpoint.tensors if name.startswith(f"{layer}.")}
    assert set().union(*(names for names, _ in recorder.stages)) == held


@torch.inference_mode()
def test_a_sample_longer_than_2048_tokens_is_one_pass(
    checkpoint: Checkpoint, decoder_of: DecoderOf, tmp_path: Path
) -> None:
    folder = checkpoint("tiny-llama")
    ids = tokens(1, 2060)
    after = run(runner_of(folder, ids, tmp_path))[-1][1]
    decoder = decoder_of(folder)
    assert torch.equal(decoder.model.norm(after)[None], decoder.model(ids))


def test_every_quantized_role_has_a_named_input() -> None:
    from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES

    assert INPUTS.keys() == QUANTIZED_ROLES


def test_an_expert_that_no_token_is_sent_to_changes_nothing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """One token has four of the eight experts."""
    _, after, recorder = run(runner_of(checkpoint("tiny-v2-lite"), tokens(1, 1), tmp_path))[-1]
    assert sorted(recorder.load) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert after.isfinite().all()
    for expert, load in enumerate(recorder.load):
        name = f"model.layers.2.mlp.experts.{expert}.down_proj.weight"
        assert (name in recorder.seen) == (load > 0)
