"""A recipe does what it says, or is refused with the nearest thing that would be understood."""

from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import HUGGING_FACE, TensorName
from dstools_converters.plan.recipe import KEEP, QUANTIZE, Recipe, Rule, read_recipe

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(4)),
    "model.layers.0.mlp.gate_proj.weight",
    *(f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2)),
    "model.layers.1.mlp.gate.e_score_correction_bias",
    *(f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in range(3)),
    "model.layers.1.mlp.shared_experts.down_proj.weight",
    "model.layers.3.eh_proj.weight",
    "lm_head.weight",
    "vision.tower.weight",
]
THERE: list[tuple[str, TensorName | None]] = [(name, HUGGING_FACE.parse(name, 3)) for name in NAMES]


NOT_LAYERS = ("", "a", "0-", "-3", "0-3-5", "0,,3", "0;3", "1.5", 1.5, -1, True, [1], "9" * 10)


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "fp8.toml"
    path.write_text(text)
    return read_recipe(path)


def decisions(recipe: Recipe) -> dict[str, str]:
    return {name: recipe.decide(name, parsed).label for name, parsed in THERE}


def rule(**found: Any) -> str:
    lines = [f"{key} = {value!r}".replace("True", "true") for key, value in found.items()]
    return "\n".join(["[[rule]]", *lines, ""])


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    text = """
        format = "compressed-tensors"
        scale_fmt = "ue8m0"
        [[rule]]
        role = ["routed_down", "shared_down"]
        layers = "0-3, 60"
        scheme = "keep"
        [[rule]]
        name = "model.layers.*.self_attn.*"
        role = "o_proj"
        layers = 2
        scheme = "fp8-block"
    """
    assert read(tmp_path, text) == Recipe(
        (
            Rule("fp8.toml, rule 1", "keep", ("routed_down", "shared_down"), ((0, 3), (60, 60))),
            Rule(
                "fp8.toml, rule 2",
                "fp8-block",
                ("o_proj",),
                ((2, 2),),
                "model.layers.*.self_attn.*",
            ),
        ),
        "compressed-tensors",
        "ue8m0",
    )
    assert read(tmp_path, "") == Recipe()


def test_without_rules_deepseek_s_own_decide() -> None:
    quantized = [
        name for name in NAMES if any(f".{side}_proj" in name for side in ("o", "gate", "down"))
    ]
    assert decisions(Recipe()) == dict.fromkeys(NAMES, "DeepSeek's own")
    assert [n for n, parsed in THERE if Recipe().decide(n, parsed) is QUANTIZE] == quantized
    assert (
        Recipe().decide(
            "model.layers.0.self_attn.q_proj.bias",
            HUGGING_FACE.parse("model.layers.0.self_attn.q_proj.bias", 3),
        )
        is KEEP
    )


@pytest.mark.parametrize(
    ("found", "matched"),
    [
        (
            {"role": "routed_down"},
            [f"model.layers.1.mlp.experts.{i}.down_proj.weight" for i in range(3)],
        ),
        (
            {"role": ["router"]},
            ["model.layers.1.mlp.gate.weight", "model.layers.2.mlp.gate.weight"],
        ),
        ({"role": "router", "layers": 2}, ["model.layers.2.mlp.gate.weight"]),
        (
            {"role": "o_proj", "layers": "0-1,3"},
            [f"model.layers.{i}.self_attn.o_proj.weight" for i in (0, 1, 3)],
        ),
        (
            {"role": ["o_proj", "router"], "layers": "2"},
            ["model.layers.2.self_attn.o_proj.weight", "model.layers.2.mlp.gate.weight"],
        ),
        (
            {"layers": "3"},
            ["model.layers.3.self_attn.o_proj.weight", "model.layers.3.eh_proj.weight"],
        ),
        (
            {"name": "*.experts.[02].*"},
            [f"model.layers.1.mlp.experts.{i}.down_proj.weight" for i in (0, 2)],
        ),
        ({"name": "vision.*"}, ["vision.tower.weight"]),
        ({"name": "lm_head.weight"}, ["lm_head.weight"]),
        (
            {"name": "model.layers.?.mlp.gate.weight"},
            ["model.layers.1.mlp.gate.weight", "model.layers.2.mlp.gate.weight"],
        ),
        ({"role": "e_score_correction_bias"}, ["model.layers.1.mlp.gate.e_score_correction_bias"]),
    ],
)
def test_a_rule_speaks_of_what_it_names_and_of_nothing_else(
    tmp_path: Path, found: dict[str, Any], matched: list[str]
) -> None:
    recipe = read(tmp_path, rule(**found, scheme="keep"))
    assert [n for n, label in decisions(recipe).items() if label == "fp8.toml, rule 1"] == matched
    recipe.check_all_match(THERE)


def test_a_role_is_its_weight_and_never_its_bias() -> None:
    of_role = Rule("r", "fp8-block", ("q_proj",))
    for part, wanted in (("weight", of_role), ("bias", KEEP)):
        name = f"model.layers.0.self_attn.q_proj.{part}"
        assert Recipe((of_role,)).decide(name, HUGGING_FACE.parse(name, 1)) is wanted


