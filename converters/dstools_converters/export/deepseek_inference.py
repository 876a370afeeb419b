"""A checkpoint in the layout of DeepSeek's own inference code: one file for each rank.

    model{rank}-mp{ranks}.safetensors   what the rank's `load_model` reads, all of it
    mtp{rank}-mp{ranks}.safetensors     on request: the MTP layers
    inference_config.json               its --config
    export.json                         hashes of all
    tokenizer files

Each rank has its experts, and of all other matrices the rows or columns that it computes; norms,
routers and the projections to latents are in every file. Headers come from the inventory alone;
then ranges of the checkpoint's files are copied, so no tensor is ever in memory.

DeepSeek's conversion leaves layer 61 of every model out, since its code does not run MTP. Here the
MTP layers are told by their number. Their file has the names that the same mapping gives,
`layers.61.*`, and for what it lacks those of the checkpoint: `enorm`, `hnorm`, `eh_proj`,
`shared_head.norm`, `shared_head.head`. They have a file of their own because `load_model` refuses
a file with a tensor more than its model has.
Source: deepseek-ai/DeepSeek-V3 at 9b4e978, inference/{convert.py, model.py, generate.py}.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo, format_header
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import columns, width
from dstools_converters.checkpoint.scheme import BLOCK_SIZE, QUANTIZED_ROLES
from dstools_converters.checkpoint.tied import require_tied
from dstools_converters.errors import DstoolsError, UnsupportedError, disk_errors
from dstools_converters.export.deepseek_config import (
    CONFIG_NAME,
    inference_config,
    refused_by_loader,
)
from dstools_converters.export.folder import EXPORT, Export, Precision, content_sha256
from dstools_converters.export.ranges import Piece, copy_piece, write_at
from dstools_converters.export.ranks import dividing
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.families.names import Role, TensorName
from dstools_converters.families.shapes import MLA
from dstools_converters.files import to_json
from dstools_converters.model.architecture import read_architecture
from dstools_converters.settings import Settings

MODEL_TYPES = ("deepseek_v2", "deepseek_v3")
FLUSHED_BYTES = 256 << 20  # written between two flushes to the disk, at least
# The name of a module, and which dimension of its weight the ranks divide. Source: `mapping` and
# the replacements of convert.py; of MTP layers, which it lacks, the names of the checkpoint.
MODULES: dict[Role, tuple[str, int | None]] = {
    "embed_tokens": ("embed", 0),
    "norm": ("norm", None),
    "lm_head": ("head", 0),
    "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "q_proj": ("attn.wq", 0),
    "q_a_proj": ("attn.wq_a", None),
    "q_a_layernorm": ("attn.q_norm", None),
    "q_b_proj": ("attn.wq_b", 0),
    "kv_a_proj_with_mqa": ("attn.wkv_a", None),
    "kv_a_layernorm": ("attn.kv_norm", None),
    "kv_b_proj": ("attn.wkv_b", 0),
    "o_proj": ("attn.wo", 1),
    "router": ("ffn.gate", None),
    "e_score_correction_bias": ("ffn.gate", None),
    "dense_gate": ("ffn.w1", 0),
    "dense_down": ("ffn.w2", 1),
    "dense_up": ("ffn.w3", 0),
    "shared_gate": ("ffn.shared_experts.w1", 0),
    "shared_down": ("ffn.shared_experts.w2", 1),
    "shared_up": ("ffn.shared_experts.w3", 0),
    "routed_gate": ("ffn.experts.{}.w1", None),
    "routed_down": ("ffn.experts.{}.w2", None),
    "routed_up": ("ffn.experts.{}.w3", None),
    "eh_proj": ("eh_proj", None),
    "enorm": ("enorm", None),
    "hnorm": ("hnorm", None),
    "mtp_embed_tokens": ("embed", 0),
    "shared_head_norm": ("shared_head.norm", None),
    "shared_head": ("shared_head.head", 0),
}
PARTS = {
    "weight": "weight",
    "weight_scale_inv": "scale",
    "weight_scale": "scale",
    "e_score_correction_bias": "bias",
}


class Slice(NamedTuple):
    """One tensor of a rank: rows or columns of a tensor of the checkpoint, or all of it."""

    target: TensorInfo  # name, dtype, shape, file and bytes, its offset not set
    piece: Piece


@dataclass(frozen=True)
class RankFile:
    """One file of a rank, in the order of its bytes."""

    name: str
    header: bytes
    slices: tuple[Slice, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of the file."""
        return len(self.header) + sum(part.target.nbytes for part in self.slices)


