"""Calls of the Hub's client that are made again, and errors in plain words."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from huggingface_hub import constants

from dstools.hub import client
from dstools.hub.client import PATIENCE_SECONDS, Hub, Pauses, explain
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from fakehub import FakeHub

Connect = Callable[..., Hub]
WHOAMI = "GET /api/whoami"


@pytest.fixture
def leg() -> str:
    """One leg is enough: nothing large is sent here."""
    return "lfs"


def test_the_account_and_where_its_token_is_from(hub: "FakeHub", connect: Connect) -> None:
    account = connect().account()
    assert (account.name, account.token_from, account.host) == ("alice", "HF_TOKEN", hub.url)


def test_the_token_of_a_login_is_told_from_that_of_the_environment(
    hub: "FakeHub", connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    connect()
    (tmp_path / "token").write_text("hf_good")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert Hub("alice/model").account().token_from == "hf auth login"


def test_without_a_token_the_hint_is_to_log_in(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    connect()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(DstoolsError, match="no token") as error:
        Hub("alice/model")
    assert "hf auth login" in error.value.hint


def test_offline_mode_is_named_before_anything_is_asked(
    hub: "FakeHub", connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DstoolsError, match="HF_HUB_OFFLINE"):
        connect()
    assert not hub.log


def test_a_token_that_may_only_read_is_refused(hub: "FakeHub", connect: Connect) -> None:
    hub.tokens["hf_read"] = {"name": "alice", "role": "read"}
    with pytest.raises(DstoolsError, match="HF_TOKEN of alice may only read"):
        connect("hf_read").account()


def test_an_account_of_another_namespace_is_refused(hub: "FakeHub", connect: Connect) -> None:
    with pytest.raises(DstoolsError, match=r"acme/model: the account alice does not belong"):
        connect(repo="acme/model").account()


@pytest.mark.parametrize("token", ["hf_expired", "hf_unknown"])
def test_a_token_that_the_hub_refuses_is_called_that_and_not_shown(
    token: str, hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    hub.tokens["hf_expired"] = {"name": "alice", "role": "write", "expired": True}
    with pytest.raises(DstoolsError, match=r"says 401: .*token") as error:
        connect(token).account()
    assert token not in f"{error.value} {error.value.hint}"
    assert "hf auth login" in error.value.hint
    assert not clock.pauses


def test_pauses_double_and_a_call_that_always_fails_inside_the_hub_is_given_up(
    hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    hub.faults.append({"match": WHOAMI, "status": 500, "times": 99})
    with pytest.raises(DstoolsError, match="says 500") as error:
        connect().account()
    assert clock.pauses == [1, 2, 4, 8, 16]
    assert "the same command continues" in error.value.hint


@pytest.mark.parametrize("status", [408, 502, 503, 504])
def test_a_hub_that_is_away_is_waited_for_up_to_15_minutes(
    status: int, hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    hub.faults.append({"match": WHOAMI, "status": status, "times": 999})
    with pytest.raises(DstoolsError, match=f"says {status}") as error:
        connect().account()
    assert PATIENCE_SECONDS - 60 < sum(clock.pauses) <= PATIENCE_SECONDS
    assert max(clock.pauses) == 60
    assert "the same command continues" in error.value.hint


def test_the_pause_is_the_one_that_the_rate_limit_announces(
    hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    headers = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=9;w=300'}
    hub.faults.append({"match": WHOAMI, "status": 429, "headers": headers, "times": 2})
    assert connect().account().name == "alice"
    assert clock.pauses == [56, 56]


def test_a_rate_limit_beyond_our_patience_is_one_line_that_names_the_limit(
    hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    headers = {"RateLimit": '"resolvers";r=0;t=3000'}
    hub.faults.append({"match": WHOAMI, "status": 429, "headers": headers, "times": 9})
    with pytest.raises(DstoolsError, match="limit of resolvers requests is reached for 3000 s"):
        connect().account()
    assert not clock.pauses


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(status: int, hub: "FakeHub", connect: Connect, clock: Any) -> None:
    hub.faults.append({"match": WHOAMI, "status": status, "headers": {"Retry-After": "7"}})
    connect().account()
    assert clock.pauses == [7]


def test_a_date_as_retry_after_is_not_understood_and_the_pause_is_ours(
    hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    headers = {"Retry-After": "Fri, 31 Dec 2026 23:59:59 GMT"}
    hub.faults.append({"match": WHOAMI, "status": 503, "headers": headers})
    connect().account()
    assert clock.pauses == [1]


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_connection_that_breaks_is_tried_again(
    drop: str, hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    hub.faults.append({"match": WHOAMI, "drop": drop})
    assert connect().account().name == "alice"
    assert clock.pauses == [1]


def test_a_long_pause_is_said(
    hub: "FakeHub", connect: Connect, clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append({"match": WHOAMI, "status": 503, "headers": {"Retry-After": "30"}})
    connect().account()
    assert "says 503" in (said := capsys.readouterr().err)
    assert "trying again in 30 s" in said


@pytest.mark.parametrize(
    ("status", "words", "hint"),
    [
        (403, "Private repository storage limit reached.", "--public"),
        (403, "You have exceeded your quota.", "--public"),
        (403, "This organization forbids the creation of public models.", "may write"),
        (409, "conflict", "same command again"),
        (412, "A commit has happened since.", "same command again"),
        (413, "too large", "smaller or fewer files"),
    ],
)
def test_a_refusal_is_passed_on_in_the_hub_s_words_and_is_not_tried_again(
    status: int, words: str, hint: str, hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    headers = {"X-Error-Message": words}
    hub.faults.append({"match": WHOAMI, "status": status, "error": words, "headers": headers})
    with pytest.raises(DstoolsError, match=f"says {status}: {words}") as error:
        connect().account()
    assert hint in error.value.hint
    assert ("token" in str(error.value)) is False
    assert not clock.pauses


def test_a_file_that_could_not_be_sent_is_named() -> None:
    try:
        try:
            raise httpx2.ReadTimeout("late")
        except httpx2.ReadTimeout as error:
            raise RuntimeError("Error while uploading 'a b.safetensors' to the Hub.") from error
    except RuntimeError as error:
        fault = explain(error, "upload to alice/model")
    assert fault.message == "cannot upload a b.safetensors: the Hub does not answer (ReadTimeout)"
    assert fault.passes


def test_an_expired_token_of_xet_is_called_a_token() -> None:
    fault = explain(RuntimeError("Network error: status 401 Unauthorized"), "upload")
    assert "refuses the token" in fault.message
    assert not fault.passes


def test_an_error_that_is_ours_is_not_dressed_up() -> None:
    with pytest.raises(ValueError, match="ours"):
        explain(ValueError("ours"), "upload")
    with pytest.raises(PermissionError):
        explain(PermissionError("a local file"), "upload")


def test_every_call_has_its_own_patience(clock: Any) -> None:
    first = Pauses("x")
    clock.sleep(PATIENCE_SECONDS)
    assert Pauses("y").deadline > first.deadline
    assert client.time is clock
