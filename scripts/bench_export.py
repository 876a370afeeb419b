#!/usr/bin/env python3
"""Benchmark of `dstools export` and of what it writes: export, steps in ONNX Runtime, memory.

    bench_export.py                   two FP8 checkpoints of V3's shapes, 1.5 and 3 GB
    bench_export.py --gb 6 12         of other sizes, as make_checkpoint.py counts them, in BF16

Prints JSON; exits with 3 and names the figure where one is above its bar (BARS below). All that is
compared runs in turn in one run of this script.

"export", by size: whole processes. "cp" copies the folder that was written and syncs each file, as
an export does. "fixed" imports what an export imports, loads the tokenizer, traces the same graphs
and writes nothing. `times_cp` is the export without the fixed share, over cp, of the fastest runs;
`times_cp_cpu` the same of CPU seconds, which other work on the machine moves less;
`times_cp_with_fixed` is all of the export.

"steps", by model: CPU milliseconds, best of --steps, one thread, in the session that `dstools
generate` runs: one token after 20 with caches of 64 and of 8192 pages, by graph; 16 and 64 rows of
one token after 200; a chunk of 256 tokens beside 63 such rows against the two apart.

"bench": tokens a second of `dstools bench --plain` on sample-v3, best of --runs: the loop's, and
`times_plain`, those of the graph's steps alone over them.

"memory", of the first checkpoint: MiB that a session of model.onnx keeps after loading, and after
five steps of two tokens, besides the mapped file. Loading reorders the weights that are not codes.
`times_needed` is what the steps add over the widest linear map and one expert in float32.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_quantize import DSTOOLS, MAKE, remove, run, warm
from machine import machine

if TYPE_CHECKING:
    import torch

    from dstools_converters.export.runners.session import OnnxSession
    from dstools_converters.runtime.pages import Batch

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "sample-v3"
BARS = {
    "peak_rss_mib": 700,
    "times_64_pages": 1.5,
    "times_16_rows": 5,
    "times_apart": 1.5,
    "times_needed": 1.25,
    "times_plain": 1.1,
}
PAGES = (64, 8192)
CONTEXT = 512
Step = Callable[[], object]


# ------------------------------------------------------------------------------------------- export


def export_command(source: Path, out: Path) -> list[str]:
    """Return the command that is measured, in the form that ONNX Runtime runs on a CPU."""
    return [*DSTOOLS, "export", str(source), str(out), "--onnx", "--context", str(CONTEXT)]


def measure_export(source: Path, out: Path, runs: int) -> dict[str, Any]:
    """Return the figures of an export, of cp and of the fixed share; the output is left."""
    copy = out.with_name("copy")
    commands = {
        "fixed": part("fixed", source),
        "export": export_command(source, out),
        "cp": ["sh", "-c", f"cp -r '{out}' '{copy}' && sync '{copy}'/* '{copy}'"],
    }
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        remove(out)
        warm(source)
        for name, command in commands.items():
            figures[name].append(run(command))
        remove(copy)
    best, cpu = (
        {name: min(spent[kind] for spent in figures[name]) for name in figures} for kind in (0, 1)
    )
    return {
        "gb_in": round(size_of(source) / 1e9, 2),
        "gb_out": round(size_of(out) / 1e9, 2),
        "times_cp": round(max(best["export"] - best["fixed"], 0) / best["cp"], 2),
        "times_cp_cpu": round(max(cpu["export"] - cpu["fixed"], 0) / cpu["cp"], 2),
        "times_cp_with_fixed": round(best["export"] / best["cp"], 2),
        "peak_rss_mib": round(max(spent[2] for spent in figures["export"])),
        **{
            f"{name}_seconds": {"best": round(best[name], 2), "cpu": round(cpu[name], 2)}
            for name in figures
        },
    }


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def fixed(source: Path) -> dict[str, Any]:
    """Do what an export does before the first byte of weights."""
    from dstools_converters.checkpoint.folder import open_checkpoint
    from dstools_converters.export.deepseek import Options, plan
    from dstools_converters.export.trace import trace
    from dstools_converters.model.tokenizer import load_tokenizer
    from dstools_converters.runtime.weights import holds_mtp, sound_inventory

    with open_checkpoint(source) as checkpoint:
        mtp = holds_mtp(checkpoint)
        options = Options(context=CONTEXT, mtp=mtp)
        job = plan(sound_inventory(checkpoint, mtp), options, "dstools 0")
        load_tokenizer(source)
        drafts = (False, True)[: 1 + mtp]
        graphs = [trace(job.architecture, job.form, mtp=draft) for draft in drafts]
    return {"graphs": len(graphs)}


# -------------------------------------------------------------------------------------------- steps


def measure_steps(folder: Path, runs: int) -> dict[str, Any]:
    """Return what steps of an exported folder cost."""
    import torch

    from dstools_converters.export.folder import require_export

    torch.set_num_threads(1)
    mtp = require_export(folder).has_mtp
    size = json.loads((folder / "config.json").read_text())["hidden_size"]
    few, many = (open_session(folder, pages, mtp) for pages in PAGES)
    one = batch_of([1], [20])
    figures = {"model": by_pages(lambda: step(few, one), lambda: step(many, one), runs)}
    if mtp:
        state, last = torch.ones(1, size), torch.zeros(1, dtype=torch.int64)
        figures["mtp"] = by_pages(
            lambda: few.draft(one, state, last), lambda: many.draft(one, state, last), runs
        )
    return figures | measure_batches(many, runs)


def by_pages(few: Step, many: Step, runs: int) -> dict[str, float]:
    """Return the figures of a graph with caches of few and of many pages."""
    best = best_of({"few": few, "many": many}, runs)
    times = round(best["many"] / best["few"], 2)
    return {"ms_64_pages": best["few"], "ms_8192_pages": best["many"], "times_64_pages": times}


def measure_batches(session: "OnnxSession", runs: int) -> dict[str, Any]:
    """Return what rows cost, and a chunk of a prompt beside them."""
    decodes, chunk = batch_of([1] * 63, [200] * 63), batch_of([256], [0])
    batches = {
        "16": batch_of([1] * 16, [200] * 16),
        "64": batch_of([1] * 64, [200] * 64),
        "63": decodes,
        "chunk": chunk,
        "both": batch_of([256] + [1] * 63, [0] + [200] * 63),
    }
    best = best_of({name: lambda b=b: step(session, b) for name, b in batches.items()}, runs)
    return {
        "rows": {
            "ms_16": best["16"],
            "ms_64": best["64"],
            "times_16_rows": round(best["64"] / best["16"], 2),
        },
        "chunk": {
            "ms_chunk": best["chunk"],
            "ms_63_rows": best["63"],
            "ms_both": best["both"],
            "times_apart": round(best["both"] / (best["chunk"] + best["63"]), 2),
        },
    }


def open_session(folder: Path, pages: int, mtp: bool) -> "OnnxSession":
    """Return a session of a folder whose caches have so many pages."""
    from dstools_converters.export.folder import require_export
    from dstools_converters.export.runners.session import OnnxSession, require_runnable

    pool = require_runnable(folder, require_export(folder), mtp=mtp)
    return OnnxSession(folder, pool, pages, mtp=mtp)


def step(session: "OnnxSession", batch: "Batch") -> "tuple[torch.Tensor, torch.Tensor]":
    """Run a step; return the logits after each row's last token, and all states."""
    return session.step(batch, batch.cumulative_sequence_lengths[1:].long() - 1)


