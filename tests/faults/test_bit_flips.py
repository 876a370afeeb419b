"""Single flipped bits, as a bad disk, memory or network makes them, anywhere in an output."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.sidefiles.sums import SUMS

FLIPS = 200


def findings(folder: Path, *options: str) -> list[dict[str, str]]:
    """Return the errors of `dstools verify FOLDER OPTIONS`; exit code 3 goes with them."""
    done = CliRunner().invoke(main, ["verify", str(folder), "--json", *options])
    errors = [item for item in json.loads(done.stdout)["findings"] if item["level"] == "error"]
    assert done.exit_code == (3 if errors else 0)
    return errors


@pytest.mark.slow
def test_200_flipped_bits_are_all_found_by_the_sums_and_named(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Positions are drawn over all bytes of weights and, as often, over the other files."""
    out = tmp_path / "out"
    made = CliRunner().invoke(main, ["quantize", str(checkpoint("tiny-qwen3")), str(out)])
    assert made.exit_code == 0, made.output
    assert findings(out, "--sums") == []
    dice = random.Random(14)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    large = [path for path in files if path.suffix == ".safetensors"]
    small = [path for path in files if path not in large]
    for flip in range(FLIPS):
        path = dice.choice(large if flip % 2 else small)
        kept, at = path.read_bytes(), dice.randrange(path.stat().st_size)
        damaged = bytearray(kept)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        name = str(path.relative_to(out))
        found = findings(out, "--sums")
        places = " ".join(item["where"] + " " + item["message"] for item in found)
        named = name in places or (path.name == SUMS and found)  # a digest's file, or a line
        assert named, f"bit {at} of {name}: {found}"
        path.write_bytes(kept)
    assert findings(out, "--sums") == []
