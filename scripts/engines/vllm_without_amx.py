"""A plugin with which vLLM runs block FP8 on x86 CPUs that have no AMX: to check, not to serve.

    PYTHONPATH=scripts/engines python -m vllm.entrypoints.openai.api_server --model FOLDER

vLLM 0.32's block FP8 kernels for CPUs ask for AMX; elsewhere every FP8 model ends in "Failed to
find a kernel that can implement the ScaledMM linear layer". With AMX this plugin does nothing,
unless DSTOOLS_VLLM_FP8 is set:

own      vLLM's own C++ kernels: only their question for AMX is answered with yes. They have a path
         for AVX512-BF16 and crash on CPUs without it.
torch    (default without AMX) torch in their place: code * scale in F32, rounded to BF16, then a
         product in BF16. Weights are not repacked. Slow; runs on any CPU.

Not replaced, and so what the check is about: reading the config, its rules of shapes, loading and
fusing, MLA, routing, speculative decoding, tensor parallelism. As vLLM's own CPU kernels neither
mode rounds activations to FP8, which the kernels for GPUs do.
"""

import os
from typing import Any

import torch
from matrices import restore
from torch import Tensor


def register() -> None:
    """Replace kernels as DSTOOLS_VLLM_FP8 asks; vLLM calls this in each of its processes."""
    default = "" if torch.cpu._is_amx_tile_supported() else "torch"
    match os.environ.get("DSTOOLS_VLLM_FP8") or default:
        case "":
            return
        case "own":
            allow_own_kernels()
        case "torch":
            use_torch()
        case mode:
            raise ValueError(f"DSTOOLS_VLLM_FP8 must be own or torch, got {mode}")


def allow_own_kernels() -> None:
    """Let vLLM choose its own kernels without AMX."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsFp8

    CPUFp8BlockScaledMMKernel.is_supported = classmethod(lambda cls, capability=None: (True, None))
    CPUExpertsFp8._supports_current_device = staticmethod(lambda: True)


def use_torch() -> None:
    """Put torch in the place of the kernels of linear layers and of routed experts."""
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import (
        Fp8BlockScaledMMLinearKernel,
    )
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe
    from vllm.platforms import PlatformEnum

    class TorchLinear(Fp8BlockScaledMMLinearKernel):
        """A linear layer: bias, dtype and shapes are the base's."""

        apply_input_quant = False

        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
            return True, None

        @classmethod
        def can_implement(cls, config: Any) -> tuple[bool, str | None]:
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            """Leave the weights as they were loaded; the base pads them for GPUs."""

        def apply_block_scaled_mm(self, A: Tensor, B: Tensor, As: Tensor, Bs: Tensor) -> Tensor:
            return A @ restore(B, Bs).T

    class TorchExperts(cpu_moe.CPUExpertsFp8):
        """The routed experts of a layer: which quantizations and routings, the base says."""

        @staticmethod
        def _supports_current_device() -> bool:
            return True

        def apply(
            self, output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor,
            topk_weights: Tensor, topk_ids: Tensor, **_: object,  # buffers, and what is unused
        ) -> None:  # fmt: skip
            output.zero_()
            for expert in topk_ids.unique().tolist():
                token, slot = (topk_ids == expert).nonzero(as_tuple=True)
                gate_up = hidden_states[token] @ restore(w1[expert], self.w1_scale[expert]).T
                gate, up = gate_up.chunk(2, -1)
                inner = torch.nn.functional.silu(gate) * up
                down = inner @ restore(w2[expert], self.w2_scale[expert]).T
                share = topk_weights[token, slot, None]
                output.index_add_(0, token, (down * share).to(output.dtype))

    linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU].insert(0, TorchLinear)
    # the oracle imports both by name when it builds a layer
    cpu_moe.CPUExpertsFp8 = TorchExperts
    cpu_moe.prepare_fp8_moe_layer_for_cpu = lambda w13, w2: (w13, w2)
