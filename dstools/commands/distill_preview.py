"""The output of `dstools distill run --dry-run` and of `dstools distill check`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dstools.options import hint, hint_command, show
from dstools_converters.errors import size

if TYPE_CHECKING:
    from dstools_distill.preview import Preview, Step
    from dstools_distill.recipe.recipe import Recipe


@dataclass(frozen=True)
class Checked:
    """A recipe that passed."""

    recipe: str
    chains: dict[str, list[str]]  # the stages of each, by its name; "" for the only one
    has_card: bool
    unfit: dict[str, str]  # the stages that this machine cannot run, and what it lacks


def show_checked(recipe: "Recipe", unfit: dict[str, str], as_json: bool) -> None:
    """Print the stages of a recipe that passed, and name the next command."""
    chains = {chain.name: list(chain.stages) for chain in recipe.chains}
    lines = [f"{name:24} {', '.join(stages)}".strip() for name, stages in chains.items()]
    lines += ["card"] if recipe.card else []
    checked = Checked(str(recipe.path), chains, recipe.card is not None, unfit)
    show(checked, as_json, "\n".join(lines))
    _warn(unfit)
    hint_command("distill", "run", str(recipe.path), "--dry-run")


def show_preview(seen: "Preview", as_json: bool) -> None:
    """Print a preview, and say on stderr whether the disk has room for it."""
    lines = [_step_line(step) for step in seen.steps]
    unknown = f"; unknown: {', '.join(seen.disk_unknown)}" if seen.disk_unknown else ""
    free = f"{size(seen.disk_free)} free"
    lines.append(f"disk: at most {size(seen.disk_needed)} needed{unknown}; {free}")
    show(seen, as_json, "\n".join(lines))
    _warn(seen.unfit)
    if all(step.state != "would run" for step in seen.steps):
        hint("everything is done; nothing would run")
    elif seen.unfit:
        hint("nothing was written")
    elif seen.disk_free < seen.disk_needed:
        hint(f"nothing was written; the disk has {free}, which may be too little")
    else:
        hint("nothing was written; the same command without --dry-run runs it")


def _warn(unfit: dict[str, str]) -> None:
    """Say on stderr which stages this machine cannot run."""
    for name, problem in unfit.items():
        hint(f"{name} cannot run on this machine, and `run` would refuse it: {problem}")


def _step_line(step: "Step") -> str:
    where = f"{step.chain}/{step.stage}" if step.chain else step.stage
    most = "at most " if step.state == "would run" else ""
    counts = [
        f"{most}{count:,} {noun}"
        for count, noun in ((step.rows, "rows"), (step.tokens, "tokens"))
        if count is not None
    ]
    return f"{where:24} {step.state:10} {', '.join(counts)}".rstrip()
