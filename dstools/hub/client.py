"""The Hub's client: who publishes, calls that are made again, errors in plain words.

The client makes some calls again by itself: preupload, LFS batches and parts, everything of Xet.
It does not for creating a repository or a pull request, its status, the merge, and a commit.
Source: huggingface_hub 2.4, hf_api.py and _commit_api.py.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_token, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import logging as hub_logging

from dstools.hub import transport
from dstools.machine import hub
from dstools.options import progress_line
from dstools_converters.errors import DstoolsError

Result = TypeVar("Result")
Found = TypeVar("Found")

PATIENCE_SECONDS = 15 * 60  # for one call, from the beginning of an attempt that lasted longer
MAX_FAILURES = 5  # answers of 500, which may come each time; 503 says that it will pass
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
SAID_FROM_SECONDS = 5.0  # shorter pauses are not worth a line
DEFAULT_HOST = "https://huggingface.co"
LIBRARY = "dstools"  # as which the Hub knows this client
AGAIN = "nothing is lost: the same command continues"
# `"api";r=0;t=55`; source: IETF draft-ietf-httpapi-ratelimit-headers, as the Hub uses it
RATE_LIMIT = re.compile(r'"(?P<name>[^"]+)"\s*;\s*r=(?P<remaining>\d+)\s*;\s*t=(?P<seconds>\d+)')
LOGIN_HINT = "run `hf auth login` with a token that may write, or set HF_TOKEN"


@dataclass(frozen=True)
class Account:
    """The account that publishes."""

    name: str
    token_from: str
    host: str
    pays: bool | None  # None: the Hub does not say

    @property
    def is_default_host(self) -> bool:
        """Return whether it is one of the Hub itself, not of a mirror or a private one."""
        return self.host == DEFAULT_HOST


@dataclass(frozen=True)
class Fault:
    """An error of the Hub in plain words."""

    message: str
    hint: str
    passes: bool  # made again later, the call may succeed
    pause_seconds: float | None = None  # that the Hub asks for
    is_failure: bool = False  # inside the Hub: perhaps each time


class Hub:
    """A connection to the Hub for one repository.

    Raises DstoolsError without a token that can be one, or where HF_HUB_OFFLINE is set.
    """

    def __init__(self, repo: str) -> None:
        if constants.HF_HUB_OFFLINE:
            raise DstoolsError(
                "HF_HUB_OFFLINE is set: nothing can be published", "unset HF_HUB_OFFLINE"
            )
        token = get_token()
        if token is None:
            raise DstoolsError("there is no token for the Hub", LOGIN_HINT)
        if not token.isascii():
            raise DstoolsError(f"the token from {_login()} is not one of the Hub", LOGIN_HINT)
        if not logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            hub_logging.set_verbosity_error()  # what is tried again is said here, in one line
        self.repo = repo
        self.token = token
        self.uses_xet = hub().uses_xet
        set_client_factory(transport.client)
        self.api = HfApi(token=token, library_name=LIBRARY)

    def account(self) -> Account:
        """Return who publishes.

        Raises DstoolsError for a token that may only read, and one of an account that does not
        belong to the organization of the repository.
        """
        doing = "ask the Hub who you are"
        answer: Any = self.call(doing, self.api.whoami)
        if not isinstance(answer, dict) or "name" not in answer:
            raise _not_a_hub(doing, "no name")
        name, namespace = str(answer["name"]), self.repo.split("/")[0]
        token = answer.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            message = f"the token from {_login()} of {name} may only read"
            raise DstoolsError(message, LOGIN_HINT)
        orgs = {org.get("name"): org.get("roleInOrg") for org in answer.get("orgs", ())}
        if orgs.get(namespace) == "read":
            message = f"{self.repo}: the account {name} may only read in {namespace}"
            raise DstoolsError(
                message, f"ask an administrator of {namespace} for the right to write"
            )
        if namespace != name and namespace not in orgs:
            raise DstoolsError(
                f"{self.repo}: the account {name} does not belong to {namespace}",
                f"push to {name}/{self.repo.split('/')[1]}, or log in with another account",
            )
        pays = answer.get("isPro") if namespace == name else None
        return Account(name, _login(), hub().endpoint, pays)

    def repository(self) -> ModelInfo | None:
        """Return what the Hub knows of the repository, None where there is none.

        Raises DstoolsError for one that was renamed, to whose new name the Hub redirects.
        """

        def look() -> ModelInfo | None:
            try:
                return self.api.model_info(self.repo)
            except RepositoryNotFoundError as error:
                if error.response.status_code == HTTPStatus.NOT_FOUND:
                    return None
                raise

        doing = f"look at {self.repo}"
        info = self.call(doing, look)
        if info is not None and info.id != self.repo:
            raise DstoolsError(f"{self.repo} is {info.id} now", f"push to {info.id}")
        if info is not None and info.sha is None:
            raise _not_a_hub(doing, "no commit")
        return info

    def head(self, revision: str) -> str | None:
        """Return the commit of a branch, None where there is no such branch."""

        def look() -> str | None:
            try:
                return self.api.model_info(self.repo, revision=revision).sha
            except RevisionNotFoundError:
                return None

        return self.call(f"look at {self.repo}", look)

    def read_file(self, name: str, revision: str) -> bytes:
        """Return the content of a small file of the repository."""
        url = hf_hub_url(self.repo, name, revision=revision, endpoint=self.api.endpoint)
        headers = build_hf_headers(token=self.token, library_name=LIBRARY)

        def read() -> bytes:
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
            return response.content

        return self.call(f"read {name} of {self.repo}", read)

    def call(
        self, doing: str, function: Callable[..., Result], *args: Any, **kwargs: Any
    ) -> Result:
        """Return what a call of the client returns, made again while the Hub is busy or away.

        `doing`: what fails, as "merge the pull request". Raises DstoolsError for other faults, and
        for those after PATIENCE_SECONDS.
        """
        pauses = Pauses(doing)
        while True:
            try:
                return function(*args, **kwargs)
            except ERRORS as error:
                pauses.take(error)

    def change(
        self, doing: str, function: Callable[[], Result], find: Callable[[], Found | None]
    ) -> Result | Found:
        """Return what a call that changes something returns, or what `find` returns of it.

        An error may come after the change was made: the answer was lost. So before the call is made
        again, `find` looks whether the change is there; None or False where it is not. Otherwise as
        `call`.
        """
        pauses = Pauses(doing)
        while True:
            try:
                return function()
            except ERRORS as error:
                found = find()
                if found:
                    return found
                pauses.take(error)


class Pauses:
    """The pauses between attempts of one call, each twice as long as the one before."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.began = time.monotonic()
        self._start_anew()

    def _start_anew(self) -> None:
        self.deadline = time.monotonic() + PATIENCE_SECONDS
        self.pause_seconds = FIRST_PAUSE_SECONDS
        self.failures = 0  # inside the Hub

    def take(self, error: Exception) -> None:
        """Wait until the call may be made again after `error`; raise DstoolsError if it may not."""
        if time.monotonic() - self.began > PATIENCE_SECONDS:  # an upload that got somewhere
            self._start_anew()
        fault = explain(error, self.doing)
        self.failures += fault.is_failure
        if not fault.passes or self.failures > MAX_FAILURES:
            raise DstoolsError(fault.message, fault.hint) from error
        pause = fault.pause_seconds
        if pause is None:
            pause = self.pause_seconds
            self.pause_seconds = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if time.monotonic() + pause > self.deadline:
            raise DstoolsError(fault.message, fault.hint) from error
        if pause >= SAID_FROM_SECONDS:
            progress_line(f"{fault.message}; trying again in {pause:.0f} s")
        time.sleep(pause)
        self.began = time.monotonic()


