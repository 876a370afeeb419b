"""Graphs of all ranks, cut at their collectives and summed there, say what the whole one says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from safetensors import safe_open

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError
from dstools_converters.export.deepseek import Options, plan
from dstools_converters.export.folder import require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.runtime.weights import sound_inventory

BOUND = 1e-4  # of a logit; sums of parts are sums in another order
FP8 = onnx.TensorProto.FLOAT8E4M3FN
pytestmark = pytest.mark.usefixtures("one_thread")


class Rank:
    """The graph of one rank in parts, each of which needs the sums before it."""

    def __init__(self, folder: Path, name: str, copy: Path, fed: dict[str, Any]) -> None:
        shutil.copytree(folder, copy)
        self.folder, self.fed = copy, fed
        self.model = onnx.load(copy / name, load_external_data=False)
        nodes = [node for node in self.model.graph.node if node.op_type == "DistCollective"]
        self.parts, self.sums = [n.input[0] for n in nodes], [n.output[0] for n in nodes]
        self.outputs = [output.name for output in self.model.graph.output]
        self.sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}

    def run(self, outputs: list[str], feed: dict[str, Any], sums: list[np.ndarray]) -> list[Any]:
        """Return some values, of the sums at the collectives that they depend on."""
        given = self.fed | feed | dict(zip(self.sums, sums, strict=False))
        session = self.session(outputs)
        binding = session.io_binding()
        for port in session.get_inputs():
            value = given[port.name]
            if isinstance(value, np.ndarray):
                value = onnxruntime.OrtValue.ortvalue_from_numpy(value)
            binding.bind_ortvalue_input(port.name, value)
        for output in outputs:
            binding.bind_output(output)
        session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    def session(self, outputs: list[str]) -> onnxruntime.InferenceSession:
        key = tuple(outputs)
        if key not in self.sessions:
            path = self.folder / "cut.onnx"
            path.write_bytes(self.cut(outputs).SerializeToString())
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.sessions[key] = onnxruntime.InferenceSession(path, options)
        return self.sessions[key]

    def keep(self, outputs: list[Any]) -> None:
        """Give the next step the caches that this one returned."""
        for name, value in zip(self.outputs, outputs, strict=True):
            if name.startswith("present"):
                self.fed[name.replace("present", "past_key_values")] = value

    def cut(self, outputs: list[str]) -> onnx.ModelProto:
        """Return what makes these values; the sums are inputs."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        graph, wanted, nodes = made.graph, set(outputs), []
        for node in reversed(self.model.graph.node):
            if node.op_type != "DistCollective" and wanted & set(node.output):
                nodes.append(node)
                wanted |= set(node.input)
        for field in ("node", "input", "output", "initializer"):
            graph.ClearField(field)
        graph.node.extend(reversed(nodes))
        own = self.model.graph
        graph.initializer.extend(tensor for tensor in own.initializer if tensor.name in wanted)
        graph.input.extend(value for value in own.input if value.name in wanted)
        for name in self.sums:
            if name in wanted:
                graph.input.append(value_of(name))
        known = {value.name: value for value in own.output}
        graph.output.extend(known.get(name) or value_of(name) for name in outputs)
        return made


def value_of(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["num_tokens", "hidden"])


def together(ranks: list[Rank], feed: dict[str, Any]) -> list[list[Any]]:
    """Return the outputs of each rank, in the order of its graph."""
    sums: list[np.ndarray] = []
    for place in range(len(ranks[0].parts)):
        parts = [rank.run([rank.parts[place]], feed, sums)[0] for rank in ranks]
        sums.append(np.sum(parts, axis=0))
    return [rank.run(rank.outputs, feed, sums) for rank in ranks]


