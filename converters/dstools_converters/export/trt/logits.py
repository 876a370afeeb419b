"""Compares the logits of an exported folder in ONNX Runtime with those of the serving form.

ONNX Runtime's CPU provider multiplies no BF16, and computes chains of FP16 in FP32, so that a
session in FP16 hides overflow. So graphs of both run as a twin: the very file with its types made
float32, over its own weights, widened. The reference has its weights rounded to the same dtype.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from dstools_converters.errors import ShortfallError, disk_errors
from dstools_converters.export.data import ALIGNMENT, read_back
from dstools_converters.export.deepseek import Job
from dstools_converters.export.folder import DATA, DRAFT_GRAPH, GRAPH, ROWS, Export
from dstools_converters.export.rounding import bound
from dstools_converters.export.sources import DTYPES, ROUTER, sources
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.runtime.pages import Batch
from dstools_converters.runtime.serving import Serving
from dstools_converters.runtime.weights import STACKS, serving_of

log = logging.getLogger(__name__)

LENGTHS = (70, 1, 37)  # tokens of prompts: more than a page, one, and less than a page
HALVES = {onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16}
FLOAT32 = onnx.TensorProto.FLOAT
OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
FULL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def require_twin_space(folder: Path, job: Job, more: int) -> None:
    """Raise DstoolsError where the disk has no room for a folder's twin and `more` bytes.

    Deletes the twin that a killed check has left.
    """
    if job.form.dtype == torch.float32:
        return
    halves = {DTYPES[dtype] for dtype in HALVES.values()}
    held = sources(job.inventory, job.form, 0).values()
    nbytes = sum(2 * source.nbytes if source.dtype in halves else source.nbytes for source in held)
    with _twin(folder) as twin:
        twin.start_over()
        twin.require_space(nbytes + more)
        twin.clean_up()


def _twin(folder: Path) -> Unfinished:
    """Return the place of a folder's twin, beside it, which one check at a time may use."""
    place = folder.resolve()
    return Unfinished(place.with_name(f"{place.name}.twin"), {"twin": place.name})


def require_same_logits(folder: Path, export: Export, job: Job) -> None:
    """Raise ShortfallError where the logits of a folder are not those of its checkpoint.

    Prompts of three rows and then a token each, pages shuffled, caches full of NaN; the MTP layer,
    too, where there is one. They may differ by rounding, as those with ONNX Runtime's optimiser and
    without may. Needs about twice the weights in FP32.
    """
    relative = bound(job.inventory.model)
    serving = serving_of(job.inventory, torch.float32, torch.device("cpu"), keeps_codes=False)
    _round(serving, job)
    names = [GRAPH, DRAFT_GRAPH] if export.has_mtp else [GRAPH]
    with runnable(folder, export, names) as graphs:
        for name, graph in zip(names, graphs, strict=True):
            steps = list(reference(serving, job, is_draft=name == DRAFT_GRAPH))
            full, off = (logits_of(graph, steps, level) for level in (FULL, OFF))
            for step, optimized, plain in zip(steps, full, off, strict=True):
                given = optimized[step.rows]
                _require(folder / name, "the checkpoint's", given, step.logits, relative)
                _require(folder / name, "its own without optimiser", optimized, plain, relative)


def _require(file: Path, what: str, logits: Tensor, wanted: Tensor, relative: float) -> None:
    """Raise ShortfallError where logits differ by more than `relative` of the largest."""
    difference, most = float((logits - wanted).abs().amax()), relative * float(wanted.abs().amax())
    log.info("%s: logits within %.2g of %s", file, difference, what)
    if not difference <= most:  # NaN, too
        raise ShortfallError(
            f"{file}: logits in ONNX Runtime differ from {what} by {difference:.2g}, more than "
            f"{most:.2g}",
            "report it with the config.json of the checkpoint",
        )


class Step(NamedTuple):
    """New tokens, and what the reference makes of them."""

    batch: Batch
    hidden: Tensor  # [T, D], the states that a draft takes
    rows: Tensor  # [R] of the tokens whose logits are compared
    logits: Tensor  # [R, V]


