"""Tests of both cards as files: golden texts, plots, the same bytes again."""

from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dstools_distill.recipe import settings
from dstools_distill.store.stage import TIMING

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["DATA.md", "README.md"])
def test_the_cards_of_one_run_are_these(made: Any, name: str) -> None:
    assert made.cards(made.one_run())[name] == (GOLDEN / name).read_text()


def test_rewards_have_a_plot_of_their_own(made: Any, tmp_path: Path) -> None:
    curve = '{"step": 1, "loss": 0.0, "reward": 0.25}\n{"step": 2, "loss": 0.0, "reward": 0.5}\n'
    grpo = made.stage("grpo", {"clip": 10.0, "seed": 3}, {"steps": 2}, curve_jsonl=curve)
    readme = made.cards({"": {"sft": made.sft(), "grpo": grpo}})["README.md"]
    assert "![Loss by step](loss.svg)\n\n![Reward by step](reward.svg)" in readme
    assert "trained by sft, then grpo from" in readme
    assert (tmp_path / "out" / "reward.svg").exists()


@pytest.mark.parametrize(
    ("missing", "file", "line"),
    [
        ("verify", "DATA.md", "- Whether answers are right, finished and well formed"),
        ("verify", "DATA.md", "Not verified: no answer was compared"),
        ("decontaminate", "DATA.md", "Not decontaminated"),
        ("decontaminate", "README.md", "- Overlap with benchmarks"),
        ("eval", "README.md", "- What the student can do"),
        ("eval", "README.md", "Not evaluated."),
        ("sft", "README.md", "No model was trained."),
        ("generate", "DATA.md", "# Data of toy"),
        ("prompts", "DATA.md", "# Data of toy"),
        ("select", "DATA.md", "# Data of toy"),
        ("render", "DATA.md", "# Data of toy"),
    ],
)
def test_a_missing_stage_is_named_and_no_number_invented(
    made: Any, missing: str, file: str, line: str
) -> None:
    stages = made.one_run()
    del stages[""][missing]
    cards = made.cards(stages)
    assert line in cards[file]
    if missing in ("verify", "decontaminate", "select", "render"):
        assert f"\n| {missing} |" not in cards["DATA.md"]


def test_no_stage_at_all_still_makes_cards(made: Any) -> None:
    cards = made.cards({"": {}})
    assert "No data stage was run." in cards["DATA.md"]
    assert "\n|  |\n" not in cards["DATA.md"] + cards["README.md"], "an empty table"
    assert "Not evaluated." in cards["README.md"]


def test_the_keys_that_a_card_looks_up_are_keys_of_a_recipe() -> None:
    looked_up = {
        settings.Prompts: {"near_duplicates"},
        settings.Generate: {"model", "licence", "device", "timeout_seconds"},
        settings.Verify: {"steps", "language"},
        settings.Select: {"keep"},
        settings.Sft: {"seed"},
        settings.Eval: {"source", "limit"},
    }
    for table, keys in looked_up.items():
        assert keys <= {field.name for field in fields(table)}, table


def test_the_same_stages_give_the_same_bytes(made: Any, tmp_path: Path) -> None:
    stages = made.arms()
    digests = []
    for name in ("a", "b"):
        made.cards(stages, out=name)
        files = sorted((tmp_path / name).iterdir())
        digests.append({file.name: sha256(file.read_bytes()).hexdigest() for file in files})
        for folder in made.folder.iterdir():  # the cost differs each time
            (folder / TIMING).unlink(missing_ok=True)
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"DATA.md", "README.md", "loss.svg", "pass_at_1.svg"}


def test_nothing_of_somebodys_machine_is_told(made: Any, tmp_path: Path) -> None:
    for card in made.cards(made.one_run()).values():
        assert "somebody" not in card
        assert str(tmp_path) not in card
