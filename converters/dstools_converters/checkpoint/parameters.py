"""The number of a model's parameters, which `total_parameters` of an index gives.

transformers 5.23 writes what `num_parameters` counts (modeling_utils.py, save_pretrained): each
`nn.Parameter` once. So a weight in FP8 counts like one in BF16, its scales do not count, nor does a
tied head, nor the router's e_score_correction_bias, which is a buffer. It never loads MTP layers
(`_keys_to_ignore_on_load_unexpected`) or tensors of unknown names. Others count what files hold, so
a number that includes any of these groups is right, too.
"""

from collections import Counter
from typing import Any, Literal

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.families.names import TensorName

TOTAL_PARAMETERS = "total_parameters"
Group = Literal["parameters", "head", "buffers", "mtp", "unknown"]


def parameters(inventory: Inventory) -> int:
    """Return the number that transformers counts."""
    return _groups(inventory)["parameters"]


def is_count(inventory: Inventory, value: Any) -> bool:
    """Return whether `value` is a number of the model's parameters, with or without some groups."""
    groups = _groups(inventory)
    counts = {groups["parameters"]}
    for more in (groups[group] for group in groups if group != "parameters"):
        counts |= {count + more for count in counts}
    return type(value) in (int, float) and value in counts


def _groups(inventory: Inventory) -> Counter[Group]:
    """Return the number of elements of each group; scales are in none."""
    groups: Counter[Group] = Counter()
    for info, name in inventory.weights():
        if name is None or not name.is_activation_scale:
            groups[_group(name, is_tied=inventory.model.is_tied)] += info.numel
    return groups


def _group(name: TensorName | None, *, is_tied: bool) -> Group:
    if name is None:
        return "unknown"
    if name.is_mtp:
        return "mtp"
    if name.role == "lm_head" and is_tied:
        return "head"
    return "buffers" if name.part == "e_score_correction_bias" else "parameters"
