"""Our pull request of a repository: found or opened, filled elsewhere, merged.

A pull request of the API is opened as a draft, and drafts cannot be merged.
Source: docs/hub/repositories-pull-requests-discussions; huggingface_hub 2.4, create_discussion.
"""

from collections.abc import Mapping
from typing import Literal

from huggingface_hub import Discussion
from huggingface_hub.errors import HfHubHTTPError

from dstools.hub.client import AGAIN, Hub
from dstools.hub.remote import Tree, read_tree
from dstools_converters.errors import DstoolsError
from dstools_converters.verify.hashes import Blob

TITLE = "Upload with dstools"
DESCRIPTION = "`dstools push` fills this pull request, compares every file, and merges it."
REPLACED = "Replaced: the repository or the folder has changed since."
OFF_HINT = (
    "switch pull requests on in the repository's settings, or give the token the right to open "
    "one; --revision main publishes in one commit instead"
)
OFF = (403, 404, 410)  # which of them the Hub answers where discussions are off was not seen


def open_ones(hub: Hub, author: str) -> list[Discussion] | None:
    """Return the open pull requests that `author` made with dstools, the latest first.

    None where pull requests are switched off. A title alone proves nothing: anybody may open one.
    """

    def read() -> list[Discussion] | None:
        try:
            found = list(
                hub.api.get_repo_discussions(
                    hub.repo,
                    author=author,
                    discussion_type="pull_request",
                    discussion_status="open",
                )
            )
        except HfHubHTTPError as error:
            if error.response.status_code in OFF:
                return None
            raise
        ours = [pr for pr in found if pr.author == author and pr.title == TITLE]
        return sorted((pr for pr in ours if pr.is_pull_request), key=lambda pr: -pr.num)

    return hub.call(f"list the pull requests of {hub.repo}", read)


def revision_of(number: int) -> str:
    """Return the revision that holds the files of a pull request."""
    return f"refs/pr/{number}"


def begin(hub: Hub, author: str, main: Tree, wanted: Mapping[str, Blob]) -> int:
    """Return the number of a pull request to fill: our last one, or a new one; not a draft.

    One of ours is continued only if it was opened on `main` as it is, and holds nothing but files
    of `main` and of `wanted`; others of ours are closed.

    Raises DstoolsError where the Hub lets us open none.
    """
    number = None
    for request in open_ones(hub, author) or ():
        tree = read_tree(hub, revision_of(request.num))
        if number is None and _continues(tree, main, wanted):
            number = request.num
        else:
            close(hub, request.num)
    if number is None:
        number = _create(hub, author)
    _set_status(hub, number, "open")
    return number


def _continues(tree: Tree, main: Tree, wanted: Mapping[str, Blob]) -> bool:
    for name, blob in tree.items():
        is_ours = name in wanted and wanted[name].equals(blob)
        if not is_ours and not (name in main and main[name].equals(blob)):
            return False
    return all(name in tree for name in wanted if name in main)


def _create(hub: Hub, author: str) -> int:
    """Open a pull request, and return its number."""
    before = {request.num for request in open_ones(hub, author) or ()}

    def create() -> int:
        return hub.api.create_pull_request(hub.repo, TITLE, description=DESCRIPTION).num

    def opened() -> int | None:
        numbers = (request.num for request in open_ones(hub, author) or ())
        return next((number for number in numbers if number not in before), None)

    try:
        return hub.change(f"open a pull request on {hub.repo}", create, opened)
    except DstoolsError as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in OFF:
            raise DstoolsError(str(error), OFF_HINT) from cause
        raise


def close(hub: Hub, number: int) -> None:
    """Close a pull request that cannot be merged any more."""
    _set_status(hub, number, "closed")


def merge(hub: Hub, number: int) -> None:
    """Merge a pull request; a lost answer is asked for again.

    Raises DstoolsError where the Hub refuses: `main` has moved, and both changed a file.
    """
    hub.change(
        f"merge pull request {number} of {hub.repo}",
        lambda: hub.api.merge_pull_request(hub.repo, number, comment=""),
        lambda: _status(hub, number) == "merged",
    )


def _set_status(hub: Hub, number: int, wanted: Literal["open", "closed"]) -> None:
    """Open or close a pull request that is not merged; what the Hub makes of it shows later."""
    comment = REPLACED if wanted == "closed" else None

    def is_done() -> bool:
        status = _status(hub, number)
        if status == "merged" and wanted == "open":
            raise DstoolsError(f"pull request {number} of {hub.repo} was merged meanwhile", AGAIN)
        return status in (wanted, "merged")

    if not is_done():
        hub.change(
            f"set pull request {number} of {hub.repo} to {wanted}",
            lambda: hub.api.change_discussion_status(hub.repo, number, wanted, comment=comment),
            is_done,
        )


def _status(hub: Hub, number: int) -> str:
    details = hub.call(
        f"read pull request {number} of {hub.repo}",
        hub.api.get_discussion_details,
        hub.repo,
        number,
    )
    return details.status
