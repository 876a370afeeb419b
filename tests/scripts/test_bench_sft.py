"""scripts/bench_sft.py: the three trainers are timed on the same rows."""

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_ten_steps_print_speeds_losses_and_ratios(run_script: Any) -> None:
    done = run_script("bench_sft", "--steps", 10, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match("trl|ours|bare", line)]
    assert [line.split()[0] for line in lines] == ["trl", "ours", "bare", "ours", "ours"]
    speeds = {line[:5].strip(): float(line[5:14].replace(",", "")) for line in lines[:3]}
    ratio = float(re.search(r"ours / trl   best ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    # speeds are printed as integers, ratios with three digits
    assert ratio == pytest.approx(speeds["ours"] / speeds["trl"], rel=1e-2)
    losses = {line.split("loss ")[1].split()[0] for line in lines[:2]}
    assert len(losses) == 1  # ours and TRL's: the same rows in the same order


def test_the_rows_are_those_that_sft_reads(load_script: Any, tmp_path: Path) -> None:
    import pyarrow as pa

    script = load_script("bench_sft")
    size = script.TINY
    script.write_rows(tmp_path / "rows", size, steps=2)
    with pa.OSFile(str(tmp_path / "rows" / "rows.arrow")) as file:
        rows = pa.ipc.open_stream(file).read_all().to_pylist()
    assert len(rows) == 2 * size.batch
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        assert size.tokens[0] <= len(ids) <= size.tokens[1]
        prompt = len(ids) // 3
        assert labels == [-100] * prompt + ids[prompt:]
    assert script.count_tokens(tmp_path) == sum(len(row["input_ids"]) for row in rows)


def test_without_a_gpu_it_refuses_to_measure_one(run_script: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    done = run_script("bench_sft", "--device", "cuda")
    assert done.returncode == 2
    assert "torch finds no CUDA device" in done.stderr
