"""Benchmark of `sft` against plain TRL and a bare loop on the same rows.

    python scripts/bench_sft.py --steps 40 --rounds 3
    python scripts/bench_sft.py --steps 40 --rounds 2 --device cuda

cpu: one thread, a Llama of 0.4M weights, rows of some 80 tokens, batches of 32, float32. cuda: 0.5B
weights with the dimensions of Qwen2.5-0.5B, rows of some 2,500 tokens, batches of 4, bf16-autocast.
The three train in turn, each in its own process. Only training is timed, from the first batch to
the last: CPU time, or wall time with a GPU.
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
from typing import Any, NamedTuple

import torch

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "sample-v3"


class Size(NamedTuple):
    """The size of a training run."""

    batch: int
    tokens: tuple[int, int]  # of a row
    precision: str
    learning_rate: float
    init: dict[str, Any]


LLAMA = {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True}
TINY_INIT = LLAMA | {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
HALF_B_INIT = LLAMA | {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "max_position_embeddings": 4096,
}
TINY = Size(32, (40, 120), "float32", 1e-3, TINY_INIT)
HALF_B = Size(4, (1000, 4000), "bf16-autocast", 1e-5, HALF_B_INIT)
SIZES = {"cpu": TINY, "cuda": HALF_B}


def main() -> None:
    """Time the three in turn; print tokens a second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="at least 10: TRL logs every tenth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--one", choices=("ours", "trl", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    if args.one:
        train = {"ours": ours, "trl": trl, "bare": bare}[args.one]
        result = train(args.folder, args.steps, SIZES[args.device])
        (args.folder / "result.json").write_text(json.dumps(result))
        return
    speeds: dict[str, list[float]] = {"trl": [], "ours": [], "bare": []}
    last_losses = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows", SIZES[args.device], args.steps)
        for _ in range(args.rounds):
            for which in speeds:
                words = ["--one", which, "--folder", name, "--steps", str(args.steps)]
                env = os.environ | {"HF_HUB_OFFLINE": "1"}
                if args.device == "cpu":
                    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
                command = [sys.executable, __file__, *words, "--device", args.device]
                subprocess.run(command, check=True, env=env)
                result = json.loads((folder / "result.json").read_text())
                speeds[which].append(result["tokens"] / result["seconds"])
                last_losses[which] = result["loss"]
    best = {which: max(rounds) for which, rounds in speeds.items()}
    unit = "tokens/CPU-s" if args.device == "cpu" else "tokens/s"
    for which, rounds in speeds.items():
        rest = "  ".join(f"{speed:,.0f}" for speed in rounds)
        print(f"{which:5}{best[which]:9,.0f} {unit}   loss {last_losses[which]:.6f}   ({rest})")
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["trl"], strict=True)]
    median = statistics.median(ratios)
    print(f"ours / trl   best {best['ours'] / best['trl']:.3f}, median {median:.3f}")
    print(f"ours / bare  best {best['ours'] / best['bare']:.3f}")
    if args.device == "cuda":
        print_limit(best["ours"], result["weights"])


def print_limit(tokens_per_second: float, weights: int) -> None:
    """Print the speed of a large bfloat16 matmul, and the share of it that training reaches."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for repeats in (3, 20):  # the first ones to warm up
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
    limit = repeats * 2 * 8192**3 / (time.perf_counter() - started)
    used = 6 * weights * tokens_per_second
    print(
        f"{torch.cuda.get_device_name()}: bf16 matmul {limit / 1e12:.0f} TFLOP/s; "
        f"6 x weights x tokens/s is {used / limit:.1%} of it"
    )


def write_rows(folder: Path, size: Size, steps: int) -> None:
    """Write rows of random ids as `render` does; the last two thirds are targets."""
    import pyarrow as pa

    folder.mkdir()
    draw = random.Random(0)
    count, vocabulary = size.batch * steps, size.init.get("vocab_size", 300)
    ids = [
        [draw.randrange(3, vocabulary) for _ in range(draw.randint(*size.tokens))]
        for _ in range(count)
    ]
    labels = [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]
    kind = pa.list_(pa.int32())
    columns = [[str(n) for n in range(count)], pa.array(ids, kind), pa.array(labels, kind)]
    table = pa.table(columns, names=["id", "input_ids", "labels"])
    with pa.ipc.new_stream(str(folder / "rows.arrow"), table.schema) as stream:
        stream.write_table(table)


def count_tokens(folder: Path) -> int:
    """Return the tokens of all rows."""
    from datasets import Dataset

    return sum(map(len, Dataset.from_file(str(folder / "rows" / "rows.arrow"))["input_ids"]))


def clock() -> float:
    """Return CPU seconds, or wall time once the GPU has finished."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def timed_training() -> Any:
    """Yield a dict that gets seconds and last loss of SFTTrainer.train, and the weight count."""
    from trl.trainer.sft_trainer import SFTTrainer

    figures: dict[str, float] = {}
    train = SFTTrainer.train

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = clock()
        result = train(self, *args, **kwargs)
        figures["seconds"] = clock() - started
        figures["loss"] = next(x["loss"] for x in reversed(self.state.log_history) if "loss" in x)
        figures["weights"] = sum(weight.numel() for weight in self.model.parameters())
        return result

    SFTTrainer.train = timed  # type: ignore[method-assign, assignment]
    yield figures


