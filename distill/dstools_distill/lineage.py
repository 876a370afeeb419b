"""The finished stages that a card describes, which must have been made from each other."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_distill.inputs import read_from
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import PHASE, Chain
from dstools_distill.recipe.settings import Card, Student
from dstools_distill.recipe.stages import STAGES
from dstools_distill.store.stage import MANIFEST, Identity, digest, identify, read_manifest


@dataclass(frozen=True)
class Finished:
    """What a card is made from, by the name of the chain."""

    settings: Card
    students: dict[str, Student]
    stages: dict[str, dict[str, Path]]  # the folder of each finished stage

    def identity(self) -> Identity:
        """Return the identity of the card, which also shows settings that change no other byte."""
        inputs = {
            f"{name}/{stage}" if name else stage: folder / MANIFEST
            for name, folders in self.stages.items()
            for stage, folder in folders.items()
        }
        students = {name: asdict(student) for name, student in self.students.items()}
        settings = asdict(self.settings) | {"students": students}
        return identify("card", STAGES["card"].revision, settings, inputs, STAGES["card"].packages)


def gather_card(places: Places) -> Finished:
    """Return what the card of a recipe is made from.

    Raises DstoolsError if the recipe has no [card], or if a stage was made from an earlier one that
    has been replaced since.
    """
    recipe = places.recipe
    if recipe.card is None:
        raise DstoolsError(f"{recipe.path}: has no [card]", "add that table, if empty")
    stages = {
        chain.name: {
            stage: places.finished(chain, stage)
            for stage in chain.stages
            if (places.place(chain.name, stage) / MANIFEST).exists()
        }
        for chain in recipe.chains
    }
    for chain in recipe.chains:
        _require_lineage(places, chain, stages[chain.name])
    students = {chain.name: _public(places, chain.student) for chain in recipe.chains}
    return Finished(recipe.card, students, stages)


def _require_lineage(places: Places, chain: Chain, folders: dict[str, Path]) -> None:
    """Raise DstoolsError if a stage was not made from the earlier ones as they are now."""
    for stage, folder in folders.items():
        made_from = read_manifest(folder)["inputs"]
        for name, earlier in read_from(chain, stage).items():
            if earlier in folders and made_from.get(name) != digest(folders[earlier]):
                where = f"{chain.name}/{stage}" if chain.name else stage
                raise DstoolsError(
                    f"{folder}: {where} was made from another {earlier} than the one there now: "
                    "a card of both would describe a run that never was",
                    places.command("run", "--from", where),
                )


def _public(places: Places, student: Student) -> Student:
    """Return the student as a card may name it: without the path of a local folder."""
    is_folder = bool(student.model) and places.path(student.model).is_dir()
    if not is_folder or student.model.startswith(PHASE):
        return student
    return replace(student, model=Path(student.model).name)
