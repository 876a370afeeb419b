"""The stages of a recipe, one row each, in the order data flows, and the record of what they read.

To add a stage: a class in `settings.py`, a row here, and a module with the function that the row
names: `run(settings, inputs, work) -> Report`. It is imported when the stage runs, so that reading
a recipe needs neither torch nor transformers.
"""

from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from dstools_distill.recipe import settings
from dstools_distill.recipe.settings import Verify

UNREAD: Any = None  # the value of an input that a stage does not read


@dataclass(frozen=True)
class Inputs:
    """What stages read besides their own settings; `Stage.reads` names those that one is given."""

    # files and folders
    sources: tuple[Path | None, ...] = ()  # of prompts; None for "rg:" and "datasets:"
    pass_rates: Path | None = None  # a finished `verify` folder
    prompts: Path = UNREAD  # a finished `prompts` folder
    samples: Path = UNREAD  # the folder of the last stage that left samples
    mixed: Path | None = None  # conversations without a trace
    rows: Path = UNREAD  # a finished `render` folder
    problems: Path = UNREAD  # a finished `prompts` folder, of the problems of [eval]
    indexes: tuple[Path, ...] = ()  # of benchmarks, which must not be trained on
    # generate: the teacher's folder, or its samples; training: the student, None for a new one
    model: Path | None = None
    models: dict[str, Path] = field(default_factory=dict)  # eval: "before" and "after" training
    teacher: Path = UNREAD  # kd: the teacher's folder
    tokenizer: Path = UNREAD  # the folder of the student's tokenizer
    # settings of the chain
    template: str = ""  # a chat template; "": the tokenizer's own
    init: dict[str, Any] | None = None  # config keys of a new student
    judge: Verify = UNREAD  # how right answers are told

    def paths(self) -> dict[str, Path]:
        """Return the files and folders, by their names in a manifest."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        named = {
            f"{name} {number}": path
            for name, paths in (("source", self.sources), ("index", self.indexes))
            for number, path in enumerate(paths)
        }
        named |= {name: value for name, value in values.items() if isinstance(value, Path)}
        return {name: path for name, path in named.items() if path is not None} | self.models

    def shared_settings(self, reads: tuple[str, ...]) -> dict[str, Any]:
        """Return the settings of the chain that a stage reads, by their names in a manifest."""
        shared: dict[str, Any] = {}
        if "template" in reads:
            shared["template"] = self.template
        if "init" in reads:
            shared["init"] = self.init
        if "judge" in reads:
            shared["verify"] = asdict(self.judge)
        return shared


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    settings: type[Any]
    run: str  # "module:function"
    help: str  # at most 50 characters
    reads: tuple[str, ...]  # fields of Inputs
    packages: tuple[str, ...]  # distributions whose versions may change the bytes
    revision: int  # of the code, raised when it gives other bytes for the same inputs
    paths: tuple[str, ...] = ()  # settings that name an input, which counts by its content
    how: tuple[str, ...] = ()  # settings that change no byte
    leaves_model: bool = False
    trains: bool = False  # by a trainer of TRL, in one or several processes

    def load(self) -> Any:
        """Return the function, after importing its module."""
        module, _, name = self.run.partition(":")
        return getattr(import_module(module), name)


JUDGE = ("latex2sympy2_extended", "math-verify", "mpmath", "reasoning_gym", "sympy")
TRAINING = ("accelerate", "peft", "torch", "transformers", "trl")
STAGES = {
    "prompts": Stage(
        settings.Prompts,
        run="dstools_distill.data.prompts:prompts",
        help="Import prompts and drop duplicates.",
        reads=("sources", "pass_rates"),
        packages=("numpy", *JUDGE),
        revision=6,
        paths=("pass_rates",),
    ),
    "generate": Stage(
        settings.Generate,
        run="dstools_distill.teachers.generate:generate",
        help="Sample the teacher's answers to each prompt.",
        reads=("prompts", "model"),
        packages=(),  # too expensive to repeat for a new version of a package
        revision=4,
        paths=("model",),
        # with other values a run resumes from the samples there are
        how=("base_url", "api_key_env", "concurrency", "retries", "timeout_seconds", "max_failed"),
    ),
    "verify": Stage(
        settings.Verify,
        run="dstools_distill.judge.verify:verify",
        help="Judge answers: correct, incorrect, unverifiable.",
        reads=("samples",),
        packages=JUDGE,
        revision=5,
    ),
    "decontaminate": Stage(
        settings.Decontaminate,
        run="dstools_distill.data.decontaminate:decontaminate",
        help="Drop rows that share text with a benchmark.",
        reads=("samples", "indexes"),
        packages=(),
        revision=6,
    ),
    "select": Stage(
        settings.Select,
        run="dstools_distill.data.select:select",
        help="Choose the traces to train on.",
        reads=("samples", "mixed", "indexes"),
        packages=("numpy",),
        revision=5,
        paths=("non_reasoning",),
    ),
    "render": Stage(
        settings.Render,
        run="dstools_distill.tokens.render:render",
        help="Tokenize rows and prove that no trace is lost.",
        reads=("samples", "tokenizer", "template"),
        packages=("tokenizers", "transformers"),
        revision=4,
    ),
    "sft": Stage(
        settings.Sft,
        run="dstools_distill.training.sft:sft",
        help="Fine-tune the student on rendered rows.",
        reads=("rows", "model", "tokenizer", "template", "init"),
        packages=TRAINING,
        revision=3,
        how=("save_steps",),
        leaves_model=True,
        trains=True,
    ),
    "kd": Stage(
        settings.Kd,
        run="dstools_distill.training.kd:kd",
        help="Distil the teacher's logits into the student.",
        reads=("prompts", "model", "teacher", "tokenizer", "template", "indexes"),
        packages=TRAINING,
        revision=5,
        paths=("teacher",),
        how=("save_steps",),
        leaves_model=True,
        trains=True,
    ),
    "grpo": Stage(
        settings.Grpo,
        run="dstools_distill.training.grpo:grpo",
        help="Train the student by rewards on its own answers.",
        reads=("prompts", "model", "tokenizer", "template", "judge", "indexes"),
        packages=(*TRAINING, *JUDGE),
        revision=7,
        how=("save_steps",),
        leaves_model=True,
        trains=True,
    ),
    "mtp": Stage(
        settings.Mtp,
        run="dstools_distill.training.mtp:mtp",
        help="Fit the MTP layer to the trained student.",
        reads=("rows", "model"),
        packages=("torch",),
        revision=2,
        leaves_model=True,
    ),
    "eval": Stage(
        settings.Eval,
        run="dstools_distill.evaluation.evaluate:evaluate",
        help="Measure the student on held-out problems.",
        reads=("problems", "models", "tokenizer", "template", "judge"),
        packages=("torch", "transformers", *JUDGE),
        revision=6,
        how=("at_least",),
    ),
    "card": Stage(  # reads every other stage, so its function has other arguments
        settings.Card,
        run="dstools_distill.cards.card:card",
        help="Write the data card, the model card and plots.",
        reads=(),
        packages=("scipy",),
        revision=4,
    ),
}
TRAINED = tuple(name for name, stage in STAGES.items() if stage.leaves_model)
