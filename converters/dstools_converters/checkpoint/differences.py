"""The differences between the tensors of a checkpoint and the weights that its config requires."""

from collections.abc import Mapping
from typing import NamedTuple

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.storage import CODE_DTYPES, FLOATS
from dstools_converters.errors import Finding, printable
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import Model

Tensors = Mapping[str, TensorInfo]
Names = Mapping[str, TensorName | None]
SCALE_PARTS = ("weight_scale", "weight_scale_inv")


class Differences(NamedTuple):
    """The disagreements of config and tensors, one by one."""

    missing: list[TensorName]
    shapes: list[tuple[TensorInfo, tuple[int, ...]]]  # a tensor, and the shape it should have
    dtypes: list[TensorInfo]  # of no dtype that weights have
    unasked: list[TensorInfo]  # with a role of the family, but not in the model

    @property
    def total(self) -> int:
        """Return the number of differences."""
        return len(self.missing) + len(self.shapes) + len(self.dtypes) + len(self.unasked)


def compare(model: Model, tensors: Tensors, names: Names) -> Differences:
    """Return the differences; `names` holds the parsed name of every tensor.

    Stops when far more weights are missing than there are tensors: a config may ask for millions.
    """
    differences = Differences([], [], [], [])
    wanted = set()
    for name, shape in model.weights():
        spelled = model.spell(name)
        wanted.add(spelled)
        info = tensors.get(spelled)
        if info is None:
            differences.missing.append(name)
            if len(differences.missing) > 4 * len(tensors) + 4096:
                return differences
        elif info.shape != shape:
            differences.shapes.append((info, shape))
        elif info.dtype not in (*FLOATS, *CODE_DTYPES):
            differences.dtypes.append(info)
    for name, shape in model.optional_weights():
        spelled = model.spell(name)
        wanted.add(spelled)
        info = tensors.get(spelled)
        if info is not None and info.shape != shape:
            differences.shapes.append((info, shape))
    for spelled, parsed in names.items():
        if parsed is None or spelled in wanted or parsed.is_activation_scale:
            continue
        if parsed.part not in SCALE_PARTS:
            differences.unasked.append(tensors[spelled])
    return differences


def differences_found(model: Model, differences: Differences) -> list[Finding]:
    """Return a finding for each difference."""
    findings = [
        Finding.error(
            "weight-missing",
            printable(model.spell(name)),
            "the config requires it, but no shard holds it",
            "restore it from the original, as some conversions drop it; or restore config.json, "
            "if the tensors are of deepseek_v2"
            if name.role == "e_score_correction_bias"
            else "the checkpoint is incomplete; download or save it again",
        )
        for name in differences.missing
    ]
    findings += [
        Finding.error(
            "shape",
            info.where,
            f"is {list(info.shape)}, the config requires {list(wanted)}",
            "restore the tensor, or the config.json that it was saved with",
        )
        for info, wanted in differences.shapes
    ]
    findings += [
        Finding.error(
            "dtype",
            info.where,
            f"is {info.dtype}, which is not a dtype of weights",
            f"save it in {', '.join(FLOATS)}; other quantizations are not supported",
        )
        for info in differences.dtypes
    ]
    findings += [
        Finding.error(
            "weight-unasked",
            info.where,
            "is in the shards, but not in the model that the config describes",
            "remove the tensor, or restore the config.json that it was saved with",
        )
        for info in differences.unasked
    ]
    return findings
