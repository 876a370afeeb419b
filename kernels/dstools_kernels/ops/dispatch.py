"""The choice between the forms of an op: its torch definition, its Triton twin, a vendor's kernel.

The environment variable DSTOOLS_KERNELS chooses for a whole process:

    auto       the default: the Triton twin on a Hopper GPU or later, elsewhere the definition
    triton     the Triton twin everywhere; on a CPU it runs in Triton's interpreter
    vendor     a vendor's kernel where an op has one, elsewhere as auto; none has one yet
    reference  the torch definition everywhere

The twins are statically verified for sm_90a and have never run on a GPU.
"""

import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

if TYPE_CHECKING:
    from torch import Tensor

Kernels = Literal["auto", "triton", "vendor", "reference"]
VARIABLE = "DSTOOLS_KERNELS"
log = logging.getLogger(__name__)
NAMES = {"triton": "Triton twin", "reference": "torch definition"}
HOPPER = (9, 0)  # compute capability; below it there are no FP8 products and no TMA


def kernels() -> Kernels:
    """Return the choice that the environment makes.

    Raises ValueError where it is none of the four.
    """
    value = os.environ.get(VARIABLE, "auto")
    if value not in get_args(Kernels):
        raise ValueError(f"{VARIABLE} must be one of {list(get_args(Kernels))}, got {value!r}")
    return cast("Kernels", value)


def is_interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter, as TRITON_INTERPRET=1 asks for."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Form(NamedTuple):
    """The form in which ops run where their shapes allow it, and why."""

    name: Literal["triton", "reference"]
    why: str


def form(device: str, capability: tuple[int, int] | None = None) -> Form:
    """Return the form that runs on a kind of device, "cpu" or "cuda", and why; imports no torch.

    capability: that of the GPU. Raises ValueError where twins are asked for on a CPU without the
    interpreter.
    """
    choice = kernels()
    if choice == "reference":
        return Form("reference", f"{VARIABLE}=reference")
    if choice == "triton":
        if device == "cpu" and not is_interpreted():
            raise ValueError(
                f"{VARIABLE}=triton runs tensors on a CPU only with TRITON_INTERPRET=1, "
                "which has to be set before Triton is imported"
            )
        return Form("triton", f"{VARIABLE}=triton")
    if device != "cuda":
        return Form("reference", "there are kernels for GPUs alone")
    if find_spec("triton") is None:
        return Form("reference", "Triton is not installed")
    if capability is None or capability < HOPPER:
        return Form("reference", "the kernels need a Hopper GPU or a later one")
    return Form("triton", "the GPU is of Hopper or later")


def runs_twin(op: str, x: "Tensor", fits: bool = True, needs: str = "") -> bool:
    """Return whether `op` runs its Triton twin on `x`, and log its form, once for each reason.

    fits: whether the twin takes these inputs; needs: what it takes, for the log. Raises ValueError
    where `form` does.
    """
    chosen = _form(x)
    if chosen.name == "triton" and not fits:
        chosen = Form("reference", f"the twin needs {needs}")
    _log_once(op, chosen)
    return chosen.name == "triton"


def is_aligned(*row_bytes: int) -> bool:
    """Return whether rows of these lengths all are multiples of 16 bytes, as TMA needs them."""
    return not any(size % 16 for size in row_bytes)


def _form(x: "Tensor") -> Form:
    capability = None
    if x.device.type == "cuda":
        import torch

        capability = torch.cuda.get_device_capability(x.device)
    return form(x.device.type, capability)


@cache
def _log_once(op: str, chosen: Form) -> None:
    log.info("%s runs as its %s: %s", op, NAMES[chosen.name], chosen.why)
