"""eval.json: read back as written, and refused where it contradicts itself or the model."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.data import Data
from dstools_converters.sidefiles.evaluation import (
    EVAL,
    Evaluation,
    Figures,
    Histogram,
    OutputError,
    read_evaluation,
    write_evaluation,
)

EVALUATION = Evaluation(
    tool="dstools 0",
    model="out",
    against="source",
    data=Data("held-out.jsonl", "ab" * 32, 4, 256, 7, 31, "cd" * 32),
    tokens=10,
    perplexity=12.5,
    perplexity_against=12.0,
    kl_mean=-1e-9,  # rounding may leave a KL of 0 below it
    kl_p99=0.5,
    kl_max=0.75,
    top1_agreement=0.9,
    kl_histogram=Histogram((1e-3, 1e-2, 1e-1), (4, 6)),
    router_flips={1: 0.25, 2: 0.5},
    output_error=(OutputError(0, "o_proj", 0.01, 1000),),
)


BOTH = replace(
    EVALUATION,
    activations="fp8",
    other_activations=Figures(
        perplexity=12.25,
        kl_mean=0.01,
        kl_p99=0.25,
        kl_max=0.5,
        top1_agreement=0.95,
        kl_histogram=Histogram((1e-3, 1e-2, 1e-1), (5, 5)),
        router_flips={1: 0.125},
    ),
)


@pytest.fixture
def inventory(tiny: Path) -> Inventory:
    with open_checkpoint(tiny) as checkpoint:
        return take_inventory(checkpoint)


@pytest.mark.parametrize(
    "evaluation",
    [EVALUATION, Evaluation("dstools 0", "out", None, EVALUATION.data, 10, perplexity=1e300)],
)
def test_an_evaluation_is_read_back(
    evaluation: Evaluation, tmp_path: Path, inventory: Inventory
) -> None:
    assert write_evaluation(evaluation, tmp_path) == tmp_path / EVAL
    assert read_evaluation(tmp_path, inventory) == evaluation
    assert list(tmp_path.iterdir()) == [tmp_path / EVAL]


def test_no_file_was_not_evaluated(tmp_path: Path, inventory: Inventory) -> None:
    assert read_evaluation(tmp_path, inventory) is None


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_evaluation(replace(EVALUATION, kl_mean=float("nan")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top1_agreement": 1.5}, "top1_agreement"),
        ({"router_flips": {"4": 0.5}}, "4 is none of the model's 4 layers"),
        ({"router_flips": {"1": 1.5}}, "router_flips.1"),
        ({"kl_histogram": {"edges": [1, 1, 2], "counts": [4, 6]}}, "edges: do not rise"),
        ({"kl_histogram": {"edges": [1, 2], "counts": [4, 6]}}, "counts: are 2 for 2 edges"),
        ({"kl_histogram": {"edges": [1, 2, 3], "counts": [4, 5]}}, "are of 9 tokens, not of the"),
        ({"output_error": [{"layer": 4, "role": "o_proj", "error": 0.1, "numel": 1}]}, "layer: 4"),
        ({"output_error": [{"layer": 0, "role": "x", "error": 0.1, "numel": 1}]}, "role: 'x'"),
        ({"data": {"name": "a"}}, "data.sha256: is missing"),
        ({"perplexity": None}, "perplexity"),
    ],
)
def test_what_cannot_be_is_named_with_its_key(
    changes: dict[str, Any], message: str, tmp_path: Path, inventory: Inventory
) -> None:
    (tmp_path / EVAL).write_text(json.dumps(asdict(EVALUATION) | changes))
    with pytest.raises(DstoolsError, match=message):
        read_evaluation(tmp_path, inventory)


def test_flips_that_were_not_measured_are_left_out(tmp_path: Path, inventory: Inventory) -> None:
    table = asdict(EVALUATION) | {"router_flips": {"2": 0.5, "1": None}}
    (tmp_path / EVAL).write_text(json.dumps(table))
    evaluation = read_evaluation(tmp_path, inventory)
    assert evaluation is not None
    assert evaluation.router_flips == {2: 0.5}


def test_a_file_from_before_there_were_fp8_activations_is_of_the_weights_alone(
    tmp_path: Path, inventory: Inventory
) -> None:
    table = asdict(EVALUATION)
    del table["activations"], table["other_activations"]
    (tmp_path / EVAL).write_text(json.dumps(table))
    evaluation = read_evaluation(tmp_path, inventory)
    assert evaluation == EVALUATION
    assert evaluation.activations == "none"
    assert evaluation.other_activations is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": "fp8"}, "other_activations.activations: are fp8, too"),
        ({"activations": "int8"}, "other_activations.activations: 'int8' is none of fp8, none"),
        ({"router_flips": {"4": 0.5}}, "other_activations.router_flips: 4 is none of the model's"),
        (
            {"kl_histogram": {"edges": [1, 2, 3], "counts": [4, 5]}},
            "other_activations.kl_histogram.counts: are of 9 tokens, not of the 10",
        ),
        ({"perplexity": -1}, "other_activations.perplexity"),
    ],
)
def test_the_other_figures_are_checked_alike(
    changes: dict[str, Any], message: str, tmp_path: Path, inventory: Inventory
) -> None:
    table = asdict(BOTH)
    table["other_activations"] |= changes
    (tmp_path / EVAL).write_text(json.dumps(table))
    with pytest.raises(DstoolsError, match=message):
        read_evaluation(tmp_path, inventory)
