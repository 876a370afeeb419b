"""Folders that a card is written for, and the Hub's client in this process."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _detect_agent, _http, _xet
from safetensors.numpy import save_file

from dstools.cli import main
from dstools.hub import client
from dstools.hub.card import model_card
from dstools.hub.client import Hub

if TYPE_CHECKING:
    from fakehub import FakeHub

sys.path.append(str(Path(__file__).parent))  # cards.py
REPO = "alice/model"
BASE = "deepseek-ai/DeepSeek-V3"
BASE_CARD = b"""---
license: mit
library_name: transformers
---
# The base model

Scores 91.2 in BF16.
"""


@pytest.fixture(scope="session")
def compressed(
    ok: Callable[..., Result], tiny_aligned: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The aligned tiny DeepSeek in compressed-tensors, with power-of-two scales."""
    out = tmp_path_factory.mktemp("hub") / "tiny-ct"
    ok("quantize", tiny_aligned, out, "--format", "compressed-tensors", "--scale-fmt", "ue8m0")
    return out


@pytest.fixture
def with_card(bare: Path) -> Path:
    """A folder that quantize wrote, with the README.md of the base in it."""
    (bare / "README.md").write_bytes(BASE_CARD)
    return bare


@pytest.fixture
def student(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A dense model that is not quantized."""
    folder = Path(shutil.copytree(checkpoint("tiny-qwen2"), tmp_path / "student"))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def card() -> Callable[..., str]:
    """card(folder, base="org/name", local=..., remote=..., also=[...]): the text of model_card."""

    def make(
        folder: Path,
        base: str | None = BASE,
        *,
        local: bytes | None = None,
        remote: bytes | None = None,
        also: tuple[str, ...] = (),
        repo: str | None = "me/model",
    ) -> str:
        readme = folder / "README.md"
        if local is None and readme.exists():
            local = readme.read_bytes()
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        files |= {"README.md", "SHA256SUMS", *also}
        made = [
            model_card(folder, base=base, local=local, remote=remote, files=names, repo=repo).text
            for names in (files, sorted(files, reverse=True))
        ]
        assert made[0] == made[1], "the same inputs, the same bytes"
        return made[0].decode()

    return make


# ---------------------------------------------------------- the client, against the local Hub


class Clock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(client, "time", clock)
    return clock


@pytest.fixture
def connect(
    hub: "FakeHub", leg: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Hub]]:
    """connect(token="hf_good"): a connection; the client's module read the environment before."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", leg == "lfs")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(client, "HfApi", partial(HfApi, endpoint=hub.url))
    for name in ("_GLOBAL_CLIENT_FACTORY", "_GLOBAL_CLIENT"):  # which a connection sets
        monkeypatch.setattr(_http, name, getattr(_http, name))

    def connect(token: str = "hf_good", repo: str = REPO) -> Hub:
        monkeypatch.setenv("HF_TOKEN", token)
        return Hub(repo)

    yield connect
    _http.close_session()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of files that are sent in both ways: a large one and small ones."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / "config.json").write_text("{}\n")
    return folder


# ------------------------------------------------------------------ whole pushes, in this process


class Run(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """Return the lines that say what went wrong."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture
def here(
    connect: Callable[..., Hub],
    clock: Clock,
    without_token: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """here(folder, *options): `dstools push` to REPO in this process, and no pause takes time.

    An exception that is not turned into a message is raised. hf_xet waits by its own clock.
    """
    connect()
    monkeypatch.setattr(client, "set_client_factory", id)  # to make one anew takes 20 ms
    monkeypatch.setattr(_http, "time", clock)  # the client's own pauses
    monkeypatch.setattr(_detect_agent, "_registry", {})  # asked for once in a process
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")

    def push(folder: Path, *options: str) -> Run:
        arguments = ["push", str(folder), REPO, "--base", "none", "--yes", *options]
        done = CliRunner().invoke(main, arguments)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Run(done.exit_code, without_token(done.stdout), without_token(done.stderr))

    _xet.abort_xet_session()  # another reads these settings
    yield push
    _xet.abort_xet_session()


def tensors() -> dict[str, Any]:
    """Return the weights of a Llama of one layer."""
    dice = np.random.default_rng(15)
    square, layer = (32, 32), "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (64, 32), "model.norm": (32,)}
    shapes |= {f"{layer}.self_attn.{name}_proj": square for name in "qkvo"}
    shapes |= {f"{layer}.mlp.{name}_proj": square for name in ("gate", "up", "down")}
    shapes |= {f"{layer}.{name}_layernorm": (32,) for name in ("input", "post_attention")}
    return {
        f"{name}.weight": dice.standard_normal(shape).astype("float32")
        for name, shape in shapes.items()
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model that is checked in no time: two files for LFS or Xet, and small ones."""
    folder = tmp_path / "small"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32}
    config |= {"intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    save_file(tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "loss.png").write_bytes(np.random.default_rng(16).bytes(12_000))
    return folder
