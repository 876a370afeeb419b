#!/usr/bin/env python3
"""Checks that need a Hopper GPU: the kernels in at most five minutes, or all that trains there.

    pip install ".[dev]"
    python scripts/hopper_check.py kernels [--out hopper.json]
    python scripts/hopper_check.py training [arguments for pytest, such as -n 8]

`kernels` prints each result as it is known and keeps all of them in one JSON file, so that a run
that is cut off leaves what it had: the card and what it can do at best, every op against its torch
definition, times at shapes of DeepSeek-V3, vendors' kernels that can be imported, and the padded
sample model's answers against the CPU's. Without a GPU it checks what the CPU runs, the definitions
or (TRITON_INTERPRET=1 DSTOOLS_KERNELS=triton) the interpreted twins, and says what it left out.

`training` runs the tests marked `gpu`, all others of the modules that use a GPU whenever one is
present, and benchmarks.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pad_sample_model import pad

from dstools_converters.model.tokenizer import load_tokenizer, prompt_ids
from dstools_converters.runtime.decode import Loop, Request
from dstools_converters.runtime.draw import Sampling
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.session import Session
from dstools_converters.runtime.weights import load
from dstools_kernels.ops.dispatch import is_interpreted
from dstools_kernels.proof import card, cases
from dstools_kernels.proof.forms import forms

ROOT = Path(__file__).parents[1]
SAMPLE, CHATS = ROOT / "tests/data/sample-v3", ROOT / "tests/data/toy-chat.jsonl"
PROMPTS, TOKENS, PAGES = 8, 48, 32  # of the sample model
SECONDS = 300  # of `kernels`
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
    """The results so far, printed and written to a file as they come."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.deadline = out, time.monotonic() + seconds
        self.results: dict[str, Any] = {"left_out": []}

    def add(self, part: str, result: Any, text: str) -> None:
        """Keep one result of a part, and print it as `text`."""
        value = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        self.results.setdefault(part, []).append(value)
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
        if time.monotonic() < self.deadline:
            return True
        self.leave_out(what, "the time is over")
        return False


def kernels(out: Path, seconds: float) -> None:
    """Check and time the kernels; exit with 1 if a result is wrong."""
    record = Record(out, seconds)
    is_card = torch.cuda.is_available()
    device = torch.device("cuda" if is_card else "cpu")
    record.results |= facts()
    print(json.dumps(facts()))
    if not is_card:
        record.leave_out("everything on a card", "torch finds no CUDA device")
    if is_interpreted():
        from dstools_kernels.proof.interpreter import mend  # needs Triton

        mend()
    for name, figure in card.ceilings(device, 8192 if is_card else 256).items():
        record.add("ceilings", {name: figure}, f"ceiling   {name} {figure:.4g}")
    checks = (*cases.SMALL, *(cases.V3 if is_card else ()))
    wrong = [name for case in checks if (name := check(record, case, device))]
    for case in cases.V3 if is_card else cases.SMALL[-1:]:
        measure(record, case, device)
    for case in forms(cases.BATCH) if is_card else forms([65])[:1]:
        wrong_form = check(record, case, device)  # one that fails stays off, and is not shipped
        if not wrong_form:
            measure(record, case, device)
    if record.has_time("answers of the sample model"):
        wrong += answers(record, device)
    if wrong:
        sys.exit(f"error: wrong: {'; '.join(wrong)}\nhint: {out} has how far off")
    print(f"all right, but for what was left out ({len(record.results['left_out'])}); see {out}")


def facts() -> dict[str, Any]:
    """Return date, commit, card, driver, clocks and versions."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": said("git", "rev-parse", "HEAD"),
    }
    found |= {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        wanted = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
        found["card"] = torch.cuda.get_device_name()
        found[wanted] = said("nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader")
    return found


def said(*command: str) -> str | None:
    """Return what a command prints, None where it fails."""
    try:
        return subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check(record: Record, case: Any, device: torch.device) -> str:
    """Compare a case with its definition; return its name where it is wrong."""
    if not record.has_time(f"check of {case.name}"):
        return ""
    result = card.check(case, device)
    verdict = "ok" if result.is_right else "WRONG"
    record.add("checks", result, f"{verdict:9} {result.name} ({result.form}): {result.how}")
    return "" if result.is_right else result.name


def measure(record: Record, case: Any, device: torch.device) -> None:
    """Time a case; name what it reaches of the card's own copy and products."""
    if not record.has_time(f"time of {case.name}"):
        return
    best = {name: value for part in record.results["ceilings"] for name, value in part.items()}
    try:
        result = card.timed(case, device)
    except RuntimeError as error:
        record.leave_out(f"time of {case.name}", str(error).split("\n")[0])
        return
    shares = [f"{result.bytes_a_second / best['copy_bytes_a_second']:.0%} of a copy"]
    ceiling = best.get(f"{case.work.unit}_flops")
    if case.work.flops and ceiling:
        shares.append(f"{result.flops / ceiling:.0%} of a {case.work.unit} product")
    text = f"time      {result.name} ({result.form}): {1e6 * result.seconds:.4g} us, "
    record.add("times", result, text + ", ".join(shares))


def answers(record: Record, device: torch.device) -> list[str]:
    """Compare what the padded sample model answers on `device` with the CPU's definitions."""
    with TemporaryDirectory() as folder:
        model = Path(folder) / "padded"
        pad(SAMPLE, model)
        prompts = sample_prompts(model)
        with card.form("reference"):
            wanted = greedy(model, prompts, torch.float32, torch.device("cpu"))
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        given = greedy(model, prompts, dtype, device)
    same = sum(a == b for a, b in zip(given, wanted, strict=True))
    text = f"padded sample model: {same} of {len(prompts)} greedy answers as on the CPU"
    record.add("answers", {"same": same, "of": len(prompts)}, f"answers   {text}")
    return [] if same == len(prompts) else [text]


def sample_prompts(model: Path) -> list[list[int]]:
    """Return the token ids of some prompts of the sample model."""
    tokenizer = load_tokenizer(model)
    rows = [json.loads(line) for line in CHATS.read_text().splitlines()[:PROMPTS]]
    return [prompt_ids(tokenizer, row["messages"][:1]) for row in rows]


def greedy(
    model: Path, prompts: list[list[int]], dtype: torch.dtype, device: torch.device
) -> list[list[int]]:
    """Return the ids of greedy answers."""
    serving = load(model, dtype, device)
    pool = Pool(PAGES, 64)
    loop = Loop(
        Session(serving, pool), pool, Sampling(temperature=0.0), frozenset(), rows=len(prompts)
    )
    ids: list[list[int]] = [[] for _ in prompts]
    for piece in loop.run([Request(i, prompt, TOKENS) for i, prompt in enumerate(prompts)]):
        ids[piece.place] += piece.ids
    return ids


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
