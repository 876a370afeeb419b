"""Sessions of exported graphs, with caches that nobody wrote.

runner = onnx_runner(folder, "model.onnx", pages=12)
logits = runner.step([3, 4, 5], [[7, 2]], [3], [0])["logits"]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest


class Runner:
    """An ONNX Runtime session whose caches hold NaN at first, each one buffer in and out.

    profile: a path that begins the name of what `session.end_profiling` writes; None: nothing.
    """

    def __init__(
        self, folder: Path, name: str, pages: int, *, optimized: bool, profile: Path | None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        )
        self.session = onnxruntime.InferenceSession(
            folder / name, options, providers=["CPUExecutionProvider"]
        )
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.caches = {
            port.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.full((pages, *port.shape[1:]), np.nan, kinds[port.type])
            )
            for port in self.session.get_inputs()
            if port.name.startswith("past_key_values")
        }
        self.dtype = next(iter(self.caches.values())).numpy().dtype

    def step(
        self,
        ids: list[int],
        table: list[list[int]],
        new: list[int],
        past: list[int],
        hidden: Any = None,
    ) -> dict[str, Any]:
        """Return logits and states of `new` tokens of each row, after `past` in its cache."""
        width = max(map(len, table))
        binding = self.session.io_binding()
        feed = {
            "input_ids": np.array(ids, np.int64),
            "block_table": np.array([row + [-1] * (width - len(row)) for row in table], np.int32),
            "cumulative_sequence_lengths": np.cumsum([0, *new]).astype(np.int32),
            "past_sequence_lengths": np.array(past, np.int32),
            "attention_metadata": np.zeros(3, np.int32),
        }
        if hidden is not None:
            feed["hidden_states"] = np.asarray(hidden, self.dtype)
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        asked = [port.name for port in self.session.get_outputs() if "present" not in port.name]
        for name in asked:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        outputs = binding.get_outputs()[len(self.caches) :]
        return dict(zip(asked, (output.numpy() for output in outputs), strict=True))


@pytest.fixture(scope="session")
def onnx_runner() -> Callable[..., Runner]:
    """onnx_runner(folder, name="model.onnx", pages=16, optimized=True, profile=None)"""

    def start(
        folder: Path,
        name: str = "model.onnx",
        pages: int = 16,
        *,
        optimized: bool = True,
        profile: Path | None = None,
    ) -> Runner:
        return Runner(folder, name, pages, optimized=optimized, profile=profile)

    return start
