"""A push: the plan carried out, with a comparison both ways before anything is public.

Nothing of a model is on the repository's branch until everything of it is: files go into a pull
request that is merged once it holds exactly what it should, or, where there can be none, into one
commit.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from dstools.hub import pull_request
from dstools.hub.client import AGAIN, Hub
from dstools.hub.plan import Plan
from dstools.hub.remote import Tree, differences, read_tree, some
from dstools.hub.upload import Addition, upload
from dstools.hub.verified import bytes_read, verified
from dstools.options import progress_bar, warn
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.sidefiles.carried import README
from dstools_converters.sidefiles.sums import SIGNATURE, SUMS, format_sums
from dstools_converters.verify.hashes import Blob

SIGN_HINT = "remove it there, or sign a copy of what was published and push that"


@dataclass(frozen=True)
class Published:
    """The result of a push."""

    repo: str
    url: str
    revision: str
    commit: str
    state: str  # "published" or "up to date"
    files: int
    bytes: int
    removed: list[str]
    seconds_verify: float  # of checking and hashing the folder
    verified: list[str]  # what was checked of the folder before
    not_checked: list[str]


def publish(hub: Hub, plan: Plan, workers: int) -> Published:
    """Carry out a plan: check the folder, upload, compare both ways, merge.

    Raises DstoolsError where the folder falls short, the Hub refuses, or the repository is not what
    it should be. Its branch is as before then, unless the message says that files are published.
    """
    target = plan.target
    start = time.monotonic()
    with progress_bar(bytes_read(plan.folder, plan.selection), "verify") as count:
        checked = verified(plan.folder, plan.selection, workers, count)
    seconds = time.monotonic() - start
    for finding in checked.report.findings:
        if finding.level == "warning":
            warn(finding)
    additions = _additions(plan, checked.blobs)
    main, commit = _prepare(hub, plan)
    if SIGNATURE in main and SIGNATURE not in additions:
        message = "is of other files: `dstools verify --signed-by` of a copy will fail"
        warn(Finding.warning("signature", f"{SIGNATURE} of {target.repo}", message, SIGN_HINT))
    removed = plan.contradictions
    wanted = {name: blob for name, blob in main.items() if name not in removed}
    wanted |= {name: addition.blob for name, addition in additions.items()}
    state = "up to date"
    if differences(main, wanted):
        state = "published"
        total = sum(addition.blob.nbytes for addition in additions.values())
        with progress_bar(total, "upload") as count:
            commit = _change(hub, plan, _Change(main, commit, wanted, additions), count)
    return Published(
        repo=target.repo,
        url=f"{plan.account.host}/{target.repo}",
        revision=target.branch,
        commit=commit,
        state=state,
        files=len(additions),
        bytes=sum(addition.blob.nbytes for addition in additions.values()),
        removed=removed,
        seconds_verify=round(seconds, 3),
        verified=checked.report.checked,
        not_checked=checked.report.not_checked,
    )


@dataclass(frozen=True)
class _Change:
    """A branch as it is, and as it should be."""

    main: Tree
    commit: str
    wanted: Tree
    additions: dict[str, Addition]

    def upload(
        self, hub: Hub, revision: str, held: Tree, parent: str | None, count: Progress
    ) -> None:
        """Upload to a revision that holds `held` what it lacks."""
        lacking = {
            name: addition
            for name, addition in self.additions.items()
            if name not in held or not addition.blob.equals(held[name])
        }
        count(sum(a.blob.nbytes for name, a in self.additions.items() if name not in lacking))
        surplus = sorted(held.keys() - self.wanted.keys())
        if lacking or surplus:
            upload(
                hub,
                lacking,
                surplus,
                revision=revision,
                message=pull_request.TITLE,
                parent=parent,
                progress=count,
            )


def _change(hub: Hub, plan: Plan, change: _Change, count: Progress) -> str:
    """Bring a branch to what it should be, at once; return its commit."""
    target = plan.target
    if plan.uses_pull_request:
        number = pull_request.begin(hub, plan.account.name, change.main, change.wanted)
        request = pull_request.revision_of(number)
        change.upload(hub, request, read_tree(hub, request), None, count)
        try:
            _require_unmoved(hub, target.branch, change.commit, change.main)
            _require_whole(hub, request, change)  # last: of main, the Hub itself finds conflicts
        except OtherContentError:
            pull_request.close(hub, number)
            raise
        pull_request.merge(hub, number)
        _require_merged(hub, target.branch, change)
    else:
        change.upload(hub, target.branch, change.main, change.commit, count)
        _require_whole(hub, target.branch, change)
    return _head(hub, target.branch)


class OtherContentError(DstoolsError):
    """A branch or pull request that does not hold what it should."""


def _head(hub: Hub, revision: str) -> str:
    """Return the commit of a branch; raise DstoolsError where somebody has deleted it."""
    commit = hub.head(revision)
    if commit is None:
        raise DstoolsError(f"{hub.repo} has no branch {revision} any more", AGAIN)
    return commit


def _require_whole(hub: Hub, revision: str, change: _Change) -> None:
    """Raise OtherContentError unless a revision holds exactly what it should."""
    wrong = differences(read_tree(hub, revision), change.wanted)
    if wrong:
        hint = f"{AGAIN}, in a new pull request" if revision.startswith("refs/") else AGAIN
        if ".gitignore" in change.main:
            hint = f"remove .gitignore from {hub.repo}: it makes the Hub skip files"
        raise OtherContentError(f"{hub.repo} at {revision}: {some(wrong)}", hint)


def _require_merged(hub: Hub, branch: str, change: _Change) -> None:
    """Raise DstoolsError unless a branch holds what was merged into it, and nothing else."""
    found = read_tree(hub, branch)
    wrong = differences(found, change.wanted)
    if wrong and not differences(found, change.main):
        raise DstoolsError(f"the Hub did not merge into {branch} of {hub.repo}", AGAIN)
    if wrong:
        raise DstoolsError(
            f"{branch} of {hub.repo} was changed at the same moment: {some(wrong)}",
            "the files are published; look at the others, then run the same command again",
        )


def _require_unmoved(hub: Hub, revision: str, commit: str, files: Tree) -> None:
    """Raise OtherContentError where a branch is not at a commit, that of `files`, any more."""
    if _head(hub, revision) != commit:
        moved = differences(read_tree(hub, revision), files)
        raise OtherContentError(
            f"{revision} of {hub.repo} has changed meanwhile: {some(moved) or 'the same files'}",
            "the same command starts from it as it is now; what is uploaded is not sent again",
        )


def _prepare(hub: Hub, plan: Plan) -> tuple[Tree, str]:
    """Make the repository and the branch if they are new; return the branch's files and commit."""
    target = plan.target
    branch = plan.branch
    if branch.is_new_repository:
        hub.call(
            f"create {target.repo}",
            hub.api.create_repo,
            target.repo,
            private=branch.private,
            exist_ok=True,
        )
    if branch.is_new:
        hub.call(
            f"create the branch {target.branch} of {target.repo}",
            hub.api.create_branch,
            target.repo,
            branch=target.branch,
            revision=branch.commit or None,
            exist_ok=True,
        )
    commit = _head(hub, target.branch)
    files = read_tree(hub, commit)
    if branch.files is None:
        _require_new(hub, files, branch.private)
    else:
        _require_unmoved(hub, target.branch, branch.commit, branch.files)
    return files, commit


