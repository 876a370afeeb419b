"""The dispatch between the twins of a kernel: the compiled library, or the numpy definition.

Twins have one name and the same arguments in the same order, buffers already checked:
`quantize` of `block_fp8_numpy.py` is `dstools_quantize` of the library.
"""

from importlib import import_module
from typing import cast

from dstools_kernels.cpu import native


def run(module: str, kernel: str, *arguments: memoryview | int | str) -> int:
    """Run `kernel` and return its result, 0 where it returns nothing.

    The library runs it at the level in use; without the library `<module>_numpy` of this folder
    does, and only then is numpy imported.
    """
    if native.library() is not None:
        return native.call(kernel, *arguments)
    twin = import_module(f"dstools_kernels.formats.{module}_numpy")
    return cast("int", getattr(twin, kernel)(*arguments) or 0)
