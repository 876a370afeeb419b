"""Files that are copied along: what is small, works in the output, and is not from elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.sidefiles.carried import (
    MAX_SIDE_BYTES,
    carried,
    carried_files,
    check_side_files,
    require_inside,
)

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("name", "is_carried"),
    [
        ("tokenizer.json", True),
        ("generation_config.json", True),
        ("LICENSE", True),
        ("modeling_deepseek.py", True),
        ("inference/config_671B_v3.2.json", True),
        ("figures/benchmark.png", True),
        ("inference/config.json", True),  # another folder's, not ours
        ("config.json", False),
        ("manifest.json", False),
        ("SHA256SUMS", False),
        ("report.html", False),
        ("plots/kl.svg", False),
        ("plots/loss.svg", True),  # of someone else
        (INDEX, False),
        ("consolidated.safetensors.index.json", False),
        ("model-00001-of-00002.safetensors", False),
        ("original/consolidated.00.pth", False),
        ("pytorch_model.bin", False),
        ("model.gguf", False),
        ("onnx/model.onnx", False),
        ("data.pkl", False),
        (".gitattributes", False),
        (".env", False),
        (".cache/huggingface/download/x.lock", False),
        ("inference/.git/config", False),
    ],
)
def test_what_is_copied_along(tmp_path: Path, name: str, is_carried: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    (tmp_path / "an empty folder").mkdir()
    assert carried_files(tmp_path) == ({name: path} if is_carried else {})


def test_linked_files_of_the_hub_cache_are_copied(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1a2b").write_bytes(b"{}")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    link = snapshot / "tokenizer.json"
    link.symlink_to("../../blobs/1a2b")
    assert carried_files(snapshot) == {"tokenizer.json": link}


def test_files_of_the_store_that_repositories_share_are_copied(tmp_path: Path) -> None:
    entry = tmp_path / "blobs" / "ab" / f"ab{'0' * 62}"
    blob = tmp_path / "models--org--name" / "blobs" / ("5" * 64)
    snapshot = blob.parent.parent / "snapshots" / "main"
    for folder in (entry.parent, blob.parent, snapshot):
        folder.mkdir(parents=True)
    entry.write_bytes(b"{}")
    blob.symlink_to(f"../../blobs/ab/{entry.name}")
    link = snapshot / "tokenizer.json"
    link.symlink_to(f"../../blobs/{blob.name}")
    assert carried_files(snapshot) == {"tokenizer.json": link}


def test_a_link_out_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").symlink_to("../secret")
    with pytest.raises(DstoolsError, match=r"^notes\.txt: is a link out of the folder"):
        carried_files(tmp_path / "model")


def test_a_link_to_itself_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DstoolsError, match=r"^loop: is a link to nothing"):
        require_inside(tmp_path / "loop", tmp_path)


def test_a_file_too_large_to_be_a_side_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights\x1b.npz"
    with path.open("wb") as file:
        file.truncate(MAX_SIDE_BYTES)
    assert list(carried_files(tmp_path)) == ["weights\x1b.npz"]
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DstoolsError, match=r"^weights\\x1b\.npz: 67108865 bytes, too large"):
        carried_files(tmp_path)


# ------------------------------------------------------------------- what would not work in OUT

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 7847602\n"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8}


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A small Llama that a test may add files to."""
    source, path = checkpoint("tiny-llama"), tmp_path / "model"
    path.mkdir()
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def warned(folder: Path) -> list[Finding]:
    with open_checkpoint(folder) as checkpoint:
        return list(check_side_files(checkpoint))


def put(folder: Path, name: str, content: str | bytes = "x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model", "modeling_deepseek.py", "chat_template.jinja", "generation_config.json",
        "figures/benchmark.png", "LICENSE",
    ],
)  # fmt: skip
def test_a_git_lfs_pointer_is_named_and_not_copied(folder: Path, name: str) -> None:
    put(folder, name, POINTER)
    assert name not in carried_files(folder)
    (finding,) = warned(folder)
    assert (finding.level, finding.code, finding.where) == ("warning", "lfs-pointer", name)
    assert "git lfs pull" in finding.hint
    put(folder, name, "{}" if name.endswith(".json") else POINTER + "x" * 1024)
    assert name in carried_files(folder)
    assert warned(folder) == []


