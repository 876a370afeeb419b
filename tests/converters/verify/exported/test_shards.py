"""Shards for DeepSeek's inference code against their checkpoint, byte by byte."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from dstools.cli import main
from dstools_converters.checkpoint.header import read_header
from dstools_converters.errors import DstoolsError
from dstools_converters.verify.folder import verify

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
Shards = Callable[..., Path]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """shards(source, "--tp", "2"): what the command writes, the same once."""
    made: dict[tuple[object, ...], Path] = {}

    def get(source: Path, *options: str) -> Path:
        key = (source, *options)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("shards") / "out"
            words = ["export", str(source), str(made[key]), "--format", "deepseek-inference"]
            assert CliRunner().invoke(main, [*words, *options]).exit_code == 0
        return made[key]

    return get


@pytest.fixture
def copy(shards: Shards, damaged: Callable[[Path], Any]) -> Any:
    """Those of two ranks with MTP, to be damaged."""
    return damaged(shards(SAMPLE, "--tp", "2", "--mtp"))


def offset_of(copy: Any, file: str, name: str) -> int:
    return next(info.offset for info in read_header(copy.path, file)[1] if info.name == name)


@pytest.mark.parametrize("options", [(), ("--tp", "2", "--mtp"), ("--tp", "4")])
def test_intact_shards_equal_their_checkpoint(shards: Shards, options: tuple[str, ...]) -> None:
    report = verify(shards(SAMPLE, *options), source=SAMPLE)
    assert report.findings == []
    assert report.elements_compared >= 2_827_568  # all but MTP, once or more
    assert "tensors against the checkpoint, byte by byte" in report.checked[-1]


def test_intact_shards_of_codes_equal_their_checkpoint(shards: Shards, sample_fp8: Path) -> None:
    assert verify(shards(sample_fp8), source=sample_fp8).findings == []


def test_mtp_layers_that_the_config_promises_may_be_missing(shards: Shards, tmp_path: Path) -> None:
    """transformers' config of DeepSeek-V3 has one, and the folders it saves hold none."""
    source = tmp_path / "model"
    shutil.copytree(SAMPLE, source)
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.4." not in name}
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    assert len(kept) < len(tensors)
    written = shards(source, "--tp", "2")
    assert verify(written, source=source).findings == []
    for name in ("model0-mp2.safetensors", "model1-mp2.safetensors"):
        assert (written / name).read_bytes() == (shards(SAMPLE, "--tp", "2") / name).read_bytes()


@pytest.mark.parametrize(
    ("file", "name", "at", "place"),
    [
        (  # columns 64 to 127 of the whole; 64 of 2 bytes are a row here
            "model1-mp2.safetensors",
            "layers.1.attn.wo.weight",
            128 * 7 + 2 * 5,
            "model.layers.1.self_attn.o_proj.weight: they differ at row 7, column 69",
        ),
        (  # rows 128 to 255 of 128 columns
            "model1-mp2.safetensors",
            "layers.1.attn.wkv_b.weight",
            256 * 3 + 1,
            "model.layers.1.self_attn.kv_b_proj.weight: they differ at row 131, column 0",
        ),
        (
            "model0-mp2.safetensors",
            "layers.2.ffn.experts.7.w2.weight",
            80 * 255 + 78,
            "model.layers.2.mlp.experts.7.down_proj.weight: they differ at row 255, column 39",
        ),
        (
            "mtp1-mp2.safetensors",
            "layers.4.enorm.weight",
            0,
            "model.layers.4.enorm.weight: they differ at row 0, column 0",
        ),
    ],
)
def test_a_flipped_byte_is_named_by_its_place_in_the_checkpoint(
    copy: Any, file: str, name: str, at: int, place: str
) -> None:
    copy.flip(file, offset_of(copy, file, name) + at)
    assert copy.faults() == [("file-differs", file)]
    _, finding = copy.findings(source=SAMPLE)
    assert (finding.code, finding.where) == ("source-differs", f"{file}: {name}")
    assert finding.message == f"is not what is copied from model.safetensors: {place}"


def test_a_tensor_more_one_less_and_another_shape_are_named(copy: Any) -> None:
    file = "model0-mp2.safetensors"
    tensors = load_file(copy.path / file)
    tensors["surplus"] = tensors.pop("norm.weight")
    tensors["layers.0.attn_norm.weight"] = tensors["layers.0.attn_norm.weight"][1:].clone()
    save_file(tensors, copy.path / file)
    copy.put(file, (copy.path / file).read_bytes())
    found = {finding.where: finding.message for finding in copy.findings(source=SAMPLE)}
    assert found == {
        f"{file}: norm.weight": "is missing from the file",
        f"{file}: surplus": "is not made of anything in this checkpoint",
        f"{file}: layers.0.attn_norm.weight": "is BF16 [255]; this checkpoint makes it BF16 [256]",
    }


def test_a_shard_without_a_header_is_named_and_the_others_are_compared(copy: Any) -> None:
    copy.put("model0-mp2.safetensors", b"nothing")
    name = "layers.4.enorm.weight"
    copy.flip("mtp0-mp2.safetensors", offset_of(copy, "mtp0-mp2.safetensors", name))
    faults = copy.faults(source=SAMPLE)
    assert ("shard-unreadable", "model0-mp2.safetensors") in faults
    assert ("source-differs", f"mtp0-mp2.safetensors: {name}") in faults


def test_a_config_of_another_checkpoint_is_named(copy: Any) -> None:
    copy.edit("inference_config.json", "route_scale", 1.25)
    assert copy.faults(source=SAMPLE) == [("source-other", "inference_config.json")]


def test_a_checkpoint_that_has_no_such_shards_is_refused(
    copy: Any, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(DstoolsError, match="llama"):
        verify(copy.path, source=checkpoint("tiny-llama"))


def test_a_missing_shard_is_named_and_nothing_compared(copy: Any) -> None:
    (copy.path / "model1-mp2.safetensors").unlink()
    report = verify(copy.path, source=SAMPLE)
    assert [finding.code for finding in report.findings] == ["file-missing"]
    assert "tensors against their source: first mend the errors above" in report.not_checked


def test_torch_is_not_needed(shards: Shards) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from dstools_converters.verify.folder import verify;"
        f"assert verify(Path({str(shards(SAMPLE))!r}), source=Path({str(SAMPLE)!r})).ok;"
        "print([name for name in ('torch', 'onnx') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
