"""A record launches its kernel with the constants, warps and stages that are compiled."""

from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.triton.config import Config


class Kernel:
    """Takes the place of a kernel and notes how it is launched."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: vars(self).update(
            grid=grid, arguments=arguments, options=options
        )


def test_a_launch_is_that_of_the_record() -> None:
    kernel = Kernel()
    config = Config(kernel, {"x_ptr": "*bf16"}, {"BLOCK": 64}, 8, num_stages=3)
    config.launch((2, 1), "x", 5)
    options = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
    assert vars(kernel) == {
        "grid": (2, 1),
        "arguments": ("x", 5),
        "options": {"BLOCK": 64, **options},
    }
    config.launch((1,), "x", BLOCK=16)
    assert vars(kernel)["options"] == {"BLOCK": 16, **options}