def test_the_first_rule_that_matches_decides(tmp_path: Path) -> None:
    first, second = (
        rule(role="o_proj", layers="1", scheme="fp8-block"),
        rule(role="o_proj", scheme="keep"),
    )
    name = "model.layers.1.self_attn.o_proj.weight"
    parsed = HUGGING_FACE.parse(name, 3)
    assert read(tmp_path, first + second).decide(name, parsed).scheme == "fp8-block"
    assert read(tmp_path, second + first).decide(name, parsed).scheme == "keep"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("rule = [", "Invalid value", "a recipe is TOML"),
        ("\0", "Invalid statement", "a recipe is TOML"),
        ("a = 1\na = 1", "Cannot overwrite a value", "a recipe is TOML"),
        ("formt = 'native'", "formt: no such key", "did you mean format"),
        ("rules = []", "rules: no such key", "did you mean rule"),
        ("[zzz]", "zzz: no such key", "known are format, scale_fmt, rule"),
        ('"\\u001b[2J" = 1', "\\x1b[2J: no such key", "known are"),
        ("rule = 5", "rule: is not a list", "[[rule]]"),
        ("rule = [5]", "rule[0]: is not a table", ""),
        ("[rule]\nscheme = 'keep'", "rule: is not a list", "[[rule]]"),
        ("format = 'nativ'", "format: 'nativ' is none of", "did you mean native"),
        ("format = 'fp8'", "format: 'fp8' is none of", "known are native, compressed-tensors"),
        ("format = 1", "format: 1 is none of", "known are native, compressed-tensors"),
        ("scale_fmt = 'ue8m'", "scale_fmt: 'ue8m' is none of", "did you mean ue8m0"),
        (rule(roles="q_proj", scheme="keep"), "rule 1: roles: no such key", "did you mean role"),
        (
            rule(role="routed_dwn", scheme="keep"),
            "role[0]: 'routed_dwn' is none of",
            "did you mean routed_down",
        ),
        (
            rule(role=["q_proj", "k_pro"], scheme="keep"),
            "role[1]: 'k_pro' is none of",
            "did you mean k_proj",
        ),
        (rule(role=7, scheme="keep"), "role: is not a list", "[ ]"),
        (rule(role=[["q_proj"]], scheme="keep"), "role[0]: ['q_proj'] is none of", "did you mean"),
        (rule(role="q_proj"), "rule 1: scheme: is missing", "one of fp8-block, keep"),
        (rule(role="q_proj", scheme="kep"), "scheme: 'kep' is none of", "did you mean keep"),
        (rule(role="q_proj", scheme="fp8"), "scheme: 'fp8' is none of", "did you mean fp8-block"),
        (
            rule(role="q_proj", scheme="int4"),
            "scheme: 'int4' is none of",
            "known are fp8-block, keep",
        ),
        (rule(scheme="keep"), "rule 1: names no tensors", "add role, layers or name"),
        (rule(role=[], name="", scheme="keep"), "names no tensors", "add role, layers or name"),
        (rule(name=5, scheme="keep"), "name: 5 is not text", "give it text"),
        (rule(role="q_proj", scheme="keep") + rule(scheme="keep"), "rule 2: names no tensors", ""),
        *(
            (rule(layers=layers, scheme="keep"), "does not name layers", '"0-3,60"')
            for layers in NOT_LAYERS
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_the_nearest_that_is(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(DstoolsError) as error:
        read(tmp_path, text)
    assert "fp8.toml" in str(error.value)
    assert message in str(error.value)
    assert hint in error.value.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"none\.toml: no such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(DstoolsError, match=r"latin\.toml: "):
        read_recipe(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        ({"role": "routed_gate"}, "the nearest role in this checkpoint is routed_down"),
        (
            {"role": "indexer_wq_b"},
            "known are dense_gate, e_score_correction_bias, eh_proj, embed_tokens",
        ),
        ({"role": ["q_a_proj", "shared_up"]}, "the nearest role in this checkpoint is o_proj"),
        ({"layers": "4-9"}, "the layers of this checkpoint are 0-3"),
        ({"role": "router", "layers": "0,3"}, "the layers of this checkpoint are 0-3"),
        ({"layers": "3-2"}, "the layers of this checkpoint are 0-3"),
        ({"role": "embed_tokens", "layers": 0}, "the layers of this checkpoint are 0-3"),
        (
            {"name": "model.layers.*.mlp.gate_prj.weight"},
            "the nearest tensor is model.layers.0.mlp.gate_proj.weight",
        ),
        (
            {"name": "model.layers.9.self_attn.o_proj.weight"},
            "the nearest tensor is model.layers.3.self_attn.o_proj.weight",
        ),
        ({"name": "lm_head"}, "the nearest tensor is lm_head.weight"),
        ({"name": "MODEL.EMBED_TOKENS.WEIGHT"}, "known are "),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_the_nearest(
    tmp_path: Path, found: dict[str, Any], hint: str
) -> None:
    recipe = read(tmp_path, rule(role="router", scheme="keep") + rule(**found, scheme="keep"))
    with pytest.raises(DstoolsError, match=r"^fp8\.toml, rule 2: matches no tensor$") as error:
        recipe.check_all_match(THERE)
    assert error.value.hint.startswith(hint)
