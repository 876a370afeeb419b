"""The checkpoints of engine_check.py: which ones, how they are written, what they are asked."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple, get_args

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
DSTOOLS = [sys.executable, "-m", "dstools"]

Engine = Literal["vllm", "sglang", "mistralrs"]
Format = Literal["native", "ue8m0", "compressed-tensors", "gptq"]
OPTIONS: dict[Format, list[str]] = {
    "native": [],
    "ue8m0": ["--scale-fmt", "ue8m0"],
    "compressed-tensors": ["--format", "compressed-tensors"],
    "gptq": ["--calibrate", str(DATA / "sample-v3-calibration.jsonl")],
}
OPTIONS["gptq"] += ["--samples", "200", "--seq-len", "256"]
TRAINED = ("sample", "smollm2")


class Case(NamedTuple):
    """A checkpoint to write, and the engines that are known not to run it."""

    model: str
    format: Format
    kept: tuple[str, ...] = ()  # roles left in BF16 in `layers`
    layers: str = "1"
    fails_in: tuple[Engine, ...] = ()
    torch_kernels: bool = False  # by the plugin: vLLM's own for CPUs refuse a bias in BF16

    def __str__(self) -> str:
        kept = f" keeping {', '.join(self.kept)} of layer {self.layers}" if self.kept else ""
        return f"{self.model} {self.format}{kept}"


ROUTED = ("routed_gate", "routed_up", "routed_down")
DENSE = ("dense_gate", "dense_up", "dense_down")
CASES = [
    Case("sample", "native", fails_in=("mistralrs",)),
    Case("sample", "ue8m0", fails_in=("mistralrs",)),
    Case("sample", "compressed-tensors", fails_in=("mistralrs",)),
    Case("sample", "gptq", fails_in=("mistralrs",)),
    Case("sample", "native", ROUTED, fails_in=("mistralrs",)),
    Case("sample", "native", ("kv_b_proj",), fails_in=("mistralrs",)),
    Case("sample", "compressed-tensors", DENSE, layers="0", fails_in=("sglang", "mistralrs")),
    Case("sample", "native", ("routed_down",), fails_in=get_args(Engine)),
    Case("sample-as-is", "native", fails_in=get_args(Engine)),  # experts of 40
    Case("smollm2", "native", fails_in=("vllm", "sglang")),  # 576 rows of q, then k
    Case("smollm2", "ue8m0", fails_in=("vllm", "sglang")),
    Case("smollm2", "compressed-tensors", fails_in=("vllm", "sglang")),
    Case("tiny-llama", "native", fails_in=("sglang",)),  # sgl-project/sglang#30234
    Case("tiny-llama", "compressed-tensors"),
    Case("tiny-qwen2", "native", torch_kernels=True),  # tied
    Case("tiny-qwen2", "compressed-tensors", torch_kernels=True),
    Case("tiny-qwen3", "native"),
    Case("tiny-qwen3", "compressed-tensors"),
]


def make_source(model: str, folder: Path) -> Path:
    """Return the folder of a BF16 model, made on its first use."""
    if model == "sample-as-is":
        return DATA / "sample-v3"
    source = folder / model
    if not source.exists():
        if model == "sample":
            from pad_sample_model import pad

            pad(DATA / "sample-v3", source)
        else:
            from make_checkpoint import make

            make(model, source)
        if model == "smollm2":  # as in its release; mistral.rs does not look in rope_parameters
            config = json.loads((source / "config.json").read_text())
            config["rope_theta"] = config["rope_parameters"]["rope_theta"]
            (source / "config.json").write_text(json.dumps(config, indent=2))
    return source


def quantize(case: Case, source: Path, out: Path) -> str:
    """Write the case's checkpoint; return the error of `dstools quantize` if it refused."""
    options = list(OPTIONS[case.format])
    if case.kept:
        recipe = out.with_suffix(".toml")
        rule = {"role": list(case.kept), "layers": case.layers, "scheme": "keep"}
        lines = [f"{key} = {json.dumps(value)}" for key, value in rule.items()]
        recipe.write_text("\n".join(["[[rule]]", *lines, ""]))
        options += ["--recipe", str(recipe)]
    command = [*DSTOOLS, "quantize", str(source), str(out), "--no-fsync", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[0] if done.returncode else ""


class Inputs(NamedTuple):
    """What an engine is asked of a case."""

    questions: list[str]  # to answer greedily
    prompts: list[list[int]]  # the same, rendered, in ids
    sequences: list[list[int]]  # ids to score


def inputs(model: str, source: Path, answers: int) -> Inputs:
    """Return `answers` held-out sums for a trained model; for others only seeded random ids."""
    if not model.startswith(TRAINED):
        vocab = json.loads((source / "config.json").read_text())["vocab_size"]
        draw = random.Random(0)
        return Inputs([], [], [[draw.randrange(vocab) for _ in range(64)] for _ in range(4)])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    lines = (DATA / "sample-v3-heldout.jsonl").read_text().splitlines()[:answers]
    chats = [json.loads(line)["messages"] for line in lines]

    def ids(messages: list[dict[str, str]], generate: bool) -> list[int]:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=generate, tokenize=False
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Inputs(
        [chat[0]["content"] for chat in chats],
        [ids(chat[:1], True) for chat in chats],
        [ids(chat, False) for chat in chats[:16]],
    )


def fp8_weights(folder: Path, mtp: bool) -> set[str]:
    """Return the names of a checkpoint's FP8 tensors, with or without those of its MTP layers."""
    from dstools_converters.checkpoint.folder import open_checkpoint

    checkpoint = open_checkpoint(folder)
    layers = range(checkpoint.config["num_hidden_layers"])
    main = tuple(f"model.layers.{layer}." for layer in layers)
    return {
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype == "F8_E4M3" and (mtp or name.startswith(main))
    }
