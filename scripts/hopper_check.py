#!/usr/bin/env python3
"""Checks that need a Hopper GPU: the kernels in at most five minutes, or all that trains there.

    pip install ".[dev]"
    python scripts/hopper_check.py kernels [--out hopper.json]
    python scripts/hopper_check.py training [arguments for pytest, such as -n 8]

`kernels` prints each result as it is known and keeps all of them in one JSON file, so that a run
that is cut off leaves what it had: the card and what it can do at best, every op against its torch
definition, times at shapes of DeepSeek-V3, vendors' kernels that can be imported, and the padded
sample model's answers against the CPU's, in BF16 and in FP8, with drafts and without. Without a GPU
it rehearses: it checks what the CPU runs, the definitions or (TRITON_INTERPRET=1
DSTOOLS_KERNELS=triton) the interpreted twins, and says what it left out. Each result is marked:
its times are the CPU's, and so are both sides of the answers.

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
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any, NamedTuple

import torch

from dstools_kernels.proof import worker

ROOT = Path(__file__).parents[1]
WORKER = [sys.executable, "-m", "dstools_kernels.proof.worker"]
ANSWERS = [sys.executable, str(ROOT / "scripts/engines/sample_answers.py")]
FORMS = "BF16 answers of the sample model", "FP8 answers of the sample model"
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
        kernels(arguments.out, arguments.seconds)


# ------------------------------------------------------------------------------------- the kernels


class Record:
    """The results so far, printed after a mark and written to a file as they come."""

    def __init__(self, out: Path, seconds: float, *, is_rehearsal: bool) -> None:
        self.out, self.deadline = out, time.monotonic() + seconds
        self.mark = "rehearsal " if is_rehearsal else ""
        self.results: dict[str, Any] = {"is_rehearsal": is_rehearsal, "left_out": []}

    @property
    def seconds_left(self) -> float:
        """Return how many seconds are left, 0 at the end."""
        return max(0.0, self.deadline - time.monotonic())

    def add(self, part: str, result: dict[str, Any], text: str) -> None:
        """Keep one result of a part, and print it as `text`."""
        self.results.setdefault(part, []).append(result)
        print(self.mark + text, flush=True)
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
    is_card = torch.cuda.is_available()
    record = Record(out, seconds, is_rehearsal=not is_card)
    known = facts()
    record.results |= known
    print(json.dumps(known))
    if not is_card:
        record.leave_out("everything on a card", "torch finds no CUDA device")
    wrong: list[str] = []
    cases = [Job(job.part, job.name) for job in worker.jobs(is_card)]
    work_through(record, WORKER, cases, CASE_SECONDS, wrong)
    forms = [Job("answers", name) for name in FORMS]
    work_through(record, ANSWERS, forms, math.inf, wrong)
    if wrong:
        sys.exit(f"error: wrong: {'; '.join(wrong)}\nhint: {out} has how far off")
    left_out = len(record.results["left_out"])
    print(f"{record.mark}all right, but for what was left out ({left_out}); see {out}")


class Job(NamedTuple):
    """What a worker does between two lines that name jobs."""

    part: str
    name: str


def work_through(
    record: Record, command: list[str], jobs: list[Job], seconds: float, wrong: list[str]
) -> None:
    """Record what workers find that `command` starts; `seconds`: of a job at most."""
    first = 0
    while first < len(jobs) and record.has_time(f"{jobs[first].name} and what follows"):
        first = follow(record, [*command, str(first)], jobs, first, seconds, wrong)


def follow(
    record: Record,
    command: list[str],
    jobs: list[Job],
    first: int,
    seconds: float,
    wrong: list[str],
) -> int:
    """Record what a worker finds from job `first` on; return the job to continue with.

    A worker ends early where a kernel takes it along, or hangs and is killed.
    """
    lines = Queue[str]()
    now, why = first, ""
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        Thread(target=read, args=(process.stdout, lines), daemon=True).start()
        try:
            while line := lines.get(timeout=min(seconds, record.seconds_left)):
                result = json.loads(line)
                now = result.get("job", now)
                keep(record, result, wrong)
            process.wait(min(seconds, record.seconds_left))
        except (Empty, subprocess.TimeoutExpired):
            process.kill()
            why = f"no result within {seconds} s"
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
        case "checks" | "forms" | "answers" as part:
            is_right = result["is_right"]
            verdict = "ok" if is_right else "off" if part == "forms" else "WRONG"
            text = f"{verdict:9} {result['name']}: {result['how']}"
            record.add(part, result, text)
            if not is_right and part != "forms":
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
