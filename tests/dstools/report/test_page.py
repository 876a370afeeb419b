"""The page: it shows the figures, needs nothing from outside, and a browser takes it."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

Pages = Callable[[Path], tuple[str, str]]


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order; its texts in `texts`."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_both_pages_show_the_figures_of_all_files(pages: Pages, measured: Path) -> None:
    html, markdown = pages(measured)
    # pooled over all weights: sqrt(share of routed_down * 2 %^2 + the rest * 1 %^2)
    tensors = json.loads((measured / "calibration.json").read_text())["tensors"].values()
    squares = sum(t["numel"] * t["error"] ** 2 for t in tensors)
    pooled = math.sqrt(squares / sum(t["numel"] for t in tensors))
    for page in (html, markdown):
        for figure in (
            "12.346", "+2.88 % of the reference", "12.000", "0.00123", "0.0456", "97.75 %",
            "2.00 %", "mean of 2 layers, most in layer 2: 3.00 %", f"{100 * pooled:#.3g} %",
            "held-out.jsonl", "ab" * 32, "tiny-bf16", "torch 2.13.0", "dstools 0.1.0",
        ):  # fmt: skip
            assert figure.replace("'", "&#x27;") in page or figure in page, figure
    assert "449" not in markdown
    assert re.search(r"latent_amax</th><td class=\"n\">4[45]\d</td><td class=\"n\">2</td>", html)


@pytest.mark.parametrize(
    ("name", "absent", "command"),
    [
        ("eval.json", ["KL divergence by token", "Router flips by layer"], "dstools eval OUT"),
        ("calibration.json", ["How the weights were rounded", "Calibrated by"], "--calibrate DATA"),
        ("expert_load.json", ["Tokens of each expert"], "--calibrate DATA"),
        ("manifest.json", ["Tensors, quantize"], "no manifest.json of dstools"),
    ],
)
def test_each_file_may_be_missing_and_that_is_said(
    pages: Pages, name: str, absent: list[str], command: str, measured: Path
) -> None:
    before, _ = pages(measured)
    assert all(heading in before for heading in absent)
    assert "<p>Not measured</p>" not in before
    (measured / name).unlink()
    html, markdown = pages(measured)
    assert not any(heading in html for heading in absent)
    for page in (html, markdown):
        assert name in page
        assert command in page


def test_without_any_measurement_no_figure_is_shown(pages: Pages, bare: Path) -> None:
    html, markdown = pages(bare)
    assert html.count('class="none">not measured') == 5
    assert markdown.count("| not measured |") == 5
    assert "<svg" not in html


def test_the_page_names_the_cpu_of_a_calibration_where_it_is_recorded(
    pages: Pages, measured: Path
) -> None:
    assert "cpu, 2 threads, torch 2.13.0" in pages(measured)[0]
    found = json.loads((measured / "calibration.json").read_text())
    write(measured, "calibration.json", found | {"cpu": "AVX512 AMX"})
    assert "cpu AVX512 AMX, 2 threads, torch 2.13.0" in pages(measured)[0]


def test_names_from_files_are_escaped(pages: Pages, measured: Path, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    found = json.loads((measured / "eval.json").read_text())
    found |= {"model": evil, "against": evil, "tool": evil, "data": found["data"] | {"name": evil}}
    write(measured, "eval.json", found)
    found = json.loads((measured / "calibration.json").read_text())
    found |= {"device": evil, "cpu": evil, "versions": {evil: evil}}
    found["data"]["name"] = evil
    for tensor in found["tensors"].values():
        tensor["why"] = f"{evil} | a `b`\n\u202e"
    write(measured, "calibration.json", found)
    folder = measured.rename(tmp_path / "<img src=x onerror=alert(1)>")
    html, markdown = pages(folder)
    assert "script" not in Balanced(html).tags
    assert "img" not in Balanced(html).tags
    assert "&lt;script&gt;alert(&quot;x&quot;)" in html
    for page in (html, markdown):
        assert evil not in page
        assert "<img" not in page
        assert "\u202e" not in page
    row = next(line for line in markdown.splitlines() if "a \\`b\\`" in line)
    # three cells: the bar in the reason is not a border
    assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_the_page_is_well_formed_and_needs_nothing_from_outside(
    pages: Pages, measured: Path
) -> None:
    html, _ = pages(measured)
    page = Balanced(html)
    assert not page.addresses
    assert "url(" not in html
    assert "@import" not in html
    assert len(set(page.ids)) == len(page.ids)
    titles = re.findall(r'<svg role="img" aria-labelledby="([^"]+)"', html)
    assert len(titles) == 5
    assert set(titles) == set(page.ids)


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the document as headless Chromium has it, and the lines of its console."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--v=0", f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_the_page_without_an_error(
    pages: Pages, measured: Path, tmp_path: Path
) -> None:
    pages(measured)
    document, console = browse(measured / "report.html", tmp_path / "profile")
    assert console == []
    assert document.count("<svg") == 5
    assert "97.75 %" in document

    broken = tmp_path / "broken.html"  # the same look at a page with an error finds it
    broken.write_text((measured / "report.html").read_text() + "<script>none()</script>")
    _, console = browse(broken, tmp_path / "profile")
    assert len(console) == 1
