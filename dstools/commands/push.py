"""The command `dstools push`."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.options import (
    Command,
    hint,
    json_option,
    one_line,
    option,
    path_argument,
    show,
    terminal,
    warn,
    workers_option,
)
from dstools_converters.errors import DstoolsError, Finding, size

if TYPE_CHECKING:
    from dstools.hub.plan import Plan

EXAMPLES = """\
dstools push ./DeepSeek-V3-fp8 org/DeepSeek-V3-fp8 --base deepseek-ai/DeepSeek-V3 --dry-run
dstools push ./DeepSeek-V3-fp8 org/DeepSeek-V3-fp8 --base deepseek-ai/DeepSeek-V3"""
SHOWN = 20
BRANCH = re.compile(r"(?!refs/|HEAD$)\w[\w/-]*(\.[\w/-]+)*")  # of git-check-ref-format, less


@dataclass(frozen=True)
class Planned:
    """The plan of a push."""

    repo: str
    revision: str
    folder: str
    account: str
    token_from: str
    host: str
    is_new: bool
    private: bool
    by: str  # "pull request" or "one commit"
    files: list[str]
    bytes: int
    left_out: list[str]
    contradictions: list[str]  # weights of the repository that the new files do not name
    stays: list[str]  # other files of the repository
    refusals: list[Finding]  # why it cannot be carried out


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Publish a model on the Hub, all of it or nothing."
)
@path_argument(
    "folder", metavar="DIR", help="The folder of a model, of an export, or of a student's stage."
)
@click.argument("repo", metavar="ORG/NAME", help="The repository on the Hub; created if missing.")
@option(
    "--private/--public",
    "private",
    section="Repository",
    default=None,
    show_default="private",
    help="Make a new repository private or public; that of an existing one never changes.",
)
@option(
    "--revision",
    metavar="BRANCH",
    section="Repository",
    show_default="main, by a pull request",
    help="Publish on this branch, in one commit.",
)
@option(
    "--replace",
    "replaces",
    section="Repository",
    is_flag=True,
    help="Remove weights and indexes there that the new files do not name.",
)
@option(
    "--base",
    metavar="ORG/NAME",
    section="Card",
    help='Name the model that this one was made from; "none" names none.',
)
@option(
    "--engines",
    "takes_engines",
    section="Repository",
    is_flag=True,
    help="Publish native code of an exported folder, too: engines and plugins of TensorRT.",
)
@option("--yes", "is_agreed", section="Output", is_flag=True, help="Do not ask.")
@option("--dry-run", section="Output", is_flag=True, help="Print the plan and change nothing.")
@workers_option
@json_option
def push(
    folder: str,
    repo: str,
    private: bool | None,
    revision: str | None,
    replaces: bool,
    base: str | None,
    takes_engines: bool,
    is_agreed: bool,
    dry_run: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Publish the model in DIR on the Hub, with a card.

    Checks the folder, uploads it, compares every file, and only then changes the branch. Killed at
    any moment, the same command continues. The token is that of `hf auth login` or HF_TOKEN.
    """
    from dstools.machine import require_endpoint

    require_endpoint()  # before the Hub's client reads it
    from dstools.hub.client import Hub
    from dstools.hub.plan import Target, plan
    from dstools.hub.push import publish

    _check_names(repo, revision, base)
    if not (is_agreed or dry_run or sys.stdin.isatty()):
        raise click.UsageError("there is nobody to ask here: --yes agrees to the plan")
    hub = Hub(repo)
    planned = plan(
        hub, Path(folder), Target(repo, revision, private, replaces, base, takes_engines)
    )
    for finding in planned.selection.warnings:
        warn(finding)
    if dry_run:
        show(_planned(planned), as_json, _text(planned))
    else:
        click.echo(terminal(_text(planned)), err=True)
    if planned.refusals:
        first, *rest = planned.refusals
        more = f" (and {len(rest)} more, above)" if rest else ""
        raise DstoolsError(f"{first.where}: {first.message}{more}", first.hint)
    if dry_run:
        return
    if not is_agreed:
        click.confirm("Publish this?", abort=True, err=True)

    published = publish(hub, planned, workers)
    what = f"{published.repo}: {published.state}, {published.files} files, {size(published.bytes)}"
    checks = [
        f"checked: {'; '.join(published.verified)}; every file on the Hub",
        f"not checked: {'; '.join(published.not_checked)}",
    ]
    where = f"{published.url}/tree/{published.commit}"
    show(published, as_json, "\n".join([*checks, what, where]))
    copy = f"{repo} --revision {revision}" if revision else repo
    hint(f"check a copy: hf download {copy} --local-dir COPY; dstools verify COPY --sums")


def _check_names(repo: str, revision: str | None, base: str | None) -> None:
    """Raise UsageError for what cannot be a repository, a branch or a base."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for name in (repo, base):
        if name is None or (name == "none" and name is base):
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise click.UsageError(f"{name}: {error}") from error
        if "/" not in name:
            raise click.UsageError(f"{name}: is not of the form ORG/NAME")
    if base == repo:
        raise click.UsageError(f"--base {base}: is the repository itself")
    if revision is not None and not BRANCH.fullmatch(revision):
        raise click.UsageError(f"{revision}: is not the name of a branch")


def _planned(plan: "Plan") -> Planned:
    return Planned(
        repo=plan.target.repo,
        revision=plan.target.branch,
        folder=plan.folder.name,
        account=plan.account.name,
        token_from=plan.account.token_from,
        host=plan.account.host,
        is_new=plan.branch.is_new_repository,
        private=plan.branch.private,
        by="pull request" if plan.uses_pull_request else "one commit",
        files=sorted(plan.selection.names),
        bytes=plan.selection.nbytes,
        left_out=plan.selection.left_out,
        contradictions=plan.contradictions,
        stays=plan.stays,
        refusals=plan.refusals,
    )


def _text(plan: "Plan") -> str:
    account, target = plan.account, plan.target
    host = "" if account.is_default_host else f" at {account.host}, which HF_ENDPOINT names"
    visibility = "private" if plan.branch.private else "public"
    kind = "a new repository" if plan.branch.is_new_repository else "exists"
    by = "a pull request" if plan.uses_pull_request else "one commit"
    lines = [
        f"account    {account.name} (token from {account.token_from}){host}",
        f"repository {target.repo}, {kind}, {visibility}",
        f"branch     {target.branch}, by {by}",
        f"files      {len(plan.selection.names)}, {size(plan.selection.nbytes)}",
    ]
    if plan.card and not plan.has_base:
        lines.append("base       none: the card names no model that this one was made from")
    lines += _listed("left out", plan.selection.left_out)
    lines += _listed("to remove" if target.replaces else "in the way", plan.contradictions)
    lines += _listed("stays", plan.stays)
    lines += _listed("refused", [f"{f.where}: {f.message}; {f.hint}" for f in plan.refusals])
    return "\n".join(lines)


def _listed(title: str, names: list[str]) -> list[str]:
    shown = [one_line(name) for name in names[:SHOWN]]
    more = [f"and {len(names) - SHOWN} more; --json lists all"] if names[SHOWN:] else []
    return [f"{title:10} {name}" for name in (*shown, *more)]
