"""What was received once is not paid for again, whatever else has changed since."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import STAGES, Inputs
from dstools_distill.records import Record
from dstools_distill.store.stage import Report, Work, identify, no_bar, run_stage
from dstools_distill.teachers import generate as module
from dstools_distill.teachers.generate import generate
from dstools_distill.teachers.teacher import Answer, Ask, Failed, Missed, Outcome

TWO = Generate(backend="openai", model="r1", base_url="http://127.0.0.1:1/v1", samples=2)
ODD = {"choices": [{"message": {"content": [{"type": "poem", "poem": "roses"}]}}]}
UNREAD = Failed("answer not read", body=json.dumps(ODD))


def question(text: str, **more: Any) -> Record:
    messages = [{"role": "user", "content": text}]
    return {"id": records.prompt_id(messages, "here"), "messages": messages, **more}


ABC = [question("a?"), question("b?"), question("c?")]


class Teacher:
    """Answers with question and sample, and notes what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.says: Callable[[str, int], Outcome] = lambda text, sample: Answer(
            f"<think>why</think>{text}{sample}", "stop", False, {"completion_tokens": 3}
        )
        self.left = 99  # answers before it is killed
        self.revision = STAGES["generate"].revision

    def __call__(self, *_: Any) -> Any:
        def answers(asks: Iterator[Ask], done: Any) -> Iterator[tuple[int, Outcome]]:
            for ask in asks:
                if ask.number not in done:
                    if not self.left:
                        raise KeyboardInterrupt
                    self.left -= 1
                    asked = (ask.prompt["messages"][-1]["content"], ask.sample)
                    self.asked.append(asked)
                    yield ask.number, self.says(*asked)

        return answers

    def run(self, settings: Generate, prompts: list[Record]) -> tuple[Report, list[Record], Path]:
        """Run the stage as a recipe does; return its report, its records and its folder."""
        self.asked.clear()
        folder = self.folder / f"prompts-{len(prompts)}-{prompts[0].get('licence')}"
        folder.mkdir(exist_ok=True)
        records.write(folder / "records.jsonl", prompts)
        how = {key: value for key, value in vars(settings).items() if key not in HOW}
        identity = identify("generate", self.revision, how, {"prompts": folder}, ())
        inputs = Inputs(prompts=folder)
        done = run_stage(
            self.folder / "store",
            identity,
            lambda work: generate(settings, inputs, work),
            lambda at: Work(at, 1, no_bar),
        )
        return done.report, list(records.read(done.folder / "records.jsonl")), done.folder


HOW = STAGES["generate"].how


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    teacher = Teacher(tmp_path)
    monkeypatch.setattr(module, "_teacher", teacher)
    return teacher


@pytest.mark.parametrize("backend", ["openai", "openai-batch"])
def test_a_third_sample_asks_for_the_third_alone(backend: Any, teacher: Teacher) -> None:
    settings = replace(TWO, backend=backend)
    _, two, _ = teacher.run(settings, ABC)
    assert len(teacher.asked) == 6
    _, three, folder = teacher.run(replace(settings, samples=3), ABC)
    assert teacher.asked == [("a?", 2), ("b?", 2), ("c?", 2)]
    assert [record for record in three if record["sample"] < 2] == two
    assert [record["answer"] for record in three] == [
        f"{text}{sample}" for text in ("a?", "b?", "c?") for sample in range(3)
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "dropped.jsonl", "manifest.json", "records.jsonl", "timing.json"
    ]  # fmt: skip


def test_one_more_prompt_is_asked_alone_and_fewer_samples_ask_for_nothing(teacher: Teacher) -> None:
    teacher.run(TWO, ABC)
    teacher.run(TWO, [question("new?"), *ABC])
    assert teacher.asked == [("new?", 0), ("new?", 1)]
    _, written, _ = teacher.run(replace(TWO, samples=1), [question("new?"), *ABC])
    assert teacher.asked == []
    assert [record["answer"] for record in written] == ["new?0", "a?0", "b?0", "c?0"]


@pytest.mark.parametrize(
    "change",
    [{"model": "v3"}, {"temperature": 0.7}, {"top_p": 0.9}, {"max_tokens": 9}, {"seed": 7}],
)
def test_another_sampling_asks_for_all_of_it(change: dict[str, Any], teacher: Teacher) -> None:
    teacher.run(TWO, ABC)
    teacher.run(replace(TWO, **change), ABC)
    assert len(teacher.asked) == 6


def test_another_system_prompt_asks_for_all_of_it(teacher: Teacher) -> None:
    teacher.run(TWO, ABC)
    system = {"role": "system", "content": "Be brief."}
    briefed = [row | {"messages": [system, *row["messages"]], "licence": "2"} for row in ABC]
    teacher.run(TWO, briefed)
    assert len(teacher.asked) == 6


def test_a_licence_that_is_learned_later_is_written_and_asks_for_nothing(teacher: Teacher) -> None:
    teacher.run(TWO, ABC)
    licensed = [row | {"licence": "mit"} for row in ABC]
    _, written, _ = teacher.run(replace(TWO, licence="apache-2.0"), licensed)
    assert teacher.asked == []
    assert {record["licence"] for record in written} == {"mit"}


