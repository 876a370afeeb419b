"""The README is short, its links resolve, and its `dstools` commands work in the order shown.

The names in them are of large models; here the sample model and small files have those names.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstools.cli import main

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_LINES = 120
SMALL = {  # appended so that a command takes seconds instead of hours
    "--calibrate": ["--samples", "8", "--seq-len", "128"],
    "--against": ["--samples", "8", "--seq-len", "128"],
}
FALLS_SHORT = {  # exit code 3, rightly, on the sample model
    "--engine vllm": 3,  # its experts have 40 rows, which vLLM cannot fuse in blocks of 128
    "distill doctor": 3,  # max_length = 1024 cuts the doctor's long trace
}


def commands() -> list[str]:
    """Return the `dstools` commands of the README's console blocks, without their comments."""
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line[2:].split(" #")[0].strip() for line in lines if line.startswith("$ dstools ")]


def test_the_readme_is_at_most_120_lines() -> None:
    assert len(README.splitlines()) <= MAX_LINES


def test_every_local_link_of_the_readme_and_of_the_docs_leads_to_a_file() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A folder with everything that the README's commands read, under the names used there."""
    cached = tmp_path / "hub" / "models--deepseek-ai--DeepSeek-V3"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    quantized = cached / "snapshots" / ("a" * 40)
    made = CliRunner().invoke(main, ["quantize", str(DATA / "sample-v3"), str(quantized)])
    assert made.exit_code == 0, made.output
    (cached / "refs" / "main").write_text("a" * 40)
    (tmp_path / "bf16").symlink_to(tiny)
    for name in ("V3-tuned", "Qwen2.5-7B"):
        (tmp_path / name).symlink_to(DATA / "sample-v3")
    shutil.copy(DATA / "sample-v3-calibration.jsonl", tmp_path / "traces.jsonl")
    shutil.copy(DATA / "sample-v3-heldout.jsonl", tmp_path / "heldout.jsonl")
    (tmp_path / "trl.yaml").write_text("max_length: 1024\n")
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_readme_work_in_the_order_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    ran = set()
    for command in commands():
        line, _, target = command.partition(" > ")
        words = shlex.split(line)
        words += [word for option in SMALL if option in words for word in SMALL[option]]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        wanted = next((FALLS_SHORT[part] for part in FALLS_SHORT if part in line), 0)
        assert done.returncode == wanted, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if target:
            shrink(folder / target, done.stdout)
        ran.add(" ".join(words[1:3]) if words[1] == "distill" else words[1])
    assert {"inspect", "quantize", "verify", "compare", "eval", "report", "distill run"} <= ran
    assert (folder / "V3-gptq" / "report.html").exists()


def shrink(path: Path, recipe: str) -> None:
    """Write a recipe with fewer problems and steps, which otherwise is as printed."""
    for key, value in {"size": 40, "max_steps": 4, "warmup_steps": 1}.items():
        recipe, count = re.subn(rf"(?m)^{key} = \d+", f"{key} = {value}", recipe)
        assert count, key
    path.write_text(recipe, encoding="utf-8")
