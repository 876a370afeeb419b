"""`dstools distill` as a whole: a recipe from prompts to a card, reused, resumed, refused."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools.commands.distill import _summary
from dstools_distill.recipe.stages import STAGES
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.teacher import Answer, Ask, Outcomes

DATA = Path(__file__).parents[2] / "data"
RECIPE = """
[[prompts.source]]
path = "solved.jsonl"
licence = "apache-2.0"

[generate]
backend = "replay"

[verify]
[decontaminate]
[select]

[student]
tokenizer = "{tokenizer}"
[student.init]
model_type = "qwen3"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 16
max_position_embeddings = 256

[render]
max_length = 200

[sft]
max_steps = 2
batch_size = 8
micro_batch_size = 8
precision = "float32"
log_steps = 1

[[eval.source]]
path = "held-out.jsonl"

[eval]
max_tokens = 4
precision = "float32"

[card]
name = "mini"
"""


def dstools(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["distill", *map(str, args)])


def conversations(name: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Conversations of the sample model's data with their golds."""
    lines = (DATA / f"sample-v3-{name}.jsonl").read_text().splitlines()[start : start + count]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["answer"] = row["messages"][-1]["content"].rpartition("\n\n")[2]
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its data: 40 solved sums, one asked twice, one wrong, one of the exam."""
    folder = tmp_path_factory.mktemp("recipe")
    solved, exam = conversations("calibration", 40), conversations("heldout", 60)
    wrong = conversations("calibration", 1, start=50)[0]
    wrong["answer"] = "1" + wrong["answer"]
    write(folder / "solved.jsonl", [*solved, solved[3], wrong, exam[5]])
    write(folder / "held-out.jsonl", exam)
    path = folder / "mini.toml"
    path.write_text(RECIPE.format(tokenizer=DATA / "sample-v3"))
    return path


@pytest.fixture(scope="module")
def ran(recipe: Path) -> Result:
    result = dstools("run", recipe, "--workers", "1")
    assert result.exit_code == 0, result.output
    return result


def report(recipe: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (recipe.with_suffix("") / stage / "manifest.json").read_text()
    )
    return found


def test_a_recipe_runs_from_prompts_to_a_card_and_tells_what_was_lost_where(
    recipe: Path, ran: Result
) -> None:
    """43 rows; one is asked twice, one is in the exam, one is wrong: 40 are rendered."""
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in ran.stdout.splitlines()}
    assert lines["prompts"] == "43 -> 42, 1 duplicate"
    assert lines["decontaminate"] == "42 -> 41, 1 contaminated"
    assert lines["select"].startswith("41 -> 40, 1 incorrect")
    assert lines["render"] == "40 -> 40"
    assert lines["sft"].startswith("2 steps, ")
    assert lines["eval"].startswith("after 0.0% pass@1 (0.0% to ")
    assert list(lines) == [stage for stage in STAGES if stage not in ("kd", "grpo", "mtp")]
    assert "dstools quantize" in ran.stderr
    card = (recipe.with_suffix("") / "card" / "README.md").read_text()
    assert "mini" in card


def test_a_training_tells_once_what_became_of_mtp_layers() -> None:
    trained = {"steps": 2, "parameters": 1234}
    assert _summary(trained) == "2 steps, 1,234 parameters"
    told = _summary(trained | {"mtp_layers": "carried over, not trained"})
    assert told == "2 steps, 1,234 parameters, MTP layers: carried over, not trained"
    fitted = trained | {"drafts_kept": {"before": 0.747, "after": 0.969}, "layer": "fitted"}
    assert _summary(fitted) == "2 steps, drafts kept 74.7% -> 96.9%"
    kept = {"drafts_kept": {"before": 0.747, "after": 0.747}, "layer": "as it was, since ..."}
    told = "2 steps, drafts kept 74.7% -> 74.7%, layer as it was, since ..."
    assert _summary(trained | kept) == told


def test_answers_that_were_not_judged_are_told_with_the_score() -> None:
    score = {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6}, "problems": 9}
    told = "after 50.0% pass@1 (40.0% to 60.0%) on 9 problems"
    assert _summary({"models": {"after": score | {"unverifiable": 0.0}}}) == told
    unknown = {"models": {"after": score | {"unverifiable": 0.125}}}
    assert _summary(unknown) == f"{told}, 12.5% not judged"


def test_samples_that_a_server_refused_are_told_in_its_words() -> None:
    report = {"in": 4, "out": 2, "dropped": {"503": 1, "request refused: 400": 1}}
    assert _summary(report) == "4 -> 2, 1 503, 1 request refused: 400"
    said = {"details": {"request refused: 400": "the context has 4096 tokens"}}
    told = "4 -> 2, 1 503, 1 request refused: 400 (the context has 4096 tokens)"
    assert _summary(report | said) == told


def test_the_same_recipe_finds_everything_done_and_writes_nothing(
    recipe: Path, ran: Result
) -> None:
    store = recipe.with_suffix("") / "store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    again = dstools("run", recipe, "--workers", "2")
    assert again.exit_code == 0, again.output
    assert all(line.endswith("(was done)") for line in again.stdout.splitlines())
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_another_setting_repeats_only_what_it_can_change(
    recipe: Path, ran: Result, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recipe.parent, folder, symlinks=True)
    path = folder / recipe.name
    path.write_text(path.read_text().replace("[select]", "[select]\nlimit = 16"))
    result = dstools("select", path, "--json")
    assert result.exit_code == 0, result.output
    (stage,) = json.loads(result.stdout)["stages"]
    assert (stage["report"]["out"], stage["is_reused"]) == (16, False)
    for name in ("prompts", "generate", "verify", "decontaminate"):
        (stage,) = json.loads(dstools(name, path, "--json").stdout)["stages"]
        assert stage["is_reused"], name
    path.write_text(recipe.read_text())  # and back again: what was there is found
    (stage,) = json.loads(dstools("select", path, "--json").stdout)["stages"]
    assert (stage["report"]["out"], stage["is_reused"]) == (40, True)


def test_from_takes_what_comes_before_as_it_lies_there(
    recipe: Path, ran: Result, tmp_path: Path
) -> None:
    """On another machine, without the prompts' file: their folders are enough."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(recipe.parent, folder, symlinks=True)
    (folder / "solved.jsonl").unlink()
    path = folder / recipe.name
    assert dstools("run", path).exit_code == 1
    result = dstools("run", path, "--from", "render", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "render",
        "sft",
        "eval",
        "card",
    ]


