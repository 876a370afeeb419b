"""Tests of the model card: its metadata and its tables of results."""

import json
from typing import Any

import pytest

from dstools_converters.markdown import BEGIN, END
from dstools_distill.evaluation.statistics import Interval
from dstools_distill.recipe.settings import Card, Student
from dstools_distill.store.stage import MANIFEST


def test_the_metadata_are_yaml_that_says_the_same(made: Any) -> None:
    yaml = pytest.importorskip("yaml")
    stages = made.one_run()
    manifest = json.loads((stages[""]["prompts"] / MANIFEST).read_text())
    source = {"rows": 3, "licence": 'an "odd": one'}
    manifest["report"]["sources"] = {
        "datasets:open-r1/some-set": source,
        "datasets:open-r1/some-set/all": source,
        "mine.jsonl": source,
    }
    (stages[""]["prompts"] / MANIFEST).write_text(json.dumps(manifest))
    settings = Card(name="x", licence='my "own": terms', licence_link="LICENSE")
    readme = made.cards(stages, settings, Student(model="a/b"))["README.md"]
    assert yaml.safe_load(readme.split("---")[1]) == {
        "license": "other",
        "license_name": "my-own-terms",
        "license_link": "LICENSE",
        "base_model": ["a/b"],
        "base_model_relation": "finetune",
        "datasets": ["open-r1/some-set"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reasoning", "distillation", "dstools", "sft"],
    }
    assert "prove that the pipeline" not in readme, "these prompts are not reasoning-gym's"


@pytest.mark.parametrize(
    ("licence", "wanted"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Apache License 2.0", {"license": "apache-2.0"}),
        ("unknown", {"license": "unknown"}),
        ("", {"license": "unknown"}),
        ("Tongyi Qianwen", {"license": "other", "license_name": "tongyi-qianwen"}),
    ],
)
def test_a_licence_outside_the_list_of_the_hub_is_other_with_its_name(
    made: Any, licence: str, wanted: dict[str, str]
) -> None:
    yaml = pytest.importorskip("yaml")
    readme = made.cards(made.one_run(), Card(name="x", licence=licence))["README.md"]
    metadata = yaml.safe_load(readme.split("---")[1])
    assert {key: metadata[key] for key in metadata if key.startswith("license")} == wanted


def test_the_text_is_marked_as_generated(made: Any) -> None:
    readme = made.cards(made.one_run())["README.md"]
    assert readme.count(BEGIN) == readme.count(END) == 1
    assert readme.split("---\n\n", 1)[1].startswith(BEGIN)
    assert readme.endswith(f"{END}\n")


def test_several_answers_to_a_problem_have_a_table_of_their_own(made: Any) -> None:
    stage = made.eval([4, 2, 0], of=4)
    manifest = json.loads((stage / MANIFEST).read_text())
    share = Interval(0.75, 0.5, 0.9)._asdict()
    manifest["report"]["models"]["after"] |= {
        "pass@k": {"1": share, "4": share}, "maj@k": {"1": share, "4": share},
        "language_mix": {"de": 0.25, "en": 0.75},
    }  # fmt: skip
    (stage / MANIFEST).write_text(json.dumps(manifest))
    readme = made.cards({"": {"eval": stage}})["README.md"]
    assert "| after | 4 | 75.0 % (50.0 % to 90.0 %) | 75.0 % (50.0 % to 90.0 %) |" in readme
    assert "| after | de 25.0 %, en 75.0 % |" in readme
