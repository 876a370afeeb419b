"""Every element is compared with the source: damage of a single bit is found where it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dstools_converters.checkpoint import rows
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.sidefiles.manifest import read_manifest
from dstools_converters.verify.folder import verify
from dstools_converters.verify.hashes import Hashing
from dstools_converters.verify.source import check_against

Make = Callable[..., Path]
Edited = Callable[[Path], Any]
Ask = Callable[..., tuple[int, Any]]
O_PROJ = "model.layers.1.self_attn.o_proj.weight"  # [256, 128], scales [2, 1]
KV_B = "model.layers.1.self_attn.kv_b_proj.weight"  # [256, 192], scales [2, 2]
KV_SCALE = f"{KV_B}_scale_inv"
HASHING = Hashing(Path())  # of nothing


@pytest.mark.parametrize("slab_bytes", [1 << 20, 1])
def test_every_element_is_held_to_its_bound_and_the_first_beyond_it_named(
    slab_bytes: int,
    tiny: Path,
    quantized: Make,
    monkeypatch: pytest.MonkeyPatch,
    edited: Edited,
    ask: Ask,
) -> None:
    monkeypatch.setattr(rows, "SLAB_BYTES", slab_bytes)  # 1: a slab of 128 rows, the least there is
    folder = edited(quantized(tiny))
    for row, col in ((3, 5), (3, 150), (200, 7)):
        folder[KV_B].data[row * 192 + col] ^= 0x40  # the highest bit of the exponent
    folder[O_PROJ].data[0] ^= 0x40
    _, report = ask(folder.write(), "--source", str(tiny))
    found = {finding["where"].split(": ")[1]: finding["message"] for finding in report["findings"]}
    assert found.keys() == {KV_B, O_PROJ}
    assert found[KV_B].startswith("3 of 49152 elements ")
    assert found[KV_B].endswith(" at [3, 5]")
    assert found[O_PROJ].startswith("1 of 32768 elements ")


@pytest.mark.parametrize("slab_bytes", [1 << 20, 1])
def test_a_dequantized_weight_one_bit_off_is_caught(
    slab_bytes: int,
    tiny_fp8: Path,
    dequantized: Make,
    monkeypatch: pytest.MonkeyPatch,
    edited: Edited,
    ask: Ask,
) -> None:
    monkeypatch.setattr(rows, "SLAB_BYTES", slab_bytes)
    folder = edited(dequantized(tiny_fp8))
    folder[KV_B].data[2 * (200 * 192 + 3)] ^= 1  # row 200
    code, report = ask(folder.write(), "--source", str(tiny_fp8))
    (finding,) = report["findings"]
    assert (code, finding["code"]) == (3, "bytes-differ")
    assert KV_B in finding["where"]


def test_the_last_bit_of_a_copied_scale_is_caught(
    tiny_fp8: Path, quantized: Make, edited: Edited, ask: Ask
) -> None:
    """The element-wise bound alone would let it by."""
    folder = edited(quantized(tiny_fp8))
    folder.scale(KV_B).data[4] ^= 1
    code, report = ask(folder.write(), "--source", str(tiny_fp8))
    (finding,) = report["findings"]
    assert (code, finding["code"]) == (3, "bytes-differ")
    assert KV_SCALE in finding["where"]


def test_the_number_compared_is_that_of_all_elements(tiny: Path, quantized: Make) -> None:
    with open_checkpoint(quantized(tiny)) as opened, open_checkpoint(tiny) as original:
        made, source = take_inventory(opened), take_inventory(original)
        manifest = read_manifest(made.checkpoint.folder)
        findings, compared = check_against(made, source, manifest, {}, 1, HASHING)
    assert findings == []
    assert compared == sum(info.numel for info in source.tensors.values())


def test_without_notes_no_quantized_weight_is_compared(
    tiny: Path, quantized: Make, edited: Edited
) -> None:
    """None: calibration.json is lost, so any weight may be a calibrated one."""
    folder = edited(quantized(tiny))
    folder[O_PROJ].data[0] ^= 0x40
    folder["lm_head.weight"].data[0] ^= 1
    with open_checkpoint(folder.write()) as opened, open_checkpoint(tiny) as original:
        made, source = take_inventory(opened), take_inventory(original)
        manifest = read_manifest(folder.path)
        lost, compared = check_against(made, source, manifest, None, 1, HASHING)
        found, _ = check_against(made, source, manifest, {}, 1, HASHING)
    assert [finding.where.split(": ")[1] for finding in lost] == ["lm_head.weight"]
    kept = sum(info.numel for info, _ in made.weights() if info.dtype != "F8_E4M3")
    assert compared == kept
    assert {finding.where.split(": ")[1] for finding in found} == {O_PROJ, "lm_head.weight"}


@pytest.mark.parametrize(("foreign", "found"), [(False, ["bytes-differ"]), (True, [])])
def test_scales_are_held_to_the_source_s_amax_unless_some_are_foreign(
    foreign: bool, found: list[str], tiny: Path, quantized: Make, edited: Edited
) -> None:
    """The last bit of a scale, which leaves every code within its bound."""
    folder = edited(quantized(tiny))
    folder.scale(KV_B).data[4] ^= 1
    path = folder.write()
    if foreign:
        manifest = (path / "manifest.json").read_text()
        edit = manifest.replace('"has_foreign_scales": false', '"has_foreign_scales": true')
        assert edit != manifest
        (path / "manifest.json").write_text(edit)
    assert [finding.code for finding in verify(path, source=tiny).findings] == found


# ---------------------------------------------------------------------------------------- bit flips

E4M3 = np.array([  # by its definition: bias 7, no infinity, 0x7F is NaN
    (-1) ** (code >> 7) * (np.nan if code & 0x7F == 0x7F
                           else (code & 7) * 2.0**-9 if not code & 0x78
                           else (8 + (code & 7)) * 2.0 ** ((code >> 3 & 15) - 10))
    for code in range(256)
])  # fmt: skip


def outside(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> bool:
    """Whether some code is one that rounding to nearest cannot have given."""
    rows, cols = weight.shape
    s = np.repeat(np.repeat(scale.astype(float), 128, 0), 128, 1)[:rows, :cols]
    value = E4M3[codes]
    with np.errstate(invalid="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(value), 2.0**-6))), -6)
        step = 2.0 ** (exponent - 3)
        is_power = (codes & 7 == 0) & (codes & 0x78 > 8)  # below it, codes lie half as far apart
        step = np.where(is_power & (np.abs(weight) < np.abs(value) * s), step / 2, step)
        bound = s * step / 2 + 2.0**-23 * np.abs(weight)
        is_in = np.abs(weight - value * s) <= bound
        is_clipped = (value * np.sign(weight) == 448) & (np.abs(weight) > 448 * s)
    return not (is_in | is_clipped).all()


def values_of(tensor: Any) -> np.ndarray:
    bits = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).astype(float).reshape(tensor.shape)


@pytest.mark.parametrize("part", ["codes", "scales", "kept"])
def test_single_bit_flips_are_caught(
    part: str, tiny: Path, quantized: Make, edited: Edited
) -> None:
    """One bit in each tensor, over and over until 200 are flipped; what is caught is counted."""
    random = np.random.default_rng(0)
    good, source = edited(quantized(tiny)), edited(tiny)
    fp8 = [name for name, tensor in good.tensors.items() if tensor.dtype == "F8_E4M3"]
    kept = [name for name in source.tensors if name not in fp8]
    flips = caught = explained = 0
    while flips < 200:
        folder = edited(good.path)
        expected = set()
        for name in kept if part == "kept" else fp8:
            tensor = folder.scale(name) if part == "scales" else folder[name]
            bit = int(random.integers(8 * len(tensor.data)))
            tensor.data[bit // 8] ^= 1 << bit % 8
            flips += 1
            if part == "codes":
                codes = np.frombuffer(folder[name].data, np.uint8).reshape(folder[name].shape)
                is_out = outside(values_of(source[name]), codes, folder.scale(name).floats())
            if part != "codes" or is_out:
                expected.add(name)
        report = verify(folder.write(), source=tiny, workers=2)
        at = {finding.where.partition(": ")[2] for finding in report.findings}
        found = {name.removesuffix("_scale_inv") for name in at}
        assert found == expected
        caught += len(found)
        explained += len(expected)
        shutil.rmtree(folder.path)
    share = caught / flips
    print(f"{part}: {caught} of {flips} single-bit flips caught")  # noqa: T201  shown by pytest -s
    # A flipped code is another value of the grid, and at best as near as the right one: only ties,
    # and the sign of a zero, go by. Scales are recomputed, and kept weights compared bit for bit.
    assert share >= {"codes": 0.97, "scales": 1.0, "kept": 1.0}[part]


@pytest.mark.parametrize(
    ("key", "value", "others", "is_other"),
    [
        ("auto_map", {"AutoModel": "modeling_x.X"}, {"AutoModel": "modeling_x.X"}, False),
        ("auto_map", {"AutoModel": "modeling_x.X"}, None, False),  # left out with its code
        ("auto_map", {"AutoModel": "modeling_x.X"}, {"AutoModel": "modeling_y.Y"}, True),
        ("torch_dtype", "float8_e4m3fn", "bfloat16", False),
        ("torch_dtype", "float8_e4m3fn", "float16", True),
    ],
)
def test_a_config_may_lack_what_does_not_hold_of_the_source(
    key: str, value: object, others: object, is_other: bool, tiny: Path, edited: Edited
) -> None:
    source, made = edited(tiny), edited(tiny)
    source.config[key] = value
    if others is None:
        made.config.pop(key, None)
    else:
        made.config[key] = others
    findings = verify(made.write(), source=source.write()).findings
    differs = [f.message for f in findings if f.code == "config-differs"]
    assert differs == ([f"{key} is not the source's"] if is_other else [])


def test_local_paths_of_the_source_are_in_no_file_of_the_output(
    tiny: Path, quantized: Make, edited: Edited
) -> None:
    """And that the output lacks them is not a difference; any other change is."""
    source = edited(tiny)
    source.config["_name_or_path"] = "/home/jane/ckpt-9000"
    source.index["metadata"]["total_parameters"] = 333312
    folder = source.write()
    for name in ("generation_config.json", "tokenizer_config.json"):
        table = json.loads((folder / name).read_text()) | {"name_or_path": "/home/jane/ckpt-9000"}
        (folder / name).write_text(json.dumps(table))
    made = quantized(folder)
    for path in made.iterdir():
        assert b"/home/jane" not in path.read_bytes(), path.name
    assert b"total_parameters" not in (made / "model.safetensors.index.json").read_bytes()
    assert verify(made, source=folder).findings == []
    changed = shutil.copytree(made, folder.with_name("changed"), copy_function=shutil.copyfile)
    changed.chmod(0o755)
    (changed / "generation_config.json").write_text("{}")
    assert "file-differs" in {finding.code for finding in verify(changed, source=folder).findings}
