"""Cards from the manifests of finished stages, written down here: golden text, missing stages, plots."""

import json
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.markdown import text
from dstools_distill.cards.card import card
from dstools_distill.cards.markdown import flat, points, table
from dstools_distill.evaluation.statistics import Interval, over_seeds, paired_difference, wilson
from dstools_distill.recipe import settings
from dstools_distill.recipe.settings import Card, Student
from dstools_distill.store.stage import MANIFEST, TIMING, Report, Work

GOLDEN = Path(__file__).parent / "golden"
NEW = Student(
    init={"model_type": "qwen2"}, tokenizer="/home/somebody/sample-v3", licence="apache-2.0"
)
GENERATE = {
    "backend": "hf", "model": "/home/somebody/sample-v3", "samples": 2, "temperature": 1.0,
    "top_p": 0.95, "max_tokens": 128, "seed": 0, "prefill_think": False, "batch_size": 256,
    "device": "cpu", "licence": "mit",
}  # fmt: skip
VERIFY = {"steps": True, "language": "", "max_repetition": 0.5}
SELECT = {"keep": "all-correct", "per_prompt": 0, "non_reasoning": "", "licence": "x", "seed": 0}
RENDER = {"max_length": 256, "max_dropped": 0.02, "reasoning": True, "template": ""}
SFT = {"learning_rate": 2e-3, "epochs": 10.0, "batch_size": 64, "betas": [0.9, 0.95], "lora": None}
EVAL = {"source": [], "samples": 1, "temperature": 0.0, "max_tokens": 128, "k": [1], "verify": {}}


