"""Weights, scales and tokenizers: sound files with values or ids that no model has."""

import json

import numpy as np
from cases_files import pipe
from model import BIAS, DENSE, EMBEDDING, EXPERT, NORM, SCALE, SINGLE, TWO, Model, case

BF16_NAN, BF16_INF, BF16_MAX = 0x7FC0, 0x7F80, 0x7F7F
TOKENIZER = "tokenizer.json"


# ------------------------------------------------------------------------------------- weights


@case("weights", names=DENSE, inspect="ok")
def nan_in_a_weight(model: Model) -> None:
    model[DENSE].bits[1000] = BF16_NAN


@case("weights", names=EXPERT, inspect="ok")
def infinity_as_the_last_element_of_an_expert(model: Model) -> None:
    model[EXPERT].bits[-1] = BF16_INF | 0x8000


@case("weights", names=NORM, inspect="ok")
def nan_in_a_norm(model: Model) -> None:
    model[NORM].bits[3] = 0xFFFF


@case("weights", names=BIAS, inspect="ok")
def nan_in_a_router_bias(model: Model) -> None:
    model[BIAS].floats[2] = np.nan


@case("weights", names=EMBEDDING, inspect="ok")
def infinity_in_the_embedding(model: Model) -> None:
    model[EMBEDDING].bits[5] = BF16_INF


@case("weights", names=NORM, inspect="ok")
def infinity_in_a_norm_of_f16(model: Model) -> None:
    model.put(NORM, "F16", [128], np.full(128, 0x7C00, np.uint16).tobytes())


@case("weights", names="extra", inspect="ok")
def nan_in_a_tensor_of_unknown_role(model: Model) -> None:
    model.put("extra", "F32", [2], np.float32([1, np.nan]).tobytes())


@case("weights", base="fp8", names=DENSE, inspect="ok")
def a_nan_code_in_fp8(model: Model) -> None:
    model[DENSE].data[77] = 0x7F


@case("weights", base="fp8", names=EXPERT, inspect="ok")
def a_negative_nan_code_in_an_expert(model: Model) -> None:
    model[EXPERT].data[-1] = 0xFF


@case("weights", names=DENSE, inspect="ok", verify="warned", convert="warned")
def a_weight_of_zeros(model: Model) -> None:
    model[DENSE].data[:] = bytes(len(model[DENSE].data))


@case("weights", base="fp8", names=DENSE, inspect="ok", verify="warned", convert="warned")
def codes_of_zeros(model: Model) -> None:
    model[DENSE].data[:] = bytes(len(model[DENSE].data))


@case("weights", names=TWO, inspect="ok", verify="warned", convert="warned")
def a_shard_whose_last_half_is_zeros(model: Model) -> None:
    model.edit(TWO, lambda raw: raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))


@case("weights", names=SINGLE, inspect="ok", verify="warned", convert="warned")
def a_single_file_whose_tail_is_zeros(model: Model) -> None:
    model.one_shard()
    model.edit(SINGLE, lambda raw: raw[:-8192] + bytes(8192))


@case("weights", names=DENSE, inspect="ok", verify="warned", convert="warned")
def a_weight_at_the_maximum_of_its_dtype(model: Model) -> None:
    model[DENSE].bits[9] = BF16_MAX


@case("weights", names=BIAS, inspect="ok", verify="warned", convert="warned")
def a_bias_of_1e38(model: Model) -> None:
    model[BIAS].floats[2] = 1e38


# -------------------------------------------------------------------------------------- scales


@case("scales", base="fp8", names=DENSE, inspect="ok")
def a_weight_without_its_scale(model: Model) -> None:
    del model.tensors[SCALE]


@case("scales", base="fp8", names="model.layers.0.mlp.up_proj.weight_scale_inv", inspect="ok")
def a_scale_without_a_weight(model: Model) -> None:
    model.put("model.layers.0.mlp.up_proj.weight", "BF16", [192, 128], bytes(192 * 128 * 2))


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_scale_of_another_shape(model: Model) -> None:
    model.put(SCALE, "F32", [2, 2], np.full(4, 1e-4, np.float32).tobytes())


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_scale_for_the_whole_weight(model: Model) -> None:
    model.put(SCALE, "F32", [1], np.float32([1e-4]).tobytes())


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_scale_of_integers(model: Model) -> None:
    model.put(SCALE, "I32", [1, 2], bytes(8))


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_scale_that_is_nan(model: Model) -> None:
    model[SCALE].floats[1] = np.nan


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_scale_that_is_infinite(model: Model) -> None:
    model[SCALE].floats[0] = np.inf


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_scale_of_zero(model: Model) -> None:
    model[SCALE].floats[0] = 0


