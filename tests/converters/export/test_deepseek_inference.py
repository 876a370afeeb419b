"""The files of each rank are those of DeepSeek's own conversion, rewritten here in plain torch."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.export import deepseek_inference
from dstools_converters.export.deepseek_inference import Plan, plan_shards, write_shards
from dstools_converters.export.ranges import Piece

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
State = dict[str, torch.Tensor]
# In FP8, 4 ranks of this model have whole blocks of scales: heads, latents and experts of 128.
FOUR_RANKS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "n_shared_experts": 2,
}


@pytest.fixture(scope="session")
def wide(make_checkpoint: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in FP8, its scales in a shard of their own, that 4 ranks divide."""
    folder = tmp_path_factory.mktemp("wide") / "in"
    with pytest.MonkeyPatch.context() as patch:
        config = make_checkpoint.CONFIGS["tiny-aligned"] | FOUR_RANKS
        patch.setitem(make_checkpoint.CONFIGS, "tiny-wide", config)
        make_checkpoint.make("tiny-wide", folder, fp8="float32", scales_apart=True)
    return folder


def plan_of(folder: Path, ranks: int, *, mtp: bool = False) -> Plan:
    return plan_shards(require_sound(open_checkpoint(folder)), ranks, mtp=mtp)


def export(folder: Path, out: Path, ranks: int, *, mtp: bool = False, **options: Any) -> Plan:
    plan = plan_of(folder, ranks, mtp=mtp)
    write_shards(plan, out, {"tokenizer.json": b"{}"}, tool="dstools test", **options)
    return plan


def whole(folder: Path) -> State:
    state: State = {}
    for path in folder.glob("*.safetensors"):
        state |= load_file(path)
    return state


def converted(source: State, ranks: int, experts: int, mtp_layer: int) -> list[State]:
    """Rewritten from main() of convert.py; the layer that it skips is told by its number."""
    dims = {
        "embed_tokens": ("embed", 0), "input_layernorm": ("attn_norm", None),
        "post_attention_layernorm": ("ffn_norm", None), "q_proj": ("wq", 0),
        "q_a_proj": ("wq_a", None), "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
        "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None),
        "kv_b_proj": ("wkv_b", 0), "o_proj": ("wo", 1), "gate": ("gate", None),
        "gate_proj": ("w1", 0), "down_proj": ("w2", 1), "up_proj": ("w3", 0),
        "norm": ("norm", None), "lm_head": ("head", 0),
    }  # fmt: skip
    states: list[State] = [{} for _ in range(ranks)]
    for name, tensor in source.items():
        if f"model.layers.{mtp_layer}." in name:
            continue
        name = name.removeprefix("model.").replace("self_attn", "attn").replace("mlp", "ffn")
        name = name.replace("weight_scale_inv", "scale").replace("e_score_correction_bias", "bias")
        module = name.split(".")[-2]
        renamed, dim = dims[module]
        name = name.replace(module, renamed)
        for rank, state in enumerate(states):
            if "experts" in name and "shared_experts" not in name:
                if int(name.split(".")[-3]) // (experts // ranks) == rank:
                    state[name] = tensor
            else:
                state[name] = tensor if dim is None else tensor.chunk(ranks, dim)[rank]
    return states


def assert_same(path: Path, wanted: State) -> None:
    """Names, dtypes, shapes and bytes."""
    got = load_file(path)
    assert got.keys() == wanted.keys()
    for name, tensor in got.items():
        same = wanted[name].contiguous()
        assert (tensor.dtype, tensor.shape) == (same.dtype, same.shape), name
        assert torch.equal(tensor.view(torch.uint8), same.view(torch.uint8)), name


CASES = {  # what is converted -> the ranks that divide it
    "sample": (1, 2, 4),
    "sample in FP8": (1,),  # its shared experts have 40 rows
    "wide": (1, 2, 4),
    "tiny-v2": (1, 2),
    "tiny-v2-lite": (2,),
}


@pytest.fixture
def source_of(
    wide: Path, quantized: Callable[[Path], Path], checkpoint: Callable[..., Path]
) -> Callable[[str], Path]:
    def get(name: str) -> Path:
        if name.startswith("sample"):
            return quantized(SAMPLE) if "FP8" in name else SAMPLE
        return wide if name == "wide" else checkpoint(name)

    return get


