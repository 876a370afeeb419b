"""The card of a student: what `dstools distill card` wrote about a stage of the same store."""

from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_converters.files import real
from dstools_distill.store.stage import MANIFEST, file_sha256, read_manifest


def card_of(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return the files, and their sha256, of the card of the stage in `folder`; none without one.

    Of several, it is the one of most stages, then the latest. They are found by the
    sha256 of the stage's manifest.
    """
    stage = file_sha256(folder / MANIFEST)
    cards = []
    for card in real(folder).parent.glob("card-*"):
        try:
            inputs = read_manifest(card)["inputs"]
        except (DstoolsError, KeyError):
            continue
        if stage in inputs.values():
            cards.append((len(inputs), (card / MANIFEST).stat().st_mtime_ns, card))
    if not cards:
        return {}
    _, _, latest = max(cards)
    outputs = read_manifest(latest)["outputs"]
    return {name: (latest / name, str(out["sha256"])) for name, out in outputs.items()}
