"""Checkpoints converted once in a session; like those they are made of, tests leave them as they are.

quantized(source), dequantized(source)    the folder that the converters made of it
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint import open_checkpoint
from dstools_converters.inventory import require_sound
from dstools_converters.plan import Plan, plan_dequantize, plan_quantize
from dstools_converters.recipe import Recipe
from dstools_converters.stream import run


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Plan], Path]:
    made: dict[str, Path] = {}

    def get(key: str, plan: Plan) -> Path:
        if key not in made:
            out = tmp_path_factory.mktemp("converted") / "out"
            run(plan, out, tool="dstools 0", workers=2, is_synced=False)
            for file in out.iterdir():
                file.chmod(0o444)
            out.chmod(0o555)
            made[key] = out
        return made[key]

    return get


@pytest.fixture(scope="session")
def quantized(convert: Callable[[str, Plan], Path]) -> Callable[..., Path]:
    """quantized(source, format="native", scale_format=None, base=None)"""

    def get(
        source: Path, format: Any = "native", scale_format: Any = None, base: Path | None = None
    ) -> Path:
        with open_checkpoint(source) as checkpoint:
            original = require_sound(open_checkpoint(base)) if base else None
            plan = plan_quantize(
                require_sound(checkpoint), Recipe(), format, scale_format, original
            )
            return convert(f"{source} {format} {scale_format} {base}", plan)

    return get


@pytest.fixture(scope="session")
def dequantized(convert: Callable[[str, Plan], Path]) -> Callable[[Path], Path]:
    """dequantized(source)"""

    def get(source: Path) -> Path:
        with open_checkpoint(source) as checkpoint:
            return convert(f"{source} BF16", plan_dequantize(require_sound(checkpoint)))

    return get
