"""scripts/bench_export.py: what is compared with what, and which figures miss a bar."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

EXPORT = {"3": {"peak_rss_mib": 540, "times_cp": 2.0}, "6": {"peak_rss_mib": 545, "times_cp": 1.5}}
STEPS = {
    "sample-v3": {
        "model": {"times_64_pages": 1.0},
        "rows": {"times_16_rows": 2.7},
        "chunk": {"times_apart": 1.0},
    }
}
MEMORY = {"times_needed": 1.1}
BENCH = {"times_plain": 1.05}


@pytest.fixture
def script(load_script: Any) -> Any:
    return load_script("bench_export")


class Recorder:
    """A session that notes the sizes of the batches that it gets."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def step(self, batch: Any, rows: torch.Tensor) -> None:
        assert batch.block_table.max() < 8192
        taken = batch.block_table[batch.block_table >= 0].tolist()
        assert len(set(taken)) == len(taken)  # no page twice
        assert rows.tolist() == (batch.cumulative_sequence_lengths[1:] - 1).tolist()
        past = int(batch.past_sequence_lengths.sum())
        self.asked.append((len(batch.input_ids), len(rows), past))


def test_rows_and_chunks_run_in_turn_and_are_compared_with_their_parts(script: Any) -> None:
    session = Recorder()
    figures = script.measure_batches(session, 2)
    kinds = [(16, 16, 3200), (64, 64, 12800), (63, 63, 12600), (256, 1, 0), (319, 64, 12600)]
    assert session.asked == kinds * 3  # one round that is not counted
    rows, chunk = figures["rows"], figures["chunk"]
    assert rows["times_16_rows"] == pytest.approx(rows["ms_64"] / rows["ms_16"], abs=0.1)
    apart = chunk["ms_chunk"] + chunk["ms_63_rows"]
    assert chunk["times_apart"] == pytest.approx(chunk["ms_both"] / apart, abs=0.1)


def test_the_least_time_counts_and_the_first_call_does_not(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [0.0, 0.0]
    ticks = iter([*first, 0.0, 0.005, 0.0, 4.0, 0.0, 0.002, 0.0, 3.5])
    clock = SimpleNamespace(process_time=lambda: next(ticks))  # pytest reads the other one
    monkeypatch.setattr(script, "time", clock)
    best = script.best_of({"a": lambda: None, "b": lambda: None}, 2)
    assert best == {"a": 2.0, "b": 3500.0}


def test_a_folder_is_compared_with_a_copy_of_it_and_with_its_fixed_share(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, ran = tmp_path / "in", tmp_path / "out", []
    source.mkdir()
    (source / "a").write_bytes(b"12345678")

    def run(command: list[str]) -> tuple[float, float, float]:
        kind = next((word for word in ("fixed", "export") if word in command), "cp")
        assert kind != "cp" or f"cp -r '{out}' " in command[-1]
        ran.append(kind)
        if kind == "export":
            out.mkdir()
            (out / "b").write_bytes(b"1234")
        seconds = {"fixed": 6.0, "export": 10.0, "cp": 2.0}[kind] + len(ran)
        return seconds, seconds / 2, 500.0 + len(ran)

    monkeypatch.setattr(script, "run", run)
    figures = script.measure_export(source, out, 2)
    assert ran == ["fixed", "export", "cp"] * 2
    assert figures["fixed_seconds"] == {"best": 7.0, "cpu": 3.5}
    assert figures["times_cp"] == 1.0  # (12 - 7) / 5
    assert figures["times_cp_cpu"] == 1.0
    assert figures["times_cp_with_fixed"] == 2.4  # 12 / 5
    assert figures["peak_rss_mib"] == 505
    assert out.exists()


def test_the_loop_is_compared_with_the_graph_alone(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([(80.0, 90.0), (100.0, 104.0)])

    def result_of(command: list[str]) -> dict[str, float]:
        assert {"bench", str(tmp_path), "--plain", "--json"} <= set(command)
        return dict(zip(("tokens_per_second", "plain_tokens_per_second"), next(said), strict=True))

    monkeypatch.setattr(script, "result_of", result_of)
    assert script.measure_bench(tmp_path, 2) == {
        "tokens_per_second": 100,
        "plain_tokens_per_second": 104,
        "times_plain": 1.04,
    }


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("export 6 peak_rss_mib", 701),
        ("memory times_needed", 1.3),
        ("bench times_plain", 1.2),
        ("steps sample-v3 model times_64_pages", 1.6),
        ("steps sample-v3 rows times_16_rows", 5.1),
        ("steps sample-v3 chunk times_apart", 1.51),
    ],
)
def test_a_missed_bar_is_named_and_exits_with_3(
    place: str,
    value: float,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = deepcopy({"export": EXPORT, "memory": MEMORY, "steps": STEPS, "bench": BENCH})
    monkeypatch.setattr(script, "measure", lambda *how: figures)
    monkeypatch.setattr(script.sys, "argv", ["bench_export.py"])
    script.main()
    assert json.loads(capsys.readouterr().out)["steps"] == STEPS
    *path, name = place.split()
    table = figures
    for key in path:
        table = table[key]
    table[name] = value
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 3
    bar = script.BARS[name]
    said = capsys.readouterr().err
    assert said == f"{', '.join(path)}, {name}: {value}, and the bar is {bar}\n"


def test_every_part_can_be_asked_for(script: Any, tmp_path: Path) -> None:
    parts: dict[str, Callable[..., Any]] = script.PARTS
    for name in parts:
        command = script.part(name, tmp_path, 3)
        assert command[1:] == [script.__file__, "--part", name, str(tmp_path), "3"]