@dataclass(frozen=True)
class Plan:
    """The files to write, known from the headers of a checkpoint."""

    inventory: Inventory
    ranks: int
    files: tuple[RankFile, ...]
    config: bytes  # of inference_config.json
    left_out: tuple[str, ...]  # tensors that no file has: unknown ones, and scales of activations
    note: str  # why DeepSeek's loader refuses the files as its code is, or ""

    @property
    def has_mtp(self) -> bool:
        """Return whether the MTP layers are among what is written."""
        return any(file.name.startswith("mtp") for file in self.files)

    @property
    def nbytes(self) -> int:
        """Return the size of all files of weights."""
        return sum(file.nbytes for file in self.files)


def plan_shards(inventory: Inventory, ranks: int, *, mtp: bool) -> Plan:
    """Return the files for `ranks` ranks; no weight is read, but those of a tied head.

    Raises DstoolsError for a model that DeepSeek's code does not run, for sizes that the ranks do
    not divide, and for slices of FP8 weights that do not begin at a block of scales.
    """
    model = inventory.model
    if model.model_type not in MODEL_TYPES:
        raise UnsupportedError(
            f"config.json: model_type {model.model_type!r} is not run by the inference code of "
            "DeepSeek-V3",
            f"it runs {' and '.join(MODEL_TYPES)}",
        )
    if mtp and not model.num_mtp_layers:
        raise DstoolsError(
            f"{inventory.checkpoint.folder}: has no MTP layer",
            "leave --mtp out, or take a checkpoint that has one",
        )
    architecture = read_architecture(inventory.checkpoint.config)
    config = inference_config(architecture, inventory.checkpoint.config, inventory.scheme)
    _require_divisible(inventory, ranks)
    _require_storage(inventory)
    require_tied(inventory)
    files = []
    for rank in range(ranks):
        files.append(_rank_file(inventory, f"model{rank}-mp{ranks}", rank, ranks, is_mtp=False))
        if mtp:
            files.append(_rank_file(inventory, f"mtp{rank}-mp{ranks}", rank, ranks, is_mtp=True))
    left_out = tuple(name for name, parsed in inventory.names.items() if not _is_known(parsed))
    note = refused_by_loader(architecture)
    return Plan(inventory, ranks, tuple(files), to_json(config), left_out, note)


def _is_known(parsed: TensorName | None) -> bool:
    return parsed is not None and parsed.role in MODULES and parsed.part in PARTS


def _require_divisible(inventory: Inventory, ranks: int) -> None:
    """Raise DstoolsError where the ranks do not divide heads, experts, vocabulary or a matrix."""
    fault = _undivided(inventory, ranks)
    if fault:
        hint = dividing("--tp", lambda count: not _undivided(inventory, count))
        dequantized = "; or `dstools dequantize` it first" if "blocks" in fault else ""
        raise DstoolsError(fault, f"{hint}{dequantized}")


