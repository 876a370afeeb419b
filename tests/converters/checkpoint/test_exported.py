"""What dstools export wrote is not read as a checkpoint, whatever else lies in the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint.exported import EXPORT, is_exported
from dstools_converters.export import folder as written
from dstools_converters.export.ranks import Ranks

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def test_the_name_is_that_of_the_writer() -> None:
    assert EXPORT == written.EXPORT


def test_only_an_export_json_of_dstools_counts(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    assert is_exported(exported(SAMPLE))
    assert not is_exported(SAMPLE)
    (tmp_path / EXPORT).write_text('{"tool": "another"}')
    assert not is_exported(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "FOLDER"],
        ["quantize", "FOLDER", "OUT"],
        ["dequantize", "FOLDER", "OUT"],
        ["report", "FOLDER"],
        ["compare", "FOLDER", str(SAMPLE)],
        ["verify", str(SAMPLE), "--source", "FOLDER"],
        ["export", "FOLDER", "OUT", "--onnx"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_reads_checkpoints_says_what_the_folder_is(
    exported: Callable[..., Path], tmp_path: Path, words: list[str]
) -> None:
    folder, out = exported(SAMPLE), tmp_path / "out"
    places = {"FOLDER": str(folder), "OUT": str(out)}
    result = CliRunner().invoke(main, [places.get(word, word) for word in words])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: {folder}: was written by dstools export, and is not a checkpoint",
        "hint: give the checkpoint it was made from; verify, push and generate take this folder",
    ]
    assert not out.exists()


def test_experts_in_the_folder_are_not_a_model(exported: Callable[..., Path]) -> None:
    folder = exported(SAMPLE, ranks=Ranks(ep=2), expert_inputs=True)
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert "was written by dstools export" in result.stderr