@case("scales", base="fp8", names=SCALE, inspect="ok")
def a_negative_scale(model: Model) -> None:
    model[SCALE].floats[0] = -1e-4


@case("scales", base="fp8", names=SCALE, inspect="ok", verify="warned", convert="warned")
def a_scale_of_1e30(model: Model) -> None:
    model[SCALE].floats[0] = 1e30


@case("scales", base="fp8", names=SCALE, inspect="ok", verify="warned", convert="warned")
def a_scale_of_1e_minus_30(model: Model) -> None:
    model[SCALE].floats[0] = 1e-30


@case("scales", base="fp8", names="weight_scale", inspect="ok")
def scales_of_another_name(model: Model) -> None:
    for name in [name for name in model.tensors if name.endswith("_scale_inv")]:
        model.tensors[name.removesuffix("_inv")] = model.tensors.pop(name)


@case("scales", base="fp8", names=DENSE, inspect="warned")
def codes_with_the_dtype_of_bytes(model: Model) -> None:
    model[DENSE].dtype = "U8"


@case("scales", base="fp8", names=DENSE, inspect="ok", convert="ok")
def a_weight_of_bf16_that_no_list_names(model: Model) -> None:
    model.put(DENSE, "BF16", [128, 192], np.full(128 * 192, 0x3C00, np.uint16).tobytes())
    del model.tensors[SCALE]


# ----------------------------------------------------------------------------------- tokenizer


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_that_is_cut(model: Model) -> None:
    model.edit(TOKENIZER, lambda raw: raw[: len(raw) // 2])


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_large_tokenizer_that_is_cut(model: Model) -> None:
    model.json(TOKENIZER, notes="x" * (2 << 20))
    model.edit(TOKENIZER, lambda raw: raw[:-1])


@case("tokenizer", names=TOKENIZER, inspect="ok")
def an_empty_tokenizer(model: Model) -> None:
    model.edit(TOKENIZER, lambda raw: b"")


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_that_is_a_git_lfs_pointer(model: Model) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"
    model.edit(TOKENIZER, lambda raw: pointer)


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_that_is_a_web_page(model: Model) -> None:
    model.edit(TOKENIZER, lambda raw: b"<!DOCTYPE html>")


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_that_is_a_pipe(model: Model) -> None:
    model.after(pipe(TOKENIZER))


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_without_a_model(model: Model) -> None:
    model.edit(TOKENIZER, lambda raw: b"{}")


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_with_a_negative_id(model: Model) -> None:
    vocabulary(model, {"\x1b[2J": -1})


@case("tokenizer", names=TOKENIZER, inspect="ok")
def a_tokenizer_with_an_id_that_is_a_string(model: Model) -> None:
    vocabulary(model, {"a": "\x1b[2J"})


@case("tokenizer", names=TOKENIZER, inspect="ok", convert="warned")
def more_token_ids_than_the_embedding_has_rows(model: Model) -> None:
    vocabulary(model, {"one more": 256})


@case("tokenizer", names=TOKENIZER, inspect="ok", convert="warned")
def an_added_token_beyond_the_embedding(model: Model) -> None:
    token = {"id": 300, "content": "\x1b[2J<pad>", "special": True}
    model.json(TOKENIZER, added_tokens=[token])


@case("tokenizer", names="tokenizer_config.json", inspect="ok")
def a_tokenizer_config_that_is_cut(model: Model) -> None:
    model.edit("tokenizer_config.json", lambda raw: raw[:-5])


@case("tokenizer", names="generation_config.json", inspect="ok", verify="warned", convert="warned")
def a_generation_config_that_is_cut(model: Model) -> None:
    model.edit("generation_config.json", lambda raw: raw[:-5])


def vocabulary(model: Model, more: dict[str, object]) -> None:
    """Add tokens to the vocabulary."""
    tokenizer = json.loads(model.files[TOKENIZER])
    tokenizer["model"]["vocab"] |= more
    model.json(TOKENIZER, model=tokenizer["model"])