def batch_of(new: list[int], past: list[int]) -> "Batch":
    """Return `new` tokens of each row after `past` that its pages, taken in order, have."""
    import torch

    from dstools_converters.runtime.pages import Batch, Pool

    pool = Pool(PAGES[1])
    pages = [pool.take(pool.needed(n + p)) for n, p in zip(new, past, strict=True)]
    width = max(map(len, pages))
    table = [row + [-1] * (width - len(row)) for row in pages]
    ends = torch.tensor([0, *new]).cumsum(0).int()
    ids = torch.arange(sum(new)) % 300 + 3  # of the vocabulary, and not special
    return Batch(ids, torch.tensor(table).int(), ends, torch.tensor(past).int())


def best_of(calls: dict[str, Step], runs: int) -> dict[str, float]:
    """Return the least CPU milliseconds of each call, made in turn."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(runs + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:  # the first allocates
                spent[name].append(time.process_time() - start)
    return {name: round(min(times) * 1e3, 3) for name, times in spent.items()}


def measure_bench(folder: Path, runs: int) -> dict[str, float]:
    """Return what `dstools bench` says of its loop and of the graph alone, in one process each."""
    options = ["--batch", "4", "--prompt-tokens", "64", "--max-tokens", "256", "--plain", "--json"]
    said = [result_of([*DSTOOLS, "bench", str(folder), *options]) for _ in range(runs)]
    loop, plain = (
        max(each[key] for each in said) for key in ("tokens_per_second", "plain_tokens_per_second")
    )
    return {
        "tokens_per_second": round(loop),
        "plain_tokens_per_second": round(plain),
        "times_plain": round(plain / loop, 2),
    }


# ------------------------------------------------------------------------------------------- memory


def measure_memory(folder: Path) -> dict[str, Any]:
    """Return what a session of a native FP8 folder holds beyond its file, in MiB."""
    import torch

    from dstools_converters.export.folder import require_export

    torch.set_num_threads(1)
    batch, before = batch_of([2], [0]), held()
    session = open_session(folder, 1, mtp=False)
    loaded = held()
    for _ in range(5):
        step(session, batch)
    stays = held()
    (weights,) = require_export(folder).weights.values()
    codes = [weight.shape for weight in weights if weight.dtype == "F8_E4M3"]
    widest = max(4 * prod(shape) for shape in codes if len(shape) == 2)
    sides = [4 * prod(shape[1:]) for shape in codes if len(shape) == 3]  # all of one size
    needed = (widest + 3 * sides[0]) / 2**20
    return {
        "loaded": round(loaded - before),
        "added": round(stays - loaded),
        "needed": round(needed),
        "times_needed": round((stays - loaded) / needed, 2),
        "all_codes_in_float32": round(sum(4 * prod(shape) for shape in codes) / 2**20),
    }


def held() -> float:
    """Return the MiB of memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


