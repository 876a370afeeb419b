"""Checks that need a GPU: tests, then benchmarks. Prints card, versions and figures.

    pip install ".[dev]"; python scripts/hopper_check.py [arguments for pytest, such as -n 8]

The tests are those marked `gpu`, and all others of the modules that use a GPU whenever one is
present. If something fails, exits with 1 and names the command.
"""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
MODULES = [
    *(f"training/test_{name}.py" for name in ("sft", "kd", "grpo", "trainer", "muon")),
    *("test_loading.py", "teachers/test_sampling.py"),
]
BENCHES = [
    ["bench_sft.py", "--device", "cuda", "--steps", "100", "--rounds", "3"],
    ["bench_calibrate.py", "--device", "cuda", "--experts", "2"],
]


def main() -> None:
    """Run everything, and exit with 1 if something failed."""
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device\nhint: nvidia-smi shows what the driver sees")
    packages = ("torch", "transformers", "trl", "accelerate")
    versions = "  ".join(f"{name} {version(name)}" for name in packages)
    print(f"{torch.cuda.get_device_name()}  Python {platform.python_version()}  {versions}")
    pytest = [sys.executable, "-m", "pytest", "-q", *sys.argv[1:]]
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
