"""Step L5: every configuration that is shipped, compiled for sm_90a, and its figures.

The mutants of MUTATIONS are compiled, too, and a gate has to name what is wrong with each.
"""

import dataclasses
import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton, a development extra")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles in a process without TRITON_INTERPRET=1", allow_module_level=True)

import triton

from dstools_kernels.proof import compile as proof
from dstools_kernels.proof.mutate import mutate

CONFIGS = proof.configs(proof.all_twins())
GOLDEN = json.loads(proof.GOLDEN.read_text())
TWINS = "dstools_kernels.ops.triton"

# twin, what is replaced by what in its source, the configuration that is compiled, what a gate says
MUTATIONS = [
    (
        "act_quant_triton",
        "tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))",
        "(x / scale[:, None])",
        "act_quant/bf16.float32",
        "has div.full",
    ),
    (
        "act_quant_triton",
        "at = token[:, None] * columns + column[None, :]",
        "at = token[:, None] * columns + column[None, :] * 2",
        "act_quant/bf16.float32",
        "no LDG.128",
    ),
    (
        "mla_decode_triton",
        "num_warps=8",
        "num_warps=4",
        "mla_decode/bf16.64x64",
        "LDL: registers spill",
    ),
    (
        "mla_decode_triton",
        """scores = tl.dot(qr, kr.T)
            scores = tl.dot(q1, k1.T, scores)
            scores = tl.dot(q0, k0.T, scores) *""",
        """scores = tl.dot(q0, k0.T)
            scores = tl.dot(q1, k1.T, scores)
            scores = tl.dot(qr, kr.T, scores) *""",
        "mla_decode/bf16.64x64",
        "regs is 249, was 230",
    ),
    ("mla_merge_triton", "num_warps=2", "num_warps=4", "mla_merge/512", "no STG.128"),
    ("latent_pages_triton", '"*u8", 1', '"*u8", 2', "latent_pages/fp8", "no STG.128"),
    (
        "fp8_gemm_triton",
        "num_warps=shape.warps",
        "num_warps=4",
        "fp8_gemm/128x128x128.w8.s4.bf16",
        "LDL: registers spill",
    ),
    (
        "fp8_gemm_triton",
        "total += tl.dot(x.load([m, k]), w.load([n, k]).T) * scale[:, None]",
        "total = tl.dot(x.load([m, k]), w.load([n, k]).T, total)",
        "fp8_gemm/128x128x128.w8.s4.bf16",
        "0 FFMA, were 64",
    ),
    (
        "fp8_gemm_triton",
        '"group_step": "i32"',
        '"group_step": "i64"',
        "fp8_gemm/128x128x128.w8.s4.bf16",
        "params is p5 i3 l1 p2, was p5 i4 p2",
    ),
    (
        "moe_gemm_triton",
        "group_step\n        store(y_ptr, total, m, n, after, N, BLOCK_M, BLOCK_N)",
        "group_step\n        tl.make_tensor_descriptor("
        "y_ptr, [R, N], [N, 1], [BLOCK_M, BLOCK_N]).store([m, n], total.to(tl.bfloat16))",
        "moe_gemm/fp8.128x128x128.w8.s4",
        "has UTMASTG",
    ),
    ("weight_quant_triton", "num_warps=8", "num_warps=1", "weight_quant/bf16", "registers spill"),
    ("weight_quant_triton", "tl.div_rn(w, ", "tl.fdiv(w, ", "weight_quant/bf16", "has div.full"),
    ("swiglu_quant_triton", ".div_rn(gate, ", ".fdiv(gate, ", "swiglu_quant/bf16", "has div.full"),
    (
        "weight_dequant_triton",
        "(column < columns)[None, :]",
        "(column < columns - 1)[None, :]",
        "weight_dequant/bf16",
        "no STG.128",
    ),
]


def name_of(config: proof.Config) -> str:
    return str(config.kernel.fn.__name__)


def figures(**changed: Any) -> proof.Figures:
    """Return figures of a small GEMM that passes every gate, but for what is changed."""
    counts = dict.fromkeys((*proof.EXACT, *proof.CLOSE), 0)
    counts |= {"HGMMA": 40, "UTMALDG": 8, "FFMA": 100, "WARPGROUP.DEPBAR": 4}
    counts |= changed.pop("sass", {})
    fields = {"regs": 168, "stack": 0, "local": 0, "smem": 163_872, "block": 256}
    fields |= {"global_scratch": 384, "params": "p5 i3 p2", **changed}
    return {**fields, "sass": counts}  # type: ignore[typeddict-item]


# --------------------------------------------------------------------------------- what is shipped


