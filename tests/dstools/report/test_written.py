"""The files of a report: what is written, and what of before is removed or left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from dstools.report.drawings import OURS
from dstools.report.figures import figures
from dstools.report.sheet import read_sheet
from dstools.report.written import write_report
from dstools_converters.errors import DstoolsError
from dstools_converters.sidefiles.carried import PLOTS, REPORTS


def write(folder: Path) -> list[str]:
    sheet = read_sheet(folder)
    return [str(path.relative_to(folder)) for path in write_report(sheet, figures(sheet))]


def there(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / "plots").rglob("*")}


def test_page_markdown_and_plots_are_written_and_are_what_later_commands_know(
    measured: Path,
) -> None:
    assert write(measured) == [*REPORTS]
    assert there(measured) == {*PLOTS}
    markdown = (measured / "report.md").read_text()
    assert all(f"]({name})\n" in markdown for name in PLOTS)


def test_without_figures_there_is_no_plot_and_no_folder(bare: Path) -> None:
    assert write(bare) == ["report.html", "report.md"]
    assert not (bare / "plots").exists()
    assert "![" not in (bare / "report.md").read_text()


def test_plots_that_no_longer_apply_are_removed_and_others_stay(measured: Path) -> None:
    write(measured)
    (measured / "eval.json").unlink()
    (measured / "plots" / "loss.svg").write_text(f"<svg>{OURS}</svg>")
    assert write(measured) == ["report.html", "report.md", *PLOTS[3:]]
    assert there(measured) == {*PLOTS[3:], "plots/loss.svg"}
    assert "kl.svg" not in (measured / "report.md").read_text()
    (measured / "plots" / "loss.svg").unlink()
    for name in ("calibration.json", "expert_load.json"):
        (measured / name).unlink()
    write(measured)
    assert not (measured / "plots").exists()


@pytest.mark.parametrize("name", [PLOTS[0], PLOTS[4]])
def test_a_file_that_a_person_put_there_is_neither_replaced_nor_removed(
    measured: Path, name: str
) -> None:
    (measured / "expert_load.json").unlink()  # that of PLOTS[4] would be removed
    (measured / "plots").mkdir()
    (measured / name).write_text("<svg/>")
    with pytest.raises(DstoolsError, match=r"plots/\w+\.svg: is not a plot of a report") as error:
        write(measured)
    assert error.value.hint == "rename it, and report again"
    assert there(measured) == {name}
    assert not (measured / "report.html").exists()
    (measured / name).rename(measured / "plots" / "mine.svg")
    write(measured)
    assert (measured / "plots" / "mine.svg").read_text() == "<svg/>"


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_a_plots_that_leads_elsewhere_is_refused(measured: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (measured / "plots").write_text("")
    else:
        target = tmp_path / ("elsewhere" if kind == "link" else "none")
        (measured / "plots").symlink_to(target)
    with pytest.raises(DstoolsError, match="plots: is not a folder"):
        write(measured)
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_a_folder_with_plots_is_whole_for_verify_and_quantize_leaves_them_behind(
    measured: Path, ok: Callable[..., Result], tmp_path: Path
) -> None:
    write(measured)
    found = json.loads(ok("verify", measured, "--sums", "--json").stdout)["findings"]
    assert not [finding for finding in found if "plots/" in finding["where"]]
    source = Path(shutil.copytree(measured, tmp_path / "source"))
    (source / "plots" / "mine.svg").write_text("<svg/>")
    ok("dequantize", source, tmp_path / "out")
    assert there(tmp_path / "out") == {"plots/mine.svg"}