def reference(serving: Serving, job: Job, *, is_draft: bool) -> Iterator[Step]:
    """Yield two steps of the serving form: prompts, then a token of each row."""
    page, context = job.form.page, job.context
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([min(length, context - 1) for length in LENGTHS])
    table = _table(counts + 1, page, generator)
    caches = serving.new_caches(int(table.max()) + 1, page)
    past = torch.zeros_like(counts)
    for new in (counts, torch.ones_like(counts)):
        ends = new.cumsum(0)
        ids = torch.randint(job.inventory.model.vocab_size, (int(ends[-1]),), generator=generator)
        cumulative = torch.cat((torch.zeros(1, dtype=torch.int64), ends))
        batch = Batch(ids, table, cumulative.int(), past.int())
        rows = ends - 1 if is_draft else torch.arange(len(ids))
        logits, hidden = serving(batch, rows, caches)
        if is_draft:
            logits, _ = serving.draft(batch, hidden, rows, caches)
        yield Step(batch, hidden, rows, logits)
        past = past + new


def _table(lengths: Tensor, page: int, generator: torch.Generator) -> Tensor:
    """Return pages [B, N] int32 in a random order, never page 0; -1 where a row has fewer."""
    needs = [math.ceil(length / page) for length in lengths.tolist()]
    pages = torch.randperm(sum(needs), generator=generator).int() + 1
    rows = list(torch.split(pages, needs))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def logits_of(graph: Path, steps: list[Step], level: Any) -> list[Tensor]:
    """Return the logits [T, V] of each step in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    pages, result = int(steps[0].batch.block_table.max()) + 1, []
    feed: dict[str, Any] = {"attention_metadata": np.zeros(3, np.int32)}
    for port in session.get_inputs():
        if port.name.startswith("past_key_values"):
            feed[port.name] = np.full((pages, *port.shape[1:]), np.nan, np.float32)
    asked = {port.name for port in session.get_inputs()}
    for step in steps:
        named = step.batch._asdict() | {"hidden_states": step.hidden}
        named[ROWS] = torch.arange(len(step.batch.input_ids), dtype=torch.int32)
        feed |= {name: value.numpy() for name, value in named.items() if name in asked}
        given = dict(zip(names, session.run(names, feed), strict=True))
        result.append(torch.from_numpy(given["logits"]))
        for name in names:
            if name.startswith("present"):
                feed[name.replace("present", "past_key_values")] = given[name]
    return result


def _round(serving: Serving, job: Job) -> None:
    """Round the weights that the folder holds in its dtype."""
    model = job.inventory.model
    exact = {f"decoder.{model.spelling.module(n)}" for n, _ in model.weights() if n.role in ROUTER}
    for name in job.form.codes:
        if name.expert is None:
            exact.add(f"decoder.{model.spelling.module(name)}")
        else:
            exact.add(f"decoder.model.layers.{name.layer}.mlp.{STACKS[name.role]}")
    for path, parameter in serving.named_parameters():
        if path.rpartition(".")[0] not in exact:
            parameter.data = parameter.data.to(job.form.dtype).float()


@contextmanager
def runnable(folder: Path, export: Export, names: list[str]) -> Iterator[list[Path]]:
    """Yield files that ONNX Runtime's CPU provider runs: those of the folder, or their twins."""
    if export.dtype == "float32":
        yield [folder / name for name in names]
        return
    with _twin(folder) as unfinished:
        twin = unfinished.start_over()
        try:
            models = [onnx.load(folder / name, load_external_data=False) for name in names]
            with disk_errors(twin):
                _widen(folder / DATA, twin / DATA, models)
                for name, model in zip(names, models, strict=True):
                    _retype(model)
                    (twin / name).write_bytes(model.SerializeToString())
            yield [twin / name for name in names]
        finally:
            unfinished.clean_up()


def _widen(source: Path, target: Path, models: list[onnx.ModelProto]) -> None:
    """Write the weights of graphs with float32 for halves, and tell the graphs where they are."""
    places: dict[tuple[int, int], tuple[int, int]] = {}  # of what is written already
    with source.open("rb") as data, target.open("wb") as file:
        for tensor in (tensor for model in models for tensor in model.graph.initializer):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            place = int(entries["offset"]), int(entries["length"])
            half = HALVES.get(tensor.data_type)
            if place not in places:
                file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                begin = file.tell()
                for piece in read_back(data.fileno(), *place):
                    if half is None:
                        file.write(piece)
                    else:
                        values = torch.frombuffer(bytearray(piece), dtype=half)
                        file.write(values.float().numpy().tobytes())
                places[place] = begin, file.tell() - begin
            begin, length = places[place]
            tensor.data_type = tensor.data_type if half is None else FLOAT32
            del tensor.external_data[:]
            for key, value in (("location", DATA), ("offset", begin), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def _retype(model: onnx.ModelProto) -> None:
    """Make float32 of all halves of a graph but its initializers."""
    graph = model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = FLOAT32
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in HALVES:
                attribute.i = FLOAT32
            elif attribute.HasField("t") and attribute.t.data_type in HALVES:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
