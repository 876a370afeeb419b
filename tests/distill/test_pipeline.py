"""A recipe with every stage, killed again and again: its bytes are those of a run without a kill.

KILLS=20 pytest tests/distill/test_pipeline.py        # kills of each stage; default 3
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.ipc
import pytest

from dstools_converters.errors import ShortfallError
from dstools_distill.pipeline import Pipeline, _require_score
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import read_recipe
from dstools_distill.recipe.stages import STAGES
from dstools_distill.store.stage import MANIFEST, Done, Identity, no_bar, outputs

DATA = Path(__file__).parents[1] / "data"
SAMPLE = DATA / "sample-v3"
KILLS = int(os.environ.get("KILLS", "3"))
RECIPE = f"""
[[prompts.source]]
path = "rg:chain_sum"
size = 1000
seed = 5
options = {{ min_terms = 2, max_terms = 2, max_digits = 2 }}

[prompts]
near_duplicates = 0.9
limit = 40

[generate]
backend = "hf"
model = "{DATA / "sample-v3"}"
samples = 2
max_tokens = 80
batch_size = 16

[verify]
[decontaminate]

[select]
non_reasoning = "{DATA / "toy-chat.jsonl"}"

[student]
tokenizer = "{DATA / "sample-v3"}"
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
max_length = 256

[sft]
max_steps = 12
batch_size = 8
micro_batch_size = 4
save_steps = 2
log_steps = 1
optimizer = "muon"
precision = "bfloat16"
ema = 0.9

[kd]
teacher = "{DATA / "sample-v3"}"
max_steps = 6
batch_size = 8
micro_batch_size = 8
max_completion_tokens = 16
save_steps = 1
log_steps = 1
precision = "float32"

[grpo]
max_steps = 6
batch_size = 16
micro_batch_size = 8
group_size = 4
max_completion_tokens = 16
save_steps = 1
log_steps = 1
precision = "float32"
learning_rate = 1e-3
replace_reference_steps = 2

[[eval.source]]
path = "rg:chain_sum"
size = 40
seed = 50000

[eval]
samples = 2
temperature = 1.0
max_tokens = 24
batch_size = 16
precision = "float32"

[card]
"""
DRIVER = """
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path
import deepspeed  # by accelerate, in each child, if not here
import torch
torch.set_num_threads(1)  # so that a fork has all the threads there are
from dstools_distill.cards import card
from dstools_distill.data import decontaminate, prompts, select
from dstools_distill.evaluation import evaluate
from dstools_distill.judge import verify
from dstools_distill.teachers import generate
from dstools_distill.tokens import render
from dstools_distill.training import grpo, kd, sft
import reasoning_gym
from dstools_distill.pipeline import Pipeline
from dstools_distill.places import Places
from dstools_distill.recipe.recipe import read_recipe
from dstools_distill.store.stage import no_bar

recipe, kills = Path(sys.argv[1]), int(sys.argv[2])
read, straight = read_recipe(recipe), recipe.with_suffix("")


def child(out, stage):
    if pid := os.fork():
        return pid
    try:
        pipeline = Pipeline(Places(read, out, Path), 1, no_bar)
        pipeline.run_card() if stage == "card" else pipeline.run_one(read.chains[0], stage)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


stages, hits, took = (*read.chains[0].stages, "card"), {}, {}
for stage in stages:
    start = time.monotonic()
    assert ended(child(straight, stage)) == 0
    took[stage] = time.monotonic() - start
