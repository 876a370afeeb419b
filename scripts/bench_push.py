#!/usr/bin/env python3
"""Benchmark of `dstools push` against `hf upload`, of one folder, on the local Hub of the tests.

    bench_push.py --gb 2                    over Xet: hf_xet chunks, hashes and stores for real
    bench_push.py --gb 2 --lfs              over LFS, where the local Hub is the limit
    bench_push.py --gb 2 --at-most 1.1      exit 3 if the upload takes over 1.1 times that of hf

Prints JSON. Both run in turn, each into a Hub of its own in a process of its own, and what is sent
is random bytes, so that nothing is sent twice. "upload": of dstools, without checking the folder,
which hf does not do, and which is "verify"; of hf, the whole process less its start. Memory is the
peak of the process, in MiB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_quantize import MAKE, run, warm
from machine import machine

HUB = Path(__file__).parents[1] / "tests" / "hub" / "fakehub.py"
README = "---\nlicense: mit\n---\n# Random weights\n"
REPO = "alice/model"


def serve(folder: Path) -> tuple["subprocess.Popen[str]", str]:
    """Start a local Hub with its state in `folder`, and return it and its address."""
    command = [sys.executable, str(HUB), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip()


def send(command: list[str], hub: Path, is_lfs: bool) -> dict[str, Any]:
    """Run a command against a new Hub; return its seconds, its peak memory and what it printed."""
    process, url = serve(hub)
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(hub / "home"),
        "HF_HUB_DISABLE_XET": str(int(is_lfs)),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_good",
    }
    try:
        with tempfile.TemporaryFile("w+") as out:
            seconds, _, mib = run(command, out, environment)
            out.seek(0)
            stdout = out.read()
    finally:
        process.kill()
        process.wait()
    shutil.rmtree(hub)
    return {"seconds": seconds, "mib": mib, "stdout": stdout}


def compare(folder: Path, place: Path, is_lfs: bool, runs: int) -> dict[str, Any]:
    """Return the figures of both commands, run `runs` times in turn."""
    python = [sys.executable, "-m"]
    ours = [*python, "dstools", "push", str(folder), REPO, "--base", "none", "--yes", "--json"]
    theirs = [*python, "huggingface_hub.cli.hf", "upload", REPO, str(folder), ".", "--private"]
    upload: dict[str, list[float]] = {"dstools": [], "hf": []}
    memory: dict[str, list[float]] = {"dstools": [], "hf": []}
    verify = []
    for number in range(runs):
        for name in sorted(upload, reverse=bool(number % 2)):
            os.sync()  # what earlier runs wrote
            warm(folder)
            command = ours if name == "dstools" else theirs
            sent = send(command, place / f"hub-{name}", is_lfs)
            if name == "dstools":
                verify.append(json.loads(sent["stdout"])["seconds_verify"])
                sent["seconds"] -= verify[-1]
            upload[name].append(sent["seconds"])
            memory[name].append(sent["mib"])
    ratios = [a / b for a, b in zip(upload["dstools"], upload["hf"], strict=True)]
    nbytes = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "leg": "lfs" if is_lfs else "xet",
        "gb": round(nbytes / 1e9, 3),
        "times_hf": round(statistics.median(ratios), 3),
        "times_hf_each": [round(ratio, 3) for ratio in ratios],
        "verify_seconds": round(statistics.median(verify), 2),
        **{
            name: {
                "upload_seconds": round(statistics.median(upload[name]), 2),
                "peak_mib": round(max(memory[name])),
            }
            for name in upload
        },
    }


def main() -> None:
    """Print the figures, and exit with 3 if they fall short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--lfs", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the folder and the Hubs are put")
    parser.add_argument("--at-most", type=float, help="times the seconds of hf")
    parser.add_argument("--at-most-mib", type=float, help="more than hf takes; over LFS, in all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        place = Path(name)
        folder = place / "model"
        make = [sys.executable, MAKE, "v3-layer", folder, "--gb", str(args.gb)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        (folder / "README.md").write_text(README)
        result = compare(folder, place, args.lfs, args.runs)
    print(json.dumps(machine() | result, indent=1))
    allowed = args.at_most_mib
    if allowed is not None and not args.lfs:
        allowed += result["hf"]["peak_mib"]
    is_slow = args.at_most is not None and result["times_hf"] > args.at_most
    if is_slow or (allowed is not None and result["dstools"]["peak_mib"] > allowed):
        sys.exit(3)


if __name__ == "__main__":
    main()
