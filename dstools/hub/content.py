"""What a folder says of itself, for its card: a checkpoint, or what dstools export made of one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dstools.hub.card_text import Subject, card_text
from dstools.hub.export_text import export_text
from dstools.hub.frontmatter import is_hub_name
from dstools_converters.checkpoint.exported import is_exported
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.export.folder import GENAI_CONFIG, Export, require_export
from dstools_converters.sidefiles.calibration import read_calibration
from dstools_converters.sidefiles.carried import README
from dstools_converters.sidefiles.manifest import Manifest, load_manifest

# (base, repository, has_title) -> the generated part
Text = Callable[[str | None, str | None, bool], str]


@dataclass(frozen=True)
class Content:
    """A folder, as far as its card depends on it."""

    source: str | None  # org/name of the checkpoint that it was made from, where it is known
    source_card: str | None  # sha256 of the README.md that was copied from there
    is_made_here: bool  # from a checkpoint, by quantize or export
    is_foreign: bool  # a model that is neither quantized nor of dstools
    relation: str | None  # to its base, as the Hub calls it
    facts: dict[str, Any]  # front matter
    text: Text


def content_of(folder: Path, files: Collection[str]) -> Content:
    """Return what a folder says, of which `files` are published.

    Raises DstoolsError where it is neither a checkpoint nor an exported folder.
    """
    return _of_export(folder, files) if is_exported(folder) else _of_checkpoint(folder, files)


def _of_checkpoint(folder: Path, files: Collection[str]) -> Content:
    with open_checkpoint(folder) as checkpoint:
        inventory = take_inventory(checkpoint)
    manifest = load_manifest(folder)
    is_quantized = inventory.scheme is not None
    relation = "quantized" if is_quantized else "finetune" if manifest is None else None
    card = manifest.source_card if manifest else None

    def text(base: str | None, repo: str | None, has_title: bool) -> str:
        subject = Subject(folder, inventory, manifest, base, repo, files)
        return card_text(subject, has_title=has_title)

    return Content(
        source=_source(manifest),
        source_card=card.removeprefix("sha256:") if card else None,
        is_made_here=manifest is not None and is_quantized,
        is_foreign=not is_quantized and manifest is None,
        relation=relation,
        facts=_facts(folder, inventory, manifest),
        text=text,
    )


def _source(manifest: Manifest | None) -> str | None:
    """Return the Hub's name of the checkpoint that the weights were made from."""
    source = manifest.source.partition("@")[0] if manifest and manifest.source else ""
    return source if is_hub_name(source) else None


def _facts(folder: Path, inventory: Inventory, manifest: Manifest | None) -> dict[str, Any]:
    scheme = inventory.scheme
    tags = ["fp8"] if scheme else []
    tags += ["compressed-tensors"] if scheme and scheme.format == "compressed-tensors" else []
    tags += ["dstools"] if manifest else []
    facts: dict[str, Any] = {"tags": tags} if tags else {}
    calibration = read_calibration(folder, inventory)
    if calibration and "/" in calibration.data.name and is_hub_name(calibration.data.name):
        facts["datasets"] = [calibration.data.name]
    return facts


def _of_export(folder: Path, files: Collection[str]) -> Content:
    export = require_export(folder)
    return Content(
        source=None,
        source_card=export.files.get(README),
        is_made_here=True,
        is_foreign=False,
        relation="quantized",  # the Hub has no word for the same model in another form
        facts=_export_facts(export),
        text=partial(_export_text, export, files),
    )


def _export_text(
    export: Export, files: Collection[str], base: str | None, repo: str | None, has_title: bool
) -> str:
    return export_text(export, files, base=base, repo=repo, has_title=has_title)


def _export_facts(export: Export) -> dict[str, Any]:
    """Return tags and the library that runs a folder, as repositories of ONNX models have them.

    Seen in cards of onnx-community, microsoft and others on the Hub: tags onnx and
    onnxruntime-genai; library_name onnxruntime-genai, or onnxruntime where only that runs it. The
    Hub's own list of libraries (huggingface.js, model-libraries.ts) has neither, and takes any.
    """
    if export.kind == "deepseek-inference":
        return {"library_name": "deepseek-inference", "tags": _tags(export, "deepseek-inference")}
    library = "onnxruntime-genai" if GENAI_CONFIG in export.files else "onnxruntime"
    return {"library_name": library, "tags": _tags(export, "onnx", library)}


def _tags(export: Export, *names: str) -> list[str]:
    return [*names, *(["fp8"] if export.has_codes else []), "dstools"]
