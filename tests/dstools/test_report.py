"""`dstools report`: it shows what the files say and nothing else, and a browser takes the page."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools.report.figures import pool
from dstools.report.numbers import fixed, number, percent
from dstools.report.plots import heat_map, histogram, layer_bars, load_map
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.sidefiles.evaluation import Histogram

Edit = Callable[[dict[str, Any]], None]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DATA = {"name": "held-out.jsonl", "sha256": "ab" * 32, "samples": 4, "seq_len": 256, "seed": 7}
DATA |= {"documents": 31}
TOKENS = 1024
EDGES = [10.0 ** (n / 4 - 6) for n in range(25)]  # 1e-6 to 1, 4 bins a decade


@pytest.fixture(scope="session")
def plain(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny DeepSeek, quantized without any data."""
    out = tmp_path_factory.mktemp("report") / "tiny-fp8"
    result = CliRunner().invoke(main, ["quantize", str(checkpoint("tiny")), str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def bare(plain: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(plain, tmp_path / "tiny-fp8"))


@pytest.fixture
def measured(bare: Path) -> Path:
    """The same with all three files of figures, which agree with its headers."""
    write(bare, "calibration.json", calibration(bare))
    write(bare, "expert_load.json", expert_load())
    write(bare, "eval.json", evaluation(bare))
    return bare


def calibration(folder: Path) -> dict[str, Any]:
    """Errors of 2 % to nearest and 1 % as stored; of the experts' down, 2 % and a reason."""
    with open_checkpoint(folder) as opened:
        inventory = take_inventory(opened)
    tensors = {}
    for info in inventory.tensors.values():
        parsed = inventory.names[info.name]
        if info.dtype == "F8_E4M3" and parsed is not None:
            is_cold = parsed.role == "routed_down"
            tensors[info.name] = {
                "method": "nearest" if is_cold else "gptq",
                "why": f"{parsed.expert} tokens, fewer than 160 inputs" if is_cold else "",
                "hessian": "none" if is_cold else "own",
                "tokens": TOKENS,
                "error_nearest": 0.02,
                "error": 0.02 if is_cold else 0.01,
                "weight_error": 0.03,
                "moved": 0 if is_cold else info.numel // 4,
                "far": 0,
                "numel": info.numel,
                "sha256": "cd" * 32,
            }
    return {
        "tool": "dstools 0.1.0", "method": "gptq", "scale_fmt": "float32", "data": dict(DATA),
        "tokens": TOKENS, "device": "cpu", "threads": 2, "versions": {"torch": "2.13.0"},
        "tensors": tensors,
        "kv": {"latent_amax": {"0": 3.0, "2": 449.5}, "rope_amax": {"0": 7.25}},
    }  # fmt: skip


def expert_load() -> dict[str, Any]:
    layers = {"1": [TOKENS // 2] * 8, "2": [0, 2 * TOKENS] + [TOKENS // 3] * 6}
    return {"tokens": TOKENS, "num_experts_per_tok": 4, "layers": layers}


def evaluation(folder: Path) -> dict[str, Any]:
    counts = [0] * 24
    counts[10], counts[11], counts[23] = 500, 504, 20
    errors = [
        {"layer": layer, "role": role, "error": 0.01 * (layer + 1), "numel": 1000}
        for layer in range(3)
        for role in ("q_a_proj", "o_proj")
    ]
    return {
        "tool": "dstools 0.1.0", "model": folder.name, "against": "tiny-bf16", "data": dict(DATA),
        "tokens": TOKENS, "perplexity": 12.3456, "perplexity_against": 12.0, "kl_mean": 0.00123,
        "kl_p99": 0.0456, "kl_max": 0.789, "top1_agreement": 0.9775,
        "kl_histogram": {"edges": EDGES, "counts": counts},
        "router_flips": {"1": 0.01, "2": 0.03}, "output_error": errors,
    }  # fmt: skip


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def report(folder: Path, *options: str) -> Result:
    result = CliRunner().invoke(main, ["report", str(folder), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def pages(folder: Path) -> tuple[str, str]:
    """Make the report and return HTML and Markdown."""
    result = report(folder)
    assert result.exit_code == 0, result.output
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


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


# ---------------------------------------------------------------------------------------- what it says


def test_both_pages_show_the_figures_of_all_files(measured: Path) -> None:
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


def test_weights_are_counted_by_method_and_their_reasons_grouped(measured: Path) -> None:
    html, markdown = pages(measured)
    # 3 MoE layers (one of them MTP) of 8 experts; 104 weights are quantized
    assert re.search(r"nearest</th>.*?>24</td><td class=\"n\">23.08 %", html)
    assert re.search(r"gptq</th>.*?>80</td><td class=\"n\">76.92 %", html)
    reason = "0 tokens, fewer than 160 inputs"  # the first of those that differ in the number
    assert f'<td>{reason}</td><td class="n">24</td>' in html
    assert f"| nearest | {reason} | 24 |" in markdown
    assert "1 tokens, fewer" not in html
    assert "| gptq |  |" not in markdown  # no reason is none


def test_json_has_the_headline_figures_and_what_was_written(measured: Path) -> None:
    found = json.loads(report(measured, "--json").stdout)
    with open_checkpoint(measured) as opened:
        nbytes = sum(info.nbytes for info in opened.tensors.values())
    assert found["written"] == [str(measured / "report.html"), str(measured / "report.md")]
    assert found["figures"].pop("output_error") == pytest.approx(0.0123, abs=0.003)
    assert found["figures"] == {
        "bytes": nbytes, "perplexity": 12.3456, "kl_mean": 0.00123, "top1_agreement": 0.9775,
        "router_flips": 0.02,
    }  # fmt: skip
    assert found["methods"] == {"gptq": 80, "nearest": 24}
    assert found["missing"] == []


def test_bytes_by_role_are_those_of_the_shards(bare: Path) -> None:
    html, markdown = pages(bare)
    with open_checkpoint(bare) as opened:
        infos = list(opened.tensors.values())
    experts = [i.nbytes for i in infos if ".experts." in i.name and ".down_proj" in i.name]
    assert f">{sum(experts) / 1e3:.4g} kB</td>" in html
    for dtype in ("F8_E4M3", "BF16"):
        nbytes = sum(info.nbytes for info in infos if info.dtype == dtype)
        assert f"| {dtype} | {nbytes / 1e6:.4g} MB |" in markdown


def test_the_same_files_give_the_same_bytes(measured: Path) -> None:
    first = pages(measured)
    assert pages(measured) == first
    assert not [path.name for path in measured.iterdir() if path.name.startswith(".")]


def test_a_weight_that_saw_no_token_has_no_error(measured: Path) -> None:
    found = json.loads((measured / "calibration.json").read_text())
    for tensor in found["tensors"].values():
        tensor |= {"tokens": 0, "error": 0.0, "error_nearest": 0.0}
    write(measured, "calibration.json", found)
    (measured / "eval.json").unlink()
    html, _ = pages(measured)
    assert "no weight saw a token" in html
    assert "by role and layer" not in html


# ------------------------------------------------------------------------------------- what is missing


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
    name: str, absent: list[str], command: str, measured: Path
) -> None:
    before, _ = pages(measured)
    assert all(heading in before for heading in absent)
    assert "Not known of this checkpoint" not in before
    (measured / name).unlink()
    html, markdown = pages(measured)
    assert not any(heading in html for heading in absent)
    for page in (html, markdown):
        assert name in page
        assert command in page


def test_without_any_measurement_no_figure_is_shown(bare: Path) -> None:
    html, markdown = pages(bare)
    assert html.count('class="none">not measured') == 5
    assert markdown.count("| not measured |") == 5
    assert "<svg" not in html


def test_an_evaluation_without_a_reference_says_so(measured: Path) -> None:
    found = json.loads((measured / "eval.json").read_text())
    null = ("against", "perplexity_against", "kl_mean", "kl_p99", "kl_max", "top1_agreement")
    found |= dict.fromkeys((*null, "kl_histogram")) | {"router_flips": {}, "output_error": []}
    write(measured, "eval.json", found)
    html, markdown = pages(measured)
    assert "12.346" in html
    assert "no reference" in html
    assert markdown.count("| not measured | needs --against |") == 3


def test_a_dense_model_misses_no_expert_load(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("tiny-qwen3", fp8="float32"), tmp_path / "dense"))
    folder.chmod(0o755)
    assert "expert_load.json" not in pages(folder)[0]


# --------------------------------------------------------------------------------------- what is wrong


def drop(key: str) -> Edit:
    return lambda found: found.pop(key)


def put(value: object, *keys: str | int) -> Edit:
    def edit(found: Any) -> None:
        for key in keys[:-1]:
            found = found[next(iter(found))] if key == "*" else found[key]
        found[keys[-1]] = value

    return edit


def rename_a_tensor(found: Any) -> None:
    found["tensors"]["model.x.weight"] = found["tensors"].pop(next(iter(found["tensors"])))


WRONG: list[tuple[str, Edit, str]] = [
    ("calibration.json", drop("method"), "method: is missing"),
    ("calibration.json", put([], "tensors"), "tensors: is not a table"),
    ("calibration.json", put(1, "tensors", "*", "error"), ""),
    ("calibration.json", put("1", "tensors", "*", "error"), ".error: '1' is not a number"),
    ("calibration.json", put(-1.0, "tensors", "*", "error"), ".error: -1.0 is out of range"),
    ("calibration.json", put(1e300, "tensors", "*", "error"), ".error: 1e+300 is out of range"),
    ("calibration.json", put(True, "tensors", "*", "moved"), ".moved: True is not a whole number"),
    (
        "calibration.json",
        put("magic", "tensors", "*", "method"),
        ".method: 'magic' is none of gptq",
    ),
    ("calibration.json", put(5, "tensors", "*", "numel"), ".numel: is not the"),
    ("calibration.json", rename_a_tensor, "model.x.weight: is in no shard"),
    (
        "calibration.json",
        put({"61": 1.0}, "kv", "latent_amax"),
        "kv.latent_amax: 61 is none of the model's 4 layers",
    ),
    ("calibration.json", put({}, "kv", "<b>"), "kv.<b>: '<b>' is none of"),
    ("calibration.json", put(3, "versions", "torch"), "versions.torch: 3 is not text"),
    ("calibration.json", put(None, "data", "name"), "data.name: None is not text"),
    ("expert_load.json", put([1, 2], "layers", "1"), "layers.1: has 2 experts; the model has 8"),
    ("expert_load.json", put([1.5] * 8, "layers", "1"), "layers.1[0]: 1.5 is not a whole number"),
    ("expert_load.json", put([0] * 8, "layers", "01"), "layers.01: is not a whole number"),
    ("expert_load.json", put("8", "tokens"), "tokens: '8' is not a whole number"),
    ("eval.json", put(1.2, "top1_agreement"), "top1_agreement: 1.2 is out of range"),
    ("eval.json", put({"1": 2}, "router_flips"), "router_flips.1: 2 is out of range"),
    ("eval.json", put("low", "perplexity"), "perplexity: 'low' is not a number"),
    ("eval.json", put([1, 0.5], "kl_histogram", "edges"), "kl_histogram.edges: do not rise"),
    ("eval.json", put([1], "kl_histogram", "counts"), "kl_histogram.counts: are 1 for 25 edges"),
    ("eval.json", put(7, "kl_histogram", "counts", 0), "are of 1031 tokens, not of the 1024"),
    ("eval.json", put(1e304, "perplexity"), ""),
    ("eval.json", put(9, "output_error", 0, "layer"), "output_error[0].layer: 9 is none of the"),
    ("eval.json", put("x", "output_error", 0, "role"), "output_error[0].role: 'x' is none of"),
    ("eval.json", put(["x"], "output_error"), "output_error[0]: is not a table"),
    ("manifest.json", put("many", "tensors", "*"), "is not a whole number"),
]


@pytest.mark.parametrize(("name", "edit", "message"), WRONG)
def test_a_wrong_value_is_named_with_its_file_and_key(
    name: str, edit: Edit, message: str, measured: Path
) -> None:
    found = json.loads((measured / name).read_text())
    edit(found)
    if name == "manifest.json":
        found["tensors"] = {"copy: x": "many"}
    write(measured, name, found)
    result = report(measured)
    if not message:  # a whole number is a number
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {measured / name}: ")
    assert message in result.stderr
    assert "hint: " in result.stderr
    assert not (measured / "report.html").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"tool": NaN}', '{"tool": 1, "tool": 2}', "\xff"]
)
@pytest.mark.parametrize(
    "name", ["manifest.json", "calibration.json", "expert_load.json", "eval.json"]
)
def test_a_broken_file_is_named(name: str, content: str, bare: Path) -> None:
    (bare / name).write_bytes(content.encode("latin-1"))
    result = report(bare)
    assert result.exit_code == 1
    wanted = "is not a JSON object" if content == "[]" else "is not valid JSON: "
    assert result.stderr.startswith(f"error: {bare / name}: {wanted}")


def test_a_calibration_of_another_output_is_refused(measured: Path) -> None:
    manifest = json.loads((measured / "manifest.json").read_text())
    digest = sha256((measured / "calibration.json").read_bytes()).hexdigest()
    write(measured, "manifest.json", manifest | {"calibration": f"sha256:{digest}"})
    assert report(measured).exit_code == 0
    with (measured / "calibration.json").open("a") as file:
        file.write("\n")
    result = report(measured)
    assert result.exit_code == 1
    assert "calibration.json: is not the file that manifest.json was written with" in result.stderr


def test_a_folder_that_is_none_and_one_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in report(tmp_path / "none").stderr
    assert report(tmp_path).exit_code == 1


def test_a_checkpoint_that_is_not_quantized_is_refused_and_left_as_it_is(
    tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bf16"
    shutil.copytree(tiny, folder)
    folder.chmod(0o755)
    result = report(folder)
    assert (result.exit_code, "is not quantized" in result.stderr) == (1, True)
    assert not (folder / "report.html").exists()


def test_a_failed_write_leaves_the_old_report(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = pages(measured)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", fail)
    assert report(measured).exit_code == 1
    assert (measured / "report.html").read_text() == old
    assert not list(measured.glob(".report*"))


def test_a_link_in_the_folder_is_replaced_and_not_followed(bare: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("report.html", ".report.html.partial"):
        (bare / name).symlink_to(victim)
    pages(bare)
    assert victim.read_text() == "mine"
    assert not (bare / "report.html").is_symlink()


# ---------------------------------------------------------------------------------- the page as a page


def test_names_from_files_are_escaped(measured: Path, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    found = json.loads((measured / "eval.json").read_text())
    found |= {"model": evil, "against": evil, "tool": evil, "data": found["data"] | {"name": evil}}
    write(measured, "eval.json", found)
    found = json.loads((measured / "calibration.json").read_text())
    found |= {"device": evil, "versions": {evil: evil}, "data": found["data"] | {"name": evil}}
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
    assert (
        len(re.findall(r"(?<!\\)\|", row)) == 4
    )  # three cells: the bar in the reason is no border


def test_the_page_is_well_formed_and_needs_nothing_from_outside(measured: Path) -> None:
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
def test_a_browser_shows_the_page_without_an_error(measured: Path, tmp_path: Path) -> None:
    pages(measured)
    document, console = browse(measured / "report.html", tmp_path / "profile")
    assert console == []
    assert document.count("<svg") == 5
    assert "97.75 %" in document

    broken = tmp_path / "broken.html"  # the same look at a page with an error finds it
    broken.write_text((measured / "report.html").read_text() + "<script>none()</script>")
    _, console = browse(broken, tmp_path / "profile")
    assert len(console) == 1


# ---------------------------------------------------------------------------------- numbers and plots


def test_numbers_keep_their_significant_digits() -> None:
    assert number(0.0024) == "0.00240"
    assert number(0.009999) == "0.0100"
    assert number(12.3456, 5) == "12.346"
    assert number(123456.0) == "123,456"
    assert number(0.0) == "0"
    assert number(1.234e-7) == "1.23e-07"
    assert number(-0.5) == "-0.500"
    assert percent(0.0121) == "1.21 %"
    assert [fixed(share) for share in (1.0, 0.00744, 1e-6, 0.0)] == [
        "100.00 %", "0.74 %", "< 0.01 %", "0.00 %",
    ]  # fmt: skip


def test_errors_are_pooled_as_root_mean_squares_by_elements() -> None:
    # sqrt((1 * 3^2 + 3 * 1^2) / 4) = sqrt(3)
    found = pool([("a", 3.0, 1), ("a", 1.0, 3), ("a", None, 9), ("b", None, 1)])
    assert found == {"a": pytest.approx(math.sqrt(3))}


def test_the_heat_map_puts_the_extremes_into_the_first_and_last_class() -> None:
    cells = {("q_proj", 0): 0.001, ("q_proj", 1): 0.1, ("o_proj", 1): 0.01, ("o_proj", 0): 0.0}
    svg, legend = heat_map("x", "X", cells, ["q_proj", "o_proj"], 2)
    found = dict(re.findall(r'<rect class="(\w+)"[^>]*><title>([^:]+):', svg))
    # 0.01 is the geometric middle of 0.001 and 0.1: the edge between s3 and s4
    assert found.pop("zero") == "o_proj, layer 0"
    assert set(found) <= {"s0", "s3", "s4", "s7"}
    assert (found["s0"], found["s7"]) == ("q_proj, layer 0", "q_proj, layer 1")
    assert [css for css, _ in legend] == ["zero", *(f"s{n}" for n in range(8))]
    assert legend[1].label == "0.100 to 0.178 %"  # 10^(2/8) = 1.778


def test_the_load_map_classes_experts_by_their_multiple_of_the_mean() -> None:
    # mean 100: 0 never, 20 < 1/4, 100 about the mean, 100 joined to it, 280 in 2 to 4
    svg, _ = load_map("x", "X", {1: [0, 20, 100, 100, 280]})
    paths = dict(re.findall(r'<path class="(\w+)" d="([^"]*)"', svg))
    assert set(paths) == {"never", "d0", "d3", "d5"}
    assert paths["d3"].count("M") == 1
    width = float(re.findall(r"h(\d+)v", paths["d0"])[0])
    assert f"h{2 * width:g}v" in paths["d3"]
    assert "2.80" in svg


def test_a_histogram_gives_each_bin_its_share_of_the_height() -> None:
    found = Histogram((1e-3, 1e-2, 1e-1, 1.0), (25, 75, 0))
    svg = histogram("x", "X", found, {"mean": 0.02, "99th percentile": 5.0})
    heights = [float(h) for h in re.findall(r'class="bar"[^>]*height="([\d.]+)"', svg)]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.2)  # coordinates have one decimal
    assert "mean 0.0200" in svg
    assert "99th" not in svg  # beyond the axis
    assert histogram("x", "X", Histogram((0.0, 1e-3, 1e-2), (1, 2)), {}).count('"bar"') == 2


def test_flips_that_are_all_zero_still_have_an_axis() -> None:
    assert layer_bars("x", "X", {3: 0.0}, "y").count('"grid"') >= 2


def test_a_page_for_671b_stays_small(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    # 58 layers of 256 experts, every neighbour in another class: the worst case of the run lengths
    load = {layer: [1 + (n + layer) % 2 * 7 for n in range(256)] for layer in range(3, 61)}
    svg, _ = load_map("x", "X", load)
    assert len(svg) < 500_000
    cells = {(f"role{r}", layer): 0.01 + r for r in range(14) for layer in range(62)}
    assert len(heat_map("x", "X", cells, [f"role{r}" for r in range(14)], 62)[0]) < 200_000
