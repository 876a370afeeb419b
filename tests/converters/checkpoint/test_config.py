"""A config.json is carried without what does not hold of the output."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.config import check_config, sound_config
from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint

# deepseek-ai/DeepSeek-V3, config.json
V3 = {
    "AutoConfig": "configuration_deepseek.DeepseekV3Config",
    "AutoModel": "modeling_deepseek.DeepseekV3Model",
    "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
}
CODE = ("configuration_deepseek.py", "modeling_deepseek.py")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.fixture
def opened(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Checkpoint]:
    """opened(files={}, key=value): a small Llama with these files and values in its config."""

    def get(files: dict[str, bytes] | None = None, **values: Any) -> Checkpoint:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(checkpoint("tiny-llama"), folder)
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        return open_checkpoint(folder)

    return get


@pytest.mark.parametrize(
    ("auto_map", "files", "missing"),
    [
        (V3, {}, CODE),
        (V3, {CODE[0]: b""}, (CODE[1],)),
        (V3, {CODE[0]: b"", CODE[1]: POINTER}, (CODE[1],)),
        ({"AutoModel": "/root/ckpt/base--modeling_x.X"}, {}, ("/root/ckpt/base",)),
        ({"AutoModel": "a/b/c--modeling_x.X"}, {}, ("a/b/c",)),
        ({"AutoModel": "../modeling_x.X"}, {}, ("../modeling_x.py",)),
    ],
)
def test_auto_map_is_left_out_where_its_code_is_missing(
    opened: Callable[..., Checkpoint], auto_map: dict[str, str], files: dict[str, bytes],
    missing: tuple[str, ...],
) -> None:  # fmt: skip
    checkpoint = opened(files, auto_map=auto_map)
    assert sound_config(checkpoint) == {
        key: value for key, value in checkpoint.config.items() if key != "auto_map"
    }
    (finding,) = check_config(checkpoint)
    assert (finding.level, finding.code, finding.where) == ("warning", "auto-map", "config.json")
    assert missing[0] in finding.message
    assert "auto_map" in checkpoint.config  # of which nothing is changed


@pytest.mark.parametrize(
    ("auto_map", "files"),
    [
        (V3, dict.fromkeys(CODE, b"class X: ...")),
        # save_pretrained of a model loaded from the Hub: transformers, add_model_info_to_auto_map
        ({"AutoConfig": "moonshotai/Moonlight-16B-A3B--configuration_deepseek.X"}, {}),
        ({}, {}),
        (None, {}),
        ([1], {}),
        ({"AutoModel": None, "AutoTokenizer": [None, 5]}, {}),
    ],
)
def test_auto_map_is_kept_where_its_code_is_there_or_in_another_repository(
    opened: Callable[..., Checkpoint], auto_map: object, files: dict[str, bytes]
) -> None:
    checkpoint = opened(files, auto_map=auto_map)
    assert sound_config(checkpoint) == checkpoint.config
    assert list(check_config(checkpoint)) == []


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("value", ["float8_e4m3fn", "torch.float8_e5m2"])
def test_a_dtype_of_codes_becomes_one_to_compute_in(
    opened: Callable[..., Checkpoint], key: str, value: str
) -> None:
    checkpoint = opened(**{key: value})
    assert sound_config(checkpoint) == checkpoint.config | {key: "bfloat16"}
    (finding,) = check_config(checkpoint)
    assert (finding.level, finding.code) == ("warning", "dtype")
    assert f"{key} is {value}" in finding.message


@pytest.mark.parametrize("value", ["bfloat16", "float16", "float32", None, 8])
def test_other_dtypes_are_carried(opened: Callable[..., Checkpoint], value: object) -> None:
    checkpoint = opened(torch_dtype=value)
    assert sound_config(checkpoint) == checkpoint.config
    assert list(check_config(checkpoint)) == []
