"""A push on a machine that lacks something: a home, a temporary folder, disk space, a network."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dstools.hub.client import PATIENCE_SECONDS

if TYPE_CHECKING:
    from fakehub import FakeHub

Push = Callable[..., Any]
REPO = "alice/model"


def require_published(done: Any, hub: "FakeHub") -> None:
    """Fail unless all was published, and stdout is the result and nothing else."""
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "published"
    assert "model.safetensors" in hub.head(REPO)[1]


@pytest.mark.parametrize(
    "place", ["no/such/folder", "a file", "a file/below it", "/proc/no/such/folder"]
)
@pytest.mark.parametrize("variable", ["HF_HOME", "HOME", "TMPDIR"])
@pytest.mark.parametrize("leg", ["xet"], indirect=True)  # which would keep logs there
def test_a_push_needs_no_home_and_no_temporary_folder(
    variable: str, place: str, hub: "FakeHub", push: Push, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "a file").write_text("x")
    options = ("--base", "none", "--yes", "--json")
    require_published(push(small, REPO, *options, **{variable: str(tmp_path / place)}), hub)


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_push_needs_no_space_on_any_disk(
    state: str, hub: "FakeHub", push: Push, small: Path, small_disk: Path
) -> None:
    if state == "full":
        (small_disk / "all of it").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    places = {"HF_HOME": str(small_disk / "hf"), "TMPDIR": str(small_disk), "HOME": str(small_disk)}
    require_published(push(small, REPO, "--base", "none", "--yes", "--json", **places), hub)


def test_a_folder_that_cannot_be_written_to_is_published(
    hub: "FakeHub", push: Push, small: Path, small_disk: Path
) -> None:
    folder = small_disk / "model"
    folder.mkdir()
    for path in small.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    require_published(push(folder, REPO, "--base", "none", "--yes", "--json"), hub)


@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
def test_without_a_network_a_push_gives_up_after_15_minutes(
    hub: "FakeHub", here: Push, small: Path, clock: Any
) -> None:
    hub.close()
    done = here(small)
    assert done.code == 1
    said = "error: cannot ask the Hub who you are: the Hub does not answer (ConnectError: "
    assert done.errors[0].startswith(said)
    assert PATIENCE_SECONDS - 60 < sum(clock.pauses) <= PATIENCE_SECONDS
    assert done.stderr.count("trying again in 60 s") > 5


@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
@pytest.mark.parametrize("token", ["hf_gööd", "", "  ", "hf_unknown"])
def test_a_token_that_cannot_be_one_is_called_that(
    token: str, hub: "FakeHub", push: Push, small: Path
) -> None:
    done = push(small, REPO, "--base", "none", "--yes", HF_TOKEN=token)
    assert done.code == 1
    assert "token" in done.stderr.splitlines()[-2]
    assert "hf auth login" in done.stderr.splitlines()[-1]
    assert not token.strip() or token not in done.stderr


@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
def test_https_to_a_host_that_speaks_http_is_not_waited_for(
    hub: "FakeHub", push: Push, small: Path
) -> None:
    address = hub.url.replace("http:", "https:")
    done = push(small, REPO, "--base", "none", "--yes", HF_ENDPOINT=address)
    assert done.code == 1
    assert "WRONG_VERSION_NUMBER" in done.stderr
    assert "check HF_ENDPOINT" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("leg", ["lfs"], indirect=True)
def test_an_address_with_a_slash_at_its_end_is_taken(
    hub: "FakeHub", push: Push, small: Path
) -> None:
    done = push(small, REPO, "--base", "none", "--yes", "--json", HF_ENDPOINT=f"{hub.url}/")
    require_published(done, hub)
    assert f'"url": "{hub.url}/alice/model"' in done.stdout
