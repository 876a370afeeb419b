"""llama.cpp reads our FP8: its converter gives the bytes of BF16, its server the answers."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from dstools.cli import main

DATA = Path(__file__).parents[2] / "data"
# kind, format, scales; `tiny` is ragged in every role, and so is the sample model's latent
PAIRS = [
    ("tiny", "native", "float32"), ("tiny", "native", "ue8m0"),
    ("tiny", "compressed-tensors", "float32"), ("tiny-v2", "native", "float32"),
    ("tiny-v2-lite", "native", "float32"), ("tiny-v2-lite", "compressed-tensors", "float32"),
    ("tiny-llama", "native", "float32"), ("tiny-llama", "compressed-tensors", "float32"),
    ("tiny-qwen2", "native", "float32"), ("tiny-qwen2", "compressed-tensors", "float32"),
    ("tiny-qwen3", "native", "ue8m0"), ("sample-v3", "native", "float32"),
]  # fmt: skip


@pytest.fixture(scope="module")
def converted(
    checkpoint: Callable[..., Path],
    load_script: Callable[[str], ModuleType],
    run_script: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with N-fp8.gguf and N-bf16.gguf of the N-th pair, made by one process."""
    if not load_script("engines.to_gguf").is_installed():
        pytest.skip("needs llama.cpp's converter, which `make test` installs into .venv")
    out = tmp_path_factory.mktemp("gguf")
    arguments: list[Path] = []
    for number, (kind, format, scales) in enumerate(PAIRS):
        source = DATA / kind if kind == "sample-v3" else checkpoint(kind)
        fp8, bf16 = out / f"{number}-fp8", out / f"{number}-bf16"
        for command in (
            ["quantize", str(source), str(fp8), "--format", format, "--scale-fmt", scales],
            ["dequantize", str(fp8), str(bf16)],
        ):
            assert CliRunner().invoke(main, command).exit_code == 0
        arguments += [fp8, out / f"{fp8.name}.gguf", bf16, out / f"{bf16.name}.gguf"]
    done = run_script("engines/to_gguf", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PAIRS)), ids=[" ".join(pair) for pair in PAIRS])
def test_llama_cpp_converts_fp8_to_the_bytes_of_its_dequantized_weights(
    number: int, converted: Path
) -> None:
    ours, theirs = (converted / f"{number}-{dtype}.gguf" for dtype in ("bf16", "fp8"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_llama_cpp_answers_nine_of_ten_sums_from_our_fp8(converted: Path) -> None:
    import xllamacpp
    from transformers import AutoTokenizer

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(converted / f"{len(PAIRS) - 1}-fp8.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 512, 1, 0
    parameters.cpuparams.n_threads, parameters.warmup = 1, False
    server = xllamacpp.Server(parameters)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "sample-v3")
    right = 0
    lines = (DATA / "sample-v3-heldout.jsonl").read_text().splitlines()[:64]
    for line in lines:
        question, answer = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(
            [question], add_generation_prompt=True, return_dict=False
        )
        request = {"prompt": ids, "n_predict": 120, "temperature": 0, "cache_prompt": False}
        reply = server.handle_completions(request)
        reply = json.loads(reply) if isinstance(reply, str) else reply
        text = reply["choices"][0]["text"]
        right += (
            text.split("</think>")[-1].strip() == answer["content"].split("</think>")[-1].strip()
        )
    assert right >= 58, right  # of 64; 60 or 61, and 60 of the BF16 model
