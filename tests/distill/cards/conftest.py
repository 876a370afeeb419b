"""Finished stages for the tests of cards, written as store/stage.py leaves them."""

import json
from pathlib import Path
from typing import Any

import pytest

from dstools_distill.cards.card import card
from dstools_distill.evaluation.statistics import paired_difference, wilson
from dstools_distill.recipe.settings import Card, Student
from dstools_distill.store.stage import MANIFEST, TIMING, Report, Work

TOY = Card(name="toy", licence="apache-2.0")
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
    """A store of finished stages."""

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
                    "rows_by_share": {"under 60%": 0, "95% or more": 1},
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
            "lenient": share, "pass@k": {"1": share}, "maj@k": {"1": share},
            "unverifiable": 0.0, "truncated": 0.25, "not_well_formed": 0.0, "mean_tokens": 55.5,
            "language_mix": {}, "context": 512,
        }  # fmt: skip

    def one_run(self) -> dict[str, dict[str, Path]]:
        trained = {"sft": self.sft(), "eval": self.eval([1, 1, 1, 0], first=[0, 0, 1, 0])}
        return {"": self.data() | trained}

    def arms(self) -> dict[str, dict[str, Path]]:
        """Two arms of three seeds on six problems: 3, 4, 5 right ones, and 2, 2, 5."""
        data = self.data()
        right = {"verified": (3, 4, 5), "unfiltered": (2, 2, 5)}
        return {
            f"{arm}-{seed}": data
            | {"sft": self.sft(seed), "eval": self.eval([1] * n + [0] * (6 - n))}
            for arm, counts in right.items()
            for seed, n in enumerate(counts)
        }

    def cards(
        self,
        stages: dict[str, dict[str, Path]],
        settings: Card = TOY,
        student: Student = NEW,
        out: str = "out",
    ) -> dict[str, str]:
        """Return the texts of the cards by file name; all files are in `out` beside the store."""
        folder = self.folder.parent / out
        folder.mkdir()
        report = card(settings, dict.fromkeys(stages, student), stages, Work(folder))
        assert {file.name for file in folder.iterdir()} == set(report["files"])
        return {file.name: file.read_text() for file in folder.glob("*.md")}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "store").mkdir()
    return Made(tmp_path / "store")
