"""The weights of an exported folder: a flipped byte is named, and so is a tensor out of place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.export.ranks import Ranks
from dstools_converters.verify.exported import data

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
HEAD = "lm_head.weight"


@pytest.fixture
def copy(exported: Callable[..., Path], damaged: Callable[[Path], Any]) -> Any:
    """The sample model with MTP in float32, exported, to be damaged."""
    return damaged(exported(SAMPLE))


@pytest.fixture
def ranks(exported: Callable[..., Path], damaged: Callable[[Path], Any]) -> Any:
    """Two ranks whose experts are inputs."""
    return damaged(exported(SAMPLE, ranks=Ranks(ep=2), expert_inputs=True))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("at", ["first", "last"])
@pytest.mark.parametrize("piece", [4 << 20, 100_000])  # the tensor in one, and in four
def test_a_flipped_byte_is_named_by_file_and_tensor(
    copy: Any, at: str, workers: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PIECE_BYTES", piece)
    weight = copy.weight(HEAD)
    copy.flip("model.data", weight["offset"] + (weight["nbytes"] - 1 if at == "last" else 0))
    assert copy.faults(workers=workers) == [("weight-differs", f"model.data: {HEAD}")]


def test_a_flipped_byte_of_an_expert_is_named_by_rank(ranks: Any) -> None:
    name, file = "model.layers.1.mlp.experts.up_proj.weight", "rank1/experts.safetensors"
    ranks.flip(file, ranks.weight(name, file)["offset"] + 17)
    assert ranks.faults() == [("weight-differs", f"{file}: {name}")]


def test_a_byte_between_two_tensors_is_named_by_the_one_that_follows(copy: Any) -> None:
    name = "model.layers.1.self_attn.kv_a_layernorm.weight"
    end = copy.weight(name)["offset"] + copy.weight(name)["nbytes"]
    copy.flip("model.data", end)
    (finding,) = copy.findings()
    assert finding.code == "gap"
    assert finding.where == "model.data: model.layers.1.self_attn.o_proj.weight"
    assert f"bytes {end} to " in finding.message


def test_a_hash_that_was_changed_in_the_list_is_named(copy: Any) -> None:
    copy.weight(HEAD)["sha256"] = "0" * 64
    assert copy.faults() == [("weight-differs", f"model.data: {HEAD}")]


def test_a_file_that_was_cut_short_is_named_with_the_tensors_that_it_lacks(copy: Any) -> None:
    path = copy.path / "model.data"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    (finding,) = copy.findings()
    assert finding.code == "weight-outside"
    assert finding.where == "model.data: model.layers.4.mlp.experts.map"


def test_bytes_after_the_last_tensor_are_named(copy: Any) -> None:
    with (copy.path / "model.data").open("ab") as file:
        file.write(b"x")
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("data-surplus", "model.data")
    assert "1 bytes more" in finding.message


def test_tensors_that_overlap_are_named(copy: Any) -> None:
    first, second = (copy.weight(f"model.layers.0.self_attn.{half}") for half in ("w_k", "w_v"))
    second["offset"] = first["offset"] + first["nbytes"] - 4
    assert ("weight-overlap", f"model.data: {second['name']}") in copy.faults()


def test_a_tensor_beyond_the_end_is_never_read(copy: Any) -> None:
    copy.weight(HEAD)["offset"] = 1 << 62
    faults = copy.faults()
    assert ("weight-outside", f"model.data: {HEAD}") in faults
    assert ("weight-differs", f"model.data: {HEAD}") not in faults


def test_a_size_that_the_shape_does_not_have_is_named(copy: Any) -> None:
    copy.weight(HEAD)["nbytes"] -= 4
    assert ("weight-size", f"model.data: {HEAD}") in copy.faults()


def test_a_tensor_that_is_listed_twice_is_named(copy: Any) -> None:
    copy.table["weights"]["model.data"].append(dict(copy.weight(HEAD)))
    assert ("weight-twice", f"model.data: {HEAD}") in copy.faults()


def test_a_header_of_experts_that_says_something_else_is_named(ranks: Any) -> None:
    file, name = "rank0/experts.safetensors", "model.layers.1.mlp.experts.up_proj.weight"
    path = ranks.path / file
    data = path.read_bytes()
    assert data.count(b'"model.layers.1.mlp.experts.up_proj.weight"') == 1
    path.write_bytes(data.replace(b"layers.1.mlp.experts.up_proj", b"layers.1.mlp.experts.xx_proj"))
    other = name.replace("up_proj", "xx_proj")
    assert ranks.faults() == [
        ("weight-header", f"{file}: {name}"),
        ("weight-header", f"{file}: {other}"),
    ]


def test_a_header_that_is_not_one_is_named(ranks: Any) -> None:
    ranks.flip("rank0/experts.safetensors", 8)
    assert ("shard-unreadable", "rank0/experts.safetensors") in ranks.faults()


def test_faults_of_one_file_do_not_hide_those_of_another(ranks: Any) -> None:
    ranks.weight(HEAD, "rank0/model.data")["nbytes"] -= 4
    ranks.flip("rank1/model.data", ranks.weight(HEAD, "rank1/model.data")["offset"])
    codes = [code for code, _ in ranks.faults()]
    assert "weight-size" in codes
    assert "weight-differs" in codes
