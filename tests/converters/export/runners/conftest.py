"""A stand-in for the module tensorrt: its rules by the documentation, ONNX Runtime's arithmetic.

An engine is a JSON file that names a graph, and has the profiles of dstools export --trt.
"""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from dstools_converters.export.folder import EXPORT, require_export
from dstools_converters.export.runners import plan
from dstools_converters.export.trt.rtx import profiles

STREAM = 7
ALIGNMENT = 64  # of torch's memory on a CPU; on a GPU it is 512
TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class Runtime:
    made: list["Runtime"]

    def __init__(self, log: Any) -> None:
        self.log, self.engine_host_code_allowed = log, False
        self.made.append(self)

    def deserialize_cuda_engine(self, content: bytes) -> "Engine | None":
        try:
            table = json.loads(content)
        except ValueError:
            self.log.log(ILogger.ERROR, "The engine plan file is not\n compatible, expecting 10.14")
            return None
        if not self.engine_host_code_allowed:
            self.log.log(ILogger.ERROR, "Plugin libraries are embedded and not allowed")
            return None
        self.engine = Engine(self.log, table)
        return self.engine


class Engine:
    def __init__(self, log: Any, table: dict[str, Any]) -> None:
        self.log, self.profiles = log, table["profiles"]
        self.session = onnxruntime.InferenceSession(table["graph"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        for unused in table.get("without", ()):
            del self.inputs[unused]
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile_index][name]]

    def create_execution_context(self) -> "Context | None":
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.calls: list[tuple[str, Any]] = []

    def refuse(self, message: str) -> bool:
        self.engine.log.log(ILogger.ERROR, message)
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self.calls.append(("profile", profile_index))
        self.profile, self.shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name))
        if name not in self.engine.inputs:
            return self.refuse(f"{name} is not an input")
        known = self.engine.profiles[self.profile].get(name)
        static = self.engine.inputs[name].shape
        least, _, most = known or (static, static, static)
        if len(shape) != len(most) or not all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        ):
            return self.refuse(f"Static dimension mismatch or out of profile: {name}")
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.calls.append(("address", name))
        if name not in self.engine.inputs and name not in self.engine.outputs:
            return self.refuse(f"{name} is not a tensor")
        assert memory
        assert memory % ALIGNMENT == 0
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self.calls.append(("execute", len(self.addresses)))
        engine = self.engine
        for name in engine.inputs:
            if name not in self.shapes or name not in self.addresses:
                return self.refuse(f"Address is not set for input tensor {name}.\nCall it")
        binding = engine.session.io_binding()
        sizes = {"num_tokens": self.shapes["input_ids"][0]}
        for name, each in {**engine.inputs, **engine.outputs}.items():
            past = name.replace("present", "past_key_values")
            shape = self.shapes.get(past)
            if shape is None:
                sizes |= {"num_logits": self.shapes.get("logits_indices", (0,))[0]}
                shape = tuple(sizes.get(size, size) for size in each.shape)
            assert past == name or self.addresses[past] == self.addresses[name]  # aliased
            bind = binding.bind_input if name in engine.inputs else binding.bind_output
            dtype = TYPES[each.type]
            bind(name, "cpu", 0, dtype, shape, self.addresses[name])
        if "attention_metadata" not in engine.inputs:
            binding.bind_cpu_input("attention_metadata", np.zeros(3, np.int32))
        engine.session.run_with_iobinding(binding)
        return True


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the stand-in what sessions import, and torch's stream STREAM."""
    made: list[Runtime] = []
    monkeypatch.setattr(Runtime, "made", made, raising=False)
    module = SimpleNamespace(__version__="11.1.0", ILogger=ILogger, Runtime=Runtime)
    monkeypatch.setattr(plan, "import_tensorrt", lambda: module)
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return SimpleNamespace(made=made, engine=Engine, context=Context, runtime=Runtime)


def with_engines(source: Path, folder: Path, **more: Any) -> Path:
    """Return `folder`, an exported folder with an engine for each of its graphs."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    export, engines = require_export(source), {}
    for note in export.graphs:
        name = Path(note.file).with_suffix(".plan").name
        sizes = [*profiles(note, export)]
        table = {"graph": str(source / note.file), "profiles": sizes} | more
        (folder / name).write_text(json.dumps(table))
        engines[name] = sha256((folder / name).read_bytes()).hexdigest()
    (folder / EXPORT).unlink()
    (folder / EXPORT).write_bytes(replace(export, engines=engines).to_bytes())
    return folder


@pytest.fixture
def built() -> Any:
    return with_engines
