"""Text of a model card: what is quantized, how it was made, where it runs, and what was measured.

Everything comes from the folder's headers and JSON files. A number that was not measured does not
appear. eval.json and manifest.json have no date, so that equal runs give equal bytes, and so does
the card: the date of a file would be that of a copy.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from dstools.report.card import measured, not_measured, provenance
from dstools.report.drawings import plots
from dstools.report.figures import by_model, figures
from dstools.report.numbers import number
from dstools.report.sheet import Sheet, sheet_of
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import Finding, counted, size
from dstools_converters.inspect import describe_quantization
from dstools_converters.markdown import table, text
from dstools_converters.plan.kept import FROM_BASE, FROM_SOURCE, KEPT_IN_BASE, KEPT_IN_SOURCE
from dstools_converters.plan.recipe import KEEP
from dstools_converters.sidefiles.data import Data
from dstools_converters.sidefiles.evaluation import Evaluation
from dstools_converters.sidefiles.manifest import Manifest
from dstools_converters.sidefiles.sums import SUMS
from dstools_converters.verify.engines import ENGINES, SEEN, Engine, check_engine

HUB = "https://huggingface.co"
PLACEHOLDER = "ORG/NAME"
ENGINE_NAMES: dict[Engine, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "transformers": "transformers",
}
START: dict[Engine, str] = {
    "vllm": "vllm serve {}",
    "sglang": "python -m sglang.launch_server --model-path {}",
    "trtllm": "trtllm-serve {}",
    "transformers": 'AutoModelForCausalLM.from_pretrained("{}")',
}
KNOWN_RULES = (KEEP.label, FROM_SOURCE, FROM_BASE, KEPT_IN_SOURCE, KEPT_IN_BASE)
QUALITY = ("perplexity", "kl_mean", "top1_agreement", "router_flips", "output_error")
DTYPES = {"F8_E4M3": "FP8 (E4M3)", "F8_E8M0": "E8M0"}


@dataclass(frozen=True)
class Subject:
    """The model that a card is about."""

    folder: Path
    inventory: Inventory
    manifest: Manifest | None  # None: dstools did not write the folder
    base: str | None  # org/name
    repo: str | None  # org/name of the repository itself
    files: Collection[str]  # names in the repository


def card_text(subject: Subject, *, has_title: bool) -> str:
    """Return the generated part of a card as Markdown; without a title it follows other text.

    Raises DstoolsError where a side file is damaged or is of another checkpoint.
    """
    sheet = sheet_of(subject.folder, subject.inventory)
    parts = [
        f"# {text(_title(subject))}" if has_title else "## About this checkpoint",
        _summary(subject),
        _model(sheet),
        "## How to run it",
        *_engines(subject),
        *_quality(subject, sheet),
        *_quantized(subject.inventory),
        *_made(subject, sheet),
    ]
    return "\n\n".join(parts)


def _title(subject: Subject) -> str:
    if subject.repo:
        return subject.repo.partition("/")[2]
    name = subject.base.partition("/")[2] if subject.base else subject.inventory.model.model_type
    return f"{name}, FP8" if subject.inventory.scheme else name


def _summary(subject: Subject) -> str:
    base = f"[{subject.base}]({HUB}/{subject.base})" if subject.base else ""
    kind = describe_quantization(subject.inventory)
    if subject.inventory.scheme is None:
        origin = f", made from {base}" if base else ""
        return f"A {text(subject.inventory.model.model_type)} model{origin}, not quantized."
    by = f" by {text(subject.manifest.tool)}" if subject.manifest else ""
    if not base:
        return f"A {text(subject.inventory.model.model_type)} model, quantized{by}: {kind}."
    return (
        f"{base}, quantized{by}: {kind}. What the model is for, and how it was trained, is in the "
        "card of that model."
    )


# ------------------------------------------------------------------------------ what is quantized


def _quantized(inventory: Inventory) -> list[str]:
    """Return tables of the roles that are quantized and of those that are not."""
    if inventory.scheme is None:
        return []
    counts: dict[tuple[bool, str, str], tuple[int, int]] = {}  # -> tensors, bytes
    for info, parsed in inventory.weights():
        storage = inventory.storage[info.name]
        dtypes = [DTYPES.get(part.dtype, part.dtype) for part in storage.parts]
        stored = f"{dtypes[0]}, scales {dtypes[1]}" if storage.is_quantized else dtypes[0]
        key = (storage.is_quantized, parsed.role if parsed else "unknown", stored)
        tensors, nbytes = counts.get(key, (0, 0))
        counts[key] = (tensors + 1, nbytes + storage.nbytes)
    parts = ["## What is quantized, and what is not"]
    for is_quantized, which in ((True, "quantized"), (False, "not quantized")):
        of_these = {key[1:]: count for key, count in counts.items() if key[0] == is_quantized}
        order = by_model(role for role, _ in of_these)
        rows = [
            (role, stored, f"{tensors:,}", size(nbytes))
            for (role, stored), (tensors, nbytes) in sorted(
                of_these.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
            )
        ]
        if rows:
            total = size(sum(nbytes for _, nbytes in of_these.values()))
            head = (f"{which.capitalize()}: {total}", "Stored as", "Tensors", "Size")
            parts.append(table(head, rows, numeric=2))
    notes = "Rows are roles, as `dstools inspect` names them"
    mtp = inventory.model.num_mtp_layers
    notes += f"; weights of {counted(mtp, 'MTP layer')} are among them" if mtp else ""
    return [*parts, f"{notes}."]


def _model(sheet: Sheet) -> str:
    model = sheet.model
    layers = [
        f"{count} {kind}"
        for count, kind in (
            (model.layers_dense, "dense"),
            (model.layers_moe, "MoE"),
            (model.layers_mtp, "MTP"),
        )
        if count
    ]
    parameters = f"{model.parameters:,}"
    if model.parameters_active != model.parameters:
        parameters += f" ({model.parameters_active:,} of them for each token)"
    if model.parameters_mtp:
        parameters += f", and {model.parameters_mtp:,} in MTP layers"
    bits = 8 * model.bytes / max(model.parameters + model.parameters_mtp, 1)
    rows = [
        ("Architecture", model.model_type),
        ("Layers", ", ".join(layers)),
        ("Experts", model.experts),
        ("Attention", model.attention),
        ("Parameters", parameters),
        ("Size", f"{size(model.bytes)}, {number(bits)} bits a parameter"),
        ("KV cache in BF16", f"{size(model.cache_bytes_per_token)} a token"),
    ]
    return table(("Model", ""), [row for row in rows if row[1]])


# -------------------------------------------------------------------------------- how it was made


def _made(subject: Subject, sheet: Sheet) -> list[str]:
    manifest = subject.manifest
    if manifest is None:
        if subject.inventory.scheme is None:
            return []
        return ["## How it was made", "Not recorded in the folder."]
    words = " ".join(_command(sheet, subject.inventory))
    notes = []
    if recipes := _recipes(manifest):
        notes.append(f"Rules of the recipe: {', '.join(map(text, recipes))}.")
    if manifest.recovered is not None:
        notes.append(
            f"{len(manifest.recovered):,} weights were restored to the FP8 they came from."
        )
    if manifest.source:
        repository, _, commit = manifest.source.partition("@")
        notes.append(f"SOURCE was {text(repository)} at commit {text(commit)}.")
    return [
        "## How it was made",
        f"```sh\n{words}\n```",
        *(["\n".join(notes)] if notes else []),
        provenance(sheet),
    ]


def _command(sheet: Sheet, inventory: Inventory) -> Iterator[str]:
    """Yield the words of a command that does the same to SOURCE."""
    actions = {rule.partition(": ")[0] for rule in sheet.rules}
    rules = {rule.partition(": ")[2] for rule in sheet.rules}
    scheme, calibration = inventory.scheme, sheet.calibration
    if scheme is None:
        yield "dstools dequantize SOURCE OUT"
        return
    yield "dstools quantize SOURCE OUT"
    if scheme.format != "native":
        yield f"--format {scheme.format}"
    if scheme.scale_format != "float32":
        yield f"--scale-fmt {scheme.scale_format}"
    if rules.difference(KNOWN_RULES):
        yield "--recipe RECIPE"
    if "restore" in actions or rules & {FROM_BASE, KEPT_IN_BASE}:
        yield "--base ORIG_FP8"
    if "recover" in actions:
        yield "--lossless auto"
    if calibration is not None:
        yield f"--calibrate DATA --method {text(calibration.method)}"
        yield _sampling(calibration.data)
        if any(name and name.role == "kv_cache" for name in inventory.names.values()):
            yield "--kv-cache fp8"


def _sampling(data: Data) -> str:
    return f"--samples {data.samples} --seq-len {data.seq_len} --seed {data.seed}"


def _recipes(manifest: Manifest) -> list[str]:
    rules = {rule.partition(": ")[2] for rule in manifest.tensors}
    return sorted(rules.difference(KNOWN_RULES))


# ---------------------------------------------------------------------------------- where it runs


def _engines(subject: Subject) -> Iterator[str]:
    """Yield the engines that the checks say it is for, with caveats, and those that refuse it."""
    runs, refused = [], []
    for engine in ENGINES:
        findings = list(check_engine(subject.inventory, engine, 1))
        errors = [finding for finding in findings if finding.level == "error"]
        if errors:
            refused.append(f"- {ENGINE_NAMES[engine]}: {_said(errors[0])}")
            continue
        command = START[engine].format(subject.repo or PLACEHOLDER)
        runs.append(f"- {ENGINE_NAMES[engine]}: `{command}`")
        if subject.inventory.scheme is not None:
            runs += [
                f"  - {_said(f)}" + (f": {_escaped(f.hint)}" if f.hint else "") for f in findings
            ]
    if runs:
        yield "\n".join(runs)
    if refused:
        yield "Refused or misread by:"
        yield "\n".join(refused)
    seen = ", ".join(f"{ENGINE_NAMES[engine]} {version}" for engine, version in SEEN.items())
    others = " and ".join(ENGINE_NAMES[engine] for engine in ENGINES if engine not in SEEN)
    yield (
        "This follows from the rules of `dstools verify --engine`, for one GPU. **This checkpoint "
        f"itself was not run.** The rules were tried with small models on a CPU in {seen}; those "
        f"of {others} were only read."
    )
    if SUMS in subject.files:
        repo = subject.repo or PLACEHOLDER
        yield (
            f"To check a copy: `hf download {repo} --local-dir DIR`, then "
            f"`dstools verify DIR --sums` compares every file with {SUMS}."
        )


def _said(finding: Finding) -> str:
    where = "" if finding.where == "config.json" else f"{finding.where}: "
    return _escaped(f"{where}{finding.message}")


def _escaped(sentence: str) -> str:
    """Return a sentence escaped whole; `text` cuts what is longer than a name."""
    return " ".join(map(text, sentence.split(" ")))


# ---------------------------------------------------------------------------------------- quality


def _quality(subject: Subject, sheet: Sheet) -> list[str]:
    if subject.manifest is None and sheet.evaluation is None:
        return []
    shown = figures(sheet)
    rows = [(h.label, h.value, h.note) for h in shown.headlines if h.key in QUALITY and h.value]
    parts = ["## Quality"]
    if rows:
        parts.append(table(("Figure", "Value", ""), rows))
    if sheet.evaluation is not None:
        parts.append(f"```sh\n{_eval_command(sheet.evaluation)}\n```")
    if subject.inventory.scheme is not None:
        drawn = {name: plot for name, plot in plots(sheet, shown).items() if name in subject.files}
        parts += [*not_measured(shown), *measured(shown, drawn)]
    elif not rows:
        parts.append("Not measured.")
    reports = [name for name in ("report.html", "report.md") if name in subject.files]
    if reports:
        links = " and ".join(f"[{name}]({name})" for name in reports)
        parts.append(f"Plots and all tables: {links}.")
    return parts


def _eval_command(evaluation: Evaluation) -> str:
    against = " --against SOURCE" if evaluation.against is not None else ""
    other = evaluation.other_activations is not None and evaluation.activations == "none"
    activations = " --activations none" if other else ""
    return f"dstools eval OUT --data DATA{against}{activations} {_sampling(evaluation.data)}"
