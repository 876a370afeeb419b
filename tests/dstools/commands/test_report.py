"""`dstools report`: what it prints, and the files it replaces whole or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.sidefiles.carried import REPORTS

Pages = Callable[[Path], tuple[str, str]]
Report = Callable[..., Result]


def test_json_has_the_headline_figures_and_what_was_written(report: Report, measured: Path) -> None:
    found = json.loads(report(measured, "--json").stdout)
    with open_checkpoint(measured) as opened:
        nbytes = sum(info.nbytes for info in opened.tensors.values())
    assert found["written"] == [str(measured / name) for name in REPORTS]
    assert found["figures"].pop("output_error") == pytest.approx(0.0123, abs=0.003)
    assert found["figures"] == {
        "bytes": nbytes, "perplexity": 12.3456, "kl_mean": 0.00123, "top1_agreement": 0.9775,
        "router_flips": 0.02,
    }  # fmt: skip
    assert found["methods"] == {"gptq": 80, "nearest": 24}
    assert found["missing"] == []


def test_the_same_files_give_the_same_bytes(pages: Pages, measured: Path) -> None:
    first = [pages(measured), *((measured / name).read_bytes() for name in REPORTS)]
    assert [pages(measured), *((measured / name).read_bytes() for name in REPORTS)] == first
    assert not [path.name for path in measured.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_none_and_one_without_a_checkpoint_are_refused(
    report: Report, tmp_path: Path
) -> None:
    assert "no such folder" in report(tmp_path / "none").stderr
    assert report(tmp_path).exit_code == 1


def test_a_checkpoint_that_is_not_quantized_is_refused_and_left_as_it_is(
    report: Report, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bf16"
    shutil.copytree(tiny, folder)
    folder.chmod(0o755)
    result = report(folder)
    assert (result.exit_code, "is not quantized" in result.stderr) == (1, True)
    assert not (folder / "report.html").exists()


def test_a_failed_write_leaves_the_old_report(
    pages: Pages, report: Report, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = pages(measured)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", fail)
    assert report(measured).exit_code == 1
    assert (measured / "report.html").read_text() == old
    assert not list(measured.glob(".report*"))


def test_a_link_in_the_folder_is_replaced_and_not_followed(
    pages: Pages, bare: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("report.html", ".report.html.partial"):
        (bare / name).symlink_to(victim)
    pages(bare)
    assert victim.read_text() == "mine"
    assert not (bare / "report.html").is_symlink()


def test_a_dense_model_misses_no_expert_load(
    pages: Pages, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("tiny-qwen3", fp8="float32"), tmp_path / "dense"))
    folder.chmod(0o755)
    assert "expert_load.json" not in pages(folder)[0]
