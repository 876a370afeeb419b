"""The paths that a recipe names: models, files, and the folders of finished stages."""

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_converters.files import real
from dstools_distill.recipe.presets import BUNDLED, bundled
from dstools_distill.recipe.recipe import PHASE, Chain, Recipe
from dstools_distill.recipe.settings import Eval, Prompts
from dstools_distill.store.ranks import rank
from dstools_distill.store.stage import MANIFEST

NO_FILES = ("rg:", "datasets:")  # begin sources that are not a file


class PendingError(Exception):
    """A preview met the result of a stage that has yet to run."""


@dataclass(frozen=True)
class Places:
    """The paths of a recipe and of its results."""

    recipe: Recipe
    out: Path
    resolve: Callable[[str], Path]  # org/name -> its folder in the Hub cache
    # of a preview, by CHAIN/STAGE: the folders to which a run would have made links
    links: dict[str, Path] | None = None

    def finished(self, chain: Chain, stage: str) -> Path:
        """Return the folder of a stage, which must be finished."""
        place = self.place(chain.name, stage)
        if not (place / MANIFEST).exists():
            options = ["--chain", chain.name] if chain.name else []
            raise DstoolsError(f"{place}: {stage} is not done", self.command(stage, *options))
        return real(place)

    def command(self, name: str, *options: str) -> str:
        """Return the dstools command that works on this recipe in this folder."""
        is_usual = self.out == self.recipe.path.with_suffix("")
        words = [*options, *([] if is_usual else ["--out", os.fspath(self.out)])]
        return shlex.join(["dstools", "distill", name, os.fspath(self.recipe.path), *words])

    def require(self) -> None:
        """Raise DstoolsError if a file or folder that the recipe names is missing."""
        for chain in self.recipe.chains:
            rates = chain.stages["prompts"].pass_rates if "prompts" in chain.stages else ""
            for name in (rates, *self._files(chain)):
                path = self.path(name)
                if not name or name.startswith(PHASE):
                    continue
                if not path.exists():
                    raise DstoolsError(
                        f"{self.recipe.path}: {path}: no such file or folder",
                        "paths of a recipe are relative to its folder",
                    )
                if path.is_dir() and name != rates:
                    problem = f"{self.recipe.path}: {path}: is a folder"
                    raise DstoolsError(problem, "name a file in it")
            for key, name in self._models(chain):
                if not name.startswith(PHASE):
                    self.model(name, key)

    def _files(self, chain: Chain) -> Iterator[str]:
        stages = chain.stages
        yield from chain.index
        if "generate" in stages and stages["generate"].backend == "replay":
            yield stages["generate"].model
        if "select" in stages:
            yield stages["select"].non_reasoning
        for stage in ("prompts", "eval"):
            if stage in stages:
                names = (source.path or "." for source in stages[stage].source)
                yield from (name for name in names if not name.startswith(NO_FILES))

    def _models(self, chain: Chain) -> Iterator[tuple[str, str]]:
        if chain.student.model:
            yield "student.model", chain.student.model
        if chain.student.tokenizer:
            yield "student.tokenizer", chain.student.tokenizer
        if "generate" in chain.stages and chain.stages["generate"].backend == "hf":
            yield "generate.model", chain.stages["generate"].model
        if "kd" in chain.stages:
            yield "kd.teacher", chain.stages["kd"].teacher

    def unknown_licences(self) -> list[str]:
        """Return the sources and teachers without a licence, where a teacher will be asked."""
        unknown: dict[str, None] = {}
        for chain in self.recipe.chains:
            teacher = chain.stages.get("generate")
            if teacher and teacher.backend != "replay" and "prompts" in chain.stages:
                sources = chain.stages["prompts"].source
                named = [(source.path, source.licence) for source in sources]
                for name, licence in [*named, (teacher.model, teacher.licence)]:
                    if licence == "unknown":
                        unknown[name] = None
        return list(unknown)

    def before(self, chain: Chain, stage: str) -> Path:
        """Return the folder of the last stage before this one that left samples or rows."""
        earlier = chain.data_before(stage)
        if earlier is None:
            raise DstoolsError(
                f"{self.recipe.path}: {stage} has nothing to work on",
                "the recipe needs [generate]; where the rows of [[prompts.source]] hold the "
                'answers, write backend = "replay" in it, and no model',
            )
        return self.finished(chain, earlier)

    def trained(self, chain: Chain, *, before: str) -> Path:
        """Return the model of the last training before a stage, or else the student's own."""
        earlier = chain.trained_before(before)
        if earlier is not None:
            return self.finished(chain, earlier)
        model = self.student(chain)
        if model is None:
            raise DstoolsError(
                f"{self.recipe.path}: {before} needs a trained model", "add [sft] before it"
            )
        return model

    def student(self, chain: Chain) -> Path | None:
        """Return the folder of the untrained student; None for one of random weights."""
        name = chain.student.model
        return self.model(name, "student.model") if name else None

    def tokenizer(self, chain: Chain) -> Path:
        """Return the folder of the student's tokenizer."""
        name = chain.student.tokenizer or chain.student.model
        return self.model(name, "student.tokenizer")

    def model(self, name: str, key: str) -> Path:
        """Return a model's folder: of an earlier phase, relative to the recipe, or in the cache."""
        if not name:
            raise DstoolsError(
                f"{self.recipe.path}: {key}: is missing", "name a folder or org/name"
            )
        path = self.path(name)
        return path if path.is_dir() else self.resolve(name)

    def sources(self, settings: Prompts | Eval) -> list[Path | None]:
        """Return the files of the sources; None for those that are not a file."""
        names = [source.path for source in settings.source]
        return [None if name.startswith(NO_FILES) else self.path(name) for name in names]

    def file(self, name: str) -> Path | None:
        """Return the path of a file, or None if the recipe names none."""
        return self.path(name) if name else None

    def path(self, name: str) -> Path:
        """Return a path of the recipe, which is relative to the recipe's folder."""
        if name.startswith(BUNDLED):
            return bundled(name)
        if name.startswith(PHASE):
            chain, _, rest = name.removeprefix(PHASE).partition("/")
            stage, _, rest = rest.partition("/")
            return real(self.place(chain, stage) / rest)
        return self.recipe.path.parent / Path(name).expanduser()

    def place(self, chain: str, stage: str) -> Path:
        """Return the link to the last result of a stage, whether or not it exists.

        Raises PendingError in a preview if a run would make another link first.
        """
        name = f"{chain}/{stage}" if chain else stage
        if self.links is not None:
            if name in self.links:
                return self.links[name]
            if any(chain == one.name and stage in one.stages for one in self.recipe.chains):
                raise PendingError(name)
        return self.out / name

    def require_free(self, chain: str, stage: str) -> None:
        """Raise DstoolsError if anything but an earlier link is in the way of a stage's result."""
        link = self.out / chain / stage
        folders = [self.out / "store", link.parent]
        inside = next((path for path in folders if path.exists() and not path.is_dir()), None)
        if taken := inside or (link if link.exists() and not link.is_symlink() else None):
            raise DstoolsError(
                f"{taken}: is not a result of dstools, and one would replace it",
                "move it away, or name another --out",
            )

    def link(self, chain: str, stage: str, folder: Path) -> None:
        """Make OUT/CHAIN/STAGE a link to the result."""
        if rank() > 0:
            return
        place = self.place(chain, stage)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{stage}.link")
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(folder, place.parent))
        partial.replace(place)
