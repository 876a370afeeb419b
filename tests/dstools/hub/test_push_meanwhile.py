"""A push while others act: another push, people on the Hub, somebody who writes into the folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.hub.client import Hub
from dstools.hub.plan import Target, plan
from dstools.hub.push import publish
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub

Here = Callable[..., Any]
REPO = "alice/model"
one_leg = pytest.mark.parametrize("leg", ["lfs"], indirect=True)


def meet(hub: "FakeHub", match: str, act: Callable[[], object], **more: Any) -> None:
    """Let somebody act when the Hub gets the next request like this."""
    hub.faults.append({"match": match, "call": act} | more)


def tree(hub: "FakeHub", ref: str = "main") -> dict[str, str]:
    return {name: file["oid"] for name, file in hub.head(REPO, ref)[1].items()}


def states(hub: "FakeHub") -> list[str]:
    return [pull["status"] for pull in hub.repos[REPO]["prs"].values()]


# ---------------------------------------------------------------------------- another push


@pytest.fixture
def other(small: Path, tmp_path: Path) -> Path:
    """Another model for the same repository: other weights and one file more."""
    folder = Path(shutil.copytree(small, tmp_path / "other"))
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    (folder / "NOTICE").write_text("of the other\n")
    return folder


@one_leg
@pytest.mark.parametrize("which", ["the same folder", "another folder"])
def test_of_two_pushes_at_once_none_is_ever_published_in_part(
    which: str, hub: "FakeHub", here: Here, connect: Callable[..., Hub], small: Path, other: Path
) -> None:
    """The second runs from begin to end at each single request of the first."""
    second = small if which == "the same folder" else other
    assert here(small).code == 0
    mine, requests = tree(hub), len(hub.log)
    assert here(second).code == 0
    theirs = tree(hub)
    allowed = (mine, theirs, theirs | mine)  # of the first, only weights are removed
    for moment in range(requests):
        hub.repos.clear()
        hub.commits.clear()
        hub.log.clear()
        for path in (hub.root / "lfs").iterdir():
            path.unlink()
        ended: list[str] = []

        def push_too(ended: list[str] = ended) -> None:
            connected = connect()
            try:
                planned = plan(connected, second, Target(REPO, base="none"))
                ended.append(publish(connected, planned, 1).state)
            except DstoolsError as error:
                ended.append(str(error))

        meet(hub, "", push_too, skip=moment)
        first = here(small)
        hub.faults.clear()
        assert len(ended) == 1
        assert tree(hub) in allowed, moment
        if first.code:
            assert first.code == 1
            assert len(first.errors) == 1
            assert "same command" in first.stderr.splitlines()[-1]
            again = here(small)
            assert again.code == 0, again.stderr
        elif ended[0] not in ("published", "up to date"):
            assert here(second).code == 0
        assert tree(hub) in allowed, moment
        assert not {"open", "draft"} & set(states(hub)), moment


# ------------------------------------------------------- somebody who writes into the folder


def rewrite(path: Path) -> None:
    path.write_bytes(b"\0" + path.read_bytes()[1:])


def shorten(path: Path) -> None:
    os.truncate(path, 30)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" " * 5000)


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("moment", ["/repos/create", "/preupload/", "(PUT|xet-write)"])
@pytest.mark.parametrize("change", [rewrite, shorten, lengthen, Path.unlink, turn_into_a_folder])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_changes_during_a_push_is_named_and_not_published(
    name: str,
    change: Callable[[Path], None],
    moment: str,
    hub: "FakeHub",
    here: Here,
    small: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(small, tmp_path / "kept")
    hub.multipart_at, hub.part_size = 30_000, 20_000
    meet(hub, moment, lambda: change(small / name))
    done = here(small)
    if done.code == 0:  # it had been opened before
        assert moment == "(PUT|xet-write)"
        assert tree(hub)
    else:
        assert done.code == 1
        [error] = done.errors
        assert error.startswith("error: ")
        assert f"{name}: changed while it was uploaded" in error or f"{name} differs" in error
        assert set(tree(hub)) == {".gitattributes"}
    shutil.rmtree(small)
    shutil.copytree(tmp_path / "kept", small)
    assert here(small).code == 0
    assert hub.content(REPO, name) == (small / name).read_bytes()
    assert states(hub)[-1] == "merged"


def test_what_is_written_after_the_upload_is_not_part_of_it(
    hub: "FakeHub", here: Here, small: Path
) -> None:
    checked = (small / "model.safetensors").read_bytes()
    meet(hub, "/validate-yaml", lambda: rewrite(small / "model.safetensors"))
    assert here(small).code == 0
    assert hub.content(REPO, "model.safetensors") == checked