# --------------------------------------------------------------------------------------------- main

# Each in a process of its own: the peak of a child includes what its parent held at the fork.
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "fixed": fixed,
    "steps": measure_steps,
    "memory": measure_memory,
}


def part(name: str, folder: Path, *options: int) -> list[str]:
    """Return the command of a part of this script."""
    return [sys.executable, __file__, "--part", name, str(folder), *map(str, options)]


def result_of(command: list[str]) -> dict[str, Any]:
    """Return what a part prints."""
    result: dict[str, Any] = json.loads(subprocess.check_output(command))
    return result


def missed(figures: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield a sentence of each figure that is above its bar."""
    for name, figure in figures.items():
        if isinstance(figure, dict):
            yield from missed(figure, f"{where}{name}, ")
        elif figure > BARS.get(name, figure):
            yield f"{where}{name}: {figure}, and the bar is {BARS[name]}"


def measure(folder: Path, sizes: list[float], runs: int, steps: int) -> dict[str, Any]:
    """Return all figures."""
    make = [sys.executable, str(MAKE)]
    figures: dict[str, Any] = {"export": {}}
    for gb in sizes:
        source, out = folder / "in", folder / "out"
        run([*make, "v3-layer", str(source), "--fp8", "--gb", str(gb)])
        figures["export"][f"{gb:g}"] = measure_export(source, out, runs)
        if gb == sizes[0]:
            figures["memory"] = result_of(part("memory", out))
        for used in (source, out):
            shutil.rmtree(used)
    tiny, codes = folder / "tiny", folder / "tiny-fp8"
    run([*make, "tiny", str(tiny)])
    run([*make, "tiny", str(codes), "--fp8"])
    models = {"sample-v3": SAMPLE, "three layers": tiny, "three layers in FP8": codes}
    figures["steps"] = {}
    for name, source in models.items():
        out = folder / "steps"
        run(export_command(source, out))
        figures["steps"][name] = result_of(part("steps", out, steps))
        if source == SAMPLE:
            figures["bench"] = measure_bench(out, runs)
        shutil.rmtree(out)
    return figures


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, nargs="+", default=[3, 6], help="sizes, in BF16")
    parser.add_argument("--folder", type=Path, help="where to put checkpoints and outputs")
    parser.add_argument("--runs", type=int, default=3, help="exports of each size")
    parser.add_argument("--steps", type=int, default=15, help="steps of each kind")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        name, folder, *options = args.part
        return print(json.dumps(PARTS[name](Path(folder), *map(int, options))))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        figures = measure(Path(name), args.gb, args.runs, args.steps)
    print(json.dumps(machine() | figures, indent=1))
    sentences = list(missed(figures))
    if sentences:
        print(*sentences, sep="\n", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
