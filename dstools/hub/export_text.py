"""Text of the card of an exported folder: what it holds, what it runs in, and what was run.

Everything comes from export.json. What was not run is said to be not run.
"""

from collections.abc import Collection, Iterator

from dstools.hub.card_text import HUB, PLACEHOLDER
from dstools_converters.errors import counted, install_hint, size
from dstools_converters.export.folder import EXPORT, GENAI_CONFIG, Export, Making, native_code
from dstools_converters.markdown import table, text
from dstools_converters.sidefiles.sums import SUMS

MADE: dict[Making, str] = {
    "copy": "copied from the checkpoint, byte by byte",
    "convert": "converted from the checkpoint's numbers",
    "make": "made without it: angles, maps of experts",
}
GENERATOR = """\
import onnxruntime_genai as og
from tokenizers import Tokenizer

model = og.Model("DIR")
tokenizer = Tokenizer.from_file("DIR/tokenizer.json")
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=256)
generator = og.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("What is 17 + 25?").ids)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""


def export_text(
    export: Export, files: Collection[str], *, base: str | None, repo: str | None, has_title: bool
) -> str:
    """Return the generated part of a card as Markdown; without a title it follows other text."""
    name = (repo or base or export.model_type).rpartition("/")[2]
    parts = [
        f"# {text(name)}" if has_title else "## About this export",
        _summary(export, base),
        _holds(export, files),
        "## How to run it",
        *_runs(export, repo or PLACEHOLDER),
        "## What was run",
        *_checks(export),
        *_engines(export, files),
        "## To check a copy",
        _copy(files, repo or PLACEHOLDER),
    ]
    return "\n\n".join(parts)


def _summary(export: Export, base: str | None) -> str:
    what = {
        "onnx": "as ONNX graphs with paged latent caches",
        "dense": "as an ONNX graph of onnxruntime-genai's builder",
        "deepseek-inference": "in the layout of DeepSeek's own inference code",
    }[export.kind]
    model = f"[{base}]({HUB}/{base})" if base else f"A {text(export.model_type)} model"
    return (
        f"{model}, exported by {text(export.tool)} {what}. What the model is for, and how it was "
        "trained, is in the card of that model."
    )


def _holds(export: Export, files: Collection[str]) -> str:
    tensors = [weight for weights in export.weights.values() for weight in weights]
    rows = [
        ("Architecture", text(export.model_type)),
        ("Activations, caches and other weights", export.dtype),
        ("FP8 weights", "kept, E4M3 codes with a scale for 128 x 128" if export.has_codes else ""),
        ("Graphs", ", ".join(text(note.file) for note in export.graphs)),
        ("MTP", _mtp(export)),
        ("Ranks", _ranks(export)),
        ("Opset", str(export.opset) if export.opset else ""),
        ("Weights", size(sum(weight.nbytes for weight in tensors)) if tensors else ""),
    ]
    for making, words in MADE.items():
        count = sum(weight.making == making for weight in tensors)
        if count:
            rows.append((f"- {words}", counted(count, "tensor")))
    if export.pool is not None:
        pool = export.pool
        tokens = pool.num_blocks * pool.page_size
        rows += [
            ("Context", f"{pool.context_length:,} tokens, prompt and answer"),
            ("Rows at a time", str(pool.max_batch_size)),
            ("Pool", f"{pool.num_blocks:,} pages of {pool.page_size} tokens"),
            ("Memory of the pool", f"{size(tokens * pool.token_bytes)}, when it runs"),
        ]
    rows += [
        (f"Body of {text(op)}", text(how)) for op, how in export.bodies.items() if _has(export, op)
    ]
    return table(("Export", ""), [row for row in rows if row[1]])


def _mtp(export: Export) -> str:
    if not export.has_mtp:
        return "none"
    if export.kind == "deepseek-inference":
        return f"weights alone, in mtpRANK-mp{export.tp}.safetensors"
    return "mtp.onnx drafts the tokens that follow"


def _has(export: Export, op: str) -> bool:
    return any(op in note.plugins for note in export.graphs)


def _ranks(export: Export) -> str:
    if max(export.tp, export.ep) == 1:
        return ""
    experts = "; experts are inputs, from experts.safetensors" if export.expert_inputs else ""
    return f"{max(export.tp, export.ep)} (tp {export.tp}, ep {export.ep}){experts}"


# ----------------------------------------------------------------------------------- where it runs


def _runs(export: Export, repo: str) -> Iterator[str]:
    """Yield what runs the folder, with code."""
    get = f"hf download {repo} --local-dir DIR"
    if export.kind == "deepseek-inference":
        yield (
            "DeepSeek's own inference code reads it (deepseek-ai/DeepSeek-V3, inference/):\n\n"
            f"```sh\n{get}\n"
            "torchrun --nproc-per-node RANKS generate.py --ckpt-path DIR "
            "--config DIR/inference_config.json --interactive\n```"
        )
        return
    if export.kind == "dense":
        yield "onnxruntime-genai runs it; its cache is not paged, so there is no batching Engine."
        yield (
            f"```sh\n{install_hint('export')}\n{get}\n"
            "dstools generate DIR --prompt 'What is 17 + 25?'\n```"
        )
        yield f"```python\n{GENERATOR}\n```"
        yield _tokenizer(export)
        return
    if GENAI_CONFIG in export.files and export.dtype == "bfloat16":
        yield "onnxruntime-genai's Engine serves it on a GPU."
        yield _tokenizer(export)
    elif GENAI_CONFIG in export.files:
        yield "dstools runs it on ONNX Runtime, and onnxruntime-genai's Engine serves it:"
        mtp = " --mtp" if export.has_mtp else ""
        yield (
            f"```sh\n{install_hint('export')}\n{get}\n"
            f"dstools generate DIR --prompt 'What is 17 + 25?'{mtp}\n```"
        )
        yield _tokenizer(export)
    else:
        yield (
            "Each rank's graph is to be run by a process of its own, which sums where a node "
            "DistCollective is. Nothing here does that: build engines with `dstools export --trt`."
        )
    if export.dtype == "bfloat16":
        yield "ONNX Runtime has no BF16 on a CPU: there, export with `--dtype float32`."
    nodes = sum(sum(note.plugins.values()) for note in export.graphs)
    yield (
        f"TensorRT builds it with the plugins of dstools ({nodes} nodes); each of their ops has a "
        "body of plain ONNX, which ONNX Runtime runs."
    )


def _tokenizer(export: Export) -> str:
    if export.genai_tokenizer is None:
        agrees = "was not compared with"
    else:
        agrees = "gives the ids of" if export.genai_tokenizer else "gives other ids than"
    return f"The tokenizer of onnxruntime-genai {agrees} tokenizer.json."


# --------------------------------------------------------------------------------- what was run


def _checks(export: Export) -> Iterator[str]:
    if export.checks:
        rows = [(text(name), verdict) for name, verdict in export.checks.items()]
        yield table(("Check", "Result"), rows)
    else:
        yield "**This export itself was not run.**"
    yield (
        "The plugins' kernels and TensorRT engines of this project were not run on a GPU, unless a "
        "line above says so."
    )
    if export.notes:
        yield "\n".join(f"- {_escaped(note)}" for note in export.notes)


def _engines(export: Export, files: Collection[str]) -> Iterator[str]:
    code = native_code(export)
    published = sorted(set(code).intersection(files))
    if published:
        yield "## Engines and plugins"
        yield (
            "Engines run on the GPU and with the TensorRT that they were built for. They and a "
            "library of plugins are native code: load them only from people whom you trust."
        )
        yield "\n".join(f"- {text(name)}, sha256 {code[name]}" for name in published)


def _copy(files: Collection[str], repo: str) -> str:
    sums = f" and {SUMS}" if SUMS in files else ""
    option = " --sums" if SUMS in files else ""
    return (
        f"`hf download {repo} --local-dir DIR`, then `dstools verify DIR{option}` compares every "
        f"file and every tensor with {EXPORT}{sums}; `--source CHECKPOINT` compares the tensors "
        "with those of the model."
    )


def _escaped(sentence: str) -> str:
    """Return a sentence escaped whole; `text` cuts what is longer than a name."""
    return " ".join(map(text, sentence.split(" ")))
