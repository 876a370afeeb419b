"""export.json: what an exported folder holds, what it was made from and what was checked.

    OUT/
        model.onnx, mtp.onnx    one graph each; mtp.onnx where the MTP layer was exported
        model.data              their weights, at the offsets that `weights` lists
        genai_config.json       how onnxruntime-genai's Engine runs them
        export.json             this; written last
        config.json, tokenizer.json, ...   from the checkpoint
        rank0/, rank1/, ...     with several ranks, graphs and weights of each

Nothing in it depends on the time or on the machine: equal exports, equal bytes.
"""

from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Literal

from dstools_converters.errors import DstoolsError
from dstools_converters.files import to_json
from dstools_converters.tables import Positive, Reader, json_table

EXPORT = "export.json"
GRAPH, DRAFT_GRAPH, DATA, EXPERTS = "model.onnx", "mtp.onnx", "model.data", "experts.safetensors"
DENSE_DATA = f"{GRAPH}.data"  # the name that onnxruntime-genai's builder gives it
GENAI_CONFIG = "genai_config.json"
ROWS = "logits_indices"  # the input that says whose logits are wanted, where a graph has it
LOCAL_EXPERTS = "num_local_experts"  # how many a rank holds, where experts are inputs
CHUNK = 512  # tokens of prompts in a step, whatever runs a folder: others' tokens wait no longer
PLUGINS, PLAN = "libdstools_trt.so", "model.plan"

Kind = Literal["onnx", "dense", "deepseek-inference"]
Verdict = Literal["passed", "failed", "not run"]
Precision = Literal["float32", "float16", "bfloat16"]
Dtype = Literal["F32", "F16", "BF16", "F8_E4M3", "I32"]
Making = Literal["copy", "convert", "make"]


@dataclass(frozen=True)
class Weight:
    """A tensor of `file`, in rows of C order."""

    name: str  # as the graph calls it
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int  # in bytes
    nbytes: int
    making: Making  # bytes of the checkpoint, converted from it, or made without it
    sha256: str


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; sizes that vary have names."""

    name: str
    dtype: str  # of ONNX: FLOAT, INT64, ...
    shape: tuple[str, ...]  # numbers and names


@dataclass(frozen=True)
class GraphNote:
    """Inputs, outputs and plugin nodes of a graph, for a check of what was built from it."""

    file: str  # by its path in the folder
    plugins: dict[str, int]  # op -> nodes that a plugin implements
    collectives: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Pool:
    """The caches that the folder is made for."""

    context_length: Positive
    max_batch_size: Positive
    page_size: Positive
    num_blocks: Positive
    token_bytes: Positive  # of all caches, a token


@dataclass(frozen=True)
class Export:
    """The content of export.json, by its own keys and in its order."""

    tool: str  # "dstools VERSION"
    kind: Kind
    model_type: str
    dtype: Precision  # of activations, caches and weights that are not codes
    source: str = ""  # `Job.identity`: sha256 of the checkpoint's headers and of what was asked for
    has_codes: bool = False  # native block FP8 weights
    has_mtp: bool = False
    tp: Positive = 1
    ep: Positive = 1
    expert_inputs: bool = False  # experts are inputs, from experts.safetensors
    opset: int = 0
    bodies: dict[str, str] = field(default_factory=dict)  # op -> how its function computes it
    pool: Pool | None = None
    graphs: tuple[GraphNote, ...] = ()
    genai_tokenizer: bool | None = None  # it gives the ids of tokenizer.json; None: not compared
    checks: dict[str, Verdict] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences for people
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256, but for `weights`
    engines: dict[str, str] = field(default_factory=dict)  # path -> sha256 of what was built
    weights: dict[str, tuple[Weight, ...]] = field(default_factory=dict)  # path -> tensors

    def to_bytes(self) -> bytes:
        """Return export.json."""
        return to_json(asdict(self))


def pairs_of(layers: int) -> int:
    """Return how many layers genai counts: each has two caches, one for a layer of ours."""
    return -(-layers // 2)


def rank_folders(ranks: int) -> list[str]:
    """Return what precedes the files of each rank, "" where there is one rank."""
    return [f"rank{rank}/" for rank in range(ranks)] if ranks > 1 else [""]


def read_export(folder: Path) -> Export | None:
    """Return the export.json of a folder, None where there is none.

    Raises DstoolsError, naming file and key, where it is damaged or not ours.
    """
    path = folder / EXPORT
    table = json_table(path, "copy it again, or export the checkpoint again")
    if table is None:
        return None
    if not str(table.get("tool")).startswith("dstools "):
        raise DstoolsError(f"{path}: was not written by dstools", "export the model again")
    return Reader(str(path), "json").read(Export, table)


def require_export(folder: Path) -> Export:
    """Return the export.json of a folder; raises DstoolsError where there is none."""
    export = read_export(folder)
    if export is None:
        raise DstoolsError(f"{folder}: has no {EXPORT}", "give a folder that dstools export wrote")
    return export


def native_code(export: Export) -> dict[str, str]:
    """Return the sha256 of each file that is code of a machine: engines and libraries."""
    libraries = {name: digest for name, digest in export.files.items() if is_library(name)}
    return libraries | export.engines


def is_library(name: str) -> bool:
    """Return whether a file is, by its name, code that a program loads."""
    return name.lower().endswith((".so", ".dll", ".dylib")) or ".so." in name.lower()


def content_sha256(content: bytes | memoryview | Path) -> str:
    """Return the sha256 of bytes, or of a file, in hexadecimal."""
    if not isinstance(content, Path):
        return sha256(content).hexdigest()
    with content.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
