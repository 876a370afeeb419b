"""An exported folder in ONNX Runtime: the model that a loop runs.

Caches are bound as input and output in one buffer, so a step writes the latents of its new tokens
and copies nothing; torch allocates them, and pages take memory only when they are written. Logits
and hidden states are bound to memory of torch, too.

model.data is mapped, once for both graphs. ONNX Runtime copies the weights of linear maps into the
order in which it multiplies them: two to eight tokens are then 1.5 times as fast (one of [32768,
2048], 2026-11-29). The graph that drafts has them as they are in the file, since the head is that
of the other graph. Experts and the embedding are not copied.
"""

from pathlib import Path

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as errors
from torch import Tensor

from dstools_converters.errors import DstoolsError, UnsupportedError, printable
from dstools_converters.export.folder import DATA, DRAFT_GRAPH, GRAPH, ROWS, Export, Pool
from dstools_converters.export.runners.files import require_beside, require_same, require_size
from dstools_converters.export.runners.limits import PAST, PRESENT, require_limits
from dstools_converters.runtime.pages import Batch

REFUSED = (  # what onnxruntime raises for a file that it does not take
    *(errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf),
    *(errors.NoSuchFile, errors.NotImplemented, errors.RuntimeException),
)


class OnnxSession:
    """The graphs of a folder with caches of `pages`, as `decode.Model` has them.

    The folder is one that `require_runnable` accepts; mtp: with the graph that drafts. Raises
    DstoolsError where ONNX Runtime refuses a graph.
    """

    def __init__(self, folder: Path, pool: Pool, pages: int, *, mtp: bool) -> None:
        self.positions = pool.context_length
        self._main = _Graph(folder / GRAPH, pages, packs=True)
        self._draft = _Graph(folder / DRAFT_GRAPH, pages, packs=False) if mtp else None
        self.vocab_size = self._main.vocab_size

    def step(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] after the new tokens at `rows`, and the states [T, D]."""
        return self._main.run(batch, rows, {})

    def draft(self, batch: Batch, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the MTP layer drafts at `rows` [R, V], and the states [R, D]."""
        assert self._draft is not None
        logits, states = self._draft.run(batch, rows, {"hidden_states": hidden})
        return logits, states[rows]


class _Graph:
    """A graph and its caches.

    packs: with the weights of linear maps in another order.
    """

    def __init__(self, path: Path, pages: int, *, packs: bool) -> None:
        self._path, self._session = path, _open(path, packs)
        self._binding = self._session.io_binding()
        inputs = {each.name: each for each in self._session.get_inputs()}
        logits, hidden, *_ = self._session.get_outputs()
        self.vocab_size, self._width, self._hidden = logits.shape[-1], hidden.shape[-1], hidden.name
        self._dtype = torch.float16 if hidden.type == "tensor(float16)" else torch.float32
        self._picks_rows = ROWS in inputs
        for name, each in inputs.items():
            if name.startswith(PAST):
                cache = torch.empty(pages, *each.shape[1:], dtype=self._dtype)
                self._put(name, cache)
                self._take(PRESENT + name.removeprefix(PAST), cache)
        self._put("attention_metadata", torch.zeros(3, dtype=torch.int32))  # for other providers

    def run(self, batch: Batch, rows: Tensor, more: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] float32 at `rows` [R], and the states [T, D]."""
        picked = {ROWS: rows.int()} if self._picks_rows else {}
        for name, value in (batch._asdict() | more | picked).items():
            self._put(name, value)
        tokens = len(batch.input_ids)
        logits = torch.empty(len(rows) if picked else tokens, self.vocab_size)
        states = torch.empty(tokens, self._width, dtype=self._dtype)
        self._take("logits", logits)
        self._take(self._hidden, states)
        try:
            self._session.run_with_iobinding(self._binding)
        except RuntimeError as error:  # its memory, mostly
            raise DstoolsError(
                f"{self._path}: onnxruntime cannot run a step: {_reason(error)}",
                "free memory, or give it shorter prompts",
            ) from error
        return logits if picked else logits[rows], states

    def _put(self, name: str, value: Tensor) -> None:
        """Let the graph read an input from a tensor."""
        self._binding.bind_cpu_input(name, value.contiguous().numpy())

    def _take(self, name: str, value: Tensor) -> None:
        """Let the graph write an output into a tensor."""
        bound = onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy())
        self._binding.bind_ortvalue_output(name, bound)


def _open(path: Path, packs: bool) -> onnxruntime.InferenceSession:
    """Return a session on the CPU, with as many threads as torch has."""
    onnxruntime.disable_telemetry_events()  # of wheels that send any to Microsoft
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it would print, it raises
    # two sessions take turns: threads that wait for one would take the cores from the other
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not packs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except REFUSED as error:
        raise DstoolsError(
            f"{path}: onnxruntime {onnxruntime.__version__} refuses it: {_reason(error)}",
            f"dstools verify {path.parent} checks all files of the folder",
        ) from error


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()))


# ------------------------------------------------------------------------------------------ folders


def require_runnable(folder: Path, export: Export, *, mtp: bool) -> Pool:
    """Return the caches that a folder is made for, if ONNX Runtime can run it on a CPU.

    Compares graphs, config.json and sizes, and does not read the weights. Raises DstoolsError for
    what was exported for GPUs, and for files that are missing, damaged, or where ONNX Runtime does
    not read them.
    """
    if export.dtype == "bfloat16":
        raise UnsupportedError(
            f"{folder}: is bfloat16, which ONNX Runtime does not multiply on a CPU",
            "export the checkpoint with --dtype float32",
        )
    limits = require_limits(folder, export, mtp=mtp)
    graphs = (GRAPH, DRAFT_GRAPH) if mtp else (GRAPH,)
    require_same(folder, export, *graphs)
    entries = export.weights.get(DATA, ())
    require_size(folder / DATA, max((each.offset + each.nbytes for each in entries), default=0))
    for name in graphs:
        require_beside(folder / DATA, folder / name)
    return limits
