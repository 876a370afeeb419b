"""The list of kept modules is held against the tensors, in both directions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import Finding
from dstools_converters.plan.plan import plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.verify.kept import check_kept, check_kept_by
from dstools_converters.verify.roles import check_experts

Keeping = Callable[..., Path]
ATTENTION = "model.layers.0.self_attn"
O_PROJ = f"{ATTENTION}.o_proj"
DOWN = "model.layers.1.mlp.shared_experts.down_proj"
ATTENTION_0 = [
    f"{ATTENTION}.{part}"
    for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
]
EXPERTS_1 = [
    f"model.layers.1.mlp.experts.{expert}.{part}_proj"
    for expert in range(8)
    for part in ("gate", "up", "down")
]
ENGINES = ("vllm", "sglang", "trtllm", "transformers")


def opened(folder: Path) -> Inventory:
    return require_sound(open_checkpoint(folder))


def summary(findings: Any) -> list[tuple[str, str, str]]:
    return [(f.level, f.code, f.where.rpartition(": ")[2]) for f in findings]


def only(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    return finding


@pytest.mark.parametrize(
    "entries",
    [["lm_head", O_PROJ], [O_PROJ, "model.layers.1.mlp.gate", "model.layers.0.input_layernorm"]],
)
def test_a_list_that_agrees_with_the_tensors_is_without_a_finding(
    entries: list[str], fp8_keeping: Keeping
) -> None:
    inventory = opened(fp8_keeping(O_PROJ, modules_to_not_convert=entries))
    assert list(check_kept(inventory)) == []
    for engine in ("vllm", "sglang", "trtllm"):
        assert list(check_kept_by(inventory, engine)) == []


@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
def test_a_kept_weight_that_nothing_names_is_an_error(format: str, fp8_keeping: Keeping) -> None:
    inventory = opened(fp8_keeping(O_PROJ, "model.layers.2.self_attn.o_proj", format=format))
    finding = only(check_kept(inventory))
    assert (finding.level, finding.code) == ("error", "role-kept")
    assert "is BF16 (and 1 more), but config.json does not say" in finding.message
    assert list(check_kept_by(inventory, "vllm")) == []  # not twice


@pytest.mark.parametrize(
    ("format", "entry"),
    [
        ("native", O_PROJ), ("compressed-tensors", O_PROJ),
        ("compressed-tensors", "re:.*layers[.]0[.].*o_proj"),
        ("native", "model.layers.1.mlp.experts"),
    ],
)  # fmt: skip
def test_an_fp8_weight_that_the_list_names_is_an_error(
    format: str, entry: str, fp8_keeping: Keeping
) -> None:
    key = "modules_to_not_convert" if format == "native" else "ignore"
    inventory = opened(fp8_keeping(format=format, **{key: ["lm_head", entry]}))
    findings = list(check_kept(inventory))
    assert {finding.code for finding in findings} == {"kept-quantized"}
    assert all(f.level == "error" and repr(entry) in f.message for f in findings)


@pytest.mark.parametrize(
    "entry",
    ["model.layers.0", ATTENTION, f"{ATTENTION}.", "self_attn.o_proj", "o_proj",
     "layers.0.self_attn.o_proj", "*.o_proj", f"{ATTENTION}.fused_qkv_a_proj_with_mqa"],
)  # fmt: skip
def test_an_fp8_weight_that_some_engines_match_is_a_warning(
    entry: str, fp8_keeping: Keeping
) -> None:
    inventory = opened(fp8_keeping(modules_to_not_convert=["lm_head", entry]))
    finding = only(check_kept(inventory))
    assert (finding.level, finding.code) == ("warning", "kept-quantized")
    assert repr(entry) in finding.message


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("model.layers.0.self_attn", {"sglang", "transformers"}),
        (O_PROJ, set(ENGINES)),
        ("*o_proj", {"trtllm"}),
    ],
)
def test_an_engine_that_takes_fp8_for_kept_is_named(
    entry: str, wrong: set[str], fp8_keeping: Keeping
) -> None:
    inventory = opened(fp8_keeping(modules_to_not_convert=[entry]))
    exact = {f.code for f in check_kept(inventory) if f.level == "error"}
    for engine in ENGINES:
        codes = {f.code for f in check_kept_by(inventory, engine)} | exact
        assert bool(codes) == (engine in wrong), engine


@pytest.mark.parametrize(
    ("entries", "right"),
    [
        ([ATTENTION], {"sglang", "transformers"}),
        ([f"{ATTENTION}."], {"sglang", "transformers"}),
        (ATTENTION_0, set(ENGINES)),
        ([module.removeprefix("model.") for module in ATTENTION_0], {"sglang", "transformers"}),
        (["*self_attn*"], {"trtllm"}),
    ],
)
def test_kept_weights_named_by_a_part_are_a_note_and_an_error_for_some_engines(
    entries: list[str], right: set[str], fp8_keeping: Keeping
) -> None:
    is_everywhere = entries == ["*self_attn*"]
    modules = [
        name.replace("layers.0", f"layers.{layer}")
        for layer in (range(4) if is_everywhere else [0])
        for name in ATTENTION_0
    ]
    inventory = opened(fp8_keeping(*modules, modules_to_not_convert=entries))
    levels = {finding.level for finding in check_kept(inventory)}
    assert levels == (set() if entries == ATTENTION_0 else {"note"})
    for engine in ENGINES:
        findings = list(check_kept_by(inventory, engine))
        assert (findings == []) == (engine in right), engine
        assert all(f.level == "error" and engine in f.message for f in findings)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "entries", [["model.layers.1.mlp.experts"], EXPERTS_1], ids=["the module", "each expert"]
)
def test_a_layer_s_kept_experts_may_be_named_once_or_each(
    entries: list[str], engine: str, fp8_keeping: Keeping
) -> None:
    inventory = opened(fp8_keeping(*EXPERTS_1, modules_to_not_convert=entries))
    assert list(check_kept(inventory)) == []
    assert list(check_kept_by(inventory, engine)) == []


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_one_expert_s_name_makes_its_layer_unquantized(engine: str, fp8_keeping: Keeping) -> None:
    """Where the expert is kept, check_experts says what is wrong, and that a list cannot mend."""
    named = opened(fp8_keeping(modules_to_not_convert=[EXPERTS_1[0]]))
    assert "is FP8 (and 22 more)" in only(check_kept_by(named, engine)).message
    kept = opened(fp8_keeping(EXPERTS_1[0], modules_to_not_convert=[EXPERTS_1[0]]))
    assert list(check_kept_by(kept, engine)) == []
    assert only(check_experts(kept, engine)).code == "experts-apart"


def test_two_lists_that_differ_are_an_error(fp8_keeping: Keeping) -> None:
    lists = {"ignored_layers": ["lm_head"], "modules_to_not_convert": ["lm_head", O_PROJ]}
    findings = list(check_kept(opened(fp8_keeping(O_PROJ, **lists))))
    assert [(f.level, f.code, f.where) for f in findings] == [
        ("error", "kept-lists", "config.json")
    ]
    assert f"names {O_PROJ} as not quantized" in findings[0].message
    assert "ignored_layers" in findings[0].message
    assert "modules_to_not_convert" in findings[0].message
    same = {"ignored_layers": ["lm_head", O_PROJ], "modules_to_not_convert": [O_PROJ, "lm_head"]}
    assert list(check_kept(opened(fp8_keeping(O_PROJ, **same)))) == []


def test_two_lists_that_differ_about_no_weight_are_right(fp8_keeping: Keeping) -> None:
    lists = {"ignored_layers": ["lm_head"], "modules_to_not_convert": ["lm_head", "model.norm"]}
    assert list(check_kept(opened(fp8_keeping(**lists)))) == []


def test_a_key_that_the_format_lacks_names_nothing(fp8_keeping: Keeping) -> None:
    native = opened(fp8_keeping(O_PROJ, ignore=[O_PROJ]))
    assert only(check_kept(native)).code == "role-kept"
    compressed = fp8_keeping(
        O_PROJ, format="compressed-tensors", ignore=[], modules_to_not_convert=[O_PROJ]
    )
    assert only(check_kept(opened(compressed))).code == "role-kept"


def test_whether_a_pattern_that_is_too_slow_names_a_weight_is_not_known(
    fp8_keeping: Keeping,
) -> None:
    slow = "re:.*layers.*self.*attn.*o_proj"
    inventory = opened(fp8_keeping(O_PROJ, format="compressed-tensors", ignore=[slow]))
    levels = {(finding.level, finding.code) for finding in check_kept(inventory)}
    assert levels == {("warning", "ignore-pattern"), ("warning", "role-kept")}
    tried = "re:.*layers.*self_attn.*_proj.*"  # what ends with .* ends anywhere
    inventory = opened(fp8_keeping(*ATTENTION_0, format="compressed-tensors", ignore=[tried]))
    assert "ignore-pattern" not in {finding.code for finding in check_kept(inventory)}


def test_a_list_that_only_vllm_and_sglang_read_leaves_the_others_without(
    fp8_keeping: Keeping,
) -> None:
    inventory = opened(fp8_keeping(O_PROJ, ignored_layers=[O_PROJ]))
    assert list(check_kept(inventory)) == []
    for engine in ENGINES:
        assert bool(list(check_kept_by(inventory, engine))) == (
            engine in ("trtllm", "transformers")
        )


def test_parents_that_llm_compressor_ignores_are_not_their_fp8_children(
    fp8_keeping: Keeping,
) -> None:
    parents = ["model.layers.1.mlp.experts.0", "model.layers.1.mlp", "lm_head"]
    inventory = opened(fp8_keeping(format="compressed-tensors", ignore=parents))
    assert list(check_kept(inventory)) == []
    for engine in ("vllm", "sglang", "transformers"):
        assert list(check_kept_by(inventory, engine)) == []


def test_targets_say_what_is_kept_and_what_is_not(fp8_keeping: Keeping) -> None:
    attention = [m.replace("layers.0", f"layers.{n}") for n in range(4) for m in ATTENTION_0]
    options = {"format": "compressed-tensors", "ignore": ["lm_head"]}
    mlp_alone = {"targets": [r"re:.*mlp\.(.*)(gate|up|down)_proj$"]}
    assert list(check_kept(opened(fp8_keeping(*attention, **options, **mlp_alone)))) == []
    findings = list(check_kept(opened(fp8_keeping(**options, **mlp_alone))))
    assert findings
    assert all("no target of config_groups names it" in f.message for f in findings)
    assert all(f.level == "error" for f in findings)


@pytest.mark.parametrize(
    ("kept", "quantization"),
    [
        ([O_PROJ], {}),
        ([], {"modules_to_not_convert": [O_PROJ]}),
        (ATTENTION_0, {"modules_to_not_convert": [ATTENTION]}),
        (EXPERTS_1, {"ignored_layers": [EXPERTS_1[0]]}),
        ([O_PROJ], {"ignored_layers": ["lm_head"], "modules_to_not_convert": [O_PROJ]}),
        ([O_PROJ], {"format": "compressed-tensors", "ignore": ["self_attn.o_proj"]}),
    ],
)
def test_what_the_hint_says_mends_every_disagreement(
    kept: list[str], quantization: dict[str, Any], fp8_keeping: Keeping, sparse: Callable[..., Path]
) -> None:
    inventory = opened(fp8_keeping(*kept, **quantization))
    before = [*check_kept(inventory), *(f for e in ENGINES for f in check_kept_by(inventory, e))]
    assert any("quantize this folder into another" in finding.hint for finding in before)
    assert inventory.scheme is not None
    plan = plan_quantize(inventory, Recipe(), inventory.scheme.format, None)
    shards = {
        shard.name: {
            part.name: (part.dtype, list(part.shape))
            for tensor in shard.tensors
            for part in tensor.target.parts
        }
        for shard in plan.shards
    }
    mended = opened(sparse(plan.config, shards))
    assert list(check_kept(mended)) == []
    for engine in ENGINES[:3]:
        assert list(check_kept_by(mended, engine)) == []


def test_a_checkpoint_that_is_not_quantized_has_no_list(tiny: Path) -> None:
    assert list(check_kept(opened(tiny))) == []


NO_LIST = {"quantization": {"quant_algo": "FP8_BLOCK_SCALES"}}
ATTENTION_1 = {"quantization": {"exclude_modules": ["lm_head", "model.layers.1.self_attn*"]}}


@pytest.mark.parametrize(
    ("kept", "file", "content", "has"),
    [
        ([], "hf_quant_config.json", ATTENTION_1, "exclude_modules"),
        (
            [O_PROJ],
            "hf_quant_config.json",
            {"quantization": {"exclude_modules": []}},
            "config.json",
        ),
        ([O_PROJ], "quant_config.json", {"modules_to_not_convert": ["lm_head"]}, "config.json"),
        ([O_PROJ], "quant_config.json", {"modules_to_not_convert": [O_PROJ]}, ""),
        ([], "quant_config.json", {"modules_to_not_convert": ["lm_head"]}, ""),
        ([O_PROJ], "quant_config.json", {"modules_to_not_convert": None}, ""),
        ([O_PROJ], "hf_quant_config.json", NO_LIST, ""),
        ([O_PROJ], "hf_quant_config.json", [], ""),
    ],
)
def test_a_file_beside_with_another_list_is_named_with_both_places_and_a_module(
    kept: list[str], file: str, content: Any, has: str, fp8_keeping: Keeping
) -> None:
    folder = fp8_keeping(*kept, modules_to_not_convert=kept)
    (folder / file).write_text(json.dumps(content))
    findings = list(check_kept(opened(folder)))
    if not has:
        assert findings == []
        return
    (finding,) = findings
    assert (finding.level, finding.code, finding.where) == ("warning", "kept-lists", file)
    assert f"{has} names model.layers." in finding.message
    assert {"exclude_modules", "modules_to_not_convert"} & set(finding.message.split())
    assert "config.json" in finding.message
    assert f"remove {file}" in finding.hint
    (folder / file).unlink()
    assert list(check_kept(opened(folder))) == []
