"""verify: a zoo of damaged folders, each caught by name, and good ones without a finding."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors

from dstools_converters.errors import DstoolsError
from dstools_converters.verify.engines import ENGINES
from dstools_converters.verify.folder import verify
from dstools_converters.verify.report import Report

Checkpoint = Callable[..., Path]
Convert = Callable[..., Path]
Edited = Callable[[Path], Any]
Ask = Callable[..., tuple[int, Any]]
Folder = Any  # of conftest.py, as is Tensor
Tensor = Any
INDEX = "model.safetensors.index.json"
O_PROJ = "model.layers.1.self_attn.o_proj.weight"  # [256, 128], scales [2, 1]
KV_B = "model.layers.1.self_attn.kv_b_proj.weight"  # [256, 192], scales [2, 2]
Q_A = "model.layers.2.self_attn.q_a_proj.weight"  # an engine runs it as one with kv_a_proj_with_mqa
ROUTER = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
EXPERT = "model.layers.2.mlp.experts.{}.{}_proj.weight"
NORM = "model.norm.weight"


# ------------------------------------------------------------------------------------ good folders


@pytest.mark.parametrize("scales", ["float32", "ue8m0"])
def test_whatever_the_converters_write_is_good(
    scales: str, tiny: Path, checkpoint: Checkpoint, quantized: Convert, dequantized: Convert
) -> None:
    fp8 = checkpoint("tiny", fp8=scales)
    apart = checkpoint("tiny", fp8=scales, scales_apart=True)
    bf16 = dequantized(fp8)
    made = {
        "native": (quantized(tiny, scale_format=scales), tiny),
        "compressed-tensors": (quantized(tiny, "compressed-tensors"), tiny),
        "compressed-tensors from FP8": (quantized(fp8, "compressed-tensors"), fp8),
        "dequantized": (bf16, fp8),
        "restored from the base": (quantized(bf16, base=fp8), bf16),
        "the same, against the base": (quantized(bf16, base=fp8), fp8),
        "copied": (quantized(apart), apart),
        "requantized": (quantized(fp8, scale_format="ue8m0"), fp8),
    }
    for what, (folder, source) in made.items():
        for report in (verify(folder), verify(folder, source=source, workers=2)):
            assert report.findings == [], what
            assert report.ok
        elements = sum(
            int(np.prod(tensor.shape))
            for name, tensor in headers(source).items()
            if not name.endswith("_scale_inv")
        )
        assert report.elements_compared == elements, what


class Header(NamedTuple):
    dtype: str
    shape: list[int]


def headers(folder: Path) -> dict[str, Header]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        del header["__metadata__"]
        found |= {name: Header(entry["dtype"], entry["shape"]) for name, entry in header.items()}
    return found


KINDS = ["tiny-v2", "tiny-v2-lite", "tiny-v32", "tiny-llama", "tiny-qwen2", "tiny-qwen3"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_good_before_and_after(
    kind: str, checkpoint: Checkpoint, quantized: Convert
) -> None:
    source = checkpoint(kind)
    assert verify(source).findings == []
    assert verify(checkpoint(kind, fp8="ue8m0")).findings == []
    for format in ("native", "compressed-tensors"):
        assert verify(quantized(source, format), source=source).findings == []


def test_a_report_says_what_was_not_checked(tiny_fp8: Path, ask: Ask) -> None:
    code, report = ask(tiny_fp8)
    assert code == 0
    assert [text.split(":")[0] for text in report["not_checked"]] == [
        "what engines ask for",
        "weights against their source",
        "who made it",
    ]
    assert report["elements_compared"] == 0
    code, report = ask(tiny_fp8, "--engine", "sglang", "--source", str(tiny_fp8))
    assert [text.split(":")[0] for text in report["not_checked"]] == ["who made it"]


# --------------------------------------------------------------------------------------- the zoo


class Case(NamedTuple):
    """`damage` makes of a good folder one with the finding `code` at `where`."""

    name: str
    damage: Callable[[Folder], object]
    code: str
    where: tuple[str, ...]  # file and tensor; "*" stands for the tensor's shard
    level: str = "error"
    needs_source: bool = False


def transpose(tensor: Tensor, *, is_square: bool) -> None:
    values = tensor.floats()
    assert (values.shape[0] == values.shape[1]) == is_square
    tensor.shape = list(values.T.shape)
    tensor.data = bytearray(values.T.tobytes())


def as_exponent_bytes(folder: Folder) -> None:
    """UE8M0 byte v means 2^(v - 127); read as a number it is v."""
    tensor = folder.scale(O_PROJ)
    tensor.floats()[:] = np.ceil(np.log2(tensor.floats())) + 127
    assert (tensor.floats() > 100).all()


def set_scale(value: float) -> Callable[[Folder], object]:
    return lambda folder: folder.scale(KV_B).floats().__setitem__((1, 0), value)


def quantize_kept(name: str) -> Callable[[Folder], object]:
    def damage(folder: Folder) -> None:
        tensor = folder[name]
        grid = [-(-side // 128) for side in tensor.shape]
        tensor.dtype, tensor.data = "F8_E4M3", bytearray(len(tensor.data) // 2)
        scales = np.full(grid, 0.01, np.float32).tobytes()
        folder.put(f"{name}_scale_inv", "F32", grid, scales, tensor.shard)

    return damage


def keep_quantized(
    name: str, *, named: bool, leave_scale: bool = False
) -> Callable[[Folder], None]:
    def damage(folder: Folder) -> None:
        tensor = folder[name]
        tensor.dtype, tensor.data = "BF16", bytearray(2 * len(tensor.data))
        if not leave_scale:
            folder.drop(f"{name}_scale_inv")
        if named:
            kept = [name.removesuffix(".weight")]
            folder.config["quantization_config"]["modules_to_not_convert"] = kept

    return damage


def drop_mtp(folder: Folder) -> None:
    for name in [name for name in folder.tensors if name.startswith("model.layers.3.")]:
        folder.drop(name)


def unquantize_all(folder: Folder) -> None:
    for name, tensor in list(folder.tensors.items()):
        if tensor.dtype == "F8_E4M3":
            tensor.dtype, tensor.data = "BF16", bytearray(2 * len(tensor.data))
            folder.drop(f"{name}_scale_inv")


def swap_experts(folder: Folder) -> None:
    for side in ("gate", "up", "down"):
        a, b = (EXPERT.format(number, side) for number in (2, 5))
        for suffix in ("", "_scale_inv"):
            x, y = folder[a + suffix], folder[b + suffix]
            x.data, y.data = y.data, x.data


def edit_file(name: str, edit: Callable[[Path], object]) -> Callable[[Folder], object]:
    """Damage a file after all has been written."""
    return lambda folder: folder.after.append(lambda: edit(folder.path / name))


def edit_index(edit: Callable[[dict[str, Any]], object]) -> Callable[[Folder], object]:
    def change(path: Path) -> None:
        index = json.loads(path.read_text())
        edit(index)
        path.write_text(json.dumps(index))

    return edit_file(INDEX, change)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def blank(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def add_in_another_shard(folder: Folder) -> None:
    """Put a second copy of a norm where the index does not look."""

    def double(path: Path) -> None:
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        span = [len(raw) - start, len(raw) - start + 512]
        header[NORM] = {"dtype": "BF16", "shape": [256], "data_offsets": span}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:] + bytes(512))

    folder.after.append(lambda: double(folder.path / FIRST))


def number_in_metadata(path: Path) -> None:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    text = json.dumps(json.loads(raw[8:start]) | {"__metadata__": {"format": 1}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])


def swap_nibbles(tensor: Tensor) -> None:
    codes = np.frombuffer(tensor.data, np.uint8)
    tensor.data = bytearray(((codes >> 4) | (codes << 4)).astype(np.uint8).tobytes())


def change(**values: Any) -> Callable[[Folder], object]:
    return lambda folder: folder.config.update(values)


def configure(**values: Any) -> Callable[[Folder], object]:
    return lambda folder: folder.config["quantization_config"].update(values)


FIRST, LAST = "model-00001-of-00006.safetensors", "model-00006-of-00006.safetensors"
O_SCALE, KV_SCALE = f"{O_PROJ}_scale_inv", f"{KV_B}_scale_inv"
ZOO = [
    # scales
    Case("a scale dropped", lambda f: f.drop(O_SCALE), "scale-missing", ("*", O_PROJ)),
    Case("a scale transposed", lambda f: transpose(f.scale(O_PROJ), is_square=False),
         "scale-shape", ("*", O_SCALE)),
    Case("a square scale transposed", lambda f: transpose(f.scale(KV_B), is_square=True),
         "outside-bound", ("*", KV_B), needs_source=True),
    Case("a scale in BF16", lambda f: f.scale(O_PROJ).to_bf16(), "scale-not-f32", ("*", O_SCALE)),
    Case("a scale in BF16, held to the source", lambda f: f.scale(O_PROJ).to_bf16(),
         "outside-bound", ("*", O_PROJ), needs_source=True),
    Case("a scale of integers", lambda f: setattr(f.scale(O_PROJ), "dtype", "I32"),
         "scale-dtype", ("*", O_SCALE)),
    Case("exponent bytes read as numbers", as_exponent_bytes, "scale-value", ("*", O_SCALE),
         level="warning"),
    Case("the same, held to the source", as_exponent_bytes, "outside-bound", ("*", O_PROJ),
         needs_source=True),
    Case("a scale of zero", set_scale(0.0), "scale-value", ("*", KV_SCALE)),
    Case("a negative scale", set_scale(-0.01), "scale-value", ("*", KV_SCALE)),
    Case("a scale of NaN", set_scale(float("nan")), "scale-value", ("*", KV_SCALE)),
    Case("a scale of infinity", set_scale(float("inf")), "scale-value", ("*", KV_SCALE)),
    Case("a scale of NaN, held to the source", set_scale(float("nan")), "not-compared", ("*", KV_B),
         needs_source=True),
    Case("ue8m0 as a label only", configure(scale_fmt="ue8m0"), "scale-ue8m0", ("*", O_SCALE)),
    Case("another block size", configure(weight_block_size=[64, 64]),
         "scale-shape", ("*", "model.layers.0.mlp.down_proj.weight_scale_inv")),
    Case("a scale beside no FP8", keep_quantized(Q_A, named=True, leave_scale=True),
         "scale-orphaned", ("*", f"{Q_A}_scale_inv")),
    # roles
    Case("the router quantized", quantize_kept(ROUTER), "role-quantized", ("*", ROUTER)),
    Case("the head quantized", quantize_kept("lm_head.weight"),
         "role-quantized", ("*", "lm_head.weight")),
    Case("eh_proj quantized", quantize_kept("model.layers.3.eh_proj.weight"),
         "role-quantized", ("*", "model.layers.3.eh_proj.weight")),
    Case("a weight kept in silence", keep_quantized(O_PROJ, named=False),
         "role-kept", ("*", O_PROJ)),
    Case("fused siblings apart", keep_quantized(Q_A, named=True), "fused-apart", ("*", Q_A)),
    Case("the router's bias in BF16", lambda f: f[BIAS].to_bf16(), "router-bias", ("*", BIAS),
         level="warning"),
    Case("FP8 under an unknown name",
         lambda f: f.put("model.extra.weight", "F8_E4M3", [2, 2], bytes(4)),
         "fp8-unknown", ("*", "model.extra.weight")),
    # MTP
    Case("the MTP layer missing", drop_mtp, "mtp-mismatch", ("config.json",)),
    Case("an MTP layer that the config denies", change(num_nextn_predict_layers=0),
         "mtp-mismatch", ("config.json",)),
    Case("an MTP layer without its eh_proj", lambda f: f.drop("model.layers.3.eh_proj.weight"),
         "weight-missing", ("model.layers.3.eh_proj.weight",)),
    # names and shapes
    Case("a weight missing", lambda f: f.drop(NORM), "weight-missing", (NORM,)),
    Case("an expert too many",
         lambda f: f.put(EXPERT.format(8, "up"), "BF16", [160, 256], bytes(81920)),
         "weight-unasked", ("*", EXPERT.format(8, "up"))),
    Case("a wrong shape", lambda f: setattr(f[NORM], "shape", [16, 16]), "shape", ("*", NORM)),
    Case("FP8 of one dimension", lambda f: setattr(f[O_PROJ], "shape", [256 * 128]),
         "shape", ("*", O_PROJ)),
    Case("a tensor more than in the source",
         lambda f: f.put("model.extra.weight", "BF16", [2], bytes(4)),
         "added", ("*", "model.extra.weight"), needs_source=True),
    Case("a tensor less than in the source", lambda f: f.drop(BIAS), "lost", (BIAS,),
         needs_source=True),
    # config
    Case("FP8 without quantization_config", lambda f: f.config.pop("quantization_config"),
         "quantization-unnamed", ("*", "weight")),
    Case("quantization_config without FP8", unquantize_all, "quantization-empty", ("config.json",)),
    Case("another quant_method", configure(quant_method="gptq"), "config", ("config.json",)),
    Case("another model_type", change(model_type="gpt2"), "config", ("config.json",)),
    Case("a hidden size that is text", change(hidden_size="256"), "config", ("config.json",)),
    Case("a config key changed", change(rope_theta=5), "config-differs", ("config.json",),
         level="warning", needs_source=True),
    # files
    Case("a wrong total_size", lambda f: f.index["metadata"].update(total_size=-1),
         "total-size", (INDEX,)),
    Case("the index names another shard",
         edit_index(lambda i: i["weight_map"].update({NORM: FIRST})),
         "index-disagrees", (INDEX, NORM)),
    Case("the index knows a tensor too many",
         edit_index(lambda i: i["weight_map"].update({"model.x": FIRST})),
         "index-disagrees", (INDEX, "model.x")),
    Case("the index lacks a tensor", edit_index(lambda i: i["weight_map"].pop(NORM)),
         "index-disagrees", ("*", NORM)),
    Case("the index leaves the folder",
         edit_index(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})),
         "path-outside", (INDEX, NORM)),
    Case("a shard cut short", edit_file(LAST, cut), "shard-unreadable", (LAST,)),
    Case("a byte at the end of a shard", edit_file(LAST, append), "shard-unreadable", (LAST,)),
    Case("a shard missing", edit_file(LAST, Path.unlink), "shard-unreadable", (LAST,)),
    Case("a shard of a Git LFS pointer", edit_file(LAST, lambda p: p.write_text("version https://")),
         "shard-unreadable", (LAST,)),
    Case("a number in __metadata__", edit_file(LAST, number_in_metadata),
         "shard-unreadable", (LAST,)),
    Case("a tensor in two shards", add_in_another_shard, "tensor-twice", ("*", NORM)),
    Case("the tokenizer missing", edit_file("tokenizer.json", Path.unlink), "file-missing",
         ("tokenizer.json",), level="warning", needs_source=True),
    Case("the tokenizer changed", edit_file("tokenizer.json", blank), "file-differs",
         ("tokenizer.json",), level="warning", needs_source=True),
    # values
    Case("two experts swapped", swap_experts, "outside-bound", ("*", EXPERT.format(5, "down")),
         needs_source=True),
    Case("nibbles swapped", lambda f: swap_nibbles(f[O_PROJ]), "outside-bound", ("*", O_PROJ),
         needs_source=True),
    Case("a NaN code", lambda f: f[O_PROJ].data.__setitem__(77, 0x7F),
         "outside-bound", ("*", O_PROJ), needs_source=True),
    Case("a kept tensor changed", lambda f: f["lm_head.weight"].data.__setitem__(5000, 0),
         "bytes-differ", ("*", "lm_head.weight"), needs_source=True),
    Case("a kept tensor in another dtype", lambda f: f[BIAS].to_bf16(), "dtype", ("*", BIAS),
         needs_source=True),
]  # fmt: skip


@pytest.mark.parametrize("case", ZOO, ids=[case.name for case in ZOO])
def test_the_zoo_is_caught_by_name(
    case: Case, tiny: Path, quantized: Convert, edited: Edited, ask: Ask
) -> None:
    good = quantized(tiny)
    folder = edited(good)
    shards = {name: tensor.shard for name, tensor in folder.tensors.items()}
    case.damage(folder)
    shards |= {name: tensor.shard for name, tensor in folder.tensors.items()}
    path = folder.write()
    options = ["--source", str(tiny)] if case.needs_source else []
    code, report = ask(path, *options)
    found = [f for f in report["findings"] if (f["level"], f["code"]) == (case.level, case.code)]
    wanted = [shards[case.where[-1]] if part == "*" and case.where[-1] in shards else part
              for part in case.where if part != "*" or case.where[-1] in shards]  # fmt: skip
    assert any(all(part in f["where"] for part in wanted) for f in found), report["findings"]
    assert code == (3 if case.level == "error" else 0)
    assert report["ok"] == (case.level != "error")
    # and an engine's rules go on where they can, with no traceback
    engine = ENGINES[ZOO.index(case) % len(ENGINES)]
    assert ask(path, "--engine", engine, "--tp", "2")[0] in (0, 3)


def test_the_zoo_s_folder_is_good_before_it_is_damaged(
    tiny: Path, quantized: Convert, edited: Edited, ask: Ask
) -> None:
    path = edited(quantized(tiny)).write()
    code, report = ask(path, "--source", str(tiny))
    assert (code, report["findings"]) == (0, [])


@pytest.mark.parametrize("metadata", [None, {}, {"total_size": 123}, {"format": "pt"}, "none"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_total_size_that_is_wrong_or_missing_is_an_error_in_our_outputs_alone(
    metadata: object, is_ours: bool, tiny: Path, quantized: Convert, edited: Edited, ask: Ask
) -> None:
    """DeepSeek's fp8_cast_bf16.py writes "metadata": {}; no engine reads the number."""
    path = edited(quantized(tiny)).write()
    index = json.loads((path / INDEX).read_text()) | {"metadata": metadata}
    if metadata is None:
        del index["metadata"]
    (path / INDEX).write_text(json.dumps(index))
    if not is_ours:
        (path / "manifest.json").unlink()
    code, report = ask(path)
    (finding,) = report["findings"]
    assert (finding["code"], finding["where"]) == ("total-size", INDEX)
    assert (finding["level"], code) == (("error", 3) if is_ours else ("warning", 0))
    assert "None" not in finding["message"]


