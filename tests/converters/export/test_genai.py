import json
from pathlib import Path

from dstools_converters.export.genai import Tokens, genai_config, pool_of
from dstools_converters.families.shapes import Model, read_model
from dstools_converters.runtime.sampling import Sampling

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3" / "config.json"


def model(**changes: object) -> Model:
    return read_model(json.loads(SAMPLE.read_text()) | changes)


def test_the_pool_holds_all_rows_at_their_longest_and_twice_that_with_mtp() -> None:
    assert pool_of(model(), 4, 500, 3, 64, mtp=False).num_blocks == 3 * 8
    assert pool_of(model(), 4, 500, 3, 64, mtp=True).num_blocks == 2 * 3 * 8


def test_a_token_takes_a_latent_in_each_cache_and_a_dummy_where_layers_are_odd() -> None:
    assert pool_of(model(), 4, 64, 1, 64, mtp=False).token_bytes == 4 * 192 * 4
    odd = model(num_hidden_layers=3)
    assert pool_of(odd, 2, 64, 1, 64, mtp=True).token_bytes == (4 + 2) * 192 * 2


def test_layers_of_the_config_are_pairs_of_ours() -> None:
    pool = pool_of(model(num_hidden_layers=3), 4, 512, 4, 64, mtp=True)
    config = genai_config(
        model(num_hidden_layers=3),
        pool,
        Tokens(0, [1], None),
        Sampling(0.6, 0.95),
        mtp=True,
        picks_rows=False,
    )
    decoder = config["model"]["decoder"]
    assert decoder["num_hidden_layers"] == 2
    assert decoder["state_groups"] == [{"kind": "paged_kv", "layer_ids": [0, 1]}]
    assert config["model"]["mtp"]["num_hidden_layers"] == 1
    assert config["engine"]["dynamic_batching"]["prefix_caching"] is False
    assert config["engine"]["dynamic_batching"]["num_blocks"] == pool.num_blocks
    assert (config["search"]["do_sample"], config["search"]["temperature"]) == (True, 0.6)


def test_without_mtp_nothing_speculates() -> None:
    pool = pool_of(model(), 4, 512, 4, 64, mtp=False)
    config = genai_config(
        model(), pool, Tokens(None, [1, 5], None), Sampling(), mtp=False, picks_rows=True
    )
    assert "mtp" not in config["model"]
    assert "speculative" not in config
    assert config["model"]["eos_token_id"] == [1, 5]
    assert config["model"]["decoder"]["inputs"]["logits_indices"] == "logits_indices"
    assert config["search"]["do_sample"] is False
