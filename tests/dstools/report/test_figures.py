"""The figures of a report: pooled, counted, and named where missing."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools.report.figures import CacheAmax, LayerLoad, by_model, figures, pool
from dstools.report.sheet import read_sheet

Pages = Callable[[Path], tuple[str, str]]


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def test_errors_are_pooled_as_root_mean_squares_by_elements() -> None:
    # sqrt((1 * 3^2 + 3 * 1^2) / 4) = sqrt(3)
    found = pool([("a", 3.0, 1), ("a", 1.0, 3), ("a", None, 9), ("b", None, 1)])
    assert found == {"a": pytest.approx(math.sqrt(3))}


def test_a_weight_that_saw_no_token_has_no_error(pages: Pages, measured: Path) -> None:
    found = json.loads((measured / "calibration.json").read_text())
    for tensor in found["tensors"].values():
        tensor |= {"tokens": 0, "error": 0.0, "error_nearest": 0.0}
    write(measured, "calibration.json", found)
    (measured / "eval.json").unlink()
    computed = figures(read_sheet(measured))
    error = next(h for h in computed.headlines if h.key == "output_error")
    assert (error.figure, error.note) == (None, "no weight saw a token")
    assert (computed.cells, computed.cells_held_out, computed.worst) == ({}, {}, [])
    html, _ = pages(measured)
    assert "by role and layer" not in html


def test_weights_are_counted_by_method_and_reasons_that_differ_in_numbers_are_one(
    measured: Path,
) -> None:
    computed = figures(read_sheet(measured))
    # 3 MoE layers (one of them MTP) of 8 experts; 104 weights are quantized
    shares = {m.name: (m.weights, m.share) for m in computed.methods}
    assert shares == {"gptq": (80, 80 / 104), "nearest": (24, 24 / 104)}
    assert sum(m.share_numel for m in computed.methods) == pytest.approx(1)
    (reason,) = computed.reasons
    assert reason[:3] == ("nearest", "0 tokens, fewer than 160 inputs", 24)
    assert reason.example.endswith("mlp.experts.0.down_proj.weight")
    assert computed.other_reasons == 0
    assert len(computed.worst) == 10
    assert {weight.role for weight in computed.worst} == {"routed_down"}


def test_load_and_cache_have_their_extremes(measured: Path) -> None:
    computed = figures(read_sheet(measured))
    mean = (2048 + 6 * 341) / 8
    assert computed.load == [
        LayerLoad(1, 1.0, 1.0, largest_expert=0, unused=0, experts=8),
        LayerLoad(2, 2048 / mean, 0.0, largest_expert=1, unused=1, experts=8),
    ]
    assert computed.cache == [
        CacheAmax("latent_amax", 449.5, layer=2, beyond=1),  # E4M3 ends at 448
        CacheAmax("rope_amax", 7.25, layer=0, beyond=0),
    ]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("eval.json", ["perplexity, KL divergence, top-1 agreement, router flips, held-out error"]),
        ("calibration.json", ["error of each weight on calibration data"]),
        ("expert_load.json", ["tokens of each expert"]),
        ("manifest.json", ["what wrote the folder: it has no manifest.json of dstools"]),
    ],
)
def test_what_a_missing_file_would_hold_is_listed(
    name: str, missing: list[str], measured: Path
) -> None:
    assert figures(read_sheet(measured)).missing == []
    (measured / name).unlink()
    listed = [text.partition(" (")[0] for text, _ in figures(read_sheet(measured)).missing]
    assert listed == missing


def test_each_role_is_listed_once_in_the_order_of_the_families_and_unknown_ones_last() -> None:
    roles = ["b", "q_a_proj", "o_proj", "a", "embed_tokens", "o_proj"]
    assert by_model(roles) == ["embed_tokens", "o_proj", "q_a_proj", "a", "b"]
