import json
import re
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.ranks import Part, Ranks, require_divisible
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import Model, read_model

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3" / "config.json"
NO_CODES = frozenset[TensorName]()
ODD = {"num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 256}


def model(**changes: object) -> Model:
    return read_model(json.loads(SAMPLE.read_text()) | changes)


def test_tp_slices_rows_of_what_comes_in_and_columns_of_what_goes_out() -> None:
    tp = Ranks(tp=4)
    assert tp.part(TensorName("q_b_proj", "weight", 0), (384, 128), 3) == Part(0, 288, 384)
    assert tp.part(TensorName("o_proj", "weight", 0), (256, 128), 1) == Part(1, 32, 64)
    assert tp.part(TensorName("kv_a_proj_with_mqa", "weight", 0), (192, 256), 1) is None
    assert tp.part(TensorName("router", "weight", 1), (16, 256), 1) is None


def test_experts_are_sliced_by_tp_alone_and_dealt_by_ep() -> None:
    name = TensorName("routed_up", "weight", 1, 5)
    assert Ranks(tp=2).part(name, (40, 256), 1) == Part(0, 20, 40)
    assert Ranks(tp=2, ep=2).part(name, (40, 256), 1) is None
    assert Ranks(tp=2).experts(16, 1) == range(16)
    assert Ranks(ep=4).experts(16, 3) == range(12, 16)


def test_the_parts_of_all_ranks_are_the_weight() -> None:
    tp = Ranks(tp=4)
    for name, shape, _ in model().kinds():
        parts = [tp.part(name, shape, rank) for rank in range(4)]
        if parts[0] is not None:
            spans = [(part.begin, part.end) for part in parts if part is not None]
            assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == shape[parts[0].dim]


@pytest.mark.parametrize(
    ("ranks", "changes", "words"),
    [
        (Ranks(tp=3), {}, "--tp 3: does not divide num_attention_heads, 4"),
        (Ranks(ep=3), {}, "--ep 3: does not divide n_routed_experts, 16"),
        (Ranks(tp=2, ep=4), {}, "--tp 2 --ep 4: they must be equal"),
        (Ranks(ep=2), {"n_routed_experts": None}, "--ep 2: the model has no experts"),
        (Ranks(tp=4), {"intermediate_size": 386}, r"mlp.gate_proj.weight, \[386, 256\]"),
        (Ranks(tp=2), {"attention_bias": True}, "attention_bias"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    ranks: Ranks, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(DstoolsError, match=words):
        require_divisible(model(**changes), ranks, NO_CODES)


@pytest.mark.parametrize(
    ("ranks", "changes", "hint"),
    [
        # 4 heads, MLPs of 384, experts of 40
        (Ranks(tp=3), {}, "this model is divided by --tp 2, 4"),
        (Ranks(ep=3), {}, "this model is divided by --ep 2, 4, 8, 16"),
        (Ranks(tp=8, ep=8), {}, "this model is divided by --tp and --ep 2, 4"),
        (Ranks(ep=3), {"n_routed_experts": 67}, "leave --ep out: no number up to 64 divides this"),
        (
            Ranks(tp=2),
            ODD,
            "leave --tp out: no number up to 64 divides this model; with --ep alone",
        ),
        (Ranks(tp=3), ODD, "with --ep alone, this model is divided by --ep 2, 4, 8, 16"),
        (Ranks(tp=2), ODD | {"n_routed_experts": None}, "no number up to 64 divides this model"),
    ],
)
def test_a_hint_names_ranks_that_divide_all_of_the_model(
    ranks: Ranks, changes: dict[str, object], hint: str
) -> None:
    with pytest.raises(DstoolsError) as caught:
        require_divisible(model(**changes), ranks, NO_CODES)
    assert hint in caught.value.hint
    found = re.findall(r"(?<= )\d+(?=,|$)", caught.value.hint)
    for count in map(int, found):  # and work when they are followed
        by_ep = ranks.ep > 1 or "alone" in caught.value.hint
        by_tp = ranks.tp > 1 and "alone" not in caught.value.hint
        require_divisible(
            model(**changes), Ranks(count if by_tp else 1, count if by_ep else 1), NO_CODES
        )


def test_a_slice_off_the_grid_of_scales_is_refused_by_name() -> None:
    coded = frozenset({TensorName("dense_gate", "weight", 0), TensorName("dense_up", "weight", 0)})
    wide = model(intermediate_size=512)
    require_divisible(wide, Ranks(tp=4), coded)  # 128 rows of each
    with pytest.raises(
        DstoolsError, match=r"mlp\.gate_proj\.weight, 96 of dimension 0, .* blocks of 128"
    ) as caught:
        require_divisible(model(), Ranks(tp=4), coded)  # of 384
    assert caught.value.hint.endswith("with --ep alone, this model is divided by --ep 2, 4, 8, 16")
