"""The real client, against the local Hub."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import HfApi, constants

if TYPE_CHECKING:
    from fakehub import FakeHub

sys.path.append(str(Path(__file__).parent))  # hub_calls.py


@pytest.fixture
def connect(hub: "FakeHub", leg: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], HfApi]:
    """connect(token): the real client in this process; its module read the environment before."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", leg == "lfs")
    return lambda token: HfApi(endpoint=hub.url, token=token)


@pytest.fixture
def api(connect: Callable[[str], HfApi]) -> HfApi:
    return connect("hf_good")
