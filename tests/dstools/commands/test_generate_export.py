"""`dstools generate` of an exported folder: answers of the checkpoint, one error for a bad one."""

import importlib.util
import json
import math
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result

from dstools import machine
from dstools.commands.generate_export import (
    KnownExport,
    find_export,
    look_at_export,
    require_export_of,
    require_installed,
)
from dstools_converters.errors import DstoolsError
from dstools_converters.export import genai
from dstools_converters.export.folder import require_export
from dstools_converters.export.runners import plan
from dstools_converters.export.trt import plans
from dstools_converters.export.trt.rtx import profiles
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SUM = "State the final answer to the following arithmetic problem: 13 + 27 ="
Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def copied(exported_sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_sample, tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    """Change values of export.json."""
    path = folder / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_error(dstools: Run, folder: Path, *words: str) -> tuple[str, str]:
    """Return the error without the folder, and the hint."""
    result = dstools("generate", folder, "--prompt", SUM, *words)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.count("error: ") == result.stderr.count("hint: ") == 1
    *_, error, hint = result.stderr.replace(str(folder), "OUT").splitlines()
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "sampling", [("--temperature", "0"), ("--temperature", "2", "--seed", "4")]
)
@pytest.mark.parametrize("drafts", [(), ("--mtp",)])
def test_it_answers_as_its_checkpoint(
    sampling: tuple[str, ...], drafts: tuple[str, ...], ok: Run, exported_sample: Path
) -> None:
    words = ("--prompt", SUM, "--chat", "--max-tokens", "40", *sampling, "--json")
    found = json.loads(ok("generate", exported_sample, *words, *drafts).stdout)
    wanted = json.loads(ok("generate", SAMPLE, *words).stdout)
    speed = found.pop("speed")
    assert found.items() == {key: value for key, value in wanted.items() if key in found}.items()
    assert list(wanted) == [*found, "speed"]
    assert (speed["tokens_per_step"] > 1) is bool(drafts)


def test_stderr_has_sampling_prompt_model_pool_and_speed(ok: Run, exported_sample: Path) -> None:
    result = ok("generate", exported_sample, "--prompt", SUM, "--chat", "--mtp")
    assert result.stdout.endswith("</think>\n\n40\n")
    sampling, prompt, model, pool, answer = result.stderr.splitlines()
    assert sampling == "sampling  temperature 0 (default)"
    assert prompt == "prompt    10 tokens, and room for 502 to the model's 512 positions"
    wanted = f"model     {exported_sample}, 14.86 MB in float32 on cpu, ONNX Runtime "
    assert model.startswith(wanted)
    # 512 tokens x 5 layers x (128 + 64) x 4 bytes
    assert pool == "pool      8 pages of 64 tokens, 512 tokens, 1.966 MB"
    assert answer.endswith("; draft 1: 17 of 17 kept (100.0%)")


