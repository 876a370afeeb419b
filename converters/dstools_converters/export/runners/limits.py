"""Checks an exported folder for all that run it, and has the names that its graphs share."""

from pathlib import Path

from dstools_converters.errors import DstoolsError, UnsupportedError
from dstools_converters.export.folder import DRAFT_GRAPH, EXPORT, Export, Pool
from dstools_converters.export.runners.files import require_same
from dstools_converters.tables import json_table

PAST, PRESENT = "past_key_values.", "present."


def require_limits(folder: Path, export: Export, *, mtp: bool) -> Pool:
    """Return the caches that a folder is made for, if one process can run it.

    Raises DstoolsError for several ranks, for experts outside of the graph, where there is no graph
    that drafts, and where config.json is another one: a loop reads sizes there.
    """
    ranks = max(export.tp, export.ep)
    if ranks > 1:
        raise UnsupportedError(
            f"{folder}: is divided among {ranks} GPUs", "export it without --tp and --ep"
        )
    if export.expert_inputs:
        raise UnsupportedError(
            f"{folder}: its experts are not part of the graph",
            "export it with --expert-weights baked",
        )
    if mtp and not export.has_mtp:
        config = json_table(folder / "config.json")
        if config is not None and not config.get("num_nextn_predict_layers"):
            raise DstoolsError(
                f"{folder}: has no MTP layer", "leave --mtp out: it changes the speed alone"
            )
        raise DstoolsError(
            f"{folder}: has no {DRAFT_GRAPH}",
            "leave --mtp out; or, if the checkpoint holds its MTP layer, export it with --mtp",
        )
    if export.pool is None:
        raise DstoolsError(f"{folder / EXPORT}: has no pool", "export the checkpoint again")
    require_same(folder, export, "config.json")
    return export.pool
