"""An exported folder against its checkpoint: what no hash of the folder itself can tell."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.ranks import Ranks
from dstools_converters.verify.folder import verify

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
Damaged = Callable[[Path], Any]


@pytest.fixture
def copy(exported: Callable[..., Path], damaged: Damaged) -> Any:
    """The sample model with MTP in float32, exported, to be damaged."""
    return damaged(exported(SAMPLE))


@pytest.fixture
def coded(exported: Callable[..., Path], damaged: Damaged, sample_fp8: Path) -> Any:
    """The same from block FP8."""
    return damaged(exported(sample_fp8))


def falsify(
    copy: Any, name: str, element: int, add: float = 2.0**-10, file: str = "model.data"
) -> None:
    """Change a number of a tensor, and its sha256 in the list."""
    weight = copy.weight(name, file)
    path = copy.path / file
    data = bytearray(path.read_bytes())
    own = memoryview(data)[weight["offset"] : weight["offset"] + weight["nbytes"]]
    if weight["dtype"] == "F32":
        (value,) = struct.unpack_from("<f", own, 4 * element)
        struct.pack_into("<f", own, 4 * element, value + add)
    else:
        own[element] ^= 1
    weight["sha256"] = hashlib.sha256(own).hexdigest()
    own.release()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "element", "message"),
    [
        (
            "model.layers.2.self_attn.o_proj.weight",
            128 * 7 + 5,
            "is not what is converted from model.safetensors: "
            "model.layers.2.self_attn.o_proj.weight: they differ at row 7, column 5",
        ),
        (
            "model.layers.1.mlp.experts.down_proj.weight",
            3 * 256 * 40 + 40 * 255 + 39,
            "is not what is converted from model.safetensors: "
            "model.layers.1.mlp.experts.3.down_proj.weight: they differ at row 255, column 39",
        ),
        (  # of head 2, after its 32 rows of keys: each head has 64 rows of kv_b_proj
            "model.layers.0.self_attn.w_v",
            (2 * 32 + 1) * 128,
            "is not what is converted from model.safetensors: "
            "model.layers.0.self_attn.kv_b_proj.weight: they differ at row 161, column 0",
        ),
        (
            "model.layers.1.mlp.gate.e_score_correction_bias",
            4,
            "is not what is copied from model.safetensors: "
            "model.layers.1.mlp.gate.e_score_correction_bias: they differ at row 0, column 4",
        ),
    ],
)
def test_a_number_that_is_not_the_checkpoints_is_named_with_its_place(
    copy: Any, name: str, element: int, message: str
) -> None:
    falsify(copy, name, element)
    assert copy.faults() == []  # each hash is right
    (finding,) = copy.findings(source=SAMPLE)
    assert (finding.code, finding.where) == ("source-differs", f"model.data: {name}")
    assert finding.message == message


@pytest.mark.parametrize("part", ["weight", "weight_scale_inv"])
def test_a_code_and_a_scale_are_compared_byte_by_byte(
    coded: Any, sample_fp8: Path, part: str
) -> None:
    name = f"model.layers.1.mlp.experts.up_proj.{part}"
    falsify(coded, name, 1)
    (finding,) = coded.findings(source=sample_fp8)
    assert (finding.code, finding.where) == ("source-differs", f"model.data: {name}")
    assert "is not what is copied from" in finding.message


@pytest.mark.parametrize(
    ("file", "name", "element", "place"),
    [
        (  # expert 2 of the second rank is 10 of 16
            "rank1/experts.safetensors",
            "model.layers.1.mlp.experts.up_proj.weight",
            2 * 40 * 256 + 256 * 39 + 255,
            "model.layers.1.mlp.experts.10.up_proj.weight: they differ at row 39, column 255",
        ),
        ("rank1/model.data", "model.norm.weight", 3, "model.norm.weight: they differ at row 0"),
    ],
)
def test_tensors_of_ranks_are_compared_with_their_share_of_the_checkpoint(
    exported: Callable[..., Path], damaged: Damaged, file: str, name: str, element: int, place: str
) -> None:
    ranks = damaged(exported(SAMPLE, ranks=Ranks(ep=2), expert_inputs=True))
    falsify(ranks, name, element, file=file)
    (finding,) = ranks.findings(source=SAMPLE)
    assert (finding.code, finding.where) == ("source-differs", f"{file}: {name}")
    assert place in finding.message


def test_an_angle_that_no_rounding_explains_is_an_error(copy: Any) -> None:
    falsify(copy, "rotary.cos", 100)
    (finding,) = copy.findings(source=SAMPLE)
    assert (finding.code, finding.where) == ("source-differs", "model.data: rotary.cos")
    assert "by up to 0.000977" in finding.message


def test_an_angle_that_another_cpu_may_round_so_is_a_warning(copy: Any) -> None:
    falsify(copy, "rotary.sin", 3000, add=2.0**-20)
    (finding,) = copy.findings(source=SAMPLE)
    assert (finding.level, finding.code) == ("warning", "source-rounding")


def test_a_map_of_experts_has_no_tolerance(copy: Any) -> None:
    falsify(copy, "model.layers.3.mlp.experts.map", 4)
    (finding,) = copy.findings(source=SAMPLE)
    assert finding.where == "model.data: model.layers.3.mlp.experts.map"
    assert finding.level == "error"


def test_a_tensor_with_a_flipped_byte_is_named_once(copy: Any) -> None:
    copy.flip("model.data", copy.weight("lm_head.weight")["offset"])
    assert copy.faults(source=SAMPLE) == [("weight-differs", "model.data: lm_head.weight")]


def test_what_is_listed_as_copied_and_was_converted_is_named(copy: Any) -> None:
    copy.weight("lm_head.weight")["making"] = "copy"
    (finding,) = copy.findings(source=SAMPLE)
    assert (finding.code, finding.where) == ("source-other", "model.data: lm_head.weight")
    assert finding.message == "is listed as copy, and this checkpoint makes it by convert"


def test_a_checkpoint_in_another_form_is_not_taken_for_the_source(
    exported: Callable[..., Path], sample_fp8: Path
) -> None:
    report = verify(exported(SAMPLE), source=sample_fp8)
    assert not report.ok
    assert {finding.code for finding in report.findings} == {"source-other", "source-differs"}


def test_a_source_whose_shard_was_changed_is_told_from_the_folders(
    copy: Any, tmp_path: Path
) -> None:
    source = shutil.copytree(SAMPLE, tmp_path / "source")
    (shard,) = source.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8:start])["model.norm.weight"]["data_offsets"]
    data[start + begin] ^= 1
    shard.write_bytes(data)
    assert copy.faults(source=source) == [("source-differs", "model.data: model.norm.weight")]


def test_a_folder_that_cannot_be_read_is_not_compared(copy: Any) -> None:
    copy.weight("lm_head.weight")["nbytes"] -= 4
    copy.findings()
    report = verify(copy.path, source=SAMPLE)
    assert "tensors against their source: first mend the errors above" in report.not_checked
    assert report.elements_compared == 0


def test_a_source_that_is_no_checkpoint_is_an_error(copy: Any) -> None:
    with pytest.raises(DstoolsError, match="was written by dstools export"):
        verify(copy.path, source=copy.path)