@pytest.mark.parametrize(("name", "ranks"), [(n, r) for n, its in CASES.items() for r in its])
def test_every_rank_has_what_deepseek_s_conversion_gives_it(
    name: str, ranks: int, tmp_path: Path, source_of: Callable[[str], Path]
) -> None:
    folder = source_of(name)
    config = json.loads((folder / "config.json").read_text())
    export(folder, tmp_path / "out", ranks)
    states = converted(
        whole(folder), ranks, config["n_routed_experts"], config["num_hidden_layers"]
    )
    for rank, state in enumerate(states):
        assert_same(tmp_path / "out" / f"model{rank}-mp{ranks}.safetensors", state)
    assert len(list((tmp_path / "out").iterdir())) == ranks + 3  # config, tokenizer, hashes


def test_a_column_slice_larger_than_the_buffer_is_the_same(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(wide, tmp_path / "one", 2)
    monkeypatch.setattr("dstools_converters.export.ranges.PIECE_BYTES", 1000)
    export(wide, tmp_path / "other", 2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@pytest.mark.parametrize("ranks", [1, 2])
def test_mtp_is_written_on_request_into_files_of_its_own(
    ranks: int, wide: Path, tmp_path: Path
) -> None:
    """The same mapping; what it lacks has the name of the checkpoint."""
    export(wide, tmp_path / "without", ranks)
    export(wide, tmp_path / "with", ranks, mtp=True)
    names = [f"{kind}{rank}-mp{ranks}.safetensors" for kind in ("model", "mtp")
             for rank in range(ranks)]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "with").glob("*.safetensors")) == names
    for name in names[:ranks]:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    source = whole(wide)
    layer = {n: t for n, t in source.items() if n.startswith("model.layers.3.")}
    extras = {"eh_proj": None, "enorm": None, "hnorm": None, "shared_head.norm": None,
              "shared_head.head": 0}  # fmt: skip
    decoder = {n: t for n, t in layer.items() if not re.search("enorm|hnorm|eh_proj|shared_h", n)}
    states = converted(decoder, ranks, 8, -1)
    for rank, state in enumerate(states):
        for extra, dim in extras.items():
            tensor = layer[f"model.layers.3.{extra}.weight"]
            state[f"layers.3.{extra}.weight"] = (
                tensor if dim is None else tensor.chunk(ranks, dim)[rank]
            )
        assert "layers.3.embed.weight" in state
        assert_same(tmp_path / "with" / names[ranks + rank], state)


