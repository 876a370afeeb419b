"""Calls of the Hub's client that are made again, and errors in plain words."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import HfHubHTTPError

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


def test_a_repository_that_was_renamed_is_told_by_its_new_name(
    hub: "FakeHub", connect: Connect
) -> None:
    connect(repo="alice/new").api.create_repo("alice/new")
    hub.rules["renamed"] = {"alice/old": "alice/new"}
    with pytest.raises(DstoolsError, match="alice/old is alice/new now") as error:
        connect(repo="alice/old").repository()
    assert error.value.hint == "push to alice/new"


@pytest.mark.parametrize("answer", [b"<html>Welcome to our proxy</html>", {}, [], {"orgs": []}])
def test_a_host_that_is_not_a_hub_is_told_at_once(
    answer: Any, hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    hub.faults.append({"match": WHOAMI, "answer": answer, "times": 9})
    with pytest.raises(DstoolsError, match="is not one of the Hub") as error:
        connect().account()
    assert "HF_ENDPOINT" in error.value.hint
    assert not clock.pauses


def test_a_small_file_is_read_again_where_the_hub_is_away(
    hub: "FakeHub", connect: Connect, clock: Any
) -> None:
    connected = connect()
    connected.api.create_repo("alice/model")
    name = "a b#%?.md"
    add = CommitOperationAdd(name, b"card")
    connected.api.create_commit("alice/model", [add], commit_message="x")
    hub.faults += [{"match": "/resolve/", "status": 500}, {"match": "/resolve/", "drop": "before"}]
    assert connected.read_file(name, "main") == b"card"
    assert clock.pauses == [1, 2]


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


@pytest.mark.parametrize(
    ("found", "result", "calls"), [(None, "answered", 2), (False, "answered", 2), (7, 7, 1)]
)
def test_a_change_is_looked_for_after_an_error_before_it_is_made_again(
    found: object, result: object, calls: int, connect: Connect, clock: Any
) -> None:
    errors = [httpx2.ReadTimeout("late")]

    def change() -> str:
        made.append("change")
        if errors:
            raise errors.pop()
        return "answered"

    def find() -> object:
        made.append("find")
        return found

    made: list[str] = []
    assert connect().change("change it", change, find) == result
    assert made == ["change", "find", "change"][: calls + 1]
    assert clock.pauses == [1] * (calls - 1)


def test_a_change_that_is_refused_and_is_not_there_is_an_error(
    connect: Connect, clock: Any
) -> None:
    def refuse() -> None:
        raise KeyError("num")

    with pytest.raises(DstoolsError, match="cannot change it"):
        connect().change("change it", refuse, lambda: False)
    assert not clock.pauses


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
    said = "cannot upload a b.safetensors: the Hub does not answer (ReadTimeout: late)"
    assert fault.message == said
    assert fault.passes


@pytest.mark.parametrize(
    ("status", "words", "passes"),
    [
        ("client error (401 Unauthorized)", "401: Unauthorized (the token from HF_TOKEN)", False),
        ("client error (403 Forbidden)", "403: Forbidden", False),
        ("client error (429 Too Many Requests)", "429: Too Many Requests", True),
        ("server error (500 Internal Server Error)", "500: Internal Server Error", True),
        ("server error (520 <unknown status code>)", "520: an error", True),
    ],
)
def test_the_status_in_an_error_of_xet_is_what_counts_not_its_type(
    status: str, words: str, passes: bool, connect: Connect
) -> None:
    connect()
    text = (
        f"Network error: Request error: HTTP status {status}, domain: http://host/xet-write-token"
    )
    fault = explain(ConnectionError(text), "upload")
    assert fault.message == f"cannot upload: the Hub says {words}"
    assert fault.passes == passes


def test_an_expired_address_of_an_upload_is_asked_for_anew() -> None:
    response = httpx2.Response(403, request=httpx2.Request("PUT", "https://host/lfs"))
    words = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    fault = explain(HfHubHTTPError("403", response=response, server_message=words), "upload")
    assert fault.passes
    assert fault.is_failure  # a few times


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (httpx2.UnsupportedProtocol("no scheme"), "HF_ENDPOINT"),
        (httpx2.InvalidURL("no host"), "HF_ENDPOINT"),
        (httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "SSL_CERT_FILE"),
        (httpx2.LocalProtocolError("Too little data for declared Content-Length"), "nothing write"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "HF_ENDPOINT"),
        (KeyError("num"), "HF_ENDPOINT"),
        (ValueError("preupload_info is improperly formatted"), "HF_ENDPOINT"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(error: Exception, hint: str) -> None:
    fault = explain(error, "upload")
    assert fault.message.startswith("cannot upload: ")
    assert hint in fault.hint
    assert not fault.passes


def test_an_error_of_a_local_file_is_not_dressed_up() -> None:
    with pytest.raises(PermissionError):
        explain(PermissionError("a local file"), "upload")
    error = RuntimeError("Error while uploading 'a' to the Hub.")
    error.__cause__ = FileNotFoundError(2, "No such file or directory", "/model/a")
    with pytest.raises(FileNotFoundError, match="/model/a"):
        explain(error, "upload")


def test_hours_of_an_upload_that_got_somewhere_are_not_counted(clock: Any) -> None:
    pauses = Pauses("upload")

    def fail(times: int, seconds: float) -> None:
        for _ in range(times):
            clock.seconds += seconds
            pauses.take(httpx2.ConnectError("away"))

    fail(3, 7200)
    assert clock.pauses == [1, 1, 1]
    with pytest.raises(DstoolsError):
        fail(99, 0)
    assert sum(clock.pauses[3:]) <= PATIENCE_SECONDS


def test_every_call_has_its_own_patience(clock: Any) -> None:
    first = Pauses("x")
    clock.sleep(PATIENCE_SECONDS)
    assert Pauses("y").deadline > first.deadline
    assert client.time is clock
