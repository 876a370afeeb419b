"""The index against the shards, pickles, links and whatever else a folder may hold."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

from model import CANARY, HEAD, INDEX, NORM, ONE, SINGLE, TWO, Model, case

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"


def moved(model: Model, name: str, shard: object) -> None:
    """Let the index say that a tensor is in `shard`."""
    where: dict[str, object] = {name: tensor.shard for name, tensor in model.tensors.items()}
    model.index["weight_map"] = where | {name: shard}


def link(name: str, target: str) -> Callable[[Path], None]:
    """Return a change that replaces a file by a link."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    """Return a change that replaces a file by a pipe: who opens it waits for ever."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def outside(name: str) -> Callable[[Path], None]:
    """Return a change that moves a file out of the folder, where it stays readable."""
    return lambda folder: shutil.move(folder / name, folder.parent / f"outside-{name}")


# ---------------------------------------------------------------------------------------- the index


@case("index", names=INDEX)
def an_empty_index(model: Model) -> None:
    model.edit(INDEX, lambda raw: b"")


@case("index", names=INDEX)
def an_index_that_is_cut(model: Model) -> None:
    model.edit(INDEX, lambda raw: raw[: len(raw) // 2])


@case("index", names=INDEX)
def an_index_that_is_a_list(model: Model) -> None:
    model.edit(INDEX, lambda raw: b"[" + raw + b"]")


@case("index", names=INDEX)
def an_index_nested_too_deep(model: Model) -> None:
    model.edit(INDEX, lambda raw: b"[" * 200_000)


@case("index", names=INDEX)
def an_index_of_millions_of_lists(model: Model) -> None:
    lists = b"[]," * 6_000_000  # 400 MB as Python lists
    model.edit(INDEX, lambda raw: b'{"a": [' + lists + b"1], " + raw.lstrip()[1:])


@case("index", names=INDEX)
def an_index_without_a_weight_map(model: Model) -> None:
    model.edit(INDEX, lambda raw: b'{"metadata": {"total_size": 1}}')


@case("index", names=INDEX)
def a_weight_map_that_is_a_list(model: Model) -> None:
    model.index["weight_map"] = [ONE, TWO]


@case("index", names=NORM)
def a_weight_map_with_a_list_in_it(model: Model) -> None:
    moved(model, NORM, [ONE])


@case("index", names=NORM)
def a_weight_map_with_null_in_it(model: Model) -> None:
    moved(model, NORM, None)


@case("index", names=NORM)
def a_key_twice_in_the_index(model: Model) -> None:
    twice = f'"weight_map": {{"{NORM}": "{TWO}", '.encode()
    model.edit(INDEX, lambda raw: raw.replace(b'"weight_map": {', twice))


@case("index", names=INDEX)
def an_index_that_is_a_git_lfs_pointer(model: Model) -> None:
    model.edit(INDEX, lambda raw: POINTER)


@case("index", names=NORM)
def a_tensor_of_the_index_in_another_shard(model: Model) -> None:
    moved(model, NORM, TWO)


@case("index", names="model.layers.9.mlp.up_proj.weight")
def a_tensor_of_the_index_in_no_shard(model: Model) -> None:
    moved(model, "model.layers.9.mlp.up_proj.weight", TWO)


@case("index", names="model-00003-of-00003.safetensors")
def a_shard_of_the_index_that_is_not_there(model: Model) -> None:
    moved(model, NORM, "model-00003-of-00003.safetensors")


@case("index", names=NORM)
def a_tensor_that_the_index_does_not_list(model: Model) -> None:
    moved(model, NORM, ONE)
    del model.index["weight_map"][NORM]


@case("index", names="copy.safetensors")
def a_tensor_in_two_shards(model: Model) -> None:
    def change(folder: Path) -> None:
        shutil.copy(folder / ONE, folder / "copy.safetensors")
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][HEAD] = "copy.safetensors"
        (folder / INDEX).write_text(json.dumps(index))

    model.after(change)


@case("index", names=TWO)
def a_shard_that_is_missing(model: Model) -> None:
    model.after(lambda folder: (folder / TWO).unlink())


@case("index", names=TWO)
def one_shard_in_the_place_of_another(model: Model) -> None:
    model.after(lambda folder: shutil.copy(folder / ONE, folder / TWO))


@case("index", names=".safetensors files")
def two_shards_without_an_index(model: Model) -> None:
    model.after(lambda folder: (folder / INDEX).unlink())


@case("index", names=SINGLE)
def an_index_beside_a_single_file(model: Model) -> None:
    model.after(lambda folder: shutil.copy(folder / ONE, folder / SINGLE))


@case("index", names="total_size", inspect="ok", verify="warned", convert="ok")
def a_total_size_that_is_wrong(model: Model) -> None:
    model.index["metadata"] = {"total_size": 12}


@case("index", names="total_parameters", inspect="ok", verify="warned", convert="ok")
def a_number_of_parameters_that_is_wrong(model: Model) -> None:
    model.index["metadata"] = {"total_size": 12, "total_parameters": 333312}


@case("index", names="total_parameters", inspect="ok", verify="warned", convert="ok")
def a_number_of_parameters_that_steers_a_terminal(model: Model) -> None:
    model.index["metadata"] = {"total_size": 12, "total_parameters": ["\x1b[2J" * 99]}


@case("index", names="total_size", inspect="ok", verify="warned", convert="ok")
def a_total_size_that_steers_a_terminal(model: Model) -> None:
    model.index["metadata"] = {"total_size": "\x1b[2J"}


@case("index", names=INDEX)
def a_file_name_that_steers_a_terminal(model: Model) -> None:
    moved(model, NORM, "\x1b[2J.safetensors")


@case("index", names="\\x1b[2J")
def a_tensor_of_the_index_that_steers_a_terminal(model: Model) -> None:
    moved(model, "\x1b[2J", TWO)


# -------------------------------------------------------------------------------- paths and links


@case("paths", names=NORM)
def a_path_to_the_folder_above(model: Model) -> None:
    model.after(outside(ONE))
    moved(model, NORM, f"../outside-{ONE}")


@case("paths", names=NORM)
def an_absolute_path(model: Model) -> None:
    moved(model, NORM, f"/etc/{ONE}")


@case("paths", names=NORM)
def a_path_to_a_subfolder(model: Model) -> None:
    moved(model, NORM, f"sub/{ONE}")


@case("paths", names=NORM)
def a_path_with_backslashes(model: Model) -> None:
    moved(model, NORM, f"..\\{ONE}")


@case("paths", names=NORM)
def a_path_with_a_zero_byte(model: Model) -> None:
    moved(model, NORM, f"{ONE}\0.safetensors")


@case("paths", names="aaaa")
def a_path_of_a_million_letters(model: Model) -> None:
    moved(model, NORM, "a" * 1_000_000 + ".safetensors")


@case("paths", names="aaaa")
def a_name_longer_than_a_file_name_may_be(model: Model) -> None:
    moved(model, NORM, "a" * 300 + ".safetensors")


@case("paths", names=ONE)
def a_shard_that_is_a_link_to_itself(model: Model) -> None:
    model.after(link(ONE, ONE))


@case("paths", names=ONE)
def a_shard_that_is_a_link_to_nothing(model: Model) -> None:
    model.after(link(ONE, "nothing"))


@case("paths", names=ONE)
def a_shard_that_is_a_link_to_a_device(model: Model) -> None:
    model.after(link(ONE, "/dev/zero"))


@case("paths", names=ONE)
def a_shard_that_is_a_link_to_a_folder(model: Model) -> None:
    model.after(link(ONE, "/tmp"))


@case("paths", names="config.json")
def a_config_that_is_a_link_to_a_device(model: Model) -> None:
    model.after(link("config.json", "/dev/zero"))


@case("paths", names=ONE)
def a_shard_that_is_a_pipe(model: Model) -> None:
    model.after(pipe(ONE))


@case("paths", names=INDEX)
def an_index_that_is_a_pipe(model: Model) -> None:
    model.after(pipe(INDEX))


@case("paths", names="config.json")
def a_config_that_is_a_pipe(model: Model) -> None:
    model.after(pipe("config.json"))


@case("paths", names="manifest.json", inspect="ok", convert="ok")
def a_manifest_that_is_a_pipe(model: Model) -> None:
    model.after(pipe("manifest.json"))


@case("paths", names="SHA256SUMS", inspect="ok", verify="ok", convert="ok")
def sums_that_are_a_pipe(model: Model) -> None:
    model.after(pipe("SHA256SUMS"))


@case("paths", names=ONE)
def a_shard_that_is_a_folder(model: Model) -> None:
    model.after(lambda folder: ((folder / ONE).unlink(), (folder / ONE).mkdir()))


@case("paths", names="tokenizer.json", inspect="ok")
def a_tokenizer_that_is_a_folder(model: Model) -> None:
    model.after(lambda folder: (folder / "tokenizer.json").unlink(missing_ok=True))
    model.after(lambda folder: (folder / "tokenizer.json").mkdir())


@case("paths", names="loop.txt", inspect="ok", verify="warned", convert="warned")
def a_file_that_links_to_itself(model: Model) -> None:
    model.after(link("loop.txt", "loop.txt"))


@case("paths", names="notes.txt", inspect="ok", verify="warned")
def a_side_file_that_is_a_link_out_of_the_folder(model: Model) -> None:
    model.after(link("notes.txt", "/etc/passwd"))


@case("paths", names="notes.txt", inspect="ok", verify="warned", convert="warned")
def a_side_file_that_is_a_link_to_nothing(model: Model) -> None:
    model.after(link("notes.txt", "nothing"))


# --------------------------------------------------------------------------------------- pickles


class Canary:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {CANARY}",)


@case("pickles", names=SINGLE)
def a_pickle_named_safetensors(model: Model) -> None:
    model.one_shard()
    model.edit(SINGLE, lambda raw: pickle.dumps(Canary()))


@case("pickles", names=SINGLE)
def a_zip_named_safetensors(model: Model) -> None:
    model.one_shard()
    model.edit(SINGLE, lambda raw: b"PK\x03\x04" + raw)


def only(model: Model, name: str, content: bytes) -> None:
    """Leave `name` alone of all weights."""

    def change(folder: Path) -> None:
        for path in (folder / INDEX, folder / ONE, folder / TWO):
            path.unlink()
        (folder / name).write_bytes(content)

    model.after(change)


@case("pickles", names="pytorch_model.bin")
def pytorch_model_bin_alone(model: Model) -> None:
    only(model, "pytorch_model.bin", pickle.dumps(Canary()))


@case("pickles", names="pytorch_model-00001-of-00002.bin")
def sharded_pytorch_model_bin_alone(model: Model) -> None:
    only(model, "pytorch_model-00001-of-00002.bin", pickle.dumps(Canary()))


@case("pickles", names="consolidated.00.pth")
def consolidated_pth_alone(model: Model) -> None:
    only(model, "consolidated.00.pth", pickle.dumps(Canary()))


@case("pickles", names="model-Q4_K_M.gguf")
def a_gguf_alone(model: Model) -> None:
    only(model, "model-Q4_K_M.gguf", b"GGUF")


@case("pickles", names="pytorch_model.bin.index.json")
def an_index_of_pickles_alone(model: Model) -> None:
    only(model, "pytorch_model.bin.index.json", b'{"weight_map": {}}')


@case("pickles", names="pytorch_model-00001-of-00002.bin")
def an_index_that_names_pickles(model: Model) -> None:
    moved(model, NORM, "pytorch_model-00001-of-00002.bin")
    model.files["pytorch_model-00001-of-00002.bin"] = pickle.dumps(Canary())


@case("pickles", names="adapter")
def an_adapter_alone(model: Model) -> None:
    only(model, "adapter_model.safetensors", b"")
    model.files["adapter_config.json"] = b"{}"


@case("pickles", names="modeling_x.py", inspect="ok", verify="warned", convert="warned")
def code_that_auto_map_names_and_the_folder_lacks(model: Model) -> None:
    model.config["auto_map"] = {"AutoModelForCausalLM": "modeling_x.Model"}


@case("pickles", names="", inspect="ok", verify="ok", convert="ok")
def code_that_auto_map_names_is_not_run(model: Model) -> None:
    model.config["auto_map"] = {"AutoModelForCausalLM": "modeling_x.Model"}
    model.files["modeling_x.py"] = f"open({str(CANARY)!r}, 'w')".encode()