def a_batch(folder: Path, pages: int = 6) -> dict[str, Any]:
    """Return a prompt of 70 tokens and one of 3, and caches of NaN."""
    config = json.loads((folder / "config.json").read_text())
    rng = np.random.default_rng(0)
    width = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    cache = np.full((pages, 64, 1, width), np.nan, np.float32)
    pairs = -(-config["num_hidden_layers"] // 2)
    names = [f"past_key_values.{i}.{part}" for i in range(pairs) for part in ("key", "value")]
    return {
        "input_ids": rng.integers(3, config["vocab_size"], 73),
        "block_table": np.array([[4, 1], [2, -1]], np.int32),
        "cumulative_sequence_lengths": np.array([0, 70, 73], np.int32),
        "past_sequence_lengths": np.zeros(2, np.int32),
        "attention_metadata": np.zeros(3, np.int32),
        "hidden_states": rng.standard_normal((73, config["hidden_size"]), np.float32),
    } | dict.fromkeys(names, cache)


def a_token_each(prompts: dict[str, Any]) -> dict[str, Any]:
    """Return the step after `a_batch`, but for its caches."""
    rng = np.random.default_rng(1)
    given = {name: value for name, value in prompts.items() if not name.startswith("past_key")}
    return given | {
        "input_ids": prompts["input_ids"][[5, 71]],
        "cumulative_sequence_lengths": np.array([0, 1, 2], np.int32),
        "past_sequence_lengths": np.array([70, 3], np.int32),
        "hidden_states": rng.standard_normal((2, prompts["hidden_states"].shape[1]), np.float32),
    }


def assert_equal(ranks: list[Rank], alone: Rank, prompts: dict[str, Any]) -> None:
    """Compare logits and states of two steps; of caches, what was written."""
    for feed in (prompts, a_token_each(prompts)):
        found, (wanted,) = together(ranks, feed), together([alone], feed)
        assert np.isfinite(wanted[0]).all()
        for outputs in found:
            for ours, theirs in zip(outputs, wanted, strict=True):
                assert np.array_equal(np.isnan(ours), np.isnan(theirs))
                assert np.nanmax(np.abs(ours - theirs), initial=0) <= BOUND
        for rank, outputs in zip((*ranks, alone), (*found, wanted), strict=True):
            rank.keep(outputs)


DIVIDED = {
    "tp 2": Ranks(tp=2),
    "ep 2": Ranks(ep=2),
    "ep 4": Ranks(ep=4),
    "tp 2, ep 2": Ranks(tp=2, ep=2),
}


@pytest.mark.parametrize("name", ["model.onnx", "mtp.onnx"])
@pytest.mark.parametrize("ranks", DIVIDED.values(), ids=DIVIDED.keys())
def test_ranks_together_say_what_the_whole_model_says(
    ranks: Ranks, name: str, tiny: Path, exported: Any, tmp_path: Path
) -> None:
    options, feed = Options(context=512), a_batch(tiny)
    out = exported(tiny, Options(context=512, ranks=ranks))
    of_ranks = [
        Rank(out / f"rank{rank}", name, tmp_path / str(rank), {}) for rank in range(ranks.count)
    ]
    assert len(of_ranks[0].parts) == collectives(ranks, name)
    assert_equal(of_ranks, Rank(exported(tiny, options), name, tmp_path / "whole", {}), feed)


def collectives(ranks: Ranks, name: str) -> int:
    """Two a layer with tp, else one for the experts; the first of three layers is dense."""
    layers, moe = (1, 1) if name == "mtp.onnx" else (3, 2)
    return 2 * layers if ranks.tp > 1 else moe


@pytest.mark.parametrize("ranks", [Ranks(ep=2), Ranks(tp=2)], ids=["ep 2", "tp 2"])
def test_ranks_of_codes_together_say_what_the_whole_model_says(
    ranks: Ranks, tiny_fp8: Path, divisible: Path, exported: Any, tmp_path: Path
) -> None:
    source = tiny_fp8 if ranks.tp == 1 else divisible
    feed = a_batch(source)
    out = exported(source, Options(context=512, ranks=ranks))
    of_ranks = [Rank(out / f"rank{n}", "model.onnx", tmp_path / str(n), {}) for n in range(2)]
    alone = Rank(exported(source, Options(context=512)), "model.onnx", tmp_path / "whole", {})
    assert_equal(of_ranks, alone, feed)


@pytest.fixture
def divisible(make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an FP8 checkpoint whose slices for two ranks consist of blocks of 128."""
    sizes = {"intermediate_size": 512, "moe_intermediate_size": 256}
    config = make_checkpoint.CONFIGS["tiny-aligned"] | sizes
    monkeypatch.setitem(make_checkpoint.CONFIGS, "tiny-divisible", config)
    return make_checkpoint.make("tiny-divisible", tmp_path / "divisible", fp8="float32")  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------- experts as inputs


def experts_of(folders: list[Path]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Return the experts of all ranks by their names, stacked, and which of them are codes."""
    found: dict[str, list[np.ndarray]] = {}
    codes = set()
    for folder in folders:
        data = (folder / "experts.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        del header["__metadata__"]
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            kind = {"F32": np.float32, "I32": np.int32, "F8_E4M3": np.uint8}[entry["dtype"]]
            values = np.frombuffer(data[8 + length :][begin:end], kind).reshape(entry["shape"])
            found.setdefault(name, []).append(values)
            codes |= {name} if entry["dtype"] == "F8_E4M3" else set()
    return {name: np.concatenate(parts) for name, parts in found.items()}, codes


def placed(
    experts: dict[str, np.ndarray], codes: set[str], own: list[int], used: list[int]
) -> dict[str, Any]:
    """Return the inputs of a rank that holds `own`, of which it answers for `used`."""
    fed: dict[str, Any] = {}
    for name, values in experts.items():
        if name.endswith(".map"):
            places = np.full(8, -1, np.int32)
            places[used] = [own.index(expert) for expert in used]
            fed[name] = places
            continue
        value = np.ascontiguousarray(values[own])
        fed[name] = (
            onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(value, FP8)
            if name in codes
            else value
        )
    return fed


PLACEMENTS = {  # of each rank: experts in their order, and those that it answers for
    "as exported": [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5, 6, 7], [4, 5, 6, 7])],
    "permuted": [([7, 2, 5, 0], [0, 2, 5, 7]), ([3, 1, 6, 4], [1, 3, 4, 6])],
    # the first holds expert 5 twice: the balancer of DeepSeek (EPLB) places copies so, too
    "duplicated": [([7, 2, 5, 5, 0, 3, 6], [0, 2, 5, 7]), ([3, 1, 6, 4, 7, 0], [1, 3, 4, 6])],
    "uneven": [([6], [6]), ([0, 1, 2, 3, 4, 5, 7], [0, 1, 2, 3, 4, 5, 7])],
    "of four ranks": [([6, 1], [1, 6]), ([0, 3, 7], [0, 3]), ([4, 2], [2, 4]), ([5, 7], [5, 7])],
}


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS.keys())
@pytest.mark.parametrize("fp8", [None, "float32"], ids=["plain", "codes"])
def test_experts_that_are_inputs_may_be_anywhere_and_copied(
    fp8: Any,
    placement: list[tuple[list[int], list[int]]],
    checkpoint: Callable[..., Path],
    exported: Any,
    tmp_path: Path,
) -> None:
    """Graphs of ranks are alike, and one does not know how many there are."""
    source = checkpoint("tiny", fp8=fp8) if fp8 else checkpoint("tiny")
    ranks = Ranks(ep=2)
    out = exported(source, Options(context=512, ranks=ranks, expert_inputs=True))
    experts, codes = experts_of([out / f"rank{rank}" for rank in range(2)])
    feed = a_batch(source)
    of_ranks = [
        Rank(
            out / f"rank{n % 2}", "model.onnx", tmp_path / str(n), placed(experts, codes, own, used)
        )
        for n, (own, used) in enumerate(placement)
    ]
    alone = Rank(exported(source, Options(context=512)), "model.onnx", tmp_path / "whole", {})
    assert_equal(of_ranks, alone, feed)


