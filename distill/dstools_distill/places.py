"""Where the things that a recipe names lie: models, files, the folders of finished stages."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.presets import BUNDLED, bundled
from dstools_distill.recipe.recipe import PHASE, Chain, Recipe
from dstools_distill.recipe.settings import Eval, Prompts
from dstools_distill.store.ranks import rank
from dstools_distill.store.stage import MANIFEST


@dataclass(frozen=True)
class Places:
    """The paths of a recipe and of its results."""

    recipe: Recipe
    out: Path
    resolve: Callable[[str], Path]  # org/name -> its folder in the Hub cache

    def finished(self, chain: Chain, stage: str) -> Path:
        """Return the folder of a stage that is done."""
        place = self.place(chain.name, stage)
        if not (place / MANIFEST).exists():
            named = ["--chain", chain.name] if chain.name else []
            raise DstoolsError(f"{place}: {stage} is not done", self.command(stage, *named))
        return place.resolve()

    def command(self, name: str, *options: str) -> str:
        """Return a command of dstools that works on this recipe, in this folder."""
        is_usual = self.out == self.recipe.path.with_suffix("")
        words = [*options, *([] if is_usual else ["--out", os.fspath(self.out)])]
        return " ".join(["dstools", "distill", name, os.fspath(self.recipe.path), *words])

    def require(self) -> None:
        """Raise DstoolsError where a file or folder that a chain names is not there, before anything is run."""
        for chain in self.recipe.chains:
            stages, needed = chain.stages, [*chain.index]
            if "prompts" in stages:
                needed.append(stages["prompts"].pass_rates)
            if "select" in stages:
                needed.append(stages["select"].non_reasoning)
            for stage in ("prompts", "eval"):
                if stage in stages:
                    needed += [os.fspath(path) for path in self.sources(stages[stage]) if path]
            for name in filter(None, needed):
                if not name.startswith(PHASE) and not self.path(name).exists():
                    raise DstoolsError(
                        f"{self.recipe.path}: {self.path(name)}: no such file or folder",
                        "paths of a recipe are relative to its folder",
                    )
            models = [("student.model", chain.student.model)]
            models.append(("student.tokenizer", chain.student.tokenizer))
            if "generate" in stages and stages["generate"].backend == "hf":
                models.append(("generate.model", stages["generate"].model))
            if "kd" in stages:
                models.append(("kd.teacher", stages["kd"].teacher))
            for key, name in models:
                if name and not name.startswith(PHASE):
                    self.model(name, key)

    def unknown_licences(self) -> list[str]:
        """Return whose licence a recipe does not say, where a teacher is going to be asked."""
        found: dict[str, None] = {}
        for chain in self.recipe.chains:
            teacher = chain.stages.get("generate")
            if teacher and teacher.backend != "replay" and "prompts" in chain.stages:
                sources = chain.stages["prompts"].source
                said = [(source.path, source.licence) for source in sources]
                for name, licence in [*said, (teacher.model, teacher.licence)]:
                    if licence == "unknown":
                        found[name] = None
        return list(found)

    def before(self, chain: Chain, stage: str) -> Path:
        """Return the folder of the last data stage before this one."""
        earlier = chain.data_before(stage)
        if earlier is None:
            raise DstoolsError(
                f"{self.recipe.path}: {stage} has nothing to work on", "the recipe needs [generate]"
            )
        return self.finished(chain, earlier)

    def trained(self, chain: Chain, *, before: str) -> Path:
        """Return the model that the last training before a stage left, or the student's own."""
        earlier = chain.trained_before(before)
        if earlier is not None:
            return self.finished(chain, earlier)
        model = self.student(chain)
        if model is None:
            raise DstoolsError(
                f"{self.recipe.path}: {before} needs a model that was trained",
                "add [sft] before it",
            )
        return model

    def student(self, chain: Chain) -> Path | None:
        """Return the folder of the student before it is trained; None where it is a new one."""
        name = chain.student.model
        return self.model(name, "student.model") if name else None

    def tokenizer(self, chain: Chain) -> Path:
        """Return the folder of the student's tokenizer."""
        name = chain.student.tokenizer or chain.student.model
        return self.model(name, "student.tokenizer")

    def model(self, name: str, key: str) -> Path:
        """Return the folder of a model: of an earlier phase, beside the recipe, or in the Hub cache."""
        if not name:
            raise DstoolsError(
                f"{self.recipe.path}: {key}: is missing", "name a folder or org/name"
            )
        path = self.path(name)
        return path if path.is_dir() else self.resolve(name)

    def sources(self, settings: Prompts | Eval) -> list[Path | None]:
        """Return the files that prompts come from; None for what is no file."""
        names = [source.path for source in settings.source]
        return [
            None if name.startswith(("rg:", "datasets:")) else self.path(name) for name in names
        ]

    def file(self, name: str) -> Path | None:
        """Return the path of a file, or None where the recipe names none."""
        return self.path(name) if name else None

    def path(self, name: str) -> Path:
        """Return a path of the recipe, which is relative to the recipe's folder."""
        if name.startswith(BUNDLED):
            return bundled(name)
        if name.startswith(PHASE):
            return (self.out / name.removeprefix(PHASE)).resolve()
        return self.recipe.path.parent / Path(name).expanduser()

    def place(self, chain: str, stage: str) -> Path:
        """Return the link to what a stage of a chain made last, whether it is there or not."""
        return self.out / chain / stage if chain else self.out / stage

    def link(self, chain: str, stage: str, folder: Path) -> None:
        """Let OUT/CHAIN/STAGE point to what was made."""
        if rank() > 0:
            return
        place = self.place(chain, stage)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{stage}.link")
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(folder, place.parent))
        partial.replace(place)
