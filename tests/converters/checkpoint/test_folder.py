"""A folder is read by its index and headers; one that does not match them is refused by name."""

import json
import math
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import (
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    Checkpoint,
    open_checkpoint,
    scan,
)
from dstools_converters.checkpoint.header import ITEM_BITS
from dstools_converters.errors import DstoolsError


def entry(dtype: str, shape: list[int], begin: int) -> dict[str, Any]:
    end = begin + math.prod(shape) * ITEM_BITS[dtype] // 8
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(header: bytes | object, data: bytes = b"") -> bytes:
    """A file: the header as it is or as JSON, and the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def folder_of(folder: Path, shards: dict[str, bytes], weight_map: object = None) -> Path:
    """A folder of these files; with an index where `weight_map` is given."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if weight_map is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {"k": 1}, "weight_map": weight_map}))
    return folder


A = entry("U8", [2], 0)

ONE = packed({"a": A}, b"12")
TWO = packed({"b": A}, b"34")
TWO_SHARDS = {"one.safetensors": ONE, "two.safetensors": TWO}
GOOD_MAP = {"a": "one.safetensors", "b": "two.safetensors"}


def contents(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """{name: dtype, shape, bytes} of the checkpoint in a folder."""
    with open_checkpoint(folder) as checkpoint:
        return {
            name: (info.dtype, list(info.shape), bytes(checkpoint.read(info, 0, info.nbytes)))
            for name, info in checkpoint.tensors.items()
        }


def test_a_shard_with_a_faulty_header_is_refused_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {SINGLE: b"\0" * 8})
    with pytest.raises(DstoolsError, match=f"^{SINGLE}: is not a safetensors file: 8 bytes"):
        open_checkpoint(folder)


def test_a_good_folder_is_read_in_the_order_of_shards(tmp_path: Path) -> None:
    found = open_checkpoint(
        folder_of(tmp_path, TWO_SHARDS, {"b": GOOD_MAP["b"], "a": GOOD_MAP["a"]})
    )
    assert list(found.tensors) == ["a", "b"]
    assert list(found.shards) == ["one.safetensors", "two.safetensors"]
    assert found.index_metadata == {"k": 1}
    assert found.config == {"model_type": "llama"}
    with found:
        assert found.read(found.tensors["b"], 0, 2) == b"34"
        assert found.read(found.tensors["b"], 1, 2) == b"4"
        assert found.read(found.tensors["b"], 0, 1) == b"3"


@pytest.mark.parametrize(
    "path",
    [
        "../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "./one.safetensors",
        "..\\one.safetensors", "sub\\one.safetensors", "C:\\one.safetensors", ".one.safetensors",
        "..", "", ".safetensors", "../one.bin", "one.safetensors/", "one.safetensors\n",
        "one\0.safetensors", "\x1b[2Jone.safetensors", "one\u202e.safetensors",
        "one\ud800.safetensors",
    ],
)  # fmt: skip
def test_a_path_that_is_not_a_plain_name_is_refused_and_not_opened(
    tmp_path: Path, path: str
) -> None:
    outside = tmp_path / "one.safetensors"
    outside.write_bytes(packed({"b": A}, b"34"))
    folder = folder_of(
        tmp_path / "in", {"one.safetensors": ONE}, {"a": "one.safetensors", "b": path}
    )
    (folder / "sub").mkdir()
    shutil.copy(outside, folder / "sub")
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    if "\ud800" not in path:  # half a character is not JSON to begin with
        assert f"{INDEX}: b: names " in str(error.value)
    assert str(error.value).isprintable()
    found, findings = scan(folder) if "\ud800" not in path else (None, [])
    if found is not None:
        assert list(found.tensors) == ["a"]
        assert [f.code for f in findings] == ["path-outside"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": []}', "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "a is in 1, which is not a file name"),
        (b'{"weight_map": {"a": ["one.safetensors"]}}', "a is in ['one.safetensors'], which is no"),
        (b'{"weight_map": {"a": null}}', "a is in None, which is not a file name"),
        (b'{"weight_map": {"\\u001b": 1}}', "\\x1b is in 1, which is not a file name"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "a twice"),
        (b'{"weight_map": {}, "weight_map": {}}', "weight_map twice"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"weight_map": {"a": ' + b"1" * 5000 + b"}}", "is not valid JSON"),
    ],
)
def test_a_malformed_index_is_refused_by_name(tmp_path: Path, index: bytes, message: str) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS)
    (folder / INDEX).write_bytes(index)
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert str(error.value).startswith(f"{INDEX}: ")
    assert message in str(error.value)


