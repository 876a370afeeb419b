"""The storage of a weight is read from names, dtypes and scheme; outputs are planned alike."""

import pytest

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_converters.checkpoint.storage import NO_BLOCKS, Storage, fp8_block, plain, read_storage

NATIVE = QuantScheme("native", "float32", (64, 128))
COMPRESSED = QuantScheme("compressed-tensors", "float32", (64, 128))


def info(name: str, dtype: str, *shape: int, shard: str = "one") -> TensorInfo:
    return TensorInfo(name, dtype, shape, shard, 8, 0)


CODES = info("a.weight", "F8_E4M3", 130, 130)
SCALE = info("a.weight_scale_inv", "F32", 3, 2, shard="two")
NORM = info("norm.weight", "BF16", 130)


def by_name(*infos: TensorInfo) -> dict[str, TensorInfo]:
    return {one.name: one for one in infos}


def test_codes_with_their_scale_are_one_weight() -> None:
    assert read_storage(by_name(SCALE, CODES, NORM), NATIVE) == {
        "a.weight": Storage("fp8-block", (CODES, SCALE), (64, 128)),
        "norm.weight": Storage("plain", (NORM,), NO_BLOCKS),
    }


@pytest.mark.parametrize(
    ("scheme", "infos"),
    [
        (None, (CODES, SCALE)),  # not named by the config
        (COMPRESSED, (CODES, SCALE)),  # a scale of another format's name
        (NATIVE, (CODES,)),
        (NATIVE, (info("a.weight", "BF16", 130, 130), SCALE)),
        (NATIVE, (info("a.bias", "F8_E4M3", 130), info("a.biasweight_scale_inv", "F32", 2))),
    ],
)
def test_whatever_is_not_both_codes_and_scale_is_plain(
    scheme: QuantScheme | None, infos: tuple[TensorInfo, ...]
) -> None:
    storage = read_storage(by_name(*infos), scheme)
    assert [one.parts for one in storage.values()] == [(part,) for part in infos]
    assert not any(one.is_quantized for one in storage.values())


@pytest.mark.parametrize(
    ("scheme", "scale"), [(NATIVE, "weight_scale_inv"), (COMPRESSED, "weight_scale")]
)
def test_a_planned_weight_has_codes_and_a_scale_a_block(scheme: QuantScheme, scale: str) -> None:
    storage = fp8_block(info("m.weight", "BF16", 130, 130, shard="s"), scheme)
    assert storage.parts == (
        TensorInfo("m.weight", "F8_E4M3", (130, 130), "s", 0, 130 * 130),
        TensorInfo(f"m.{scale}", "F32", (3, 2), "s", 0, 24),
    )
    assert (storage.format, storage.block, storage.nbytes) == ("fp8-block", (64, 128), 16924)
    assert storage.scale is storage.parts[1]
    # what is planned is what is read again
    assert read_storage(by_name(*storage.parts), scheme) == {"m.weight": storage}


def test_a_planned_plain_tensor_has_one_part_in_its_dtype() -> None:
    storage = plain(CODES, "BF16")
    part = TensorInfo("a.weight", "BF16", (130, 130), "one", 0, 2 * 130 * 130)
    assert storage == Storage("plain", (part,), NO_BLOCKS)


@pytest.mark.parametrize(
    ("dtype", "is_float"), [("BF16", True), ("F16", True), ("F32", True), ("I64", False)]
)
def test_plain_floats_and_quantized_weights_restore_to_float32(dtype: str, is_float: bool) -> None:
    assert plain(CODES, dtype).is_float == is_float
    assert plain(CODES, "F8_E4M3").is_float is False  # codes without a scale are not numbers
    assert fp8_block(CODES, NATIVE).is_float
