"""A runner of checkpoints from disk, one decoder layer at a time: memory is a layer, or an expert.

Hidden states of all samples pass through a layer before the next one is read. Weights of a layer
are in memory a stage at a time: attention, then the dense or shared feed-forward, then one expert
after the other. A watcher sees the inputs of every weight. Tensors are float32; calibration lets
products round their inputs to BF16. Several streams of hidden states can pass through a layer while
its weights are read once; each can have the inputs of FP8 weights rounded as engines do it, see
layerwise/activations.py.

T: tokens, B: samples, S: length of a sample, D: width, K: experts a token is sent to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import slabs
from dstools_converters.checkpoint.tensors import restored, restored_rows
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import HUGGING_FACE, Role, TensorName
from dstools_converters.layerwise.activations import InputRounding, has_rounded_input
from dstools_converters.layerwise.spill import Spill
from dstools_converters.model.architecture import Architecture
from dstools_converters.model.decoder import DecoderLayer, MoE, MTPLayer, RMSNorm
from dstools_converters.model.rotary import rotary

DAMAGED = "`dstools verify` finds damaged weights; if there are none, training diverged"
TOKENS_AT_A_TIME = 2048  # in a forward pass; float sums depend on it, so it is not an option
# The input of each weight, named; weights that share an input have one name. See model/decoder.py.
INPUTS: dict[Role, str] = {
    "q_proj": "hidden", "k_proj": "hidden", "v_proj": "hidden", "q_a_proj": "hidden",
    "kv_a_proj_with_mqa": "hidden", "indexer_wk": "hidden",
    "q_b_proj": "q_latent", "indexer_wq_b": "q_latent", "kv_b_proj": "kv_latent", "o_proj": "heads",
    "dense_gate": "feed_forward", "dense_up": "feed_forward", "dense_down": "inner",
    "shared_gate": "feed_forward", "shared_up": "feed_forward", "shared_down": "inner",
    "routed_gate": "expert", "routed_up": "expert", "routed_down": "expert_inner",
}  # fmt: skip
ATTENTION: frozenset[Role] = frozenset({
    "input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm",
    "q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj",
    "indexer_wq_b", "indexer_wk", "indexer_k_norm", "indexer_weights_proj",
})  # fmt: skip
ENTRANCE: frozenset[Role] = frozenset({"eh_proj", "enorm", "hnorm"})  # of an MTP layer
EXPERTS: frozenset[Role] = frozenset({"routed_gate", "routed_up", "routed_down"})


class Watcher(Protocol):
    """Receiver of what happens in a layer; see `Runner.run_layer`."""

    def begin(self, weights: dict[TensorName, Tensor], tokens: int) -> None:
        """Receive the weights of the next stage and the number of its tokens."""

    def see(self, source: str, values_TD: Tensor) -> None:
        """Receive a batch of one input of INPUTS."""

    def end(self) -> None:
        """End the stage: its weights have seen all tokens and are still in memory."""

    def route(self, experts_TK: Tensor, load: list[int]) -> None:
        """Receive the experts of each token, and the number of tokens of each expert."""

    def cache(self, first: Tensor, second: Tensor) -> None:
        """Receive what goes into the KV cache: latents and rotated keys, or keys and values."""


class Stream(NamedTuple):
    """Hidden states of all tokens on their way through the layers."""

    hidden: Spill
    watcher: Watcher  # sees inputs before they are rounded
    is_rounded: bool  # whether FP8 weights get their inputs as engines round them


class Runner:
    """A checkpoint and the tokens that pass through it.

    `ids` int64 [samples, length]. Hidden states are kept in `folder` if `at_once` of them, which
    are in use at a time, take more than `ram_bytes`.
    """

    def __init__(
        self,
        inventory: Inventory,
        architecture: Architecture,
        ids: Tensor,
        *,
        device: str,
        folder: Path,
        ram_bytes: int,
        at_once: int = 3,
    ) -> None:
        self.inventory = inventory
        self.architecture = architecture
        self.ids = ids
        self.device = device
        self.folder = folder
        self.ram_bytes = ram_bytes
        self.at_once = at_once
        self.num_layers = inventory.model.num_hidden_layers + inventory.model.num_mtp_layers
        self._numbers = count()
        self._weights: dict[int, list[TensorName]] = {}
        for name, _ in inventory.model.weights():
            if name.layer is not None:
                self._weights.setdefault(name.layer, []).append(name)

    def rows(self, layer: int) -> int:
        """Return how many tokens pass a layer: an MTP layer drops one per sample of its input."""
        samples, length = self.ids.shape
        depth = max(layer + 1 - self.inventory.model.num_hidden_layers, 0)
        return samples * (length - depth)

    def spill(self, rows: int) -> Spill:
        """Return room for `rows` hidden states."""
        width = self.inventory.model.hidden_size
        fits = self.at_once * rows * width * 4 <= self.ram_bytes
        file = None if fits else self.folder / f"spill-{next(self._numbers)}"
        return Spill(rows, width, file)

    def load_states(self, layer: int, file: Path) -> Spill | None:
        """Return the input of `layer` from a file that Spill.save wrote; None if there is none."""
        if layer == 0 or not file.exists():
            return None
        hidden = self.spill(self.rows(layer - 1))
        if hidden.load(file):
            return hidden
        hidden.close()
        return None

    def embed(self, ids: Tensor) -> Spill:
        """Return the embeddings of `ids` int64 [T], reading the table once, in order."""
        info = self.inventory.info(TensorName("embed_tokens", "weight"))
        out = self.spill(len(ids))
        ordered, order = torch.sort(ids, stable=True)
        for first, last in slabs(0, info.shape[0], 1, info.shape[1] * 4):
            begin, end = torch.searchsorted(ordered, torch.tensor([first, last])).tolist()
            if begin < end:
                table = restored_rows(self.inventory, info, first, last)
                for part in torch.split(order[begin:end], TOKENS_AT_A_TIME):
                    out.scatter(part, table[ids[part] - first])
        return out

    def run_layer(self, layer: int, hidden: Spill, watcher: Watcher) -> Spill:
        """Return the hidden states after `layer`; `hidden` is closed.

        The input of the first layer is the result of `embed`, that of any other layer, MTP
        included, the output of the layer before.
        """
        (after,) = self.run_streams(layer, [Stream(hidden, watcher, is_rounded=False)])
        return after

    @torch.inference_mode()
    def run_streams(self, layer: int, streams: list[Stream]) -> list[Spill]:
        """Return the hidden states of each stream after `layer`, as `run_layer` does."""
        with torch.device("meta"):
            is_mtp = layer >= self.inventory.model.num_hidden_layers
            module = (MTPLayer if is_mtp else DecoderLayer)(self.architecture, layer).eval()
        if isinstance(module, MTPLayer):
            streams = [
                stream._replace(hidden=self._enter_mtp(module, layer, stream.hidden))
                for stream in streams
            ]
        attended = self._attend(module, layer, streams)
        streams = [s._replace(hidden=h) for s, h in zip(streams, attended, strict=True)]
        return self._feed_forward(module, layer, streams)

    def require_finite(self, layer: int, hidden: Spill) -> None:
        """Raise DstoolsError if the output of a layer holds NaN or infinity."""
        for begin, end in self._batches(hidden.rows):
            if not hidden.read(begin, end).isfinite().all():
                where = self.inventory.model.spelling.layer(layer)
                raise DstoolsError(
                    f"{self.inventory.checkpoint.folder}: {where}: gives NaN or infinity", DAMAGED
                )

    def _attend(self, module: DecoderLayer, layer: int, streams: list[Stream]) -> list[Spill]:
        outs = []
        tokens = [stream.hidden.rows for stream in streams]
        for number in self._stage(module, layer, ATTENTION, streams, tokens):
            hidden, watcher, _ = streams[number]
            length = hidden.rows // len(self.ids)
            angles = rotary(self.architecture, torch.arange(length, device=self.device))
            cache = module.self_attn.cache.register_forward_pre_hook(_shows_cache(watcher))
            out = self.spill(hidden.rows)
            for begin, end in self._batches(hidden.rows):
                batch_BSD = hidden.read(begin, end).to(self.device).view(-1, length, hidden.width)
                out.write(begin, module.attend(batch_BSD, angles).flatten(0, 1))
            cache.remove()
            hidden.close()
            outs.append(out)
        return outs

    def _feed_forward(self, module: DecoderLayer, layer: int, streams: list[Stream]) -> list[Spill]:
        outs, routes, mlp = [], [], module.mlp
        roles = {name.role for name in self._weights[layer]} - ATTENTION - ENTRANCE
        if isinstance(mlp, MoE):
            roles -= EXPERTS
        tokens = [stream.hidden.rows for stream in streams]
        for number in self._stage(module, layer, frozenset(roles), streams, tokens):
            attended, watcher, _ = streams[number]
            out, parts = self.spill(attended.rows), []
            for begin, end in self._batches(attended.rows):
                batch_TD = attended.read(begin, end).to(self.device)
                normed_TD = module.post_attention_layernorm(batch_TD)
                watcher.see("feed_forward", normed_TD)
                if isinstance(mlp, MoE):
                    parts.append([part.cpu() for part in mlp.gate(normed_TD)])
                    attended.write(begin, normed_TD)  # the input of the experts
                    if mlp.shared_experts is not None:
                        batch_TD = batch_TD + mlp.shared_experts(normed_TD)
                else:
                    batch_TD = batch_TD + mlp(normed_TD)
                out.write(begin, batch_TD)
            outs.append(out)
            if isinstance(mlp, MoE):
                routes.append(_Route.of(parts, len(mlp.experts)))
                watcher.route(routes[-1].experts_TK, routes[-1].load)
        if isinstance(mlp, MoE):
            self._run_experts(mlp, layer, routes, streams, outs)
        for stream in streams:
            stream.hidden.close()
        return outs

    def _run_experts(
        self, moe: MoE, layer: int, routes: "list[_Route]", streams: list[Stream], outs: list[Spill]
    ) -> None:
        """Add the outputs of the experts to `outs`, one expert in memory at a time.

        The hidden states of the streams are the normed inputs of the experts.
        """
        for expert, module in enumerate(moe.experts):
            tokens = [route.load[expert] for route in routes]
            for number in self._stage(module, layer, EXPERTS, streams, tokens, expert):
                normed, watcher, _ = streams[number]
                route, out = routes[number], outs[number]
                chosen = route.by_expert[expert]
                for part in torch.split(chosen, TOKENS_AT_A_TIME) if len(chosen) else ():
                    rows = part // route.experts_TK.shape[1]
                    batch_TD = normed.gather(rows).to(self.device)
                    watcher.see("expert", batch_TD)
                    made_TD = module(batch_TD) * route.shares[part, None].to(self.device)
                    out.scatter(rows, out.gather(rows) + made_TD.cpu())

    def _enter_mtp(self, module: MTPLayer, layer: int, hidden: Spill) -> Spill:
        """Return what the block of an MTP layer runs on; see model.MTPLayer."""
        before = layer - 1
        is_first = before < self.inventory.model.num_hidden_layers
        role: Role = "norm" if is_first else "shared_head_norm"
        name = TensorName(role, "weight", None if is_first else before, None, not is_first)
        norm = RMSNorm(hidden.width, self.architecture.rms_norm_eps)
        norm.weight = nn.Parameter(self.load(name))
        samples, length = len(self.ids), hidden.rows // len(self.ids)
        shift = self.ids.shape[1] - length + 1
        embedded = self.embed(self.ids[:, shift:].flatten())
        out = self.spill(samples * (length - 1))
        with self._loaded(module, layer, ENTRANCE):
            for sample in range(samples):
                states_SD = hidden.read(sample * length, (sample + 1) * length)[:-1]
                begin = sample * (length - 1)
                next_SD = embedded.read(begin, begin + length - 1).to(self.device)
                out.write(begin, module.project(next_SD, norm(states_SD.to(self.device))))
        embedded.close()
        hidden.close()
        return out

    def _stage(
        self,
        module: nn.Module,
        layer: int,
        roles: frozenset[Role],
        streams: list[Stream],
        tokens: list[int],
        expert: int | None = None,
    ) -> Iterator[int]:
        """Load the weights of these roles and yield the number of each stream that is to run."""
        with self._loaded(module, layer, roles, expert) as weights:
            for number, (stream, count) in enumerate(zip(streams, tokens, strict=True)):
                stream.watcher.begin(weights, count)
                hooks = self._hooks(module, weights, stream)
                yield number
                for hook in hooks:
                    hook.remove()
                stream.watcher.end()

    def _hooks(
        self, module: nn.Module, weights: dict[TensorName, Tensor], stream: Stream
    ) -> list[RemovableHandle]:
        """Show the inputs of these weights to the watcher, then round them."""
        hooks, sources = [], {"feed_forward", "expert"}  # shown elsewhere
        for name in weights:
            source = INPUTS.get(name.role)
            if name.part == "weight" and source is not None and source not in sources:
                sources.add(source)
                linear = module.get_submodule(_inside(name))
                hooks.append(linear.register_forward_pre_hook(_shows(stream.watcher, source)))
        if stream.is_rounded and self.inventory.scheme is not None:
            rounding = InputRounding(self.inventory.scheme)
            for name in weights:
                if has_rounded_input(self.inventory, name):
                    linear = module.get_submodule(_inside(name))
                    hooks.append(linear.register_forward_pre_hook(rounding))
        return hooks

    @contextmanager
    def _loaded(
        self, module: nn.Module, layer: int, roles: frozenset[Role], expert: int | None = None
    ) -> Iterator[dict[TensorName, Tensor]]:
        """Load the weights of these roles into `module`, which holds no others."""
        names = [n for n in self._weights[layer] if n.role in roles and n.expert == expert]
        weights = {name: self.load(name) for name in names}
        state = {f"{_inside(name)}.{name.part}": weight for name, weight in weights.items()}
        module.load_state_dict(state, strict=False, assign=True)
        yield weights
        empty = {key: value.to("meta") for key, value in state.items()}
        module.load_state_dict(empty, strict=False, assign=True)

    def load(self, name: TensorName) -> Tensor:
        """Return a whole tensor as float32, FP8 as code times scale."""
        return restored(self.inventory, self.inventory.info(name)).to(self.device)

    def load_rows(self, name: TensorName, first: int, last: int) -> Tensor:
        """Return rows [first, last) as `load` does; for FP8, `first` must start a block."""
        info = self.inventory.info(name)
        return restored_rows(self.inventory, info, first, last).to(self.device)

    def _batches(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yield spans of whole samples."""
        length = rows // len(self.ids)
        step = max(TOKENS_AT_A_TIME // length, 1) * length
        for begin in range(0, rows, step):
            yield begin, min(begin + step, rows)


class _Route(NamedTuple):
    """The experts of the tokens of one stream."""

    experts_TK: Tensor
    shares: Tensor  # [T K]
    load: list[int]  # tokens of each expert
    by_expert: tuple[Tensor, ...]  # places of each expert in `experts_TK`, flat, in order

    @classmethod
    def of(cls, parts: list[list[Tensor]], experts: int) -> "_Route":
        experts_TK, shares_TK = (torch.cat(part) for part in zip(*parts, strict=True))
        load = torch.bincount(experts_TK.flatten(), minlength=experts).tolist()
        places = torch.argsort(experts_TK.flatten(), stable=True)
        return cls(experts_TK, shares_TK.flatten(), load, torch.split(places, load))


def _inside(name: TensorName) -> str:
    """Return the path of the module within our decoder layer, or within the expert."""
    inside = HUGGING_FACE.path(name)
    return inside.rpartition(".")[2] if name.expert is not None else inside


def _shows(watcher: Watcher, source: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def show(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        watcher.see(source, args[0].flatten(0, -2))

    return show


def _shows_cache(watcher: Watcher) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
    def show(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        watcher.cache(*args)

    return show
