"""What graphs consist of, up to that of all of V3, which is traced from headers alone."""

import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import size
from dstools_converters.export.data import Entry
from dstools_converters.export.deepseek import Options, plan
from dstools_converters.export.genai import pool_of
from dstools_converters.export.graph import Form
from dstools_converters.export.onnx import serialize, tensors_of
from dstools_converters.export.sources import Source, require_same, sources
from dstools_converters.export.trace import trace
from dstools_converters.model.architecture import read_architecture
from dstools_converters.runtime.weights import sound_inventory


@pytest.fixture(scope="module")
def traced(load_script: Callable[[str], Any]) -> Callable[..., ir.Model]:
    """traced(mtp, picks_rows=False): the graph of `tiny`"""
    architecture = read_architecture(load_script("checkpoint_configs").CONFIGS["tiny"])
    made: dict[tuple[bool, bool], ir.Model] = {}

    def get(mtp: bool, picks_rows: bool = False) -> ir.Model:
        key = mtp, picks_rows
        if key not in made:
            form = Form(torch.float32, 512, 64, picks_rows=picks_rows)
            made[key] = trace(architecture, form, mtp=mtp)
        return made[key]

    return get


def ports(values: Any) -> list[tuple[str, str, list[Any]]]:
    return [
        (v.name, v.dtype.name, [s.value if isinstance(s, ir.SymbolicDim) else s for s in v.shape])
        for v in values
    ]


@pytest.mark.parametrize("mtp", [False, True])
def test_rows_of_logits_are_picked_by_an_input(mtp: bool, traced: Any) -> None:
    graph = traced(mtp, picks_rows=True).graph
    assert ports(graph.inputs)[-1] == ("logits_indices", "INT32", ["num_logits"])
    assert ports(graph.outputs)[0] == ("logits", "FLOAT", ["num_logits", 1024])
    assert ports(graph.outputs)[1][2] == ["num_tokens", 256]


@pytest.mark.parametrize(("mtp", "layers"), [(False, 3), (True, 1)])
def test_caches_are_written_by_attention_and_returned_as_they_are(
    mtp: bool, layers: int, traced: Any
) -> None:
    """A node in between would copy the whole pool for every token."""
    graph = traced(mtp).graph
    writers = [output.producer() for output in list(graph.outputs)[2:]]
    assert [node.op_type for node in writers] == ["DsMlaAttention"] * layers + ["Identity"]
    for node, output, cache in zip(
        writers, list(graph.outputs)[2:], graph.inputs[-layers - 1 :], strict=True
    ):
        assert output.name == cache.name.replace("past_key_values", "present")
        assert cache in node.inputs
        assert len(list(cache.uses())) == 1


@pytest.mark.parametrize("mtp", [False, True])
def test_the_file_says_nothing_of_where_it_was_traced(mtp: bool, traced: Any) -> None:
    graph = traced(mtp)
    weights = tensors_of(graph).items()
    entries = [Entry(name, Source(*form, (), is_copy=False), 0) for name, form in weights]
    content = serialize(graph, entries, "model.data")
    for word in (
        b".py",
        b"site-packages",
        b"pkg.",
        b"dstools_converters",
        b"class_hierarchy",
        b"fx",
    ):
        assert word not in content
    model = onnx.load_from_string(content)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.slow
def test_the_graph_of_all_of_v3_is_traced_from_headers_alone(
    checkpoint: Callable[..., Path],
) -> None:
    """671 billion parameters: 61 layers and MTP, each weight of which the checkpoint has."""
    with open_checkpoint(checkpoint("v3-headers")) as opened:
        options = Options("bfloat16", context=4096)
        job = plan(sound_inventory(opened, mtp=True), options, "dstools 0")
        graphs = [trace(job.architecture, job.form, mtp=mtp) for mtp in (False, True)]
        known = sources(job.inventory, job.form, 0)
        limits = pool_of(job.inventory.model, 4, 163_840, 4, 64, mtp=True)
    tokens = 2 * 4 * 163_840  # one pool for the rows of the model, and one for MTP's
    assert limits.num_blocks * 64 == tokens
    assert limits.token_bytes == (62 + 2) * 576 * 4  # 61 layers and MTP, each with an even count
    assert size(tokens * limits.token_bytes) == "193.3 GB"  # as docs/export.md says
    used, nbytes = set(), 0
    for graph in graphs:
        tensors = tensors_of(graph)
        for name, (shape, dtype) in tensors.items():
            require_same(name, known[name], shape, dtype)
        entries = [Entry(name, known[name], 0) for name in tensors]
        nbytes += len(serialize(graph, entries, "model.data"))
        used |= tensors.keys()
    assert [len(graph.graph) for graph in graphs] == [11_760, 285]
    assert nbytes < 2 << 20  # of both files, with the functions
    assert used == known.keys() - unused(known)
    ops = Counter(
        node.op_type for graph in graphs for node in graph.graph if node.domain == "dstools"
    )
    assert ops["DsMlaAttention"] == 62
    assert ops["DsFp8BlockMoE"] == 59
    # of a layer: q_a, q_b, kv_a, o; three of a dense MLP, or of shared experts
    assert ops["DsFp8BlockLinear"] == 62 * 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB; weights are 671 GB


def unused(known: dict[str, Any]) -> set[str]:
    """Return the copies of embedding and head that an MTP layer has of its own."""
    return {
        name
        for name in known
        if name.startswith("model.layers.61.")
        and ("embed_tokens" in name or "shared_head.head" in name)
    }
