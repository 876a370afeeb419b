"""The record of a kernel in a form that is shipped: its launch, and its compilation ahead of time.

Each twin has a table CONFIGS of these by name. The launcher of the twin and the compilation in
`proof/compile.py` read the same record, so that what is compiled and gated is what runs.
"""

from dataclasses import dataclass
from typing import Any

import torch

# A multiplication and an addition are fused, with one rounding. No quantizer has such a pair: the
# instructions of all whose bits are compared are the same without.
FP_FUSION = True
# what twins take or return, as Triton names it
DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Config:
    """A Triton kernel with its constants, warps and stages."""

    kernel: Any  # the function under @triton.jit
    signature: dict[str, str]  # its arguments in order, e.g. {"x_ptr": "*bf16", "rows": "i32"}
    constants: dict[str, Any]  # its tl.constexpr arguments
    num_warps: int
    num_stages: int = 1
    unaligned: tuple[str, ...] = ()  # arguments that are not always divisible by 16
    # Instructions that the compiled kernel has and must not have. Capitals: SASS, by parts, so
    # that LDG.128 is also LDG.E.128.CONSTANT. Small letters: a part of the PTX.
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Run the kernel over `grid`, with `arguments` as in the signature.

        `constants` replace those of the record, as other sizes of its arguments ask for.
        """
        self.kernel[grid](*arguments, **{**self.constants, **constants}, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of Triton's compiler."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": FP_FUSION,
        }