class Made:
    """Finished stages, as stage.py leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(self, name: str, settings: dict[str, Any], report: Report, **files: str) -> Path:
        made = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        made.mkdir()
        manifest = {
            "stage": name,
            "settings": settings,
            "inputs": {},
            "versions": {"torch": "2.13.0"},
        }
        manifest |= {"dstools": "0.1", "outputs": {}, "report": report}
        (made / MANIFEST).write_text(json.dumps(manifest))
        (made / TIMING).write_text(json.dumps({"seconds": id(made), "cpu_seconds": 1.0}))
        for file, content in files.items():
            (made / file.replace("_", ".")).write_text(content)
        return made

    def data(self) -> dict[str, Path]:
        source = {"rg:chain_sum": {"rows": 8, "licence": "apache-2.0"}}
        prompts = {"in": 8, "out": 6, "dropped": {"duplicate": 2}, "sources": source}
        return {
            "prompts": self.stage("prompts", {"near_duplicates": 0.0}, prompts),
            "generate": self.stage(
                "generate", GENERATE, {"in": 6, "out": 11, "dropped": {"timeout": 1}}
            ),
            "verify": self.stage(
                "verify",
                VERIFY,
                {
                    "in": 11, "out": 11, "dropped": {},
                    "verdicts": {"correct": 9, "incorrect": 2},
                    "reasons": {
                        "correct": {"equal": 9},
                        "incorrect": {"unfinished": 1, "wrong-step": 1},
                    },
                    "checkers": {"exact": 10}, "steps_checked": 10, "answers_right_steps_wrong": 1,
                },
            ),
            "decontaminate": self.stage(
                "decontaminate",
                {"index": ["/home/somebody/benchmarks.ngrams"]},
                {
                    "in": 11, "out": 10, "dropped": {"contaminated": 1},
                    "benchmarks": [
                        {"name": "eval", "sha256": "ab" * 32, "questions": 4, "rows_hit": 1}
                    ],
                    "indexes": ["cd" * 32], "note": "A problem that was paraphrased is not found.",
                },
            ),
            "select": self.stage(
                "select",
                SELECT,
                {
                    "in": 10, "out": 9, "dropped": {"incorrect": 1},
                    "prompts": {"in": 6, "out": 5}, "reasoning_share": 1.0,
                    "non_reasoning": {"in": 0, "contaminated": 0, "out": 0},
                },
            ),
            "render": self.stage(
                "render",
                RENDER,
                {
                    "in": 9, "out": 9, "dropped": {}, "trains_on": "trace and answer",
                    "tokens": 700, "target_tokens": 500, "length": {"50%": 70, "100%": 90},
                    "checks": {"target": 9, "end": 9},
                },
            ),
        }  # fmt: skip

    def sft(self, seed: int = 0, **more: Any) -> Path:
        curve = "".join(
            json.dumps({"step": 10 * n, "loss": 2.0 / n + seed / 10}) + "\n" for n in range(1, 6)
        )
        report = {"in": 9, "steps": 50, "parameters": 1_234_567, "precision": "float32"}
        return self.stage("sft", SFT | {"seed": seed} | more, report, curve_jsonl=curve)

    def eval(self, right: list[int], *, first: list[int] | None = None, of: int = 1) -> Path:
        """Problems with so many right answers of `of` each."""
        models = {} if first is None else {"before": first}
        models["after"] = right
        scores = {
            model: {f"p{n}": [count, of] for n, count in enumerate(counts)}
            for model, counts in models.items()
        }
        figures = {model: self.figures(counts, of) for model, counts in models.items()}
        difference = None
        if first is not None:
            found = paired_difference([n / of for n in first], [n / of for n in right])
            difference = {"from": "before", "to": "after"} | found._asdict()
        report = {
            "in": len(right), "out": len(right), "dropped": {}, "models": figures,
            "sources": {"rg:chain_sum": len(right)}, "difference": difference,
        }  # fmt: skip
        return self.stage("eval", EVAL | {"samples": of}, report, scores_json=json.dumps(scores))

    def figures(self, counts: list[int], of: int) -> dict[str, Any]:
        share = wilson(sum(counts) / of / len(counts), len(counts))._asdict()
        return {
            "problems": len(counts), "answers": of * len(counts), "pass@1": share,
            "lenient": share, "pass@k": {"1": share}, "maj@k": {"1": share}, "truncated": 0.25,
            "not_well_formed": 0.0, "mean_tokens": 55.5, "language_mix": {}, "context": 512,
        }  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "store").mkdir()
    return Made(tmp_path / "store")


def written(
    stages: dict[str, dict[str, Path]], out: Path, settings: Card, student: Student = NEW
) -> dict[str, str]:
    """The texts of the cards by file name."""
    out.mkdir()
    work = Work(out)
    report = card(settings, dict.fromkeys(stages, student), stages, work)
    assert {file.name for file in out.iterdir()} == set(report["files"])
    return {file.name: file.read_text() for file in out.glob("*.md")}


TOY = Card(name="toy", licence="apache-2.0")


def one_run(made: Made) -> dict[str, dict[str, Path]]:
    return {
        "": made.data() | {"sft": made.sft(), "eval": made.eval([1, 1, 1, 0], first=[0, 0, 1, 0])}
    }


def arms(made: Made) -> dict[str, dict[str, Path]]:
    """Two arms of three seeds on six problems: 3, 4, 5 right ones, and 2, 2, 5."""
    data = made.data()
    right = {"verified": (3, 4, 5), "unfiltered": (2, 2, 5)}
    return {
        f"{arm}-{seed}": data | {"sft": made.sft(seed), "eval": made.eval([1] * n + [0] * (6 - n))}
        for arm, counts in right.items()
        for seed, n in enumerate(counts)
    }


# ---------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("name", ["DATA.md", "README.md"])
def test_the_cards_of_one_run_are_these(made: Made, tmp_path: Path, name: str) -> None:
    assert written(one_run(made), tmp_path / "out", TOY)[name] == (GOLDEN / name).read_text()


def test_arms_are_compared_seed_by_seed(made: Made, tmp_path: Path) -> None:
    readme = written(arms(made), tmp_path / "out", TOY)["README.md"]
    # t = 4.3027 with two degrees. verified: s = 1/6; unfiltered: mean 1/2, s = 0.5 / sqrt(3);
    # differences -1/6, -1/3, 0: mean -1/6, s = 1/6
    assert over_seeds([-1 / 6, -1 / 3, 0]).low == pytest.approx(
        -1 / 6 - 4.3027 / 6 / 3**0.5, abs=1e-5
    )
    rows = [
        line for line in readme.split("\n") if line.startswith(("| verified |", "| unfiltered |"))
    ]
    assert rows == [
        "| verified | 66.7 % | 25.3 % to 108.1 % | 0: 50.0 %, 1: 66.7 %, 2: 83.3 % |  |  |",
        "| unfiltered | 50.0 % | -21.7 % to 121.7 % | 0: 33.3 %, 1: 33.3 %, 2: 83.3 % | -16.7 | -58.1 to +24.7 |",
    ]
    assert "| seeds | 0, 1, 2 |" in readme
    assert "differ between seeds" not in readme


def test_arms_that_share_a_stage_share_its_row(made: Made, tmp_path: Path) -> None:
    runs = arms(made)
    other = made.data()["select"]
    for seed in range(3):
        runs[f"unfiltered-{seed}"]["select"] = other
    data = written(runs, tmp_path / "out", TOY)["DATA.md"]
    rows = [line for line in data.split("\n") if line.startswith(("| select", "| verify"))]
    assert rows == [
        "| verify |  | 11 | 11 | none |",
        "| select | verified | 10 | 9 | 1 incorrect |",
        "| select | unfiltered | 10 | 9 | 1 incorrect |",
    ]
    assert "## Selection: unfiltered" in data


def test_runs_without_seeds_are_compared_problem_by_problem(made: Made, tmp_path: Path) -> None:
    runs = {
        "cold-start": {"eval": made.eval([1, 0, 0, 0])},
        "rl": {"eval": made.eval([1, 1, 1, 0])},
    }
    runs["other"] = {"eval": made.eval([1, 1])}
    readme = written(runs, tmp_path / "out", TOY)["README.md"]
    found = paired_difference([1, 0, 0, 0], [1, 1, 1, 0])
    assert f"| rl | +50.0 | {points(found.low)} to {points(found.high)} |" in readme
    assert "| other | \u2013 | other problems |" in readme
    assert "pass@1 against cold-start, points" in readme


def test_only_seeds_that_both_arms_have_are_compared(made: Made, tmp_path: Path) -> None:
    runs = arms(made)
    del runs["unfiltered-0"]  # left are differences of -2 and 0 of 6 problems
    readme = written(runs, tmp_path / "out", TOY)["README.md"]
    assert "1: 33.3 %, 2: 83.3 % | -16.7 |" in readme
    for name in ("unfiltered-1", "unfiltered-2"):
        del runs[name]
    runs["other-9"] = {"sft": made.sft(9), "eval": made.eval([1, 0, 0, 0, 0, 0])}
    readme = written(runs, tmp_path / "again", TOY)["README.md"]
    assert "| other | 16.7 % | \u2013 | 9: 16.7 % | \u2013 | no common seed |" in readme


def test_rewards_have_a_plot_of_their_own(made: Made, tmp_path: Path) -> None:
    curve = '{"step": 1, "loss": 0.0, "reward": 0.25}\n{"step": 2, "loss": 0.0, "reward": 0.5}\n'
    grpo = made.stage("grpo", {"clip": 10.0, "seed": 3}, {"steps": 2}, curve_jsonl=curve)
    readme = written({"": {"sft": made.sft(), "grpo": grpo}}, tmp_path / "out", TOY)["README.md"]
    assert "![Loss by step](loss.svg)\n\n![Reward by step](reward.svg)" in readme
    assert "trained by sft, then grpo from" in readme
    assert (tmp_path / "out" / "reward.svg").exists()


def test_one_seed_leaves_the_spread_unknown(made: Made, tmp_path: Path) -> None:
    runs = {f"{arm}-7": {"sft": made.sft(7), "eval": made.eval(right)}
            for arm, right in (("a", [1, 0, 1]), ("b", [1, 1, 1]))}  # fmt: skip
    readme = written(runs, tmp_path / "out", TOY)["README.md"]
    found = paired_difference([1, 0, 1], [1, 1, 1])
    assert (
        f"| b | 100.0 % | \u2013 | 7: 100.0 % | +33.3 | {points(found.low)} to {points(found.high)} |"
        in readme
    )
    assert "- How much results differ between seeds." in readme


def test_several_answers_to_a_problem_have_a_table_of_their_own(made: Made, tmp_path: Path) -> None:
    stage = made.eval([4, 2, 0], of=4)
    manifest = json.loads((stage / MANIFEST).read_text())
    share = Interval(0.75, 0.5, 0.9)._asdict()
    manifest["report"]["models"]["after"] |= {
        "pass@k": {"1": share, "4": share}, "maj@k": {"1": share, "4": share},
        "language_mix": {"de": 0.25, "en": 0.75},
    }  # fmt: skip
    (stage / MANIFEST).write_text(json.dumps(manifest))
    readme = written({"": {"eval": stage}}, tmp_path / "out", TOY)["README.md"]
    assert "| after | 4 | 75.0 % (50.0 % to 90.0 %) | 75.0 % (50.0 % to 90.0 %) |" in readme
    assert "| after | de 25.0 %, en 75.0 % |" in readme


# --------------------------------------------------------------------------- licences, metadata


def test_every_unknown_licence_is_warned_of(made: Made, tmp_path: Path) -> None:
    student = Student(model="Qwen/Qwen2.5-Math-1.5B")
    cards = written(one_run(made), tmp_path / "out", Card(name="mine"), student)
    for said in cards.values():
        assert "**Warning: the licence of Qwen/Qwen2.5-Math-1.5B, mine is unknown." in said
        assert "| Student's base | Qwen/Qwen2.5-Math-1.5B | unknown |" in said
    assert 'license: "unknown"\nbase_model: ["Qwen/Qwen2.5-Math-1.5B"]' in cards["README.md"]


def test_known_licences_are_not_warned_of(made: Made, tmp_path: Path) -> None:
    assert "Warning" not in "".join(written(one_run(made), tmp_path / "out", TOY).values())


def test_the_metadata_are_yaml_that_says_the_same(made: Made, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    stages = one_run(made)
    manifest = json.loads((stages[""]["prompts"] / MANIFEST).read_text())
    source = {"rows": 3, "licence": 'an "odd": one'}
    manifest["report"]["sources"] = {"datasets:open-r1/some-set": source, "mine.jsonl": source}
    (stages[""]["prompts"] / MANIFEST).write_text(json.dumps(manifest))
    settings = Card(name="x", licence='my "own": terms')
    readme = written(stages, tmp_path / "out", settings, Student(model="a/b"))["README.md"]
    assert yaml.safe_load(readme.split("---")[1]) == {
        "license": 'my "own": terms',
        "base_model": ["a/b"],
        "base_model_relation": "finetune",
        "datasets": ["open-r1/some-set"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reasoning", "distillation", "dstools", "sft"],
    }
    assert "prove that the pipeline" not in readme, "these prompts are not reasoning-gym's"


def test_nothing_of_somebodys_machine_is_told(made: Made, tmp_path: Path) -> None:
    for said in written(one_run(made), tmp_path / "out", TOY).values():
        assert "somebody" not in said
        assert str(tmp_path) not in said


# ------------------------------------------------------------------------------- missing stages


@pytest.mark.parametrize(
    ("missing", "file", "said"),
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
    made: Made, tmp_path: Path, missing: str, file: str, said: str
) -> None:
    stages = one_run(made)
    del stages[""][missing]
    cards = written(stages, tmp_path / "out", TOY)
    assert said in cards[file]
    if missing in ("verify", "decontaminate", "select", "render"):
        assert f"\n| {missing} |" not in cards["DATA.md"]


def test_no_stage_at_all_still_makes_cards(tmp_path: Path) -> None:
    cards = written({"": {}}, tmp_path / "out", TOY)
    assert "No data stage was run." in cards["DATA.md"]
    assert "Not evaluated." in cards["README.md"]


def test_the_keys_that_a_card_looks_up_are_keys_of_a_recipe() -> None:
    wanted = {
        settings.Prompts: {"near_duplicates"},
        settings.Generate: {"model", "licence", "device", "timeout_seconds"},
        settings.Verify: {"steps", "language"},
        settings.Select: {"keep"},
        settings.Sft: {"seed"},
        settings.Eval: {"source", "limit"},
    }
    for table_, keys in wanted.items():
        assert keys <= {field.name for field in fields(table_)}, table_


# --------------------------------------------------------------------------------- plots, bytes


def test_the_same_stages_give_the_same_bytes(made: Made, tmp_path: Path) -> None:
    stages = arms(made)
    digests = []
    for name in ("a", "b"):
        written(stages, tmp_path / name, TOY)
        files = sorted((tmp_path / name).iterdir())
        digests.append({file.name: sha256(file.read_bytes()).hexdigest() for file in files})
        for folder in made.folder.iterdir():  # what they cost is another time each time
            (folder / TIMING).unlink(missing_ok=True)
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"DATA.md", "README.md", "loss.svg", "pass_at_1.svg"}


# -------------------------------------------------------------------------------------- markdown


def test_names_of_strangers_stay_text() -> None:
    assert text("<b>*x*|[a](http://b)") == r"&lt;b>\*x\*\|\[a\](http&#58;//b)"


def test_a_column_without_a_cell_is_left_out() -> None:
    assert (
        table(("a", "b", "c"), [("1", "", "2")], numeric=1)
        == "| a | c |\n| --- | ---: |\n| 1 | 2 |"
    )


def test_settings_become_rows_of_dotted_names() -> None:
    found = flat({"a": {"b": 1000, "c": None}, "d": [1, 2.5], "e": "", "f": False, "g": "/h/i"})
    assert found == [("a.b", "1,000"), ("d", "1, 2.5"), ("f", "no"), ("g", "i")]
