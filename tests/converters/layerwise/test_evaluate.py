"""`evaluate` against transformers: whole logits, log_softmax in float64, direct products.

The tolerances. Both sides compute in float32 in different orders, so a logit is off by some unit
roundoffs 2^-24 times the square roots of the lengths of its sums: for the depths and widths here
less than DELTA = 1e-5 of the largest logit (measured: 2e-6). If logits a (reference) and b (model)
are off by at most d, log-probabilities move by 2 d. The derivative of KL with respect to b is q -
p, to a it is p (log p/q - KL): KL moves by d times the sums of their magnitudes, and by 4 d^2. The
likeliest token changes only if the two best are within 2 d of each other.
"""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise import evaluate as module
from dstools_converters.layerwise import runner as layerwise
from dstools_converters.layerwise import scores
from dstools_converters.layerwise.activations import ABSORBED
from dstools_converters.layerwise.corpus import Corpus, read_corpus
from dstools_converters.layerwise.evaluate import KL_EDGES, router_flips, total_bytes
from dstools_converters.layerwise.spill import Spill
from dstools_converters.sidefiles.evaluation import (
    Activations,
    Evaluation,
    Figures,
    read_evaluation,
    write_evaluation,
)
from dstools_kernels.ops import act_quant

Checkpoint = Callable[..., Path]
Run = Callable[..., Evaluation]
DELTA = 1e-5
ROUTED = ("routed_gate", "routed_up", "routed_down")


def corpus(ids: Tensor) -> Corpus:
    samples, length = ids.shape
    return Corpus(ids.int().numpy(), "ids", "0" * 64, samples, length, 0, 1, ids.numel())