@pytest.mark.parametrize("twin", proof.all_twins())
def test_every_twin_has_configurations_named_after_it(twin: str) -> None:
    names = list(proof.configs([twin]))
    assert names
    assert {name.partition("/")[0] for name in names} == {twin}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_configuration_passes_its_gates_and_is_as_recorded(name: str) -> None:
    compiled = proof.compile_config(CONFIGS[name])
    assert proof.gate(CONFIGS[name], compiled) == []
    assert proof.differences(compiled.figures, GOLDEN["kernels"][name]) == []


@pytest.mark.parametrize("config", {c.kernel: c for c in CONFIGS.values()}.values(), ids=name_of)
def test_sizes_of_1_compile(config: proof.Config) -> None:
    """At a launch, Triton makes a constant of an integer that is 1, as M is for a single token."""
    integers = {name for name, kind in config.signature.items() if kind in ("i32", "i64")}
    ones = integers & set(config.unaligned)
    signature = {name: kind for name, kind in config.signature.items() if name not in ones}
    constants = config.constants | dict.fromkeys(ones, 1)
    single = dataclasses.replace(config, signature=signature, constants=constants)
    assert proof.gate(single, proof.compile_config(single)) == []


def test_the_golden_file_is_of_this_triton_and_its_options_and_has_nothing_else() -> None:
    assert GOLDEN["triton"] == triton.__version__
    fusion = {config.options["enable_fp_fusion"] for config in CONFIGS.values()}
    assert fusion == {GOLDEN["fp_fusion"]}
    assert GOLDEN["kernels"].keys() == CONFIGS.keys()


@pytest.mark.parametrize(("twin", "old", "new", "name", "message"), MUTATIONS)
def test_a_gate_names_what_is_wrong_with_a_mutant(
    twin: str, old: str, new: str, name: str, message: str, tmp_path: Path
) -> None:
    mutant = mutate(import_module(f"{TWINS}.{twin}"), old, new, tmp_path)
    config = mutant.CONFIGS[name]
    compiled = proof.compile_config(config)
    wrong = proof.gate(config, compiled)
    wrong += proof.differences(compiled.figures, GOLDEN["kernels"][name])
    assert any(message in line for line in wrong), wrong


def test_an_extra_argument_is_another_launch_contract(tmp_path: Path) -> None:
    """It would shift the two hidden pointers under a launcher that was built for the old one."""
    name = "weight_dequant/bf16"
    old = "out_ptr, rows, columns):"
    twin = import_module(f"{TWINS}.weight_dequant_triton")
    mutant = mutate(twin, old, old.replace(")", ", extra)"), tmp_path)
    signature = {**CONFIGS[name].signature, "extra": "i32"}
    config = replace(CONFIGS[name], kernel=mutant.weight_dequant_kernel, signature=signature)
    wrong = proof.differences(proof.compile_config(config).figures, GOLDEN["kernels"][name])
    assert wrong == ["params is p3 i3 p2, was p3 i2 p2"]


def test_warp_specialization_that_the_compiler_ignores_is_named(tmp_path: Path) -> None:
    """With 8 warps it changes nothing and says nothing; a record that relies on it asks for it."""
    name = "fp8_gemm/128x128x128.w8.s4.bf16"
    old = "tiles_m * tiles_n, tl.num_programs(0)"
    twin = import_module(f"{TWINS}.fp8_gemm_triton")
    mutant = mutate(twin, old, f"{old}, warp_specialize=True", tmp_path)
    config = replace(mutant.CONFIGS[name], needs=("QGMMA", "setmaxnreg"))
    compiled = proof.compile_config(config)
    assert compiled.figures == GOLDEN["kernels"][name]
    assert proof.gate(config, compiled) == ["no setmaxnreg"]


def test_the_page_has_the_golden_figures() -> None:
    table = proof.TABLE.search(proof.PAGE.read_text())
    assert table is not None
    assert table[0] == proof.table(GOLDEN["kernels"]) + "\n"


# ------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stack": 96}, "stack is 96"),
        ({"local": 8}, "local is 8"),
        ({"sass": {"LDL": 35}}, "35 LDL: registers spill"),
        ({"sass": {"STL": 1}}, "1 STL: registers spill"),
        ({"regs": 168, "block": 512}, "86016 registers a block"),
        ({"smem": 232_449}, "232449 bytes of shared memory"),
        ({"sass": {"WARPGROUP.DEPBAR": 11}}, "11 waits for 40 HGMMA: serialized"),
    ],
)
def test_a_gate_fails_by_name(changed: dict[str, Any], message: str) -> None:
    config = CONFIGS["act_quant/bf16.float32"]
    bare = proof.Config(config.kernel, config.signature, config.constants, num_warps=4)
    assert proof.gate(bare, proof.Compiled(figures(), [], "")) == []
    assert proof.gate(bare, proof.Compiled(figures(**changed), [], "")) == [message]