for stage in stages:
    out, chance = recipe.with_name(stage), random.Random(stage)
    shutil.copytree(straight, out, symlinks=True)
    shutil.rmtree((out / stage).resolve())
    hits[stage], seconds = 0, took[stage]
    while hits[stage] < kills:
        pid = child(out, stage)
        time.sleep(chance.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:  # finished before it was hit
            seconds *= 0.8
            shutil.rmtree((out / stage).resolve())
        else:
            hits[stage] += 1
    assert ended(child(out, stage)) == 0
print(json.dumps(hits))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folders of a run without a kill and of one for each stage; the kills of each."""
    recipe = tmp_path_factory.mktemp("killed") / "straight.toml"
    recipe.write_text(RECIPE)
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, recipe, str(KILLS)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return recipe.parent, json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in STAGES if name != "mtp"])  # see test_mtp.py
def test_a_stage_that_is_killed_again_and_again_ends_in_the_same_bytes(
    killed: tuple[Path, dict[str, int]], stage: str
) -> None:
    folder, kills = killed
    whole, found = folder / "straight" / stage, folder / stage / stage
    assert kills[stage] == KILLS
    assert outputs(found) == outputs(whole)
    assert (found / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
    names = [
        {path.name for path in (folder / name / "store").iterdir()} for name in (stage, "straight")
    ]
    assert names[0] == names[1]  # nothing is left of what was killed


# ------------------------------------------------------------------------------------- identities

TO_ROWS = """
[prompts]
system = "{system}"
[[prompts.source]]
path = "asked.jsonl"
[generate]
{generate}
[verify]
[select]
[student]
tokenizer = "{tokenizer}"
[student.init]
model_type = "qwen3"
[render]
max_length = 512
"""
MESSAGES = {  # of servers: the trace and the answer in four ways
    "parts": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "5+8"}]},
            {"type": "text", "text": "13"},
        ]
    },
    "a key of its own": {"content": "13", "reasoning": "5+8"},
    "blanks before the opener": {"content": "\n\t<think>\n5+8\n</think>\n\n13"},
    "the opener in the prompt": {"content": "5+8\n</think>\n\n13"},
}
ASKED = {
    "a question": {"question": "5 + 8 =", "answer": "13", "source": "x"},
    "several turns": {
        "messages": [
            {"role": "user", "content": "1 + 1 ="},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "5 + 8 ="},
        ],
        "ground_truth": "13",
    },
}


REPLAY = 'backend = "replay"\nmodel = "given.jsonl"'
EXPLAINED = "Respond as <think>\n...\n</think>\n<answer>\n...\n</answer>"
OPEN_R1 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% else %}SYSTEM{% endif %}{% for message in messages %}"
    "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>OPENER{% endif %}"
)


class Completions(BaseHTTPRequestHandler):
    """Answers every chat completion with the server's message, which ends with "eos"."""

    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((body["messages"][-1]["content"], body["seed"]))
        choice = {"message": self.server.message, "finish_reason": "eos"}
        reply = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)


