"""The sections of the page."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dstools.report.drawings import plots
from dstools.report.figures import figures
from dstools.report.numbers import percent
from dstools.report.sections import (
    errors_section,
    evaluation_section,
    load_section,
    methods_section,
)
from dstools.report.sheet import read_sheet
from dstools_converters.checkpoint.folder import open_checkpoint

Pages = Callable[[Path], tuple[str, str]]


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def test_weights_are_counted_by_method_and_their_reasons_grouped(
    pages: Pages, measured: Path
) -> None:
    html, _ = pages(measured)
    # 3 MoE layers (one of them MTP) of 8 experts; 104 weights are quantized
    assert re.search(r"nearest</th>.*?>24</td><td class=\"n\">23.08 %", html)
    assert re.search(r"gptq</th>.*?>80</td><td class=\"n\">76.92 %", html)
    reason = "0 tokens, fewer than 160 inputs"  # the first of those that differ in the number
    assert f'<td>{reason}</td><td class="n">24</td>' in html
    assert "1 tokens, fewer" not in html


def test_bytes_by_role_are_those_of_the_shards(pages: Pages, bare: Path) -> None:
    html, _ = pages(bare)
    with open_checkpoint(bare) as opened:
        infos = list(opened.tensors.values())
    experts = [i.nbytes for i in infos if ".experts." in i.name and ".down_proj" in i.name]
    assert f">{sum(experts) / 1e3:.4g} kB</td>" in html


def test_an_evaluation_without_a_reference_says_so(pages: Pages, measured: Path) -> None:
    found = json.loads((measured / "eval.json").read_text())
    null = ("against", "perplexity_against", "kl_mean", "kl_p99", "kl_max", "top1_agreement")
    found |= dict.fromkeys((*null, "kl_histogram")) | {"router_flips": {}, "output_error": []}
    write(measured, "eval.json", found)
    html, markdown = pages(measured)
    assert "12.346" in html
    assert "tiny-fp8 against no reference" in html
    assert html.count("needs --against") == 4  # three headlines, and the note of the perplexity
    assert markdown.count("| not measured | needs --against |") == 3


def test_errors_by_role_have_their_ratio_and_a_dash_where_not_measured(measured: Path) -> None:
    sheet = read_sheet(measured)
    html = errors_section(figures(sheet), plots(sheet, figures(sheet)))
    rows = dict(re.findall(r'<th scope="row">(\w+)</th>((?:<td class="n">[^<]*</td>){5})', html))
    cells = {role: re.findall(r">([^<]*)</td>", row) for role, row in rows.items()}
    # 2 % to nearest; 1 % as stored, but of the experts' down; o_proj in 3 layers: 1, 2 and 3 %
    held_out = percent(math.sqrt((1 + 4 + 9) / 3) / 100)
    assert cells["o_proj"] == ["4", "2.00 %", "1.00 %", "0.500 \u00d7", held_out]
    assert cells["routed_down"] == ["24", "2.00 %", "2.00 %", "1.00 \u00d7", "\u2013"]
    assert html.count("<svg") == 2


def test_without_held_out_errors_there_is_one_map(measured: Path) -> None:
    sheet = replace(read_sheet(measured), evaluation=None)
    html = errors_section(figures(sheet), plots(sheet, figures(sheet)))
    assert html.count("<svg") == 1
    assert "evaluation data</h3>" not in html


def test_the_load_of_experts_is_a_map_and_a_table_of_extremes(measured: Path) -> None:
    sheet = read_sheet(measured)
    assert sheet.expert_load is not None
    html = load_section(figures(sheet), plots(sheet, figures(sheet)))
    # layer 2: 2048 tokens over the mean of (2048 + 6 * 341) / 8
    cells = [f"{2048 / 511.75:.2f} \u00d7", "1", "0.00 \u00d7", "1"]
    assert "".join(f'<td class="n">{cell}</td>' for cell in cells) in html
    assert "1,024 tokens, each to 4 experts." in html


def test_codes_that_were_moved_are_counted(measured: Path) -> None:
    sheet = read_sheet(measured)
    html = methods_section(figures(sheet))
    moved = sum(weight.note.moved for weight in sheet.weights)
    share = percent(moved / sum(weight.note.numel for weight in sheet.weights))
    assert f"<p>{share} of the codes are not the nearest to their weight" in html


def test_the_perplexity_of_the_reference_and_the_divergence_are_rows(measured: Path) -> None:
    sheet = read_sheet(measured)
    assert sheet.evaluation is not None
    html = evaluation_section(sheet.evaluation, {})
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th><td class="n">([^<]*)</td>', html)
    assert rows[:6] == [
        ("Perplexity", "12.346"),
        ("Perplexity of the reference", "12.000"),
        ("KL divergence, mean", "0.00123"),
        ("KL divergence, 99th percentile", "0.0456"),
        ("KL divergence, largest", "0.789"),
        ("Top-1 agreement", "97.75 %"),
    ]


def test_both_activations_have_their_rows_and_the_first_is_the_headline(
    pages: Pages, measured: Path
) -> None:
    found = json.loads((measured / "eval.json").read_text())
    other = {"activations": "none", "perplexity": 12.1, "kl_mean": 0.000456, "kl_max": 0.3}
    write(measured, "eval.json", found | {"activations": "fp8", "other_activations": other})
    html, markdown = pages(measured)
    for label, value in (
        ("Perplexity, FP8 activations", "12.346"),
        ("Perplexity, weights alone", "12.100"),
        ("KL divergence, FP8 activations, mean", "0.00123"),
        ("KL divergence, weights alone, mean", "0.000456"),
    ):
        assert re.search(rf"{label}</t[hd]>.*?{value}", html), label
    assert "Charts show: FP8 activations." in html
    note = "FP8 activations: mean, nats a token; 99th percentile 0.0456. Weights alone: 0.000456"
    assert f"| KL divergence | 0.00123 | {note} |" in markdown


def test_an_older_evaluation_is_of_the_weights_alone(pages: Pages, measured: Path) -> None:
    html, markdown = pages(measured)
    assert "No activations are rounded." in html
    assert "| KL divergence | 0.00123 | weights alone: mean, nats a token" in markdown
