"""The place of this process among those that a launcher started.

    RANK, WORLD_SIZE, LOCAL_RANK      set by accelerate launch and torchrun in each process

Torch is not imported: the store, which most stages use without torch, needs the rank.
"""

import os

from dstools_converters.errors import DstoolsError, printable

LOCKED = "DSTOOLS_DISTILL_LOCKED"  # set for processes started by the one that holds the lock


def rank() -> int:
    """Return the number of this process among those that a launcher started; 0 without one."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return _number("WORLD_SIZE", 1)


def is_launched() -> bool:
    """Return whether a launcher started this process, even if it started no other."""
    return world_size() > 1 or not {LOCKED, "LOCAL_RANK"}.isdisjoint(os.environ)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise DstoolsError(
            f"{name}={printable(text)} in the environment is not a number", f"unset {name}"
        )
    return int(text)
