"""What stages need of the machine that runs them: GPUs, and DeepSpeed.

A recipe may be made for another machine than this one, so that only the run of a stage is refused.
"""

from importlib.util import find_spec
from typing import Any

from dstools_distill.recipe.settings import Eval, Generate, Training
from dstools_distill.store.ranks import is_launched

Fault = tuple[str, str]  # what is wrong, and what to do


def lack(settings: Any) -> Fault | None:
    """Return what this machine lacks for a stage of these settings, or None.

    Under a launcher, which may use several machines, GPUs are not counted.
    """
    if isinstance(settings, Training):
        return _lack_of_training(settings)
    is_sampler = isinstance(settings, Eval) or _is_local(settings)
    return lack_of_device(settings.device) if is_sampler else None


def lack_of_device(device: str) -> Fault | None:
    """Return what is wrong where a device of torch is not there, or None."""
    if device == "cuda" and not _gpus():
        return "device cuda: this machine has none", 'set device = "cpu"'
    return None


def _is_local(settings: Any) -> bool:
    return isinstance(settings, Generate) and settings.backend == "hf"


def _lack_of_training(settings: Training) -> Fault | None:
    parallel, processes = settings.parallel, settings.processes
    if parallel.startswith("zero") and find_spec("deepspeed") is None:
        return f"{parallel} needs DeepSpeed", "pip install deepspeed"
    if (parallel, processes) == ("single", 1):
        return None
    gpus = _gpus()
    if parallel == "fsdp2" and not gpus:
        whole = "single" if processes == 1 else "ddp"
        return (
            "fsdp2 needs GPUs: on CPUs accelerate runs plain data parallelism instead",
            f'choose parallel = "{whole}", "zero2" or "zero3"',
        )
    if 0 < gpus < processes and not is_launched():
        fits = "1 process" if gpus == 1 else f"{gpus} processes"
        return (
            f"processes = {processes}, and this machine has {gpus} of the GPUs that they need",
            f"choose {fits}, or start it by a launcher on several machines",
        )
    return None


def _gpus() -> int:
    import torch  # needs seconds

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
