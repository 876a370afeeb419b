"""Checkpoints converted once in a session; tests must not change them, or their sources.

quantized(source), dequantized(source), calibrated(source)    the folder that was written
fp8_keeping("model.layers.1.mlp.down_proj")                    block FP8, but for these modules
decoder_of(source)                                             the model in memory
theirs(source)                                                 transformers' model, float32
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.plan.plan import Calibration, Plan, plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe
from dstools_converters.write.stream import run


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Plan], Path]:
    made: dict[str, Path] = {}

    def get(key: str, plan: Plan, calibrate: Any = None) -> Path:
        if key not in made:
            out = tmp_path_factory.mktemp("converted") / "out"
            run(plan, out, tool="dstools 0", workers=2, is_synced=False, calibrate=calibrate)
            for file in out.iterdir():
                file.chmod(0o444)
            out.chmod(0o555)
            made[key] = out
        return made[key]

    return get


@pytest.fixture(scope="session")
def quantized(convert: Callable[[str, Plan], Path]) -> Callable[..., Path]:
    """quantized(source, format="native", scale_format=None, base=None)"""

    def get(
        source: Path, format: Any = "native", scale_format: Any = None, base: Path | None = None
    ) -> Path:
        with open_checkpoint(source) as checkpoint:
            original = require_sound(open_checkpoint(base)) if base else None
            plan = plan_quantize(
                require_sound(checkpoint), Recipe(), format, scale_format, original
            )
            return convert(f"{source} {format} {scale_format} {base}", plan)

    return get


@pytest.fixture(scope="session")
def dequantized(convert: Callable[[str, Plan], Path]) -> Callable[[Path], Path]:
    """dequantized(source)"""

    def get(source: Path) -> Path:
        with open_checkpoint(source) as checkpoint:
            return convert(f"{source} BF16", plan_dequantize(require_sound(checkpoint)))

    return get


@pytest.fixture
def fp8_keeping(
    checkpoint: Callable[..., Path], headers: Callable[[Path], Any], sparse: Callable[..., Path]
) -> Callable[..., Path]:
    """fp8_keeping(*modules, kind="tiny-aligned", format="native", **quantization)

    Headers alone: a block FP8 checkpoint whose modules are BF16, and its quantization_config.
    """

    def make(
        *modules: str, kind: str = "tiny-aligned", format: str = "native", **quantization: Any
    ) -> Path:
        config, shards = headers(checkpoint(kind, fp8="float32"))
        dropped = {f"{module}.weight_scale_inv" for module in modules}
        suffix = "weight_scale_inv" if format == "native" else "weight_scale"
        for tensors in shards.values():
            for module in modules:
                if f"{module}.weight" in tensors:
                    tensors[f"{module}.weight"] = ("BF16", tensors[f"{module}.weight"][1])
            for name in [name for name in tensors if name.endswith("weight_scale_inv")]:
                entry = tensors.pop(name)
                if name not in dropped:
                    tensors[name.removesuffix("weight_scale_inv") + suffix] = entry
        if format == "native":
            config["quantization_config"] |= quantization
        else:
            weights = {"num_bits": 8, "type": "float", "strategy": "block"}
            group = {
                "targets": quantization.pop("targets", ["Linear"]),
                "weights": weights | {"block_structure": [128, 128]},
            }
            config["quantization_config"] = quantization | {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": group},
            }
        return sparse(config, shards)

    return make


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    """plan_of(source, method="gptq", shape=(8, 64), format="native", scale_format=None, base=None)

    To be calibrated with random tokens; other options are those of Calibration, and is_lossless.
    """

    def get(
        source: Path,
        method: Any = "gptq",
        *,
        shape: tuple[int, int] = (8, 64),
        format: Any = "native",
        scale_format: Any = None,
        base: Path | None = None,
        is_lossless: bool = False,
        **changes: Any,
    ) -> Plan:
        inventory = require_sound(open_checkpoint(source))
        original = require_sound(open_checkpoint(base)) if base else None
        data = {"name": "random tokens", "sha256": "", "samples": shape[0], "seq_len": shape[1]}
        settings = {"data": data | {"seed": 0, "documents": 0}, "device": "cpu", "threads": 1}
        settings |= {"versions": {}, "cpu": "", "kv_cache": False} | changes
        calibration = Calibration(method, **settings)
        return plan_quantize(
            inventory,
            Recipe(),
            format,
            scale_format,
            original,
            calibration,
            is_lossless=is_lossless,
        )

    return get


@pytest.fixture(scope="session")
def calibrate_random() -> Callable[..., None]:
    """calibrate_random(plan, sink, **options): `calibrate` with the random tokens of the plan.

    Products are in float32 on every CPU, for comparisons with a float32 model.
    """

    def fill(plan: Plan, sink: Any, **options: Any) -> None:
        import torch

        from dstools_converters.layerwise.calibrate import calibrate

        assert plan.calibration is not None
        before = torch.get_num_threads()
        shape = plan.calibration.data["samples"], plan.calibration.data["seq_len"]
        ids = torch.randint(0, 1024, shape, generator=torch.Generator().manual_seed(0))
        defaults = {"ram_bytes": 1 << 30, "min_coverage": 0, "progress": lambda nbytes: None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dstools_converters.layerwise.calibrate.PRODUCTS", "ieee")
            calibrate(plan, sink, ids, **defaults | options)
        torch.set_num_threads(before)

    return fill


@pytest.fixture(scope="session")
def calibrated(
    convert: Callable[..., Path], plan_of: Callable[..., Plan], calibrate_random: Any
) -> Callable[..., Path]:
    """calibrated(source, "gptq", format="native", scale_format=None, kv_cache=False, shape=(8, 64))

    On random tokens of the tiny vocabulary, by one thread.
    """

    def get(
        source: Path,
        method: Any = "gptq",
        format: Any = "native",
        scale_format: Any = None,
        kv_cache: bool = False,
        shape: tuple[int, int] = (8, 64),
    ) -> Path:
        plan = plan_of(
            source, method, shape=shape, format=format, scale_format=scale_format, kv_cache=kv_cache
        )
        key = f"{source} {method} {shape} {kv_cache} {format} {scale_format}"
        return convert(key, plan, calibrate_random)

    return get


@pytest.fixture(scope="session")
def decoder_of() -> Callable[[Path], Any]:
    """decoder_of(folder): a float32 Decoder, FP8 as code times scale."""

    def get(folder: Path) -> Any:
        import torch
        from safetensors.torch import load_file

        from dstools_converters.model.architecture import read_architecture
        from dstools_converters.model.decoder import Decoder

        stored: dict[str, torch.Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            stored |= load_file(shard)
        state = {}
        for name, value in stored.items():
            state[name] = value.float()
            scale = stored.get(f"{name}_scale_inv", stored.get(f"{name}_scale"))
            if scale is not None:
                scales = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
                state[name] = value.float() * scales[: value.shape[0], : value.shape[1]]
        architecture = read_architecture(json.loads((folder / "config.json").read_text()))
        with torch.device("meta"):
            decoder = Decoder(architecture)
        names = {architecture.model.spell(name) for name, _ in architecture.model.weights()}
        decoder.load_state_dict({n: t for n, t in state.items() if n in names}, assign=True)
        return decoder.requires_grad_(False).eval()

    return get


@pytest.fixture(scope="module")
def theirs() -> Callable[[Path], Any]:
    """theirs(folder): transformers' model, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: dict[Path, Any] = {}

    def get(folder: Path) -> Any:
        if folder not in loaded:
            loaded[folder] = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                experts_implementation="eager",
            ).eval()
        return loaded[folder]

    return get
