"""Pieces of the page: exact HTML, and their arguments escaped."""

from dstools.report.plots import Swatch
from dstools.report.tables import bar, details, figure, section, swatches, table

EVIL = "<b>&"
SAFE = "&lt;b&gt;&amp;"


def test_a_table_has_a_head_rows_and_numbers_to_the_right() -> None:
    assert table(("Role", "Size"), [("q_proj", "1"), (EVIL, EVIL)], (1,)) == (
        '<div class="scroll" tabindex="0" role="region" aria-label="Role">'
        '<table><thead><tr><th scope="col">Role</th><th scope="col" class="n">Size</th></tr>'
        '</thead>\n<tbody><tr><th scope="row">q_proj</th><td class="n">1</td></tr>\n'
        f'<tr><th scope="row">{SAFE}</th><td class="n">{SAFE}</td></tr>\n'
        "</tbody></table></div>"
    )


def test_a_table_may_have_a_caption_and_a_bar_after_its_first_column() -> None:
    html = table(("Role",), [("q_proj",)], (0,), f"of {EVIL}", [bar([("fp8", 0.25)])])
    assert f'aria-label="of {SAFE}"><table class=wide><caption>of {SAFE}</caption>' in html
    assert '<th scope="col" class="n">Role</th><th scope="col" class="track"></th>' in html
    assert (
        '<tr><th scope="row" class=n>q_proj</th><td class="track"><div class="stack" '
        'aria-hidden="true"><i class="fp8" style="width:25.000%"></i></div></td></tr>'
    ) in html


def test_a_legend_has_an_item_for_each_swatch_and_is_nothing_without() -> None:
    legend = swatches([Swatch("s0", EVIL), Swatch("s1", "b")])
    items = f'<li><i class="s0"></i>{SAFE}</li><li><i class="s1"></i>b</li>'
    assert legend == f'<ul class="legend">{items}</ul>'
    assert swatches([]) == ""


def test_headings_captions_and_summaries_are_escaped() -> None:
    assert section(EVIL, "<p>a</p>", "b") == f"<section>\n<h2>{SAFE}</h2>\n<p>a</p>b</section>\n"
    assert details(EVIL, "<p>") == f"<details><summary>{SAFE}</summary><p></details>\n"
    assert figure(EVIL, "<svg/>", EVIL) == (
        f'<figure><h3>{SAFE}</h3>\n<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{SAFE}"><svg/></div><figcaption>{SAFE}</figcaption></figure>\n'
    )
