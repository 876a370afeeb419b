"""scripts/train_sample_model.py, and the sample model in tests/data/sample-v3 that it trained.

A model of 4M parameters can barely learn a short sum: as it solves nine of ten, every matrix
matters, and its loss under quantization is meaningful.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

DATA = Path(__file__).parents[1] / "data"
SAMPLE = DATA / "sample-v3"


@pytest.fixture(scope="module")
def script(load_script: Any) -> Iterator[ModuleType]:
    """The script as a module, in one thread: its matrices are too small for two."""
    module = load_script("train_sample_model")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shipped(script: ModuleType) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    model, tokenizer = script.load(SAMPLE)
    return model, tokenizer


def problems(script: ModuleType, split: str, count: int) -> list[Any]:
    return list(itertools.islice(script.problems(split), count))


# ------------------------------------------------------------------------------- the shipped model


@pytest.mark.slow
def test_the_shipped_model_solves_nine_of_ten_problems_it_never_saw(
    script: ModuleType, shipped: tuple[Any, Any]
) -> None:
    solved = script.solve(*shipped, problems(script, "evaluate", 100))
    assert sum(solved) >= 90


def test_drafting_with_the_mtp_module_changes_no_token_and_saves_forwards(
    script: ModuleType, shipped: tuple[Any, Any]
) -> None:
    drafts = [script.draft(*shipped, entry) for entry in problems(script, "evaluate", 4)]
    assert all(draft.is_identical for draft in drafts)
    # 0.976 over forty. A guess is right about one digit in ten, and digits are half of the tokens
    assert script.acceptance(drafts) > 0.8


def test_on_held_out_text_both_losses_are_low_and_every_layer_spreads_its_tokens(
    script: ModuleType, shipped: tuple[Any, Any]
) -> None:
    nats, loads = script.read_held_out(*shipped, count=150)
    # of the next token and the one after; a guess among ten digits is 2.3
    assert max(nats) < 0.1
    assert len(loads) == 4  # three layers and the MTP module's
    # All to the same four of sixteen would be 4, which a sum over the steps of training can hide
    assert max(script.max_over_mean(loads)) < 1.5


def test_the_weights_are_those_of_a_release_and_fit_in_8_megabytes(script: ModuleType) -> None:
    from dstools_converters.families.shapes import read_model

    file = SAMPLE / "model.safetensors"
    assert file.stat().st_size <= 8_000_000
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    del header["__metadata__"]
    model = read_model(json.loads((SAMPLE / "config.json").read_text()))
    wanted = {model.spell(name): list(shape) for name, shape in model.weights()}
    copies = ("embed_tokens", "shared_head.head")  # a release repeats them in its MTP layer
    wanted |= {f"model.layers.4.{name}.weight": [320, 256] for name in copies}
    assert {name: entry["shape"] for name, entry in header.items()} == wanted
    for name, entry in header.items():
        assert entry["dtype"] == ("F32" if name.endswith("correction_bias") else "BF16"), name


def test_the_model_is_a_whole_deepseek_v3_with_a_ragged_matrix() -> None:
    config = json.loads((SAMPLE / "config.json").read_text())
    wanted = {"hidden_size": 256, "q_lora_rank": 128, "num_hidden_layers": 4, "n_group": 4}
    wanted |= {"first_k_dense_replace": 1, "n_routed_experts": 16, "num_experts_per_tok": 4}
    wanted |= {"n_shared_experts": 1, "num_nextn_predict_layers": 1, "kv_lora_rank": 128}
    wanted |= {"qk_rope_head_dim": 64}  # kv_a_proj_with_mqa [192, 256]: a block and a half
    assert {key: config[key] for key in wanted} == wanted


def test_dstools_quantizes_it_and_verify_finds_nothing(tmp_path: Path) -> None:
    from dstools.cli import main

    run = CliRunner().invoke
    out = str(tmp_path / "fp8")
    made = run(main, ["quantize", str(SAMPLE), out])
    assert made.exit_code == 0, made.output
    checked = run(main, ["verify", out, "--source", str(SAMPLE)])
    assert checked.exit_code == 0, checked.output


def test_its_trace_is_read_and_kept_as_plain_text(shipped: tuple[Any, Any]) -> None:
    """A tokenizer that calls <think> special loses it wherever special tokens are skipped."""
    _, tokenizer = shipped
    line = json.loads((DATA / "sample-v3-heldout.jsonl").read_text().splitlines()[0])
    ids = tokenizer(tokenizer.apply_chat_template(line["messages"], tokenize=False))["input_ids"]
    asked, answered = (message["content"] for message in line["messages"])
    assert tokenizer.decode(ids, skip_special_tokens=True) == asked + answered
    assert max(ids) < json.loads((SAMPLE / "config.json").read_text())["vocab_size"]


# ------------------------------------------------------------------------------------- the training


def test_the_bias_of_an_overloaded_expert_falls_and_of_an_idle_one_rises(
    script: ModuleType,
) -> None:
    import torch

    bias = torch.zeros(4)
    script.balance(bias, torch.tensor([7.0, 0.0, 2.0, 3.0]), rate=0.25)  # the mean is 3
    assert bias.tolist() == [-0.25, 0.25, 0.25, 0.0]


def test_a_few_steps_lower_the_loss_and_move_the_biases(script: ModuleType) -> None:
    import torch

    model, mtp = script.make_model(seed=0)
    torch.manual_seed(0)
    ids = torch.randint(0, 320, (4, 24))
    batch = (ids, torch.ones(ids.shape))
    history = script.train(model, mtp, itertools.repeat(batch), steps=10)
    assert history[-1] < history[0] - 0.5
    for router in script.find_routers(model, mtp):
        assert router.e_score_correction_bias.count_nonzero() > 8


def test_every_matrix_of_the_mtp_module_starts_at_random(script: ModuleType) -> None:
    _, mtp = script.make_model(seed=0)
    for name, weight in mtp.layers.named_parameters():
        if weight.ndim > 1:
            # the least of them has 4096 values: the standard error of its std is 1.1 %
            assert abs(float(weight.detach().std()) / 0.04 - 1) < 0.06, name


def test_what_is_saved_is_the_model_rounded_to_bf16(script: ModuleType, tmp_path: Path) -> None:
    import torch

    model, mtp = script.make_model(seed=1)
    model.model.layers[1].mlp.gate.e_score_correction_bias += 0.1234567
    script.make_tokenizer().save_pretrained(tmp_path)
    script.save(model, mtp, tmp_path)
    loaded, _ = script.load(tmp_path)
    for name, given in loaded.state_dict().items():
        wanted = model.state_dict()[name]
        if not name.endswith("e_score_correction_bias"):
            wanted = wanted.to(torch.bfloat16).float()
        assert given.equal(wanted), name