def test_samples_of_a_killed_run_are_used_by_one_that_asks_for_more(teacher: Teacher) -> None:
    teacher.left = 3
    with pytest.raises(KeyboardInterrupt):
        teacher.run(TWO, ABC)
    teacher.left = 2  # the second run is killed, too
    with pytest.raises(KeyboardInterrupt):
        teacher.run(replace(TWO, samples=3), ABC)
    assert teacher.asked == [("a?", 2), ("b?", 1)]
    teacher.left = 99
    _, written, _ = teacher.run(replace(TWO, samples=3), ABC)
    assert teacher.asked == [("b?", 2), ("c?", 0), ("c?", 1), ("c?", 2)]
    assert [record["answer"][:2] for record in written] == ["a?"] * 3 + ["b?"] * 3 + ["c?"] * 3


def test_what_was_used_again_is_found_where_it_was_copied_to(teacher: Teacher) -> None:
    _, _, folder = teacher.run(TWO, ABC)
    teacher.left = 1
    with pytest.raises(KeyboardInterrupt):
        teacher.run(replace(TWO, samples=3), ABC)
    shutil.rmtree(folder)
    teacher.left = 99
    teacher.run(replace(TWO, samples=4), ABC)
    assert teacher.asked == [("a?", 3), ("b?", 2), ("b?", 3), ("c?", 2), ("c?", 3)]


@pytest.mark.parametrize("left", [6, 4])
def test_answers_of_an_earlier_revision_are_used_without_the_token_that_ends_them(
    left: int, teacher: Teacher
) -> None:
    """Revision 3 kept the token, in the records of a finished run as in the log of a killed one."""
    answers, teacher.revision, teacher.left = teacher.says, 3, left
    teacher.says = lambda *asked: Answer(f"{asked[0]}{asked[1]}<|im_end|>", "stop", False, None)
    with pytest.raises(KeyboardInterrupt) if left < 6 else nullcontext():
        teacher.run(TWO, ABC)
    teacher.says, teacher.revision, teacher.left = answers, STAGES["generate"].revision, 99
    report, written, _ = teacher.run(TWO, ABC)
    assert len(teacher.asked) == 6 - left
    assert report["end_tokens_cut"] == {"<|im_end|>": left}
    assert [record["answer"] for record in written] == ["a?0", "a?1", "b?0", "b?1", "c?0", "c?1"]


def test_a_log_that_is_torn_in_its_last_line_gives_the_others(teacher: Teacher) -> None:
    teacher.left = 4
    with pytest.raises(KeyboardInterrupt):
        teacher.run(TWO, ABC)
    (log,) = teacher.folder.glob("store/generate-*.incomplete/samples.jsonl")
    log.write_bytes(log.read_bytes()[:-9])
    teacher.left = 99
    teacher.run(replace(TWO, samples=3), ABC)
    assert len(teacher.asked) == 6


def test_what_was_missed_is_asked_again_and_what_was_not_read_once_it_can_be(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, losses = teacher.says, {("a?", 0): Missed("time-out"), ("b?", 1): UNREAD}
    teacher.says = lambda *asked: losses.get(asked) or answers(*asked)
    lossy = replace(TWO, max_failed=0.5)
    assert teacher.run(lossy, ABC)[0]["out"] == 4
    teacher.run(replace(lossy, licence="mit"), ABC)
    assert teacher.asked == [("a?", 0), ("b?", 1)]  # neither is known to come again
    teacher.says = answers
    with monkeypatch.context() as mended:  # by a later version, which reads such parts
        mended.setattr(records, "message_parts", lambda content: (None, str(content)))
        _, written, _ = teacher.run(replace(TWO, samples=3), ABC)
    assert teacher.asked == [("a?", 0), ("a?", 2), ("b?", 2), ("c?", 2)]
    assert "roses" in written[4]["raw"]


def test_a_stage_that_was_changed_by_hand_is_named_before_anything_is_paid_for(
    teacher: Teacher,
) -> None:
    _, _, folder = teacher.run(TWO, ABC)
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(DstoolsError, match="was changed after generate wrote it"):
        teacher.run(replace(TWO, samples=3), ABC)
    assert teacher.asked == []


def test_samples_of_other_backends_and_of_unknown_settings_are_not_taken(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in this process draws by place; what a later version asked for is not known."""
    teacher.run(replace(TWO, backend="hf"), ABC)
    _, _, later = teacher.run(replace(TWO, samples=1, seed=99), ABC)
    manifest = json.loads((later / "manifest.json").read_text())
    manifest["settings"] |= {"seed": 0, "top_k": 5}
    (later / "manifest.json").write_text(json.dumps(manifest))
    teacher.run(TWO, ABC)
    assert len(teacher.asked) == 6


def test_the_report_is_the_same_whatever_was_reused_and_after_a_kill_at_the_end(
    teacher: Teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = replace(TWO, samples=3)
    teacher.run(TWO, ABC)
    with caplog.at_level("INFO"):
        report, _, folder = teacher.run(three, ABC)
    assert "6 samples of 9 are answers to earlier runs" in caplog.text
    other = Teacher(tmp_path / "other")
    other.folder.mkdir()
    assert other.run(three, ABC)[0] == report
    (folder / "samples.jsonl").touch()  # killed before the log was removed
    for _ in range(2):
        assert (
            generate(three, Inputs(prompts=teacher.folder / "prompts-3-None"), Work(folder))
            == report
        )
    assert not (folder / "samples.jsonl").exists()