@pytest.mark.parametrize(
    "name", ["generation_config.json", "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b'{"a": ', "is not valid JSON: Expecting value: line 1 column 7 (char 6)"),
        (b"\xff", "is not valid JSON: 'utf-8' codec can't decode byte 0xff in position 0"),
        (b"[]", "is not a JSON object"),
    ],
)
def test_json_that_loaders_cannot_read_is_named_and_not_copied(
    name: str, content: bytes, why: str, folder: Path
) -> None:
    put(folder, name, content)
    assert name not in carried_files(folder)
    (finding,) = warned(folder)
    assert (finding.level, finding.code, finding.where) == ("warning", "broken-json", name)
    assert finding.message.startswith(why)
    put(folder, name, b"{}")
    assert name in carried_files(folder)
    assert warned(folder) == []


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin", ""])
@pytest.mark.parametrize("inside", ["", "lora/"])
def test_an_adapter_s_config_is_never_copied(folder: Path, weights: str, inside: str) -> None:
    put(folder, f"{inside}adapter_config.json", json.dumps(ADAPTER))
    if weights:
        put(folder, f"{inside}{weights}")
    assert not [name for name in carried_files(folder) if "adapter" in name]
    findings = [f for f in warned(folder) if f.code in ("adapter", "subfolder")]
    if weights:  # beside a model they are named when the folder is opened
        assert [f.where for f in findings] == (["lora/"] if inside else [])
    else:
        assert [f.where for f in findings] == [f"{inside}adapter_config.json"]
        assert "adapter that is not there" in findings[0].message


def test_links_that_lead_nowhere_are_named_and_not_copied(folder: Path) -> None:
    (folder / "tokenizer.model").symlink_to("../blobs/gone")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "extra").symlink_to("..")
    assert not {"tokenizer.model", "loop.txt", "extra"} & carried_files(folder).keys()
    assert [(f.code, f.where, f.level) for f in warned(folder)] == [
        ("link", "extra", "warning"),
        ("link", "loop.txt", "warning"),
        ("link", "tokenizer.model", "warning"),
    ]


def test_a_link_out_of_the_folder_is_a_warning_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (folder / "notes.txt").symlink_to("../secret")
    (finding,) = warned(folder)
    assert (finding.level, finding.code, finding.where) == ("warning", "link", "notes.txt")
    assert finding.message == "is a link out of the folder"


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (["checkpoint-500/config.json"], "checkpoint-500/"),
        (["checkpoint-500/trainer_state.json", "checkpoint-500/optimizer.pt"], "checkpoint-500/"),
        (["global_step500/zero_pp_rank_0_mp_rank_00_model_states.pt"], "global_step500/"),
        (["checkpoint-9/global_step9/x.pt", "checkpoint-9/global_step9/y.txt"], "checkpoint-9/"),
        (["epoch_3/config.json", "epoch_3/model.safetensors"], "epoch_3/"),
        (["original/params.json", "original/consolidated.00.pth"], "original/"),
        (["onnx/model.onnx", "onnx/config.json"], "onnx/"),
        (["out/last/config.json", "out/last/pytorch_model.bin"], "out/last/"),
        (["trainer_state.json", "optimizer.pt", "rng_state_0.pth"], "optimizer.pt"),
        (["runs/Nov29/events.out.tfevents.17.host.1.0", "runs/a.json"], "runs/"),
        (["events.out.tfevents.17.host.1.0"], "events.out.tfevents.17.host.1.0"),
        (["wandb/run-1/files/config.yaml"], "wandb/"),
        (["latest", "global_step9/x.pt"], "global_step9/"),
        (["training_args.bin", "scheduler.pt", "scaler.pt"], "scaler.pt"),
        (["zero_to_fp32.py"], "zero_to_fp32.py"),
    ],
)
def test_what_a_training_left_is_a_note_and_not_copied(
    folder: Path, names: list[str], where: str
) -> None:
    before = carried_files(folder).keys()
    for name in names:
        put(folder, name)
    assert carried_files(folder).keys() == before
    assert [(f.level, f.where) for f in warned(folder)] == [("note", where)]