# of the client and of hf_xet; the plain ones are of answers that it cannot read
ERRORS = (
    *(httpx2.HTTPError, httpx2.InvalidURL, RuntimeError, ValueError, LookupError),
    *(AttributeError, TypeError, ConnectionError, TimeoutError, PermissionError),
)
# of hf_xet 1.8, whose errors have the status in their text: "HTTP status client error (401 ..."
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")
FOR_GOOD = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
TLS_FOR_GOOD = re.compile("CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER")
NOT_A_HUB = "check HF_ENDPOINT, and that no proxy answers in place of the Hub"


def explain(error: Exception, doing: str) -> Fault:
    """Return an error of the client in plain words; raise one of a local file.

    The client wraps: an LFS upload raises RuntimeError from the error of the server, and hf_xet
    raises errors whose text alone has the status.
    """
    if match := re.match("Error while uploading '(.*)' to the Hub", str(error)):
        doing = f"upload {match[1]}"
    for cause in _causes(error):
        text = " ".join(str(cause).split())
        if isinstance(cause, HfHubHTTPError):
            response = cause.response
            return _of_status(response.status_code, cause.server_message, response.headers, doing)
        if match := XET_STATUS.search(text):
            return _of_status(int(match[1]), None, {}, doing)
        if "XetAuthentication" in type(cause).__name__:
            return _of_status(HTTPStatus.UNAUTHORIZED, None, {}, doing)
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return _of_network(cause, text, doing)
        if isinstance(cause, OSError) and cause.filename is not None:
            raise cause
    text = " ".join(str(list(_causes(error))[-1]).split())  # the client's own says only what failed
    if isinstance(error, PermissionError):
        raise error
    if isinstance(error, RuntimeError) or text.startswith("LFS batch"):
        return Fault(f"cannot {doing}: {text}", AGAIN, passes="etwork error" in text)
    fault = _not_a_hub(doing, f"{type(error).__name__}: {text}")
    return Fault(str(fault), fault.hint, passes=False)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _not_a_hub(doing: str, why: str) -> DstoolsError:
    return DstoolsError(f"cannot {doing}: the answer is not one of the Hub ({why})", NOT_A_HUB)


