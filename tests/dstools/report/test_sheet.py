"""The data of a report: a wrong value is refused with its file and key."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from dstools.report.sheet import read_sheet
from dstools_converters.checkpoint.folder import open_checkpoint

Edit = Callable[[dict[str, Any]], None]
Report = Callable[..., Result]


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


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
    report: Report, name: str, edit: Edit, message: str, measured: Path
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
def test_a_broken_file_is_named(report: Report, name: str, content: str, bare: Path) -> None:
    (bare / name).write_bytes(content.encode("latin-1"))
    result = report(bare)
    assert result.exit_code == 1
    wanted = "is not a JSON object" if content == "[]" else "is not valid JSON: "
    assert result.stderr.startswith(f"error: {bare / name}: {wanted}")


def test_a_calibration_of_another_output_is_refused(report: Report, measured: Path) -> None:
    manifest = json.loads((measured / "manifest.json").read_text())
    digest = sha256((measured / "calibration.json").read_bytes()).hexdigest()
    write(measured, "manifest.json", manifest | {"calibration": f"sha256:{digest}"})
    assert report(measured).exit_code == 0
    with (measured / "calibration.json").open("a") as file:
        file.write("\n")
    result = report(measured)
    assert result.exit_code == 1
    assert "calibration.json: is not the file that manifest.json was written with" in result.stderr


def test_the_sheet_of_a_plain_folder_has_its_bytes_and_writer_alone(bare: Path) -> None:
    sheet = read_sheet(bare)
    with open_checkpoint(bare) as opened:
        infos = list(opened.tensors.values())
    assert sum(sum(dtypes.values()) for dtypes in sheet.bytes.values()) == sum(
        info.nbytes for info in infos
    )
    down = [info for info in infos if ".experts." in info.name and ".down_proj" in info.name]
    scales = [info for info in down if info.name.endswith("_scale_inv")]
    assert sheet.bytes["routed_down"] == {
        "F8_E4M3": sum(info.numel for info in down) - sum(info.numel for info in scales),
        "F32": 4 * sum(info.numel for info in scales),
    }
    assert sheet.layers == 3
    assert sheet.tool is not None
    assert sheet.tool.startswith("dstools ")
    assert sum(sheet.rules.values()) == len(infos) - sum(
        info.name.endswith("_scale_inv") for info in infos
    )
    assert (sheet.calibration, sheet.expert_load, sheet.evaluation) == (None, None, None)
    assert sheet.weights == []


def test_a_weight_that_got_no_token_has_no_errors(measured: Path) -> None:
    found = json.loads((measured / "calibration.json").read_text())
    name = next(name for name in found["tensors"] if ".experts.3.down_proj" in name)
    found["tensors"][name]["tokens"] = 0
    write(measured, "calibration.json", found)
    weights = {weight.name: weight for weight in read_sheet(measured).weights}
    assert (weights[name].role, weights[name].layer) == ("routed_down", 1)
    assert (weights[name].note.error, weights[name].note.error_nearest) == (None, None)
    del weights[name]
    assert all(weight.note.error for weight in weights.values())
