"""Weights come from the project's own reader: FP8 as code times scale, faults refused in a line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.checkpoint.tensors import restored
from dstools_converters.errors import DstoolsError
from dstools_converters.model.architecture import read_architecture
from dstools_converters.runtime import weights
from dstools_converters.runtime.products import Weight
from dstools_converters.runtime.serving import Latents, Serving
from dstools_converters.runtime.weights import (
    coded_names,
    held_bytes,
    load,
    read_positions,
    serving_over,
    sound_inventory,
    takes_codes,
)

CPU = torch.device("cpu")


def named_weights(serving: Serving) -> dict[str, torch.Tensor]:
    """Return the weights by their names in the decoder, the two parts of kv_b_proj as one."""
    weights: dict[str, torch.Tensor] = dict(serving.decoder.named_parameters())
    for layer, attention in enumerate(serving.attentions):
        if isinstance(attention, Latents):
            both = torch.cat((attention.w_k_HNL, attention.w_v_HWL), 1).flatten(0, 1)
            weights[f"model.layers.{layer}.self_attn.kv_b_proj.weight"] = both
    return weights


@pytest.mark.parametrize("kind", ["tiny", "tiny-v2-lite", "tiny-qwen3"])
@pytest.mark.parametrize("fp8", ["float32", "ue8m0"])
def test_fp8_is_widened_and_each_weight_is_in_its_place(
    kind: str, fp8: str, checkpoint: Callable[..., Path], decoder_of: Any
) -> None:
    folder = checkpoint(kind, fp8=fp8)
    wanted = dict(decoder_of(folder).named_parameters())
    serving = load(folder, torch.float32, CPU)
    found = named_weights(serving)
    stacked = [name for name, weight in found.items() if weight.dim() == 3]
    for name in stacked:
        module, side, _ = name.rsplit(".", 2)
        for expert, weight in enumerate(found.pop(name)):
            found[f"{module}.experts.{expert}.{side}.weight"] = weight
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not any(weight.requires_grad for weight in serving.parameters())


def test_codes_are_kept_where_asked_but_for_kv_b_proj(tiny_fp8: Path) -> None:
    """Ragged sides; the stacked codes and scales of experts are those of each."""
    held: dict[str, torch.Tensor] = {}
    for path in tiny_fp8.glob("*.safetensors"):
        held |= load_file(path)
    decoder = load(tiny_fp8, torch.bfloat16, CPU, keeps_codes=True).decoder
    products = {n: m for n, m in decoder.named_modules() if isinstance(m, Weight)}
    kept = 0
    for name, module in products.items():
        parts = [name]
        if module.weight.dim() == 3:
            layer, side = name.rsplit(".", 1)
            parts = [f"{layer}.experts.{expert}.{side}" for expert in range(len(module.weight))]
        if f"{parts[0]}.weight_scale_inv" not in held or name.endswith("kv_b_proj"):
            assert module.scales is None
            assert module.weight.dtype == torch.bfloat16
            continue
        kept += 1
        for part, codes, scales in zip(
            parts,
            module.weight.view(len(parts), *module.weight.shape[-2:]),
            module.scales.view(len(parts), *module.scales.shape[-2:]),
            strict=True,
        ):
            assert torch.equal(codes.view(torch.uint8), held[f"{part}.weight"].view(torch.uint8))
            assert torch.equal(scales, held[f"{part}.weight_scale_inv"])
    assert kept > 20


def test_no_copy_of_kept_codes_is_widened(tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widened = []

    def noted(inventory: Inventory, info: TensorInfo) -> torch.Tensor:
        widened.append(info.name)
        return restored(inventory, info)

    monkeypatch.setattr(weights, "restored", noted)
    load(tiny_fp8, torch.bfloat16, CPU, keeps_codes=True)
    with open_checkpoint(tiny_fp8) as checkpoint:
        fp8 = take_inventory(checkpoint).quantized()
    assert {name for name in widened if name in fp8} == {n for n in fp8 if "kv_b_proj" in n}


@pytest.mark.parametrize("side", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("expert", [0, 3])
def test_experts_that_are_not_all_fp8_are_widened_with_a_line(
    expert: int, side: str, fp8_keeping: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = fp8_keeping(f"model.layers.1.mlp.experts.{expert}.{side}")
    with open_checkpoint(folder) as checkpoint, caplog.at_level("INFO"):
        names = coded_names(take_inventory(checkpoint))
    assert {name.layer for name in names if name.expert is not None} == {2, 3}
    roles = {name.role for name in names if name.layer == 1}
    assert roles == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"} | {
        f"shared_{part}" for part in ("gate", "up", "down")
    }
    assert caplog.messages == ["experts are widened in layers where not all are FP8: 1"]


def test_fp8_in_other_blocks_is_widened_with_a_line(
    tiny_fp8: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_checkpoint(tiny_fp8) as checkpoint, caplog.at_level("INFO"):
        inventory = take_inventory(checkpoint)
        assert inventory.scheme is not None
        other = replace(inventory, scheme=replace(inventory.scheme, block_size=(64, 128)))
        assert coded_names(inventory)
        assert caplog.messages == []
        assert not coded_names(other)
    assert caplog.messages == ["FP8 is widened: its blocks are 64 x 128, not 128 x 128"]


@pytest.mark.parametrize("keeps_codes", [False, True])
@pytest.mark.parametrize("mtp", [False, True])
def test_held_bytes_are_those_of_the_loaded_weights(
    keeps_codes: bool, mtp: bool, tiny_fp8: Path
) -> None:
    with open_checkpoint(tiny_fp8) as checkpoint:
        held = held_bytes(sound_inventory(checkpoint, mtp), torch.bfloat16, keeps_codes)
    serving = load(tiny_fp8, torch.bfloat16, CPU, mtp=mtp, keeps_codes=keeps_codes)
    tensors = [*serving.parameters(), *serving.buffers()]
    tensors += [
        t for m in serving.modules() for t in vars(m).values() if isinstance(t, torch.Tensor)
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    assert held == sum(storage.nbytes() for storage in storages.values())


def test_an_inventory_without_mtp_leaves_the_checkpoint_as_it_is(
    tiny: Path, headers: Any, sparse: Any
) -> None:
    config, shards = headers(tiny)
    layer = f"model.layers.{config['num_hidden_layers']}."
    for tensors in shards.values():
        for name in [name for name in tensors if name.startswith(layer)]:
            del tensors[name]
    with open_checkpoint(sparse(config, shards)) as checkpoint:
        assert sound_inventory(checkpoint, mtp=False).model.num_mtp_layers == 0
        assert checkpoint.config == config
        with pytest.raises(DstoolsError):
            sound_inventory(checkpoint, mtp=True)


def test_the_bias_of_the_router_stays_float32(tiny: Path) -> None:
    serving = load(tiny, torch.bfloat16, CPU)
    dtypes = {name: weight.dtype for name, weight in serving.decoder.named_parameters()}
    biases = {name for name in dtypes if name.endswith("e_score_correction_bias")}
    assert biases
    assert {name for name in dtypes if dtypes[name] == torch.float32} == biases


@pytest.mark.parametrize("keeps_codes", [False, True])
def test_scales_that_do_not_fit_their_weight_are_refused(
    keeps_codes: bool, tiny_fp8: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_fp8, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name] = tensors[name][:-1].contiguous()
            path.unlink()
            save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DstoolsError, match=r"o_proj\.weight_scale_inv.*; a weight .* has scales"):
        load(folder, torch.float32, CPU, keeps_codes=keeps_codes)


def test_positions_are_those_of_the_config_and_of_dense_attention(
    tiny: Path, checkpoint: Callable[..., Path]
) -> None:
    for folder, positions in ((tiny, None), (checkpoint("tiny-v32"), 16)):
        config = json.loads((folder / "config.json").read_text())
        wanted = positions or config["max_position_embeddings"]
        assert read_positions(config, read_architecture(config)) == wanted
    del config["max_position_embeddings"]
    with pytest.raises(DstoolsError, match="has no max_position_embeddings"):
        read_positions(config, read_architecture(config))


def model_of(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the weights of transformers' model of a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return json.loads(model.config.to_json_string()), model.state_dict()


@pytest.mark.parametrize("kind", ["tiny", "tiny-v2-lite", "tiny-qwen3", "tiny-llama"])
def test_a_model_of_transformers_is_served_over_its_own_weights(
    kind: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint(kind)
    config, weights = model_of(folder)
    found = named_weights(serving_over(config, weights))
    wanted = named_weights(load(folder, torch.float32, CPU))
    layers = config["num_hidden_layers"]
    assert found.keys() == {name for name in wanted if f"layers.{layers}." not in name}  # no MTP
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    shared = [{w.untyped_storage().data_ptr() for w in some.values()} for some in (found, weights)]
    copied = [name for name in found if name.endswith("kv_b_proj.weight")]
    assert len(shared[0] & shared[1]) == len(shared[1]) - len(copied)


def test_weights_that_the_config_does_not_say_are_refused(tiny: Path) -> None:
    config, weights = model_of(tiny)
    norm = "model.norm.weight"
    with pytest.raises(
        DstoolsError, match=r"^model\.norm\.weight: missing; the config says \[\d+\]"
    ):
        serving_over(config, {name: weight for name, weight in weights.items() if name != norm})
    with pytest.raises(DstoolsError, match=r"^model\.norm\.weight: \[3\]; the config says"):
        serving_over(config, weights | {norm: torch.ones(3)})
    with pytest.raises(DstoolsError, match=r"^model\.other: is not a weight that the config says"):
        serving_over(config, weights | {"model.other": torch.ones(3)})


@pytest.mark.parametrize(
    ("dtype", "device", "capability", "wanted"),
    [
        (torch.bfloat16, "cuda", (9, 0), True),
        (torch.float32, "cuda", (9, 0), False),  # the FP8 products' results are BF16
        (torch.bfloat16, "cuda", (8, 0), False),
        (torch.bfloat16, "cpu", None, False),
    ],
)
def test_codes_are_kept_where_triton_multiplies_them(
    dtype: torch.dtype,
    device: str,
    capability: tuple[int, int] | None,
    wanted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="needs triton, a development extra")
    monkeypatch.delenv("DSTOOLS_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert takes_codes(dtype, torch.device(device)) == wanted
