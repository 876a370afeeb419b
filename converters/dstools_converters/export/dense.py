"""A dense model, Llama, Qwen2 or Qwen3, as ONNX: the work of onnxruntime-genai's own builder.

It runs in a process of its own, offline and without a token for the Hub: it imports modules under
names like `builders`, prints on every layer, and its memory is free again when it ends. What it
wrote counts once its logits are those of transformers.

float32 alone is written. In onnxruntime-genai 0.18 the builder's float16 for CPUs fails at the
second token (ONNX Runtime 1.32), its bfloat16 for CPUs does not load, and what it writes for CUDA
cannot be checked on a CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.tied import require_tied
from dstools_converters.errors import DstoolsError, UnsupportedError, printable
from dstools_converters.export.dense_check import UNKNOWN, check, refer
from dstools_converters.export.folder import (
    EXPORT,
    GENAI_CONFIG,
    GRAPH,
    Export,
    content_sha256,
    require_export,
)
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.files import to_json
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.tokenizer import end_ids, load_tokenizer

CLASSES = {  # model_type -> the class by which the builder chooses its own
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
BUILDER = "onnxruntime_genai.models.builder"
WRITTEN = (GRAPH, f"{GRAPH}.data", GENAI_CONFIG)  # of what it writes; the rest is copied
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def export_dense(
    inventory: Inventory, out: Path, files: Mapping[str, Path | bytes], *, tool: str
) -> Export:
    """Write the folder `out`, `files` and the graph, in one go; return its export.json.

    files: those of the tokenizer, and what else goes along. Raises DstoolsError where OUT exists,
    for a model that the builder is not asked to write or fails at, and ShortfallError where its
    graph computes something else.
    """
    source = inventory.checkpoint.folder
    require_dense(inventory)
    require_tied(inventory)
    ends = end_ids(source, load_tokenizer(source))
    architecture = read_architecture(inventory.checkpoint.config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        built = Path(scratch) / "model"
        references = refer(source)
        _build(source, built)
        _set_ends(built / GENAI_CONFIG, ends)
        agreement = check(built, references, architecture)
        inventory.checkpoint.check_unmoved()
        contents = {**files, **{name: built / name for name in WRITTEN}}
        export = Export(
            tool,
            "dense",
            inventory.model.model_type,
            "float32",
            checks={"transformers": "passed"},
            notes=(agreement.sentence,),
            files={name: content_sha256(content) for name, content in sorted(contents.items())},
        )
        with Unfinished(out, f"{tool} dense {inventory.checkpoint.digest}") as folder:
            if folder.is_published:
                folder.clean_up()
                return require_export(out)
            for name in WRITTEN:
                folder.take(built / name)
            folder.publish({**files, EXPORT: export.to_bytes()})
            folder.clean_up()
    return export


def require_dense(inventory: Inventory) -> None:
    """Raise DstoolsError for a model that onnxruntime-genai's builder is not asked to write."""
    model, config = inventory.model, inventory.checkpoint.config
    wanted = CLASSES.get(model.model_type)
    if wanted is None:
        raise UnsupportedError(
            f"config.json: model_type {model.model_type!r} is not a dense model",
            f"dense ones are {', '.join(CLASSES)}",
        )
    if config.get("architectures") != [wanted]:
        raise UnsupportedError(
            f"config.json: architectures {printable(repr(config.get('architectures')))} is not "
            f"[{wanted!r}], by which onnxruntime-genai's builder chooses a graph",
            "restore config.json from the release",
        )
    if inventory.scheme is not None:
        raise DstoolsError(
            f"{inventory.checkpoint.folder}: onnxruntime-genai's builder reads no block FP8",
            "`dstools dequantize` it, and export the result",
        )


def _build(source: Path, out: Path) -> None:
    """Let the builder write its files into the new folder `out`."""
    environment = {key: value for key, value in os.environ.items() if key not in TOKENS}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-m", BUILDER, "-i", str(source.resolve()), "-o", str(out.resolve())]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(out.resolve().with_name("cache"))]
    command += ["--extra_options", "hf_token=false"]
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    if ran.returncode or not all((out / name).is_file() for name in WRITTEN):
        lines = ran.stdout.decode(errors="replace").strip().split("\n")
        reason = printable(lines[-1].strip()) or f"it ended with {ran.returncode}"
        raise DstoolsError(f"{source}: onnxruntime-genai's builder fails: {reason}", _hint(reason))


def _hint(reason: str) -> str:
    if "No module named" in reason:
        return 'pip install "dstools-llm[export]"'
    return UNKNOWN


def _set_ends(path: Path, ends: frozenset[int]) -> None:
    """Let genai end an answer where everything else here does; the builder reads one file."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    if ends:
        config["model"]["eos_token_id"] = sorted(ends)
    path.write_bytes(to_json(config))
