import json
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.ranks import Part, Ranks, require_divisible, require_whole_blocks
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import Model, read_model

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3" / "config.json"


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
        require_divisible(model(**changes), ranks)


def test_the_hint_names_numbers_that_divide() -> None:
    with pytest.raises(DstoolsError) as caught:
        require_divisible(model(), Ranks(ep=3))
    assert caught.value.hint == "16 is divided by 2, 4, 8, 16"


def test_a_slice_off_the_grid_of_scales_is_refused_by_name() -> None:
    require_whole_blocks("a.weight", Part(0, 128, 256))
    require_whole_blocks("a.weight", None)
    with pytest.raises(DstoolsError, match=r"a.weight: \[64, 128\) of dimension 1"):
        require_whole_blocks("a.weight", Part(1, 64, 128))