def _of_network(error: BaseException, text: str, doing: str) -> Fault:
    said = f"cannot {doing}: the Hub does not answer ({type(error).__name__}: {text})"
    if "Content-Length" in text and isinstance(error, httpx2.LocalProtocolError):
        said = f"cannot {doing}: it changed while it was uploaded"
        return Fault(said, f"let nothing write into the folder; {AGAIN}", passes=False)
    if isinstance(error, FOR_GOOD) or TLS_FOR_GOOD.search(text):
        hint = "check HF_ENDPOINT; SSL_CERT_FILE names the certificates of a proxy"
        return Fault(said, hint, passes=False)
    return Fault(said, f"check the network; {AGAIN}", passes=True)


def _of_status(status: int, message: str | None, headers: Mapping[str, str], doing: str) -> Fault:
    words = " ".join((message or responses.get(status, "an error")).split())
    said = f"cannot {doing}: the Hub says {status}: {words}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        limits = list(RATE_LIMIT.finditer(headers.get("RateLimit", "")))
        reached = [limit for limit in limits if limit["remaining"] == "0"]
        if reached:
            limit = max(reached, key=lambda limit: int(limit["seconds"]))
            which = f"its limit of {limit['name']} requests"
            message = f"cannot {doing}: {which} is reached for {limit['seconds']} s"
            return Fault(message, AGAIN, passes=True, pause_seconds=float(limit["seconds"]) + 1)
        return Fault(said, AGAIN, passes=True, pause_seconds=_retry_after(headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        is_failure = status == HTTPStatus.INTERNAL_SERVER_ERROR
        pause = _retry_after(headers)
        return Fault(said, f"{AGAIN}; see https://status.huggingface.co", True, pause, is_failure)
    if "request has expired" in words.lower():  # of S3: the next attempt asks for a new address
        return Fault(said, AGAIN, passes=True, is_failure=True)
    if "storage" in words.lower() or "quota" in words.lower():
        return Fault(said, STORAGE_HINT, passes=False)
    if status == HTTPStatus.UNAUTHORIZED:
        return Fault(f"{said} (the token from {_login()})", LOGIN_HINT, passes=False)
    return Fault(said, _HINTS.get(status, AGAIN), passes=False)


STORAGE_HINT = (
    "nothing was published: make the repository public (`hf repos settings ORG/NAME --public`; it "
    "exists now, and push does not change that), or get a plan with more private storage"
)
CHANGE_HINT = "change what the Hub names, then run the same command again"
_HINTS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: CHANGE_HINT,
    HTTPStatus.UNPROCESSABLE_ENTITY: CHANGE_HINT,
    HTTPStatus.GONE: "look at the repository on the Hub: it is not what it was",
    HTTPStatus.NOT_FOUND: f"check the name, and that the token may see the repository; {AGAIN}",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "store the weights in smaller or fewer files",
    HTTPStatus.FORBIDDEN: "use a token that may write there, and ask the owner of the repository",
    HTTPStatus.CONFLICT: "somebody else changed the repository; run the same command again",
    HTTPStatus.PRECONDITION_FAILED: "somebody else changed it; run the same command again",
}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, None where it is missing or a date."""
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d+", value) else None


def _login() -> str:
    """Return where the token comes from."""
    return hub().login or "the client"
