"""Beside the shards: what travels along as it is, and what is written anew."""

import json
import shutil
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Plan, plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe, Rule
from dstools_converters.sidefiles.carried import MAX_SIDE_BYTES, carried_files
from dstools_converters.write.metadata import side_files

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("tokenizer.json", True),
        ("generation_config.json", True),
        ("LICENSE", True),
        ("modeling_deepseek.py", True),
        ("inference/config_671B_v3.2.json", True),
        ("figures/benchmark.png", True),
        ("inference/config.json", True),  # another folder's, not ours
        ("config.json", False),
        ("manifest.json", False),
        ("SHA256SUMS", False),
        (INDEX, False),
        ("consolidated.safetensors.index.json", False),
        ("model-00001-of-00002.safetensors", False),
        ("original/consolidated.00.pth", False),
        ("pytorch_model.bin", False),
        ("model.gguf", False),
        ("onnx/model.onnx", False),
        ("data.pkl", False),
        (".gitattributes", False),
        (".env", False),
        (".cache/huggingface/download/x.lock", False),
        ("inference/.git/config", False),
    ],
)
def test_what_travels_along(tmp_path: Path, name: str, travels: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    (tmp_path / "an empty folder").mkdir()
    assert carried_files(tmp_path) == ({name: path} if travels else {})


def test_linked_files_of_the_hub_cache_travel(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1a2b").write_bytes(b"x")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    link = snapshot / "tokenizer.json"
    link.symlink_to("../../blobs/1a2b")
    assert carried_files(snapshot) == {"tokenizer.json": link}


def test_a_link_out_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").symlink_to("../secret")
    with pytest.raises(DstoolsError, match=r"^notes\.txt: is a link out of the folder"):
        carried_files(tmp_path / "model")


def test_a_file_too_large_to_be_a_side_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights\x1b.npz"
    with path.open("wb") as file:
        file.truncate(MAX_SIDE_BYTES)
    assert list(carried_files(tmp_path)) == ["weights\x1b.npz"]
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DstoolsError, match=r"^weights\\x1b\.npz: 67108865 bytes, too large"):
        carried_files(tmp_path)


def planned(folder: Path, *rules: Rule) -> Plan:
    inventory = require_sound(open_checkpoint(folder))
    return plan_quantize(inventory, Recipe(rules), "native", "ue8m0")


def test_the_folder_is_the_source_s_with_config_index_and_manifest(tiny: Path) -> None:
    plan = planned(tiny)
    files = side_files(plan, "dstools 1.2")
    travelling = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert set(files) == travelling | {"config.json", INDEX, "manifest.json"}
    assert all(files[name] == tiny / name for name in travelling)
    written = {name: json.loads(files[name]) for name in set(files) - travelling}  # type: ignore[arg-type]
    assert written["config.json"] == plan.config
    assert list(written["config.json"]) == list(plan.config)  # in the source's order
    assert written[INDEX] == plan.index()
    assert written["manifest.json"] == {
        "tool": "dstools 1.2",
        "source_headers": {
            name: f"sha256:{shard.header_sha256}"
            for name, shard in plan.inventory.checkpoint.shards.items()
        },
        "tensors": {
            "copy: DeepSeek's own": plan.counts["copy"],
            "quantize: DeepSeek's own": plan.counts["quantize"],
        },
        "unknown_tensors": [],
        "scale_fmt": "ue8m0",
        "has_foreign_scales": False,
    }


def test_the_manifest_says_which_rule_and_whose_scales(tiny: Path, tiny_fp8: Path) -> None:
    def manifest(plan: Plan) -> dict[str, object]:
        found = json.loads(side_files(plan, "t")["manifest.json"])  # type: ignore[arg-type]
        assert isinstance(found, dict)
        return found

    tensors = manifest(planned(tiny, Rule("r.toml, rule 1", "keep", ("o_proj",))))["tensors"]
    assert isinstance(tensors, dict)
    assert tensors["copy: r.toml, rule 1"] == 4
    fp8 = require_sound(open_checkpoint(tiny_fp8))
    assert manifest(planned(tiny_fp8))["has_foreign_scales"] is True
    base = plan_quantize(require_sound(open_checkpoint(tiny)), Recipe(), "native", None, fp8)
    assert manifest(base)["has_foreign_scales"] is True
    assert "scale_fmt" not in manifest(plan_dequantize(fp8))


def test_the_same_source_elsewhere_and_later_gives_the_same_bytes(
    tiny: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy", copy_function=shutil.copyfile))
    ours, theirs = (side_files(planned(folder), "t") for folder in (tiny, copy))
    for name in ("config.json", INDEX, "manifest.json"):
        assert ours[name] == theirs[name]
        assert str(tmp_path).encode() not in theirs[name]  # type: ignore[operator]
