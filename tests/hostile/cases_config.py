"""config.json: its JSON, its integers, and what it says otherwise than the tensors."""

from model import BIAS, EXPERT, FP8, Model, case

CONFIG = "config.json"


@case("config", names=CONFIG)
def no_config(model: Model) -> None:
    model.after(lambda folder: (folder / CONFIG).unlink())


@case("config", names=CONFIG)
def an_empty_config(model: Model) -> None:
    model.edit(CONFIG, lambda raw: b"")


@case("config", names=CONFIG)
def a_config_that_is_cut(model: Model) -> None:
    model.edit(CONFIG, lambda raw: raw[:-10])


@case("config", names=CONFIG)
def a_config_that_is_a_list(model: Model) -> None:
    model.edit(CONFIG, lambda raw: b"[" + raw + b"]")


@case("config", names=CONFIG)
def a_config_nested_too_deep(model: Model) -> None:
    model.edit(CONFIG, lambda raw: b'{"a":' * 100_000 + b"}" * 100_000)


@case("config", names=CONFIG)
def a_config_of_32_megabytes(model: Model) -> None:
    model.edit(CONFIG, lambda raw: b'{"a": [' + b"[]," * 11_000_000 + b"[]]}")


@case("config", names=CONFIG)
def a_config_that_is_a_git_lfs_pointer(model: Model) -> None:
    model.edit(CONFIG, lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@case("config", names="vocab_size")
def a_key_twice_in_the_config(model: Model) -> None:
    model.edit(CONFIG, lambda raw: b'{"vocab_size": 1, ' + raw[1:])


@case("config", names=CONFIG)
def nan_in_the_config(model: Model) -> None:
    model.config["routed_scaling_factor"] = float("nan")


@case("config", names=CONFIG)
def a_number_beyond_floats_in_the_config(model: Model) -> None:
    model.edit(CONFIG, lambda raw: raw.replace(b"2.5", b"1e999"))


@case("config", names="model_type")
def no_model_type(model: Model) -> None:
    del model.config["model_type"]


@case("config", names="model_type")
def a_model_type_that_steers_a_terminal(model: Model) -> None:
    model.config["model_type"] = "\x1b[2Jdeepseek_v3"


@case("config", names="model_type")
def another_model_type(model: Model) -> None:
    model.config["model_type"] = "t5"


@case("config", names="model_type")
def a_model_type_that_is_a_list(model: Model) -> None:
    model.config["model_type"] = ["deepseek_v3"]


# ----------------------------------------------------------------------------------- integers


@case("config", names="num_hidden_layers", inspect="warned")
def sixteen_million_layers(model: Model) -> None:
    model.config["num_hidden_layers"] = (1 << 24) - 1


@case("config", names="num_hidden_layers")
def more_layers_than_an_integer_holds(model: Model) -> None:
    model.config["num_hidden_layers"] = 1 << 70


@case("config", names="num_hidden_layers")
def no_layers(model: Model) -> None:
    model.config["num_hidden_layers"] = 0


@case("config", names="num_hidden_layers")
def a_negative_number_of_layers(model: Model) -> None:
    model.config["num_hidden_layers"] = -2


@case("config", names="num_hidden_layers")
def layers_that_are_a_string(model: Model) -> None:
    model.config["num_hidden_layers"] = "\x1b[2J2"


@case("config", names="num_hidden_layers")
def half_a_layer(model: Model) -> None:
    model.config["num_hidden_layers"] = 2.5


@case("config", names="num_hidden_layers")
def true_layers(model: Model) -> None:
    model.config["num_hidden_layers"] = True


@case("config", names="n_routed_experts", inspect="warned")
def sixteen_million_experts(model: Model) -> None:
    model.config["n_routed_experts"] = (1 << 24) - 1


@case("config", names="num_nextn_predict_layers", inspect="warned")
def sixteen_million_mtp_layers(model: Model) -> None:
    model.config["num_nextn_predict_layers"] = (1 << 24) - 1


@case("config", names="vocab_size")
def a_vocabulary_of_a_million_millions(model: Model) -> None:
    model.config["vocab_size"] = 10**12


@case("config", names="moe_layer_freq")
def experts_in_every_0th_layer(model: Model) -> None:
    model.config["moe_layer_freq"] = 0


@case("config", names="num_attention_heads")
def no_heads(model: Model) -> None:
    model.config["num_attention_heads"] = 0


@case("config", names="num_experts_per_tok", inspect="warned")
def more_active_experts_than_there_are(model: Model) -> None:
    model.config["num_experts_per_tok"] = 1000


@case("config", names="n_group", inspect="warned")
def groups_that_do_not_divide_the_experts(model: Model) -> None:
    model.config["n_group"] = 3


@case("config", names="max_position_embeddings", inspect="warned")
def a_negative_number_of_positions(model: Model) -> None:
    model.config["max_position_embeddings"] = -1


@case("config", names="eos_token_id", inspect="ok", verify="warned", convert="warned")
def an_end_token_that_the_vocabulary_lacks(model: Model) -> None:
    model.config["eos_token_id"] = 1 << 40


@case("config", names="num_key_value_heads", inspect="warned")
def a_negative_number_of_heads(model: Model) -> None:
    model.config["num_key_value_heads"] = -1


@case("config", names="rope_theta", inspect="warned")
def positions_that_turn_backwards(model: Model) -> None:
    model.config["rope_theta"] = -5


@case("config", names="rope_scaling", inspect="warned")
def a_rope_scaling_that_is_a_string(model: Model) -> None:
    model.config["rope_scaling"] = "\x1b[2J"


@case("config", base="fp8", names="fmt", inspect="ok", verify="warned", convert="warned")
def a_format_that_the_codes_are_not_of(model: Model) -> None:
    model.config["quantization_config"]["fmt"] = "e5m2"


@case("config", base="llama", names="num_key_value_heads", inspect="warned")
def heads_that_are_not_whole_groups(model: Model) -> None:
    model.config["num_key_value_heads"] = 3


# ------------------------------------------------------------------- config against tensors


@case("config", names="hidden_size", inspect="warned")
def another_hidden_size(model: Model) -> None:
    model.config["hidden_size"] = 256


@case("config", names="num_hidden_layers", inspect="warned")
def fewer_layers_than_the_tensors_have(model: Model) -> None:
    model.config["num_hidden_layers"] = 1


@case("config", names="model.layers.7.mlp.up_proj.weight", inspect="warned")
def a_weight_of_a_layer_that_the_config_lacks(model: Model) -> None:
    model.put("model.layers.7.mlp.up_proj.weight", "BF16", [192, 128], bytes(192 * 128 * 2))


@case("config", names="model.layers.3.", inspect="warned")
def an_mtp_layer_that_the_config_lacks(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.startswith("model.layers.2."):
            name = name.replace("layers.2.", "layers.3.")
            model.put(name, tensor.dtype, tensor.shape, tensor.data)


@case("config", names="model.layers.2.", inspect="warned")
def an_mtp_layer_that_the_config_does_not_know(model: Model) -> None:
    del model.config["num_nextn_predict_layers"]


@case("config", names="model.layers.3.", inspect="warned")
def a_layer_that_the_config_lacks(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.startswith("model.layers.0."):
            model.put(
                name.replace("layers.0.", "layers.3."), tensor.dtype, tensor.shape, tensor.data
            )


@case("config", base="llama", names="model.layers.2.", inspect="warned")
def a_layer_that_the_config_of_a_llama_lacks(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.startswith("model.layers.1."):
            model.put(
                name.replace("layers.1.", "layers.2."), tensor.dtype, tensor.shape, tensor.data
            )


@case("config", names=EXPERT, inspect="warned")
def an_expert_without_its_up_projection(model: Model) -> None:
    del model.tensors[EXPERT]


@case("config", names=BIAS, inspect="warned")
def a_router_without_its_bias(model: Model) -> None:
    del model.tensors[BIAS]


@case("config", names="lm_head.weight", inspect="warned")
def no_head(model: Model) -> None:
    del model.tensors["lm_head.weight"]


@case("config", names="num_nextn_predict_layers", inspect="warned")
def mtp_layers_that_are_not_there(model: Model) -> None:
    model.config["num_nextn_predict_layers"] = 4


@case("config", names="quantization_config", inspect="warned")
def a_quantization_that_no_weight_has(model: Model) -> None:
    model.config["quantization_config"] = FP8


@case("config", base="fp8", names="quantization_config", inspect="warned")
def a_quantization_that_the_config_does_not_name(model: Model) -> None:
    del model.config["quantization_config"]


@case("config", base="fp8", names=CONFIG)
def blocks_of_no_rows(model: Model) -> None:
    model.config["quantization_config"]["weight_block_size"] = [0, 128]


@case("config", base="fp8", names=CONFIG)
def blocks_of_a_million_millions(model: Model) -> None:
    model.config["quantization_config"]["weight_block_size"] = [10**12, 10**12]


@case("config", base="fp8", names=CONFIG)
def a_quantization_that_is_not_supported(model: Model) -> None:
    model.config["quantization_config"] = {"quant_method": "gptq\x1b[2J", "bits": 4}


@case("config", base="fp8", names=CONFIG)
def a_quantization_that_is_a_string(model: Model) -> None:
    model.config["quantization_config"] = "fp8"


@case("config", base="fp8", names=CONFIG)
def a_scale_format_that_steers_a_terminal(model: Model) -> None:
    model.config["quantization_config"]["scale_fmt"] = "\x1b[2J"


@case("config", base="fp8", names="weight_scale_inv", inspect="ok")
def another_block_size_than_the_scales_have(model: Model) -> None:
    model.config["quantization_config"]["weight_block_size"] = [64, 64]
