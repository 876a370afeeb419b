"""How many processes train: what may be asked for, how they are started, and which of them this is.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR      what accelerate launch and torchrun tell each process

Known without torch, so that a recipe that cannot run is refused before its teacher is asked.
"""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

from dstools_converters.errors import RESUME_HINT, DstoolsError, printable
from dstools_distill.recipe.settings import Training

LOCKED = "DSTOOLS_DISTILL_LOCKED"  # the environment of processes that the holder of the lock starts
SPREADING = ("fsdp2", "zero2", "zero3")
PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h


def rank() -> int:
    """Return the number of this process among those that a launcher started; 0 alone."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return _number("WORLD_SIZE", 1)


def is_launched() -> bool:
    """Tell whether a launcher started this process, ours or another; one process alone can be, too."""
    return world_size() > 1 or not {LOCKED, "LOCAL_RANK"}.isdisjoint(os.environ)


def _number(name: str, default: int) -> int:
    said = os.environ.get(name, str(default))
    if not said.isdecimal():
        raise DstoolsError(
            f"{name}={printable(said)} in the environment is no number", f"unset {name}"
        )
    return int(said)


def check_settings(settings: Training, where: str = "") -> None:
    """Raise DstoolsError, its message after `where`, for settings that contradict each other anywhere."""
    asked, parallel = settings.processes, settings.parallel
    whole = "single" if asked == 1 else "ddp"  # what leaves each weight whole in each process
    if (asked > 1 and parallel == "single") or (asked == 1 and parallel == "ddp"):
        raise DstoolsError(
            f"{where}processes = {asked} and parallel = {parallel!r} contradict each other",
            'one process is "single", or a trial of "fsdp2", "zero2" or "zero3"; several are those or "ddp"',
        )
    at_once = settings.micro_batch_size * asked
    if settings.batch_size % at_once:
        raise DstoolsError(
            f"{where}batch_size = {settings.batch_size} is no multiple of micro_batch_size x processes = {at_once}",
            "choose batch_size as such a multiple; what is not done at once is accumulated",
        )
    if parallel in ("fsdp2", "zero3") and (settings.ema or settings.lora):
        raise DstoolsError(
            f"{where}{parallel} spreads each weight over processes; ema and lora need it whole",
            f'choose parallel = "zero2" or "{whole}", or leave out ema and lora',
        )
    if parallel.startswith("zero") and settings.precision == "bfloat16":
        raise DstoolsError(
            f"{where}{parallel} does not train bfloat16 weights alone",
            'precision = "bf16-autocast" is bfloat16 weights with float32 masters under DeepSpeed',
        )
    if settings.optimizer == "muon" and parallel in SPREADING:
        raise DstoolsError(
            f"{where}muon needs each weight whole, and {parallel} spreads it or its gradient",
            f'parallel = "{whole}", or another optimizer',
        )
    if settings.optimizer == "muon" and settings.lora:
        raise DstoolsError(
            f"{where}muon trains whole weights, not lora's", "choose another optimizer"
        )


def launch(settings: Training, arguments: list[str]) -> None:
    """Run `dstools distill` with `arguments` in the processes asked for, and wait until all have ended.

    On Linux a launcher gets SIGTERM, which it passes on, when this process ends, however that ends: nobody else
    would stop what costs money. Nothing of ACCELERATE_* is handed on: the launcher goes by its config alone.
    Raises DstoolsError where a process failed.
    """
    libc, on_linux = ctypes.CDLL(None), sys.platform == "linux"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    ran = subprocess.run(
        launch_command(settings, arguments),
        env=inherited | {LOCKED: "1"},
        stdout=2,  # on stdout we alone tell what was done
        close_fds=False,  # the lock is held until the last of them has ended
        preexec_fn=partial(libc.prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if on_linux else None,
        check=False,
    )
    if ran.returncode:
        raise DstoolsError(
            f"{arguments[0]}: the launched processes ended with code {ran.returncode}",
            f"their output stands above; {RESUME_HINT}",
        )


def launch_command(settings: Training, arguments: list[str]) -> list[str]:
    """Return the command that runs `dstools distill` with `arguments` in the processes asked for."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", os.fspath(launch_config(settings))),
        *("--num_processes", str(settings.processes), "--main_process_port", "0"),
        *("-m", "dstools", "distill", *arguments),
    ]


def launch_config(settings: Training) -> Path:
    """Return the shipped config of accelerate for `settings.parallel`."""
    return Path(str(files("dstools_distill") / "launch" / f"{settings.parallel}.yaml"))


def launch_hint(settings: Training) -> str:
    """Say how to start what was asked for."""
    if settings.parallel == "single":
        return "start it without a launcher, or set processes and parallel"
    return (
        f"accelerate launch --config_file {launch_config(settings)} "
        f"--num_processes {settings.processes} -m dstools distill ..., or let dstools start it"
    )


def require_launcher() -> None:
    """Raise DstoolsError where the environment speaks of a launcher that there is not."""
    if "LOCAL_RANK" in os.environ and "MASTER_ADDR" not in os.environ:
        raise DstoolsError(
            "LOCAL_RANK is set, and no launcher: it would have set MASTER_ADDR, too",
            "unset LOCAL_RANK, and let dstools start what the recipe asks for",
        )
