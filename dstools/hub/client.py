"""The Hub's client: who publishes, calls that are made again, errors in plain words.

The client makes some calls again by itself: preupload, LFS batches and parts, everything of Xet.
It does not for creating a repository or a pull request, its status, the merge, and a commit.
Source: huggingface_hub 2.4, hf_api.py and _commit_api.py.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import logging as hub_logging

from dstools.machine import hub
from dstools.options import progress_line
from dstools_converters.errors import DstoolsError

Result = TypeVar("Result")

PATIENCE_SECONDS = 15 * 60  # for one call
MAX_FAILURES = 5  # answers of 500, which may come each time; 503 says that it will pass
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
SAID_FROM_SECONDS = 5.0  # shorter pauses are not worth a line
DEFAULT_HOST = "https://huggingface.co"
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

    Raises DstoolsError without a token, or where HF_HUB_OFFLINE is set.
    """

    def __init__(self, repo: str) -> None:
        if constants.HF_HUB_OFFLINE:
            raise DstoolsError(
                "HF_HUB_OFFLINE is set: nothing can be published", "unset HF_HUB_OFFLINE"
            )
        token = get_token()
        if token is None:
            raise DstoolsError("there is no token for the Hub", LOGIN_HINT)
        if not logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            hub_logging.set_verbosity_error()  # what is tried again is said here, in one line
        self.repo = repo
        self.token = token
        self.api = HfApi(token=token, library_name="dstools")

    def account(self) -> Account:
        """Return who publishes.

        Raises DstoolsError for a token that may only read, and one of an account that does not
        belong to the organization of the repository.
        """
        answer = self.call("ask the Hub who you are", self.api.whoami)
        name, namespace = str(answer["name"]), self.repo.split("/")[0]
        token = answer.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            message = f"the token from {_login()} of {name} may only read"
            raise DstoolsError(message, LOGIN_HINT)
        orgs = {org.get("name") for org in answer.get("orgs", ())}
        if namespace != name and namespace not in orgs:
            raise DstoolsError(
                f"{self.repo}: the account {name} does not belong to {namespace}",
                f"push to {name}/{self.repo.split('/')[1]}, or log in with another account",
            )
        pays = answer.get("isPro") if namespace == name else None
        return Account(name, _login(), hub().endpoint, pays)

    def repository(self) -> ModelInfo | None:
        """Return what the Hub knows of the repository, None where there is none."""

        def look() -> ModelInfo | None:
            try:
                return self.api.model_info(self.repo)
            except RepositoryNotFoundError as error:
                if error.response.status_code == HTTPStatus.NOT_FOUND:
                    return None
                raise

        return self.call(f"look at {self.repo}", look)

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
        with TemporaryDirectory() as folder:
            path = self.call(
                f"read {name} of {self.repo}",
                self.api.hf_hub_download,
                self.repo,
                name,
                revision=revision,
                local_dir=folder,
            )
            return Path(path).read_bytes()

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


class Pauses:
    """The pauses between attempts of one call, each twice as long as the one before."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.deadline = time.monotonic() + PATIENCE_SECONDS
        self.pause_seconds = FIRST_PAUSE_SECONDS
        self.failures = 0  # inside the Hub

    def take(self, error: Exception) -> None:
        """Wait until the call may be made again after `error`; raise DstoolsError if it may not."""
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


# of the client and of hf_xet, whose error of a token is a PermissionError
ERRORS = (
    *(httpx2.HTTPError, RuntimeError, ValueError),
    *(ConnectionError, TimeoutError, PermissionError),
)


def explain(error: Exception, doing: str) -> Fault:
    """Return an error of the client in plain words.

    The client wraps: an LFS upload raises RuntimeError from the error of the server, and hf_xet
    raises errors whose text alone has the status.
    """
    if match := re.match("Error while uploading '(.*)' to the Hub", str(error)):
        doing = f"upload {match[1]}"
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _of_status(cause, doing)
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            message = f"cannot {doing}: the Hub does not answer ({type(cause).__name__})"
            return Fault(message, f"check the network; {AGAIN}", passes=True)
    text = " ".join(str(error).split())
    if re.search(r"\b401\b|XetAuthentication", f"{type(error).__name__} {text}"):
        return Fault(f"cannot {doing}: the Hub refuses the token", LOGIN_HINT, passes=False)
    if isinstance(error, PermissionError) or not text.startswith("LFS batch"):
        is_ours = isinstance(error, PermissionError | ValueError)
        if is_ours:
            raise error
    return Fault(f"cannot {doing}: {text}", AGAIN, passes="etwork error" in text)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_status(error: HfHubHTTPError, doing: str) -> Fault:
    response = error.response
    status = response.status_code
    words = error.server_message or HTTPStatus(status).phrase
    said = f"cannot {doing}: the Hub says {status}: {' '.join(words.split())}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        limit = RATE_LIMIT.search(response.headers.get("RateLimit", ""))
        if limit is not None and limit["remaining"] == "0":
            which = f"its limit of {limit['name']} requests"
            message = f"cannot {doing}: {which} is reached for {limit['seconds']} s"
            return Fault(message, AGAIN, passes=True, pause_seconds=float(limit["seconds"]) + 1)
        return Fault(said, AGAIN, passes=True, pause_seconds=_retry_after(response.headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        is_failure = status == HTTPStatus.INTERNAL_SERVER_ERROR
        pause = _retry_after(response.headers)
        return Fault(said, f"{AGAIN}; see https://status.huggingface.co", True, pause, is_failure)
    if "storage" in words.lower() or "quota" in words.lower():
        return Fault(said, STORAGE_HINT, passes=False)
    if isinstance(error, RepositoryNotFoundError) and status == HTTPStatus.NOT_FOUND:
        hint = "check the name, and that the token may see the repository"
        return Fault(said, hint, passes=False)
    if status == HTTPStatus.UNAUTHORIZED:
        return Fault(f"{said} (the token from {_login()})", LOGIN_HINT, passes=False)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return Fault(said, "store the weights in smaller or fewer files", passes=False)
    return Fault(said, _HINTS.get(status, AGAIN), passes=False)


STORAGE_HINT = (
    "nothing was published: make it public (--public for a new repository, `hf repos settings "
    "ORG/NAME --public` for this one), or get a plan with more private storage"
)
_HINTS: dict[int, str] = {
    HTTPStatus.FORBIDDEN: "use a token that may write there, and ask the owner of the repository",
    HTTPStatus.CONFLICT: "somebody else changed the repository; run the same command again",
    HTTPStatus.PRECONDITION_FAILED: "somebody else changed it; run the same command again",
}


def _retry_after(headers: Any) -> float | None:
    """Return the seconds of a Retry-After header, None where it is missing or a date."""
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d+", value) else None


def _login() -> str:
    """Return where the token comes from."""
    return hub().login or "the client"