@contextmanager
def serving(message: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a server that answers every request with a message, and notes what it was asked."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        server.message, server.asked = message, []  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        try:
            yield server
        finally:
            server.shutdown()


def endpoint_at(server: Any) -> str:
    """Return the lines of [generate] for a server."""
    return f'backend = "openai"\nmodel = "m"\nbase_url = "http://127.0.0.1:{server.server_port}/v1"'


def rows_of(
    folder: Path,
    generate: str,
    asked: dict[str, Any],
    tokenizer_of: Path = SAMPLE,
    system: str = "",
) -> list[tuple[str, str]]:
    """Run a recipe from prompts to rendered rows; return the prompts and what is trained on."""
    from transformers import AutoTokenizer

    (folder / "asked.jsonl").write_text(json.dumps(asked) + "\n")
    recipe = folder / "recipe.toml"
    recipe.write_text(TO_ROWS.format(generate=generate, tokenizer=tokenizer_of, system=system))
    places = Places(read_recipe(recipe), folder / "out", Path)
    Pipeline(places, 1, no_bar).run("", lambda chain, stage, done: None)
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    with pyarrow.memory_map(str(folder / "out" / "render" / "rows.arrow")) as file:
        rows = pyarrow.ipc.open_stream(file).read_all().to_pylist()
    return [
        (
            tokenizer.decode(row["input_ids"][: row["labels"].count(-100)]),
            tokenizer.decode([n for n in row["labels"] if n >= 0]),
        )
        for row in rows
    ]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("form", MESSAGES)
def test_what_a_server_says_arrives_in_the_rows(
    form: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(MESSAGES[form], monkeypatch) as server:
        rows = rows_of(tmp_path, endpoint_at(server), ASKED[asked])
    assert [trained for _, trained in rows] == ["<think>\n5+8\n</think>\n\n13<｜end▁of▁sentence｜>"]


def test_a_recipe_that_wants_more_asks_for_no_sample_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More samples, one more prompt, a licence; and then another temperature."""
    asked = {"question": "5 + 8 =", "answer": "13"}, {"question": "1 + 1 =", "answer": "2"}
    recipe = tmp_path / "recipe.toml"

    def run(server: Any, prompts: int, changes: str) -> list[tuple[str, int]]:
        server.asked.clear()
        rows = (json.dumps(row) + "\n" for row in asked[:prompts])
        (tmp_path / "asked.jsonl").write_text("".join(rows))
        source = '[[prompts.source]]\npath = "asked.jsonl"\n'
        recipe.write_text(f"{source}[generate]\n{endpoint_at(server)}\n{changes}\n")
        places = Places(read_recipe(recipe), tmp_path / "out", Path)
        Pipeline(places, 1, no_bar).run("", lambda chain, stage, done: None)
        return sorted(server.asked)

    five, one = asked[0]["question"], asked[1]["question"]
    with serving({"content": "<think>5+8</think>13"}, monkeypatch) as server:
        assert run(server, 1, "samples = 2") == [(five, 0), (five, 1)]
        assert run(server, 1, "samples = 3") == [(five, 2)]
        assert run(server, 2, "samples = 3") == [(one, 0), (one, 1), (one, 2)]
        assert run(server, 2, 'samples = 2\nlicence = "mit"') == []
        assert len(run(server, 2, "samples = 2\ntemperature = 1")) == 4
        assert run(server, 2, "samples = 2\ntemperature = 1.0\nconcurrency = 1") == []


@pytest.mark.parametrize("asked", ASKED)
def test_a_replayed_text_without_its_opener_arrives_in_the_rows(asked: str, tmp_path: Path) -> None:
    sample = {"prompt": "5 + 8 =", "raw": "5+8\n</think>\n\n13", "finish_reason": None}
    (tmp_path / "given.jsonl").write_text(json.dumps(sample) + "\n")
    rows = rows_of(tmp_path, REPLAY, ASKED[asked])
    assert [trained for _, trained in rows] == ["<think>\n5+8\n</think>\n\n13<｜end▁of▁sentence｜>"]


TRACED = "<think>\n5+8\n</think>\n\n13"
ANSWERED = {  # as in OpenR1-Math, s1K, OpenThoughts, and data sets of messages
    "generations": {
        "problem": "5 + 8 =",
        "answer": "13",
        "generations": ["<think>\n5+8\n</think>\n\n12", "<think>\n5+", TRACED],
        "finish_reasons": None,
    },
    "trajectories": {
        "question": "5 + 8 =",
        "solution": "13",
        "thinking_trajectories": ["5+8"],
        "attempt": "13",
    },
    "sections": {
        "system": "",
        "conversations": [
            {"from": "user", "value": "5 + 8 ="},
            {
                "from": "assistant",
                "value": "<|begin_of_thought|>\n\n5+8\n\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\n13\n\n<|end_of_solution|>",
            },
        ],
        "ground_truth": "13",
    },
    "a trace of its own": {
        "question": "5 + 8 =",
        "reasoning": "5+8",
        "response": "13",
        "gold": "13",
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "5 + 8 ="},
            {"role": "assistant", "content": TRACED},
        ],
        "answer": "13",
    },
}


@pytest.mark.parametrize("form", ANSWERED)
def test_answers_that_come_with_the_rows_are_trained_on_without_a_teacher(
    form: str, tmp_path: Path
) -> None:
    rows = rows_of(tmp_path, 'backend = "replay"\nsamples = 3', ANSWERED[form])
    assert [trained for _, trained in rows] == [f"{TRACED}<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize("opener", ["", "<think>\n"])
@pytest.mark.parametrize("place", ["template", "recipe"])
def test_a_prompt_that_explains_the_tags_does_not_count_as_a_trace(
    place: str, opener: str, tmp_path: Path
) -> None:
    """As in open-r1: the student's own template, and a system prompt with both kinds of tags."""
    tokenizer = tmp_path / "student"
    shutil.copytree(SAMPLE, tokenizer, ignore=shutil.ignore_patterns("*.safetensors"))
    file = tokenizer / "tokenizer_config.json"
    template = OPEN_R1.replace("SYSTEM", EXPLAINED).replace("OPENER", opener)
    (tokenizer / "chat_template.jinja").unlink(missing_ok=True)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    sample = {"prompt": "5 + 8 =", "reasoning": "5+8", "answer": "<answer>\n13\n</answer>"}
    (tmp_path / "given.jsonl").write_text(json.dumps(sample) + "\n")
    system = EXPLAINED.replace("\n", "\\n") if place == "recipe" else ""
    ((prompt, trained),) = rows_of(tmp_path, REPLAY, ASKED["a question"], tokenizer, system)
    assert prompt == f"<｜begin▁of▁sentence｜>{EXPLAINED}<｜User｜>5 + 8 =<｜Assistant｜>{opener}"
    assert prompt + trained == (
        f"<｜begin▁of▁sentence｜>{EXPLAINED}<｜User｜>5 + 8 =<｜Assistant｜>"
        "<think>\n5+8\n</think>\n\n<answer>\n13\n</answer><｜end▁of▁sentence｜>"
    )


IDENTITIES = """
[student]
model = "student"
template = "chatml"
licence = "mit"

[prompts]
pass_rates = "rates.jsonl"
limit = 9
[[prompts.source]]
path = "asked.jsonl"
[[prompts.source]]
path = "rg:chain_sum"

[generate]
backend = "replay"
model = "samples.jsonl"
retries = 2

[verify]
steps = false
[decontaminate]
index = ["bench.ngrams"]
[select]
non_reasoning = "chat.jsonl"
[render]
max_length = 99
[sft]
save_steps = 3
[kd]
teacher = "teacher"
[grpo]
lora = { rank = 4 }
[[eval.source]]
path = "exam.jsonl"
[eval]
at_least = 0.0
[card]
name = "pinned"
"""
PINNED = [
    "card-132efec68281",
    "decontaminate-e9211981e3c4",
    "eval-2b656161e4e1",
    "generate-466835d1d95a",
    "grpo-bc3a57b51bda",
    "index-9afbf377e3af",
    "kd-ad47a315d6cf",
    "prompts-0b28f18570c1",
    "prompts-ede895ebe795",
    "render-dce156b6f7ac",
    "select-e907e29764c3",
    "sft-7a2b93b0412d",
    "verify-75b59819c2df",
]


def test_the_identity_of_every_stage_is_that_of_earlier_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed name of a folder in OUT/store would repeat work that users have paid for."""
    recipe = tmp_path / "pinned.toml"
    recipe.write_text(IDENTITIES)
    for name in ("rates.jsonl", "asked.jsonl", "samples.jsonl", "bench.ngrams", "chat.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "exam.jsonl").write_text("exam")
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    monkeypatch.setattr("dstools_distill.store.stage.version", lambda package: f"1 of {package}")
    made: list[str] = []

    def stand_in(store: Path, identity: Identity, *_: object) -> Done:
        made.append(identity.name)
        folder = store / identity.name
        folder.mkdir(parents=True, exist_ok=True)
        report = {"models": {"after": {"pass@1": {"value": 1.0}}}}
        manifest = identity.parts | {"outputs": {"a": identity.name}, "report": report}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        (folder / "eval.ngrams").write_text("of an index")
        return Done(identity.stage, folder, report, is_reused=False)

    monkeypatch.setattr("dstools_distill.pipeline.run_stage", stand_in)
    # "a" is not there
    monkeypatch.setattr("dstools_distill.store.stage.require_whole", lambda folder, manifest: None)
    places = Places(read_recipe(recipe), tmp_path / "out", Path)
    Pipeline(places, 1, no_bar).run("", lambda chain, stage, done: None)
    assert sorted(set(made)) == PINNED


@pytest.mark.parametrize(
    ("score", "unknown", "told"),
    [
        (0.25, 0.0, "pass@1 is 25.0%, eval"),
        (0.25, 0.2, "pass@1 is 25.0% of the 80.0% that could be judged, eval"),
        (0.0, 1.0, "no answer could be judged, eval"),
        (0.5, 0.9, ""),
    ],
)
def test_a_score_is_held_against_what_was_asked_for_over_judged_answers(
    score: float, unknown: float, told: str, tmp_path: Path
) -> None:
    figures = {"after": {"pass@1": {"value": score}, "unverifiable": unknown}}
    done = Done("eval", tmp_path, {"models": figures}, is_reused=False)
    _require_score(done, 0.0)
    if not told:
        return _require_score(done, 0.5)
    with pytest.raises(ShortfallError) as caught:
        _require_score(done, 0.5)
    assert str(caught.value) == f"{tmp_path}: after: {told}.at_least is 50.0%"
