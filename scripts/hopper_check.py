#!/usr/bin/env python3
"""Checks that need a Hopper GPU: the kernels in at most five minutes, or all that trains there.

    pip install ".[dev]"
    python scripts/hopper_check.py kernels [--out hopper.json]
    python scripts/hopper_check.py training [arguments for pytest, such as -n 8]

`kernels` prints each result as it is known and keeps all of them in one JSON file, so that a run
that is cut off leaves what it had: the card and what it can do at best, every op against its torch
definition, times at shapes of DeepSeek-V3, vendors' kernels that can be imported, and the padded
sample model's answers against the CPU's, in BF16 and in FP8. Without a GPU it checks what the CPU
runs, the definitions or (TRITON_INTERPRET=1 DSTOOLS_KERNELS=triton) the interpreted twins, and says
what it left out.

`training` runs the tests marked `gpu`, all others of the modules that use a GPU whenever one is
present, and benchmarks.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Thread
from typing import IO, Any

import torch
from pad_sample_model import pad
from torch import Tensor

from dstools_converters.model.tokenizer import end_ids, load_tokenizer, prompt_ids
from dstools_converters.runtime.decode import Loop, Request
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.serving import Serving
from dstools_converters.runtime.session import Session
from dstools_converters.runtime.weights import load
from dstools_kernels.ops.dispatch import is_interpreted
from dstools_kernels.proof import worker
from dstools_kernels.proof.card import prepare, using
from dstools_kernels.proof.worker import Job

ROOT = Path(__file__).parents[1]
SAMPLE, CHATS = ROOT / "tests/data/sample-v3", ROOT / "tests/data/toy-chat.jsonl"
PROMPTS, TOKENS, PAGES = 8, 48, 32  # of the sample model
INTERPRETED = 2, 2  # prompts and tokens of it; a step takes some ten seconds
# The gap of two tokens' logits that rounding explains. Between definitions in float32 and in BF16
# it is up to 1.5 (24 prompts of 32 tokens); FP8 products 10 % too large make it 2.9, halved 13.
TIE = 2.0
WORKER = [sys.executable, "-m", "dstools_kernels.proof.worker"]
SECONDS = 300  # of `kernels`
CASE_SECONDS = 60  # of one case, compilation included; the interpreter takes seconds
PACKAGES = ("torch", "triton", "transformers", "trl", "accelerate")
MODULES = [
    *(f"training/test_{name}.py" for name in ("sft", "kd", "grpo", "trainer", "muon")),
    *("test_loading.py", "teachers/test_sampling.py"),
]
BENCHES = [
    ["bench_sft.py", "--device", "cuda", "--steps", "100", "--rounds", "3"],
    ["bench_calibrate.py", "--device", "cuda", "--experts", "2"],
]


def main() -> None:
    """Run one of the two, and exit with 1 if something failed."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["kernels", "training"])
    parser.add_argument("--out", type=Path, default=Path("hopper.json"), help="of `kernels`")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of `kernels`, at most")
    arguments, rest = parser.parse_known_args()
    if arguments.part == "training":
        training(rest)
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    else:
        torch.set_num_threads(1)  # the sample model's matrices gain nothing from more
        kernels(arguments.out, arguments.seconds)


# ------------------------------------------------------------------------------------- the kernels


