"""Folders that a card is written for, and the Hub's client in this process."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import Result
from huggingface_hub import HfApi, constants

from dstools.hub import client
from dstools.hub.card import model_card
from dstools.hub.client import Hub

if TYPE_CHECKING:
    from fakehub import FakeHub

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
        files = {path.name for path in folder.iterdir()} | {"README.md", "SHA256SUMS", *also}
        made = [
            model_card(folder, base=base, local=local, remote=remote, files=names, repo=repo)
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
def connect(hub: "FakeHub", leg: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    """connect(token="hf_good"): a connection; the client's module read the environment before."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", leg == "lfs")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(client, "HfApi", partial(HfApi, endpoint=hub.url))

    def connect(token: str = "hf_good", repo: str = REPO) -> Hub:
        monkeypatch.setenv("HF_TOKEN", token)
        return Hub(repo)

    return connect


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of files that are sent in both ways: a large one and small ones."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / "config.json").write_text("{}\n")
    return folder