@pytest.mark.parametrize("drafts", [(), ("--mtp",)])
def test_the_engine_of_genai_gives_the_same_greedy_answer(
    drafts: tuple[str, ...], ok: Run, exported_sample: Path
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai")
    words = ("generate", exported_sample, "--prompt", SUM, "--chat", "--temperature", "0", *drafts)
    result = ok(*words, "--engine", "genai", "--json")
    found, wanted = json.loads(result.stdout), json.loads(ok(*words, "--json").stdout)
    keys = ("ids", "text", "reason", "prompt_ids")
    assert [found[key] for key in keys] == [wanted[key] for key in keys]
    assert found["speed"]["kept"] == ([17] if drafts else [])
    assert ", onnxruntime-genai " in result.stderr
    assert "random numbers" not in result.stderr


def test_answers_that_genai_draws_are_said_to_be_its_own(ok: Run, exported_sample: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai")
    words = ("--prompt", SUM, "--chat", "--temperature", "0.5", "--engine", "genai")
    result = ok("generate", exported_sample, *words)
    assert "note: genai draws with random numbers of its own" in result.stderr


# ------------------------------------------------------------------------------------------ errors


def test_genai_does_not_run_a_checkpoint(dstools: Run) -> None:
    error, hint = one_error(dstools, SAMPLE, "--engine", "genai")
    assert error == "--engine genai: OUT is a checkpoint"
    assert "dstools export" in hint


def test_the_engine_does_not_run_a_dense_model(exported_sample: Path, tmp_path: Path) -> None:
    export = replace(require_export(exported_sample), kind="dense")
    with pytest.raises(DstoolsError, match="is a dense model") as error:
        look_at_export("a", tmp_path, export, False, None, "cpu", "genai")
    assert "Generator" in error.value.hint


def test_genai_that_is_not_installed_is_named(
    dstools: Run, exported_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genai, "find_genai", lambda: None)
    error, hint = one_error(dstools, exported_sample, "--engine", "genai")
    assert error == "--engine genai needs onnxruntime-genai"
    assert "[export]" in hint


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"dtype": "bfloat16"}, "OUT: is bfloat16", "--dtype float32"),
        ({"tp": 2, "ep": 2}, "OUT: is divided among 2 GPUs", "without --tp and --ep"),
        ({"expert_inputs": True}, "OUT: its experts are not", "--expert-weights baked"),
        (
            {"kind": "deepseek-inference"},
            "OUT: folders of kind deepseek-inference do not",
            "--onnx",
        ),
        ({"tool": "other 1"}, "OUT/export.json: was not written by dstools", "export"),
        ({"dtype": "int3"}, "OUT/export.json: dtype", "damaged"),
    ],
)
def test_a_folder_that_does_not_run_here_is_one_error(
    changes: dict[str, Any], message: str, hint: str, dstools: Run, copied: Path
) -> None:
    edit(copied, **changes)
    error, advice = one_error(dstools, copied)
    assert error.startswith(message)
    assert hint in advice


def test_damage_is_one_error(dstools: Run, copied: Path) -> None:
    (copied / "model.data").write_bytes(b"")
    error, hint = one_error(dstools, copied)
    assert error.startswith("OUT/model.data: has 0 bytes; ")
    assert "dstools verify OUT" in hint


def test_graphs_without_export_json_are_no_checkpoint(dstools: Run, copied: Path) -> None:
    (copied / "export.json").unlink()
    error, hint = one_error(dstools, copied)
    assert error == "OUT: has model.onnx, but no export.json"
    assert "export the checkpoint again" in hint


def test_a_checkpoint_with_graphs_beside_it_is_one(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "both"))
    (folder / "model.onnx").touch()
    assert find_export(folder) is None


@pytest.mark.parametrize("content", [None, {"model_type": "llama"}, "qwen2"])
def test_a_config_of_another_model_is_one_error(
    content: Any, dstools: Run, copied: Path, checkpoint: Callable[..., Path]
) -> None:
    path = copied / "config.json"
    path.unlink()
    if content == "qwen2":
        shutil.copyfile(checkpoint("tiny-qwen2") / "config.json", path)
    elif content:
        path.write_text(json.dumps(content))
    one_error(dstools, copied)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ("--precision", "bfloat16"),
            "--precision bfloat16: OUT is in float32",
            "leave it out: ONNX Runtime does not multiply bfloat16 on a CPU",
        ),
        (("--pool", "5000"), "--pool 5000: the folder is made for a cache of 4,096", "--pool 4096"),
        (("--max-tokens", "100", "--pool", "64"), "the prompt of ", "--pool "),
    ],
)
def test_an_option_that_does_not_fit_is_one_error(
    words: tuple[str, ...], message: str, hint: str, dstools: Run, exported_sample: Path
) -> None:
    error, advice = one_error(dstools, exported_sample, *words)
    assert error.startswith(message)
    assert hint in advice


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 30))


def add_engines(folder: Path) -> None:
    names = ("model.plan", "mtp.plan")
    for name in names:
        (folder / name).write_bytes(name.encode())
    edit(folder, engines={name: sha256(name.encode()).hexdigest() for name in names})


