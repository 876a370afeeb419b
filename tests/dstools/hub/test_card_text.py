"""The text of a card: every fact is the folder's, and no number was not measured."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from dstools.hub.card_text import Subject, card_text
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.errors import DstoolsError, size
from dstools_converters.sidefiles.carried import PLOTS, REPORTS
from dstools_converters.sidefiles.manifest import load_manifest
from dstools_converters.verify.engines import ENGINES, check_engine

Made = Callable[..., Result]
SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


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


# ---------------------------------------------------------------------- a model that was measured


@pytest.fixture(scope="module")
def sample(ok: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model: calibrated, evaluated and reported by the commands."""
    out = tmp_path_factory.mktemp("sample") / "out"
    cut = ("--samples", "4", "--seq-len", "64")
    ok("quantize", SAMPLE, out, "--calibrate", f"{SAMPLE}-calibration.jsonl", *cut)
    ok("eval", out, "--data", f"{SAMPLE}-heldout.jsonl", "--against", SAMPLE, *cut)
    ok("report", out)
    return out


def numbers(text: str) -> list[str]:
    """Every number of a text; a digit inside a word, as in top-1, is not one."""
    return re.findall(r"(?<![\w.-])[+-]?\d[\d,]*(?:\.\d+)?(?![\w-])", text)


def is_rounded(shown: str, value: float) -> bool:
    """Return whether a number is `value`, rounded to the decimals it is shown with."""
    decimals = len(shown.partition(".")[2])
    return abs(float(shown.replace(",", "")) - value) <= 0.5001 * 10.0**-decimals


def pooled(notes: list[dict[str, Any]], key: str) -> float:
    numel = sum(note["numel"] for note in notes)
    return 100 * math.sqrt(sum(note["numel"] * note[key] ** 2 for note in notes) / numel)


def headline_figures(found: dict[str, Any], notes: list[dict[str, Any]]) -> Iterator[float]:
    """Yield the numbers of the first table and of the command of eval, in their order."""
    yield found["perplexity"]
    yield 100 * (found["perplexity"] / found["perplexity_against"] - 1)
    yield found["perplexity_against"]
    yield from (found["kl_mean"], found["kl_p99"], found["other_activations"]["kl_mean"])
    yield from (100 * found["top1_agreement"], found["tokens"])
    flips = found["router_flips"]
    worst = max(flips, key=flips.__getitem__)
    yield from (100 * sum(flips.values()) / len(flips), len(flips), int(worst), 100 * flips[worst])
    stored, nearest = pooled(notes, "error"), pooled(notes, "error_nearest")
    yield from (stored, nearest, stored / nearest)
    yield from (found["data"][key] for key in ("samples", "seq_len", "seed"))


def load_figures(load: dict[str, Any]) -> Iterator[float]:
    """Yield the numbers of the sentence on the load of experts, in their order."""
    layers = {int(layer): tokens for layer, tokens in load["layers"].items()}
    layer = max(layers, key=lambda n: max(layers[n]) / sum(layers[n]))
    most, experts = max(layers[layer]), len(layers[layer])
    yield from (most / (sum(layers[layer]) / experts), layer, layers[layer].index(most))
    yield sum(tokens.count(0) for tokens in layers.values())
    yield experts * len(layers)
    yield from (load["tokens"], load["num_experts_per_tok"])


@pytest.mark.slow
def test_every_number_of_quality_is_one_of_the_files_rounded(sample: Path) -> None:
    found, calibrated, load = (
        json.loads((sample / name).read_text())
        for name in ("eval.json", "calibration.json", "expert_load.json")
    )
    text = made(sample, files=(*REPORTS, "SHA256SUMS"))
    names = subject(sample).inventory.names
    notes: dict[str, list[dict[str, Any]]] = {}
    for name, note in calibrated["tensors"].items():
        assert note["tokens"] > 0
        notes.setdefault(names[name].role, []).append(note)
    held_out: dict[str, list[dict[str, Any]]] = {}
    for error in found["output_error"]:
        held_out.setdefault(error["role"], []).append(error)
    all_notes = [note for of_role in notes.values() for note in of_role]
    expected = [*headline_figures(found, all_notes)]
    quality = section(text, "Quality")
    order = [row[0] for row in rows(quality.partition("### Output error by role")[2])[1:]]
    order = order[: len(notes)]
    assert {*order} == notes.keys() == held_out.keys()
    for role in order:
        errors = [pooled(notes[role], key) for key in ("error_nearest", "error")]
        expected += [len(notes[role]), *errors, pooled(held_out[role], "error")]
    mtp = subject(sample).inventory.model.num_hidden_layers
    expected += [mtp, mtp]  # below each map of errors
    methods = Counter(note["method"] for note in all_notes)
    numel = sum(note["numel"] for note in all_notes)
    for method, weights in sorted(methods.items()):
        of_these = sum(note["numel"] for note in all_notes if note["method"] == method)
        expected += [weights, 100 * weights / len(all_notes), 100 * of_these / numel]
    why = next(note["why"] for note in calibrated["tensors"].values() if note["why"])
    expected += [*map(float, numbers(why)), methods["nearest"], *load_figures(load)]
    assert len(expected) > 90
    shown = numbers(re.sub(r"\]\([^)]*\)", "", quality))
    wrong = [(s, e) for s, e in zip(shown, expected, strict=True) if not is_rounded(s, e)]
    assert wrong == []
    for data in (found["data"], calibrated["data"]):
        cut = f"{data['samples']} samples of {data['seq_len']} tokens, seed {data['seed']}"
        assert f"{data['name']}, {cut}, SHA-256 {data['sha256']}" in text
    report = (sample / "report.md").read_text().splitlines()
    assert {line for line in quality.splitlines() if line.startswith(("| ", "!["))} <= {*report}
