"""The files of a report: a page, Markdown, and a file for each plot."""

from contextlib import suppress
from pathlib import Path

from dstools.report.card import card
from dstools.report.drawings import OURS, plots, standalone
from dstools.report.figures import Figures
from dstools.report.page import page
from dstools.report.sheet import Sheet
from dstools_converters.errors import DstoolsError
from dstools_converters.files import replace_file
from dstools_converters.sidefiles.carried import PLOTS


def write_report(sheet: Sheet, figures: Figures) -> list[Path]:
    """Write the report into the folder, and return its files; plots of before are removed.

    Raises DstoolsError where a plot would replace a file that is not one of a report, or `plots` is
    not a folder of the model's own.
    """
    folder, drawn = sheet.folder, plots(sheet, figures)
    _require_ours(folder)
    contents = {
        "report.html": page(sheet, figures, drawn),
        "report.md": card(sheet, figures, drawn),
        **{name: standalone(name, plot) for name, plot in drawn.items()},
    }
    for path in (folder / name for name in PLOTS if name not in drawn):
        if path.is_file():
            path.unlink()
            with suppress(OSError):  # of other files in it
                path.parent.rmdir()
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        replace_file(folder / name, content.encode())
    return [folder / name for name in contents]


def _require_ours(folder: Path) -> None:
    for place in {(folder / name).parent for name in PLOTS}:
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise DstoolsError(
                f"{place}: is not a folder", "rename it: the plots are written there"
            )
    for path in (folder / name for name in PLOTS):
        is_there = path.is_symlink() or path.exists()
        if is_there and not (path.is_file() and OURS.encode() in path.read_bytes()):
            raise DstoolsError(f"{path}: is not a plot of a report", "rename it, and report again")