BOTH = packed({"a": A, "b": entry("U8", [2], 2)}, b"1234")


@pytest.mark.parametrize(
    ("shards", "weight_map", "findings"),
    [
        pytest.param(
            {"one.safetensors": ONE}, GOOD_MAP,
            [("shard-unreadable", "two.safetensors", "is missing")],
            id="a shard is missing",
        ),
        pytest.param(
            TWO_SHARDS, {"a": "two.safetensors", "b": "one.safetensors"},
            [("index-disagrees", f"{INDEX}: a", "should be in two.safetensors, but it is in "
              "one.safetensors"),
             ("index-disagrees", f"{INDEX}: b", "should be in one.safetensors, but it is in "
              "two.safetensors")],
            id="tensors lie in other shards",
        ),
        pytest.param(
            TWO_SHARDS, GOOD_MAP | {"c": "one.safetensors"},
            [("index-disagrees", f"{INDEX}: c", "should be in one.safetensors, but no shard "
              "holds it")],
            id="no shard holds it",
        ),
        pytest.param(
            {"one.safetensors": BOTH}, {"a": "one.safetensors"},
            [("index-disagrees", "one.safetensors: b", "is not in the index")],
            id="the index does not list it",
        ),
        pytest.param(
            {"one.safetensors": ONE, "two.safetensors": BOTH}, GOOD_MAP,
            [("tensor-twice", "two.safetensors: a", "also in one.safetensors"),
             ("index-disagrees", f"{INDEX}: a", "should be in one.safetensors, but it is in "
              "two.safetensors")],
            id="two shards hold it",
        ),
        pytest.param(
            {"one.safetensors": ONE, "two.safetensors": TWO[:-1]}, GOOD_MAP,
            [("shard-unreadable", "two.safetensors",
              f"holds {len(TWO) - 1} bytes where its header describes {len(TWO)}")],
            id="a shard is cut by a byte",
        ),
    ],
)  # fmt: skip
def test_where_index_and_shards_disagree_both_are_named(
    tmp_path: Path,
    shards: dict[str, bytes],
    weight_map: dict[str, str],
    findings: list[tuple[str, str, str]],
) -> None:
    folder = folder_of(tmp_path, shards, weight_map)
    _, found = scan(folder)
    assert [(f.level, f.code, f.where, f.message) for f in found] == [
        ("error", *finding) for finding in findings
    ]
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    _, where, message = findings[0]
    more = f" (and {len(findings) - 1} more; `dstools verify` lists all)" if findings[1:] else ""
    assert str(error.value) == f"{where}: {message}{more}"


def test_a_shard_that_the_index_does_not_name_is_a_warning_and_ignored(tmp_path: Path) -> None:
    stray = {"a\x1b.safetensors": b"no safetensors at all"}
    folder = folder_of(tmp_path, TWO_SHARDS | stray, GOOD_MAP)
    found, findings = scan(folder)
    assert [(f.level, f.code, f.where) for f in findings] == [
        ("warning", "shard-unlisted", "a\\x1b.safetensors")
    ]
    assert list(found.warnings) == findings
    assert list(open_checkpoint(folder).tensors) == list(found.tensors) == ["a", "b"]


@pytest.mark.parametrize("newer", [SINGLE, INDEX])
@pytest.mark.parametrize("kept", ["shards", "the index alone"])
def test_an_index_beside_a_single_file_is_refused_whichever_is_newer(
    tmp_path: Path, newer: str, kept: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS | {SINGLE: ONE}, GOOD_MAP)
    if kept == "the index alone":
        (folder / "one.safetensors").unlink()
        (folder / "two.safetensors").unlink()
    os.utime(folder / newer, (2e9, 2e9))
    checkpoint, findings = scan(folder)
    twice = next(finding for finding in findings if finding.code == "weights-twice")
    assert twice.level == "error"
    assert twice.where == f"{SINGLE} and {INDEX}"
    assert checkpoint.warnings == ()
    with pytest.raises(DstoolsError):
        open_checkpoint(folder)


def test_an_index_of_other_files_than_safetensors_is_named(tmp_path: Path) -> None:
    name = "pytorch_model-00001-of-00002.bin"
    _, findings = scan(folder_of(tmp_path, TWO_SHARDS, GOOD_MAP | {"c": name}))
    assert [(f.code, f.where) for f in findings] == [("shard-format", f"{INDEX}: c")]
    assert name in findings[0].message