def settings(steps: int, size: Size) -> Any:
    """Return the settings of the run."""
    from dstools_distill.recipe.settings import Sft

    return Sft(
        learning_rate=size.learning_rate,
        batch_size=size.batch,
        micro_batch_size=size.batch,
        precision=size.precision,
        max_steps=steps,
        save_steps=10**6,
    )


def ours(folder: Path, steps: int, size: Size) -> dict[str, float]:
    """Run the stage."""
    from dstools_distill.recipe.stages import Inputs
    from dstools_distill.store.stage import Work
    from dstools_distill.training.sft import sft

    work = Work(Path(tempfile.mkdtemp(dir=folder)))
    with timed_training() as figures:
        inputs = Inputs(rows=folder / "rows", init=size.init, tokenizer=SAMPLE)
        sft(settings(steps, size), inputs, work)
    return {"tokens": count_tokens(folder), **figures}


def trl(folder: Path, steps: int, size: Size) -> dict[str, float]:
    """Run SFTTrainer as a user of TRL would, with the same configuration."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    recipe = settings(steps, size)
    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    set_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(config_of(size), attn_implementation="sdpa")
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.min_learning_rate_ratio},
        max_steps=steps,
        per_device_train_batch_size=size.batch,
        optim=recipe.optimizer,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.max_grad_norm,
        bf16=size.precision == "bf16-autocast",
        activation_checkpointing=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=not on_gpu,
        save_strategy="no",
        report_to="none",
        max_length=None,
        dataloader_pin_memory=on_gpu,
    )
    rows = Dataset.from_file(str(folder / "rows" / "rows.arrow"))
    with timed_training() as figures:
        trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    return {"tokens": count_tokens(folder), **figures}


def config_of(size: Size) -> Any:
    """Return the model config that `sft` makes of `size.init`."""
    from transformers import AutoConfig, AutoTokenizer

    known = {"vocab_size": len(AutoTokenizer.from_pretrained(SAMPLE))} | size.init
    return AutoConfig.for_model(**known, bos_token_id=0, eos_token_id=1, pad_token_id=2)


def bare(folder: Path, steps: int, size: Size) -> dict[str, float]:
    """Run a bare loop: no trainer, no log, no metric."""
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, set_seed

    recipe = settings(steps, size)
    set_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_config(config_of(size), attn_implementation="sdpa")
    model.train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, recipe.betas, weight_decay=0.0, fused=True
    )
    rows = Dataset.from_file(str(folder / "rows" / "rows.arrow"))[:]
    order = torch.randperm(len(rows["id"])).split(size.batch)
    started = clock()
    for chosen in order[:steps]:
        ids, labels = (
            [torch.tensor(rows[name][n]) for n in chosen.tolist()]
            for name in ("input_ids", "labels")
        )
        padded = pad_sequence(ids, batch_first=True, padding_value=2).to(device)
        seen = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
        wanted = pad_sequence(labels, batch_first=True, padding_value=-100).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=size.precision == "bf16-autocast"):
            out = model(input_ids=padded, attention_mask=seen, labels=wanted, use_cache=False)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "tokens": count_tokens(folder),
        "seconds": clock() - started,
        "loss": out.loss.item(),
        "weights": sum(weight.numel() for weight in model.parameters()),
    }


if __name__ == "__main__":
    main()
