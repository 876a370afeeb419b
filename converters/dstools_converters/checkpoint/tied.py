"""A head that is said to be tied to the embeddings, and holds other weights."""

from collections.abc import Iterator

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.families.names import TensorName

STEP_BYTES = 1 << 20


def check_tied(inventory: Inventory) -> Iterator[Finding]:
    """Yield a warning where a tied model has a head whose bytes are not those of its embeddings.

    Source: transformers 5.23, tie_weights ties no weights that differ, 4 drops the head; vLLM 0.32,
    `skip_prefixes` of its models drops it.
    """
    if not inventory.model.is_tied:
        return
    spelled = [inventory.model.spell(TensorName(r, "weight")) for r in ("lm_head", "embed_tokens")]
    head, embeddings = (inventory.tensors.get(name) for name in spelled)
    if head is None or embeddings is None:
        return
    is_same = (head.dtype, head.shape) == (embeddings.dtype, embeddings.shape)
    for begin in range(0, head.nbytes if is_same else 0, STEP_BYTES):
        end = min(begin + STEP_BYTES, head.nbytes)
        one, other = (inventory.checkpoint.read(info, begin, end) for info in (head, embeddings))
        if bytes(one) != bytes(other):  # memoryviews are compared element by element
            is_same = False
            break
    if not is_same:
        yield Finding.warning(
            "tied-differs",
            head.where,
            f"differs from {embeddings.where}, though config.json has tie_word_embeddings: true; "
            "transformers 5 uses this head, transformers 4 and vLLM the embeddings",
            f"set tie_word_embeddings to false in config.json to use {printable(head.name)}, or "
            "remove that tensor, in shards and index, to use the embeddings",
        )


def require_tied(inventory: Inventory) -> None:
    """Raise DstoolsError where `check_tied` finds a head that engines use or not: logits differ."""
    for finding in check_tied(inventory):
        folder = inventory.checkpoint.folder
        raise DstoolsError(f"{folder}/{finding.where}: {finding.message}", finding.hint)
