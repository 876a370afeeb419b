#!/usr/bin/env python3
"""Benchmark of `dstools quantize --calibrate` against GPTQ of llm-compressor.

    bench_peers.py --venv FOLDER                    SmolLM2-135M, 64 samples of 512 tokens
    bench_peers.py --venv FOLDER --source MODEL --calibration A.jsonl --heldout B.jsonl

Both write FP8_BLOCK of compressed-tensors, from the same tokens, with as many threads, in turn.
llm-compressor runs in an environment of its own: --venv is made if it does not exist, from the
wheels that pip is configured for (a CPU build of torch spares gigabytes). Time and memory are of
whole processes, start-up and saving included; memory is the peak of the process and its children.
`dstools eval --activations none` then measures both outputs on text that neither has seen: KL
divergence from the source, of the weights alone and with FP8 activations, and the error of the
layers' outputs. Prints a Markdown table; --at-most-time and --at-most-kl (of the weights alone)
exit with 3 if ours takes or loses more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

REQUIREMENTS = ["llmcompressor==0.14.0.1", "torch==2.13.0"]
THREADS = str(len(os.sched_getaffinity(0)))
# Threads that spin while they wait slow both down on a busy machine; dstools sets this by itself.
ENVIRONMENT = {"OMP_NUM_THREADS": THREADS, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
OURS, PEER = "dstools", "llm-compressor"


class Cost(NamedTuple):
    """The cost of a process and its children; `load` is that of the machine before the start."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    load: float


class Quality(NamedTuple):
    """Figures of `eval`, of the weights alone but for `kl_fp8`; output error: mean over layers."""

    kl_mean: float
    kl_p99: float
    kl_fp8: float
    output_error: float


