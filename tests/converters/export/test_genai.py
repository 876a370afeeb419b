import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.export import genai
from dstools_converters.export.genai import (
    Tokens,
    find_genai,
    genai_config,
    pool_of,
    require_no_code,
    settings_of_sessions,
)
from dstools_converters.families.shapes import Model, read_model
from dstools_converters.runtime.sampling import Sampling

GREEDY = Sampling()
SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3" / "config.json"


def model(**changes: object) -> Model:
    return read_model(json.loads(SAMPLE.read_text()) | changes)


def configured(tokens: Tokens, sampling: Sampling = GREEDY, mtp: bool = True) -> dict[str, Any]:
    pool = pool_of(model(), 4, 512, 4, 64, mtp=mtp)
    return genai_config(model(), pool, tokens, sampling, mtp=mtp, picks_rows=False)


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


def test_tokens_that_a_model_lacks_are_left_out() -> None:
    described = configured(Tokens(None, [], 7))["model"]
    assert "bos_token_id" not in described
    assert (described["eos_token_id"], described["pad_token_id"]) == ([], 7)


def test_end_tokens_outside_of_the_vocabulary_are_left_out() -> None:
    assert configured(Tokens(0, [1, 320, 9999], None))["model"]["eos_token_id"] == [1]


def test_all_tokens_are_drawn_from_and_top_p_0_is_greedy() -> None:
    search = configured(Tokens(0, [1], None), Sampling(0.6, 0.9))["search"]
    assert (search["do_sample"], search["top_p"], search["top_k"]) == (True, 0.9, 320)
    search = configured(Tokens(0, [1], None), Sampling(0.6, 0.0))["search"]
    assert (search["do_sample"], search["top_p"]) == (False, 1.0)


@pytest.mark.parametrize("mtp", [True, False])
@pytest.mark.parametrize("tokens", [Tokens(None, [], None), Tokens(0, [1, 5, 320], 7)])
def test_genai_takes_every_key(tokens: Tokens, mtp: bool, tmp_path: Path) -> None:
    package = find_genai()
    if package is None:
        pytest.skip("not run: needs onnxruntime-genai, of the extra export")
    config = configured(tokens, mtp=mtp)
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    package.Config(str(tmp_path))
    config["search"]["unknown"] = 3
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="unknown"):
        package.Config(str(tmp_path))


def test_genai_is_loaded_with_its_telemetry_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def load(name: str) -> SimpleNamespace:
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
        return SimpleNamespace(disable_telemetry_events=lambda: calls.append(name))

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(genai, "import_module", load)
    assert find_genai() is not None
    assert calls == ["onnxruntime_genai"]


def test_a_package_that_is_not_installed_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(genai, "import_module", load)
    assert find_genai() is None


def test_what_is_written_sets_up_nothing_of_sessions() -> None:
    assert list(settings_of_sessions(configured(Tokens(0, [1], None)))) == []


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"session_options": {"custom_ops_library": "evil.so"}}, "session_options"),
        ({"session_options": {"provider_options": [{"evil": {}}, {"cuda": {"a": 1}}]}}, "a"),
        ({"pipeline": [{"one": {"session_options": {"log_id": "x", "b": {"c": 0}}}}]}, "b.c"),
        ({"run_options": {"entry": "1"}}, "run_options.entry"),
    ],
)
def test_a_config_by_which_genai_may_load_code_is_refused_wherever_it_says_so(
    options: dict[str, Any], key: str
) -> None:
    config = configured(Tokens(0, [1], None), mtp=True)
    config["model"]["mtp"] |= options
    with pytest.raises(DstoolsError, match=r"genai_config.json: model\.mtp\..* may load code") as e:
        require_no_code(Path("genai_config.json"), config)
    assert key in str(e.value)
