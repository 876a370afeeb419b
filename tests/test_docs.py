"""README and docs: short, linked, and every command in them works in the order shown.

A ```console block holds commands after `$ `, and below a command what it prints, where that is
shown; `...` is any number of lines. A block whose first line is `# NAME` is that file. bash runs
the commands, page by page, in a folder where small files have the names that the page uses, with
the Hub of tests/hub in place of the real one.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from click.testing import CliRunner

from dstools.cli import main

if TYPE_CHECKING:
    from fakehub import FakeHub

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
MAX_README_LINES = 120
RECORDS = ("benchmarks.md", "log.md", "status.md")  # dated, of commands that ran elsewhere

# names of the pages -> what is there under that name; `shelf` has those of checkpoints
INPUTS = {
    "Qwen2.5-7B": DATA / "sample-v3",
    "traces.jsonl": DATA / "sample-v3-calibration.jsonl",
    "heldout.jsonl": DATA / "sample-v3-heldout.jsonl",
}
CACHED, ORG = "deepseek-ai/DeepSeek-V3", "my-org"
# words of the pages -> words that are run
INSTEAD = {
    "--tp 8": "--tp 1"  # the sample model has 4 heads, of fewer rows than a block
}
# part of a command -> options that are added to it
ADDED = {
    "--calibrate": "--samples 8 --seq-len 128",  # seconds instead of hours
    "dstools eval": "--samples 8 --seq-len 128",
    "dstools push": "--yes",  # nobody is there to be asked
}
# part of a command -> its exit code, where it is not 0 and no line of its output begins with error
EXIT_CODES = {"distill doctor Qwen2.5-7B": 3}  # max_length = 1024 cuts its long trace
# commands of the pages that cannot run here, and why
NOT_RUN = {
    "hf auth login": "asks for a token; here HF_TOKEN has one",
    "vllm serve": "needs vLLM and GPUs; scripts/engine_check.py runs it on a CPU by hand",
    "ms-hub": "is not installed, and ModelScope has no twin on this machine",
}
SHELL = "\n".join(
    f'{name}() {{ "{sys.executable}" -m {module} "$@"; }}'
    for name, module in {"dstools": "dstools", "hf": "huggingface_hub.cli.hf"}.items()
)


class Step(NamedTuple):
    """A command of a page, or a file that it needs."""

    command: str  # "" for a file
    shown: str  # what the page says that the command prints; the content of the file
    file: str = ""


def pages() -> list[Path]:
    """Return every page that tells people what to do."""
    docs = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in RECORDS]
    return [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *docs]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the kind and the content of each fenced block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def steps(page: Path) -> Iterator[Step]:
    """Yield the commands and files of a page in their order."""
    for kind, content in blocks(page):
        if name := re.match(r"# ([\w.-]+\.\w+)\n", content):
            yield Step("", content, name[1])
        elif kind == "console":
            for part in re.split(r"^\$ ", content.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
                line, _, shown = part.partition("\n")
                yield Step(line.split(" #")[0].strip(), shown)


def reason_not_to_run(command: str) -> str:
    return next((NOT_RUN[name] for name in NOT_RUN if command.startswith(name)), "")


COMMANDED = [page for page in pages() if any(step.command for step in steps(page))]


# ------------------------------------------------------------------------------------------- text


def test_the_readme_is_at_most_120_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_local_link_leads_to_a_file_and_a_heading() -> None:
    for page in [*pages(), *(ROOT / "docs" / name for name in RECORDS)]:
        for target, heading in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", page.read_text()):
            if "://" in target:
                continue
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if heading else []
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert heading[1:] in slugs or not heading, f"{page.name}: {target}{heading}"


def test_every_command_is_in_a_block_that_is_run() -> None:
    for page in pages():
        for kind, content in blocks(page):
            if kind != "console":
                assert not re.search(r"^(\$ )?(dstools|hf) ", content, re.M), f"{page}\n{content}"


def test_every_command_that_is_not_run_is_still_in_the_pages() -> None:
    commands = [step.command for page in pages() for step in steps(page)]
    for name in NOT_RUN:
        assert any(command.startswith(name) for command in commands), name


# --------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="session")
def shelf(
    tiny_aligned: Path, padded_sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with everything that the commands read, under the names that the pages use."""
    shelf = tmp_path_factory.mktemp("shelf")
    for name, checkpoint in {"V3-tuned": padded_sample, "V3-next": tiny_aligned}.items():
        copy = Path(shutil.copytree(checkpoint, shelf / name))
        copy.chmod(0o755)
        (copy / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    for name, path in (INPUTS | {"bf16": tiny_aligned}).items():
        (shelf / name).symlink_to(path)
    (shelf / "trl.yaml").write_text("max_length: 1024\n")
    (shelf / "toy").mkdir()  # pages that run the same recipe find its results there
    cached = shelf / "hub" / f"models--{CACHED.replace('/', '--')}"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    made = CliRunner().invoke(
        main, ["quantize", str(shelf / "V3-tuned"), str(cached / "snapshots" / ("a" * 40))]
    )
    assert made.exit_code == 0, made.output
    return shelf


@pytest.fixture
def folder(shelf: Path, tmp_path: Path, hub: "FakeHub", monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder of that kind, and the environment of a person who is logged in."""
    hub.tokens["hf_good"]["orgs"] = {ORG: "admin"}
    monkeypatch.setenv("HF_HUB_CACHE", str(shelf / "hub"))
    folder = tmp_path / "here"
    folder.mkdir()
    for path in shelf.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("leg", ["xet"], indirect=True)
@pytest.mark.parametrize("page", COMMANDED, ids=lambda page: page.name)
def test_the_commands_of_a_page_work_in_the_order_shown(
    page: Path, folder: Path, hub: "FakeHub"
) -> None:
    for step in steps(page):
        if step.file:
            (folder / step.file).write_text(step.shown)
        elif not reason_not_to_run(step.command):
            run(step, folder, hub)


def run(step: Step, folder: Path, hub: "FakeHub") -> None:
    """Run a command; check its exit code and what it prints."""
    line = step.command
    for words, others in INSTEAD.items():
        line = line.replace(words, others)
    line, _, target = line.partition(" > ")
    line = " ".join([line, *(ADDED[part] for part in ADDED if part in line)])
    done = subprocess.run(
        ["bash", "-c", f"{SHELL}\n{line}" + (f" > {target}" if target else "")],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    printed = done.stdout.replace(hub.url, "https://huggingface.co")
    fails = re.search(r"^error: ", step.shown, re.MULTILINE) is not None
    wanted = next((EXIT_CODES[part] for part in EXIT_CODES if part in line), int(fails))
    assert done.returncode == wanted, f"{line}\n{printed}"
    assert "Traceback" not in printed
    if step.shown.strip():
        lines = plain(step.shown).splitlines()
        pattern = "".join("(?:.*\n)*?" if i == "..." else re.escape(i) + "\n" for i in lines)
        assert re.fullmatch(pattern, plain(printed) + "\n"), f"{line}\n{printed}"
    if target.endswith(".toml"):
        shrink(folder / target)


def plain(text: str) -> str:
    """Return what is printed without what differs from run to run: times, commits, the host."""
    text = text.replace(" at https://huggingface.co, which HF_ENDPOINT names", "")
    text = re.sub(r"\d+\.\d s\b", "0.0 s", text)
    return re.sub(r"\b[0-9a-f]{40}\b", "0" * 40, text).rstrip()


def shrink(path: Path) -> None:
    """Give a recipe fewer problems and steps, and leave it otherwise as printed."""
    recipe = path.read_text()
    for key, value in {"size": 40, "max_steps": 4, "warmup_steps": 1}.items():
        recipe, count = re.subn(rf"(?m)^{key} = \d+", f"{key} = {value}", recipe)
        assert count, key
    path.write_text(recipe, encoding="utf-8")
