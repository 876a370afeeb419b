from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dstools.cli import main
from dstools_converters.errors import DstoolsError
from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import Export, GraphNote, Pool, Port, Weight, require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.trt import rtx
from dstools_converters.export.trt.rtx import Request, build, profiles

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
SHORT = Options(context=512)


def request_of(folder: Path, library: Path | str, number: int = 0) -> Request:
    export = require_export(folder)
    note = export.graphs[number]
    file = str(folder / note.file)
    return Request(file, file, str(library), profiles(note, export)[:1])


@pytest.fixture(scope="session")
def sample_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in native block FP8."""
    out = tmp_path_factory.mktemp("fp8") / "sample"
    main(["quantize", str(SAMPLE), str(out)], standalone_mode=False)
    return out


EXPORT = Export("dstools test", "onnx", "v3", "float32", pool=Pool(1000, 4, 64, 128, 1))


@pytest.mark.parametrize(
    ("held", "width", "most"),
    [
        (4, 512, 8),
        (200, 512, 256),  # the kernels take no more
        (64, 2048, 128),
        (128, 2048, 146),  # of V3: 147 * 2048 * 7168 is above 2^31 - 1
    ],
)
def test_a_rank_may_hold_copies_of_experts_up_to_the_limits(
    held: int, width: int, most: int
) -> None:
    shapes = {"map": (256,), "up_proj.weight": (held, width, 7168), "norm": (7168,)}
    ports = (
        Port("map", "INT32", ("256",)),
        Port("up_proj.weight", "BFLOAT16", ("num_local_experts", str(width), "7168")),
    )
    weights = tuple(Weight(n, "BF16", s, 0, 0, "copy", "") for n, s in shapes.items())
    export = replace(EXPORT, weights={"rank1/experts.safetensors": weights})
    for profile in profiles(GraphNote("rank1/model.onnx", {}, 0, ports, ()), export):
        sizes = ((1, width, 7168), (held, width, 7168), (most, width, 7168))
        assert profile == {"up_proj.weight": sizes}


def test_profiles_are_of_decoding_and_of_prompts() -> None:
    ports = (
        Port("input_ids", "INT64", ("num_tokens",)),
        Port("block_table", "INT32", ("batch_size", "max_num_blocks")),
        Port("cumulative_sequence_lengths", "INT32", ("batch_size_plus_1",)),
        Port("attention_metadata", "INT32", ("3",)),
        Port("past_key_values.0.key", "FLOAT", ("num_blocks", "64", "1", "576")),
    )
    decode, prefill = profiles(GraphNote("model.onnx", {}, 0, ports, ()), EXPORT)
    assert decode == {
        "input_ids": ((1,), (4,), (8,)),  # four rows, each with a draft
        "block_table": ((1, 1), (4, 16), (4, 16)),  # 16 * 64 >= 1000
        "cumulative_sequence_lengths": ((2,), (5,), (5,)),
        "past_key_values.0.key": ((1, 64, 1, 576), (128, 64, 1, 576), (128, 64, 1, 576)),
    }
    assert prefill == decode | {"input_ids": ((1,), (512,), (512,))}


def test_a_machine_without_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "find_spec", lambda name: None)
    with pytest.raises(DstoolsError, match="is not installed") as caught:
        build(Request("model.onnx", "model.onnx", "", ()))
    assert caught.value.hint == 'pip install "dstools-llm[check]"'


def test_a_worker_that_dies_is_told_by_its_last_words(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx, "WORKER", "dstools_no_such_module")
    with pytest.raises(DstoolsError, match=r"died with 1: .*No module named"):
        build(Request("model.onnx", "model.onnx", "", ()))


@pytest.mark.slow
def test_each_op_of_native_fp8_becomes_one_plugin(
    library: Path, exported: Callable[..., Path], sample_fp8: Path
) -> None:
    folder = exported(sample_fp8, SHORT)
    for number, count in enumerate((35, 9)):
        built = build(request_of(folder, library, number))
        assert Counter(layer.kind for layer in built.layers) == {"PLUGIN_V3": count}
        assert min(built.engines.values()) > 0
        assert built.errors == ()
    assert require_export(folder).graphs[0].plugins == {
        "DsFp8BlockLinear": 28,
        "DsFp8BlockMoE": 3,
        "DsMlaAttention": 4,
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_each_op_becomes_one_plugin(
    library: Path, exported: Callable[..., Path], dtype: str
) -> None:
    folder = exported(SAMPLE, Options(dtype, 512))  # type: ignore[arg-type]
    for number, count in enumerate((7, 2)):
        built = build(request_of(folder, library, number))
        assert Counter(layer.kind for layer in built.layers) == {"PLUGIN_V3": count}
        assert min(built.engines.values()) > 0


@pytest.mark.slow
def test_each_all_reduce_becomes_a_collective(
    library: Path, exported: Callable[..., Path], tiny_fp8: Path
) -> None:
    folder = exported(tiny_fp8, Options(context=128, mtp=False, ranks=Ranks(ep=2)))
    built = build(request_of(folder, library))
    note = require_export(folder).graphs[0]
    kinds = Counter(layer.kind for layer in built.layers)
    assert kinds["DIST_COLLECTIVE"] == note.collectives > 0
    assert kinds["PLUGIN_V3"] == sum(note.plugins.values())


def test_a_library_that_is_none_is_told_apart(
    library: Path, exported: Callable[..., Path], tiny_fp8: Path, tmp_path: Path
) -> None:
    other = tmp_path / "libother.so"
    other.write_bytes(b"no library")
    built = build(request_of(exported(tiny_fp8, Options(context=128)), other))
    assert not built.is_registered
    assert built.layer_count == 0


@pytest.mark.slow
def test_the_bodies_that_are_shipped_do_not_build_without_plugins(
    library: Path, exported: Callable[..., Path], tiny_fp8: Path
) -> None:
    """So check.py swaps them: when this fails, it need not any more."""
    built = build(request_of(exported(tiny_fp8, Options(context=128)), ""))
    assert not any(built.engines.values())
    assert built.errors
