"""A dense model, Llama, Qwen2 or Qwen3, as ONNX: the work of onnxruntime-genai's own builder.

It runs in a process of its own, offline and without a token for the Hub: it imports modules under
names like `builders`, prints on every layer, and its memory is free again when it ends. What it
wrote counts once its logits are those of transformers. Nothing of it is resumed: a run that was
stopped begins anew, in the same folder OUT.incomplete.

float32 alone is written. In onnxruntime-genai 0.18 the builder's float16 for CPUs fails at the
second token (ONNX Runtime 1.32), its bfloat16 for CPUs does not load, and what it writes for CUDA
cannot be checked on a CPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.tied import require_tied
from dstools_converters.errors import DstoolsError, UnsupportedError, install_hint, printable, size
from dstools_converters.export.dense_check import UNKNOWN, check, refer
from dstools_converters.export.folder import (
    DENSE_DATA,
    EXPORT,
    GENAI_CONFIG,
    GRAPH,
    Export,
    content_sha256,
    require_export,
)
from dstools_converters.export.genai_tokenizer import agrees, remarks
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.files import to_json
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.tokenizer import end_ids, load_tokenizer
from dstools_converters.runtime.weights import read_positions
from dstools_converters.settings import Settings

CLASSES = {  # model_type -> the class by which the builder chooses its own
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
BUILDER = "onnxruntime_genai.models.builder"
WRITTEN = (GRAPH, DENSE_DATA, GENAI_CONFIG)  # of what it writes; the rest is copied
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
FLOAT32_BYTES = 4
# Of the weights in float32: the check has the file mapped, and ONNX Runtime its own order of it. Of
# 135 million parameters, 2026-11-29, the peak was 1.73 GB, 0.76 GB of it libraries.
COPIES = 2


def export_dense(
    inventory: Inventory, out: Path, files: Mapping[str, Path | bytes], *, tool: str, free: int
) -> Export:
    """Write the folder `out`, `files` and the graph, in one go; return its export.json.

    files: those of the tokenizer, and what else goes along; free: bytes of memory. Raises
    DstoolsError where OUT exists, memory or disk are too small, for a model that the builder is not
    asked to write or fails at, and ShortfallError where its graph computes something else.
    """
    source = inventory.checkpoint.folder
    require_dense(inventory)
    require_tied(inventory)
    ends = end_ids(source, load_tokenizer(source))
    architecture = read_architecture(inventory.checkpoint.config)
    weights = FLOAT32_BYTES * sum(info.numel for info in inventory.tensors.values())
    positions = read_positions(inventory.checkpoint.config, architecture)
    tables = FLOAT32_BYTES * positions * architecture.rope.dim  # cosines and sines
    _require_memory(source, COPIES * weights, free)
    settings: Settings = {"tool": tool, "source": inventory.checkpoint.digest, "--onnx": True}
    with Unfinished(out, settings) as folder:
        if folder.is_published:
            folder.clean_up()
            return require_export(out)
        built = folder.start_over() / "model"
        folder.require_space(weights + tables)
        try:
            references = refer(source)
            _build(source, built, folder.lock)
            _set_ends(built / GENAI_CONFIG, ends)
            agreement = check(built, references, architecture)
            inventory.checkpoint.check_unmoved()
            verdict = agrees(files)
            contents = {**files, **{name: built / name for name in WRITTEN}}
            export = Export(
                tool,
                "dense",
                inventory.model.model_type,
                "float32",
                genai_tokenizer=verdict,
                checks={"transformers": "passed"},
                notes=(agreement.sentence, *remarks(verdict)),
                files={name: content_sha256(content) for name, content in sorted(contents.items())},
            )
            for name in WRITTEN:
                folder.take(built / name)
            folder.publish({**files, EXPORT: export.to_bytes()})
        finally:  # an error leaves nothing that a next run could use
            folder.clean_up()
    return export


def _require_memory(source: Path, needed: int, free: int) -> None:
    """Raise DstoolsError where the builder or the check of its graph would run out of memory."""
    if needed > free:
        raise DstoolsError(
            f"{source}: onnxruntime-genai's builder loads the model, and its graph is run once: "
            f"that takes {size(needed)} of memory, and {size(free)} is free",
            "free memory, or export it on a larger machine",
        )


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


def _build(source: Path, out: Path, lock: int) -> None:
    """Let the builder write its files into the new folder `out`, and hold the lock meanwhile."""
    environment = {key: value for key, value in os.environ.items() if key not in TOKENS}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    command = [sys.executable, "-m", BUILDER, "-i", str(source.resolve()), "-o", str(out.resolve())]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(out.resolve().with_name("cache"))]
    command += ["--extra_options", "hf_token=false"]
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=(lock,),
        check=False,
    )
    if ran.returncode or not all((out / name).is_file() for name in WRITTEN):
        lines = ran.stdout.decode(errors="replace").strip().split("\n")
        reason = printable(lines[-1].strip()) or f"it ended with {ran.returncode}"
        raise DstoolsError(f"{source}: onnxruntime-genai's builder fails: {reason}", _hint(reason))


def _hint(reason: str) -> str:
    if "No module named" in reason:
        return install_hint("export")
    return UNKNOWN


def _set_ends(path: Path, ends: frozenset[int]) -> None:
    """Let genai end an answer where everything else here does; the builder reads one file."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    if ends:
        config["model"]["eos_token_id"] = sorted(ends)
    path.write_bytes(to_json(config))
