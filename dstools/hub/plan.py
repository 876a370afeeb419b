"""The plan of a push: what would be published where, and what stands in the way.

It is made from names and sizes, small files, and what the Hub says, before a weight is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from dstools.hub import pull_request
from dstools.hub.card import OURS, model_card
from dstools.hub.client import AGAIN, Account, Hub
from dstools.hub.eval_results import check_eval_results
from dstools.hub.frontmatter import read_card
from dstools.hub.leaks import leaks
from dstools.hub.remote import Tree, contradictions, read_tree, some
from dstools.hub.selection import EVAL_RESULTS, Selection, select
from dstools_converters.errors import DstoolsError, Finding, size
from dstools_converters.files import real
from dstools_converters.sidefiles.carried import README
from dstools_converters.verify.hashes import Blob

MAIN = constants.DEFAULT_REVISION
FREE_PRIVATE_BYTES = 100 * 10**9  # docs/hub/storage-limits, August 2026


@dataclass(frozen=True)
class Target:
    """A repository, and how a push changes it."""

    repo: str
    revision: str | None = None  # a branch, to be changed in one commit, without a pull request
    private: bool | None = None  # None: not said; a new repository is private then
    replaces: bool = False  # remove weights that the new files do not name
    base: str | None = None  # org/name, or "none"
    takes_engines: bool = False  # of an exported folder

    @property
    def branch(self) -> str:
        """Return the branch that is changed."""
        return self.revision or MAIN


@dataclass(frozen=True)
class Branch:
    """The branch of a repository that a push changes, as it is."""

    private: bool
    commit: str = ""  # of a new branch, the one that it begins at; "" in a new repository
    files: Tree | None = None  # None: in a new repository, which holds nothing of interest
    is_new: bool = False
    has_requests: bool = True  # pull requests are not switched off

    @property
    def is_new_repository(self) -> bool:
        """Return whether the repository has to be created."""
        return self.files is None


@dataclass(frozen=True)
class Plan:
    """What a push will do."""

    target: Target
    folder: Path
    selection: Selection
    account: Account
    branch: Branch
    card: bytes  # b"" where it cannot be written
    contradictions: list[str]  # weights on the branch that the new files do not name
    refusals: list[Finding]  # why it cannot be carried out

    @property
    def stays(self) -> list[str]:
        """Return the files on the branch that are neither replaced nor removed."""
        return sorted(
            (self.branch.files or {}).keys() - self.selection.names - {*self.contradictions}
        )

    @property
    def uses_pull_request(self) -> bool:
        """Return whether the files go into a pull request."""
        return self.branch.has_requests and self.target.revision is None

    @property
    def has_base(self) -> bool:
        """Return whether the card names the model that this one was made from."""
        return bool(self.card) and "base_model" in read_card(self.card).metadata


def plan(hub: Hub, folder: Path, target: Target) -> Plan:
    """Return what a push of `folder` will do; no weights are read, nothing is changed.

    Raises DstoolsError where there is no folder, the account may not write, or the visibility is
    not the one that was asked for.
    """
    folder = real(folder)
    selection = select(folder, takes_engines=target.takes_engines)
    try:
        account = hub.account()
    except DstoolsError as error:
        raise _with_faults(error, selection) from error
    branch = _look(hub, target, account, selection)
    files = branch.files or {}
    names = selection.names
    refusals = list(selection.faults)
    card = b""
    local = selection.files[README].read_bytes() if README in selection.files else None
    remote = _read_card(hub, branch.commit, files[README]) if README in files else None
    try:
        made = model_card(
            folder, base=target.base, local=local, remote=remote, files=names, repo=target.repo
        )
        card = made.text
        selection.warnings.extend(made.warnings)
        if local is not None and remote not in (None, local) and not made.warnings:
            selection.warnings.extend(_overruled(local, card))
    except DstoolsError as error:
        where, _, message = str(error).partition(": ")
        refusals.append(Finding.error("card", where, message, error.hint))
    old = contradictions(files, names)
    refusals += _faults(hub, folder, selection, card)
    if old and not target.replaces:
        message = f"holds weights that the new files do not name: {some(old)}"
        hint = "--replace removes them in the same step; or push to a new repository"
        refusals.append(Finding.error("contradiction", target.repo, message, hint))
    return Plan(target, folder, selection, account, branch, card, old, refusals)


def _with_faults(error: DstoolsError, selection: Selection) -> DstoolsError:
    """Return why the Hub did not answer, with what of the folder cannot be published anyhow."""
    if not selection.faults:
        return error
    faults = some([f"{fault.where}: {fault.message}" for fault in selection.faults])
    return DstoolsError(f"{error}; and not to be published: {faults}", error.hint)


def _overruled(local: bytes, published: bytes) -> Iterator[Finding]:
    """Yield a warning for keys and text of the folder's card that the repository's overrules."""
    card, other = read_card(local), read_card(published)
    lost = [str(key) for key, value in card.metadata.items() if other.metadata.get(key) != value]
    if any(text.strip() not in other.body for text in OURS.split(card.body)):
        lost.append("the text")
    if lost:
        message = f"that of the repository counts: {', '.join(lost)} of this one is not published"
        hint = "change it on the Hub, or delete it there"
        yield Finding.warning("card", README, message, hint)


def _look(hub: Hub, target: Target, account: Account, selection: Selection) -> Branch:
    """Return the branch that a push changes, after checking that the account may."""
    info = hub.repository()
    if info is None:
        private = target.private is not False
        _require_room(account, target, private, selection)
        return Branch(private=private, is_new=target.branch != MAIN)
    _require_visibility(target, bool(info.private))
    _require_room(account, target, bool(info.private), selection)
    doing = f"check that you may write to {target.repo}"
    hub.call(doing, hub.api.auth_check, target.repo, write=True)
    head = hub.head(target.branch)
    commit = head or info.sha
    assert commit
    return Branch(
        private=bool(info.private),
        commit=commit,
        files=read_tree(hub, commit),
        is_new=head is None,
        has_requests=pull_request.open_ones(hub, account.name) is not None,
    )


def _read_card(hub: Hub, commit: str, listed: Blob) -> bytes:
    """Return the README.md of the repository; DstoolsError where it is not the one listed."""
    card = hub.read_file(README, commit)
    if not Blob.of(card).equals(listed):
        message = f"{README} of {hub.repo}: what the Hub sends is not what it lists"
        raise DstoolsError(message, f"check that no proxy answers in place of the Hub; {AGAIN}")
    return card


def _faults(hub: Hub, folder: Path, selection: Selection, card: bytes) -> Iterator[Finding]:
    """Yield what is wrong inside the small files that would be published."""
    for name, path in selection.files.items():
        if name.startswith(f"{EVAL_RESULTS}/"):
            yield from check_eval_results(path.read_bytes(), name)
    yield from leaks(selection.files, card, folder, hub.token)


def _require_room(account: Account, target: Target, private: bool, selection: Selection) -> None:
    """Raise DstoolsError where a free account cannot hold a private repository of this size."""
    nbytes = selection.nbytes
    is_free = account.pays is False
    if private and target.private is None and is_free and nbytes > FREE_PRIVATE_BYTES:
        raise DstoolsError(
            f"{size(nbytes)} in a private repository: a free account holds "
            f"{size(FREE_PRIVATE_BYTES)} of them",
            "--public publishes it; --private tries all the same",
        )


def _require_visibility(target: Target, private: bool) -> None:
    if target.private is not None and target.private is not private:
        have, wanted = ("private", "public") if private else ("public", "private")
        raise DstoolsError(
            f"{target.repo} is {have}, not {wanted}; push does not change that",
            f"change it in the repository's settings, or leave out --{wanted}",
        )
