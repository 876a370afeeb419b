"""Each engine's reading of a list of kept modules: which entry names which module."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstools_converters.verify.readings import (
    Module,
    broken_patterns,
    exact_reading,
    loose_reading,
    reading_of,
)

ATTENTION = "model.layers.2.self_attn"
Q = Module(f"{ATTENTION}.q_proj", (f"{ATTENTION}.qkv_proj",), "")
O = Module(f"{ATTENTION}.o_proj", (), "")  # noqa: E741  o_proj's module
GATE = Module("model.layers.2.mlp.gate_proj", ("model.layers.2.mlp.gate_up_proj",), "")
DOWN = Module("model.layers.2.mlp.down_proj", (), "")
EXPERT = Module("model.layers.2.mlp.experts.7.down_proj", (), experts="model.layers.2.mlp.experts")
SHARED = Module("model.layers.2.mlp.shared_experts.down_proj", (), "")


def native(*entries: str, key: str = "modules_to_not_convert") -> dict[str, Any]:
    return {"quant_method": "fp8", key: list(entries)}


def compressed(*ignore: str, targets: tuple[str, ...] = ("Linear",)) -> dict[str, Any]:
    groups = {"group_0": {"targets": list(targets)}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": list(ignore)}


# Worked out by hand from each engine's source, in the order vllm, sglang, trtllm, transformers.
NATIVE = [
    (Q, Q.name, "vstf"),
    (Q, f"{ATTENTION}.qkv_proj", "vt"),
    (Q, ATTENTION, "sf"),
    (Q, f"{ATTENTION}.", "sf"),
    (Q, "model.layers.2", "sf"),
    (Q, "model.layers.20", ""),
    (Q, "self_attn", "s"),
    (Q, "q_proj", "sf"),
    (Q, "self_attn.q_proj", "sf"),
    (Q, "layers.2.self_attn.q_proj", "sf"),
    (Q, "attn.q_proj", "f"),  # transformers compares the ends of texts
    (Q, "a_proj", ""),
    (O, "*o_proj", "t"),
    (O, "model.layers.*.self_attn", "f"),  # a regular expression for transformers alone
    (GATE, "model.layers.2.mlp.gate", ""),  # the router, and not the start of gate_proj
    (GATE, "mlp.gate", ""),
    (GATE, "gate", ""),
    (DOWN, "re:.*down_proj$", ""),  # not a form of the native list
    (EXPERT, EXPERT.name, "vs"),
    (EXPERT, EXPERT.experts, "vstf"),
    (EXPERT, "model.layers.2.mlp.experts.0.gate_proj", "vs"),  # another expert's name
    (EXPERT, "model.layers.2.mlp", "sf"),
    (EXPERT, "model.layers.20.mlp.experts", ""),
    (EXPERT, "experts", "sf"),
    (SHARED, SHARED.name, "vstf"),
    (SHARED, "model.layers.2.mlp.shared_experts", "sf"),
    (SHARED, "model.layers.2.mlp.experts", ""),
]


@pytest.mark.parametrize(("module", "entry", "readers"), NATIVE)
def test_a_native_entry_names_a_module_for_some_engines(
    module: Module, entry: str, readers: str
) -> None:
    engines = {"v": "vllm", "s": "sglang", "t": "trtllm", "f": "transformers"}
    matched = "".join(
        letter
        for letter, engine in engines.items()
        if reading_of(engine, native("lm_head", entry))(module)
    )
    assert matched == readers


COMPRESSED = [
    (Q, Q.name, "vsf"),
    (Q, f"{ATTENTION}.qkv_proj", "vs"),
    (Q, "re:.*self_attn", "vsf"),
    (Q, "re:self_attn", ""),  # matched from the start
    (Q, "self_attn.q_proj", "s"),
    (Q, "q_proj", "s"),
    (Q, ATTENTION, ""),
    (EXPERT, EXPERT.name, "vsf"),
    (EXPERT, "model.layers.2.mlp.experts.7", ""),  # a parent, as llm-compressor writes it
    (EXPERT, EXPERT.experts, ""),
]


@pytest.mark.parametrize(("module", "entry", "readers"), COMPRESSED)
def test_an_ignored_name_of_compressed_tensors_is_whole_or_a_pattern(
    module: Module, entry: str, readers: str
) -> None:
    engines = {"v": "vllm", "s": "sglang", "f": "transformers"}
    matched = "".join(
        letter
        for letter, engine in engines.items()
        if reading_of(engine, compressed("lm_head", entry))(module)
    )
    assert matched == readers


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers"])
def test_what_no_target_names_is_not_quantized(engine: str) -> None:
    reading = reading_of(engine, compressed(targets=(r"re:.*mlp\.(gate|up|down)_proj$",)))
    assert reading(Q) == "no target of config_groups names it"
    assert reading(DOWN) is None
    everything = reading_of(engine, compressed(targets=(DOWN.name, "Linear")))
    assert everything(Q) is None


@pytest.mark.parametrize(
    ("engine", "reads_first", "reads_second"),
    [
        ("vllm", True, False), ("sglang", True, False), ("transformers", False, True),
        ("trtllm", False, True),
    ],
)  # fmt: skip
def test_of_two_lists_an_engine_reads_one(
    engine: str, reads_first: bool, reads_second: bool
) -> None:
    both = native(Q.name, key="ignored_layers") | native(O.name)
    reading = reading_of(engine, both)
    assert (reading(Q) is not None, reading(O) is not None) == (reads_first, reads_second)
    beside_an_empty_one = reading_of(engine, native(key="ignored_layers") | native(O.name))
    named = f"modules_to_not_convert has {O.name!r}"
    assert beside_an_empty_one(O) == (None if engine == "sglang" else named)


NAMES = st.sampled_from(["model", "layers", "2", "12", "self_attn", "mlp", "gate", "gate_proj",
                         "q_proj", "experts"])  # fmt: skip
DOTTED = st.lists(NAMES, min_size=1, max_size=5).map(".".join)


@settings(deadline=None)
@given(DOTTED, st.lists(DOTTED | DOTTED.map(lambda name: f"{name}."), min_size=1, max_size=3))
def test_transformers_agrees_about_plain_names(name: str, entries: list[str]) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    is_kept = reading_of("transformers", native(*entries))(Module(name, (), "")) is not None
    # the dots of an entry, which are wildcards there, meet dots alone in these names
    assert is_kept == (not should_convert_module(name, entries))


@settings(deadline=None)
@given(DOTTED, st.lists(DOTTED | DOTTED.map(lambda name: f"re:{name}"), min_size=1, max_size=3))
def test_the_library_of_compressed_tensors_agrees(name: str, entries: list[str]) -> None:
    from compressed_tensors.utils.match import is_match
    from torch.nn import Linear

    is_kept = reading_of("transformers", compressed(*entries))(Module(name, (), "")) is not None
    assert is_kept == is_match(name, Linear(1, 1), entries)


@given(st.sampled_from([Q, O, GATE, DOWN, EXPERT, SHARED]), st.lists(DOTTED, max_size=3))
def test_what_every_reader_agrees_about_is_named_for_each_of_them(
    module: Module, entries: list[str]
) -> None:
    quantization = native(*entries, module.experts or module.name)
    assert exact_reading(quantization)(module)
    for engine in ("vllm", "sglang", "trtllm", "transformers"):
        assert reading_of(engine, quantization)(module)


@pytest.mark.parametrize(("module", "entry", "readers"), NATIVE)
def test_whatever_an_engine_matches_by_parts_is_meant_by_someone(
    module: Module, entry: str, readers: str
) -> None:
    if readers and entry != "attn.q_proj":  # which only transformers' ends of texts match
        reading = loose_reading(native(entry))
        is_another_expert = bool(module.experts) and entry.endswith("0.gate_proj")
        assert reading(module) or is_another_expert


@pytest.mark.parametrize(
    ("pattern", "is_broken"),
    [
        ("re:.*mlp.gate$", False), ("re:model[.]layers[.][0-9]+[.]mlp", False), ("re:(", True),
        ("re:(a+)+$", True), ("re:.*.*.*.*x", True), ("(not a pattern", False),
    ],
)  # fmt: skip
def test_a_pattern_that_may_be_slow_is_not_tried(pattern: str, is_broken: bool) -> None:
    quantization = compressed(pattern)
    assert broken_patterns(quantization) == ([pattern] if is_broken else [])
    for engine in ("vllm", "sglang", "transformers"):
        assert (reading_of(engine, quantization)(Q) is None) or not is_broken
