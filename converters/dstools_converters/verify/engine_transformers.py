"""Block FP8 that transformers 5.23 refuses, or loads and misreads; each seen by loading it.

Sources: integrations/finegrained_fp8.py (Fp8Dequantize), huggingface/transformers#36026;
integrations/compressed_tensors.py; compressed-tensors 0.20, quantization/lifecycle/forward.py.
"""

from collections.abc import Iterator

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import Finding
from dstools_converters.families.names import Role
from dstools_converters.verify.engine_shapes import Fault, and_more, by_role
from dstools_converters.verify.readings import Module, reading_of

LOAD_BF16 = "load `dstools dequantize`'s output there; llama.cpp's converter reads this one"


def check_transformers(inventory: Inventory) -> Iterator[Finding]:
    """Yield what transformers would refuse or misread, one finding for each role."""
    scheme = inventory.scheme
    assert scheme is not None
    if scheme.format == "native":
        yield from _check_native(inventory, scheme.block_size)
    elif inventory.model.moe is not None:
        yield Finding.error(
            "engine-format",
            "config.json",
            "transformers 5.23 multiplies codes of experts by scales not spread over blocks",
            "dstools quantize --format native, or load `dstools dequantize`'s output",
        )
    else:
        yield from _check_head(inventory)
        yield from _check_groups(inventory, scheme.block_size[1])
    if inventory.model.num_mtp_layers:
        yield Finding.note(
            "engine-mtp", "config.json", "transformers leaves the MTP layers out when it loads"
        )


def _check_native(inventory: Inventory, block_size: tuple[int, int]) -> Iterator[Finding]:
    """Yield ragged shapes: without a GPU, rows // rows of scales are taken for those of a block."""

    def fault(role: Role, info: TensorInfo) -> Fault | None:
        blocks = [-(-side // size) for side, size in zip(info.shape, block_size, strict=True)]
        if any(side % count for side, count in zip(info.shape, blocks, strict=True)):
            return Fault(f"refuses {list(info.shape)}, which {blocks} blocks do not divide")
        sides = [side // count for side, count in zip(info.shape, blocks, strict=True)]
        is_right = all(
            count == 1 or side == size
            for count, side, size in zip(blocks, sides, block_size, strict=True)
        )
        if is_right:
            return None
        return Fault(f"misreads {list(info.shape)} silently, in blocks of {sides[0]} x {sides[1]}")

    for _, infos, shape in by_role(inventory, fault):
        yield Finding.error(
            "engine-shape",
            infos[0].where,
            f"without a GPU transformers {shape.message}{and_more(infos)} (seen in 5.23; "
            "huggingface/transformers#36026)",
            LOAD_BF16,
        )


def _check_head(inventory: Inventory) -> Iterator[Finding]:
    read = reading_of("transformers", inventory.checkpoint.config["quantization_config"])
    if read(Module("lm_head", (), "")) is None:
        yield Finding.error(
            "engine-head",
            "config.json",
            "`ignore` lacks lm_head, tied or not: transformers gives that module scales drawn at "
            "random, silently (seen in 5.23)",
            'add "lm_head" to quantization_config.ignore, or quantize this folder into another',
        )


def _check_groups(inventory: Inventory, size: int) -> Iterator[Finding]:
    groups = inventory.checkpoint.config["quantization_config"]["config_groups"].values()
    if not any(group.get("input_activations") for group in groups):
        return

    def fault(role: Role, info: TensorInfo) -> Fault | None:
        columns = info.shape[1]
        return Fault(f"its {columns} columns are not groups of {size}") if columns % size else None

    for _, infos, shape in by_role(inventory, fault):
        yield Finding.error(
            "engine-shape",
            infos[0].where,
            f"{shape.message}{and_more(infos)}, as activations are quantized; transformers fails "
            "at the first forward (seen in 5.23)",
            LOAD_BF16,
        )
