"""An exported folder as its TensorRT engines run it: the model of a loop on a GPU.

Caches are bound as input and output in one buffer, which the plugin of attention aliases. One
execution context switches between the profiles for decoding and for prompts, so that there is one
workspace, of the larger profile; a switch drops all shapes, and caches are bound again. Buffers are
torch's and the work is enqueued on torch's stream, whose order keeps them alive until it is done.

Not run: no GPU with genuine TensorRT was at hand. Written for the Python interface of TensorRT 10
and 11; tests put ONNX Runtime behind a stand-in that has the rules of its documentation.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.export.folder import (
    DRAFT_GRAPH,
    GRAPH,
    ROWS,
    GraphNote,
    Pool,
    require_export,
)
from dstools_converters.export.runners.limits import PAST, PRESENT
from dstools_converters.export.trt.network import listener
from dstools_converters.export.trt.plans import BUILD, import_tensorrt, plan_of, read_plan
from dstools_converters.runtime.pages import Batch


class PlanSession:
    """The engines of a folder with caches of `pages` on a device, as `decode.Model` has them.

    The folder is one that `require_plans` accepts; mtp: with the engine that drafts. Raises
    DstoolsError where TensorRT is not installed or refuses an engine, and where an engine is not
    the one of export.json.
    """

    def __init__(
        self, folder: Path, pool: Pool, pages: int, *, mtp: bool, device: torch.device
    ) -> None:
        export, trt = require_export(folder), import_tensorrt()
        log = listener(trt)  # one for both engines: TensorRT ignores the later ones of a process
        notes = {note.file: note for note in export.graphs}
        dtype = getattr(torch, export.dtype)

        def load(graph: str) -> _Plan:
            name, note = plan_of(graph), notes[graph]
            content = read_plan(folder, export, name)
            return _Plan(
                trt, log, folder / name, content, note, _caches(note, pages, dtype, device)
            )

        self.positions = pool.context_length
        self._main = load(GRAPH)
        self._draft = load(DRAFT_GRAPH) if mtp else None
        self.vocab_size = self._main.vocab_size

    def step(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] after the new tokens at `rows`, and the states [T, D]."""
        return self._main.run(batch, rows, {})

    def draft(self, batch: Batch, hidden: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the MTP layer drafts at `rows` [R, V], and the states [R, D]."""
        assert self._draft is not None
        logits, states = self._draft.run(batch, rows, {"hidden_states": hidden})
        return logits, states[rows.to(states.device)]


class _Plan:
    """An engine, its context and its caches."""

    def __init__(
        self,
        trt: Any,
        log: Any,
        path: Path,
        content: bytes,
        note: GraphNote,
        caches: dict[str, Tensor],
    ) -> None:
        self._log, self._path, self._caches = log, path, caches
        # a runtime for each engine: the plugins that one carries are registered in it
        self._runtime = trt.Runtime(log)
        self._runtime.engine_host_code_allowed = True  # its sha256 is that of export.json
        engine = self._engine = self._runtime.deserialize_cuda_engine(content)
        self._require(engine, f"load it in version {trt.__version__}", BUILD)
        self._context = engine.create_execution_context()
        self._require(self._context, "allocate its workspace", "free memory of the GPU")
        self._names = {engine.get_tensor_name(place) for place in range(engine.num_io_tensors)}
        self._most = [  # new tokens of a step, by profile
            engine.get_tensor_profile_shape("input_ids", profile)[2][0]
            for profile in range(engine.num_optimization_profiles)
        ]
        self._profile: int | None = None
        logits, hidden, *_ = note.outputs
        self.vocab_size, self._width = int(logits.shape[-1]), int(hidden.shape[-1])
        self._hidden, self._picks_rows = hidden.name, ROWS in self._names
        cache = next(iter(caches.values()))
        self._dtype, self._device = cache.dtype, cache.device
        self._metadata = torch.zeros(3, dtype=torch.int32, device=self._device)  # for others

    def run(self, batch: Batch, rows: Tensor, more: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits [R, V] float32 at `rows` [R], and the states [T, D]."""
        self._log.errors.clear()
        tokens, count = len(batch.input_ids), len(batch.input_ids)
        inputs = batch._asdict() | more
        if self._picks_rows:  # profiles begin at one row
            inputs[ROWS] = rows.int() if len(rows) else torch.zeros(1, dtype=torch.int32)
            count = len(inputs[ROWS])
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._select(tokens, stream)
        moved = {name: self._moved(value) for name, value in inputs.items()}
        for name, value in moved.items():
            self._put(name, value)
        logits = torch.empty(count, self.vocab_size, device=self._device)
        states = torch.empty(tokens, self._width, dtype=self._dtype, device=self._device)
        self._bind("logits", logits)
        self._bind(self._hidden, states)
        self._require(self._context.execute_async_v3(stream), "run a step")
        picked = logits[: len(rows)] if self._picks_rows else logits[rows.to(self._device)]
        return picked, states

    def _select(self, tokens: int, stream: int) -> None:
        """Select the first profile for as many tokens, and bind what stays if it is another."""
        last = len(self._most) - 1
        profile = next((i for i, most in enumerate(self._most) if tokens <= most), last)
        if profile == self._profile:
            return
        done = self._context.set_optimization_profile_async(profile, stream)
        self._require(done, f"select profile {profile}")
        self._profile = profile
        self._put("attention_metadata", self._metadata)
        for name, cache in self._caches.items():
            self._put(PAST + name, cache)
            self._bind(PRESENT + name, cache)

    def _moved(self, value: Tensor) -> Tensor:
        """Return a copy in memory of its own, which is aligned as TensorRT wants it."""
        return torch.empty(value.shape, dtype=value.dtype, device=self._device).copy_(value)

    def _put(self, name: str, value: Tensor) -> None:
        """Let the engine read an input from a tensor, if it has the input: not all are used."""
        if name in self._names:
            shape = tuple(value.shape)
            done = self._context.set_input_shape(name, shape)
            self._require(done, f"take {name} of {list(shape)}")
            self._bind(name, value)

    def _bind(self, name: str, value: Tensor) -> None:
        done = self._context.set_tensor_address(name, value.data_ptr())
        self._require(done, f"take {name}")

    def _require(self, done: Any, what: str, hint: str = "") -> None:
        """Raise DstoolsError, with the first of TensorRT's own errors, unless a call succeeded."""
        if not done:
            said = printable(" ".join(self._log.errors[0].split())) if self._log.errors else ""
            raise DstoolsError(
                f"{self._path}: TensorRT cannot {what}{': ' if said else ''}{said}",
                hint or "free memory of the GPU, or give it shorter prompts",
            )


def _caches(
    note: GraphNote, pages: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return caches of `pages`, whose content is arbitrary, by the names that they end in."""
    return {
        port.name.removeprefix(PAST): torch.empty(
            pages, *map(int, port.shape[1:]), dtype=dtype, device=device
        )
        for port in note.inputs
        if port.name.startswith(PAST)
    }