def test_all_that_a_training_left_is_one_line(folder: Path) -> None:
    names = ["checkpoint-5/config.json", "latest", "optimizer.pt", "rng_state.pth", "scheduler.pt"]
    for name in [*names, "trainer_state.json", "training_args.bin"]:
        put(folder, name)
    (finding,) = warned(folder)
    assert finding.where == "checkpoint-5/"
    assert finding.message == (
        "is training state, not part of the model (also: latest, optimizer.pt, rng_state.pth, "
        "scheduler.pt and 2 more)"
    )


def test_weights_in_another_form_or_by_another_name_are_one_note(folder: Path) -> None:
    before = carried_files(folder).keys()
    put(folder, "pytorch_model.bin")
    shard = next(folder.glob("*.safetensors"))
    (folder / "weights").symlink_to(shard.name)
    assert carried_files(folder).keys() == before
    (finding,) = warned(folder)
    assert (finding.level, finding.where) == ("note", "pytorch_model.bin")
    assert finding.message.endswith("(also: weights)")


def test_a_file_under_two_names_is_copied_under_both(folder: Path) -> None:
    put(folder, "LICENSE")
    (folder / "NOTICE").symlink_to("LICENSE")
    assert {"LICENSE", "NOTICE"} <= carried_files(folder).keys()
    assert warned(folder) == []


@pytest.mark.parametrize(
    "name", ["inference/config_671B.json", "figures/a.png", "docs/checkpoint-500.md", "latest.md"]
)
def test_folders_without_weights_are_copied(folder: Path, name: str) -> None:
    put(folder, name)
    assert name in carried_files(folder)
    assert warned(folder) == []


@pytest.mark.parametrize(
    "name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"]
)
def test_a_file_of_another_quantization_is_named_and_not_copied(folder: Path, name: str) -> None:
    put(folder, name, "{}")
    assert name not in carried_files(folder)
    (finding,) = warned(folder)
    assert (finding.level, finding.where) == ("warning", name)


@pytest.mark.parametrize(
    ("auto_map", "file"),
    [
        ({"AutoTokenizer": ["tokenization_x.Tok", None]}, "tokenization_x.py"),
        ({"AutoTokenizer": [None, "tokenization_x.TokFast"]}, "tokenization_x.py"),
        ({"AutoTokenizer": "tokenization_x.Tok"}, "tokenization_x.py"),
        ({"AutoTokenizer": ["org/repo--tokenization_x.Tok", None]}, ""),
        ({}, ""),
        ("x", ""),
    ],
)
def test_code_that_the_tokenizer_s_config_names_is_looked_for(
    folder: Path, auto_map: object, file: str
) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"auto_map": auto_map}))
    findings = warned(folder)
    assert [(f.level, f.where) for f in findings] == (
        [("warning", "tokenizer_config.json")] if file else []
    )
    assert all(file in f.message for f in findings)
    if file:
        put(folder, file)
        assert warned(folder) == []


@pytest.mark.parametrize("name", ["generation_config.json", "sub/tokenizer_config.json"])
def test_json_is_carried_without_local_paths_and_named(folder: Path, name: str) -> None:
    path = folder / name
    put(folder, name, '{"a": NaN, "name_or_path": "/home/jane/x", "b": "\\ud83d"}')
    assert carried(path) == b'{\n  "a": NaN,\n  "b": "\\ud83d"\n}\n'
    (finding,) = warned(folder)
    assert (finding.level, finding.code, finding.where) == ("note", "local-path", name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generation_config.json", '{"_name_or_path": "deepseek-ai/DeepSeek-V3"}'),
        ("generation_config.json", '{"top_k":  5}'),
        ("a.json", '{"_name_or_path": "/home/jane", '),
        ("a.json", '{"_name_or_path": "/home/jane", "a":' + "[" * 9999 + "]" * 9999 + "}"),
        ("a.json", '{"_name_or_path": "/home/jane"}' + " " * (4 << 20)),
        ("a.txt", '{"_name_or_path": "/home/jane"}'),
        ("sub/tokenizer.json", '{"name_or_path": "/home/jane"}'),  # a token may be called that
    ],
)
def test_any_other_file_is_carried_as_it_is(folder: Path, name: str, text: str) -> None:
    put(folder, name, text)
    assert carried(folder / name) == folder / name


def test_json_out_of_the_folder_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"_name_or_path": "/home/jane"}')
    (folder / "a.json").symlink_to(tmp_path / "mine.json")
    assert [finding.code for finding in warned(folder)] == ["link"]
