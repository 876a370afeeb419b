from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import Export, Pool
from dstools_converters.export.runners.limits import require_limits

POOL = Pool(512, 4, 64, 64, 3072)
FILES = {"config.json": sha256(b"{}").hexdigest()}
WHOLE = Export(
    "dstools test", "onnx", "deepseek_v3", "bfloat16", has_mtp=True, pool=POOL, files=FILES
)


def test_a_whole_folder_has_the_limits_of_its_pool(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert require_limits(tmp_path, WHOLE, mtp=True) == POOL
    assert require_limits(tmp_path, replace(WHOLE, has_mtp=False), mtp=False) == POOL


def test_another_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{ }")
    with pytest.raises(DstoolsError, match=r"config\.json: is not the file that was exported"):
        require_limits(tmp_path, WHOLE, mtp=True)


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ("{}", "has no MTP layer", "leave --mtp out: it changes the speed alone"),
        (
            '{"num_nextn_predict_layers": 0}',
            "has no MTP layer",
            "leave --mtp out: it changes the speed alone",
        ),
        (
            '{"num_nextn_predict_layers": 1}',  # of transformers, for any DeepSeek-V3
            "has no mtp.onnx",
            "leave --mtp out; or, if the checkpoint holds its MTP layer, export it with --mtp",
        ),
    ],
)
def test_exporting_again_is_a_hint_where_the_checkpoint_may_have_the_layer(
    config: str, message: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(DstoolsError, match=message) as caught:
        require_limits(tmp_path, replace(WHOLE, has_mtp=False), mtp=True)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"tp": 2, "ep": 2}, "OUT: is divided among 2 GPUs", "without --tp and --ep"),
        ({"ep": 4}, "OUT: is divided among 4 GPUs", "without --tp and --ep"),
        ({"expert_inputs": True}, "OUT: its experts are not part", "--expert-weights baked"),
        ({"has_mtp": False}, "OUT: has no mtp.onnx", "leave --mtp out"),
        ({"pool": None}, "OUT/export.json: has no pool", "export the checkpoint again"),
    ],
)
def test_what_one_process_does_not_run_is_named(
    changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DstoolsError) as caught:
        require_limits(Path("OUT"), replace(WHOLE, **changes), mtp=True)
    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint
