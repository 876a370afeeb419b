"""The text of a card: every fact is the folder's, and no number was not measured."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from dstools.hub.card_text import Subject, card_text
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.errors import DstoolsError, size
from dstools_converters.sidefiles.carried import PLOTS
from dstools_converters.sidefiles.manifest import load_manifest
from dstools_converters.verify.engines import ENGINES, check_engine

Made = Callable[..., Result]


def subject(folder: Path, base: str | None = "org/base", **changes: Any) -> Subject:
    with open_checkpoint(folder) as checkpoint:
        inventory = take_inventory(checkpoint)
    given = {"repo": "me/model", "files": ()} | changes
    return Subject(folder, inventory, load_manifest(folder), base, **given)


def made(folder: Path, base: str | None = "org/base", **changes: Any) -> str:
    return card_text(subject(folder, base, **changes), has_title=True)


def section(markdown: str, heading: str) -> str:
    return markdown.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def rows(part: str) -> list[list[str]]:
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines if not line.startswith("| ---")]


def test_the_sections_follow_what_a_reader_wants_first(measured: Path) -> None:
    headings = [line for line in made(measured).splitlines() if line.startswith(("# ", "## "))]
    assert headings == [
        "# model",
        "## How to run it",
        "## Quality",
        "## What is quantized, and what is not",
        "## How it was made",
    ]
    assert "\n\n\n" not in made(measured)
    assert not re.search(r"\bNone\b", made(measured))


def test_a_title_is_the_repository_or_the_base_and_never_the_folder(bare: Path) -> None:
    assert made(bare).startswith("# model\n")
    assert made(bare, repo=None).startswith("# base, FP8\n")
    assert made(bare, None, repo=None).startswith("# deepseek_v3, FP8\n")
    assert card_text(subject(bare), has_title=False).startswith("## About this checkpoint\n")
    assert bare.name not in made(bare)


def test_the_base_is_linked_and_its_card_is_where_it_is_described(bare: Path) -> None:
    assert "[org/base](https://huggingface.co/org/base), quantized by dstools" in made(bare)
    assert "huggingface.co" not in made(bare, None)


def test_what_is_quantized_is_listed_by_role_with_its_bytes(compressed: Path) -> None:
    inventory = subject(compressed).inventory
    table = rows(section(made(compressed), "What is quantized, and what is not"))
    border = next(n for n, row in enumerate(table) if row[0].startswith("Not quantized"))
    quantized, plain = table[1:border], table[border + 1 :]
    assert {row[1] for row in quantized} == {"FP8 (E4M3), scales F32"}
    assert not any("FP8" in row[1] for row in plain)
    for is_quantized, listed, head in ((True, quantized, table[0]), (False, plain, table[border])):
        of_these = [s for s in inventory.storage.values() if s.is_quantized == is_quantized]
        assert sum(int(row[2].replace(",", "")) for row in listed) == len(of_these)
        assert head[0].endswith(f": {size(sum(s.nbytes for s in of_these))}")
    assert {row[0] for row in quantized} == {
        parsed.role
        for info, parsed in inventory.weights()
        if parsed and inventory.is_quantized(info)
    }
    assert "weights of 1 MTP layer are among them" in made(compressed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ""),
        (["--scale-fmt", "ue8m0"], " --scale-fmt ue8m0"),
        (["--format", "compressed-tensors"], " --format compressed-tensors"),
        (["--recipe", "{recipe}"], " --recipe RECIPE"),
        (["--base", "{fp8}"], " --base ORIG_FP8"),
        (["--lossless", "auto"], " --lossless auto"),
    ],
)
def test_the_command_says_the_options_that_made_the_folder(
    ok: Made, tiny: Path, tiny_fp8: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    recipe = tmp_path / "rules | `x`.toml"
    recipe.write_text('[[rule]]\nrole = ["o_proj"]\nscheme = "keep"\n')
    given = [option.format(recipe=recipe, fp8=tiny_fp8) for option in options]
    ok("quantize", tiny, tmp_path / "out", *given)
    text = made(tmp_path / "out")
    assert f"```sh\ndstools quantize SOURCE OUT{words}\n```" in text
    assert str(tmp_path) not in text
    if words == " --recipe RECIPE":
        assert "Rules of the recipe: rules \\| \\`x\\`.toml, rule 1." in text


def test_a_dequantized_folder_is_said_to_be_one(ok: Made, tiny_fp8: Path, tmp_path: Path) -> None:
    ok("dequantize", tiny_fp8, tmp_path / "out")
    text = made(tmp_path / "out")
    assert "```sh\ndstools dequantize SOURCE OUT\n```" in text
    assert "What is quantized" not in text
    assert text.endswith("| Written by | dstools 0.1.0 |")


def test_calibration_and_evaluation_are_named_with_data_and_command(measured: Path) -> None:
    text = made(measured)
    sampling = "--samples 4 --seq-len 256 --seed 7"
    assert f"SOURCE OUT --calibrate DATA --method gptq {sampling}\n" in text
    assert f"dstools eval OUT --data DATA --against SOURCE {sampling}\n" in text
    assert f"held-out.jsonl, 4 samples of 256 tokens, seed 7, SHA-256 {'ab' * 32}" in text
    for figure in ("12.346", "+2.88 % of the reference", "0.00123", "97.75 %", "torch 2.13.0"):
        assert figure in section(text, "Quality") + section(text, "How it was made")
    assert "Experts that no token chose: 1 of 16." in text
    assert "not measured" not in text.lower()


def test_without_measurements_no_figure_of_quality_is_shown(bare: Path) -> None:
    quality = section(made(bare), "Quality")
    assert quality.strip().startswith("Not measured:")
    assert not re.search(r"\d", re.sub(r"`[^`]*`|top-1", "", quality))


def test_weights_alone_are_evaluated_with_that_option(measured: Path) -> None:
    table = json.loads((measured / "eval.json").read_text())
    other = {"activations": "fp8", "perplexity": 12.5, "kl_mean": 0.002}
    table |= {"activations": "none", "other_activations": other, "against": None}
    (measured / "eval.json").write_text(json.dumps(table))
    assert "eval OUT --data DATA --activations none --samples" in made(measured)


def test_a_folder_that_dstools_did_not_write_says_so(tiny_fp8: Path) -> None:
    text = made(tiny_fp8)
    assert section(text, "How it was made").strip() == "Not recorded in the folder."
    assert "## Quality" not in text
    assert "quantized: native FP8" in text


def test_a_model_that_is_not_quantized_has_no_section_about_that(student: Path) -> None:
    text = made(student, None)
    assert "A qwen2 model, not quantized." in text
    assert "A qwen2 model, made from [org/base]" in made(student)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## How to run it"]
    assert "no FP8 rules apply" not in text


@pytest.mark.parametrize("name", ["bare", "compressed", "student"])
def test_engines_are_listed_as_verify_judges_them(
    request: pytest.FixtureRequest, name: str
) -> None:
    about = subject(request.getfixturevalue(name))
    part = section(card_text(about, has_title=True), "How to run it")
    serves, _, refuses = part.partition("Refused or misread by:")
    names = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
    for engine in ENGINES:
        findings = list(check_engine(about.inventory, engine, 1))
        is_right = not any(finding.level == "error" for finding in findings)
        assert "..." not in part, "nothing is cut"
        line = f"- {names.get(engine, engine)}: "
        assert (line in serves, line in refuses) == (is_right, not is_right)
        if is_right and about.inventory.scheme:
            assert all(f.message[:20] in serves for f in findings), "its caveats"
    assert "**This checkpoint itself was not run.**" in part
    assert "those of TensorRT-LLM were only read" in part


def test_without_a_repository_the_commands_have_a_placeholder(student: Path) -> None:
    assert "`vllm serve ORG/NAME`" in made(student, repo=None)
    assert "`vllm serve me/model`" in made(student)


def test_scales_of_a_cache_and_the_report_are_named(measured: Path, bare: Path) -> None:
    assert "Plots and all tables: [report.html](report.html)." in made(
        measured, files=("report.html",)
    )
    assert "report.html" not in made(measured)


def test_the_plots_that_are_among_the_files_are_shown(measured: Path, bare: Path) -> None:
    text = made(measured, files=PLOTS)
    quality = section(text, "Quality")
    assert re.findall(r"\n!\[[^\]]+\]\(([^)]+)\)\n", quality) == [*PLOTS]
    assert made(measured, files=PLOTS[:1]).count("![") == 1
    assert "![" not in made(measured)


def test_a_plot_without_its_figures_is_not_shown(bare: Path) -> None:
    assert "![" not in made(bare, files=PLOTS)


def test_names_from_files_stay_text(measured: Path) -> None:
    evil = "<img src=x>|`[a](http://b)"
    for name in ("eval.json", "calibration.json"):
        table = json.loads((measured / name).read_text())
        table |= {"tool": evil, "data": table["data"] | {"name": evil}}
        table |= {"against": evil} if name == "eval.json" else {"method": evil}
        (measured / name).write_text(json.dumps(table))
    manifest = json.loads((measured / "manifest.json").read_text())
    manifest |= {"tool": f"dstools {evil}", "source": f"{evil}@{evil}"}
    manifest["tensors"][f"copy: {evil}"] = 1
    (measured / "manifest.json").write_text(json.dumps(manifest))
    config = json.loads((measured / "config.json").read_text())
    text = made(measured)
    assert "<img" not in text
    assert "](http://b)" not in text
    assert config["model_type"] in text


def test_a_damaged_side_file_is_an_error_by_name(measured: Path) -> None:
    (measured / "eval.json").write_text("{}")
    with pytest.raises(DstoolsError, match=r"eval\.json"):
        made(measured)
