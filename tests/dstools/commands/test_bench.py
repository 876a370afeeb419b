"""`dstools bench`: figures that belong together, and one error where it cannot run."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from dstools import machine
from dstools.commands import bench as module
from dstools.commands.bench import measure
from dstools_converters.errors import DstoolsError
from dstools_converters.runtime.decode import Counts, Piece, Request
from dstools_converters.runtime.sampling import Sampling

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("one_thread")


def figures(ok: Run, *words: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(ok("bench", *words, "--json").stdout)
    return result


@pytest.mark.parametrize("drafts", [(), ("--mtp",)])
def test_the_loop_gives_the_ids_of_the_graph_alone(
    drafts: tuple[str, ...], ok: Run, exported_sample: Path
) -> None:
    words = ("--prompt-tokens", "70", "--max-tokens", "20", "--batch", "3", "--plain", *drafts)
    found = figures(ok, exported_sample, *words)
    assert found["same_ids"] is True
    assert (found["batch"], found["prompt_tokens"], found["tokens"]) == (3, 70, 20)
    assert 0 < found["first_seconds"] < found["seconds"]
    assert found["plain_tokens_per_second"] > 0
    # 4 or 5 layers x (128 + 64) x 4 bytes
    assert found["cache_bytes_per_token"] == (5 if drafts else 4) * 768
    assert found["peak_bytes"] > found["weight_bytes"] > 14e6
    if drafts:
        assert found["tokens_per_step"] > 3
        assert found["drafted"][0] >= found["kept"][0] > 0
    else:
        assert found["tokens_per_step"] == 3
        assert found["drafted"] == found["kept"] == []


@pytest.mark.parametrize("drafts", [(), ("--mtp",)])
def test_the_engine_of_genai_is_timed_on_as_many_tokens(
    drafts: tuple[str, ...], ok: Run, exported_sample: Path
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai")
    words = ("--prompt-tokens", "70", "--max-tokens", "200", "--batch", "3", *drafts)
    found = figures(ok, exported_sample, *words, "--engine", "genai")
    assert ", onnxruntime-genai " in found["runs_in"]
    assert (found["batch"], found["tokens"], found["same_ids"]) == (3, 200, None)
    assert found["tokens_per_step"] > 2.9  # no token ends an answer
    assert len(found["kept"]) == len(found["drafted"]) == len(drafts)


def test_genai_has_no_steps_to_time(dstools: Run, exported_sample: Path) -> None:
    result = dstools("bench", exported_sample, "--plain", "--engine", "genai")
    assert result.exit_code == 2
    assert "leave out --engine genai" in result.stderr


def test_text_has_a_line_for_each_figure(ok: Run, exported_sample: Path) -> None:
    words = ("--prompt-tokens", "5", "--max-tokens", "3", "--mtp", "--plain")
    lines = ok("bench", exported_sample, *words).stdout.splitlines()
    assert lines[0].startswith(f"{exported_sample}: 14.86 MB in float32 on cpu, ONNX Runtime ")
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["batch", "load", "first", "then", "plain", "drafts", "cache", "memory"]
    assert "1 prompt of 5 tokens, answers of 3" in lines[1]


def test_an_answer_of_one_token_has_no_speed(ok: Run, exported_sample: Path) -> None:
    found = figures(ok, exported_sample, "--prompt-tokens", "3", "--max-tokens", "1", "--plain")
    assert found["tokens_per_second"] is found["plain_tokens_per_second"] is None
    assert found["same_ids"] is True


class Scripted:
    """Pieces as they are given, of steps that take the seconds that are given."""

    sampling = Sampling()

    def __init__(self, steps: list[tuple[float, list[Piece]]], clock: list[float]) -> None:
        self.steps, self.clock, self.counts = steps, clock, Counts()

    def run(self, requests: Sequence[Request]) -> Iterator[Piece]:
        for seconds, pieces in self.steps:
            self.clock[0] += seconds
            self.counts.steps += 1
            yield from pieces


def test_times_are_those_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    steps = [
        (2.0, [Piece(0, [5], None)]),
        (1.0, []),  # of a long prompt
        (3.0, [Piece(1, [6], None)]),
        (0.5, [Piece(0, [7, 8], None), Piece(1, [9], None)]),
        (0.5, [Piece(0, [7], "length"), Piece(1, [9, 9], "length")]),
    ]
    times = measure(Scripted(steps, clock), [Request(0, [1], 4), Request(1, [1], 4)], "OUT")
    assert times.ids == [[5, 7, 8, 7], [6, 9, 9, 9]]
    assert times.seconds == 7
    assert times.first_seconds == (2 + 6) / 2
    assert times.tokens_per_second == 6 / 1  # after the second answer's first token
    assert times.tokens_per_step == 6 / 2


def test_logits_that_are_not_finite_end_it() -> None:
    with pytest.raises(DstoolsError, match="OUT: the logits are not finite") as caught:
        measure(Scripted([(1, [Piece(0, [], "error")])], [0]), [Request(0, [1], 4)], "OUT")
    assert "dstools verify OUT" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--batch", "5"), "is made for 4", "--batch 4, or export it with --max-batch 5"),
        (("--prompt-tokens", "500"), "is made for 512 together", "--max-tokens smaller"),
    ],
)
def test_what_the_folder_is_not_made_for_is_refused(
    words: tuple[str, ...], message: str, hint: str, dstools: Run, exported_sample: Path
) -> None:
    result = dstools("bench", exported_sample, *words)
    assert result.exit_code == 1
    error, advice = result.stderr.splitlines()
    assert message in error
    assert hint in advice


def test_a_checkpoint_is_not_benched(dstools: Run) -> None:
    error, hint = dstools("bench", SAMPLE).stderr.splitlines()
    assert error == f"error: {SAMPLE}: is not an exported folder"
    assert hint == f"hint: export it first: dstools export {SAMPLE} OUT --onnx"


def test_short_memory_is_named_before_a_graph_is_opened(
    dstools: Run, exported_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, 15_000_000, None))
    error, hint = dstools("bench", exported_sample).stderr.splitlines()
    assert "the weights take 14.86 MB, a cache of 192 tokens 589.8 kB and a step " in error
    assert "--batch or --prompt-tokens" in hint
