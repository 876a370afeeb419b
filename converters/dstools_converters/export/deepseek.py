"""The export of a DeepSeek checkpoint: graphs traced without weights, weights streamed beside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import torch

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.scheme import BLOCK_SIZE
from dstools_converters.errors import DstoolsError, UnsupportedError
from dstools_converters.export.data import DataFile, Progress, fill, lay_out, lay_out_safetensors
from dstools_converters.export.folder import (
    DATA,
    DRAFT_GRAPH,
    EXPERTS,
    EXPORT,
    GENAI_CONFIG,
    GRAPH,
    ROWS,
    Export,
    Pool,
    Precision,
    Weight,
    content_sha256,
    rank_folders,
    read_export,
    require_export,
)
from dstools_converters.export.functions import BODIES
from dstools_converters.export.genai import Tokens, genai_config, pool_of
from dstools_converters.export.genai_tokenizer import agrees, remarks
from dstools_converters.export.graph import Form, is_of_experts
from dstools_converters.export.onnx import make_inputs, note_of, serialize, tensors_of
from dstools_converters.export.ranks import WHOLE, Ranks, require_divisible
from dstools_converters.export.sources import Source, made, require_same, sources
from dstools_converters.export.trace import OPSET, trace
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.families.shapes import MLA
from dstools_converters.files import to_json
from dstools_converters.model.architecture import Architecture, read_architecture
from dstools_converters.runtime.pages import PAGE
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.weights import coded_names, read_positions
from dstools_converters.settings import Settings, difference


@dataclass(frozen=True)
class Options:
    """The options of an export of graphs."""

    dtype: Precision = "float32"
    context: int | None = None  # None: all positions of the model
    max_batch: int = 4
    page: int = PAGE
    mtp: bool = True
    ranks: Ranks = WHOLE
    expert_inputs: bool = False
    picks_rows: bool = False


@dataclass(frozen=True)
class Job:
    """An export that is possible, and what it is made of."""

    inventory: Inventory
    architecture: Architecture
    options: Options
    form: Form
    tool: str

    @property
    def context(self) -> int:
        """Return how many tokens a row has at most."""
        return self.form.positions

    @property
    def settings(self) -> Settings:
        """Return all that decides the bytes that are written."""
        options, source = self.options, self.inventory.checkpoint.digest
        return {
            "tool": self.tool,
            "source": source,
            "--onnx": True,
            "--dtype": options.dtype,
            "--context": self.context,
            "--max-batch": options.max_batch,
            "--page-size": options.page,
            "--mtp": options.mtp,
            "--tp": options.ranks.tp,
            "--ep": options.ranks.ep,
            "--expert-weights": "input" if options.expert_inputs else "baked",
            "--logits-indices": options.picks_rows,
        }

    @property
    def identity(self) -> str:
        """Return a sha256 of what is exported and how: on another machine, too, it is the same.

        Of the checkpoint it has config and headers, not the weights.
        """
        checkpoint = self.inventory.checkpoint
        parts = [self.tool, str(replace(self.options, context=self.context))]
        parts.append(json.dumps(checkpoint.config, sort_keys=True))
        parts += [f"{s.name} {s.nbytes} {s.header_sha256}" for s in checkpoint.shards.values()]
        return sha256("\n".join(parts).encode()).hexdigest()


def plan(inventory: Inventory, options: Options, tool: str) -> Job:
    """Return what exporting a checkpoint takes; nothing is read but its headers.

    The inventory is that of `sound_inventory`, with or without MTP as the options say. Raises
    DstoolsError for what cannot be exported as asked.
    """
    model, config = inventory.model, inventory.checkpoint.config
    if not isinstance(model.attention, MLA):
        raise UnsupportedError(
            f"config.json: model_type {model.model_type!r} does not use MLA",
            "only DeepSeek's do; those of Llama and Qwen go to onnxruntime-genai's builder",
        )
    if options.mtp and not model.num_mtp_layers:
        raise DstoolsError(f"{inventory.checkpoint.folder}: has no MTP layer", "leave --mtp out")
    if options.page != PAGE:
        raise DstoolsError(
            f"--page-size {options.page}: the kernels read pages of {PAGE} tokens",
            f"--page-size {PAGE}",
        )
    architecture = replace(read_architecture(config), model=model)
    positions = read_positions(config, architecture)
    context = options.context or positions
    if context > positions:
        is_sparse = positions == architecture.index_topk
        what = "'s attention is dense up to index_topk only," if is_sparse else " has"
        raise DstoolsError(
            f"--context {context}: the model{what} {positions} positions", f"--context {positions}"
        )
    codes = coded_names(inventory)
    require_divisible(model, options.ranks, codes)
    form = Form(
        getattr(torch, options.dtype),
        context,
        options.page,
        codes,
        options.ranks,
        options.expert_inputs,
        options.picks_rows,
    )
    return Job(inventory, architecture, options, form, tool)


def caveats(job: Job) -> tuple[str, ...]:
    """Return sentences on what of the checkpoint an export does not keep."""
    config, scheme, sentences = job.inventory.checkpoint.config, job.inventory.scheme, []
    positions = config["max_position_embeddings"]
    if job.options.context is None and job.context < positions:
        sentences.append(
            f"the context is {job.context:,} tokens (index_topk) of the model's {positions:,}: "
            "beyond, its attention is sparse"
        )
    if scheme is not None and scheme.block_size != (BLOCK_SIZE, BLOCK_SIZE):
        rows, columns = scheme.block_size
        sentences.append(
            f"FP8 weights are widened to {job.options.dtype}: their blocks are {rows} x {columns}, "
            f"and the ops take {BLOCK_SIZE} x {BLOCK_SIZE}"
        )
    return tuple(sentences)


class Beside(NamedTuple):
    """The content of a folder besides graphs and weights."""

    tokens: Tokens
    sampling: Sampling
    files: Mapping[str, Path | bytes]  # of the checkpoint, by name
    notes: tuple[str, ...] = ()  # sentences for export.json


def run(job: Job, out: Path, beside: Beside, *, workers: int, progress: Progress) -> Export:
    """Write the folder OUT, or what an interrupted run has left of it; return its export.json.

    Raises DstoolsError where OUT exists, for weights that are not finite or that the dtype cannot
    hold, and where the disk is full.
    """
    with Unfinished(out, job.settings) as folder:
        if folder.is_published:
            folder.clean_up()
            return require_export(out)
        graphs = {GRAPH: trace(job.architecture, job.form, mtp=False)}
        if job.options.mtp:
            graphs[DRAFT_GRAPH] = trace(job.architecture, job.form, mtp=True)
        rank_files = [_data_files(job, graphs, rank) for rank in range(job.form.ranks.count)]
        contents = _contents(graphs, rank_files[0])
        notes = [note_of(graph, name) for name, graph in graphs.items()]
        written = [file for files in rank_files for file in files]
        folder.require_space(sum(file.nbytes for file in written))
        weights = {
            file.path: _weights(file, fill(job.inventory, file, folder, workers, progress))
            for file in written
        }
        job.inventory.checkpoint.check_unmoved()
        small = dict(beside.files)
        for place in rank_folders(job.form.ranks.count):
            small |= {f"{place}{name}": content for name, content in contents.items()}
        if job.form.ranks.count == 1 and not job.form.expert_inputs:
            small[GENAI_CONFIG] = _genai_config(job, beside)
        verdict = agrees(beside.files)
        export = replace(
            _export(job),
            bodies={op: BODIES[op] for op in sorted({op for n in notes for op in n.plugins})},
            genai_tokenizer=verdict,
            notes=(*beside.notes, *remarks(verdict)),
            graphs=tuple(
                replace(note, file=f"{place}{note.file}")
                for place in rank_folders(job.form.ranks.count)
                for note in notes
            ),
            files={name: content_sha256(content) for name, content in sorted(small.items())},
            weights=weights,
        )
        folder.publish(small | {EXPORT: export.to_bytes()})
        folder.clean_up()
    return export


def finished(job: Job, out: Path) -> Export | None:
    """Return the export.json of OUT where a job has written it, None where there is none.

    Raises DstoolsError for an export of another source, with other options or by another dstools,
    and names what differs.
    """
    export = read_export(out)
    if export is not None and export.source != job.identity:
        how = difference(_settings_of(export), job.settings) or "from another source"
        raise DstoolsError(f"{out}: was exported {how}", "name a new folder, or delete this one")
    return export


def _settings_of(export: Export) -> Settings:
    """Return the settings of an export but for its source, of which export.json has a hash."""
    if export.kind != "onnx":
        return {"--format": export.kind}
    settings: dict[str, str | int | bool] = {
        "tool": export.tool,
        "--dtype": export.dtype,
        "--mtp": export.has_mtp,
        "--tp": export.tp,
        "--ep": export.ep,
        "--expert-weights": "input" if export.expert_inputs else "baked",
        "--logits-indices": any(p.name == ROWS for note in export.graphs for p in note.inputs),
    }
    if export.pool is not None:
        settings["--context"] = export.pool.context_length
        settings["--max-batch"] = export.pool.max_batch_size
        settings["--page-size"] = export.pool.page_size
    return settings


def pool(job: Job) -> Pool:
    """Return the caches that the folder is made for."""
    options, itemsize = job.options, job.form.dtype.itemsize
    return pool_of(
        job.inventory.model, itemsize, job.context, options.max_batch, options.page, options.mtp
    )


def weight_bytes(job: Job) -> int:
    """Return how many bytes of tensors `run` writes, those of all ranks."""
    return sum(
        source.nbytes
        for rank in range(job.form.ranks.count)
        for source in sources(job.inventory, job.form, rank).values()
    )


def _export(job: Job) -> Export:
    """Return export.json without what is written."""
    options, model = job.options, job.inventory.model
    return Export(
        job.tool,
        "onnx",
        model.model_type,
        options.dtype,
        job.identity,
        has_codes=bool(job.form.codes),
        has_mtp=options.mtp,
        tp=options.ranks.tp,
        ep=options.ranks.ep,
        expert_inputs=options.expert_inputs,
        opset=OPSET,
        pool=pool(job),
    )


def _genai_config(job: Job, beside: Beside) -> bytes:
    config = genai_config(
        job.inventory.model,
        pool(job),
        beside.tokens,
        beside.sampling,
        mtp=job.options.mtp,
        picks_rows=job.options.picks_rows,
    )
    return to_json(config)


def _data_files(job: Job, graphs: Mapping[str, ir.Model], rank: int) -> list[DataFile]:
    """Return the files of a rank's weights: those of all its graphs, each once."""
    known = sources(job.inventory, job.form, rank)
    wanted: dict[str, Source] = {}
    for graph in graphs.values():
        for name, (shape, dtype) in tensors_of(graph).items():
            require_same(name, known[name], shape, dtype)
            wanted[name] = known[name]
    make = partial(made, job.inventory, job.form, rank)
    fed = [name for name in wanted if job.form.expert_inputs and is_of_experts(name)]
    place = rank_folders(job.form.ranks.count)[rank]
    rest = lay_out((name, source) for name, source in wanted.items() if name not in fed)
    files = [DataFile(f"{place}{DATA}", b"", rest, make)]
    if fed:
        header, entries = lay_out_safetensors((name, wanted[name]) for name in fed)
        files.append(DataFile(f"{place}{EXPERTS}", header, entries, make))
    return files


def _contents(graphs: Mapping[str, ir.Model], files: list[DataFile]) -> dict[str, bytes]:
    """Return the .onnx files of a rank; those of all ranks are the same."""
    data, *experts = files
    fed = [entry.name for file in experts for entry in file.entries]
    contents = {}
    for name, graph in graphs.items():
        make_inputs(graph, fed)
        own = graph.graph.initializers
        contents[name] = serialize(graph, [e for e in data.entries if e.name in own], DATA)
    return contents


def _weights(file: DataFile, digests: list[str]) -> tuple[Weight, ...]:
    return tuple(
        Weight(
            entry.name,
            entry.source.dtype,
            entry.source.shape,
            len(file.header) + entry.offset,
            entry.nbytes,
            entry.source.making,
            digest,
        )
        for entry, digest in zip(file.entries, digests, strict=True)
    )