def main() -> None:
    """Run both in turn, evaluate both outputs, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, required=True, help="of llm-compressor")
    parser.add_argument("--source", type=Path, help="a checkpoint instead of SmolLM2")
    parser.add_argument("--calibration", type=Path, help="JSONL; default: docstrings")
    parser.add_argument("--heldout", type=Path, help="JSONL; default: docstrings of other modules")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--heldout-samples", type=int, default=24)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of calibration samples")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to put models (a temporary one)")
    parser.add_argument("--at-most-time", type=float, help="CPU time, times that of the peer")
    parser.add_argument("--at-most-kl", type=float, help="times that of the peer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if not (args.source and args.calibration and args.heldout):
            from study_calibration import prepare

            case = prepare("smollm2", folder)
            args.source = args.source or case.source
            args.calibration = args.calibration or case.calibration
            args.heldout = args.heldout or case.heldout
        outs = {tool: folder / tool for tool in (OURS, PEER)}
        commands = {OURS: ours(args, outs[OURS]), PEER: peer(args, folder, outs[PEER])}
        costs: dict[str, list[Cost]] = {OURS: [], PEER: []}
        for _ in range(args.runs):
            for tool, command in commands.items():
                subprocess.run(["rm", "-rf", outs[tool]], check=True)
                costs[tool].append(measure(command))
                print(tool, costs[tool][-1], file=sys.stderr, flush=True)
        qualities = {tool: evaluate(args, out) for tool, out in outs.items()}
    print_table(costs, qualities)
    time_ratio = min(c.cpu_seconds for c in costs[OURS]) / min(c.cpu_seconds for c in costs[PEER])
    kl_ratio = qualities[OURS].kl_mean / qualities[PEER].kl_mean
    print(f"\ndstools / llm-compressor: CPU time {time_ratio:.2f}, KL {kl_ratio:.3f}")
    is_slow = args.at_most_time is not None and time_ratio > args.at_most_time
    is_worse = args.at_most_kl is not None and kl_ratio > args.at_most_kl
    sys.exit(3 if is_slow or is_worse else 0)


def ours(args: argparse.Namespace, out: Path) -> list[str]:
    """Return the command of dstools."""
    command = [sys.executable, "-m", "dstools", "quantize", str(args.source), str(out)]
    command += ["--format", "compressed-tensors", "--method", "gptq", "--no-fsync"]
    command += ["--calibrate", str(args.calibration), "--samples", str(args.samples)]
    command += ["--seed", str(args.seed)]
    return [*command, "--seq-len", str(args.seq_len), "--workers", THREADS]


def peer(args: argparse.Namespace, folder: Path, out: Path) -> list[str]:
    """Return the command of llm-compressor; its environment is made if it does not exist."""
    from dstools_converters.layerwise.corpus import read_corpus

    python = args.venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", args.venv], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    vocab_size = json.loads((args.source / "config.json").read_text())["vocab_size"]
    corpus = read_corpus(
        args.calibration,
        args.source,
        samples=args.samples,
        seq_len=args.seq_len,
        seed=args.seed,
        vocab_size=vocab_size,
    )
    ids = folder / "ids.json"
    ids.write_text(json.dumps(corpus.ids.tolist()))
    return [str(python), __file__, "--peer", str(args.source), str(ids), str(out)]


def run_peer(source: str, ids: str, out: str) -> None:
    """Calibrate and save with llm-compressor, as its examples do; runs in its environment."""
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    rows = json.loads(Path(ids).read_text())
    masks = [[1] * len(row) for row in rows]
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(source, dtype="auto"),
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": masks}),
        recipe=GPTQModifier(targets="Linear", scheme="FP8_BLOCK", ignore=["lm_head"]),
        max_seq_length=len(rows[0]),
        num_calibration_samples=len(rows),
        output_dir=out,
    )


def measure(command: list[str]) -> Cost:
    """Run a command and return its cost; its output goes to a file that is shown if it fails."""
    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT
        )
        peaks, ended = [0.0], threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peaks, ended))
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        ended.set()
        sampler.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(
                f"{' '.join(command)} exited with {process.returncode}:\n{log.read().decode()}"
            )
    # not ru_maxrss, which includes what this process held when it forked
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peaks[0], load)


def _sample(pid: int, peaks: list[float], ended: threading.Event) -> None:
    """Raise `peaks[0]` to the MiB of a process and its descendants, until `ended`."""
    while not ended.wait(0.03):  # the shortest process takes 0.2 s
        peaks[0] = max(peaks[0], tree_mib(pid), _mib(pid, "status", "VmHWM:"))


def tree_mib(pid: int) -> float:
    """Return the resident MiB of a process and its descendants, shared pages split among them."""
    try:
        children = Path("/proc", str(pid), "task", str(pid), "children").read_text().split()
    except OSError:  # it has ended
        return 0.0
    return _mib(pid, "smaps_rollup", "Pss:") + sum(tree_mib(int(child)) for child in children)


def _mib(pid: int, file: str, key: str) -> float:
    """Return a size of a process in MiB, 0 if it has ended."""
    try:
        lines = Path("/proc", str(pid), file).read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)


def evaluate(args: argparse.Namespace, out: Path) -> Quality:
    """Return the figures of `dstools eval` for an output."""
    command = [sys.executable, "-m", "dstools", "eval", str(out), "--against", str(args.source)]
    command += ["--data", str(args.heldout), "--samples", str(args.heldout_samples)]
    command += ["--seq-len", str(args.seq_len), "--activations", "none", "--json"]
    report: dict[str, Any] = json.loads(subprocess.check_output(command))
    errors = [entry["error"] for entry in report["output_error"]]
    kl_fp8 = report["other_activations"]["kl_mean"]
    return Quality(report["kl_mean"], report["kl_p99"], kl_fp8, statistics.mean(errors))


def print_table(costs: dict[str, list[Cost]], qualities: dict[str, Quality]) -> None:
    """Print medians over the runs, and the largest peak, as a Markdown table."""
    head = "| | time | CPU time | peak memory | KL, nats a token | 99th percentile |"
    print(f"{head} KL, FP8 activations | output error |")
    print("|---|---|---|---|---|---|---|---|")
    for tool, runs in costs.items():
        seconds = statistics.median(run.seconds for run in runs)
        cpu_seconds = statistics.median(run.cpu_seconds for run in runs)
        peak = max(run.peak_mib for run in runs)
        kl_mean, kl_p99, kl_fp8, error = qualities[tool]
        figures = f"{seconds:.1f} s | {cpu_seconds:.1f} s | {peak:,.0f} MiB"
        print(f"| {tool} | {figures} | {kl_mean:.5f} | {kl_p99:.4f} | {kl_fp8:.5f} | {error:.3%} |")
    loads = [run.load for runs in costs.values() for run in runs]
    print(f"\nLoad of the machine before the runs: {min(loads):.1f} to {max(loads):.1f}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        run_peer(*sys.argv[2:])
    else:
        main()
