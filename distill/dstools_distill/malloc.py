"""How the C library gives memory back."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGE = (1 << 31) - 1  # bytes: the largest int


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, for the next tensor; elsewhere do nothing.

    By default a tensor over some MiB is mapped when it is made and unmapped when it is freed, and the system
    zeroes its pages again each time: a fifth to a quarter of training and sampling small models on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, LARGE)