@pytest.mark.parametrize("config", ["{}", None])
def test_a_folder_of_an_adapter_alone_is_no_model(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(ONE)
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(DstoolsError, match="holds an adapter") as error:
        open_checkpoint(tmp_path)
    assert "merge_and_unload" in error.value.hint


@pytest.mark.parametrize("name", ADAPTER_WEIGHTS)
def test_an_adapter_is_told_by_its_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ONE)
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(DstoolsError, match="holds an adapter") as error:
        open_checkpoint(tmp_path)
    assert error.value.hint.startswith("restore its adapter_config.json, then merge it")
    assert "merge_and_unload" in error.value.hint


@pytest.mark.parametrize("adapter", [(), ADAPTER_WEIGHTS])
def test_a_model_in_another_form_is_not_an_adapter_whatever_config_is_beside(
    tmp_path: Path, adapter: tuple[str, ...]
) -> None:
    for name in ("config.json", "adapter_config.json", "pytorch_model.bin", *adapter):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DstoolsError, match=r"holds pytorch_model\.bin, but no .safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ADAPTER_WEIGHTS)
def test_an_adapter_beside_a_model_is_one_warning_that_it_is_not_applied(
    tmp_path: Path, name: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    (folder / name).write_bytes(ONE)
    (finding,) = open_checkpoint(folder).warnings
    assert (finding.level, finding.code, finding.where) == ("warning", "adapter", name)
    assert "is not applied" in finding.message


def test_two_sets_of_weights_are_said_before_the_shards_that_one_lacks(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {SINGLE: ONE}, GOOD_MAP)
    with pytest.raises(DstoolsError, match="two sets of weights"):
        open_checkpoint(folder)


def test_an_index_that_lists_the_single_file_is_one_set_of_weights(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {SINGLE: ONE}, {"a": SINGLE})
    assert scan(folder)[1] == []


@pytest.mark.parametrize("deleted", ["single", "index and shards"])
def test_two_sets_of_weights_are_read_after_what_the_hint_says(
    tmp_path: Path, deleted: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS | {SINGLE: ONE}, GOOD_MAP)
    names = [SINGLE] if deleted == "single" else [INDEX, *TWO_SHARDS]
    for name in names:
        (folder / name).unlink()
    assert list(contents(folder)) == (["a", "b"] if deleted == "single" else ["a"])


HEAD = {"lm_head.weight": "one.safetensors"}


@pytest.mark.parametrize(
    ("config", "index", "level"),
    [
        ({"tie_word_embeddings": True}, HEAD, "warning"),  # as older transformers wrote
        ({"tie_word_embeddings": False}, HEAD, "error"),
        ({}, HEAD, "error"),
        ({"tie_word_embeddings": True}, {"model.norm.weight": "one.safetensors"}, "error"),
        ({"tie_word_embeddings": True}, {"lm_head.bias": "one.safetensors"}, "error"),
    ],
)
def test_a_tied_head_in_the_index_alone_is_a_warning(
    tmp_path: Path, config: dict[str, Any], index: dict[str, str], level: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP | index)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (finding,) = scan(folder)[1]
    assert (finding.level, finding.code) == (level, "index-disagrees")
    assert finding.where == f"{INDEX}: {next(iter(index))}"
    assert ("tied" in finding.message) == (level == "warning")


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ["consolidated.00.pth"],
        ["model-Q4_K_M.gguf"],
        ["tf_model.h5"],
        ["pytorch_model.bin.index.json"],
    ],
)
def test_weights_in_another_form_are_named(tmp_path: Path, names: list[str]) -> None:
    folder = folder_of(tmp_path, dict.fromkeys([*names, "training_args.bin"], b"x"))
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    pickles = "; pickles are not read" if names[0].endswith((".bin", ".pth")) else ""
    assert str(error.value) == f"{folder}: holds {names[0]}, but no .safetensors file{pickles}"
    is_convertible = names[0].startswith("pytorch_model") and names[0].endswith(".bin")
    assert ("from_pretrained" in error.value.hint) == is_convertible


def test_the_hint_converts_pytorch_model_bin(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file

    source, folder = checkpoint("tiny-llama"), tmp_path / "it's a model"
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    stored = {}
    for shard in source.glob("*.safetensors"):
        stored |= load_file(shard)
    torch.save(stored, folder / "pytorch_model.bin")
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    statement = error.value.hint.removeprefix("convert it in Python: ").partition("; ")[0]
    monkeypatch.chdir(tmp_path)
    exec(statement, {"transformers": transformers})
    with open_checkpoint(tmp_path / "NEW") as converted:
        assert {name: info.shape for name, info in converted.tensors.items()} == {
            name: tuple(tensor.shape) for name, tensor in stored.items()
        }


def not_a_file(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    else:
        path.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "link to itself", "link to nowhere"])
