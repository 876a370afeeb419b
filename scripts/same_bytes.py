#!/usr/bin/env python3
"""Comparison of two checkouts of dstools: do both write the same bytes?

    same_bytes.py BEFORE AFTER      minutes on 2 cores; exits 1 if an output differs

Each checkout runs every command below by its own code: child processes of this interpreter with
PYTHONPATH set to that checkout. Both read the same inputs, made once by BEFORE's scripts, and write
to folders of the same names, so that paths inside files are equal, too. Files are compared by
sha256, except timings and locks; folder names in the store of a distill run, the identities of its
stages, count as well. Where something differs, the outputs are kept and their folder is printed.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

INPUTS = {
    "tiny": "tiny",  # DeepSeek-V3 with MTP, ragged shapes
    "aligned": "tiny-aligned",
    "v2": "tiny-v2",
    "v32": "tiny-v32 --fp8 ue8m0",
    "tiny-fp8": "tiny --fp8",
    "aligned-ue8m0": "tiny-aligned --fp8 ue8m0 --scales-apart",
}
RULES = """\
format = "compressed-tensors"
[[rule]]
role = ["routed_down", "shared_down"]
layers = "1-2"
scheme = "keep"
[[rule]]
name = "model.layers.*.self_attn.o_proj*"
scheme = "keep"
"""
RUN = """\
[[prompts.source]]
path = "rg:chain_sum"
size = 24
seed = 555
licence = "apache-2.0"
options = { min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 2 }
[prompts]
[generate]
backend = "hf"
model = "sample"
licence = "apache-2.0"
temperature = 0.7
top_p = 0.95
max_tokens = 96
batch_size = 12
[verify]
[decontaminate]
index = ["out/index/toy.ngrams"]
[select]
keep = "all-correct"
[student]
init = { model_type = "qwen3", hidden_size = 64, num_hidden_layers = 1 }
tokenizer = "sample"
licence = "apache-2.0"
[render]
max_length = 256
"""
DATA = "--samples 16 --seq-len 64 --workers 2"
COMMANDS = {  # in order: some read what others before them wrote; OUT is a new folder out/NAME
    "float32": "quantize tiny OUT/fp8 --scale-fmt float32",
    "ue8m0": "quantize tiny OUT/fp8 --scale-fmt ue8m0",
    "compressed": "quantize tiny OUT/fp8 --format compressed-tensors",
    "compressed-ue8m0": "quantize aligned OUT/fp8 --format compressed-tensors --scale-fmt ue8m0",
    "aligned": "quantize aligned OUT/fp8",
    "v2": "quantize v2 OUT/fp8",
    "v2-ue8m0": "quantize v2 OUT/fp8 --scale-fmt ue8m0",
    "recipe": "quantize tiny OUT/fp8 --recipe rules.toml",
    "from-fp8": "quantize tiny-fp8 OUT/fp8",
    "from-fp8-ue8m0": "quantize tiny-fp8 OUT/fp8 --scale-fmt ue8m0",
    "from-fp8-compressed": "quantize aligned-ue8m0 OUT/fp8 --format compressed-tensors",
    "dequantize": "dequantize tiny-fp8 OUT/bf16",
    "dequantize-ue8m0": "dequantize aligned-ue8m0 OUT/bf16",
    "dequantize-v32": "dequantize v32 OUT/bf16",
    "dequantize-compressed": "dequantize out/compressed/fp8 OUT/bf16",
    "base": "quantize out/dequantize/bf16 OUT/fp8 --base tiny-fp8",
    "lossless": "quantize out/dequantize-ue8m0/bf16 OUT/fp8 --lossless auto",
    "gptq": f"quantize sample OUT/fp8 --calibrate calibration.jsonl --kv-cache fp8 {DATA}",
    "mse": "quantize sample OUT/fp8 --calibrate calibration.jsonl --method mse --kv-cache fp8"
    f" --scale-fmt ue8m0 {DATA}",
    "eval": f"eval out/gptq/fp8 --data heldout.jsonl --against sample --json {DATA}",
    "eval-mse": f"eval out/mse/fp8 --data heldout.jsonl --json {DATA}",
    "index": "distill index OUT/toy.ngrams heldout.jsonl",
    "distill": "distill run run.toml --out OUT/run --workers 2",
}
NOT_COMPARED = {"timing.json", ".lock"}


def main() -> None:
    """Parse the command line, run both checkouts, print a table of what was compared."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a checkout of dstools")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another, to be compared with it")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="same-bytes-"))
    make_inputs(arguments.before.resolve(), work)
    run(arguments.before.resolve(), work, "before")
    run(arguments.after.resolve(), work, "after")
    differing = compare(work / "before", work / "after")
    if differing:
        sys.exit(f"error: {differing} files differ; see {work}/before and {work}/after")
    shutil.rmtree(work)


def make_inputs(checkout: Path, work: Path) -> None:
    """Write the checkpoints, recipes and texts that both checkouts read to `work`."""
    for name, kind in INPUTS.items():
        script = [checkout / "scripts" / "make_checkpoint.py", *kind.split()]
        script.insert(2, work / name)
        child(checkout, work, [sys.executable, *script])
    data = checkout / "tests" / "data"
    shutil.copytree(data / "sample-v3", work / "sample")
    for name in ("calibration", "heldout"):
        shutil.copyfile(data / f"sample-v3-{name}.jsonl", work / f"{name}.jsonl")
    (work / "rules.toml").write_text(RULES)
    (work / "run.toml").write_text(RUN)


def run(checkout: Path, work: Path, side: str) -> None:
    """Run every command by the code of `checkout`; the outputs end up in `work`/`side`."""
    for name, command in COMMANDS.items():
        print(f"{side}: {name}", file=sys.stderr, flush=True)
        out = work / "out" / name
        out.mkdir(parents=True)
        words = command.replace("OUT/", f"out/{name}/").split()
        printed = child(checkout, work, [sys.executable, "-m", "dstools", *words])
        if "--json" in words:
            (out / "printed.json").write_text(printed)
    (work / "out").rename(work / side)


def child(checkout: Path, work: Path, command: list[str | Path]) -> str:
    """Return what `command` prints, run in `work` by the code of `checkout`; exit if it fails."""
    parts = ["", "kernels", "converters", "distill"]
    env = os.environ | {"PYTHONPATH": ":".join(str(checkout / part) for part in parts)}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {checkout}: {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def compare(before: Path, after: Path) -> int:
    """Print a line for each command and each file that differs; return how many files do."""
    print(f"{'command':<20} {'files':>5} {'bytes':>10}  result")
    total = 0
    for name in COMMANDS:
        left, right = digests(before / name), digests(after / name)
        differing = sorted(
            path for path in left.keys() | right.keys() if left.get(path) != right.get(path)
        )
        nbytes = sum(file.stat().st_size for file in map((before / name).joinpath, left))
        result = f"{len(differing)} differ" if differing else "equal"
        print(f"{name:<20} {len(left):>5} {nbytes:>10}  {result}")
        for path in differing:
            missing = [
                side for side, made in (("before", left), ("after", right)) if path not in made
            ]
            print(f"    {path}", *(f"(missing {side})" for side in missing))
        total += len(differing)
    return total


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below `folder`, by its path; of a link, its target."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.name not in NOT_COMPARED and (path.is_symlink() or path.is_file())
    }


if __name__ == "__main__":
    main()
