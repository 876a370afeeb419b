"""Tests of fine-tuning: the trainer sees the rendered rows, and the result is a model folder."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from dstools.cli import main
from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import Lora, Sft
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.training import checkpoints
from dstools_distill.training import sft as module
from dstools_distill.training.sft import check_isolation, order, sft
from dstools_distill.training.students import load_student
from dstools_distill.training.trainer import arguments

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
INIT = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
SHORT = Sft(
    learning_rate=1e-3, batch_size=8, micro_batch_size=4, max_steps=6, log_steps=1, save_steps=2,
    precision="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def work(folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder)


def write_rows(folder: Path, rows: list[tuple[list[int], list[int]]]) -> Path:
    """Write ids and labels as `render` does."""
    folder.mkdir()
    kind = pa.list_(pa.int32())
    columns = {
        "id": [str(n) for n in range(len(rows))],
        "input_ids": pa.array([ids for ids, _ in rows], kind),
        "labels": pa.array([labels for _, labels in rows], kind),
    }
    table = pa.table(columns)
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    return folder


def some_rows(count: int, longest: int = 40) -> list[tuple[list[int], list[int]]]:
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(3, 300) for _ in range(draw.randrange(12, longest + 1))]
        rows.append((ids, [-100] * 5 + ids[5:]))
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rendered") / "rows", some_rows(40))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the sample's tokenizer, sides a multiple of 128."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    init = INIT | {"hidden_size": 128, "num_key_value_heads": 4}
    load_student(SHORT, None, init, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(settings: Sft, rows: Path, out: Path, model: Path | None = None) -> dict[str, Any]:
    init = None if model else INIT
    return sft(settings, Inputs(rows=rows, model=model, init=init, tokenizer=SAMPLE), work(out))


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_bytes().splitlines()]


# ------------------------------------------------------------------------------------- the result


def test_the_result_is_a_model_folder_and_nothing_else(rows: Path, tmp_path: Path) -> None:
    report = train(replace(SHORT, ema=0.9), rows, tmp_path / "out")
    model_folder = {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    expected = model_folder | {f"ema/{name}" for name in model_folder} | {"curve.jsonl"}
    assert set(files(tmp_path / "out")) == expected
    for folder in (tmp_path / "out", tmp_path / "out" / "ema"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.generation_config.eos_token_id == [1]
        assert model.generation_config.pad_token_id == 2
        assert model.config.use_cache
        config = json.loads((folder / "config.json").read_bytes())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000
        assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(folder)) == 319
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_bytes())
    assert "extra_special_tokens" in tokenizer
    assert report["in"] == report["sequences"] == 40
    assert (report["steps"], report["processes"], report["parallel"]) == (6, 1, "single")
    assert report["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_file_of_the_result_names_no_folder(rows: Path, tmp_path: Path) -> None:
    train(SHORT, rows, tmp_path / "out")
    for name, data in files(tmp_path / "out").items():
        assert str(tmp_path).encode() not in data, name


def test_the_curve_has_the_loss_of_every_step_asked_for_and_no_times(
    rows: Path, tmp_path: Path
) -> None:
    train(replace(SHORT, log_steps=2, max_steps=5), rows, tmp_path / "out")
    lines = curve(tmp_path / "out")
    assert [line["step"] for line in lines] == [2, 4, 5]  # the last one whatever log_steps is
    assert set(lines[0]) == {"step", "tokens", "loss", "learning_rate", "grad_norm"}
    order = [line["tokens"] for line in lines]
    assert order == sorted(order)
    assert order[-1] == sum(len(ids) for ids, _ in some_rows(40))  # 5 steps of 8 are the 40 rows


def test_the_loss_of_a_step_is_the_mean_over_all_targets_worked_by_hand(tmp_path: Path) -> None:
    """A batch of all rows in micro-batches of other lengths: a token counts the same in each."""
    chosen = some_rows(8)
    rendered = write_rows(tmp_path / "rows", chosen)
    train(replace(SHORT, max_steps=1), rendered, tmp_path / "out")
    model = load_student(SHORT, None, INIT, AutoTokenizer.from_pretrained(SAMPLE))
    losses = []
    for ids, labels in chosen:
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses += [-chances[n - 1, x].item() for n, x in enumerate(labels) if x != -100]
    by_hand = sum(losses) / len(losses)
    # a float32 sum of some 200 losses of about 5.8, each a few eps = 6e-8 off
    assert curve(tmp_path / "out")[0]["loss"] == pytest.approx(by_hand, abs=5e-6)


def test_losses_are_those_of_plain_trl(rows: Path, tmp_path: Path) -> None:
    """The checks, the checkpoints and the cheaper head change only the order of sums."""
    train(SHORT, rows, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    given = arguments(SHORT, work(tmp_path / "plain")) | {"train_sampling_strategy": "sequential"}
    rendered = module.load_rows(rows / "rows.arrow")
    plain: Any = SFTTrainer(
        load_student(SHORT, None, INIT, tokenizer),
        args=SFTConfig(**given, max_length=None),
        train_dataset=rendered.select(order(module._lengths(rendered, "input_ids"), SHORT)),
        processing_class=tokenizer,
    )
    plain.train()
    expected = [line["loss"] for line in plain.state.log_history if "loss" in line]
    assert [line["loss"] for line in curve(tmp_path / "out")] == pytest.approx(expected, abs=5e-6)


def test_an_epoch_has_every_row_once_and_epochs_differ() -> None:
    lengths = np.arange(1, 101)
    for grouped in (False, True):
        numbers = order(lengths, replace(SHORT, max_steps=0, epochs=2.5, group_by_length=grouped))
        assert len(numbers) == 250
        assert sorted(numbers[:100]) == sorted(numbers[100:200]) == list(range(100))
        assert numbers[:100] != numbers[100:200]
    assert order(lengths, replace(SHORT, max_steps=3)) == order(lengths, SHORT)[:24]
    assert len(order(lengths, replace(SHORT, max_steps=30))) == 240


def test_rows_of_like_length_come_together_only_where_that_is_asked_for() -> None:
    """400 rows of lengths 0 to 399 in steps of 8: fifty steps are all of them, cut by length."""
    lengths = np.random.default_rng(0).permutation(400)
    grouped = lengths[order(lengths, replace(SHORT, max_steps=50, group_by_length=True))]
    steps = grouped.reshape(50, 8)
    assert (np.ptp(steps, axis=1) == 7).all()
    assert (steps[:, 0] != np.sort(steps[:, 0])).any()  # no march from short to long
    mixed = lengths[order(lengths, replace(SHORT, max_steps=50))].reshape(50, 8)
    assert np.ptp(mixed, axis=1).mean() > 200


def test_grouping_keeps_the_step_that_is_no_whole_one_for_the_end() -> None:
    numbers = order(np.arange(21), replace(SHORT, max_steps=0, epochs=1, group_by_length=True))
    assert sorted(numbers) == list(range(21))
    assert all(np.ptp(numbers[n : n + 8]) == 7 for n in (0, 8))


@pytest.mark.slow
def test_a_result_goes_into_quantize(rows: Path, student: Path, tmp_path: Path) -> None:
    train(replace(SHORT, max_steps=1), rows, tmp_path / "out", student)
    command = [sys.executable, "-m", "dstools", "quantize", tmp_path / "out", tmp_path / "fp8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "fp8" / "config.json").read_bytes())["quantization_config"]


@pytest.mark.parametrize("lora", [None, Lora(rank=2, targets=("o_proj",))])
def test_mtp_layers_are_carried_over_and_the_result_is_quantized_and_verified(
    lora: Lora | None, rows: Path, tmp_path: Path, mtp_is_carried_over: Callable[..., None]
) -> None:
    settings = replace(SHORT, max_steps=1, ema=0.5, lora=lora)
    report = train(settings, rows, tmp_path / "out", SAMPLE)
    for folder in (tmp_path / "out", tmp_path / "out" / "ema"):
        mtp_is_carried_over(report, SAMPLE, folder)
    for command in (["quantize", "out", "fp8"], ["verify", "fp8", "--source", "out"]):
        words = [str(tmp_path / word) if word in ("out", "fp8") else word for word in command]
        made = CliRunner().invoke(main, words)
        assert made.exit_code == 0, made.output


def test_mtp_layers_are_dropped_on_request_and_the_config_says_so(
    rows: Path, tmp_path: Path
) -> None:
    report = train(replace(SHORT, max_steps=1, mtp="drop"), rows, tmp_path / "out", SAMPLE)
    assert report["mtp_layers"] == "dropped"
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 201
    made = CliRunner().invoke(main, ["quantize", str(tmp_path / "out"), str(tmp_path / "fp8")])
    assert made.exit_code == 0, made.output


# -------------------------------------------------------------------------------- what it sees


def test_a_trainer_that_cuts_rows_is_refused(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cutting(SFTTrainer):
        def __init__(self, *args: Any, train_dataset: Any, **kwargs: Any) -> None:
            cut = train_dataset.map(
                lambda row: {k: v[:16] for k, v in row.items()}, keep_in_memory=True
            )
            super().__init__(*args, train_dataset=cut, **kwargs)

    monkeypatch.setattr(module, "SFTTrainer", Cutting)
    with pytest.raises(DstoolsError, match="differ in length"):
        train(SHORT, rows, tmp_path / "out")


@pytest.mark.parametrize("which", ["labels", "input_ids"])
def test_a_trainer_that_changes_a_token_of_a_batch_is_refused(
    which: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = DataCollatorForLanguageModeling.torch_call

    def changed(self: Any, examples: Any) -> Any:
        batch = collate(self, examples)
        batch[which][0, 7] = -100 if which == "labels" else 3 + batch[which][0, 7] % 7
        return batch

    monkeypatch.setattr(DataCollatorForLanguageModeling, "torch_call", changed)
    with pytest.raises(DstoolsError, match="first batch has a row that was not rendered"):
        train(SHORT, rows, tmp_path / "out")


def test_rows_that_a_student_has_no_positions_for_are_refused_unless_it_is_given_more(
    tmp_path: Path,
) -> None:
    rendered = write_rows(tmp_path / "rows", [*some_rows(7), ([5] * 200, [5] * 200)])
    with pytest.raises(DstoolsError, match="200 tokens, the student 128") as caught:
        train(SHORT, rendered, tmp_path / "out")
    assert "sft.context = 200" in caught.value.hint
    train(replace(SHORT, context=256, max_steps=1), rendered, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["max_position_embeddings"] == 256


def test_a_folder_without_usable_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"nowhere.rows\.arrow: cannot be read"):
        train(SHORT, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DstoolsError, match=r"rows\.arrow: holds no row"):
        train(SHORT, write_rows(tmp_path / "none", []), tmp_path / "out")
    uneven = write_rows(tmp_path / "uneven", [([5, 6, 7], [-100, 6])])
    with pytest.raises(DstoolsError, match="more ids than labels"):
        train(SHORT, uneven, tmp_path / "out")
    strange = [*some_rows(3), ([5, 6, 70_000, 7], [-100, 6, 70_000, 7])]
    with pytest.raises(DstoolsError, match="row 4 has token 70000, the student 319") as caught:
        train(SHORT, write_rows(tmp_path / "strange", strange), tmp_path / "out")
    assert "another tokenizer" in caught.value.hint
    (tmp_path / "none" / "rows.arrow").write_bytes(b"no arrow")
    with pytest.raises(DstoolsError, match="cannot be read"):
        train(SHORT, tmp_path / "none", tmp_path / "out")


# ---------------------------------------------------------------------------------------- packing


def test_packed_rows_give_the_loss_of_rows_apart(tmp_path: Path) -> None:
    """One step over all rows, so that the order does not matter."""
    rendered = write_rows(tmp_path / "rows", some_rows(16))
    apart = replace(SHORT, max_steps=1, batch_size=16, micro_batch_size=16)
    train(apart, rendered, tmp_path / "apart")
    bins = train(replace(apart, packing=True), rendered, tmp_path / "trial")["sequences"]
    packed = replace(apart, packing=True, batch_size=bins, micro_batch_size=bins)
    report = train(packed, rendered, tmp_path / "packed")
    assert report["sequences"] < report["in"] == 16
    a, b = (curve(tmp_path / name)[0] for name in ("apart", "packed"))
    assert a["tokens"] == b["tokens"]
    assert a["loss"] == pytest.approx(b["loss"], abs=5e-6)  # the same sum in another order
    assert set(files(tmp_path / "packed")) == set(files(tmp_path / "apart"))
    assert [path.name for path in rendered.iterdir()] == ["rows.arrow"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention_of_transformers_keeps_packed_rows_apart(
    attention: str, kind: str, precision: Any
) -> None:
    settings = replace(SHORT, attention=attention, precision=precision)
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    model = load_student(settings, None, INIT | {"model_type": kind}, tokenizer)
    check_isolation(model, model.config, model.dtype)


def leaky(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Causal, and blind to where a row begins."""
    mixed = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    return mixed.transpose(1, 2).contiguous(), None


