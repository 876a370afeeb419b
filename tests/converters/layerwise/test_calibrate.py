"""quantize --calibrate from end to end: the weights, the side files, and options beside it.

The tiny checkpoints are random: their inputs are hardly correlated, so there is little to gain.
These tests prove that the reported errors are true and never above plain rounding; gains on trained
weights are measured by scripts/study_calibration.py.
"""

import functools
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_converters.layerwise.calibrate import calibrate
from dstools_converters.layerwise.rounding import Seen, round_weight
from dstools_converters.model.decoder import Decoder, MoE, MTPLayer
from dstools_converters.model.rotary import rotary
from dstools_converters.plan.plan import Plan
from dstools_converters.verify.folder import verify
from dstools_converters.write.stream import Report, run

Checkpoint = Callable[..., Path]
Make = Callable[..., Path]
PlanOf = Callable[..., Plan]
Quantize = Callable[..., Report]
Tree = Callable[[Path], dict[str, str]]
DecoderOf = Callable[[Path], Decoder]
U = 2.0**-24  # unit roundoff of float32
SAMPLES, LENGTH = 8, 64  # of the fixture `calibrated`
CASES = {  # kind, its FP8, method, format, scale format
    "native": ("tiny", None, "gptq", "native", "float32"),
    "native ue8m0": ("tiny", None, "gptq", "native", "ue8m0"),
    "compressed-tensors": ("tiny", None, "gptq", "compressed-tensors", None),
    "compressed-tensors ue8m0": ("tiny-v2-lite", None, "gptq", "compressed-tensors", "ue8m0"),
    "FP8 to ue8m0": ("tiny", "float32", "gptq", "native", "ue8m0"),
    "V3.2": ("tiny-v32", None, "gptq", "native", None),
    "Llama": ("tiny-llama", None, "gptq", "native", None),
    "Qwen2": ("tiny-qwen2", None, "gptq", "compressed-tensors", None),
    "mse": ("tiny-v2-lite", None, "mse", "native", "float32"),
    "mse ue8m0": ("tiny-qwen3", None, "mse", "native", "ue8m0"),
    "mse, compressed-tensors ue8m0": ("tiny-llama", None, "mse", "compressed-tensors", "ue8m0"),
}


def read(folder: Path, name: str = "calibration.json") -> Any:
    return json.loads((folder / name).read_text())


def tensors(folder: Path) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        stored |= load_file(shard)
    return stored


def restored(stored: dict[str, Tensor], name: str) -> Tensor:
    """A weight in float64, FP8 as code times scale."""
    weight = stored[name].double()
    for part in ("_scale_inv", "_scale"):
        if name + part in stored:
            scale = stored[name + part].double().repeat_interleave(128, 0)
            scale = scale.repeat_interleave(128, 1)
            weight = weight * scale[: weight.shape[0], : weight.shape[1]]
    return weight


class Inputs:
    """What hooks on a whole Decoder in memory see: inputs of each weight, expert load, cache."""

    def __init__(self, decoder: Decoder, ids: Tensor) -> None:
        self.of: dict[str, Tensor] = {}
        self.load: dict[str, list[int]] = {}
        self.kept: dict[int, tuple[float, float]] = {}
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for name, module in decoder.model.named_modules(prefix="model"):
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(
                    lambda _, args, name=name: parts[name].append(args[0].flatten(0, -2).double())
                )
        for layer, block in enumerate(decoder.model.layers):
            block.self_attn.cache.register_forward_pre_hook(  # type: ignore[union-attr]
                lambda _, kept, layer=layer: self.kept.update(
                    {layer: (kept[0].abs().max().item(), kept[1].abs().max().item())}
                )
            )
            if isinstance(block.mlp, MoE):
                block.mlp.gate.register_forward_hook(
                    lambda _, args, out, layer=layer: self.load.update(
                        {str(layer): out[0].flatten().bincount(minlength=8).tolist()}
                    )
                )
        with torch.inference_mode():
            hidden = decoder.model(ids)
            if isinstance(last := decoder.model.layers[-1], MTPLayer):
                angles = rotary(decoder.model.architecture, torch.arange(ids.shape[1] - 1))
                last(decoder.model.embed_tokens(ids[:, 1:]), hidden[:, :-1], angles)
        self.of = {name: torch.cat(values) for name, values in parts.items()}
        for layer, block in enumerate(decoder.model.layers):
            path = f"model.layers.{layer}.self_attn"
            if hasattr(
                block.self_attn, "indexer"
            ):  # does not run; has the inputs of its neighbours
                self.of[f"{path}.indexer.wk"] = self.of[f"{path}.q_a_proj"]
                self.of[f"{path}.indexer.wq_b"] = self.of[f"{path}.q_b_proj"]


