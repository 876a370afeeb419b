"""The command line, run in this process, and copies of checkpoints to run it on.

def test_x(dstools): result = dstools("verify", folder, "--json")  # any exit code
def test_y(ok): text = ok("inspect", folder).stdout                # exit code 0
"""

import functools
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory


@pytest.fixture(scope="session")
def dstools() -> Callable[..., Result]:
    """dstools(*words): the result of a command; an exception other than SystemExit is raised."""

    def run(*words: str | Path) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def ok(dstools: Callable[..., Result]) -> Callable[..., Result]:
    """ok(*words): the same of a command that must succeed."""

    def run(*words: str | Path) -> Result:
        result = dstools(*words)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], dict[str, str]]:
    """digest(folder): the sha256 of every file in it."""

    def get(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    return get


@pytest.fixture(scope="session")
def edited() -> Callable[..., Path]:
    """edited(source, folder, key=value): a copy of a checkpoint with other values in its config."""

    def copy(source: Path, folder: Path, **config: Any) -> Path:
        shutil.copytree(source, folder)
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return copy


@pytest.fixture(scope="session")
def exported_sample(exported: Callable[..., Path]) -> Path:
    """The sample model as an ONNX graph with its MTP layer; tests must not change it."""
    return exported()


# -------------------------------------------------------------------------------------- report

DATA = {"name": "held-out.jsonl", "sha256": "ab" * 32, "samples": 4, "seq_len": 256, "seed": 7}

DATA |= {"documents": 31}
TOKENS = 1024

EDGES = [10.0 ** (n / 4 - 6) for n in range(25)]  # 1e-6 to 1, 4 bins a decade


@pytest.fixture(scope="session")
def plain(ok: Callable[..., Result], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny DeepSeek, quantized without any data."""
    out = tmp_path_factory.mktemp("report") / "tiny-fp8"
    ok("quantize", tiny, out)
    return out


@pytest.fixture
def bare(plain: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(plain, tmp_path / "tiny-fp8"))


@pytest.fixture
def measured(bare: Path) -> Path:
    """The same with all three files of figures, which agree with its headers."""
    write(bare, "calibration.json", calibration(bare))
    write(bare, "expert_load.json", expert_load())
    write(bare, "eval.json", evaluation(bare))
    return bare


def calibration(folder: Path) -> dict[str, Any]:
    """Errors of 2 % to nearest and 1 % as stored; of the experts' down, 2 % and a reason."""
    with open_checkpoint(folder) as opened:
        inventory = take_inventory(opened)
    tensors = {}
    for info in inventory.tensors.values():
        parsed = inventory.names[info.name]
        if info.dtype == "F8_E4M3" and parsed is not None:
            is_cold = parsed.role == "routed_down"
            tensors[info.name] = {
                "method": "nearest" if is_cold else "gptq",
                "why": f"{parsed.expert} tokens, fewer than 160 inputs" if is_cold else "",
                "hessian": "none" if is_cold else "own",
                "tokens": TOKENS,
                "error_nearest": 0.02,
                "error": 0.02 if is_cold else 0.01,
                "weight_error": 0.03,
                "moved": 0 if is_cold else info.numel // 4,
                "far": 0,
                "numel": info.numel,
                "sha256": "cd" * 32,
            }
    return {
        "tool": "dstools 0.1.0", "method": "gptq", "scale_fmt": "float32", "data": dict(DATA),
        "tokens": TOKENS, "device": "cpu", "threads": 2, "versions": {"torch": "2.13.0"},
        "tensors": tensors,
        "kv": {"latent_amax": {"0": 3.0, "2": 449.5}, "rope_amax": {"0": 7.25}},
    }  # fmt: skip


def expert_load() -> dict[str, Any]:
    layers = {"1": [TOKENS // 2] * 8, "2": [0, 2 * TOKENS] + [TOKENS // 3] * 6}
    return {"tokens": TOKENS, "num_experts_per_tok": 4, "layers": layers}


def evaluation(folder: Path) -> dict[str, Any]:
    counts = [0] * 24
    counts[10], counts[11], counts[23] = 500, 504, 20
    errors = [
        {"layer": layer, "role": role, "error": 0.01 * (layer + 1), "numel": 1000}
        for layer in range(3)
        for role in ("q_a_proj", "o_proj")
    ]
    return {
        "tool": "dstools 0.1.0", "model": folder.name, "against": "tiny-bf16", "data": dict(DATA),
        "tokens": TOKENS, "perplexity": 12.3456, "perplexity_against": 12.0, "kl_mean": 0.00123,
        "kl_p99": 0.0456, "kl_max": 0.789, "top1_agreement": 0.9775,
        "kl_histogram": {"edges": EDGES, "counts": counts},
        "router_flips": {"1": 0.01, "2": 0.03}, "output_error": errors,
    }  # fmt: skip


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.fixture(scope="session")
def report(dstools: Callable[..., Result]) -> Callable[..., Result]:
    """report(folder, *options): the result of the command."""
    return functools.partial(dstools, "report")


@pytest.fixture(scope="session")
def pages(ok: Callable[..., Result]) -> Callable[[Path], tuple[str, str]]:
    """pages(folder): HTML and Markdown of its report, freshly made."""

    def make(folder: Path) -> tuple[str, str]:
        ok("report", folder)
        return (folder / "report.html").read_text(), (folder / "report.md").read_text()

    return make
