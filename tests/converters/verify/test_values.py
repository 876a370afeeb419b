"""Values: every tensor is read whole, once, and what no sound checkpoint holds is named."""

import shutil
import struct
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.verify import values
from dstools_converters.verify.folder import verify
from dstools_converters.verify.hashes import Digests, Hashing, bytes_to_read
from dstools_converters.verify.values import Values

Make = Callable[..., Path]
Edited = Callable[[Path], Any]
Ask = Callable[..., tuple[int, Any]]
O_PROJ = "model.layers.1.self_attn.o_proj.weight"  # [256, 128]
NORM = "model.norm.weight"
EMBED = "model.embed_tokens.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
NAN = {"BF16": b"\xc0\x7f", "F32": b"\0\0\xc0\x7f", "F8_E4M3": b"\xff"}
INFINITY = {"BF16": b"\x80\xff", "F32": b"\0\0\x80\x7f"}
LAST = {"BF16": b"\x7f\xff", "F32": b"\xff\xff\x7f\x7f"}  # the largest finite numbers


def put(tensor: Any, element: int, number: bytes) -> None:
    size = len(number)
    tensor.data[element * size : (element + 1) * size] = number


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces for a tensor of these small models."""
    monkeypatch.setattr(values, "PIECE_BYTES", 1 << 12)


@pytest.mark.parametrize("has_source", [False, True])
@pytest.mark.parametrize(
    ("name", "element", "number"),
    [
        (O_PROJ, 0, NAN["F8_E4M3"]),
        (O_PROJ, 256 * 128 - 1, NAN["F8_E4M3"]),
        (NORM, 3, INFINITY["BF16"]),
        (EMBED, 70_000, NAN["BF16"]),
        (BIAS, 1, NAN["F32"]),
        (BIAS, 7, INFINITY["F32"]),
    ],
)
def test_nan_and_infinity_are_errors_that_name_tensor_and_position(
    has_source: bool, name: str, element: int, number: bytes, tiny: Path, quantized: Make,
    edited: Edited, ask: Ask
) -> None:  # fmt: skip
    folder = edited(quantized(tiny))
    put(folder[name], element, number)
    *rows, cols = folder[name].shape
    code, report = ask(folder.write(), *(["--source", str(tiny)] if has_source else []))
    assert code == 3
    (finding,) = report["findings"]  # one, though it is not the source's either
    assert finding["level"] == "error"
    assert finding["where"].endswith(f": {name}")
    if not has_source:
        at = [*([element // cols] if rows else []), element % cols]
        assert finding["code"] == "not-finite"
        assert finding["message"] == f"NaN or infinity at {at}"
    assert "every value" in report["checked"]


def test_the_first_of_several_is_named_whatever_the_threads(tiny: Path, edited: Edited) -> None:
    folder = edited(tiny)
    for element in (90_000, 40_000, 40_001):
        put(folder[EMBED], element, NAN["BF16"])
    path, cols = folder.write(), folder[EMBED].shape[1]
    for workers in (1, 4):
        (finding,) = verify(path, workers=workers).findings
        assert finding.message.endswith(str([40_000 // cols, 40_000 % cols]))


def test_nan_that_the_source_has_too_is_an_error(tiny: Path, edited: Edited) -> None:
    folder = edited(tiny)
    put(folder[NORM], 5, NAN["BF16"])
    path = folder.write()
    (finding,) = verify(path, source=path).findings
    assert (finding.code, finding.where.split(": ")[1]) == ("not-finite", NORM)


@pytest.mark.parametrize("has_source", [False, True])
def test_zeros_and_clamped_numbers_are_warnings_that_name_the_tensor(
    has_source: bool, tiny: Path, edited: Edited, ask: Ask
) -> None:
    folder = edited(tiny)
    folder[O_PROJ].data[:] = b"\0\x80" * (len(folder[O_PROJ].data) // 2)  # -0
    folder[BIAS].data[:] = bytes(len(folder[BIAS].data))  # biases are zero before training
    put(folder[EMBED], 66_000, LAST["BF16"])
    path = folder.write()
    code, report = ask(path, *(["--source", str(path)] if has_source else []))
    assert code == 0
    found = {finding["code"]: finding for finding in report["findings"]}
    assert {finding["level"] for finding in report["findings"]} == {"warning"}
    assert found.keys() == {"all-zero", "clamped"}
    assert len(report["findings"]) == 2
    assert found["all-zero"]["where"] == O_PROJ
    assert found["clamped"]["where"].endswith(EMBED)
    assert found["clamped"]["message"].startswith("holds 3.38953e+38, the largest BF16")


def test_numbers_that_no_training_makes_are_warnings_as_in_quantize(
    tiny: Path, edited: Edited, ask: Ask
) -> None:
    folder = edited(tiny)
    put(folder[EMBED], 3, b"\x4a\x71")  # 1e30
    put(folder[BIAS], 3, struct.pack("<f", 1e30))
    code, report = ask(folder.write())
    found = {finding["code"]: finding["where"] for finding in report["findings"]}
    assert (code, {finding["level"] for finding in report["findings"]}) == (0, {"warning"})
    assert found.keys() == {"large-weight", "large-value"}
    assert found["large-weight"].endswith(EMBED)
    assert found["large-value"].endswith(BIAS)


def test_dtypes_whose_numbers_are_not_judged_are_read_and_named(tiny: Path, edited: Edited) -> None:
    folder = edited(tiny)
    for name, dtype, size in (("odd", "I64", 8), ("odder", "C64", 8), ("oddest", "BOOL", 1)):
        folder.tensors[name] = type(folder[NORM])(
            dtype, [1000], bytearray(size * 1000), folder[NORM].shard
        )
    steps: list[int] = []
    report = verify(folder.write(), progress=steps.append)
    with open_checkpoint(folder.path) as checkpoint:
        assert sum(steps) == sum(info.nbytes for info in checkpoint.tensors.values())
    assert "numbers in BOOL, C64, I64: only read" in report.not_checked


def test_a_shard_that_ends_in_zeros_is_a_warning_with_the_byte(
    tiny: Path, edited: Edited, ask: Ask
) -> None:
    path = edited(tiny).write()
    shard = sorted(path.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    start = len(content) - 300_000
    while not content[start - 1]:
        start -= 1
    content[start:] = bytes(len(content) - start)
    shard.write_bytes(content)
    code, report = ask(path)
    (finding,) = [f for f in report["findings"] if f["code"] == "zero-tail"]
    assert (code, finding["level"], finding["where"]) == (0, "warning", shard.name)
    assert f"from byte {start} to its end at {len(content)}" in finding["message"]


@pytest.mark.parametrize("has_source", [False, True])
def test_every_byte_is_read_once(
    has_source: bool, tiny: Path, quantized: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a source, the comparison's own reading is the one: but for repeats, as of scales."""
    made = quantized(tiny)
    read, seen = Checkpoint.read, Counter[str]()

    def count(self: Checkpoint, info: Any, begin: int, end: int) -> memoryview:
        if self.folder == made and info.dtype in ("BF16", "F8_E4M3"):
            seen[info.name] += end - begin
        return read(self, info, begin, end)

    monkeypatch.setattr(Checkpoint, "read", count)
    steps: list[int] = []
    assert verify(made, source=tiny if has_source else None, progress=steps.append).ok
    with open_checkpoint(made) as checkpoint:
        wanted = {i.name: i.nbytes for i in checkpoint.tensors.values() if i.name in seen}
        weights = sum(info.nbytes for info, _ in take_inventory(checkpoint).weights())
    assert seen == wanted
    assert sum(steps) == weights


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("has_source", [False, True])
def test_a_shard_is_hashed_by_the_read_that_looks_at_its_values(
    has_source: bool, workers: int, tiny: Path, quantized: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte of a tensor is read twice; with a source, once more, from the page cache."""
    made, read, seen = quantized(tiny), Checkpoint.read, Counter[str]()
    scales = {"F32"}  # are read to check them, too

    def count(self: Checkpoint, info: Any, begin: int, end: int) -> memoryview:
        if self.folder == made and info.dtype not in scales:
            seen[info.name] += end - begin
        return read(self, info, begin, end)

    monkeypatch.setattr(Checkpoint, "read", count)
    steps: list[int] = []
    digests = Digests([path.name for path in made.iterdir()])
    report = verify(
        made,
        source=tiny if has_source else None,
        checks_sums=True,
        digests=digests,
        workers=workers,
        progress=steps.append,
    )
    assert report.findings == []
    for name, digest in digests.found.items():
        assert digest.sha256 == sha256((made / name).read_bytes()).hexdigest()
    assert digests.found.keys() == {*digests.names}
    with open_checkpoint(made) as checkpoint:
        tensors = list(checkpoint.tensors.values())
        weights = {info.name for info, _ in take_inventory(checkpoint).weights()}
    assert seen == {info.name: info.nbytes for info in tensors if info.dtype not in scales}
    total = bytes_to_read(made, checks_sums=True, digests=digests)
    assert total == sum(path.stat().st_size for path in made.iterdir())
    others = sum(info.nbytes for info in tensors if info.name not in weights)
    headers = sum(
        path.stat().st_size - sum(info.nbytes for info in tensors if info.shard == path.name)
        for path in made.glob("*.safetensors")
    )
    assert sum(steps) == total - (others + headers if has_source else 0)


def test_a_byte_that_changed_is_found_by_hash_and_value_wherever_it_is(
    tiny: Path, quantized: Make, tmp_path: Path
) -> None:
    """In each tensor's first and last piece, and in the header."""
    made = Path(shutil.copytree(quantized(tiny), tmp_path / "made", copy_function=shutil.copyfile))
    made.chmod(0o755)
    with open_checkpoint(made) as checkpoint:
        tensors = [info for info in checkpoint.tensors.values() if info.dtype == "F8_E4M3"]
    for info in (tensors[0], tensors[-1]):
        for at in (info.offset, info.offset + info.nbytes - 1):
            content = bytearray((made / info.shard).read_bytes())
            before, content[at] = content[at], NAN["F8_E4M3"][0]
            (made / info.shard).write_bytes(content)
            found = [(f.code, f.where) for f in verify(made, checks_sums=True).findings]
            assert found == [("sum-differs", info.shard), ("not-finite", info.where)]
            content[at] = before
            (made / info.shard).write_bytes(content)
    content[8:] = content[8:].replace(b'"pt"', b'"np"', 1)
    (made / info.shard).write_bytes(content)
    codes = [finding.code for finding in verify(made, checks_sums=True).findings]
    assert codes == ["sum-differs"]


def test_values_that_are_not_looked_at_are_hashed_all_the_same(
    tiny: Path, quantized: Make, tmp_path: Path
) -> None:
    made = Path(shutil.copytree(quantized(tiny), tmp_path / "made", copy_function=shutil.copyfile))
    made.chmod(0o755)
    first, *_, last = sorted(made.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    for options in ({}, {"headers_only": True}, {"source": tiny}):
        report = verify(made, checks_sums=True, **options)
        found = [f.where for f in report.findings if f.code == "sum-differs"]
        assert found == [first.name, last.name]


def test_what_a_comparison_leaves_unread_is_read(
    tiny: Path, quantized: Make, edited: Edited
) -> None:
    folder = edited(quantized(tiny))
    folder[EMBED].data[0] ^= 1  # the comparison stops here
    steps: list[int] = []
    report = verify(folder.write(), source=tiny, progress=steps.append)
    assert [finding.code for finding in report.findings] == ["bytes-differ"]
    with open_checkpoint(folder.path) as checkpoint:
        weights = sum(info.nbytes for info, _ in take_inventory(checkpoint).weights())
    assert sum(steps) == weights


def test_headers_only_reads_no_weight_and_says_so(tiny: Path, edited: Edited, ask: Ask) -> None:
    folder = edited(tiny)
    put(folder[EMBED], 5, NAN["BF16"])
    code, report = ask(folder.write(), "--headers-only")
    assert (code, report["findings"]) == (0, [])
    assert "every value" not in report["checked"]
    assert "values: leave out --headers-only" in report["not_checked"]


def test_values_are_not_read_before_other_errors_are_mended(
    tiny_fp8: Path, edited: Edited, ask: Ask
) -> None:
    folder = edited(tiny_fp8)
    folder.drop(f"{O_PROJ}_scale_inv")
    code, report = ask(folder.write())
    assert code == 3
    assert "values: first mend the errors above" in report["not_checked"]


def test_a_disk_error_is_a_finding_and_the_rest_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Checkpoint.read

    def fail(self: Checkpoint, info: Any, begin: int, end: int) -> memoryview:
        if info.name == EMBED and begin <= 9000 < end:
            raise DstoolsError(f"{info.where}: cannot be read (Input/output error)", "the hint")
        return read(self, info, begin, end)

    monkeypatch.setattr(Checkpoint, "read", fail)
    steps: list[int] = []
    report = verify(tiny, workers=2, progress=steps.append)
    (finding,) = report.findings
    assert (finding.level, finding.code, finding.hint) == ("error", "unreadable", "the hint")
    assert finding.message == "cannot be read (Input/output error)"
    with_sums = verify(tiny, digests=Digests([path.name for path in tiny.iterdir()]))
    assert [(f.level, f.code) for f in with_sums.findings] == [
        ("error", "sum-unread"),
        ("error", "unreadable"),
    ]
    with open_checkpoint(tiny) as checkpoint:
        assert sum(steps) == sum(i.nbytes for i in checkpoint.tensors.values()) - (1 << 12)


def test_dtypes_that_hold_no_numbers_of_ours_are_left_alone(tmp_path: Path) -> None:
    assert found_in(tmp_path / "a", "F64", struct.pack("<d", float("inf"))) == ["not-finite"]
    assert found_in(tmp_path / "b", "F8_E5M2", b"\x7c") == ["not-finite"]
    assert found_in(tmp_path / "c", "I64", b"\xff" * 8) == []


def found_in(folder: Path, dtype: str, data: bytes) -> list[str]:
    folder.mkdir()
    header = (
        f'{{"odd": {{"dtype": "{dtype}", "shape": [1], "data_offsets": [0, {len(data)}]}}}}'
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64}
    config |= {"num_attention_heads": 1, "intermediate_size": 64, "vocab_size": 8}
    (folder / "config.json").write_text(str(config).replace("'", '"'))
    with open_checkpoint(folder) as checkpoint:
        seen = Values(take_inventory(checkpoint), lambda nbytes: None)
        seen.read_rest(1, Hashing(folder))
        findings: list[Finding] = list(seen.findings())
    return [finding.code for finding in findings]


def test_bytes_that_are_shown_twice_count_once_and_gaps_are_left_for_later(tiny: Path) -> None:
    steps: list[int] = []
    with open_checkpoint(tiny) as checkpoint:
        info = checkpoint.tensors[EMBED]
        seen = Values(take_inventory(checkpoint), steps.append)
        for begin, end in [(0, 64), (0, 1000), (10, 500), (1100, 2000), (1000, 1100)]:
            seen.look(info, begin, checkpoint.read(info, begin, end))
        assert steps == [64, 936, 100]
        element = struct.pack("<H", 0x7FC0)
        seen.look(info, 1000, memoryview(bytes(200) + element))  # 100 bytes of it are known
        (finding,) = (f for f in seen.findings() if f.level == "error")
    cols = info.shape[1]
    assert finding.message == f"NaN or infinity at {[600 // cols, 600 % cols]}"


def test_the_holes_of_a_sparse_file_are_zeros_that_nobody_reads(
    tiny: Path, edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = edited(tiny).write()
    shards = sorted(path.glob("*.safetensors"))
    for shard in shards:  # a download that has allocated its files and got the headers
        size = shard.stat().st_size
        header = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
        with shard.open("r+b") as file:
            file.truncate(header)
            file.truncate(size)
    reads: list[str] = []
    real = Checkpoint.read

    def read(self: Checkpoint, info: Any, begin: int, end: int) -> memoryview:
        reads.append(info.name)
        return real(self, info, begin, end)

    monkeypatch.setattr(Checkpoint, "read", read)
    steps: list[int] = []
    report = verify(path, progress=steps.append)
    with open_checkpoint(path) as checkpoint:
        weights = {info.name: info.nbytes for info, _ in take_inventory(checkpoint).weights()}
    assert len(set(reads)) < len(weights) / 2  # small tensors are on the header's page
    assert sum(steps) == sum(weights.values())
    assert {finding.code for finding in report.findings} >= {"all-zero", "zero-tail"}