def _require_new(hub: Hub, files: Tree, private: bool) -> None:
    """Raise DstoolsError unless a repository is the empty one that was just created."""
    info = hub.repository()
    if info is None or bool(info.private) is not private or files:
        raise DstoolsError(
            f"{hub.repo}: somebody else created it meanwhile", "run the same command again"
        )


def _additions(plan: Plan, blobs: dict[str, Blob]) -> dict[str, Addition]:
    """Return everything that is uploaded: files as they are, the card and the sums as made here.

    Raises DstoolsError, naming the file, where one is not as its list says.
    """
    selection = plan.selection
    for name, digest in selection.sums.items():
        if digest and name != README and blobs[name].sha256 != digest:  # people edit a card
            raise DstoolsError(
                f"{printable(name)}: is not the file that {selection.listed_by} lists",
                f"restore it; or, if you changed it, delete {selection.listed_by}: its hashes are "
                "of other files, and push writes new ones",
            )
    additions = {name: Addition.of(selection.files[name], blobs[name]) for name in blobs}
    additions[README] = _made(plan.card)
    digests = {name: addition.blob.sha256 or "" for name, addition in additions.items()}
    additions[SUMS] = _made(format_sums(digests))
    signature = plan.folder / SIGNATURE
    is_signed = signature.is_file() and all(
        _read(plan.folder / name) == additions[name].content for name in (README, SUMS)
    )
    if is_signed:  # of a folder that is published as it was signed
        additions[SIGNATURE] = _made(signature.read_bytes())
    elif signature.is_file():
        message = f"is left out: it is not of the {README} and {SUMS} that are published"
        hint = "download what was published, sign that, and push it again"
        warn(Finding.warning("signature", SIGNATURE, message, hint))
    return additions


def _made(content: bytes) -> Addition:
    return Addition(content, Blob.of(content))


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None and path.is_file() else None
