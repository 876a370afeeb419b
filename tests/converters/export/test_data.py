import errno
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.export import data
from dstools_converters.export.data import DataFile, Entry, digest_of, lay_out, lay_out_safetensors
from dstools_converters.export.graph import Form
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.sources import TORCH, Source, sources
from dstools_converters.export.unfinished import Unfinished
from dstools_converters.runtime.weights import coded_names

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
KV_B = "model.layers.0.self_attn.kv_b_proj.weight"


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return require_sound(open_checkpoint(SAMPLE))


def written(
    inventory: Inventory, source: Source, out: Path, made: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what is written of a tensor behind 64 bytes of others."""
    entry = Entry("tensor", source, 64)
    with (out / "model.data").open("w+b") as file:
        digest = data.write(inventory, entry, file.fileno(), 64, made)
    raw = bytearray((out / "model.data").read_bytes()[64:])
    assert len(raw) == entry.nbytes
    assert sha256(raw).hexdigest() == digest
    return torch.frombuffer(raw, dtype=TORCH[source.dtype]).view(source.shape)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_tensors_are_those_of_the_checkpoint(
    inventory: Inventory, tmp_path: Path, dtype: torch.dtype
) -> None:
    known, given = sources(inventory, Form(dtype, 64, 64), 0), tensors(SAMPLE)
    for name, source in known.items():
        if name in given:
            assert torch.equal(
                written(inventory, source, tmp_path), given[name].to(TORCH[source.dtype])
            ), name
    experts = [given[f"model.layers.2.mlp.experts.{e}.up_proj.weight"] for e in range(16)]
    name = "model.layers.2.mlp.experts.up_proj.weight"
    assert torch.equal(written(inventory, known[name], tmp_path), torch.stack(experts).to(dtype))


def test_heads_of_a_rank_are_rows_of_the_dequantized_weight(quantized: Any, tmp_path: Path) -> None:
    fp8 = require_sound(open_checkpoint(quantized(SAMPLE)))
    form = Form(torch.float32, 64, 64, coded_names(fp8), Ranks(tp=1))
    codes, scales = (tensors(quantized(SAMPLE))[KV_B + suffix] for suffix in ("", "_scale_inv"))
    wide = scales.repeat_interleave(128, 0)[:256].repeat_interleave(128, 1)[:, :128]
    by_head = (codes.float() * wide).view(4, 64, 128)
    known = sources(fp8, form, 0)
    assert torch.equal(
        written(fp8, known["model.layers.0.self_attn.w_k"], tmp_path), by_head[:, :32]
    )
    assert torch.equal(
        written(fp8, known["model.layers.0.self_attn.w_v"], tmp_path), by_head[:, 32:]
    )


def test_scales_in_bf16_become_float32(quantized: Any, tmp_path: Path) -> None:
    folder, wanted = tmp_path / "bf16-scales", tensors(quantized(SAMPLE))
    shutil.copytree(SAMPLE, folder)
    (folder / "model.safetensors").unlink()
    stored = {n: t.bfloat16() if n.endswith("_scale_inv") else t for n, t in wanted.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(quantized(SAMPLE) / "config.json", folder / "config.json")
    fp8 = require_sound(open_checkpoint(folder))
    known = sources(fp8, Form(torch.float32, 64, 64, coded_names(fp8)), 0)
    name = "model.layers.0.self_attn.q_b_proj.weight_scale_inv"
    assert not known[name].is_copy
    assert torch.equal(written(fp8, known[name], tmp_path), stored[name].float())


def test_a_rank_has_its_rows_columns_and_scales(quantized: Any, tmp_path: Path) -> None:
    fp8, given = require_sound(open_checkpoint(quantized(SAMPLE))), tensors(quantized(SAMPLE))
    mixed = frozenset(n for n in coded_names(fp8) if n.role == "q_b_proj")
    known = sources(fp8, Form(torch.float32, 64, 64, mixed, Ranks(tp=1)), 0)
    name = "model.layers.0.self_attn.q_b_proj.weight"
    assert torch.equal(
        written(fp8, known[name], tmp_path).view(torch.uint8), given[name].view(torch.uint8)
    )
    plain = require_sound(open_checkpoint(SAMPLE))
    known = sources(plain, Form(torch.bfloat16, 64, 64, ranks=Ranks(tp=2)), 1)
    name = "model.layers.1.self_attn.o_proj.weight"
    assert known[name].is_copy  # by rows: a rank's columns do not lie in one range
    assert torch.equal(written(plain, known[name], tmp_path), tensors(SAMPLE)[name][:, 64:])


def test_what_is_made_here_is_written_as_it_is(inventory: Inventory, tmp_path: Path) -> None:
    places = torch.tensor([-1, 0, 1, -1], dtype=torch.int32)
    assert torch.equal(written(inventory, Source((4,), "I32", (), False), tmp_path, places), places)


def test_a_file_system_that_cannot_copy_ranges_gives_the_same_bytes(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    source = sources(inventory, Form(torch.bfloat16, 64, 64), 0)["lm_head.weight"]
    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert torch.equal(written(inventory, source, tmp_path), tensors(SAMPLE)["lm_head.weight"])


def test_a_number_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    folder, given = tmp_path / "large", tensors(SAMPLE)
    shutil.copytree(SAMPLE, folder)
    given["model.norm.weight"][3] = 1e5
    (folder / "model.safetensors").unlink()
    save_file(given, folder / "model.safetensors", metadata={"format": "pt"})
    large = require_sound(open_checkpoint(folder))
    source = sources(large, Form(torch.float16, 64, 64), 0)["model.norm.weight"]
    with pytest.raises(DstoolsError, match=r"model\.norm\.weight: holds .*float16 ends at 65504"):
        written(large, source, tmp_path)


def test_nan_in_a_weight_that_is_copied_is_named(tmp_path: Path) -> None:
    folder, given = tmp_path / "nan", tensors(SAMPLE)
    shutil.copytree(SAMPLE, folder)
    given["model.layers.3.mlp.experts.7.up_proj.weight"][2, 5] = float("nan")
    (folder / "model.safetensors").unlink()
    save_file(given, folder / "model.safetensors", metadata={"format": "pt"})
    damaged = require_sound(open_checkpoint(folder))
    name = "model.layers.3.mlp.experts.up_proj.weight"
    source = sources(damaged, Form(torch.bfloat16, 64, 64), 0)[name]
    with pytest.raises(DstoolsError, match=r"layers\.3\.mlp\.experts\.7\.up_proj\.weight: NaN"):
        written(damaged, source, tmp_path)


def test_tensors_begin_at_pages(inventory: Inventory) -> None:
    known = sources(inventory, Form(torch.float32, 64, 64), 0)
    entries = lay_out(known.items())
    assert all(entry.offset % 4096 == 0 for entry in entries)
    ends = [entry.offset + entry.nbytes for entry in entries]
    assert all(end <= after.offset for end, after in zip(ends, entries[1:], strict=False))


def test_the_header_is_one_that_safetensors_reads(inventory: Inventory, tmp_path: Path) -> None:
    known = sources(inventory, Form(torch.float32, 64, 64), 0)
    header, entries = lay_out_safetensors(item for item in known.items() if item[1].pieces)
    path = tmp_path / "x.safetensors"
    with path.open("w+b") as file:
        file.write(header)
        file.flush()
        for entry in entries:
            data.write(inventory, entry, file.fileno(), len(header) + entry.offset, None)
    with safe_open(path, "pt") as read:
        assert list(read.keys()) == sorted(
            known.keys() - {"rotary.cos", "rotary.sin"} - maps(known)
        )
        assert torch.equal(
            read.get_tensor("lm_head.weight"), tensors(SAMPLE)["lm_head.weight"].float()
        )


def test_each_tensor_of_safetensors_begins_at_a_multiple_of_its_item() -> None:
    """Codes of an odd number come after their scales, whatever the order given."""
    given = {
        "codes": Source((3, 5), "F8_E4M3", (), False),
        "half": Source((3,), "BF16", (), False),
        "scales": Source((1, 1), "F32", (), False),
    }
    header, entries = lay_out_safetensors(given.items())
    assert [(entry.name, entry.offset) for entry in entries] == [
        ("scales", 0),
        ("half", 4),
        ("codes", 10),
    ]
    assert len(header) % 8 == 0


def maps(known: dict[str, Source]) -> set[str]:
    return {name for name in known if name.endswith(".map")}


def test_a_digest_is_of_the_bytes_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    with (tmp_path / "x").open("rb") as file:
        assert digest_of(file.fileno(), 10, 20) == sha256(bytes(range(10, 30))).hexdigest()
        assert digest_of(file.fileno(), 90, 20) != sha256(bytes(range(90, 110))).hexdigest()


# ------------------------------------------------------------------------------------------- files


def never(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} is of the checkpoint")


def data_file(inventory: Inventory) -> DataFile:
    known = sources(inventory, Form(torch.float32, 64, 64), 0).items()
    return DataFile("model.data", b"", lay_out(item for item in known if item[1].pieces), never)


def filled(inventory: Inventory, out: Path) -> bytes:
    with Unfinished(out, {}) as folder:
        data.fill(inventory, data_file(inventory), folder, 2, lambda nbytes: None)
        folder.publish({})
        folder.clean_up()
    return (out / "model.data").read_bytes()


def test_a_run_that_was_stopped_resumes_to_the_same_bytes(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = filled(inventory, tmp_path / "whole")
    write, written = data.write, []

    def stops(*given: Any) -> str:
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(given)
        return write(*given)

    monkeypatch.setattr(data, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        filled(inventory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again: list[Any] = []
    monkeypatch.setattr(data, "write", lambda *given: again.append(given) or write(*given))
    assert filled(inventory, tmp_path / "out") == wanted
    assert len(again) == len(data_file(inventory).entries) - 20


def test_bytes_that_a_power_failure_has_lost_are_written_again(
    inventory: Inventory, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Unfinished(out, {}) as folder:
        data.fill(inventory, data_file(inventory), folder, 1, lambda nbytes: None)
        path = folder.model / "model.data"
    wanted = path.read_bytes()
    path.write_bytes(bytes(len(wanted)))
    assert filled(inventory, out) == wanted
