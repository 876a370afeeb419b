"""The fit of an MTP layer: drafts are kept again, and nothing else of the model changes."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dstools.cli import main
from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import answer_form, prompt_ids
from dstools_distill.recipe.settings import Mtp, Sft
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.training import mtp as module
from dstools_distill.training.mtp import mtp
from dstools_distill.training.sft import sft

DATA = Path(__file__).parents[2] / "data"
SAMPLE = DATA / "sample-v3"
LAYER = "model.layers.4."
SHORT = Mtp(max_steps=12, batch_size=8)


@pytest.fixture(autouse=True, scope="module")  # before the fixtures of this scope
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_rows(folder: Path, count: int, separators: str = ",|") -> Path:
    """Write conversations of the sample's data as `render` does.

    separators: of the columns of a written sum, and of its parts.
    """
    tokenizer = load_tokenizer(SAMPLE, "")
    end = answer_form(tokenizer).end
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    with (DATA / "sample-v3-calibration.jsonl").open() as lines:
        for line, _ in zip(lines, range(count), strict=False):
            *asked, answer = json.loads(line)["messages"]
            prompt = prompt_ids(tokenizer, asked)
            written = answer["content"].translate(str.maketrans(",|", separators))
            target = [*tokenizer.encode(written, add_special_tokens=False), end]
            columns["input_ids"].append([*prompt, *target])
            columns["labels"].append([*[-100] * len(prompt), *target])
    table = pa.table(columns)
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rendered") / "rows", 48)


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with an MTP layer that reads its input badly, in two shards, float32 trunk."""
    folder = tmp_path_factory.mktemp("stale")
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(SAMPLE / name, folder / name)
    weights = load_file(SAMPLE / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    projection = weights[f"{LAYER}eh_proj.weight"]
    noise = torch.randn(projection.shape, generator=draw) * projection.float().std() * 2
    weights[f"{LAYER}eh_proj.weight"] = (projection.float() + noise).bfloat16()
    for name in ("embed_tokens", "shared_head.head"):  # copies of what a training has changed
        weights[f"{LAYER}{name}.weight"] = torch.zeros_like(weights[f"{LAYER}{name}.weight"])
    mtp_layer = {name for name in weights if name.startswith(LAYER)}
    index = {}
    for shard, names in (("a", weights.keys() - mtp_layer), ("b", mtp_layer)):
        save_file({name: weights[name] for name in sorted(names)}, folder / f"{shard}.safetensors")
        index |= dict.fromkeys(names, f"{shard}.safetensors")
    table = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


def fit(settings: Mtp, rows: Path, model: Path, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return mtp(settings, Inputs(rows=rows, model=model), Work(out))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def fitted(
    rows: Path, stale: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("fitted") / "out"
    return out, fit(SHORT, rows, stale, out)


def test_drafts_are_kept_again(fitted: tuple[Path, dict[str, Any]]) -> None:
    _, report = fitted
    kept = report["drafts_kept"]
    assert kept["before"] < 0.8
    assert kept["after"] > 0.9
    assert report["layer"] == "fitted"
    assert (report["in"], report["out"], report["held_out"], report["steps"]) == (48, 48, 2, 12)
    sizes = {n: t.numel() for n, t in load_file(SAMPLE / "model.safetensors").items()}
    assert report["parameters"] == sum(sizes.values())
    still = ("embed_tokens.weight", "shared_head.head.weight", "e_score_correction_bias")
    learning = [name for name in sizes if name.startswith(LAYER) and not name.endswith(still)]
    assert report["trained_parameters"] == sum(sizes[name] for name in learning)


def test_before_it_is_fitted_the_layer_of_the_sample_is_measured_as_its_readme_has_it(
    rows: Path, tmp_path: Path
) -> None:
    """97.6 % of its drafts are kept; of some 140 tokens, 4 standard errors are 5 points."""
    report = fit(replace(SHORT, max_steps=1), rows, SAMPLE, tmp_path / "out")
    assert report["drafts_kept"]["before"] > 0.976 - 0.05


def test_a_fit_that_keeps_fewer_drafts_leaves_the_layer_as_it_was(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its learning rate spoils the layer in two steps; copies of the model's tensors are equal."""
    report = fit(replace(SHORT, max_steps=2, learning_rate=10.0), rows, SAMPLE, tmp_path / "out")
    kept = report["drafts_kept"]
    assert kept["before"] == kept["after"] > 0.9
    assert re.fullmatch(r"as it was, since the fit kept \d+\.\d%", report["layer"])
    assert report["layer"] in caplog.text
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (SAMPLE / name).read_bytes()


def test_all_other_bytes_are_those_of_the_model(
    stale: Path, fitted: tuple[Path, dict[str, Any]]
) -> None:
    out, _ = fitted
    before, after = files(stale), files(out)
    assert after.keys() - before.keys() == {"curve.jsonl"}
    assert {name for name in before if before[name] != after[name]} == {"b.safetensors"}
    old, new = (load_file(folder / "b.safetensors") for folder in (stale, out))
    same = {name for name in old if old[name].equal(new[name])}
    assert same == {f"{LAYER}mlp.gate.e_score_correction_bias"}
    assert {n: (t.dtype, t.shape) for n, t in old.items()} == {
        n: (t.dtype, t.shape) for n, t in new.items()
    }
    trunk = load_file(out / "a.safetensors")
    assert new[f"{LAYER}embed_tokens.weight"].equal(trunk["model.embed_tokens.weight"])
    assert new[f"{LAYER}shared_head.head.weight"].equal(trunk["lm_head.weight"])


def require_use(model: Path, folder: Path) -> None:
    """Quantize and verify a model; drafts must be kept, and change no token of either."""
    for words in (["quantize", model, folder / "fp8"], ["verify", folder / "fp8"]):
        made = CliRunner().invoke(main, [str(word) for word in words])
        assert made.exit_code == 0, made.output
    asked = ["generate", str(folder / "fp8"), "--prompt", "7 + 8 =", "--max-tokens", "24", "--json"]
    drawn = [CliRunner().invoke(main, [*asked, *words]).stdout for words in ([], ["--mtp"])]
    plain, drafted = map(json.loads, drawn)
    assert plain["ids"] == drafted["ids"]
    assert sum(drafted["speed"]["kept"]) > 0
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded._keys_to_ignore_on_load_unexpected = [
        r"model\.layers\.4\."
    ]  # of 61 in transformers 5.23
    loaded.set_experts_implementation("eager")
    question = [{"role": "user", "content": "7+8"}]
    ids = torch.tensor([prompt_ids(load_tokenizer(model, ""), question)])
    greedy = {"max_new_tokens": 40, "do_sample": False}
    assert loaded.generate(ids, use_mtp=True, **greedy).equal(loaded.generate(ids, **greedy))


def test_the_result_is_quantized_and_verified_and_drafts_change_no_token(
    fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    require_use(fitted[0], tmp_path)


@pytest.mark.slow
def test_after_training_on_another_handwriting_drafts_are_kept_again(tmp_path: Path) -> None:
    """75 % and 97 % where this was written; of some 1,400 tokens a standard error is a point."""
    rows = write_rows(tmp_path / "rows", 400, separators=";/")
    training = Sft(
        learning_rate=1e-3, warmup_steps=10, max_steps=65, batch_size=8, micro_batch_size=8,
        precision="float32",
    )  # fmt: skip
    trained, out = tmp_path / "sft", tmp_path / "out"
    trained.mkdir()
    sft(training, Inputs(rows=rows, model=SAMPLE, tokenizer=SAMPLE), Work(trained))
    kept = fit(Mtp(max_steps=90), rows, trained, out)["drafts_kept"]
    assert kept["before"] <= 0.80
    assert kept["after"] >= 0.95
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, out))
    assert all(before[name].equal(after[name]) for name in before if not name.startswith(LAYER))
    require_use(out, tmp_path)


def test_a_killed_run_resumes_in_layers_and_in_steps_to_the_same_bytes(
    rows: Path, stale: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Killed(BaseException):
        pass

    def killing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
        calls = iter(range(at))

        def call(*args: Any) -> Any:
            if next(calls, None) is None:
                raise Killed
            return function(*args)

        return call

    out, report = fitted
    for owner, name, at in ((module.Drafter, "__init__", 0), (module, "_step", 11)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name), at))
            with pytest.raises(Killed):
                fit(SHORT, rows, stale, tmp_path / "out")
    (tmp_path / "out" / "states-0-4").unlink()  # a kill earlier
    curve = (tmp_path / "out" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in curve] == [10]
    steps = []
    real = module._step
    monkeypatch.setattr(module, "_step", lambda *args: steps.append(1) or real(*args))
    assert fit(SHORT, rows, stale, tmp_path / "out") == report
    assert len(steps) == 1  # a short run is saved ten times
    assert files(tmp_path / "out") == files(out)


def test_models_that_cannot_be_fitted_are_refused(
    rows: Path, sample_fp8: Path, tmp_path: Path
) -> None:
    with pytest.raises(DstoolsError, match="is quantized"):
        fit(SHORT, rows, sample_fp8, tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    weights = load_file(SAMPLE / "model.safetensors")
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith(LAYER)}
    save_file(trunk, bare / "model.safetensors")
    config = json.loads((SAMPLE / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(DstoolsError, match="has 0 MTP layers"):
        fit(SHORT, rows, bare, tmp_path / "out")


def test_rows_that_cannot_be_trained_on_are_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"rows\.arrow: 1 rows can be trained on"):
        fit(SHORT, write_rows(tmp_path / "one", 1), SAMPLE, tmp_path / "out")
    changed = tmp_path / "model"
    shutil.copytree(SAMPLE, changed)
    config = json.loads((changed / "config.json").read_text())
    for key, value, message in (
        ("max_position_embeddings", 16, "the student 16 positions"),
        ("vocab_size", 32, r"row 1 has token \d+, the student 32"),
    ):
        (changed / "config.json").write_text(json.dumps(config | {key: value}))
        if key == "vocab_size":
            cut_vocabulary(changed, value)
        with pytest.raises(DstoolsError, match=message):
            fit(SHORT, rows, changed, tmp_path / "out")


def cut_vocabulary(model: Path, size: int) -> None:
    """Keep so many rows of the embeddings and the head, as if for another tokenizer."""
    weights = load_file(model / "model.safetensors")
    for name in weights:
        if name.endswith(("embed_tokens.weight", "head.weight")):
            weights[name] = weights[name][:size].clone()
    save_file(weights, model / "model.safetensors")


def test_rows_are_drawn_once_an_epoch(tmp_path: Path) -> None:
    """Ten rows in steps of four: five steps are two epochs."""
    drawn = [
        n for step in module._order(list(range(10)), 5, replace(SHORT, batch_size=4)) for n in step
    ]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