def of_all_tokens(name: str, inputs: Inputs) -> Tensor:
    """The input of a routed expert if all tokens were sent to it: that of the shared experts."""
    layer = name.partition(".mlp.")[0]
    return inputs.of[f"{layer}.mlp.shared_experts.gate_proj"]


@pytest.fixture(scope="module")
def inputs_of(checkpoint: Checkpoint, decoder_of: DecoderOf) -> Callable[[Path], Inputs]:
    @functools.cache
    def get(source: Path) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 1024, shape_of(source), generator=generator)
        return Inputs(decoder_of(source), ids)

    return get


def made_of(case: str, checkpoint: Checkpoint, calibrated: Make) -> tuple[Path, Path]:
    kind, fp8, method, format, scale_format = CASES[case]
    source = checkpoint(kind, fp8=fp8) if fp8 else checkpoint(kind)
    return source, calibrated(source, method, format, scale_format, shape=shape_of(source))


def shape_of(source: Path) -> tuple[int, int]:
    """Samples and their length: beyond index_topk tokens, V3.2 is not run."""
    return (20, 16) if "tiny-v32" in source.name else (SAMPLES, LENGTH)


# ------------------------------------------------------------------------------ what it writes


@pytest.mark.parametrize("case", CASES)
def test_verify_finds_nothing_wrong_with_the_output(
    case: str, checkpoint: Checkpoint, calibrated: Make
) -> None:
    source, out = made_of(case, checkpoint, calibrated)
    for report in (verify(out), verify(out, source=source, workers=2)):
        assert report.findings == []
        assert report.ok