def test_attention_that_lets_packed_rows_see_each_other_is_refused(
    rows: Path, tmp_path: Path
) -> None:
    AttentionInterface.register("leaky", leaky)
    with pytest.raises(DstoolsError, match="leaky attention lets rows") as caught:
        train(replace(SHORT, attention="leaky", packing=True), rows, tmp_path / "out")
    assert "packing = false" in caught.value.hint


# ------------------------------------------------------------------------------------------- LoRA


def test_lora_comes_out_merged_and_moves_its_targets_by_their_rank_alone(
    rows: Path, student: Path, tmp_path: Path
) -> None:
    lora = Lora(rank=3, alpha=12, targets=("q_proj", "down_proj"))
    report = train(replace(SHORT, lora=lora, ema=0.5), rows, tmp_path / "out", student)
    before = load_file(student / "model.safetensors")
    per_layer = 3 * (128 + 128) + 3 * (128 + 128)  # q_proj and down_proj, both 128 x 128
    assert report["trained_parameters"] == 2 * per_layer
    for folder in (tmp_path / "out", tmp_path / "out" / "ema"):
        after = load_file(folder / "model.safetensors")
        assert set(after) == set(before)
        for name, weight in after.items():
            change = (weight - before[name]).double()
            if "q_proj" in name or "down_proj" in name:
                # rounding of the sum leaves singular values of about eps x |weight| = 1e-8
                assert torch.linalg.matrix_rank(change, atol=1e-6) == 3
            else:
                assert torch.equal(weight, before[name]), name
        assert "adapter_config.json" not in files(folder)


