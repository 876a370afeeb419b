"""An exported folder as `dstools generate` and `dstools bench` run it."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from dstools.commands.generate_memory import Held
from dstools.options import option
from dstools.source import resolve
from dstools_converters.errors import DstoolsError, install_hint

if TYPE_CHECKING:
    from dstools_converters.export.folder import Export
    from dstools_converters.export.folder import Pool as Limits
    from dstools_converters.export.runners.dense_loop import DenseLoop
    from dstools_converters.families.shapes import MLA
    from dstools_converters.runtime.answer import Loop
    from dstools_converters.runtime.decode import Model
    from dstools_converters.runtime.pages import Pool
    from dstools_converters.runtime.sampling import Sampling

Engine = Literal["dstools", "genai"]
engine_option = option(
    "--engine",
    section="Running",
    type=click.Choice(get_args(Engine)),
    default="dstools",
    help="Let our own loop answer, or onnxruntime-genai's Engine, from an exported folder.",
)
AGAIN = "export the checkpoint again"
SCORES = 3  # copies that the steps of a softmax hold at a time


@dataclass(frozen=True)
class KnownExport:
    """What is known of an exported folder before its weights are read."""

    name: str  # as the user gave it
    folder: Path
    limits: "Limits"
    vocab_size: int
    attention: "MLA"
    held: Held
    runs_in: str
    engine: Engine
    is_cut: bool  # the model has more positions than --context let it have
    is_sparse_beyond: bool  # its positions end there

    @property
    def most_rows(self) -> int:
        """Return how many prompts it answers at a time."""
        return self.limits.max_batch_size

    @property
    def positions(self) -> int:
        """Return how many tokens prompt and answer have at most."""
        return self.limits.context_length

    @property
    def most_pages(self) -> int:
        """Return how many pages a pool has at most."""
        return self.limits.num_blocks

    def step_bytes(self, limit: int) -> int:
        """Return the bytes that a step takes besides weights and cache.

        The workspace of an engine is known to TensorRT alone, and only when it is loaded.
        """
        from dstools_converters.export.folder import CHUNK

        tokens = min(limit, CHUNK)
        scores = SCORES * self.attention.num_heads * tokens * limit
        if self.held.device == "cuda":
            scores = 0  # never in memory as a whole
        return 4 * (scores + tokens * self.vocab_size)

    def loop(
        self, pool: "Pool", sampling: "Sampling", ends: frozenset[int], drafts: int, rows: int = 1
    ) -> "Loop":
        """Return what answers prompts, its graphs opened."""
        if self.engine == "genai":
            from dstools_converters.export.runners.genai_engine import GenaiEngine

            return GenaiEngine(self.folder, pool, sampling, ends, rows=rows, drafts=drafts)
        from dstools_converters.export.folder import CHUNK
        from dstools_converters.runtime import decode

        session = self._session(pool.count, mtp=drafts > 0)
        return decode.Loop(session, pool, sampling, ends, rows=rows, drafts=drafts, chunk=CHUNK)

    def _session(self, pages: int, *, mtp: bool) -> "Model":
        if self.held.device == "cuda":
            import torch

            from dstools_converters.export.runners.plan import PlanSession

            device = torch.device("cuda")
            return PlanSession(self.folder, self.limits, pages, mtp=mtp, device=device)
        from dstools_converters.export.runners.session import OnnxSession

        return OnnxSession(self.folder, self.limits, pages, mtp=mtp)


@dataclass(frozen=True)
class KnownDense:
    """What is known of an exported dense model; its caches are not in pages."""

    name: str  # as the user gave it
    folder: Path
    vocab_size: int
    positions: int
    held: Held
    runs_in: str
    is_cut: bool = False
    is_sparse_beyond: bool = False
    most_pages: None = None
    most_rows: int = 1

    def step_bytes(self, limit: int) -> int:
        """Return the bytes that the logits of a step take."""
        from dstools_converters.export.runners.dense_loop import CHUNK

        return 4 * min(limit, CHUNK) * self.vocab_size

    def loop(
        self, pool: "Pool", sampling: "Sampling", ends: frozenset[int], drafts: int, rows: int = 1
    ) -> "DenseLoop":
        """Return what answers prompts; its caches have the length of prompt and answer."""
        from dstools_converters.export.runners.dense_loop import DenseLoop

        assert rows == 1
        assert not drafts
        return DenseLoop(self.folder, sampling, ends)


def find_export(folder: Path) -> "Export | None":
    """Return the export.json of a folder, None where it is a checkpoint.

    Raises DstoolsError where it is damaged, or missing beside graphs without a checkpoint.
    """
    from dstools_converters.export.folder import EXPORT, GRAPH, read_export

    export = read_export(folder)
    if export is None and (folder / GRAPH).exists() and not any(folder.glob("*.safetensors*")):
        raise DstoolsError(f"{folder}: has {GRAPH}, but no {EXPORT}", f"copy it, or {AGAIN}")
    return export


def require_export_of(
    name: str, mtp: bool, device: str, engine: Engine
) -> KnownExport | KnownDense:
    """Return what is known of an exported folder; raises DstoolsError where it is none."""
    folder = resolve(name)
    export = find_export(folder)
    if export is None:
        raise DstoolsError(
            f"{folder}: is not an exported folder",
            f"export it first: dstools export {name} OUT --onnx",
        )
    return look_at_export(name, folder, export, mtp, None, device, engine)


def look_at_export(
    name: str,
    folder: Path,
    export: "Export",
    mtp: bool,
    precision: str | None,
    device: str,
    engine: Engine,
) -> KnownExport | KnownDense:
    """Return what is known of an exported folder. Raises DstoolsError if it does not run here."""
    if precision is not None and precision != export.dtype:
        other = f"leave it out, or export the checkpoint with --dtype {precision}"
        if precision == "bfloat16" and device == "cpu":  # require_runnable refuses such a folder
            other = "leave it out: ONNX Runtime does not multiply bfloat16 on a CPU"
        raise DstoolsError(f"--precision {precision}: {folder} is in {export.dtype}", other)
    if device == "cuda" and (engine == "genai" or export.kind == "dense"):
        what = "--engine genai" if engine == "genai" else "a dense model"
        raise DstoolsError(f"--device cuda: {what} runs on the CPU alone", "leave it out")
    if export.kind == "dense":
        return _look_at_dense(name, folder, export, mtp, engine)
    if export.kind != "onnx":
        raise DstoolsError(
            f"{folder}: folders of kind {export.kind} do not run here",
            "export the checkpoint with --onnx",
        )
    return _look_at_deepseek(name, folder, export, mtp, device, engine)


def _look_at_deepseek(
    name: str, folder: Path, export: "Export", mtp: bool, device: str, engine: Engine
) -> KnownExport:
    """Return what is known of a DeepSeek model. Raises DstoolsError if it is not all there."""
    from dstools_converters.families.shapes import MLA
    from dstools_converters.model.architecture import read_architecture
    from dstools_converters.runtime.serving import entry_shape
    from dstools_converters.runtime.weights import read_positions
    from dstools_converters.tables import json_table

    look = _look_at_plan if device == "cuda" else _look_at_graph
    limits, weights, runs_in = look(folder, export, mtp)
    config = json_table(folder / "config.json")
    assert config is not None  # `look` compared its sha256
    architecture = read_architecture(config)
    model = architecture.model
    assert isinstance(model.attention, MLA)
    itemsize = 4 if export.dtype == "float32" else 2
    token = (model.num_hidden_layers + mtp) * math.prod(entry_shape(model.attention)) * itemsize
    is_plain = export.dtype == "float32" and not export.has_codes
    smaller = "export it with --dtype float16" if is_plain else ""
    held = Held(export.dtype, device, weights, token, smaller)
    precision = f"FP8 and {export.dtype}" if export.has_codes else export.dtype
    runs_in = f"{precision} on {device}, {runs_in}"
    if engine == "genai":
        from dstools_converters.export.genai import require_genai

        runs_in += f", onnxruntime-genai {require_genai('--engine genai').__version__}"
    return KnownExport(
        name,
        folder,
        limits,
        model.vocab_size,
        model.attention,
        held,
        runs_in,
        engine,
        is_cut=limits.context_length < read_positions(config, architecture),
        is_sparse_beyond=limits.context_length == architecture.index_topk,
    )


def _look_at_graph(folder: Path, export: "Export", mtp: bool) -> tuple["Limits", int, str]:
    """Return the caches, the bytes of weights, and the name of what runs the graphs on a CPU."""
    require_installed("onnxruntime")
    import onnxruntime

    from dstools_converters.export.folder import DATA
    from dstools_converters.export.runners.session import require_runnable

    limits = require_runnable(folder, export, mtp=mtp)
    weights = sum(weight.nbytes for weight in export.weights.get(DATA, ()))
    return limits, weights, f"ONNX Runtime {onnxruntime.__version__}"


def _look_at_plan(folder: Path, export: "Export", mtp: bool) -> tuple["Limits", int, str]:
    """Return the caches, the bytes of engines, and the name of what runs these on a GPU."""
    from dstools_converters.export.trt.plans import import_tensorrt, require_plans

    limits, plans = require_plans(folder, export, mtp=mtp)
    weights = sum(plan.stat().st_size for plan in plans)
    return limits, weights, f"TensorRT {import_tensorrt().__version__}"


def _look_at_dense(
    name: str, folder: Path, export: "Export", mtp: bool, engine: Engine
) -> KnownDense:
    """Return what is known of a dense model. Raises DstoolsError if it is not all there."""
    from importlib.metadata import version

    from dstools_converters.export.folder import DENSE_DATA
    from dstools_converters.export.runners.dense_loop import require_whole

    if engine == "genai":
        raise DstoolsError(
            f"--engine genai: {folder} is a dense model, which the Engine runs on GPUs alone",
            "leave it out: genai's Generator runs it",
        )
    if mtp:
        raise DstoolsError(
            f"{folder}: has no MTP layer", "leave --mtp out: it changes the speed alone"
        )
    for package in ("onnxruntime_genai", "onnx"):
        require_installed(package)
    sizes = require_whole(folder, export)
    weights = (folder / DENSE_DATA).stat().st_size
    held = Held("float32", "cpu", weights, sizes.cache_bytes, "")
    runs_in = f"float32 on cpu, the Generator of onnxruntime-genai {version('onnxruntime-genai')}"
    return KnownDense(name, folder, sizes.vocab_size, sizes.positions, held, runs_in)


def require_installed(package: str) -> None:
    """Raise DstoolsError if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        name = package.replace("_", "-")
        raise DstoolsError(f"running this exported folder needs {name}", install_hint("export"))
