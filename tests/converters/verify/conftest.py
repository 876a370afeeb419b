"""Checkpoints to be damaged or to be served, and what `dstools verify` says of them.

edited(source)             a copy in memory: change `.tensors`, `.config`, `.index`, then `.write()`
ask(folder, *options)      exit code and JSON of the command
fp8(config)                headers of a model in block FP8
damaged(folder)            a copy of an exported folder: change files or `.table`, then `.faults()`
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES, QuantScheme
from dstools_converters.errors import Finding
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import read_model
from dstools_converters.verify.folder import verify

INDEX = "model.safetensors.index.json"
SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


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


class Exported:
    """A copy of an exported folder, to be damaged: `table` is its export.json."""

    def __init__(self, source: Path, path: Path) -> None:
        self.path = shutil.copytree(source, path)
        self.table = json.loads((path / "export.json").read_text())

    def weight(self, name: str, file: str = "model.data") -> dict[str, Any]:
        """Return what export.json says of a tensor, to be changed."""
        return next(w for w in self.table["weights"][file] if w["name"] == name)

    def flip(self, file: str, offset: int) -> None:
        """Change a bit of a byte."""
        with (self.path / file).open("r+b") as stream:
            stream.seek(offset)
            byte = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([byte ^ 1]))

    def put(self, file: str, content: bytes) -> None:
        """Write a file, and list it as it is then."""
        (self.path / file).write_bytes(content)
        self.table["files"][file] = hashlib.sha256(content).hexdigest()

    def edit(self, file: str, key: str, value: Any) -> None:
        """Change what a JSON file has at a dotted key, and list it as it is then; None removes."""
        whole = table = json.loads((self.path / file).read_text())
        *parts, last = key.split(".")
        for part in parts:
            table = table[part]
        table[last] = value
        if value is None:
            del table[last]
        self.put(file, json.dumps(whole).encode())

    def findings(self, **options: Any) -> list[Finding]:
        """Write export.json, and return what `verify` finds."""
        (self.path / "export.json").write_text(json.dumps(self.table))
        report = verify(self.path, **options)
        assert report.ok == all(finding.level != "error" for finding in report.findings)
        return report.findings

    def faults(self, **options: Any) -> list[tuple[str, str]]:
        """Return code and place of what `verify` finds."""
        return [(finding.code, finding.where) for finding in self.findings(**options)]


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Path], Exported]:
    """damaged(folder): a copy of an exported folder."""
    return lambda source: Exported(source, tmp_path / "damaged")


@pytest.fixture(scope="session")
def sample_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in native block FP8."""
    out = tmp_path_factory.mktemp("fp8") / "sample"
    assert CliRunner().invoke(main, ["quantize", str(SAMPLE), str(out)]).exit_code == 0
    return out


@pytest.fixture
def ask() -> Callable[..., tuple[int, Any]]:
    """ask(folder, *options): what `dstools verify --json` exits with and prints."""

    def get(folder: Path, *options: str) -> tuple[int, Any]:
        result = CliRunner().invoke(main, ["verify", str(folder), "--json", *options])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, json.loads(result.stdout)

    return get


@pytest.fixture
def configs(load_script: Callable[[str], ModuleType]) -> dict[str, dict[str, Any]]:
    """The config.json of every kind of checkpoint that make_checkpoint.py writes."""
    kinds: dict[str, dict[str, Any]] = load_script("checkpoint_configs").CONFIGS
    return kinds


@pytest.fixture
def fp8(sparse: Callable[..., Path]) -> Callable[..., Inventory]:
    """fp8(config, scale_dtype="F32", *, format="native", keep=..., **quantization)

    The headers of a model of those dimensions in block FP8, but for the weights that `keep` names.
    """

    def make(
        config: dict[str, Any],
        scale_dtype: str = "F32",
        *,
        format: Any = "native",
        keep: Callable[[TensorName], bool] = lambda name: False,
        **quantization: Any,
    ) -> Inventory:
        tensors, kept, model = {}, [], read_model(config)
        part = "weight_scale_inv" if format == "native" else "weight_scale"
        for name, shape in model.weights():
            module = model.spelling.module(name)
            is_matrix = name.role in QUANTIZED_ROLES and name.part == "weight"
            is_fp8 = is_matrix and not keep(name)
            tensors[model.spell(name)] = ("F8_E4M3" if is_fp8 else "BF16", list(shape))
            if is_fp8:
                grid = [-(-side // 128) for side in shape]
                tensors[f"{module}.{part}"] = (scale_dtype, grid)
            elif is_matrix:
                kept.append(module)
        named = ("lm_head", *kept) if kept or format == "compressed-tensors" else ()
        scheme = QuantScheme(format, "float32", (128, 128)).to_config(named)
        config = config | {"quantization_config": scheme | quantization}
        return require_sound(open_checkpoint(sparse(config, {"model.safetensors": tensors})))

    return make
