"""A config.json is carried without what does not hold of the output."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.config import (
    check_config,
    check_numbers,
    names_mtp,
    sound_config,
)
from dstools_converters.checkpoint.folder import Checkpoint, open_checkpoint
from dstools_converters.families.shapes import read_model

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
        ({"AutoModel": "/data/ckpt/base--modeling_x.X"}, {}, ("/data/ckpt/base",)),
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


def test_a_local_path_is_left_out_of_nested_configs_too(opened: Callable[..., Checkpoint]) -> None:
    checkpoint = opened(_name_or_path="/home/jane/ckpt-9000", text_config={"_name_or_path": "./x"})
    wanted = {key: value for key, value in checkpoint.config.items() if key != "_name_or_path"}
    assert sound_config(checkpoint) == wanted | {"text_config": {}}
    (finding,) = check_config(checkpoint)
    assert (finding.level, finding.code, finding.where) == ("note", "local-path", "config.json")
    assert finding.message.startswith("_name_or_path ")


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


@pytest.mark.parametrize("fmt", ["e5m2", "\x1b", 5])
def test_a_format_that_the_weights_are_not_of_is_named(
    opened: Callable[..., Checkpoint], fmt: object
) -> None:
    checkpoint = opened(quantization_config={"fmt": fmt})
    assert list(check_config(checkpoint)) == []  # of no codes
    name, info = next(iter(checkpoint.tensors.items()))
    checkpoint.tensors[name] = info._replace(dtype="F8_E4M3")
    (finding,) = check_config(checkpoint)
    assert (finding.level, finding.code, finding.where) == ("warning", "fmt", "config.json")
    assert finding.message.startswith(f"fmt of quantization_config is {fmt!r}, but")
    checkpoint.config["quantization_config"] = {"fmt": "e4m3"}
    assert list(check_config(checkpoint)) == []


MOE = {
    "model_type": "deepseek_v3", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "q_lora_rank": None, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 4, "topk_group": 2,
    "max_position_embeddings": 10, "eos_token_id": [1, 99], "pad_token_id": -1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("num_experts_per_tok", 9, "9, not a whole number from 1 to 8"),
        ("n_group", 3, "3, not a divisor of 8, the experts"),
        ("n_group", 0, "0, not a whole number from 1 to 8"),
        ("n_group", "\x1b", "'\\x1b', not a whole number from 1 to 8"),
        ("topk_group", 5, "5, not a whole number from 1 to 4"),
        ("max_position_embeddings", 1 << 24, "16777216, not a whole number from 1 to 16777215"),
        ("sliding_window", -1, "-1, not a whole number from 0 to 16777215"),
        ("eos_token_id", [1, 100], "100, not a whole number from -1 to 99"),
        ("pad_token_id", True, "True, not a whole number from -1 to 99"),
        ("num_key_value_heads", -1, "-1, not a whole number from 1 to 16777215"),
        ("head_dim", 0, "0, not a whole number from 1 to 16777215"),
        ("rope_theta", -5, "-5, not a number above 0"),
        ("rope_theta", "1e4", "'1e4', not a number above 0"),
        ("rope_scaling", "x", "'x', not an object"),
        ("rope_parameters", [1], "[1], not an object"),
    ],
)
def test_a_number_with_which_no_model_runs_is_named(key: str, value: Any, wanted: str) -> None:
    assert not list(check_numbers(MOE, read_model(MOE)))
    config = MOE | {key: value}
    (finding,) = check_numbers(config, read_model(config))
    level = "warning" if key == "eos_token_id" else "error"
    assert (finding.level, finding.where) == (level, "config.json")
    assert finding.message == f"{key} is {wanted}"


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_numbers_of_the_rotary_embedding_are_named_with_their_object(key: str) -> None:
    config = MOE | {key: {"rope_type": "yarn", "factor": 0, "rope_theta": 1e4}}
    (finding,) = check_numbers(config, read_model(config))
    assert finding.message == f"{key}.factor is 0, not a number above 0"
    config = MOE | {key: {"rope_type": "yarn", "factor": 40}, "rope_theta": 10000}
    assert not list(check_numbers(config, read_model(config)))


def test_numbers_may_be_left_out() -> None:
    config = MOE | dict.fromkeys(("n_group", "topk_group", "eos_token_id", "pad_token_id"))
    assert not list(check_numbers(config, read_model(config)))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('{"num_nextn_predict_layers": 1}', True),
        ('{"num_nextn_predict_layers": 0}', False),
        ('{"num_hidden_layers": 4}', False),
        ("[1]", False),
        ("no JSON", False),
        (None, False),
    ],
)
def test_whether_a_config_names_mtp_layers(
    content: str | None, names: bool, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert names_mtp(tmp_path) is names