def test_a_tied_model_gets_the_head_that_deepseek_s_code_reads(
    tmp_path: Path, make_checkpoint: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_checkpoint.CONFIGS["tiny-v2"] | {"tie_word_embeddings": True}
    monkeypatch.setitem(make_checkpoint.CONFIGS, "tiny-tied", config)
    make_checkpoint.make("tiny-tied", tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out", 2)
    embeddings = whole(tmp_path / "in")["model.embed_tokens.weight"]
    for rank in range(2):
        state = load_file(tmp_path / "out" / f"model{rank}-mp2.safetensors")
        assert torch.equal(state["head.weight"], embeddings.chunk(2)[rank])


def test_the_tokenizer_and_the_config_stand_beside(tmp_path: Path) -> None:
    plan = export(SAMPLE, tmp_path / "out", 1)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"{}"
    config = json.loads((tmp_path / "out" / "inference_config.json").read_text())
    assert (config["dim"], config["n_layers"], config["dtype"]) == (256, 4, "bf16")
    assert "bias at dim 7168 alone; this model, of dim 256, needs one" in plan.note


def test_tensors_of_no_known_role_are_named_and_not_written(
    tmp_path: Path, checkpoint: Callable[..., Path], headers: Any, sparse: Any
) -> None:
    config, shards = headers(checkpoint("tiny-v2"))
    next(iter(shards.values()))["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", [64])
    plan = plan_of(sparse(config, shards), 1)
    assert plan.left_out == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert not [s for file in plan.files for s in file.slices if "inv_freq" in s.target.name]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        ("tiny", 4, "config.json: num_attention_heads 2 cannot be divided among 4 ranks"),
        ("tiny-llama", 1, "model_type 'llama' is not run by"),
        ("tiny-v32", 1, "model_type 'deepseek_v32' is not run by"),
    ],
)
def test_a_model_that_the_ranks_or_deepseek_s_code_cannot_take_is_refused(
    kind: str, ranks: int, message: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(DstoolsError, match=re.escape(message)) as caught:
        plan_of(checkpoint(kind), ranks)
    assert caught.value.hint
    if ranks > 1:
        assert caught.value.hint == "this model is divided by --tp 2"
        assert plan_of(checkpoint(kind), 2).files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_routed_experts": 6, "n_group": 1, "topk_group": 1}, "n_routed_experts 6"),
        ({"vocab_size": 1022}, "vocab_size 1022"),
        ({"intermediate_size": 642}, "mlp.down_proj.weight: its 642 columns cannot be"),
    ],
)
def test_sizes_that_the_ranks_do_not_divide_are_named(
    change: dict[str, Any],
    message: str,
    make_checkpoint: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = make_checkpoint.CONFIGS["tiny-v2"] | FOUR_RANKS | change
    monkeypatch.setitem(make_checkpoint.CONFIGS, "tiny-odd", config)
    make_checkpoint.make("tiny-odd", tmp_path / "in")
    with pytest.raises(DstoolsError, match=re.escape(message)):
        plan_of(tmp_path / "in", 4)


def test_slices_that_do_not_begin_at_a_block_of_scales_are_refused_by_name(
    quantized: Callable[[Path], Path], tiny_fp8: Path
) -> None:
    with pytest.raises(DstoolsError, match=r"layers\.0\.mlp\.\w+\.weight: its 384 .* 128") as error:
        plan_of(quantized(SAMPLE), 2)
    assert "dequantize" in error.value.hint
    with pytest.raises(DstoolsError, match=r"its 336 (rows|columns) cannot be divided"):
        plan_of(tiny_fp8, 2)
    assert plan_of(tiny_fp8, 1).files  # ragged blocks are in one piece


def test_fp8_that_is_not_deepseek_s_is_refused_by_name(
    checkpoint: Callable[..., Path], headers: Any, sparse: Any, fp8_keeping: Any
) -> None:
    kept = fp8_keeping("model.layers.1.self_attn.o_proj")
    with pytest.raises(DstoolsError, match=r"o_proj\.weight: is BF16, and .* reads FP8"):
        plan_of(kept, 1)
    config, shards = headers(checkpoint("tiny-aligned", fp8="ue8m0"))
    for tensors in shards.values():
        tensors |= {n: ("F8_E8M0", e[1]) for n, e in tensors.items() if n.endswith("scale_inv")}
    with pytest.raises(DstoolsError, match=r"scale_inv: is F8_E8M0, and .* reads F32"):
        plan_of(sparse(config, shards), 1)
    config, shards = headers(checkpoint("tiny-aligned", fp8="float32"))
    config["quantization_config"]["weight_block_size"] = [64, 64]
    for tensors in shards.values():
        for name in [name for name in tensors if name.endswith("scale_inv")]:
            weight = next(t for t in shards.values() if name.removesuffix("_scale_inv") in t)
            shape = weight[name.removesuffix("_scale_inv")][1]
            tensors[name] = ("F32", [-(-side // 64) for side in shape])
    with pytest.raises(DstoolsError, match=r"blocks of \[64, 64\] are not"):
        plan_of(sparse(config, shards), 1)


def test_mtp_of_a_model_that_has_none_is_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(DstoolsError, match="has no MTP layer") as caught:
        plan_of(checkpoint("tiny-v2"), 1, mtp=True)
    assert "--mtp" in caught.value.hint


def test_the_whole_v3_is_planned_from_its_headers(checkpoint: Callable[..., Path]) -> None:
    """Every tensor of FP8 V3 is in a file of one of 8 ranks, or in those of all."""
    plan = plan_of(checkpoint("v3-headers"), 8, mtp=True)
    sources = [part.piece.info.name for file in plan.files for part in file.slices]
    assert set(sources) == set(plan.inventory.tensors)
    assert plan.left_out == ()
    of_experts = [name for name in sources if ".experts." in name]
    assert len(of_experts) == len(set(of_experts)) == 59 * 256 * 6  # w1, w2, w3 and their scales


# -------------------------------------------------------------------------- killed, short of memory

CHILD = """
import os, resource, signal, sys
from pathlib import Path
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.export import deepseek_inference as d
source, out, ranks, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
d.FLUSHED_BYTES = 1 << 18
plan = d.plan_shards(require_sound(open_checkpoint(source)), ranks, mtp=True)
written = 0
def stop(nbytes):
    global written
    written += nbytes
    if limit and written > limit:
        os.kill(os.getpid(), signal.SIGKILL)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
d.write_shards(plan, out, {"tokenizer.json": b"{}"}, tool="dstools test", progress=stop)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def child(source: Path, out: Path, ranks: int, limit: int = 0) -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-c", CHILD, str(source), str(out), str(ranks), str(limit)]
    return subprocess.run(args, capture_output=True, text=True, check=False)


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(
    wide: Path, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    plan = export(wide, tmp_path / "once", 2, mtp=True)
    for sixth in range(1, 6):
        run = child(wide, tmp_path / "often", 2, plan.nbytes * sixth // 6)
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert not (tmp_path / "often").exists()
    assert child(wide, tmp_path / "often", 2).returncode == 0
    assert tree(tmp_path / "often") == tree(tmp_path / "once")
    assert not (tmp_path / "often.incomplete").exists()


def test_a_resumed_run_copies_only_what_is_left(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepseek_inference, "FLUSHED_BYTES", 1)
    copied: list[Piece] = []
    copy = deepseek_inference.copy_piece

    def count(piece: Piece, *rest: Any) -> None:
        if len(copied) == 50:
            raise KeyboardInterrupt
        copied.append(piece)
        copy(piece, *rest)

    monkeypatch.setattr(deepseek_inference, "copy_piece", count)
    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        export(wide, tmp_path / "out", 1)
    monkeypatch.setattr(deepseek_inference, "copy_piece", copy)
    later: list[Piece] = []
    monkeypatch.setattr(
        deepseek_inference, "copy_piece", lambda piece, *r: (later.append(piece), copy(piece, *r))
    )
    plan = export(wide, tmp_path / "out", 1, progress=told.append)
    assert copied + later == [part.piece for part in plan.files[0].slices]
    assert sum(told) == sum(part.target.nbytes for part in plan.files[0].slices)
    with pytest.raises(DstoolsError, match="exists"):
        export(wide, tmp_path / "out", 1)


def test_a_run_of_other_ranks_does_not_go_on_with_another_s_files(
    wide: Path, tmp_path: Path
) -> None:
    child(wide, tmp_path / "out", 2, 1 << 20)
    with pytest.raises(DstoolsError, match=r"was begun with --tp 2$"):
        export(wide, tmp_path / "out", 1, mtp=True)


def test_an_input_that_changes_meanwhile_leaves_no_output(wide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for path in wide.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    first = min(folder.glob("*.safetensors"))
    with pytest.raises(DstoolsError, match="changed or was removed"):
        export(folder, tmp_path / "out", 1, progress=lambda _: first.touch())
    assert not (tmp_path / "out").exists()


def test_a_shard_cut_short_meanwhile_is_named(wide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for path in wide.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    plan = plan_of(folder, 1, mtp=True)
    last = max(folder.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(DstoolsError, match=f"{last.name}: ends before"):
        write_shards(plan, tmp_path / "out", {}, tool="dstools test")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(
    tmp_path: Path, make_checkpoint: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.6 GB, of which one matrix takes 0.27; 32 MiB are eight of the buffers for columns."""
    config = make_checkpoint.CONFIGS["tiny-aligned"] | FOUR_RANKS
    config |= {"hidden_size": 2048, "intermediate_size": 65536}
    monkeypatch.setitem(make_checkpoint.CONFIGS, "tiny-heavy", config)
    make_checkpoint.make("tiny-heavy", tmp_path / "in", shard_bytes=1 << 30)
    run = child(tmp_path / "in", tmp_path / "out", 2)
    assert run.returncode == 0, run.stderr
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert size > 600e6
    assert int(run.stdout) * 1024 < 32 << 20
