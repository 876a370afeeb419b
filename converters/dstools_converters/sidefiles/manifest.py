"""manifest.json: what made a folder out of what. No time, no path: equal runs, equal bytes.

The same source gives the same bytes wherever it is, except that a snapshot of the Hub's cache is
named by repository and commit.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError
from dstools_converters.files import to_json
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.hub_cache import snapshot_of
from dstools_converters.tables import Reader, json_table
from dstools_kernels.fp8 import ScaleFormat

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json, by its own keys and in its order."""

    tool: str  # "dstools VERSION"
    source_headers: dict[str, str]  # shard -> "sha256:..." of its header
    tensors: dict[str, int]  # "action: rule" -> how many
    unknown_tensors: tuple[str, ...]
    scale_fmt: ScaleFormat | None = None  # of the scales that were made here
    has_foreign_scales: bool = True  # some were copied, and follow the rules of their own maker
    recovered: tuple[str, ...] | None = None  # weights that --lossless turned back into FP8
    calibration: str | None = None  # "sha256:..." of calibration.json
    expert_load: str | None = None
    source_card: str | None = None  # "sha256:..." of the README.md that was copied from the source
    source: str | None = None  # "org/name@commit" of a source in the Hub's cache

    @cached_property
    def recovered_weights(self) -> frozenset[str]:
        """Return the names in `recovered`; a large model has tens of thousands."""
        return frozenset(self.recovered or ())


def manifest_of(plan: Plan, tool: str, recovered: Iterable[str], digests: dict[str, str]) -> bytes:
    """Return the bytes of the manifest of a plan that is done.

    `digests`: "sha256:..." of side files, as "calibration", "expert_load" and "source_card".
    """
    rules = Counter(
        f"{tensor.action}: {tensor.rule}" for shard in plan.shards for tensor in shard.tensors
    )
    shards = plan.inventory.checkpoint.shards
    content: dict[str, Any] = {
        "tool": tool,
        "source_headers": {n: f"sha256:{shard.header_sha256}" for n, shard in shards.items()},
        "tensors": dict(rules),
        "unknown_tensors": [info.name for info in plan.inventory.unknown],
    }
    if plan.scheme is not None:
        content["scale_fmt"] = plan.scheme.scale_format
        content["has_foreign_scales"] = bool(plan.inventory.scheme or plan.base)
    if "recover" in plan.counts:
        content["recovered"] = sorted(recovered)
    content |= digests
    snapshot = snapshot_of(plan.inventory.checkpoint.folder)
    if snapshot is not None:
        content["source"] = f"{snapshot.repository}@{snapshot.commit}"
    return to_json(content)


def load_manifest(folder: Path) -> Manifest | None:
    """Return our manifest of a folder, None where there is none or another tool wrote it.

    Raises DstoolsError, naming file and key, where it is damaged.
    """
    table = json_table(folder / MANIFEST)
    if table is None or not str(table.get("tool")).startswith("dstools "):
        return None
    return Reader(str(folder / MANIFEST), "json").read(Manifest, table)


def read_manifest(folder: Path) -> Manifest | None:
    """Return our manifest of a folder, None where there is none that can be read."""
    try:
        return load_manifest(folder)
    except DstoolsError:
        return None


def require_digest(folder: Path, name: str, digest: str | None) -> bytes | None:
    """Return the bytes of a side file that the manifest has the digest of, None without one.

    Raises DstoolsError where the file is missing, or is another one.
    """
    if digest is None:
        return None
    try:
        raw = (folder / name).read_bytes()
    except OSError as error:
        raise DstoolsError(
            f"{name}: {error.strerror}", f"{MANIFEST} names it; restore it, or quantize again"
        ) from error
    if f"sha256:{sha256(raw).hexdigest()}" != digest:
        raise DstoolsError(
            f"{name}: is not the file that {MANIFEST} was written with",
            "restore both, or quantize again",
        )
    return raw
