"""Calls of the real client, for the tests of the local Hub."""

from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

if TYPE_CHECKING:
    from fakehub import FakeHub

REPO = "alice/model"
one_leg = pytest.mark.parametrize("leg", ["lfs"], indirect=True)


def add(api: HfApi, path: str, content: bytes, **options: Any) -> Any:
    operations = [CommitOperationAdd(path, content)]
    return api.create_commit(REPO, operations, commit_message=f"add {path}", **options)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def requests(hub: "FakeHub", text: str) -> list[dict[str, Any]]:
    return [entry for entry in hub.log if text in f"{entry['m']} {entry['p']}"]