def test_needs_and_lacks_are_looked_up_by_parts_in_sass_and_as_text_in_ptx() -> None:
    config = CONFIGS["act_quant/bf16.float32"]
    asks = proof.Config(
        config.kernel, {}, {}, 4, needs=("LDG.128", "div.rn.f32"), lacks=("LDL", "div.full")
    )
    assert proof.gate(asks, proof.Compiled(figures(), ["LDG.E.128.CONSTANT"], "div.rn.f32 ")) == []
    wrong = proof.gate(asks, proof.Compiled(figures(), ["LDG.E.64", "LDL.64"], "div.full.f32 "))
    assert wrong == ["no LDG.128", "no div.rn.f32", "has LDL", "has div.full"]


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"regs": 172}, []),
        ({"regs": 100}, []),
        ({"regs": 173}, ["regs is 173, was 168"]),
        ({"smem": 0}, ["smem is 0, was 163872"]),
        ({"params": "p5 i4 p2"}, ["params is p5 i4 p2, was p5 i3 p2"]),
        ({"global_scratch": 512}, ["global_scratch is 512, was 384"]),
        ({"sass": {"FFMA": 110}}, []),
        ({"sass": {"FFMA": 111}}, ["111 FFMA, were 100"]),
        ({"sass": {"FFMA": 89}}, ["89 FFMA, were 100"]),
        ({"sass": {"FMUL": 1}}, ["1 FMUL, were 0"]),
        ({"sass": {"UTMALDG": 9}}, ["9 UTMALDG, were 8"]),
        ({"sass": {"HGMMA": 39}}, ["39 HGMMA, were 40"]),
    ],
)
def test_differences_from_the_golden_file(changed: dict[str, Any], wrong: list[str]) -> None:
    """Zeros, matrix and TMA instructions exactly, registers +4, other counts +-10 %."""
    assert proof.differences(figures(**changed), figures()) == wrong


def test_blocks_of_an_sm_by_hand() -> None:
    """65,536 registers: 168 x 32 is 5,376 a warp, 12 warps; 228 KB: one block of 160 KB."""
    assert proof.blocks_of_sm(figures()) == 1
    assert proof.blocks_of_sm(figures(smem=0, block=128)) == 3
    assert proof.blocks_of_sm(figures(smem=0, block=128, regs=32)) == 16  # 64 warps
    assert proof.blocks_of_sm(figures(smem=0, block=32, regs=32)) == 32


def test_the_table_has_a_row_for_each_kernel_and_no_zeros() -> None:
    rows = proof.table({"b": figures(), "a": figures(regs=40)}).splitlines()
    assert rows[2].startswith("| a | 40 | 256 | 163872 | 1 | 384 | p5 i3 p2 | 40 HGMMA, 8 UTMALDG")
    assert rows[3].startswith("| b | 168 |")
    assert "LDL" not in rows[2]


# ------------------------------------------------------------------------------------- the command


def test_the_command_writes_compares_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, other = "act_quant/bf16.float32", "other/bf16"
    monkeypatch.setattr(proof, "GOLDEN", tmp_path / "sm90.json")
    proof.GOLDEN.write_text(json.dumps({"kernels": {other: figures(), "act_quant/old": figures()}}))
    page = "a\n<!-- static table -->\n{}<!-- end -->\n<!-- x -->\nb\n<!-- end -->\n"
    monkeypatch.setattr(proof, "PAGE", tmp_path / "kernels.md")
    proof.PAGE.write_text(page.format(""))
    monkeypatch.setattr(proof, "configs", lambda twins: {name: CONFIGS[name]})
    assert proof.main(["act_quant", "--write"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(f"| {name} | ")
    recorded = json.loads(proof.GOLDEN.read_text())["kernels"]
    assert recorded.keys() == {name, other}
    assert proof.PAGE.read_text() == page.format(proof.table(recorded) + "\n")
    assert proof.main(["act_quant"]) == 0
    text = proof.GOLDEN.read_text()
    proof.GOLDEN.write_text(text.replace(name, f"{name}.other"))
    assert proof.main(["act_quant"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{name}: not in the golden file",
        f"{name}.other: in the golden file alone",
    ]
    proof.GOLDEN.write_text(text.replace('"STG": ', '"STG": 9'))
    assert proof.main(["act_quant"]) == 1
    assert capsys.readouterr().err == f"{name}: 2 STG, were 92\n"