def test_a_trained_student_is_a_checkpoint_that_dstools_inspects(recipe: Path, ran: Result) -> None:
    result = CliRunner().invoke(main, ["inspect", str(recipe.with_suffix("") / "sft"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parameters"] == report(recipe, "sft")["report"]["parameters"]


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        (["run", "none.toml"], "none.toml: no such file", "init"),
        (
            ["run", "{recipe}", "--from", "kd"],
            "--from kd: the recipe has no such stage",
            "CHAIN/STAGE",
        ),
        (
            ["run", "{bare}", "--from", "rendr"],
            "--from rendr: the recipe has no such stage",
            "CHAIN/STAGE",
        ),
        (["verify", "{recipe}", "--chain", "b"], "no chain b", "it has no chains"),
        (["grpo", "{recipe}"], "has no [grpo]", "add that table"),
        (["render", "{recipe}", "--out", "{empty}"], "is not done", "{recipe} --out {empty}"),
        (["card", "{bare}"], "has no [card]", "add that table"),
        (["init", "--preset", "none"], "none: no such preset", "toy-cpu"),
    ],
)
def test_what_cannot_be_done_is_one_error_and_one_hint(
    recipe: Path, tmp_path: Path, command: list[str], message: str, hint: str
) -> None:
    bare = recipe.with_name("bare.toml")
    bare.write_text(recipe.read_text().replace('[card]\nname = "mini"\n', ""))
    words = [word.format(recipe=recipe, empty=tmp_path / "empty", bare=bare) for word in command]
    result = dstools(*words)
    assert result.exit_code == 1, result.output
    error, advice = result.stderr.splitlines()
    assert message in error
    assert hint.format(recipe=recipe, empty=tmp_path / "empty") in advice


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('tokenizer = "', 'tokenizer = "no/such/', "no/such/"),
        ('path = "held-out.jsonl"', 'path = "absent.jsonl"', "absent.jsonl: no such file"),
        ("[decontaminate]", '[decontaminate]\nindex = ["b.ngrams"]', "b.ngrams: no such file"),
        ("[select]", '[select]\nnon_reasoning = "chat.jsonl"', "chat.jsonl: no such file"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_run(
    recipe: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = recipe.with_name("missing.toml")
    path.write_text(recipe.read_text().replace(old, new))
    result = dstools("run", path, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not (tmp_path / "out" / "store").exists()


def test_an_unknown_licence_is_told_before_a_teacher_is_asked(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a replay asks nobody."""
    path = recipe.with_name("down.toml")
    teacher = (
        'backend = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "nobody"\nretries = 0'
    )
    path.write_text(recipe.read_text().replace('backend = "replay"', teacher))
    result = dstools("run", path, "--out", tmp_path / "out", "--workers", "1")
    assert result.exit_code == 1
    assert "unknown licences: nobody. Samples carry them" in caplog.text
    caplog.clear()
    assert dstools("run", recipe, "--workers", "1").exit_code == 0
    assert "unknown" not in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "error", "hint"),
    [
        (
            "num_hidden_layers",
            "num_hiden_layers",
            "num_hiden_layers: a qwen3 config has no such key",
            "num_hidden_layers",
        ),
        (
            "hidden_size = 32",
            'hidden_size = "big"',
            "student.init: cannot be loaded",
            "transformers",
        ),
        (
            "[sft]",
            '[sft]\noptimizer = "adamw_torhc"',
            "optimizer: adamw_torhc is not known",
            "adamw_torch",
        ),
        ("[sft]", '[sft]\noptimizer = "lion_8bit"', "optimizer = 'lion_8bit'", "install it"),
    ],
)
def test_a_student_that_cannot_be_trained_so_is_refused_in_a_line(
    recipe: Path, ran: Result, tmp_path: Path, old: str, new: str, error: str, hint: str
) -> None:
    path = recipe.with_name("odd.toml")
    path.write_text(recipe.read_text().replace(old, new))
    shutil.copytree(recipe.with_suffix(""), tmp_path / "out", symlinks=True)
    result = dstools("sft", path, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    said, advice = result.stderr.splitlines()[-2:]
    assert error in said
    assert hint in advice


def test_a_card_tells_of_the_settings_that_lie_there_now(recipe: Path, ran: Result) -> None:
    """Another batch size changes no answer, so only the card is another one."""
    path = recipe.with_name("wide.toml")
    path.write_text(recipe.read_text().replace("[eval]", "[eval]\nbatch_size = 7"))
    out = recipe.with_name("wide")
    shutil.copytree(recipe.with_suffix(""), out, symlinks=True)
    assert dstools("run", path, "--workers", "1").exit_code == 0
    assert "| batch_size | 7 |" in (out / "card" / "README.md").read_text()


def test_a_score_below_what_was_asked_for_is_exit_code_3_and_evaluates_nothing_again(
    recipe: Path, ran: Result
) -> None:
    path = recipe.with_name("strict.toml")
    path.write_text(recipe.read_text().replace("[eval]", "[eval]\nat_least = 0.5"))
    result = dstools("eval", path, "--out", recipe.with_suffix(""))
    assert result.exit_code == 3, result.output
    assert "after: pass@1 is 0.0%, eval.at_least is 50.0%" in result.stderr
    assert len(list((recipe.with_suffix("") / "store").glob("eval-*"))) == 1


def test_a_bad_line_of_prompts_is_named_and_nothing_is_left_that_looks_done(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[[prompts.source]]\npath = "p.jsonl"\n')
    rows = conversations("heldout", 3)
    write(tmp_path / "p.jsonl", rows)
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('{"question": "1 + 1 =", "answer": NaN}\n')
    result = dstools("run", tmp_path / "bad.toml")
    assert result.exit_code == 1
    assert "p.jsonl: line 4" in result.stderr
    assert not list((tmp_path / "bad").rglob("manifest.json"))


def test_a_server_is_asked_for_no_sample_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recipe's own names of stages, whatever has changed in it."""
    asked: list[int] = []

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        for ask in asks:
            if ask.number not in done:
                asked.append(ask.sample)
                yield ask.number, Answer("<think>why</think>4", "stop", False, None)

    monkeypatch.setattr("dstools_distill.teachers.generate._teacher", lambda *_: answers)
    write(tmp_path / "p.jsonl", conversations("heldout", 2))
    table = '[[prompts.source]]\npath = "p.jsonl"\n[generate]\nbackend = "openai"\nmodel = "m"\n'
    for samples, port, new in ((1, 9, [0, 0]), (2, 9, [1, 1]), (2, 10, []), (1, 10, [])):
        asked.clear()
        more = f'base_url = "http://127.0.0.1:{port}/v1"\nsamples = {samples}\n'
        (tmp_path / "mini.toml").write_text(table + more)
        result = dstools("run", tmp_path / "mini.toml", "--workers", "1")
        assert (result.exit_code, asked) == (0, new), result.output


def test_init_lists_its_presets_and_prints_one_that_runs_as_a_recipe() -> None:
    names = dstools("init").stdout.split()
    assert {"toy-cpu", "r1-toy", "r1-distill-qwen-1.5b", "r1-distill-llama-70b"} <= set(names)
    assert dstools("init", "--preset", "toy-cpu").stdout.startswith("# ")


# ------------------------------------------------------------------------ phases, arms and lineage


PHASES = """
[student]
tokenizer = "{tokenizer}"
[student.init]
model_type = "qwen3"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 16
max_position_embeddings = 256

[generate]
backend = "replay"

[decontaminate]

[render]
max_length = 200

[sft]
max_steps = 1
batch_size = 8
micro_batch_size = 8
precision = "float32"

[grpo]
max_steps = 1
group_size = 2
batch_size = 4
micro_batch_size = 4
max_completion_tokens = 4
precision = "float32"

[[eval.source]]
path = "held-out.jsonl"

[eval]
max_tokens = 4
precision = "float32"

[[phase]]
name = "cold"
generate = {{}}
verify = {{}}
decontaminate = {{}}
select = {{}}
render = {{}}
sft = {{}}
[[phase.prompts.source]]
path = "solved.jsonl"

[[phase]]
name = "rl"
student = {{ init = false, model = "phase:cold/sft" }}
grpo = {{}}
eval = {{}}
[[phase.prompts.source]]
path = "solved.jsonl"

[card]
name = "two"
"""


@pytest.fixture(scope="module")
def phases(recipe: Path) -> Path:
    path = recipe.with_name("phases.toml")
    path.write_text(PHASES.format(tokenizer=DATA / "sample-v3"))
    result = dstools("run", path, "--workers", "1")
    assert result.exit_code == 0, result.output
    return path


def manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return found


@pytest.mark.slow
def test_a_phase_goes_on_from_the_one_before_and_never_sees_the_exam(phases: Path) -> None:
    out = phases.with_suffix("")
    trained = manifest(out / "rl" / "grpo")
    assert trained["report"]["dropped"]["contaminated"] == 1  # solved.jsonl has one of its problems
    assert trained["inputs"]["model"] != manifest(out / "rl" / "eval")["inputs"]["after"]
    card = (out / "card" / "README.md").read_text()
    assert "trained by sft, then grpo from qwen3 of random weights" in card


@pytest.mark.slow
def test_from_a_stage_of_a_phase_all_that_follows_is_of_the_same_run(phases: Path) -> None:
    out = phases.with_suffix("")
    before = (out / "rl" / "grpo").resolve()
    other = phases.with_name("other.toml")
    other.write_text(phases.read_text().replace("[sft]\nmax_steps = 1", "[sft]\nmax_steps = 2"))
    result = dstools("run", other, "--out", out, "--from", "sft", "--workers", "1")
    assert result.exit_code == 0, result.output
    told = [line.split()[0] for line in result.stdout.splitlines()]
    assert told == ["cold/sft", "rl/prompts", "rl/grpo", "rl/eval", "card"]
    assert (out / "rl" / "grpo").resolve() != before


def test_a_card_of_stages_from_different_runs_is_refused(recipe: Path, ran: Result) -> None:
    other = recipe.with_name("narrow.toml")
    other.write_text(recipe.read_text().replace("[select]", "[select]\nlimit = 9"))
    out = recipe.with_name("mixed")
    shutil.copytree(recipe.with_suffix(""), out, symlinks=True)
    assert dstools("select", other, "--out", out).exit_code == 0
    result = dstools("card", other, "--out", out)
    assert result.exit_code == 1
    assert "render was made from another select than the one there now" in result.stderr
    assert f"hint: dstools distill run {other} --from render" in result.stderr


@pytest.mark.slow
def test_seeds_are_those_of_every_training_that_there_is_and_add_none(recipe: Path) -> None:
    path = recipe.with_name("seeds.toml")
    path.write_text(
        "seeds = [0, 1]\n" + recipe.read_text().replace("max_steps = 2", "max_steps = 1")
    )
    result = dstools("run", path, "--workers", "1")
    assert result.exit_code == 0, result.output
    out = path.with_suffix("")
    assert [manifest(out / f"seed-{n}" / "sft")["settings"]["seed"] for n in (0, 1)] == [0, 1]
    assert (out / "seed-0" / "render").resolve() == (out / "seed-1" / "render").resolve()
    assert (out / "seed-0" / "sft").resolve() != (out / "seed-1" / "sft").resolve()
    assert "Means over seeds" in (out / "card" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "parallel"), [(2, "ddp"), (1, "zero2")])
def test_a_launched_run_prints_one_json_object_and_trains_what_one_process_does(
    processes: int, parallel: str, recipe: Path, ran: Result
) -> None:
    """The launched processes come back to `dstools distill sft`; one alone is a trial of many."""
    path = recipe.with_name(f"{parallel}.toml")
    text = recipe.read_text().replace("micro_batch_size = 8", "micro_batch_size = 4")
    path.write_text(
        text.replace("[sft]", f'[sft]\nprocesses = {processes}\nparallel = "{parallel}"')
    )
    out = recipe.with_name(parallel)
    shutil.copytree(recipe.with_suffix(""), out, symlinks=True)
    done = subprocess.run(
        [sys.executable, "-m", "dstools", "distill", "sft", str(path), "--json"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout)["stages"]
    assert (stage["report"]["processes"], stage["report"]["parallel"]) == (processes, parallel)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (folder / "sft" / "curve.jsonl").read_text().splitlines()
        ]
        for folder in (recipe.with_suffix(""), out)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_launched_processes_end_with_the_one_that_started_them(recipe: Path, ran: Result) -> None:
    """Killed without notice, as a scheduler may; then the lock is free."""
    path = recipe.with_name("killed.toml")
    text = recipe.read_text().replace("max_steps = 2", "max_steps = 100000")
    path.write_text(text.replace("[sft]", '[sft]\nparallel = "zero2"'))
    out = recipe.with_name("killed")
    shutil.copytree(recipe.with_suffix(""), out, symlinks=True)
    command = [sys.executable, "-m", "dstools", "distill", "sft", str(path)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    started = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(
            lambda: any(
                curve.stat().st_size
                for curve in out.glob("store/*/curve.jsonl")
                if curve.parent.name.endswith(".incomplete")
            )
        )
        assert len(running(path)) > 1
    finally:
        started.kill()
        started.wait()
    wait_for(lambda: not running(path))


def wait_for(is_so: Callable[[], bool], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.2)


def running(path: Path) -> list[str]:
    """The processes that have the path among their arguments."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(path).encode() in each.read_bytes().split(b"\0"):
                found.append(each.parent.name)
    return found


def test_a_launcher_may_run_training_alone(
    recipe: Path, ran: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = dstools("run", recipe, "--workers", "1")
    assert result.exit_code == 1
    assert "prompts: runs in one process, and a launcher started 2" in result.stderr
