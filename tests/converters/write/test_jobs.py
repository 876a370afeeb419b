"""Jobs: they cover every byte once, in whole blocks, and refuse what no engine can use."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.plan.plan import Plan, plan_dequantize
from dstools_converters.verify.folder import verify
from dstools_converters.write import jobs, stream
from dstools_converters.write.jobs import jobs_of, write_at
from dstools_converters.write.stream import run

PlanOf = Callable[[Path], Plan]
Quantize = Callable[..., int]
Interrupted = Callable[..., Checkpoint]
Tree = Callable[[Path], dict[str, str]]
Copy = Callable[[Path, Path], Path]


def tensor_file(folder: Path, name: str) -> tuple[Path, int]:
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
    return folder / info.shard, info.offset


@pytest.mark.parametrize("piece", [1, 40_000, 4 << 20])
def test_the_jobs_of_a_shard_cover_each_tensor_once_in_whole_rows_of_blocks(
    piece: int, tiny: Path, monkeypatch: pytest.MonkeyPatch, plain_plan: PlanOf
) -> None:
    monkeypatch.setattr(jobs, "PIECE_BYTES", piece)
    plan = plain_plan(tiny)
    assert {tensor.action for tensor in plan.decisions} == {"copy", "quantize"}
    for shard in plan.shards:
        made = list(jobs_of(plan, shard))
        assert [job.number for job in made] == list(range(len(made)))
        for tensor in shard.tensors:
            spans = [(job.begin, job.end) for job in made if job.tensor is tensor]
            is_copy = tensor.action == "copy"
            end = tensor.source.nbytes if is_copy else tensor.source.shape[0]
            assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == end
            assert is_copy or all(begin % 128 == 0 for begin, _ in spans)


def test_a_job_of_two_formats_begins_at_a_block_of_both(
    tiny_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PIECE_BYTES", 1)
    plan = plan_dequantize(require_sound(open_checkpoint(tiny_fp8)))
    spans = [
        (job.begin, job.end, job.tensor.source.shape[0])
        for shard in plan.shards
        for job in jobs_of(plan, shard)
        if job.tensor.action == "dequantize"
    ]
    assert any(rows > 128 for _, _, rows in spans)
    assert all(begin % 128 == 0 and end == min(begin + 128, rows) for begin, end, rows in spans)


def test_progress_of_fp8_counts_the_scales_with_their_weights(tiny_fp8: Path) -> None:
    plan = plan_dequantize(require_sound(open_checkpoint(tiny_fp8)))
    scales = sum(s.scale.nbytes for s in plan.inventory.quantized().values())
    told = sum(job.bytes_in for shard in plan.shards for job in jobs_of(plan, shard))
    assert told + scales == plan.bytes_in


def test_what_the_kernel_takes_a_part_of_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:3], at))
    with (tmp_path / "file").open("w+b") as file:
        write_at(file.fileno(), memoryview(b"0123456789"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0" + b"0123456789"


VALUES = {  # little-endian bit patterns of what no engine can use, in BF16
    "inf": 0x7F80, "-inf": 0xFF80, "nan": 0x7FC0, "a signalling nan": 0x7F81,
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_b_proj.weight", "model.embed_tokens.weight", "model.norm.weight"],
)
def test_nan_and_infinity_are_refused_by_file_tensor_and_place(
    tiny: Path, tmp_path: Path, name: str, value: int, quantize: Quantize, writable_copy: Copy
) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    with open_checkpoint(folder) as checkpoint:
        info = checkpoint.tensors[name]
    element = info.numel - 1
    with (folder / info.shard).open("r+b") as file:
        file.seek(info.offset + 2 * element)
        file.write(value.to_bytes(2, "little"))
    place = [size - 1 for size in info.shape]
    with pytest.raises(DstoolsError) as caught:
        quantize(folder, tmp_path / "out")
    assert str(caught.value) == f"{info.shard}: {name}: NaN or infinity at {place}"
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "make_plan", [plan_dequantize, "quantize"], ids=["dequantize", "pass through"]
)
def test_a_nan_code_is_refused(
    tiny_fp8: Path,
    tmp_path: Path,
    make_plan: Callable[..., Plan] | str,
    writable_copy: Copy,
    plain_plan: PlanOf,
) -> None:
    folder = writable_copy(tiny_fp8, tmp_path / "in")
    name = "model.layers.0.self_attn.o_proj.weight"
    shard, offset = tensor_file(folder, name)
    with shard.open("r+b") as file:
        file.seek(offset + 5)
        file.write(b"\xff")
    inventory = require_sound(open_checkpoint(folder))
    plan = plain_plan(folder) if isinstance(make_plan, str) else make_plan(inventory)
    with pytest.raises(DstoolsError, match=rf"{name}: NaN or infinity at \[0, 5\]"):
        run(plan, tmp_path / "out", tool="dstools test", workers=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(
    tiny_fp8: Path, tmp_path: Path, value: float, writable_copy: Copy, plain_plan: PlanOf
) -> None:
    folder = writable_copy(tiny_fp8, tmp_path / "in")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    shard, offset = tensor_file(folder, name)
    with shard.open("r+b") as file:
        file.seek(offset + 4)
        file.write(struct.pack("<f", value))
    inventory = require_sound(open_checkpoint(folder))
    for plan in (plain_plan(folder), plan_dequantize(inventory)):
        with pytest.raises(DstoolsError, match=rf"{name}: holds {value:g} at \[1, 0\]"):
            run(plan, tmp_path / "out", tool="dstools test", workers=2)
        shutil.rmtree(tmp_path / "out.incomplete")


# ------------------------------------------------------------------------------------- odd values


O_PROJ = "model.layers.0.self_attn.o_proj.weight"


def put(folder: Path, name: str, at: int, data: bytes) -> str:
    """Write over bytes of a tensor; return where findings place it."""
    shard, offset = tensor_file(folder, name)
    with shard.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)
    return f"{shard.name}: {name}"


def warned(plan: Plan, out: Path, workers: int = 2) -> list[tuple[str, str]]:
    report = run(plan, out, tool="dstools test", workers=workers, is_synced=False)
    assert {finding.level for finding in report.warnings} <= {"warning"}
    return sorted((finding.code, finding.where) for finding in report.warnings)


def test_a_sound_source_gives_no_warning(tiny: Path, plain_plan: PlanOf, tmp_path: Path) -> None:
    assert warned(plain_plan(tiny), tmp_path / "out") == []


@pytest.mark.parametrize("piece", [40_000, 4 << 20])
def test_clamped_and_large_numbers_are_warned_of_once_for_a_tensor(
    piece: int, tiny: Path, monkeypatch: pytest.MonkeyPatch, writable_copy: Copy,
    plain_plan: PlanOf, tmp_path: Path
) -> None:  # fmt: skip
    monkeypatch.setattr(jobs, "PIECE_BYTES", piece)
    folder = writable_copy(tiny, tmp_path / "in")
    copied = put(folder, "model.embed_tokens.weight", 0, b"\x7f\x7f")
    put(folder, "model.embed_tokens.weight", 100_000, b"\x7f\xff")
    quantized = put(folder, O_PROJ, 0, b"\x00\x47")  # 32768
    put(folder, O_PROJ, 200 * 256, b"\x00\x47")  # in another block
    wanted = [("clamped", copied), ("large-weight", quantized)]
    assert warned(plain_plan(folder), tmp_path / "out") == wanted


def test_absurd_scales_are_warned_of_wherever_they_pass_through(
    tiny_fp8: Path, writable_copy: Copy, plain_plan: PlanOf, tmp_path: Path
) -> None:
    folder = writable_copy(tiny_fp8, tmp_path / "in")
    scale = f"{O_PROJ}_scale_inv"
    high = put(folder, scale, 4, struct.pack("<f", 1e30))
    low = put(folder, scale.replace("layers.0", "layers.1"), 0, struct.pack("<f", 1e-30))
    wanted = [("scale-value", high), ("scale-value", low)]
    assert warned(plain_plan(folder), tmp_path / "fp8") == wanted
    back = plan_dequantize(require_sound(open_checkpoint(folder)))
    assert warned(back, tmp_path / "bf16") == wanted


def test_codes_that_dequantize_to_infinity_stop_both_conversions_and_verify_names_them(
    tiny_fp8: Path, writable_copy: Copy, plain_plan: PlanOf, tmp_path: Path
) -> None:
    """Each code and each scale is a number; the product of some is beyond BF16."""
    folder = writable_copy(tiny_fp8, tmp_path / "in")
    put(folder, f"{O_PROJ}_scale_inv", 4, struct.pack("<f", 3e38))
    back = plan_dequantize(require_sound(open_checkpoint(folder)))
    for plan in (back, plain_plan(folder)):
        with pytest.raises(DstoolsError, match=rf"{O_PROJ}: NaN or infinity at \[128, 0\]"):
            run(plan, tmp_path / "out", tool="dstools test", workers=1)
        assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "out.incomplete")
    errors = [f for f in verify(folder).findings if f.level == "error"]
    assert [(error.code, O_PROJ in error.where) for error in errors] == [("scale-value", True)]


def test_a_source_shard_that_ends_in_zeros_is_warned_of(
    tiny: Path, writable_copy: Copy, plain_plan: PlanOf, tmp_path: Path
) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    shard = sorted(folder.glob("*.safetensors"))[-1]
    with shard.open("r+b") as file:
        file.seek(-9000, os.SEEK_END)
        file.write(bytes(9000))
    assert ("zero-tail", shard.name) in warned(plain_plan(folder), tmp_path / "out")


def test_the_source_is_not_read_after_the_output_has_its_name(
    tiny: Path, plain_plan: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails to read it must not fail a run that is done."""
    out, was_done = tmp_path / "out", []

    def look(checkpoint: Checkpoint) -> list[Finding]:
        was_done.append(out.exists())
        return []

    monkeypatch.setattr(stream, "zero_tails", look)
    assert warned(plain_plan(tiny), out) == []
    assert was_done == [False]


def test_a_resumed_run_has_the_warnings_of_the_run_before(
    tiny: Path, writable_copy: Copy, plain_plan: PlanOf, interrupted: Interrupted, tmp_path: Path
) -> None:
    folder = writable_copy(tiny, tmp_path / "in")
    copied = put(folder, "model.embed_tokens.weight", 0, b"\x7f\x7f")
    bytes_in = plain_plan(folder).bytes_in
    interrupted(folder, tmp_path / "out", bytes_in - 1)
    journal = (tmp_path / "out.incomplete" / "journal.jsonl").read_text()
    assert journal.count('"clamped"') == 1
    assert warned(plain_plan(folder), tmp_path / "out") == [("clamped", copied)]