@pytest.mark.usefixtures("gpu")
def test_a_folder_without_an_engine_does_not_run_on_a_gpu(
    dstools: Run, exported_sample: Path
) -> None:
    for command in (("generate", exported_sample, "--prompt", "1"), ("bench", exported_sample)):
        result = dstools(*command, "--device", "cuda")
        error, hint = result.stderr.replace(str(exported_sample), "OUT").splitlines()
        assert (result.exit_code, result.stdout) == (1, "")
        assert error == "error: OUT/model.plan: there is no such engine, and GPUs run no other"
        assert "in a new folder: dstools export CKPT NEW --onnx --trt" in hint


@pytest.mark.usefixtures("gpu")
def test_a_missing_tensorrt_is_named(
    dstools: Run, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    add_engines(copied)
    error, hint = one_error(dstools, copied, "--device", "cuda")
    assert error.startswith("running an engine needs TensorRT: ")
    assert "pip install tensorrt" in hint


def test_engines_run_on_a_gpu(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bytes count as weights, and a session has the pages of the pool."""
    made: list[Any] = []
    monkeypatch.setattr(plans, "import_tensorrt", lambda: SimpleNamespace(__version__="11.1.0"))
    monkeypatch.setattr(plan, "PlanSession", lambda *args, **more: made.append((args, more)))
    add_engines(copied)
    known = require_export_of(str(copied), True, "cuda", "dstools")
    assert isinstance(known, KnownExport)
    assert known.runs_in == "float32 on cuda, TensorRT 11.1.0"
    assert (known.held.device, known.held.weights) == ("cuda", len("model.plan" + "mtp.plan"))
    assert known.step_bytes(5000) == 4 * 512 * 320
    loop = known.loop(Pool(9), Sampling(), frozenset(), 1, rows=2)
    assert made == [((copied, known.limits, 9), {"mtp": True, "device": torch.device("cuda")})]
    assert loop.chunk == 512
    export = require_export(copied)
    for note in export.graphs:  # a longer chunk would not be in the profile of its engine
        _, prompts = profiles(note, export)
        assert prompts["input_ids"][2] == (loop.chunk,)
    config = json.loads((copied / "genai_config.json").read_text())
    assert config["search"]["chunk_size"] == loop.chunk


@pytest.mark.usefixtures("gpu")
def test_what_runs_on_the_cpu_alone_is_named(
    dstools: Run, exported_sample: Path, tmp_path: Path
) -> None:
    error, hint = one_error(dstools, exported_sample, "--device", "cuda", "--engine", "genai")
    assert error == "--device cuda: --engine genai runs on the CPU alone"
    assert hint == "leave it out"
    export = replace(require_export(exported_sample), kind="dense")
    with pytest.raises(DstoolsError, match="a dense model runs on the CPU alone"):
        look_at_export("a", tmp_path, export, False, None, "cuda", "dstools")


def test_drafts_need_their_graph(dstools: Run, copied: Path) -> None:
    edit(copied, has_mtp=False)
    error, hint = one_error(dstools, copied, "--mtp")
    assert error == "OUT: has no mtp.onnx"
    assert "leave --mtp out" in hint


def test_an_end_of_another_vocabulary_is_named(ok: Run, copied: Path) -> None:
    path = copied / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [1, 400]}))
    text = ok("generate", copied, "--prompt", "1", "--max-tokens", "2").stderr
    assert "warning: eos_token_id 400: the model has 320 tokens\n" in text


def test_a_prompt_beyond_the_context_is_one_error(dstools: Run, exported_sample: Path) -> None:
    error, hint = one_error(dstools, exported_sample, "--prompt", "7 " * 600)
    assert error.endswith("tokens; the model has 512 positions")
    assert "shorten it" in hint


def test_a_context_shorter_than_the_model_s_is_named_as_such(
    ok: Run, dstools: Run, copied: Path
) -> None:
    pool = json.loads((copied / "export.json").read_text())["pool"]
    edit(copied, pool=pool | {"context_length": 100})
    text = ok("generate", copied, "--prompt", "7", "--max-tokens", "99").stderr
    assert "prompt    1 token, and room for 99 to the --context of the export, 100\n" in text
    error, hint = one_error(dstools, copied, "--prompt", "7 " * 100)
    assert error.endswith(" tokens; OUT was exported with --context 100")
    assert hint == "shorten it, or export the checkpoint with a larger --context"
    result = dstools("bench", copied, "--prompt-tokens", "100")
    assert "or export it with a larger --context\n" in result.stderr


def spoil(folder: Path, name: str) -> None:
    """Make a number of a weight infinite."""
    (weight,) = (w for w in require_export(folder).weights["model.data"] if w.name == name)
    assert weight.dtype == "F32"
    with (folder / "model.data").open("r+b") as data:
        data.seek(weight.offset)
        data.write(struct.pack("<f", math.inf))


def test_logits_that_are_not_finite_end_in_one_error(dstools: Run, copied: Path) -> None:
    spoil(copied, "model.norm.weight")
    wanted = {
        ("generate", "--prompt", SUM): "the logits after 0 tokens of the answer are not finite",
        ("bench",): f"{copied}: the logits are not finite",
    }
    for (command, *words), message in wanted.items():
        result = dstools(command, copied, *words)
        assert (result.exit_code, result.stdout.strip()) == (1, "")
        *_, error, hint = result.stderr.splitlines()
        assert error == f"error: {message}"
        assert hint == f"hint: its weights are damaged: dstools verify {copied} checks them"


def test_a_missing_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DstoolsError, match="needs onnxruntime") as error:
        require_installed("onnxruntime")
    assert error.value.hint == 'pip install "dstools-llm[export]"'


@pytest.mark.parametrize("kind", ["tiny-llama", "tiny-qwen2", "tiny-qwen3"])
def test_a_dense_model_answers_as_its_checkpoint_and_is_timed(
    kind: str, ok: Run, dense_source: Callable[..., Path], dense_folder: Callable[..., Path]
) -> None:
    folder, source = dense_folder(kind), dense_source(kind)
    assert require_export(folder).kind == "dense"
    words = ("--prompt", SUM, "--max-tokens", "6", "--temperature", "0", "--json")
    found = ok("generate", folder, *words)
    wanted = json.loads(ok("generate", source, *words).stdout)
    assert json.loads(found.stdout)["ids"] == wanted["ids"]
    assert "float32 on cpu, the Generator of onnxruntime-genai" in found.stderr
    words = ("--prompt-tokens", "9", "--max-tokens", "5", "--json")
    result = json.loads(ok("bench", folder, *words).stdout)
    assert (result["tokens_per_step"], result["tokens"]) == (1, 5)
    config = json.loads((source / "config.json").read_text())
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    assert result["cache_bytes_per_token"] == 4 * heads * width


def test_a_dense_model_takes_one_prompt_and_no_drafts(
    dstools: Run, dense_folder: Callable[..., Path]
) -> None:
    dense = dense_folder("tiny-llama")
    error, hint = one_error(dstools, dense, "--mtp")
    assert error == "OUT: has no MTP layer"
    assert "leave --mtp out" in hint
    for words, message in ((("--batch", "2"), "--batch 2: "), (("--plain",), "--plain: ")):
        result = dstools("bench", dense, *words)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {message}")


def test_a_damaged_dense_model_is_one_error(
    dstools: Run, dense_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(dense_folder("tiny-llama"), tmp_path / "out"))
    (folder / "model.onnx.data").write_bytes(b"")
    error, hint = one_error(dstools, folder)
    assert error.startswith("OUT/model.onnx.data: has 0 bytes; ")
    assert "dstools verify OUT" in hint


def test_short_memory_names_what_would_fit(
    dstools: Run, exported_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, 25_000_000, None))
    error, hint = one_error(dstools, exported_sample)
    assert error.startswith("the weights in float32 on cpu take 14.86 MB")
    assert hint == "export it with --dtype float16"


def test_a_step_takes_the_scores_of_a_chunk_and_its_logits(exported_sample: Path) -> None:
    """4 heads and 320 tokens: of 200 positions, all at once; of 5000, 512 at a time."""
    known = require_export_of(str(exported_sample), False, "cpu", "dstools")
    assert known.step_bytes(200) == 4 * (3 * 4 * 200 * 200 + 200 * 320)
    known = replace(known, limits=replace(known.limits, context_length=5000))
    assert known.step_bytes(5000) == 4 * (3 * 4 * 512 * 5000 + 512 * 320)
    assert known.positions == 5000
