"""expert_load.json: how many tokens the router sent to each expert, for placing experts on GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.data import require_layers
from dstools_converters.tables import Reader, json_table

EXPERT_LOAD = "expert_load.json"


@dataclass(frozen=True)
class ExpertLoad:
    """The content of expert_load.json."""

    tokens: int
    num_experts_per_tok: int
    layers: dict[int, tuple[int, ...]]  # layer -> tokens of each expert


def expert_load_of(plan: Plan, load: Mapping[int, list[int]]) -> ExpertLoad:
    """Return the content of the file; `load` has the tokens of each expert by layer."""
    assert plan.calibration is not None
    data, moe = plan.calibration.data, plan.inventory.model.moe
    return ExpertLoad(
        tokens=data["samples"] * data["seq_len"],
        num_experts_per_tok=moe.num_experts_per_tok if moe else 0,
        layers={layer: tuple(load[layer]) for layer in sorted(load) if load[layer]},
    )


def read_expert_load(folder: Path, inventory: Inventory) -> ExpertLoad | None:
    """Return the content of the file, None where there is none.

    Raises DstoolsError where it is damaged, or of a model with other layers or experts.
    """
    path, moe = folder / EXPERT_LOAD, inventory.model.moe
    table, reader = json_table(path), Reader(str(path), "json")
    if table is None:
        return None
    load = reader.read(ExpertLoad, table)
    require_layers(load.layers, "layers", inventory, reader)
    experts = moe.n_routed_experts if moe else 0
    for layer, tokens in load.layers.items():
        if len(tokens) != experts or not experts:
            message = f"has {len(tokens)} experts; the model has {experts}"
            raise reader.error(f"layers.{layer}", message)
    return replace(load, layers=dict(sorted(load.layers.items())))
