"""The examples in the --help of `dstools distill` run as written, on small files of these names."""

import json
import shlex
import shutil
from pathlib import Path

import click
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools.commands.distill import EXAMPLES, distill

DATA = Path(__file__).parents[2] / "data"
RECIPE = """
[[prompts.source]]
path = "solved.jsonl"

[generate]
backend = "replay"

[verify]
[decontaminate]
[select]

[student]
model = "{sample}"

[render]
max_length = 200

[sft]
max_steps = 1
batch_size = 8
micro_batch_size = 8
precision = "float32"

[kd]
teacher = "{sample}"
max_steps = 1
batch_size = 4
micro_batch_size = 4
max_completion_tokens = 4
precision = "float32"

[grpo]
max_steps = 1
group_size = 2
batch_size = 4
micro_batch_size = 4
max_completion_tokens = 4
precision = "float32"

[mtp]
max_steps = 1

[[eval.source]]
path = "held-out.jsonl"

[eval]
max_tokens = 4
precision = "float32"

[card]
name = "toy"
"""
NOT_RUN = {  # example -> why
    "dstools distill eval toy.toml --lm-eval gpqa_diamond_cot_zeroshot": "GPQA is on the Hub, and "
    "gated; tests/distill/evaluation/test_harness.py runs a task that lm_eval has with it"
}
FALLS_SHORT = "dstools distill doctor "  # TRL cuts at 64 tokens; prepared rows are missing
NAMES = distill.list_commands(click.Context(distill))


def examples(name: str) -> list[str]:
    """Return the examples of one command of `distill`."""
    command = distill.get_command(click.Context(distill), name)
    assert command is not None
    assert command.epilog
    return command.epilog.splitlines()


def run(line: str) -> Result:
    """Run an example; `> FILE` takes what it prints."""
    command, _, target = line.partition(" > ")
    program, *words = shlex.split(command)
    assert program == "dstools"
    result = CliRunner().invoke(main, words)
    if target:
        Path(target).write_text(result.stdout)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the examples are run in, with the recipe of toy.toml run."""
    folder = tmp_path_factory.mktemp("examples")
    sample = DATA / "sample-v3"
    (folder / "toy.toml").write_text(RECIPE.format(sample=sample))
    for name, source in (("solved", "calibration"), ("held-out", "heldout")):
        lines = (DATA / f"sample-v3-{source}.jsonl").read_text().splitlines()[:16]
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row["answer"] = row["messages"][-1]["content"].rpartition("\n\n")[2]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    shutil.copy(folder / "solved.jsonl", folder / "traces.jsonl")
    for name in ("aime24", "math500"):
        (folder / f"{name}.jsonl").write_text('{"question": "How many primes are below 100?"}\n')
    pq.write_table(
        pa.table({"question": ["What is the sum of 12 and 29?"]}), folder / "gpqa.parquet"
    )
    (folder / "Qwen2.5-7B").symlink_to(sample)
    (folder / "trl.yaml").write_text("max_length: 64\n")
    row = {"input_ids": [1, 2], "labels": [1, 2]}  # no source row is in it
    datasets.Dataset.from_list([row]).save_to_disk(folder / "last_run_prepared")
    return folder


@pytest.mark.slow
def test_the_examples_of_every_command_run_as_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which `distill --help` lists the commands: `run` is the first."""
    monkeypatch.chdir(folder)
    lines = ["dstools distill run toy.toml", *(line for name in NAMES for line in examples(name))]
    for line in lines:
        if line in NOT_RUN:
            continue
        Path("benchmarks.ngrams").unlink(missing_ok=True)  # both examples of `index` write it
        result = run(line)
        assert result.exit_code == (3 if line.startswith(FALLS_SHORT) else 0), (line, result.output)
    assert (folder / "toy" / "grpo" / "model.safetensors").exists()
    assert (folder / "qwen.toml").read_text().startswith("#")


def test_the_examples_of_the_group_are_those_of_its_commands() -> None:
    """`run toy.toml` is run above."""
    printed = [line.strip() for line in EXAMPLES.splitlines() if "dstools" in line]
    assert printed[1] == "dstools distill run toy.toml"
    assert printed[0] == f"{examples('init')[0]} > toy.toml"


def test_every_example_that_is_not_run_exists() -> None:
    assert NOT_RUN.keys() <= {line for name in NAMES for line in examples(name)}