def _undivided(inventory: Inventory, ranks: int) -> str:
    """Return what some ranks do not divide, "" where they divide all."""
    model = inventory.model
    assert isinstance(model.attention, MLA)
    assert model.moe is not None
    sizes = {
        "num_attention_heads": model.attention.num_heads,
        "n_routed_experts": model.moe.n_routed_experts,
        "vocab_size": model.vocab_size,
    }
    for key, value in sizes.items():
        if value % ranks:
            return f"config.json: {key} {value} cannot be divided among {ranks} ranks"
    for name, storage in inventory.storage.items():
        parsed, info = inventory.names[name], storage.parts[0]
        dim = MODULES[parsed.role][1] if parsed is not None and parsed.role in MODULES else None
        if dim is None or ranks == 1:
            continue
        step = BLOCK_SIZE if storage.is_quantized else 1
        if info.shape[dim] % (ranks * step):
            side = ("rows", "columns")[dim]
            blocks = f" in blocks of {step}, each of which has one scale" if step > 1 else ""
            return (
                f"{info.where}: its {info.shape[dim]} {side} cannot be divided among {ranks} "
                f"ranks{blocks}"
            )
    return ""


def _require_storage(inventory: Inventory) -> None:
    """Raise DstoolsError where DeepSeek's code has FP8 and the checkpoint has not, or otherwise.

    Its FP8 is all of QUANTIZED_ROLES or nothing, in blocks of 128 with F32 scales.
    """
    scheme = inventory.scheme
    if scheme is None:
        return
    if scheme.block_size != (BLOCK_SIZE, BLOCK_SIZE):
        raise DstoolsError(
            f"config.json: blocks of {list(scheme.block_size)} are not those of DeepSeek's "
            f"inference code, [{BLOCK_SIZE}, {BLOCK_SIZE}]",
            "`dstools dequantize` it, and `dstools quantize` the result",
        )
    for name, storage in inventory.storage.items():
        parsed = inventory.names[name]
        if parsed is None or parsed.part != "weight" or parsed.is_mtp:
            continue
        info = storage.parts[0]
        if storage.is_quantized != (parsed.role in QUANTIZED_ROLES):
            raise DstoolsError(
                f"{info.where}: is {info.dtype}, and DeepSeek's inference code reads "
                f"{'it unquantized' if storage.is_quantized else 'FP8 in an FP8 checkpoint'}",
                "`dstools dequantize` it, and `dstools quantize` the result without a recipe",
            )
        if storage.is_quantized and storage.scale.dtype != "F32":
            raise DstoolsError(
                f"{storage.scale.where}: is {storage.scale.dtype}, and DeepSeek's inference code "
                "reads F32",
                "`dstools quantize` it first: codes are copied, scales become F32",
            )


def _rank_file(inventory: Inventory, stem: str, rank: int, ranks: int, *, is_mtp: bool) -> RankFile:
    name = f"{stem}.safetensors"
    slices = list(_slices(inventory, name, rank, ranks, is_mtp=is_mtp))
    slices.sort(key=lambda part: -ITEM_BITS[part.target.dtype])  # each begins at its item's size
    return RankFile(name, format_header(part.target for part in slices), tuple(slices))


def _slices(
    inventory: Inventory, file: str, rank: int, ranks: int, *, is_mtp: bool
) -> Iterator[Slice]:
    """Yield the tensors of a rank in the order of the checkpoint; a tied head comes last."""
    model = inventory.model
    head = TensorName("lm_head", "weight")
    for spelled, parsed in inventory.names.items():
        if parsed is None or not _is_known(parsed) or parsed.is_mtp != is_mtp:
            continue
        if parsed.expert is not None:
            assert model.moe is not None
            if parsed.expert * ranks // model.moe.n_routed_experts != rank:
                continue
        yield _slice(inventory.tensors[spelled], parsed, file, rank, ranks)
    if not is_mtp and model.spell(head) not in inventory.tensors:  # tied, or `require_sound` failed
        embeddings = inventory.info(TensorName("embed_tokens", "weight"))
        yield _slice(embeddings, head, file, rank, ranks)


