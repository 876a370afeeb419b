"""Files beside the shards: what is written anew, and what is copied."""

import json
import shutil
from pathlib import Path

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.plan.plan import Plan, plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe, Rule
from dstools_converters.write.metadata import side_files

INDEX = "model.safetensors.index.json"


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
