import sys
from hashlib import sha256
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import Export, Pool
from dstools_converters.export.trt.plans import import_tensorrt, read_plan, require_plans

POOL = Pool(512, 4, 64, 64, 3072)


def export_with(**engines: str) -> Export:
    known = {f"{name}.plan": digest for name, digest in engines.items()}
    return Export(
        "dstools test",
        "onnx",
        "deepseek_v3",
        "bfloat16",
        has_mtp=True,
        pool=POOL,
        files={"config.json": sha256(b"{}").hexdigest()},
        engines=known,
    )


def test_an_engine_is_read_only_if_export_json_has_its_hash(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"engine")
    with pytest.raises(DstoolsError, match=r"model\.plan: export.json does not name this engine"):
        read_plan(tmp_path, export_with(), "model.plan")
    known = export_with(model=sha256(b"engine").hexdigest())
    assert read_plan(tmp_path, known, "model.plan") == b"engine"
    plan.write_bytes(b"enginE")
    with pytest.raises(DstoolsError, match=r"is not the engine that export.json names"):
        read_plan(tmp_path, known, "model.plan")
    plan.unlink()
    with pytest.raises(DstoolsError, match="there is no such engine") as caught:
        read_plan(tmp_path, known, "model.plan")
    assert "in a new folder: dstools export CKPT NEW --onnx --trt" in caught.value.hint
    assert "on a CPU" in caught.value.hint


def test_drafts_need_an_engine_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.plan").write_bytes(b"engine")
    known = export_with(model="a", mtp="b")
    assert require_plans(tmp_path, known, mtp=False) == (POOL, [tmp_path / "model.plan"])
    with pytest.raises(DstoolsError, match=r"mtp\.plan: there is no such engine"):
        require_plans(tmp_path, known, mtp=True)
    (tmp_path / "mtp.plan").write_bytes(b"engine")
    _, plans = require_plans(tmp_path, known, mtp=True)
    assert [plan.name for plan in plans] == ["model.plan", "mtp.plan"]


def test_engines_run_with_the_config_that_was_exported_alone(tmp_path: Path) -> None:
    """Caches and prompts are sized by it."""
    (tmp_path / "model.plan").write_bytes(b"engine")
    (tmp_path / "config.json").write_bytes(b"{ }")
    with pytest.raises(DstoolsError, match=r"config\.json: is not the file that was exported"):
        require_plans(tmp_path, export_with(model="a"), mtp=False)


def test_a_missing_tensorrt_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DstoolsError, match="running an engine needs TensorRT: ") as caught:
        import_tensorrt()
    assert caught.value.hint == "pip install tensorrt, in the version that built the engine"