class Record:
    """The results so far, printed and written to a file as they come."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.deadline = out, time.monotonic() + seconds
        self.results: dict[str, Any] = {"left_out": []}

    @property
    def seconds_left(self) -> float:
        """Return how many seconds are left, 0 at the end."""
        return max(0.0, self.deadline - time.monotonic())

    def add(self, part: str, result: dict[str, Any], text: str) -> None:
        """Keep one result of a part, and print it as `text`."""
        self.results.setdefault(part, []).append(result)
        print(text, flush=True)
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """Note what does not run."""
        self.results["left_out"].append(f"{what}: {why}")
        print(f"left out: {what}: {why}", flush=True)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        new = self.out.with_name(self.out.name + ".new")
        new.write_text(json.dumps(self.results, indent=1) + "\n")
        new.replace(self.out)

    def has_time(self, what: str) -> bool:
        """Return whether there is time left; note `what` where there is none."""
        if self.seconds_left:
            return True
        self.leave_out(what, "out of time")
        return False


def kernels(out: Path, seconds: float) -> None:
    """Check and time the kernels; exit with 1 if a result is wrong."""
    record = Record(out, seconds)
    device = prepare()
    is_card = device.type == "cuda"
    known = facts()
    record.results |= known
    print(json.dumps(known))
    if not is_card:
        record.leave_out("everything on a card", "torch finds no CUDA device")
    wrong: list[str] = []
    worker.listen(lambda text: keep(record, {"part": "notes", "text": text}, wrong))
    jobs, first = worker.jobs(is_card), 0
    while first < len(jobs) and record.has_time(f"cases from {jobs[first].name} on"):
        first = follow(record, first, jobs, wrong)
    if record.has_time("answers of the sample model"):
        wrong += answers(record, device)
    if wrong:
        sys.exit(f"error: wrong: {'; '.join(wrong)}\nhint: {out} has how far off")
    print(f"all right, but for what was left out ({len(record.results['left_out'])}); see {out}")


def follow(record: Record, first: int, jobs: list[Job], wrong: list[str]) -> int:
    """Record what a worker finds from job `first` on; return the job to continue with.

    A worker ends early where a kernel takes it along, or hangs and is killed.
    """
    command, lines = [*WORKER, str(first)], Queue[str]()
    now, why = first, ""
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        Thread(target=read, args=(process.stdout, lines), daemon=True).start()
        try:
            while line := lines.get(timeout=min(CASE_SECONDS, record.seconds_left)):
                result = json.loads(line)
                now = result.get("job", now)
                keep(record, result, wrong)
        except Empty:
            process.kill()
            why = f"no result within {CASE_SECONDS} s"
        if not process.wait():
            return len(jobs)
        errors.seek(0)
        said = errors.read().partition("\nnanobind: ")[0]  # what Triton's bindings say at exit
        why = why or (said.strip() or f"exit {process.returncode}").splitlines()[-1]
    part, name = jobs[now].part, jobs[now].name
    if record.has_time(name):
        if part == "ceilings":
            record.leave_out(name, why)
        else:
            keep(record, {"part": part, "name": name, "is_right": False, "how": why}, wrong)
    return now + 1


def read(stream: IO[str], lines: "Queue[str]") -> None:
    """Put the lines of a stream into a queue, "" at its end."""
    for line in stream:
        lines.put(line)
    lines.put("")


def keep(record: Record, result: dict[str, Any], wrong: list[str]) -> None:
    """Record and print a line of a worker; note the name of a case that is wrong."""
    match result.pop("part", None):
        case "ceilings":
            text = ", ".join(f"{name} {figure:.4g}" for name, figure in result.items())
            record.add("ceilings", result, f"ceiling   {text}")
        case "checks" | "forms" as part:
            is_right = result["is_right"]
            verdict = "ok" if is_right else "WRONG" if part == "checks" else "off"
            text = f"{verdict:9} {result['name']}: {result['how']}"
            record.add(part, result, text)
            if not is_right and part == "checks":
                wrong.append(result["name"])
        case "notes":
            record.add("notes", result, f"note      {result['text']}")
        case "times":
            (best,) = record.results.get("ceilings", [{}])
            record.add("times", result, f"time      {result['name']}: {rates(result, best)}")


def rates(timed: dict[str, Any], best: dict[str, float]) -> str:
    """Return time and rates of a case, and their shares of what the card does at best.

    The larger share is that of what the case is bound by, the memory or the tensor cores.
    """
    moved, flops, unit = timed["bytes_a_second"], timed["flops"], timed["unit"]
    text = f"{1e6 * timed['seconds']:.4g} us, {moved / 1e9:.4g} GB/s"
    if copied := best.get("copy_bytes_a_second"):
        text += f" ({moved / copied:.0%} of a copy)"
    if flops:
        text += f", {flops / 1e12:.4g} TFLOPS"
    if flops and (product := best.get(f"{unit}_flops")):
        text += f" ({flops / product:.0%} of torch's {unit.upper()} product)"
    return text


def facts() -> dict[str, Any]:
    """Return date, commit, card, driver, clocks and versions."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    known: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": output_of("git", "rev-parse", "HEAD"),
        "versions": versions,
        "cuda": torch.version.cuda,
    }
    if torch.cuda.is_available():
        known["card"] = torch.cuda.get_device_name()
        query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
        values = output_of("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader") or ""
        known |= dict(zip(query.split(","), values.split(", "), strict=False))
    return known