def _slice(source: TensorInfo, name: TensorName, file: str, rank: int, ranks: int) -> Slice:
    """Return the share of a tensor that a rank has."""
    module, dim = MODULES[name.role]
    layer = f"layers.{name.layer}." if name.layer is not None else ""
    spelled = f"{layer}{module.format(name.expert)}.{PARTS[name.part]}"
    shape, spans = list(source.shape), [(0, source.numel // columns(source)), (0, columns(source))]
    if dim is not None:
        assert shape[dim] % ranks == 0
        shape[dim] //= ranks
        spans[dim] = (rank * shape[dim], (rank + 1) * shape[dim])
    piece = Piece(source, spans[0], spans[1])
    nbytes = piece.numel * width(source)
    return Slice(TensorInfo(spelled, source.dtype, tuple(shape), file, 0, nbytes), piece)


def write_shards(
    plan: Plan,
    out: Path,
    files: Mapping[str, Path | bytes],
    *,
    tool: str,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write the folder `out`: the plan's files, its config, and `files`, those of the tokenizer.

    `progress` gets the bytes of each tensor, of earlier runs too; `tool` is name and version.
    Raises DstoolsError for an `out` that exists, a full disk, or an input that changes meanwhile.
    The same command resumes where a run was stopped.
    """
    checkpoint = plan.inventory.checkpoint
    names = [file.name for file in plan.files]
    settings: Settings = {
        "tool": tool,
        "source": checkpoint.digest,
        "--format": "deepseek-inference",
        "--tp": plan.ranks,
        "--mtp": plan.has_mtp,
    }
    with Unfinished(out, settings) as folder:
        if not folder.is_published:
            folder.require_space(plan.nbytes)
            for file in plan.files:
                _fill(file, plan, folder, progress)
            checkpoint.check_unmoved()
            small = {**files, CONFIG_NAME: plan.config}
            hashes = {name: content_sha256(content) for name, content in small.items()}
            for name in names:
                hashes[name] = content_sha256(folder.model / name)
            export = _export(plan, tool, dict(sorted(hashes.items())))
            folder.publish({**small, EXPORT: export.to_bytes()})
        folder.clean_up()


def _export(plan: Plan, tool: str, files: dict[str, str]) -> Export:
    """Return export.json."""
    dtypes = {part.target.dtype for file in plan.files for part in file.slices}
    dtype: Precision = (
        "bfloat16" if "BF16" in dtypes else "float16" if "F16" in dtypes else "float32"
    )
    return Export(
        tool,
        "deepseek-inference",
        plan.inventory.model.model_type,
        dtype,
        has_codes="F8_E4M3" in dtypes,
        has_mtp=plan.has_mtp,
        tp=plan.ranks,
        ep=plan.ranks,
        notes=(plan.note,) if plan.note else (),
        files=files,
    )


def _fill(
    file: RankFile, plan: Plan, folder: Unfinished, progress: Callable[[int], object]
) -> None:
    """Write the tensors of one file that earlier runs have not written."""
    target, done = folder.open(file.name, file.nbytes)
    sources = _Sources(plan.inventory.checkpoint.folder)
    at, unflushed = len(file.header), 0
    try:
        with disk_errors(folder.model / file.name):
            write_at(target, file.header, 0)
        for number, part in enumerate(file.slices):
            if number >= done:
                with disk_errors(folder.model / file.name):
                    copy_piece(part.piece, sources.file(part.piece.info.shard), target, at)
                unflushed += part.target.nbytes
                if unflushed >= FLUSHED_BYTES:
                    folder.done(file.name, target, number + 1)
                    unflushed = 0
            at += part.target.nbytes
            progress(part.target.nbytes)
        if done < len(file.slices):
            folder.done(file.name, target, len(file.slices))
    finally:
        sources.close()
        os.close(target)


class _Sources:
    """The shards of a checkpoint, one of them open at a time: tensors come in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: tuple[str, int] | None = None

    def file(self, shard: str) -> int:
        """Return a descriptor of a shard."""
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = shard, os.open(self.folder / shard, os.O_RDONLY)
        return self._open[1]

    def close(self) -> None:
        """Close the shard that is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None