def some_ids(samples: int, length: int, vocabulary: int = 1024) -> Tensor:
    return torch.randint(vocabulary, (samples, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(model, against, ids, ram_bytes=...): the report, by default that of weights alone."""

    def get(
        model: Path,
        against: Path | None,
        ids: Tensor | Corpus,
        ram_bytes: int = 1 << 30,
        device: str = "cpu",
        activations: Activations | None = "none",
        **more: Any,
    ) -> Evaluation:
        spills = tmp_path / "spills"
        spills.mkdir()
        with open_checkpoint(model) as opened, open_checkpoint(against or model) as reference:
            report = module.evaluate(
                require_sound(opened),
                require_sound(reference) if against else None,
                ids if isinstance(ids, Corpus) else corpus(ids),
                activations=activations,
                tool="dstools 0",
                device=device,
                ram_bytes=ram_bytes,
                folder=spills,
                **more,
            )
        spills.rmdir()  # it must be empty
        return report

    return get


# ---------------------------------------------------------------------- an independent computation


def restored(folder: Path) -> dict[str, Tensor]:
    """Every weight in float32, FP8 as code times the scale of its block of 128 x 128."""
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= load_file(path)
    weights = {}
    for name, tensor in stored.items():
        if not name.endswith("_scale_inv"):
            weights[name] = tensor.float()
        if tensor.dtype == torch.float8_e4m3fn:
            scale = stored[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            weights[name] *= scale[: tensor.shape[0], : tensor.shape[1]]
    return weights


class Seen(NamedTuple):
    """The outputs and inputs of transformers' model."""

    logits: Tensor  # [T, V] float64
    inputs: dict[str, Tensor]  # of each linear map, and of each layer's mlp, [T, D]
    experts: dict[int, Tensor]  # [T, K] by layer


@torch.inference_mode()
def theirs(
    folder: Path,
    weights: dict[str, Tensor],
    ids: Tensor,
    place: Path,
    is_rounded: Callable[[str], bool] = lambda name: False,
) -> Seen:
    """Load `weights` as a float32 checkpoint with the config of `folder`, and run it.

    The inputs of the modules for which `is_rounded` are rounded, as engines do.
    """
    place.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (place / "config.json").write_text(json.dumps(config))
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    inputs: dict[str, Tensor] = {}
    experts: dict[int, Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear) or name.endswith(".mlp"):

            def see(_: Any, args: Any, name: str = name) -> None:
                inputs[name] = args[0].flatten(0, -2)

            part.register_forward_pre_hook(see)
        if is_rounded(name):
            part.register_forward_pre_hook(lambda _, args: (act_quant.rounded(args[0]),))
        if name.endswith(".mlp.gate"):

            def route(_: Any, __: Any, out: Any, layer: int = int(name.split(".")[2])) -> None:
                experts[layer] = out[2]

            part.register_forward_hook(route)
    logits = model(ids, use_cache=False).logits.double().flatten(0, 1)
    shutil.rmtree(place)
    return Seen(logits, inputs, experts)


def check_scores(report: Evaluation, reference: Seen, model: Seen, ids: Tensor) -> None:
    """Every figure of the predictions, from whole logits."""
    samples, length = ids.shape
    is_last = torch.arange(samples * length) % length == length - 1
    a, b = reference.logits[~is_last], model.logits[~is_last]
    targets = ids[:, 1:].flatten()
    log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    off = DELTA * max(a.abs().max().item(), b.abs().max().item())
    for perplexity, log in ((report.perplexity_against, log_p), (report.perplexity, log_q)):
        wanted = math.exp(-log.gather(1, targets[:, None]).mean().item())
        assert perplexity == pytest.approx(wanted, rel=2 * off)

    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    kl_off = off * (log_q.exp() - log_p.exp()).abs().sum(-1)
    kl_off += off * (log_p.exp() * (log_p - log_q - kl[:, None])).abs().sum(-1) + 4 * off**2
    assert kl_off.mean() < 0.01 * kl.mean()
    assert report.kl_mean == pytest.approx(kl.mean().item(), abs=kl_off.mean().item())
    assert report.kl_p99 == pytest.approx(np.quantile(kl.numpy(), 0.99), abs=kl_off.max().item())
    assert report.kl_max == pytest.approx(kl.max().item(), abs=kl_off.max().item())

    assert report.tokens == len(targets) == samples * (length - 1)
    best = torch.stack([x.topk(2).values for x in (a, b)])
    close = int(((best[..., 0] - best[..., 1]) < 2 * off).any(0).sum())
    agreed = int((a.argmax(-1) == b.argmax(-1)).sum())
    assert report.top1_agreement is not None
    assert abs(report.top1_agreement * len(targets) - agreed) <= close + 1e-9
    assert close < 0.05 * len(targets)

    assert report.kl_histogram is not None
    edges, counts = report.kl_histogram.edges, report.kl_histogram.counts
    assert edges == KL_EDGES
    assert sum(counts) == len(targets)
    for edge, below in zip(edges[1:-1], np.cumsum(counts), strict=False):
        near = int(((kl - edge).abs() <= kl_off).sum())
        assert abs(int((kl < edge).sum()) - below) <= near


@pytest.fixture(scope="module")
def moe(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Tensor, Seen, Seen, list[dict[str, Tensor]]]:
    """tiny-aligned and its FP8, ids, the outputs of transformers for both, and their weights."""
    folders = [checkpoint("tiny-aligned"), checkpoint("tiny-aligned", fp8="float32")]
    ids = some_ids(3, 96)
    weights = [restored(folder) for folder in folders]
    place = tmp_path_factory.mktemp("theirs")
    seen = [
        theirs(folder, part, ids, place / str(n))
        for n, (folder, part) in enumerate(zip(folders, weights, strict=True))
    ]
    return folders[0], folders[1], ids, seen[0], seen[1], weights


def test_the_figures_are_those_of_whole_logits_in_transformers(moe: Any, run: Run) -> None:
    source, model, ids, reference, subject, _ = moe
    check_scores(run(model, source, ids), reference, subject, ids)


@pytest.mark.slow
def test_the_figures_are_those_of_transformers_for_a_trained_model_and_text(
    checkpoint: Checkpoint, quantized: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    """The head is tied, and the 49,152 rows of FP8 are 48 slabs."""
    source = checkpoint("smollm2")
    model = quantized(source)
    text = Path(__file__).parents[3] / "README.md"
    data = read_corpus(text, source, samples=3, seq_len=128, seed=0, vocab_size=49152)
    ids = torch.from_numpy(data.ids).long()
    seen = [
        theirs(folder, restored(folder), ids, tmp_path / "theirs") for folder in (source, model)
    ]
    report = run(model, source, data)
    check_scores(report, seen[0], seen[1], ids)
    assert dataclasses.asdict(report.data) == data.provenance
    assert report.router_flips == {}
    layer, name = 7, "model.layers.7.mlp.down_proj"
    wanted = output_error(
        seen[0].inputs[name], *(restored(f)[f"{name}.weight"] for f in (source, model))
    )
    errors = {(error.layer, error.role): error for error in report.output_error}
    assert errors[layer, "dense_down"].error == pytest.approx(wanted, rel=1e-4)


def test_kl_is_from_the_reference_to_the_model_and_not_back(
    moe: Any, edited: Path, run: Run
) -> None:
    """A head 64 times as large gives, to the bit, 64 times the logits: nearly all on one token."""
    source, _, ids, reference, *_ = moe
    change(edited, "lm_head.weight", lambda weight: weight * 64)
    is_last = torch.arange(ids.numel()) % ids.shape[1] == ids.shape[1] - 1
    log_p = reference.logits[~is_last].log_softmax(-1)
    log_q = (64 * reference.logits[~is_last]).log_softmax(-1)
    there = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    back = (log_q.exp() * (log_q - log_p)).sum(-1).mean().item()
    assert there > 5 * back
    for model, against, wanted in ((edited, source, there), (source, edited, back)):
        report = run(model, against, ids)
        assert report.kl_mean == pytest.approx(wanted, rel=1e-4)
        assert report.top1_agreement == 1
        assert {error.error for error in report.output_error} == {0}


def output_error(inputs: Tensor, reference: Tensor, other: Tensor) -> float:
    """Compute the formula in float64."""
    x, w, o = inputs.double(), reference.double(), other.double()
    return math.sqrt(float((x @ (o - w).T).square().sum() / (x @ w.T).square().sum()))


def test_output_errors_are_those_of_direct_products_on_the_reference_s_inputs(
    moe: Any, run: Run
) -> None:
    """Inputs and products are off by a few 1e-6; errors of roles differ by more than 1e-4."""
    source, model, ids, reference, _, (before, after) = moe
    report = run(model, source, ids)
    errors = {(error.layer, error.role): error for error in report.output_error}
    assert len(errors) == len(report.output_error)

    checked = set()
    for name, inputs in reference.inputs.items():
        role = name.rpartition(".")[2].removesuffix("_proj")
        where = name.split(".")
        if len(where) < 4 or not role or name.endswith(("mlp", "mlp.gate")):
            continue
        if where[3] == "self_attn":
            role = where[-1]
        elif "shared_experts" in where:
            role = f"shared_{role}"
        else:
            role = f"dense_{role}"
        error = errors[int(where[2]), role]
        w, o = before[f"{name}.weight"], after[f"{name}.weight"]
        assert error.error == pytest.approx(output_error(inputs, w, o), rel=1e-4), name
        assert error.numel == w.numel()
        checked.add((int(where[2]), role))

    for layer, experts_TK in reference.experts.items():  # one at a time, on the tokens it was sent
        x_TD = reference.inputs[f"model.layers.{layer}.mlp"].double()
        sums = {role: [0.0, 0.0, 0] for role in ROUTED}
        for expert in range(int(experts_TK.max()) + 1):
            given = x_TD[(experts_TK == expert).any(1)]
            module_name = f"model.layers.{layer}.mlp.experts.{expert}"
            gate, up = (before[f"{module_name}.{n}_proj.weight"].double() for n in ("gate", "up"))
            inner = torch.nn.functional.silu(given @ gate.T) * (given @ up.T)
            for role in ROUTED:
                name = f"{module_name}.{role.removeprefix('routed_')}_proj.weight"
                w, o = before[name].double(), after[name].double()
                x = inner if role == "routed_down" else given
                sums[role][0] += float((x @ (o - w).T).square().sum())
                sums[role][1] += float((x @ w.T).square().sum())
                sums[role][2] += w.numel()
        for role, (difference, total, numel) in sums.items():
            error = errors[layer, role]
            assert error.error == pytest.approx(math.sqrt(difference / total), rel=1e-4), role
            assert error.numel == numel
            checked.add((layer, role))
    assert checked == errors.keys()
    assert len({error.role for error in report.output_error}) == 14  # none left out
    assert all(0.005 < error.error < 0.05 for error in report.output_error)


def test_router_flips_are_the_choices_that_the_model_does_not_make(moe: Any, run: Run) -> None:
    source, model, ids, reference, subject, _ = moe
    wanted = {}
    for layer, experts_TK in reference.experts.items():
        made = [set(row) for row in subject.experts[layer].tolist()]
        lost = [
            expert not in made[token]
            for token, row in enumerate(experts_TK.tolist())
            for expert in row
        ]
        wanted[layer] = sum(lost) / len(lost)
    flips = run(model, source, ids).router_flips
    assert flips == pytest.approx(wanted, abs=1e-12)
    assert min(flips.values()) > 0
    assert max(flips.values()) < 0.5


def test_a_flip_is_counted_by_token_and_expert_in_any_order() -> None:
    wanted = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    made = torch.tensor([[1, 0], [3, 9], [8, 9], [7, 6]])  # 0 + 1 + 2 + 0 of 8
    assert router_flips(wanted, made) == 3 / 8


# -------------------------------------------------------------------------------------- activations


def test_with_fp8_activations_the_figures_are_those_of_transformers_with_rounded_inputs(
    checkpoint: Checkpoint, quantized: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    """A dense model: transformers fuses experts, whose inner inputs have no hook.

    An input between two codes may go the other way where sums are in another order: of 285
    predictions the mean KL moves by less than 1 %, and leaving out one role moves it by more.
    """
    source = checkpoint("tiny-qwen3")
    model, ids = quantized(source), some_ids(3, 96)

    def kl(is_rounded: Callable[[str], bool]) -> float:
        place = tmp_path / "theirs"
        seen = theirs(model, restored(model), ids, place, is_rounded).logits.log_softmax(-1)
        return (log_p.exp() * (log_p - seen))[~is_last].sum(-1).mean().item()

    is_last = torch.arange(ids.numel()) % ids.shape[1] == ids.shape[1] - 1
    log_p = theirs(source, restored(source), ids, tmp_path / "theirs").logits.log_softmax(-1)
    report = run(model, source, ids, activations="fp8")
    assert report.activations == "fp8"
    assert report.kl_mean == pytest.approx(kl(lambda name: name.endswith("_proj")), rel=0.01)
    assert report.kl_mean != pytest.approx(
        kl(lambda name: name.endswith("_proj") and "o_proj" not in name), rel=0.01
    )
    assert report.other_activations is not None
    assert report.other_activations.kl_mean == pytest.approx(kl(lambda name: False), rel=1e-3)


def test_both_figures_are_the_same_whichever_is_asked_for(moe: Any, run: Run) -> None:
    source, model, ids, *_ = moe
    default, fp8, none = (run(model, source, ids, activations=a) for a in (None, "fp8", "none"))
    assert default == fp8
    assert (fp8.activations, none.activations) == ("fp8", "none")
    for one, other in ((fp8, none), (none, fp8)):
        assert other.other_activations is not None
        for name, value in vars(other.other_activations).items():
            assert getattr(one, name) == value, name
    assert fp8.output_error == none.output_error
    assert fp8.kl_mean is not None
    assert none.kl_mean is not None
    assert fp8.kl_mean > 1.2 * none.kl_mean
    assert fp8.router_flips != none.router_flips


def test_without_a_reference_there_are_both_perplexities(moe: Any, run: Run) -> None:
    source, model, ids, *_ = moe
    alone, both = (run(model, other, ids, activations=None) for other in (None, source))
    assert both.other_activations is not None
    assert alone.perplexity == both.perplexity != both.other_activations.perplexity
    wanted = Figures(activations="none", perplexity=both.other_activations.perplexity)
    assert alone.other_activations == wanted


def test_fp8_against_itself_is_off_by_its_activations_alone(moe: Any, run: Run) -> None:
    """The reference is never rounded, whatever its format."""
    _, model, ids, *_ = moe
    report = run(model, model, ids, activations=None)
    assert report.kl_mean is not None
    assert report.kl_mean > 0
    assert report.other_activations is not None
    assert report.other_activations.kl_max == 0
    assert report.other_activations.perplexity == report.perplexity_against


def test_a_bf16_model_against_fp8_has_one_figure(moe: Any, run: Run) -> None:
    source, model, ids, *_ = moe
    report = run(source, model, ids, activations=None)
    assert (report.activations, report.other_activations) == ("none", None)
    assert report == run(source, model, ids, activations="none")
    with pytest.raises(DstoolsError, match="has no FP8 weights, so no engine rounds its act"):
        run(source, model, ids, activations="fp8")


def test_what_is_absorbed_in_decoding_is_not_rounded() -> None:
    assert {"kv_b_proj"} == ABSORBED


# --------------------------------------------------------------------------------------- invariants


def test_a_checkpoint_against_itself_differs_in_nothing(tiny_aligned: Path, run: Run) -> None:
    """Exactly: the same operations on the same numbers, and a KL whose terms are all 0."""
    report = run(tiny_aligned, tiny_aligned, some_ids(2, 64))
    assert (report.kl_mean, report.kl_p99, report.kl_max) == (0, 0, 0)
    assert report.perplexity == report.perplexity_against
    assert report.top1_agreement == 1
    assert set(report.router_flips.values()) == {0}
    assert {error.error for error in report.output_error} == {0}
    assert report.kl_histogram is not None
    assert report.kl_histogram.counts == (126, *[0] * (len(KL_EDGES) - 2))


def test_without_a_reference_the_perplexity_is_the_same_and_the_rest_is_missing(
    moe: Any, run: Run
) -> None:
    source, model, ids, *_ = moe
    alone, both = run(model, None, ids), run(model, source, ids)
    assert alone.perplexity == both.perplexity
    assert alone.tokens == both.tokens
    missing = ["against", "perplexity_against", "kl_mean", "kl_p99", "kl_max", "top1_agreement"]
    for name in (*missing, "kl_histogram"):
        assert getattr(alone, name) is None
    assert (alone.router_flips, alone.output_error) == ({}, ())


def test_the_report_is_written_and_read_back_as_it_is(moe: Any, run: Run, tmp_path: Path) -> None:
    source, model, ids, *_ = moe
    report = run(model, source, ids)
    assert (report.model, report.against) == (model.name, source.name)
    write_evaluation(report, tmp_path)
    with open_checkpoint(model) as opened:
        assert read_evaluation(tmp_path, require_sound(opened)) == report


def test_spilled_to_the_disk_the_numbers_are_the_same_to_the_bit(moe: Any, run: Run) -> None:
    source, model, ids, *_ = moe
    assert run(model, source, ids, ram_bytes=0) == run(model, source, ids)


@pytest.mark.gpu
def test_the_figures_of_a_gpu_are_those_of_transformers_on_the_cpu(moe: Any, run: Run) -> None:
    source, model, ids, reference, subject, _ = moe
    check_scores(run(model, source, ids, device="cuda"), reference, subject, ids)


@pytest.mark.parametrize("ram_bytes", [0, 1 << 30])
def test_batches_and_slabs_change_no_more_than_the_order_of_sums(
    moe: Any, run: Run, monkeypatch: pytest.MonkeyPatch, ram_bytes: int
) -> None:
    """Batches of 96 tokens, and 1024 rows of vocabulary in 8 slabs of 128."""
    source, model, ids, reference, subject, _ = moe
    for where in (layerwise, scores):
        monkeypatch.setattr(where, "TOKENS_AT_A_TIME", 100)
    monkeypatch.setattr(scores, "SLAB_ROWS", 200)
    check_scores(run(model, source, ids, ram_bytes=ram_bytes), reference, subject, ids)


def test_progress_ends_at_the_total(moe: Any, run: Run) -> None:
    source, model, ids, *_ = moe
    reported: list[int] = []
    run(model, source, ids, progress=reported.append)
    with open_checkpoint(source) as a, open_checkpoint(model) as b:
        assert sum(reported) == total_bytes(require_sound(a), require_sound(b))


@pytest.mark.parametrize(
    ("is_fp8", "fits", "peak_fits"), [(False, 2, 0), (False, 3, 3), (True, 4, 0), (True, 5, 5)]
)
def test_hidden_states_in_memory_stay_below_ram(
    is_fp8: bool, fits: int, peak_fits: int, moe: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running model uses two a stream, one belongs to the other: all fit, or are spilled."""
    source, model, ids, *_ = moe
    size = ids.numel() * 256 * 4
    held, peak = 0, 0

    class Counted(Spill):
        def __init__(self, rows: int, width: int, file: Path | None) -> None:
            nonlocal held, peak
            super().__init__(rows, width, file)
            held += (file is None) * rows * width * 4
            peak = max(peak, held)

        def close(self) -> None:
            nonlocal held
            super().close()
            held -= (self.file is None) * self.rows * self.width * 4

    monkeypatch.setattr(layerwise, "Spill", Counted)
    run(model if is_fp8 else source, source, ids, ram_bytes=fits * size)
    assert (held, peak) == (0, peak_fits * size)


def test_nothing_else_grows_with_the_samples(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Hidden states are spilled, and 20,480 tokens are added in the same process.

    One copy of their states would be 21 MB. Some 100 bytes are kept per token, 2 MB in all, and the
    allocator takes some MB more or less.
    """
    model = str(checkpoint("tiny-llama"))
    code = f"""
import resource, torch
from pathlib import Path
from test_evaluate import corpus, some_ids, module, open_checkpoint, require_sound
torch.set_num_threads(1)
for n, samples in enumerate((32, 192)):
    folder = Path({str(tmp_path)!r}) / str(n)
    folder.mkdir()
    with open_checkpoint(Path({model!r})) as opened:
        inventory, ids = require_sound(opened), some_ids(samples, 128)
        options = {{"tool": "", "device": "cpu", "ram_bytes": 0, "folder": folder}}
        module.evaluate(inventory, inventory, corpus(ids), **options)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    environment = os.environ | {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    small, large = (int(line) * 1024 for line in ended.stdout.split())
    assert large - small < 16e6


# ------------------------------------------------------------------------------------------- errors


@pytest.fixture
def edited(tiny_aligned: Path, tmp_path: Path) -> Path:
    """A copy of tiny-aligned that may be written to."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for path in tiny_aligned.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts_per_tok", 2),
        ("rms_norm_eps", 1e-5),
        ("rope_interleave", False),
        ("routed_scaling_factor", 1.0),
        ("norm_topk_prob", False),
    ],
)
def test_another_architecture_is_refused_by_the_key_of_its_config(
    key: str, value: Any, edited: Path, tiny_aligned: Path, run: Run, tmp_path: Path
) -> None:
    set_config(edited, **{key: value})
    with pytest.raises(DstoolsError, match=f"edited/config.json: {key} is {value}, but in "):
        run(edited, tiny_aligned, some_ids(1, 8))
    (tmp_path / "spills").rmdir()
    assert run(edited, None, some_ids(1, 8)).tokens == 7


def test_another_family_is_refused_by_its_model_type(
    checkpoint: Checkpoint, tiny_aligned: Path, run: Run
) -> None:
    with pytest.raises(
        DstoolsError, match=r"config.json: model_type is 'llama', but in .* it is 'deepseek_v3'"
    ):
        run(checkpoint("tiny-llama"), tiny_aligned, some_ids(1, 8))


def test_a_reference_without_an_mtp_layer_can_be_compared(
    headers: Any, edited: Path, tiny_aligned: Path, run: Run
) -> None:
    ids = some_ids(1, 8)
    config, shards = headers(edited)
    mtp = f"model.layers.{config['num_hidden_layers']}."
    for shard in shards:
        kept = {n: t for n, t in load_file(edited / shard).items() if not n.startswith(mtp)}
        save_file(kept, edited / shard, {"format": "pt"})
    index = edited / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map = {name: shard for name, shard in weight_map.items() if not name.startswith(mtp)}
    index.write_text(json.dumps({"weight_map": weight_map}))
    set_config(edited, num_nextn_predict_layers=0)
    assert run(tiny_aligned, edited, ids).kl_max == 0


def change(folder: Path, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if name not in file.keys():  # noqa: SIM118  # not a dict
                continue
        tensors = load_file(path)
        tensors[name] = how(tensors[name])
        save_file(tensors, path, {"format": "pt"})
        return
    raise AssertionError(name)


def huge(weight: Tensor) -> Tensor:
    """Fill with nearly the largest BF16: a sum of a few is infinity."""
    return torch.full_like(weight, 3e38)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"),
        ("model.layers.1.post_attention_layernorm.weight", r"model.layers.1\S*"),
        ("model.norm.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
@pytest.mark.parametrize("is_model", [True, False])
def test_what_gives_infinity_is_named_by_folder_and_tensor(
    name: str, where: str, is_model: bool, edited: Path, tiny_aligned: Path, run: Run
) -> None:
    change(edited, name, huge)
    pair = (edited, tiny_aligned) if is_model else (tiny_aligned, edited)
    with pytest.raises(DstoolsError, match=rf"edited: {where}: (gives )?NaN or infinity"):
        run(*pair, some_ids(1, 8))


def test_without_a_reference_what_gives_infinity_is_named_by_its_layer(
    edited: Path, run: Run
) -> None:
    change(edited, "model.layers.2.mlp.shared_experts.up_proj.weight", huge)
    with pytest.raises(DstoolsError, match=r"edited: model.layers.2: gives NaN or infinity"):
        run(edited, None, some_ids(1, 8))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.gate.weight", "lm_head.weight"])
def test_nan_is_named_by_its_tensor(name: str, edited: Path, tiny_aligned: Path, run: Run) -> None:
    change(edited, name, lambda weight: weight * math.nan)
    with pytest.raises(DstoolsError, match=rf"{name}: (gives )?NaN or infinity"):
        run(edited, tiny_aligned, some_ids(1, 8))


def test_a_sample_of_one_token_predicts_nothing(tiny_aligned: Path, run: Run) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        run(tiny_aligned, None, some_ids(4, 1))


def test_a_snapshot_of_the_hub_has_the_name_of_the_repository(
    tiny_aligned: Path, run: Run, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--deepseek-ai--DeepSeek-V3" / "snapshots" / ("4c1f24cc" * 5)
    snapshot.mkdir(parents=True)
    for path in tiny_aligned.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert run(snapshot, None, some_ids(1, 8)).model == "deepseek-ai/DeepSeek-V3"
    assert run(tiny_aligned, None, some_ids(1, 8)).model == tiny_aligned.name