def output_of(*command: str) -> str | None:
    """Return what a command prints, None where it fails."""
    try:
        return subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def answers(record: Record, device: torch.device) -> list[str]:
    """Compare what the padded sample model answers on `device` with the CPU's definitions.

    It answers in BF16, and then from the FP8 codes that `dstools quantize` makes of it. Return what
    is wrong: answers that differ by more than rounding explains.
    """
    prompts, tokens = INTERPRETED if is_interpreted() else (PROMPTS, TOKENS)
    wrong: list[str] = []
    with TemporaryDirectory() as folder:
        padded, coded = Path(folder) / "padded", Path(folder) / "coded"
        pad(SAMPLE, padded)
        quantize = [sys.executable, "-m", "dstools", "quantize", str(padded), str(coded)]
        subprocess.run(quantize, check=True, capture_output=True)
        for form, model in {"BF16": padded, "FP8": coded}.items():
            what = f"{form} answers of the sample model"
            if not record.has_time(what):
                continue
            found = compare(model, device, prompts, tokens)
            text = f"{what}: {prompts - len(found)} of {prompts} as on the CPU"
            for prompt, token, gap in map(dict.values, found):
                text += f"; {prompt} differs from token {token} on, a gap of {gap:.3g}"
            result = {"form": form, "of": prompts, "differences": found}
            record.add("answers", result, f"answers   {text}")
            if any(other["gap"] > TIE for other in found):
                wrong.append(text)
    return wrong


def compare(model: Path, device: torch.device, count: int, tokens: int) -> list[dict[str, Any]]:
    """Return where the answers to `count` prompts first differ from those of the definitions.

    With each the gap: by how much the logit of the definitions' own token is above the other's.
    """
    tokenizer = load_tokenizer(model)
    rows = [json.loads(line) for line in CHATS.read_text().splitlines()[:count]]
    prompts = [prompt_ids(tokenizer, row["messages"][:1]) for row in rows]
    ends = frozenset(end_ids(model, tokenizer))
    given = greedy(load(model, torch.bfloat16, device, keeps_codes=True), prompts, ends, tokens)
    found = []
    with using("reference"):
        definitions = load(model, torch.bfloat16, torch.device("cpu"), keeps_codes=True)
        wanted = greedy(definitions, prompts, ends, tokens)
        for i, (ids, own) in enumerate(zip(given, wanted, strict=True)):
            if ids == own:
                continue
            equal = (a == b for a, b in zip(ids, own, strict=False))
            at = sum(takewhile(bool, equal))
            gap = math.inf  # of an answer that ended as its logits were not finite
            if at < len(ids):
                logits = logits_after(definitions, prompts[i] + own[:at])
                gap = float(logits[own[at]] - logits[ids[at]])
            found.append({"prompt": i, "token": at, "gap": gap})
    return found


def greedy(
    serving: Serving, prompts: list[list[int]], ends: frozenset[int], tokens: int
) -> list[list[int]]:
    """Return the ids of greedy answers, all in one batch."""
    pool = Pool(PAGES)
    loop = Loop(Session(serving, pool), pool, Sampling(), ends, rows=len(prompts))
    ids: list[list[int]] = [[] for _ in prompts]
    for piece in loop.run([Request(i, prompt, tokens) for i, prompt in enumerate(prompts)]):
        ids[piece.prompt_index] += piece.ids
    return ids


def logits_after(serving: Serving, ids: list[int]) -> Tensor:
    """Return the logits [V] of the token after `ids`."""
    pool, count = Pool(PAGES), len(ids)
    pages = torch.tensor([pool.take(pool.needed(count))], dtype=torch.int32)
    cumulative, past = torch.tensor([0, count], dtype=torch.int32), torch.zeros(1).int()
    batch = Batch(torch.tensor(ids), pages, cumulative, past)
    return Session(serving, pool).step(batch, torch.tensor([count - 1]))[0][0]


# ----------------------------------------------------------------------------------------- training


def training(rest: list[str]) -> None:
    """Run tests and benchmarks, and exit with 1 if something failed."""
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device\nhint: nvidia-smi shows what the driver sees")
    print(json.dumps(facts()))
    pytest = [sys.executable, "-m", "pytest", "-q", *rest]
    commands = [
        [*pytest, "-m", "gpu"],
        [*pytest, "-m", "not gpu", *(f"tests/distill/{name}" for name in MODULES)],
        *([sys.executable, f"scripts/{name}", *words] for name, *words in BENCHES),
    ]
    failed = [" ".join(command[1:]) for command in commands if run(command)]
    if failed:
        sys.exit("\nerror: failed: " + "; ".join(failed))


def run(command: list[str]) -> int:
    """Run a command at the root of the repository and return its exit code."""
    print("\n$", *command[1:], flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    main()