def test_the_file_of_experts_is_one_that_safetensors_reads(tiny: Path, exported: Any) -> None:
    out = exported(tiny, Options(context=512, ranks=Ranks(ep=2), expert_inputs=True))
    export = require_export(out)
    with safe_open(out / "rank1" / "experts.safetensors", "np") as file:
        listed = {w.name: w.shape for w in export.weights["rank1/experts.safetensors"]}
        assert {name: tuple(file.get_slice(name).get_shape()) for name in listed} == listed
        assert set(file.keys()) == set(listed)
        places = file.get_tensor("model.layers.1.mlp.experts.map").tolist()
    assert places == [-1, -1, -1, -1, 0, 1, 2, 3]
    shapes = {port.name: port.shape for port in export.graphs[0].inputs}
    for name, shape in listed.items():
        if ".layers.3." not in name:  # of mtp.onnx
            count, *rest = map(str, shape)
            first = count if name.endswith(".map") else "num_local_experts"
            assert shapes[name] == (first, *rest)


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("kind", "ranks", "named"),
    [
        ("tiny", Ranks(tp=2), "self_attn.q_b_proj.weight"),  # 192 rows, 96 of each
        ("tiny-aligned", Ranks(tp=2), "mlp.gate_proj.weight"),  # 384, 192 of each
        ("tiny-aligned", Ranks(tp=2, ep=2), "mlp.gate_proj.weight"),
    ],
)
def test_a_slice_of_codes_without_whole_blocks_is_refused_by_name(
    kind: str, ranks: Ranks, named: str, checkpoint: Callable[..., Path]
) -> None:
    with (
        open_checkpoint(checkpoint(kind, fp8="float32")) as opened,
        pytest.raises(DstoolsError, match=named),
    ):
        plan(sound_inventory(opened, mtp=True), Options(context=512, ranks=ranks), "dstools 0")
