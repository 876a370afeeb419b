"""HTTP below the Hub's client waits neither for ever nor in silence."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, constants

from dstools.hub import transport
from dstools.hub.client import Hub
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub


@pytest.fixture
def leg() -> str:
    """One leg is enough: Xet has its own transport."""
    return "lfs"


def test_a_connection_that_dies_without_a_word_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transport, "STEP_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        host, port = server.getsockname()
        with transport.client() as client, pytest.raises(httpx2.ReadTimeout):
            client.get(f"http://{host}:{port}/api/whoami-v2", timeout=None)


def test_a_hub_that_is_slow_to_answer_is_told_and_tried_again(
    hub: "FakeHub", connect: Callable[..., Hub], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STEP_SECONDS", 0.1)
    hub.faults.append({"match": "whoami", "delay": 0.5})
    assert connect().account().name == "alice"
    assert clock.pauses == [1]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("request_", ["/preupload/", "/objects/batch", "PUT /lfs/"])
def test_a_pause_that_an_upload_is_asked_for_is_said(
    request_: str,
    status: int,
    hub: "FakeHub",
    connect: Callable[..., Hub],
    clock: Any,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    connected = connect()
    connected.api.create_repo(connected.repo)
    hub.faults.append({"match": request_, "status": status, "headers": {"Retry-After": "30"}})
    add = CommitOperationAdd("model.safetensors", model / "model.safetensors")
    connected.call("upload", connected.api.preupload_lfs_files, connected.repo, [add])
    assert clock.pauses == [30]
    assert f"says {status}" in (said := capsys.readouterr().err)
    assert "trying again in 30 s" in said


def test_a_pause_of_hours_is_not_waited_for(
    hub: "FakeHub", connect: Callable[..., Hub], clock: Any, model: Path
) -> None:
    connected = connect()
    connected.api.create_repo(connected.repo)
    hub.faults.append({"match": "PUT /lfs/", "status": 429, "headers": {"Retry-After": "9999"}})
    add = CommitOperationAdd("model.safetensors", model / "model.safetensors")
    with pytest.raises(DstoolsError, match=r"cannot upload model\.safetensors: the Hub says 429"):
        connected.call("upload", connected.api.preupload_lfs_files, connected.repo, [add])
    assert not clock.pauses