@pytest.mark.parametrize("name", ["one.safetensors", INDEX, "config.json", SINGLE])
def test_what_is_not_a_regular_file_is_refused_without_blocking(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    if name == SINGLE:
        (folder / INDEX).unlink()
    not_a_file(folder / name, kind)
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("config.json", "config.json: No such file or directory"),
        (INDEX, f": 2 .safetensors files, but neither {SINGLE} nor {INDEX}"),
    ],
)
def test_what_a_checkpoint_needs_is_named_where_it_is_missing(
    tmp_path: Path, without: str, message: str
) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    (folder / without).unlink()
    with pytest.raises(DstoolsError) as error:
        open_checkpoint(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)
    with pytest.raises(DstoolsError, match=r"nothing: no such folder$"):
        open_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
def test_a_malformed_config_is_refused_by_name(tmp_path: Path, config: bytes) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    (folder / "config.json").write_bytes(config)
    with pytest.raises(DstoolsError, match=r"^config\.json: "):
        open_checkpoint(folder)


def test_shards_linked_as_in_the_hub_cache_load(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    plain = folder_of(tmp_path / "plain", TWO_SHARDS, GOOD_MAP)
    for number, path in enumerate(sorted(plain.iterdir())):
        shutil.copy(path, blobs / f"{number:064}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064}")
    assert (
        contents(snapshot) == contents(plain) == {"a": ("U8", [2], b"12"), "b": ("U8", [2], b"34")}
    )


# ------------------------------------------------------------------------------ reading and after


def test_opening_reads_headers_alone_and_close_closes(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("v3-headers")  # 689 GB that are not there
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    started = time.process_time()
    found = open_checkpoint(folder)
    assert time.process_time() - started < 20
    assert len(found.shards) == 163
    assert sum(shard.nbytes for shard in found.shards.values()) > 688_574_839_360
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    info = found.tensors["model.norm.weight"]
    assert found.read(info, 0, 2 * 7168) == bytes(2 * 7168)
    assert found.read(info, 100, 106) == bytes(6)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(folder_of(tmp_path, TWO_SHARDS, GOOD_MAP))


def test_what_stays_as_it_is_passes(opened: Checkpoint) -> None:
    opened.check_unmoved()


def rewritten(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def longer(path: Path) -> None:
    status = path.stat()
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [rewritten, longer, Path.unlink])
def test_input_that_changes_during_a_run_is_refused_by_name(
    opened: Checkpoint, change: Callable[[Path], None]
) -> None:
    change(opened.folder / "two.safetensors")
    with pytest.raises(DstoolsError, match=r"^two\.safetensors: changed or was removed"):
        opened.check_unmoved()


def test_a_shard_that_became_shorter_is_refused_by_name(opened: Checkpoint) -> None:
    path = opened.folder / "two.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with (
        opened,
        pytest.raises(DstoolsError, match=r"^two\.safetensors: ends before its header says"),
    ):
        opened.read(opened.tensors["b"], 0, 2)


def test_the_digest_is_that_of_the_source_in_any_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", TWO_SHARDS, GOOD_MAP)
    copy = Path(shutil.copytree(folder, tmp_path / "b"))  # keeps the times
    digest = open_checkpoint(folder).digest
    assert open_checkpoint(copy).digest == digest
    rewritten(copy / "one.safetensors")
    other_time = open_checkpoint(copy).digest
    (copy / "config.json").write_text('{"model_type": "qwen2"}')
    assert len({digest, other_time, open_checkpoint(copy).digest}) == 3


def test_a_header_that_says_otherwise_has_another_digest(tmp_path: Path) -> None:
    digests = set()
    for dtype in ("U8", "I8"):
        file = packed({"a": A | {"dtype": dtype}}, b"12")
        folder = folder_of(tmp_path, {SINGLE: file})
        os.utime(folder / SINGLE, ns=(0, 0))
        digests.add(open_checkpoint(folder).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, TWO_SHARDS, GOOD_MAP)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(DstoolsError, match=rf"^{name}: is a Git LFS pointer, not") as error:
        open_checkpoint(folder)
    assert error.value.hint == "run `git lfs pull` in the folder"