@pytest.mark.parametrize("case", CASES)
def test_reported_errors_are_true_and_none_is_above_that_of_nearest(
    case: str,
    checkpoint: Checkpoint,
    calibrated: Make,
    quantized: Make,
    inputs_of: Callable[[Path], Inputs],
) -> None:
    """They are recomputed in float64 from the inputs that hooks saw.

    The Hessian is added up in float32 over T tokens and multiplied by C inputs; each of its entries
    and products is off by (T + C + 1) u at most of the sum of magnitudes, which gives the bound.
    The inputs of experts also differ in their last bits, from sums in another order: 64 u.
    """
    source, out = made_of(case, checkpoint, calibrated)
    _, _, method, format, scale_format = CASES[case]
    inputs = inputs_of(source)
    exact, stored = tensors(source), tensors(out)
    plain = tensors(quantized(source, format, scale_format))
    notes = read(out)["tensors"]
    scales = {name for name in stored if name.endswith(("_scale_inv", "_scale"))}
    assert {name.rpartition("_scale")[0] for name in scales} == set(notes)
    tuned = 0
    for name, note in notes.items():
        weight = restored(exact, name)
        seen = inputs.of[name.removesuffix(".weight")]
        is_side = ".experts." in name and "down_proj" not in name
        if is_side and len(seen) < weight.shape[1]:  # then the layer's tokens are tried
            seen = of_all_tokens(name, inputs)
            assert note["hessian"] == ("none" if note["method"] == "nearest" else "shared")
        else:
            assert note["hessian"] == ("none" if note["method"] == "nearest" else "own")
        reference = (seen @ weight.T).square().sum()
        for key, made in (("error", stored), ("error_nearest", plain)):
            diff = restored(made, name) - weight
            wanted = (seen @ diff.T).square().sum() / reference
            slack = (seen.abs() @ diff.abs().T).square().sum() / reference
            bound = 2 * (sum(diff.shape[1:] + seen.shape[:1]) + 64) * U * slack
            assert abs(note[key] ** 2 - wanted) <= bound, (name, key)
        diff = restored(stored, name) - weight
        # code times scale is rounded to float32: by u of the weight, u / error of the error
        slack_ratio = 2 * U / note["weight_error"]
        wanted = (diff.norm() / weight.norm()).item()
        assert note["weight_error"] == pytest.approx(wanted, rel=slack_ratio)
        assert note["numel"] == weight.numel()
        assert note["error"] <= note["error_nearest"]
        if note["method"] == method:
            tuned += 1
            assert note["why"] == ""
            assert note["error"] < note["error_nearest"]
        else:
            assert note["method"] == "nearest"
            assert note["why"]
            for part in ("", "_scale_inv", "_scale"):
                assert (name + part in stored) == (name + part in plain)
                if name + part in stored:
                    assert bits(stored[name + part]) == bits(plain[name + part]), name
    # other multiples of a scale help little, powers of two hardly ever
    assert tuned > (len(notes) / 2 if method == "gptq" else 0 if scale_format == "float32" else -1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tiny", "tiny-v2-lite", "tiny-qwen2"])
def test_a_gpu_writes_the_same_bytes_twice_that_verify_with_errors_of_the_cpu(
    kind: str,
    checkpoint: Checkpoint,
    calibrated: Make,
    tmp_path: Path,
    plan_of: PlanOf,
    quantize: Quantize,
    tree: Tree,
) -> None:
    source = checkpoint(kind)
    on_cpu = read(calibrated(source, "gptq", "native", None, shape=(SAMPLES, LENGTH)))["tensors"]
    for name in ("one", "two"):
        quantize(plan_of(source, device="cuda"), tmp_path / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert verify(tmp_path / "one", source=source).findings == []
    notes = read(tmp_path / "one")["tensors"]
    assert notes.keys() == on_cpu.keys()
    for name, note in notes.items():
        assert note["method"] == on_cpu[name]["method"]
        # a sum in another order moves a target across the middle of two codes here and there, where
        # either code is as good; on an H100 no error differed by as much as this
        assert note["error"] == pytest.approx(on_cpu[name]["error"], rel=0.01)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_the_model_may_multiply_in_bf16_and_rounding_may_not(
    tiny: Path, plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permission that oneDNN has while a Hessian is added to, while a weight is rounded."""
    matmul = torch.backends.mkldnn.matmul
    permissions: dict[str, set[str]] = defaultdict(set)

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            permissions[name].add(matmul.fp32_precision)
            return call(*arguments)

        return noted

    def fill(plan: Plan, sink: Any) -> None:
        ids = torch.randint(0, 1024, (8, 64), generator=torch.Generator().manual_seed(0))
        calibrate(plan, sink, ids, ram_bytes=1 << 30, min_coverage=0, progress=lambda nbytes: None)

    rounds = "dstools_converters.layerwise.calibrate.round_weight"
    monkeypatch.setattr(rounds, noting("round", round_weight))
    monkeypatch.setattr(Seen, "add", noting("add", Seen.add))
    before = matmul.fp32_precision
    run(plan_of(tiny), tmp_path / "out", tool="test", workers=1, calibrate=fill)
    assert permissions == {"add": {"bf16"}, "round": {"ieee"}}
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("case", ["native", "compressed-tensors ue8m0", "FP8 to ue8m0", "Qwen2"])
def test_everything_else_is_what_quantize_writes_without_it(
    case: str, checkpoint: Checkpoint, calibrated: Make, quantized: Make, tree: Tree
) -> None:
    source, out = made_of(case, checkpoint, calibrated)
    _, _, _, format, scale_format = CASES[case]
    plain = quantized(source, format, scale_format)
    rounded = read(out)["tensors"]
    ours, theirs = tensors(out), tensors(plain)
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].shape == theirs[name].shape
        if name.rpartition("_scale")[0] not in rounded and name not in rounded:
            assert bits(ours[name]) == bits(theirs[name])
    added = {"calibration.json", "expert_load.json"} if case != "Qwen2" else {"calibration.json"}
    assert tree(out).keys() - tree(plain).keys() == added
    for name in tree(plain).keys() - {"manifest.json", "SHA256SUMS"}:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize("case", ["native", "compressed-tensors ue8m0", "mse"])
def test_expert_load_is_what_the_router_chose(
    case: str, checkpoint: Checkpoint, calibrated: Make, inputs_of: Callable[[Path], Inputs]
) -> None:
    source, out = made_of(case, checkpoint, calibrated)
    load, inputs = read(out, "expert_load.json"), inputs_of(source)
    assert load["layers"] == inputs.load
    assert load["tokens"] == SAMPLES * LENGTH
    for layer, counts in load["layers"].items():
        is_mtp = case == "native" and layer == "3"  # it sees a token less of each sample
        tokens = SAMPLES * (LENGTH - 1) if is_mtp else SAMPLES * LENGTH
        assert sum(counts) == tokens * load["num_experts_per_tok"]


def test_amax_with_data_writes_the_bytes_of_plain_rounding_and_the_load(
    tiny: Path, calibrated: Make, quantized: Make, tree: Tree
) -> None:
    out, plain = tree(calibrated(tiny, "amax")), tree(quantized(tiny))
    for name in ("manifest.json", "SHA256SUMS"):
        assert out.pop(name) != plain.pop(name)
    assert out.pop("calibration.json")
    assert out.pop("expert_load.json") == tree(calibrated(tiny))["expert_load.json"]
    assert out == plain
    assert read(calibrated(tiny, "amax"))["tensors"] == {}
    assert verify(calibrated(tiny, "amax"), source=tiny).findings == []


def test_a_model_in_fp16_or_fp32_is_calibrated(checkpoint: Checkpoint, calibrated: Make) -> None:
    for dtype in ("fp16", "fp32"):
        source = checkpoint("tiny-qwen3", dtype=dtype)
        assert verify(calibrated(source), source=source).findings == []


# -------------------------------------------------------------------------------------- the policy


@pytest.fixture(scope="module")
def skewed(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, plan_of: PlanOf, quantize: Quantize
) -> tuple[Path, Path]:
    """A router's bias sends all tokens to the first of four groups of two, and none to the last.

    Of the other two groups mostly the second wins: scores spread by some 0.1 around 0.5.
    """
    source = tmp_path_factory.mktemp("skewed") / "in"
    source.mkdir()
    for path in tiny.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    for shard in source.glob("*.safetensors"):
        stored = load_file(shard)
        for name in stored:
            if name.endswith("e_score_correction_bias"):
                stored[name] = torch.tensor([5.0, 5.0, 0.0, 0.0, -0.1, -0.1, -5.0, -5.0])
        save_file(stored, shard, {"format": "pt"})
    out = source.with_name("out")
    quantize(plan_of(source, shape=(5, 60)), out)
    return source, out


def test_an_expert_is_rounded_by_its_own_tokens_those_of_the_layer_or_to_nearest(
    skewed: tuple[Path, Path],
) -> None:
    """Gate and up have 256 inputs, down 160; 300 tokens pass, 295 of them through the MTP layer."""
    _, out = skewed
    notes, load = read(out)["tensors"], read(out, "expert_load.json")["layers"]
    seen = {"own": 0, "shared": 0, "few": 0, "none": 0}
    for layer, counts in load.items():
        for expert, tokens in enumerate(counts):
            path = f"model.layers.{layer}.mlp.experts.{expert}"
            for part in ("gate_proj", "up_proj"):
                note = notes[f"{path}.{part}.weight"]
                assert note["tokens"] == tokens
                assert note["method"] == "gptq"
                assert note["hessian"] == ("own" if tokens >= 256 else "shared")
                seen[note["hessian"]] += 1
            note = notes[f"{path}.down_proj.weight"]
            assert note["tokens"] == tokens
            if tokens >= 160:
                assert (note["method"], note["hessian"]) == ("gptq", "own")
            else:
                assert (note["method"], note["hessian"]) == ("nearest", "none")
                assert note["why"] == f"it saw {tokens} tokens, fewer than its 160 inputs"
                assert (note["error"] is None) == (tokens == 0)
                seen["none" if tokens == 0 else "few"] += 1
    assert all(seen.values()), seen
    for name, note in notes.items():
        if ".experts." not in name:
            tokens = 295 if "layers.3." in name else 300
            assert note["tokens"] == tokens
            is_wide = "mlp.down_proj" in name  # of the dense layer: 336 inputs
            assert note["method"] == ("nearest" if is_wide else "gptq")
            assert note["hessian"] == ("none" if is_wide else "own")


def test_an_output_with_cold_experts_verifies(skewed: tuple[Path, Path]) -> None:
    source, out = skewed
    assert verify(out, source=source).findings == []


def test_with_fewer_tokens_than_inputs_every_weight_is_rounded_to_nearest(
    tiny: Path, quantized: Make, tmp_path: Path, plan_of: PlanOf, quantize: Quantize, tree: Tree
) -> None:
    report = quantize(plan_of(tiny, shape=(2, 20)), tmp_path / "out")
    notes = read(tmp_path / "out")["tensors"]
    assert report.tensors["nearest"] == len(notes)
    shapes = {name: tensor.shape for name, tensor in tensors(tiny).items()}
    for name, note in notes.items():
        assert note["method"] == "nearest"
        inputs = shapes[name][1]
        # gate and up of an expert were tried by the tokens of the layer: 40, of MTP 38
        all_seen = 38 if "layers.3." in name else 40
        tried = all_seen if "gate_proj" in name or "up_proj" in name else note["tokens"]
        assert note["why"] == f"it saw {tried} tokens, fewer than its {inputs} inputs"
        assert note["tokens"] == all_seen or ".experts." in name
    assert {k: v for k, v in tree(tmp_path / "out").items() if "safetensors" in k} == {
        k: v for k, v in tree(quantized(tiny)).items() if "safetensors" in k
    }
    assert verify(tmp_path / "out", source=tiny).findings == []


def test_low_coverage_names_layer_and_experts_and_keeps_finished_work(
    tiny: Path, tmp_path: Path, plan_of: PlanOf, quantize: Quantize
) -> None:
    plan = plan_of(tiny)
    with pytest.raises(ShortfallError) as caught:
        quantize(plan, tmp_path / "out", min_coverage=200)  # layer 1 has two experts of 174
    assert str(caught.value) == (
        "layer 1: 2 of 8 experts saw fewer than 200 tokens: expert 6 174, expert 7 174"
    )
    assert not (tmp_path / "out").exists()
    work = tmp_path / "out.incomplete"
    done = [json.loads(line) for line in (work / "journal.jsonl").read_text().splitlines()]
    assert [record["layer"] for record in done if "layer" in record] == [0]
    assert sorted(p.name for p in (work / "calibration").iterdir()) == ["hidden-1"]
    # the dense layer, and of the next one what comes before the router has chosen
    kept = [record["note"]["tensor"] for record in done if "note" in record and "job" in record]
    assert sum("layers.0." in name for name in kept) == 8
    quantize(plan, tmp_path / "out", min_coverage=174)
    assert not work.exists()


# ---------------------------------------------------------------- beside --base and --lossless auto


TUNED = "model.layers.1.mlp.shared_experts.up_proj.weight"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_fp8: Path, dequantized: Make) -> Path:
    """`tiny_fp8` dequantized, and one of its weights changed."""
    folder = tmp_path_factory.mktemp("tuned") / "in"
    folder.mkdir()
    for path in dequantized(tiny_fp8).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for shard in folder.glob("*.safetensors"):
        stored = load_file(shard)
        if TUNED in stored:
            stored[TUNED] = (stored[TUNED].float() * 1.01).bfloat16()
            save_file(stored, shard, {"format": "pt"})
    return folder


@pytest.mark.parametrize("option", ["base", "lossless"])
def test_weights_that_were_fp8_get_it_back_and_others_are_calibrated(
    option: str, tuned: Path, tiny_fp8: Path, tmp_path: Path, plan_of: PlanOf, quantize: Quantize
) -> None:
    is_lossless = option == "lossless"
    plan = plan_of(tuned, base=None if is_lossless else tiny_fp8, is_lossless=is_lossless)
    out = tmp_path / "out"
    quantize(plan, out)
    notes, ours, original = read(out)["tensors"], tensors(out), tensors(tiny_fp8)
    assert {name for name, note in notes.items() if note["method"] != "lossless"} == {TUNED}
    assert notes[TUNED]["method"] == "gptq"
    for name, note in notes.items():
        if name != TUNED:
            assert note["why"] == ("it was FP8 before" if is_lossless else "equal to --base")
            assert note["hessian"] == "none"
            assert note["error"] is None
            for part in ("", "_scale_inv"):  # of this seed, no block has two spellings
                assert bits(ours[name + part]) == bits(original[name + part])
    assert bits(ours[TUNED]) != bits(original[TUNED])
    assert verify(out, source=tuned).findings == []


# ----------------------------------------------------------------------- the scales of a KV cache


@pytest.mark.parametrize("kind", ["tiny", "tiny-qwen3"])
@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
def test_kv_scales_are_the_amax_of_the_cache_over_448(
    kind: str,
    format: str,
    checkpoint: Checkpoint,
    calibrated: Make,
    inputs_of: Callable[[Path], Inputs],
) -> None:
    """A rotated key is a sum of two products, a latent is normed.

    Inputs of later layers differ in their last bits, as experts were summed in another order: 2^-14
    is far more.
    """
    source = checkpoint(kind)
    out = calibrated(source, "gptq", format, kv_cache=True)
    stored = load_file(out / "kv_scales.safetensors")
    kept = inputs_of(source).kept
    wanted = {}
    layers = read(source, "config.json")["num_hidden_layers"]
    for layer, (first, second) in list(kept.items())[:layers]:  # an engine keeps none of MTP's
        k, v = (first, second) if kind == "tiny-qwen3" else (max(first, second),) * 2
        path = f"model.layers.{layer}.self_attn"
        wanted |= {f"{path}.k_scale": k / 448, f"{path}.v_scale": v / 448}
    assert stored.keys() == wanted.keys()
    for name, scale in stored.items():
        assert (scale.dtype, scale.shape) == (torch.float32, (1,))
        assert scale.item() == pytest.approx(wanted[name], rel=2**-14)
    index = read(out, "model.safetensors.index.json")
    assert {
        n for n, shard in index["weight_map"].items() if shard == "kv_scales.safetensors"
    } == set(wanted)
    everything = tensors(out)
    assert index["weight_map"].keys() == everything.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in everything.values())
    for report in (verify(out), verify(out, source=source)):
        assert report.findings == []
    config = read(out, "config.json")["quantization_config"]
    if format == "compressed-tensors":
        assert config["kv_cache_scheme"]["num_bits"] == 8
    plain = tensors(calibrated(source, "gptq", format))
    assert plain.keys() == everything.keys() - stored.keys()
    kv = read(out)["kv"]
    parts = {"latent_amax", "rope_amax"} if kind == "tiny" else {"k_amax", "v_amax"}
    assert kv.keys() == parts


def test_a_damaged_kv_scale_is_found(tiny: Path, calibrated: Make, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(calibrated(tiny, kv_cache=True), folder)
    folder.chmod(0o755)
    shard = folder / "kv_scales.safetensors"
    shard.chmod(0o644)
    stored = load_file(shard)
    name = "model.layers.2.self_attn.v_scale"
    stored[name] = stored[name] * 2
    save_file(stored, shard, {"format": "pt"})
    (finding,) = verify(folder, source=tiny).findings
    assert (finding.level, finding.code) == ("error", "bytes-differ")
    assert finding.where == f"kv_scales.safetensors: {name}"


def test_transformers_loads_a_folder_with_kv_scales(
    checkpoint: Checkpoint, calibrated: Make
) -> None:
    """It reports them as unexpected, and nothing else."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shape = (5, 64)  # few tokens: what is looked at here are names
    out = calibrated(checkpoint("tiny-aligned"), "gptq", kv_cache=True, shape=shape)
    logging.set_verbosity_error()
    _, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.bfloat16, output_loading_info=True
    )
    logging.set_verbosity_warning()
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    unexpected = {key for key in info["unexpected_keys"] if "layers.3." not in key}  # not MTP's
    assert unexpected == {
        f"model.layers.{layer}.self_attn.{part}_scale" for layer in range(3) for part in "kv"
    }


def test_a_folder_with_kv_scales_is_dequantized_without_them(
    tiny: Path, calibrated: Make, dequantized: Make
) -> None:
    """They belong to the FP8 weights, which are removed."""
    out = calibrated(tiny, kv_cache=True)
    back = dequantized(out)
    assert tensors(back).keys() == tensors(tiny).keys()
    assert not (back / "kv_scales.safetensors").exists()
    assert verify(back).findings == []
    assert [f for f in verify(back, source=out).findings if f.level == "error"] == []


def test_existing_kv_scales_are_not_replaced(tiny: Path, calibrated: Make, plan_of: PlanOf) -> None:
    with pytest.raises(DstoolsError, match="already has scales of a KV cache"):
        plan_of(calibrated(tiny, kv_cache=True), scale_format="ue8m0", kv_cache=True)
