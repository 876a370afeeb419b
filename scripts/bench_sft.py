"""Print how fast `sft` trains, against plain TRL and a bare loop on the same rows and one CPU thread.

    python scripts/bench_sft.py --steps 40 --rounds 3

A Qwen2 of 0.4M weights, rows of some 80 tokens, batches of 32, float32. Each of the three trains in turn, in a
process of its own; counted is the CPU time of the training alone, from the first batch to the last.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "sample-v3"
BATCH = 32
INIT = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Time the three in turn and print tokens per CPU second, and ours against the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("ours", "trl", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        result = {"ours": ours, "trl": trl, "bare": bare}[given.one](given.folder, given.steps)
        (given.folder / "result.json").write_text(json.dumps(result))
        return
    speeds: dict[str, list[float]] = {"trl": [], "ours": [], "bare": []}
    last_losses = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows", BATCH * given.steps)
        for _ in range(given.rounds):
            for which in speeds:
                asked = ["--one", which, "--folder", name, "--steps", str(given.steps)]
                subprocess.run(
                    [sys.executable, __file__, *asked],
                    check=True,
                    env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                )
                result = json.loads((folder / "result.json").read_text())
                speeds[which].append(result["tokens"] / result["seconds"])
                last_losses[which] = result["loss"]
    best = {which: max(found) for which, found in speeds.items()}
    for which, found in speeds.items():
        rest = "  ".join(f"{speed:,.0f}" for speed in found)
        print(
            f"{which:5}{best[which]:9,.0f} tokens/CPU-s   loss {last_losses[which]:.6f}   ({rest})"
        )
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["trl"], strict=True)]
    print(
        f"ours / trl   best {best['ours'] / best['trl']:.3f}, median {statistics.median(ratios):.3f}"
    )
    print(f"ours / bare  best {best['ours'] / best['bare']:.3f}")


def write_rows(folder: Path, count: int) -> None:
    """Write rows as `render` does, of 40 to 120 random ids, the last two thirds of them targets."""
    import pyarrow as pa

    folder.mkdir()
    draw = random.Random(0)
    ids = [[draw.randrange(3, 300) for _ in range(draw.randrange(40, 121))] for _ in range(count)]
    labels = [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]
    kind = pa.list_(pa.int32())
    table = pa.table(
        {
            "id": [str(n) for n in range(count)],
            "input_ids": pa.array(ids, kind),
            "labels": pa.array(labels, kind),
        }
    )
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)


def count_tokens(folder: Path) -> int:
    """Return the tokens of all rows."""
    from datasets import Dataset

    return sum(map(len, Dataset.from_file(str(folder / "rows" / "rows.arrow"))["input_ids"]))


@contextmanager
def timed_training() -> Any:
    """Yield a dict that gets the CPU seconds of SFTTrainer.train."""
    from trl.trainer.sft_trainer import SFTTrainer

    found: dict[str, float] = {}
    train = SFTTrainer.train

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = train(self, *args, **kwargs)
        found["seconds"] = time.process_time() - started
        found["loss"] = next(x["loss"] for x in reversed(self.state.log_history) if "loss" in x)
        return result

    SFTTrainer.train = timed  # type: ignore[method-assign, assignment]
    yield found


def settings(steps: int) -> Any:
    """Return the settings of the run."""
    from dstools_distill.settings import Sft

    return Sft(
        learning_rate=1e-3, batch_size=BATCH, micro_batch_size=BATCH, precision="float32",
        max_steps=steps, save_steps=10**6,
    )  # fmt: skip


def ours(folder: Path, steps: int) -> dict[str, float]:
    """Run the stage as it is."""

    from dstools_distill.sft import sft
    from dstools_distill.stage import Work

    out = Path(tempfile.mkdtemp(dir=folder))
    work = Work(out)
    with timed_training() as found:
        sft(settings(steps), folder / "rows", None, INIT, SAMPLE, "", work)
    return {"tokens": count_tokens(folder), **found}


def trl(folder: Path, steps: int) -> dict[str, float]:
    """Run what a user of TRL would write, with the same configuration."""
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    asked = settings(steps)
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    set_seed(asked.seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            **INIT, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2
        ),
        attn_implementation="sdpa",
    )
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        learning_rate=asked.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": asked.min_learning_rate_ratio},
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        optim=asked.optimizer,
        adam_beta1=asked.betas[0],
        adam_beta2=asked.betas[1],
        max_grad_norm=asked.max_grad_norm,
        bf16=False,
        activation_checkpointing=False,
        seed=asked.seed,
        data_seed=asked.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        max_length=None,
        dataloader_pin_memory=False,
    )
    rows = Dataset.from_file(str(folder / "rows" / "rows.arrow"))
    with timed_training() as found:
        trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    return {"tokens": count_tokens(folder), **found}


def bare(folder: Path, steps: int) -> dict[str, float]:
    """Run a loop with nothing around it: no trainer, no log, no metric."""
    import torch
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    asked = settings(steps)
    set_seed(asked.seed)
    config = AutoConfig.for_model(
        **INIT, vocab_size=len(AutoTokenizer.from_pretrained(SAMPLE)), pad_token_id=2
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(
        model.parameters(), asked.learning_rate, asked.betas, weight_decay=0.0, fused=True
    )
    rows = Dataset.from_file(str(folder / "rows" / "rows.arrow"))[:]
    order = torch.randperm(len(rows["id"])).split(BATCH)
    started = time.process_time()
    for chosen in order[:steps]:
        ids, labels = (
            [torch.tensor(rows[name][n]) for n in chosen.tolist()]
            for name in ("input_ids", "labels")
        )
        padded = pad_sequence(ids, batch_first=True, padding_value=2)
        seen = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        wanted = pad_sequence(labels, batch_first=True, padding_value=-100)
        loss = model(input_ids=padded, attention_mask=seen, labels=wanted, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "tokens": count_tokens(folder),
        "seconds": time.process_time() - started,
        "loss": loss.item(),
    }


if __name__ == "__main__":
    main()
