"""The card as a page: every table, list and command is shown as one."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cards import Cards
from markdown_it import MarkdownIt

from dstools.hub.frontmatter import read_card
from dstools_converters.markdown import BEGIN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def page(card: str) -> str:
    """The card as the Hub shows it, but for its style."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    body = markdown.render(read_card(card.encode()).body)
    style = (
        "body{max-width:50em;margin:2em auto;font:16px/1.5 sans-serif}code{background:#eee}"
        "table{border-collapse:collapse}td,th{border:1px solid #ddd;padding:.2em .6em}"
    )
    return f"<!doctype html><meta charset=utf-8><style>{style}</style>{body}"


def test_every_table_list_and_command_is_rendered_as_one(card: Cards, measured: Path) -> None:
    shown = page(card(measured, local=b"---\nlicense: mit\n---\n", also=("report.html",)))
    text = re.sub("<code.*?</code>|<!--.*?-->", "", shown, flags=re.DOTALL)
    plain = html.unescape(re.sub("<[^>]+>", "", text))
    assert not re.search(r"^\s*\||\*\*|^#|```|\]\(|&lt;|\\", plain, re.MULTILINE)
    assert shown.count("<table>") == 8
    assert shown.count('<code class="language-sh">') == 2
    assert shown.count("<h1>") == 1
    assert BEGIN not in html.unescape(plain)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_the_card(card: Cards, measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "card.html"
    path.write_text(page(card(measured, local=b"---\nlicense: mit\n---\n")))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("<table>") == 8
    assert "97.75 %" in done.stdout
