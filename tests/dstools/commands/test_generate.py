"""`dstools generate`: text as transformers has it, streamed whole, and one error for bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dstools import machine
from dstools.cli import main
from dstools.commands import generate as module
from dstools_converters.checkpoint import folder as checkpoint_folder
from dstools_converters.model.stream import decoded
from dstools_converters.model.tokenizer import load_tokenizer, prompt_ids

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SUM = "State the final answer to the following arithmetic problem: 13 + 27 ="
TRAINED = pytest.param("smollm2", marks=pytest.mark.slow)  # its weights are unpacked first
Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """copied(source, key=value): a copy of a checkpoint with other values in its config."""

    def copy(source: Path, **config: Any) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return copy


def answered(ok: Run, *words: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(ok("generate", *words, "--json").stdout)
    return result


def one_error(dstools: Run, *words: str | Path) -> tuple[str, str]:
    """Return the error and the hint that a command ends with, before any cache is made."""
    result = dstools("generate", *words)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    *_, error, hint = result.stderr.splitlines()
    assert "\npool " not in result.stderr
    assert result.stderr.count("error: ") == result.stderr.count("hint: ") == 1
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("kind", ["sample-v3", TRAINED])
def test_greedy_text_is_that_of_transformers(
    kind: str, ok: Run, checkpoint: Callable[..., Path]
) -> None:
    folder = SAMPLE if kind == "sample-v3" else checkpoint(kind)
    prompt = SUM if kind == "sample-v3" else "Write one sentence about the sea."
    tokenizer = load_tokenizer(folder)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": prompt}])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        whole = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=40)
    wanted = whole[0, len(ids) :].tolist()
    greedy = ("--chat", "--temperature", "0", "--max-tokens", "40")
    answer = answered(ok, folder, "--prompt", prompt, *greedy)
    assert answer["ids"] == wanted
    assert answer["prompt_ids"] == ids
    text = ok("generate", folder, "--prompt", prompt, *greedy).stdout
    ended = answer["reason"] == "stop"
    assert text == decoded(tokenizer, wanted[:-1] if ended else wanted) + "\n"


@pytest.mark.parametrize("temperature", ["0", "1.0"])
def test_drafts_of_the_mtp_layer_change_no_text(temperature: str, ok: Run) -> None:
    words = (SAMPLE, "--prompt", SUM, "--chat", "--temperature", temperature, "--seed", "3")
    plain, fast = answered(ok, *words), answered(ok, *words, "--mtp")
    for key in ("ids", "text", "reason", "sampling"):
        assert fast[key] == plain[key]
    speed = fast["speed"]
    assert (speed["drafted"], len(speed["kept"])) != ([], 0)
    assert speed["kept"][0] > 0.9 * speed["drafted"][0]
    assert speed["tokens_per_step"] > 1.8 > plain["speed"]["tokens_per_step"] == 1.0


def test_json_has_prompt_tokens_text_reason_and_counts(ok: Run) -> None:
    answer = answered(ok, SAMPLE, "--prompt", SUM, "--chat", "--temperature", "0.7", "--top-p", "1")
    tokenizer = load_tokenizer(SAMPLE)
    assert list(answer) == [
        "prompt_ids", "ids", "text", "reason", "prompt_tokens", "tokens", "sampling", "speed"
    ]  # fmt: skip
    assert answer["text"] == decoded(tokenizer, answer["ids"][:-1])
    assert answer["text"].endswith("</think>\n\n40")
    assert (answer["reason"], answer["ids"][-1]) == ("stop", 1)
    assert answer["prompt_tokens"] == len(answer["prompt_ids"])
    assert answer["tokens"] == len(answer["ids"])
    assert answer["sampling"] == {"temperature": 0.7, "top_p": 1.0, "seed": 0}


def test_a_limit_ends_the_answer_with_length(ok: Run) -> None:
    answer = answered(ok, SAMPLE, "--prompt", SUM, "--chat", "--max-tokens", "5")
    assert (answer["reason"], answer["tokens"]) == ("length", 5)


def test_a_prompt_comes_from_stdin_without_its_last_line_feed(ok: Run) -> None:
    words = ["generate", str(SAMPLE), "--prompt", "-", "--json", "--max-tokens", "1"]
    results = [CliRunner().invoke(main, words, input=text) for text in ("1 + 1 =\n", "1 + 1 =")]
    found = [json.loads(result.stdout)["prompt_ids"] for result in results]
    wanted = answered(ok, SAMPLE, "--prompt", "1 + 1 =", "--max-tokens", "1")["prompt_ids"]
    assert found == [wanted, wanted]


def test_a_think_that_the_template_opens_is_part_of_text_and_json(
    ok: Run, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE)
    path = folder / "tokenizer_config.json"
    config, end = json.loads(path.read_text()), "{% endif %}"
    assert config["chat_template"].endswith(f"<｜Assistant｜>{end}")
    config["chat_template"] = (
        config["chat_template"].removesuffix(end) + f"<think>{{{{ '\\n' }}}}{end}"
    )
    path.write_text(json.dumps(config))
    words = (folder, "--prompt", SUM, "--chat")
    answer = answered(ok, *words)
    assert answer["text"] == "<think>\n13+27|3+7+0=10,1+2+1=04|40\n</think>\n\n40"
    assert ok("generate", *words).stdout == answer["text"] + "\n"


def test_bfloat16_takes_half_the_memory(ok: Run) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        words = ("--prompt", "1", "--max-tokens", "2", "--precision", precision)
        text = ok("generate", SAMPLE, *words).stderr
        sizes = re.findall(r"([\d.]+) (?:MB|kB)", text)
        found[precision] = [float(number) for number in sizes]
    # ten numbers of a token: the sizes have four digits
    assert found["float32"] == pytest.approx([2 * n for n in found["bfloat16"]], rel=1e-3)


# ------------------------------------------------------------------------------------------ stderr


def test_stderr_has_sampling_prompt_model_pool_and_speed(ok: Run) -> None:
    lines = ok("generate", SAMPLE, "--prompt", SUM, "--chat", "--mtp").stderr.splitlines()
    sampling, prompt, model, pool, answer = lines
    assert sampling == "sampling  temperature 0 (default)"
    assert prompt == "prompt    10 tokens, and room for 502 to the model's 512 positions"
    assert model == f"model     {SAMPLE}, 14.73 MB in float32 on cpu, ops of torch"
    # 512 tokens x 5 layers x (128 + 64) x 4 bytes
    assert pool == "pool      8 pages of 64 tokens, 512 tokens, 1.966 MB"
    pattern = r"answer    35 tokens \(stop\) in [\d.]+ s, the first after [\d.]+ s; "
    pattern += r"[\d.]+ tokens/s, 2\.00 a step; draft 1: 17 of 17 kept \(100\.0%\)"
    assert re.fullmatch(pattern, answer)


def test_one_token_is_not_called_tokens(ok: Run) -> None:
    lines = ok("generate", SAMPLE, "--prompt", "1", "--max-tokens", "1").stderr.splitlines()
    assert lines[1].startswith("prompt    1 token, and room for 1")
    assert lines[-1].startswith("answer    1 token (length) in ")


def test_the_pool_is_as_large_as_asked(ok: Run) -> None:
    words = ("--prompt", "1 + 1 =", "--max-tokens", "3", "--pool", "65")
    assert "pool      2 pages of 64 tokens, 128 tokens, " in ok("generate", SAMPLE, *words).stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "temperature 0.6 (generation_config.json), top_p 0.95 (generation_config.json), seed"),
        (("--temperature", "0"), "temperature 0 (--temperature)"),
        (("--top-p", "0.5"), "temperature 0.6 (generation_config.json), top_p 0.5 (--top-p), seed"),
    ],
)
def test_sampling_comes_from_the_folder_or_an_option(
    words: tuple[str, ...], line: str, ok: Run, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE)
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps(config))
    first, second, *_ = ok(
        "generate", folder, "--prompt", "1 + 1 =", "--max-tokens", "2", *words
    ).stderr.splitlines()
    assert first.startswith(f"sampling  {line}")
    warning = f"warning: {folder}/generation_config.json: not applied: top_k 20"
    assert (second == warning) == ("--temperature" not in words)  # a greedy answer has no top_k


def test_options_of_draws_are_named_where_nothing_is_drawn(ok: Run) -> None:
    words = ("generate", SAMPLE, "--prompt", "1 + 1 =", "--max-tokens", "2")
    for given, named in (
        (("--top-p", "0.5"), "--top-p"),
        (("--seed", "0"), "--seed"),
        (("--top-p", "0.5", "--seed", "3"), "--top-p and --seed"),
    ):
        _, note, *_ = ok(*words, *given).stderr.splitlines()
        assert note == f"note: at temperature 0 nothing is drawn: {named} not used"
        assert "note" not in ok(*words, *given, "--temperature", "1").stderr
    assert "note" not in ok(*words).stderr


def test_an_end_outside_of_the_vocabulary_is_named(ok: Run, copied: Callable[..., Path]) -> None:
    folder = copied(SAMPLE, eos_token_id=[1, -1, 999_999])
    text = ok("generate", folder, "--prompt", "1 + 1 =", "--max-tokens", "2").stderr
    assert "warning: eos_token_id 999999: the model has 320 tokens\n" in text
    assert "nothing names" not in text


def test_without_an_end_token_it_says_so(ok: Run, copied: Callable[..., Path]) -> None:
    folder = copied(SAMPLE, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
    text = ok("generate", folder, "--prompt", "1 + 1 =", "--max-tokens", "2").stderr
    assert "warning: nothing names a token that ends an answer\n" in text


def test_a_terminal_gets_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\x1b[31m\tb\n\x9b👩\u200d💻\r"
    module._write(text)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    module._write(text)
    assert capsys.readouterr().out == text + "a\\x1b[31m\tb\n\\x9b👩\u200d💻\\r"


def test_the_header_of_each_shard_is_read_once(
    tiny: Path, ok: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoint_folder.read_header
    names: list[str] = []

    def counted(folder: Path, name: str) -> Any:
        names.append(name)
        return read(folder, name)

    monkeypatch.setattr(checkpoint_folder, "read_header", counted)
    ok("generate", tiny, "--prompt", "1", "--max-tokens", "1", "--temperature", "0")
    assert sorted(names) == sorted(path.name for path in tiny.glob("*.safetensors"))


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", "\udcff"), "the prompt is not UTF-8"),
        (("--prompt", "1 + " * 512), "the prompt has 1,024 tokens; the model has 512 positions"),
        (
            ("--pool", "64"),
            "the prompt of 4 tokens and an answer of 508 need a cache of 511 tokens",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_error(
    words: tuple[str, ...], message: str, dstools: Run
) -> None:
    prompt = () if "--prompt" in words else ("--prompt", "1 + 1 =")
    error, hint = one_error(dstools, SAMPLE, *prompt, *words)
    assert error.startswith(message)
    assert hint


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--temperature", "1e-7", "1e-07 is not 0, nor finite and at least 1e-06."),
        ("--temperature", "nan", "nan is not 0, nor finite and at least 1e-06."),
        ("--temperature", "inf", "inf is not 0, nor finite and at least 1e-06."),
        ("--temperature", "-1", "-1 is not 0, nor finite and at least 1e-06."),
        ("--top-p", "1.5", "1.5 is not in the range 0<=x<=1."),
        ("--top-p", "nan", "nan is not in the range 0<=x<=1."),
        ("--seed", "-1", "-1 is not in the range x>=0."),
        ("--max-tokens", "0", "0 is not in the range x>=1."),
        ("--pool", "0", "0 is not in the range x>=1."),
    ],
)
def test_a_value_out_of_range_is_misuse(
    option: str, value: str, message: str, dstools: Run
) -> None:
    result = dstools("generate", SAMPLE, "--prompt", "1", option, value)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: Invalid value for '{option}': {message}"


def test_a_closed_stdout_or_stdin_is_one_error() -> None:
    command = f"{sys.executable} -m dstools generate {SAMPLE} --max-tokens 1 --prompt "
    for words, stream in (("1 >&-", "stdout"), ("- <&-", "stdin")):
        done = subprocess.run(
            command + words, shell=True, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1
        error, hint = done.stderr.splitlines()
        assert error.startswith(f"error: {stream} is closed")
        assert hint.startswith("hint: leave it open")


def test_a_prompt_of_other_bytes_than_utf_8_is_one_error() -> None:
    words = ["generate", str(SAMPLE), "--prompt", "-"]
    result = CliRunner().invoke(main, words, input=b"\xff\xfe")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "error: the prompt is not UTF-8"


def test_v32_beyond_index_topk_is_one_error(dstools: Run, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("tiny-v32")  # index_topk is 16
    error, hint = one_error(dstools, folder, "--prompt", "1 2 3 4 5 6 7 8 9 " * 3)
    assert re.fullmatch(
        r"the prompt has \d+ tokens; beyond index_topk, 16, the attention .*", error
    )
    assert "vLLM" in hint
    result = dstools("generate", folder, "--prompt", "1 2 3", "--temperature", "0")
    assert result.exit_code == 0
    assert "to index_topk, 16\n" in result.stderr


def test_mtp_without_an_mtp_layer_is_one_error(
    dstools: Run, checkpoint: Callable[..., Path]
) -> None:
    for kind in ("tiny-v2", "tiny-qwen3"):
        error, hint = one_error(dstools, checkpoint(kind), "--prompt", "1", "--mtp")
        assert error == f"{checkpoint(kind)}: has no MTP layer"
        assert hint == "leave --mtp out: it changes the speed alone"


def test_mtp_tensors_that_the_config_denies_are_one_error_with_mtp_alone(
    dstools: Run, ok: Run, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE, num_nextn_predict_layers=0)
    words = ("--prompt", SUM, "--chat", "--max-tokens", "9")
    assert answered(ok, folder, *words)["ids"] == answered(ok, SAMPLE, *words)["ids"]
    error, hint = one_error(dstools, folder, "--prompt", "1", "--mtp")
    assert error.startswith("config.json: num_nextn_predict_layers is 0, but the shards hold 1 MTP")
    assert hint == "set num_nextn_predict_layers to 1"


def test_without_mtp_no_tensor_of_the_mtp_layer_is_needed(
    dstools: Run, ok: Run, copied: Callable[..., Path]
) -> None:
    """Nor is one that is left: the layer may be there in part."""
    words = ("--prompt", SUM, "--chat", "--max-tokens", "9")
    wanted = answered(ok, SAMPLE, *words)
    folder = copied(SAMPLE)
    path = folder / "model.safetensors"
    last = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    held = load_file(path)
    path.unlink()
    del held[f"model.layers.{last}.self_attn.o_proj.weight"]
    save_file(held, path, metadata={"format": "pt"})
    assert answered(ok, folder, *words)["ids"] == wanted["ids"]
    error, _ = one_error(dstools, folder, *words, "--mtp")
    assert f"model.layers.{last}.self_attn.o_proj.weight" in error
    kept = {n: weight for n, weight in held.items() if not n.startswith(f"model.layers.{last}.")}
    save_file(kept, path, metadata={"format": "pt"})
    assert answered(ok, folder, *words)["ids"] == wanted["ids"]
    error, hint = one_error(dstools, folder, *words, "--mtp")
    assert error == f"{folder}: has no MTP layer"
    assert hint == "leave --mtp out: it changes the speed alone"


def test_a_hidden_layer_that_the_config_denies_is_not_taken_for_mtp(
    dstools: Run, copied: Callable[..., Path]
) -> None:
    last = json.loads((SAMPLE / "config.json").read_text())["num_hidden_layers"]
    error, _ = one_error(dstools, copied(SAMPLE, num_hidden_layers=last - 1), "--prompt", "1")
    assert f"num_hidden_layers is {last - 1}, but the shards hold layers 0-{last - 1}" in error


def test_a_trained_head_of_a_tied_model_is_one_error_with_a_hint_that_works(
    dstools: Run, ok: Run, copied: Callable[..., Path]
) -> None:
    """Engines differ in which of the two they use, and the other one answers garbage."""
    folder = copied(SAMPLE, tie_word_embeddings=True)
    error, hint = one_error(dstools, folder, "--prompt", "1+1")
    assert re.match(rf"{folder}/model.*\.safetensors: lm_head\.weight: differs from", error), error
    assert hint.startswith("set tie_word_embeddings to false in config.json to use lm_head.weight")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    words = ("--prompt", SUM, "--max-tokens", "8")
    assert answered(ok, folder, *words)["ids"] == answered(ok, SAMPLE, *words)["ids"]


def test_a_family_that_is_not_implemented_names_an_endpoint_as_the_way(
    dstools: Run, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE, model_type=None)
    error, _ = one_error(dstools, folder, "--prompt", "1")
    assert error == f"{folder}: config.json has no model_type"
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    error, hint = one_error(dstools, folder, "--prompt", "1")
    assert error == f"{folder}: model_type 'mixtral' does not run here"
    assert "endpoint" in hint


def test_a_folder_without_a_tokenizer_is_one_error(
    dstools: Run, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    error, hint = one_error(dstools, folder, "--prompt", "1")
    assert error == f"{folder}: has no tokenizer"
    assert "tokenizer.json" in hint


def test_a_tokenizer_with_ids_outside_of_the_vocabulary_is_one_error(
    dstools: Run, tiny: Path, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE)  # of 320 tokens
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / name)
    error, hint = one_error(dstools, folder, "--prompt", "the and for with that have")
    assert re.fullmatch(r"the prompt has the token \d+; the model has 320", error)
    assert hint == "the tokenizer is that of another model"


def test_scales_that_do_not_fit_are_one_error(
    dstools: Run, tiny_fp8: Path, copied: Callable[..., Path]
) -> None:
    folder, name = copied(tiny_fp8), "model.layers.1.self_attn.o_proj.weight_scale_inv"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name] = tensors[name][:-1].contiguous()
            path.unlink()
            save_file(tensors, path, metadata={"format": "pt"})
    error, _ = one_error(dstools, folder, "--prompt", "1")
    assert re.search(r"o_proj\.weight_scale_inv.*; a weight .* has scales", error)


@pytest.mark.parametrize(
    ("free", "words", "message"),
    [
        (10 << 20, (), "the weights in float32 on cpu take 11.31 MB, a cache of 512 tokens "),
        (1 << 40, ("--pool", "9" * 25), "the weights in float32 on cpu take 11.31 MB, a cache "),
    ],
)
def test_a_model_that_does_not_fit_into_memory_is_one_error(
    free: int, words: tuple[str, ...], message: str, dstools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 40, free, None))
    error, hint = one_error(dstools, SAMPLE, "--prompt", "1", *words)
    assert error.startswith(message)
    assert ("--precision bfloat16" in hint) == (not words)
    assert ("--pool" in hint) == bool(words)


def overflow(folder: Path, name: str) -> None:
    """Set a weight to the largest numbers that the reader takes."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name][:] = 3e38  # finite, or the reader refuses it
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("as_json", [True, False])
def test_logits_that_are_not_finite_end_in_one_error(
    as_json: bool, dstools: Run, copied: Callable[..., Path]
) -> None:
    folder = copied(SAMPLE)
    overflow(folder, "model.norm.weight")
    result = dstools("generate", folder, "--prompt", "1 + 1 =", *["--json"] * as_json)
    assert result.exit_code == 1
    *_, speed, error, hint = result.stderr.splitlines()
    assert re.fullmatch(r"answer    0 tokens \(error\) in [\d.]+ s", speed)
    assert error == "error: the logits after 0 tokens of the answer are not finite"
    assert hint.startswith("hint: its weights are damaged: dstools verify ")
    if as_json:
        answer = json.loads(result.stdout)
        assert (answer["reason"], answer["ids"], answer["text"]) == ("error", [], "")
    else:
        assert result.stdout == "\n"