# ----------------------------------------------------------------------------------------- resume


class Stopped(BaseException):
    """Stands for what ends a process."""


VARIANTS: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.9},
    "autocast": {"precision": "bf16-autocast", "activation_checkpointing": True},
    "bfloat16": {"precision": "bfloat16"},
    "lora": {"lora": Lora(rank=2, dropout=0.1), "ema": 0.9},
    "packing": {
        "packing": True,
        "micro_batch_size": 2,
        "batch_size": 4,
        "precision": "bf16-autocast",
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_stopped_ends_in_the_same_bytes(
    variant: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 5, it goes on from step 4, in the second epoch, in the middle of it.

    A checkpoint is asked for at step 3, and made where the losses until then are logged.
    """
    longer = replace(SHORT, max_steps=9, log_steps=2, save_steps=3, batch_size=16)
    settings = replace(longer, **VARIANTS[variant])
    train(settings, rows, tmp_path / "straight")
    at_end = checkpoints.Keeper.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        at_end(self, args, state, control, **given)
        if state.global_step == 5:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Keeper, "on_step_end", stop)
        with pytest.raises(Stopped):
            train(settings, rows, tmp_path / "stopped")
    assert [p.name for p in (tmp_path / "stopped" / "checkpoints").glob("checkpoint-*")] == [
        "checkpoint-4"
    ]
    seen = []

    def note(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        at_end(self, args, state, control, **given)
        seen.append(state.global_step)

    monkeypatch.setattr(checkpoints.Keeper, "on_step_end", note)
    report = train(settings, rows, tmp_path / "stopped")
    assert seen == [5, 6, 7, 8, 9]
    assert report["steps"] == 9
    assert files(tmp_path / "stopped") == files(tmp_path / "straight")


def test_a_stopped_run_of_a_student_with_experts_ends_in_the_same_bytes(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers saves experts one by one, and its Trainer does not fuse what it reads."""
    settings = replace(SHORT, max_steps=3, log_steps=1, save_steps=1, batch_size=8)
    train(settings, rows, tmp_path / "straight", SAMPLE)
    at_end = checkpoints.Keeper.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        at_end(self, args, state, control, **given)
        if state.global_step == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Keeper, "on_step_end", stop)
        with pytest.raises(Stopped):
            train(settings, rows, tmp_path / "stopped", SAMPLE)
    shutil.copytree(tmp_path / "stopped", tmp_path / "less")
    train(settings, rows, tmp_path / "stopped", SAMPLE)
    assert files(tmp_path / "stopped") == files(tmp_path / "straight")

    (last,) = (tmp_path / "less" / "checkpoints").glob("checkpoint-*")
    weights = load_file(last / "model.safetensors")
    fused = next(name for name in weights if name.endswith("experts.down_proj"))
    del weights[fused]
    save_file(weights, last / "model.safetensors", {"format": "pt"})
    with pytest.raises(DstoolsError, match=f"{last.name}: does not hold .* such as {fused}"):
        train(settings, rows, tmp_path / "less", SAMPLE)
