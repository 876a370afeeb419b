"""The processes that train: the command that starts them, and its failures.

Torch is not imported, so that a recipe that cannot run is refused before its teacher is asked.
"""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

from dstools_converters.errors import RESUME_HINT, DstoolsError
from dstools_distill.recipe.settings import Training
from dstools_distill.store.ranks import LOCKED

PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h


def launch(settings: Training, arguments: list[str]) -> None:
    """Run `dstools distill` with `arguments` in the processes asked for, and wait for all of them.

    On Linux the launcher gets SIGTERM, which it passes on, when this process ends, even if it is
    killed: otherwise processes that cost money would continue unattended. ACCELERATE_* variables
    are removed, so that the shipped config alone decides. Raises DstoolsError if a process failed.
    """
    libc, on_linux = ctypes.CDLL(None), sys.platform == "linux"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    ran = subprocess.run(
        launch_command(settings, arguments),
        env=inherited | {LOCKED: "1"},
        stdout=2,  # stdout carries the result of this process alone
        close_fds=False,  # the lock is held until the last of them has ended
        preexec_fn=partial(libc.prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if on_linux else None,
        check=False,
    )
    if ran.returncode:
        raise DstoolsError(
            f"{arguments[0]}: the launched processes ended with code {ran.returncode}",
            f"see their output above; {RESUME_HINT}",
        )


def launch_command(settings: Training, arguments: list[str]) -> list[str]:
    """Return the command that runs `dstools distill` with `arguments` in `settings.processes`."""
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
    """Return a hint: how to start the processes that the settings ask for."""
    if settings.parallel == "single":
        return "start it without a launcher, or set processes and parallel"
    return (
        f"accelerate launch --config_file {launch_config(settings)} "
        f"--num_processes {settings.processes} -m dstools distill ..., or let dstools start it"
    )


def require_launcher() -> None:
    """Raise DstoolsError if the environment names a local rank, but no launcher is running."""
    if "LOCAL_RANK" in os.environ and "MASTER_ADDR" not in os.environ:
        raise DstoolsError(
            "LOCAL_RANK is set and MASTER_ADDR is not, so no launcher set it",
            "unset LOCAL_RANK, and let dstools start what the recipe asks for",
        )