def test_an_mtp_layer_whose_logits_are_not_finite_is_named(
    ok: Run, copied: Callable[..., Path]
) -> None:
    words = ("--prompt", SUM, "--chat", "--max-tokens", "4", "--mtp")
    whole = ok("generate", SAMPLE, *words)
    assert "warning" not in whole.stderr
    folder = copied(SAMPLE)
    overflow(folder, "model.layers.4.eh_proj.weight")
    damaged = ok("generate", folder, *words)
    assert damaged.stdout == whole.stdout
    *_, answer, warning = damaged.stderr.splitlines()
    assert answer.endswith("draft 1: 0 of 0 kept")
    # after the first and the second token; after the third there is room for one more alone
    assert warning.startswith("warning: the weights of the MTP layer are damaged: 2 of its drafts ")


# ------------------------------------------------------------------------------- ends of processes


@pytest.fixture
def endless(copied: Callable[..., Path]) -> Path:
    """A model that counts on to the last of many positions: nothing ends its answer."""
    folder = copied(SAMPLE, eos_token_id=None, max_position_embeddings=100_000)
    (folder / "generation_config.json").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": None}))
    return folder


def test_ctrl_c_ends_it_with_130_and_keeps_the_text(endless: Path) -> None:
    command = [sys.executable, "-m", "dstools", "generate", str(endless), "--prompt", "1 + 1 ="]
    run = subprocess.Popen(
        [*command, "--max-tokens", "90000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.stdout
    begun = run.stdout.read(1)  # it streams
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert begun + stdout
    last = stderr.decode().splitlines()[-1]
    assert re.match(r"answer    \d+ tokens? \(interrupted\) in ", last)
    assert b"Traceback" not in stderr
    assert b"resumes" not in stderr


def test_ctrl_c_before_the_answer_promises_nothing(
    dstools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_loop", interrupted)
    result = dstools("generate", SAMPLE, "--prompt", "1", "--json")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "interrupted"


def test_a_reader_that_goes_away_is_no_error(endless: Path) -> None:
    command = f"{sys.executable} -m dstools generate {endless} --prompt '1 + 1 =' --temperature 1 "
    command += "--max-tokens 90000 | head -c 20"
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert len(done.stdout.encode()) == 20
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "answer " not in done.stderr  # it stopped
