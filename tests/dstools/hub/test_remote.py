"""What a repository holds, compared with what it should hold."""

from collections.abc import Callable
from hashlib import sha1, sha256
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import CommitOperationAdd

from dstools.hub.client import Hub
from dstools.hub.remote import contradictions, differences, read_tree, some
from dstools_converters.verify.hashes import Blob

if TYPE_CHECKING:
    from fakehub import FakeHub

SMALL, LARGE = b"{}", bytes(20_000)


def local(content: bytes) -> Blob:
    git = sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return Blob(len(content), sha256(content).hexdigest(), git)


def test_a_tree_has_the_hash_that_a_local_file_is_compared_by(
    hub: "FakeHub", connect: Callable[..., Hub]
) -> None:
    hub.page_size = 2
    connected = connect()
    connected.api.create_repo(connected.repo)
    names = {"a.json": SMALL, "sub dir/b#%.json": SMALL, "model.safetensors": LARGE}
    operations = [CommitOperationAdd(name, content) for name, content in names.items()]
    connected.api.create_commit(connected.repo, operations, commit_message="x")
    tree = read_tree(connected, "main")
    assert set(tree) == set(names)  # .gitattributes is the Hub's
    for name, content in names.items():
        assert local(content).equals(tree[name]), name
        assert not local(content + b"x").equals(tree[name]), name
        assert tree[name].nbytes == len(content)
    assert tree["model.safetensors"].sha256 == local(LARGE).sha256
    assert tree["a.json"].sha256 is None


def test_old_weights_and_indexes_contradict_and_other_files_do_not() -> None:
    tree = [
        *("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "logo.png"),
        *("model-1.safetensors", "original/consolidated.00.pth", "NOTES.md", "config.json"),
        *("training_args.bin", "x.gguf"),
    ]
    assert contradictions(tree, ["model-1.safetensors", "config.json"]) == [
        *("model.safetensors", "model.safetensors.index.json", "original/consolidated.00.pth"),
        *("pytorch_model.bin", "x.gguf"),
    ]


def test_differences_are_told_both_ways() -> None:
    wanted = {"a": local(b"a"), "b": local(b"b"), "c": local(b"c")}
    assert not differences(wanted, wanted)
    found = {"b": local(b"other"), "c": local(b"c"), "d\n": local(b"d")}
    assert differences(found, wanted) == [
        "a is missing", "b differs", "d\\n should not be there",
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "text"), [(1, "0"), (5, "0; 1; 2; 3; 4"), (0, "")])
def test_a_few_lines_are_shown_whole(count: int, text: str) -> None:
    assert some([str(n) for n in range(count)]) == text


def test_many_lines_are_counted() -> None:
    assert some([str(n) for n in range(8)]) == "0; 1; 2; 3; 4 (and 3 more)"