def test_a_total_size_that_is_a_float_is_no_fault(tiny: Path, edited: Edited, ask: Ask) -> None:
    path = edited(tiny).write()
    index = json.loads((path / INDEX).read_text())
    index["metadata"]["total_size"] = float(index["metadata"]["total_size"])
    (path / INDEX).write_text(json.dumps(index))
    assert ask(path)[1]["findings"] == []


@pytest.mark.parametrize("wrong", [333312, -1, "8", None, 2.5])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_wrong_number_of_parameters_is_an_error_in_our_outputs_and_the_hint_has_the_right_one(
    wrong: object, is_ours: bool, tiny: Path, quantized: Convert, edited: Edited, ask: Ask
) -> None:
    folder = edited(quantized(tiny))
    folder.index["metadata"]["total_parameters"] = wrong
    path = folder.write()
    if not is_ours:
        (path / "manifest.json").unlink()
    code, report = ask(path)
    (finding,) = report["findings"]
    assert (finding["code"], finding["where"]) == ("total-parameters", INDEX)
    assert (finding["level"], code) == (("error", 3) if is_ours else ("warning", 0))
    folder.index["metadata"]["total_parameters"] = int(finding["hint"].split()[3].strip(","))
    assert ask(folder.write())[1]["findings"] == []


def test_what_safetensors_itself_refuses_is_an_error(
    tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """The reference reader has the last word, whatever ours lets by."""

    refused = sorted(path.name for path in tiny_fp8.glob("*.safetensors"))[1]

    def open_or_refuse(path: Path, framework: str) -> contextlib.AbstractContextManager[None]:
        if path.name == refused:
            raise safetensors.SafetensorError("no")
        return contextlib.nullcontext()

    monkeypatch.setattr(safetensors, "safe_open", open_or_refuse)
    code, report = ask(tiny_fp8)
    (finding,) = report["findings"]
    assert (code, finding["code"], finding["where"]) == (3, "safetensors", refused)


def test_a_source_that_is_damaged_is_an_error_of_its_own(
    tiny: Path, quantized: Convert, edited: Edited
) -> None:
    source = edited(tiny)
    last = sorted(source.path.glob("*.safetensors"))[-1]
    cut(last)
    with pytest.raises(DstoolsError, match=rf"--source {last.name}: holds"):
        verify(quantized(tiny), source=source.path)


def test_threads_do_not_change_the_report(tiny: Path, quantized: Convert, edited: Edited) -> None:
    folder = edited(quantized(tiny))
    swap_experts(folder)
    folder[NORM].data[0] ^= 1
    path = folder.write()
    reports: list[Report] = [verify(path, source=tiny, workers=n) for n in (1, 4)]
    assert reports[0] == reports[1]
    assert len(reports[0].findings) == 7


def test_a_damaged_manifest_is_an_error_and_does_not_hide_a_damaged_scale(
    tiny: Path, quantized: Convert, edited: Edited
) -> None:
    path = edited(quantized(tiny)).write()
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"unknown_tensors": None}))
    report = verify(path, source=tiny)
    (finding,) = report.findings
    assert not report.ok
    assert (finding.code, finding.where) == ("manifest", "manifest.json")
    assert "unknown_tensors" in finding.message


def test_the_only_description_of_a_quantization_is_not_one_to_remove(
    checkpoint: Callable[..., Path], headers: Callable[..., Any], sparse: Callable[..., Path]
) -> None:
    config, shards = headers(checkpoint("tiny-llama"))
    for tensors in shards.values():
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name] = ("F8_E4M3", tensors[name][1])
            tensors[f"{name}_scale"] = ("F32", [])
    folder = sparse(config, shards)
    content = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(content))
    findings = [f for f in verify(folder).findings if f.where == "hf_quant_config.json"]
    assert [(f.level, f.message) for f in findings] == [("error", "ModelOpt FP8 is not supported")]
    (folder / "quantize_config.json").write_text("{}")  # of another: still one to remove
    assert "quantization-file" in {f.code for f in verify(folder).findings}
