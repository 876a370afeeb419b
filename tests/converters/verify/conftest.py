"""Checkpoints to be damaged, and what `dstools verify` says of them.

edited(source)             a copy in memory: change `.tensors`, `.config`, `.index`, then `.write()`
ask(folder, *options)      exit code and JSON of the command
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dstools.cli import main

INDEX = "model.safetensors.index.json"


@dataclass
class Tensor:
    dtype: str
    shape: list[int]
    data: bytearray
    shard: str

    def floats(self) -> np.ndarray:
        """Its F32 values, to be changed in place."""
        return np.frombuffer(self.data, np.float32).reshape(self.shape)

    def to_bf16(self) -> None:
        """Round its F32 values to BF16."""
        bits = np.frombuffer(self.data, np.uint32).astype(np.uint64)
        self.data = bytearray(
            ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
        )
        self.dtype = "BF16"


class Folder:
    """A copy of a checkpoint with everything in hand; `write` puts it back on the disk.

    Written by hand, as no library writes what must be refused.
    """

    def __init__(self, source: Path, path: Path) -> None:
        shutil.copytree(source, path)
        path.chmod(0o755)
        for file in path.iterdir():
            file.chmod(0o644)
        self.path = path
        self.config = json.loads((path / "config.json").read_text())
        self.index = json.loads((path / INDEX).read_text())
        self.tensors: dict[str, Tensor] = {}
        self.after: list[Callable[[], object]] = []
        for shard in sorted(path.glob("*.safetensors")):
            raw = shard.read_bytes()
            start = 8 + int.from_bytes(raw[:8], "little")
            for name, entry in json.loads(raw[8:start]).items():
                if name != "__metadata__":
                    begin, end = (start + offset for offset in entry["data_offsets"])
                    data = bytearray(raw[begin:end])
                    self.tensors[name] = Tensor(entry["dtype"], entry["shape"], data, shard.name)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def scale(self, name: str) -> Tensor:
        return self.tensors[f"{name}_scale_inv"]

    def put(self, name: str, dtype: str, shape: list[int], data: bytes, shard: str = "") -> None:
        shard = shard or sorted({tensor.shard for tensor in self.tensors.values()})[0]
        self.tensors[name] = Tensor(dtype, shape, bytearray(data), shard)

    def drop(self, name: str) -> None:
        del self.tensors[name]

    def write(self) -> Path:
        self.index["metadata"].setdefault("total_size", 0)
        if self.index["metadata"]["total_size"] >= 0:  # a test sets it negative to have it wrong
            self.index["metadata"]["total_size"] = sum(len(t.data) for t in self.tensors.values())
        self.index["weight_map"] = {name: tensor.shard for name, tensor in self.tensors.items()}
        for shard in {tensor.shard for tensor in self.tensors.values()}:
            header, body = {}, bytearray()
            for name, tensor in self.tensors.items():
                if tensor.shard == shard:
                    span = [len(body), len(body) + len(tensor.data)]
                    header[name] = {"dtype": tensor.dtype, "shape": tensor.shape}
                    header[name] |= {"data_offsets": span}
                    body += tensor.data
            text = json.dumps(header).encode()
            (self.path / shard).write_bytes(len(text).to_bytes(8, "little") + text + body)
        (self.path / INDEX).write_text(json.dumps(self.index))
        (self.path / "config.json").write_text(json.dumps(self.config))
        for step in self.after:
            step()
        return self.path


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path], Folder]:
    """edited(source): a copy of the checkpoint, in a folder of its own."""

    def get(source: Path) -> Folder:
        return Folder(source, tmp_path / f"edited-{len(list(tmp_path.iterdir()))}")

    return get


@pytest.fixture
def ask() -> Callable[..., tuple[int, Any]]:
    """ask(folder, *options): what `dstools verify --json` exits with and prints."""

    def get(folder: Path, *options: str) -> tuple[int, Any]:
        result = CliRunner().invoke(main, ["verify", str(folder), "--json", *options])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, json.loads(result.stdout)

    return get
