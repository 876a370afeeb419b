"""The local Hub fails in the ways that a test asks for."""

import os
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

if TYPE_CHECKING:
    from fakehub import FakeHub

from hub_calls import REPO, add, one_leg, requests, status_of

pytestmark = pytest.mark.filterwarnings(  # huggingface_hub 2.4 on its LFS leg, by httpx2
    "ignore:Use 'content=<...>' to upload raw:DeprecationWarning"
)


@one_leg
def test_a_fault_has_status_text_headers_times_and_skip(hub: "FakeHub", api: HfApi) -> None:
    limit = {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"fixed window";"api";q=100;w=300'}
    hub.faults.append(
        {"match": "GET /api/whoami", "status": 429, "skip": 1, "times": 2, "headers": limit}
    )
    hub.faults.append({"match": "POST /api/repos", "status": 500, "error": "out of luck"})
    api.whoami()
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as error:
            api.whoami()
        assert error.value.response.headers["RateLimit"] == '"api";r=0;t=7'
    api.whoami()
    with pytest.raises(HfHubHTTPError, match="out of luck") as error:
        api.create_repo(REPO)
    assert status_of(error) == 500
    assert [entry["status"] for entry in requests(hub, "whoami")] == [200, 429, 429, 200]


@one_leg
@pytest.mark.parametrize(("drop", "done"), [("before", False), ("body", False), ("after", True)])
def test_a_dropped_commit_is_done_only_if_the_answer_was_what_got_lost(
    hub: "FakeHub", api: HfApi, drop: str, done: bool
) -> None:
    api.create_repo(REPO)
    hub.faults.append({"match": "/commit/", "drop": drop})
    with pytest.raises(Exception, match=r"disconnected|reset|closed"):
        add(api, "x", b"x" * 9_000)
    assert ("x" in hub.head(REPO)[1]) == done
    assert requests(hub, "/commit/")[0]["status"] == "dropped"
    assert (requests(hub, "/commit/")[0]["bytes"] > 0) == (drop != "before")


@one_leg
def test_an_upload_that_is_cut_is_sent_again(hub: "FakeHub", api: HfApi) -> None:
    content = os.urandom(3_000_000)
    api.create_repo(REPO)
    hub.faults.append({"match": "PUT /lfs/", "drop": "body"})
    add(api, "model.safetensors", content)
    assert hub.content(REPO, "model.safetensors") == content
    cut, whole = (entry["bytes"] for entry in requests(hub, "PUT /lfs/"))
    assert 0 < cut < whole == 3_000_000


@one_leg
@pytest.mark.parametrize("size", [20_000, 5_000_001])
def test_a_rotten_byte_in_a_large_file_is_refused(hub: "FakeHub", api: HfApi, size: int) -> None:
    api.create_repo(REPO)
    hub.faults.append({"match": "PUT /lfs/", "corrupt": True})
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        add(api, "model.safetensors", os.urandom(size))
    assert list((hub.root / "lfs").iterdir()) == []


def test_a_rotten_byte_in_a_small_file_is_stored(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.append({"match": "/commit/", "corrupt": True})
    operations = [CommitOperationAdd("config.json", b"{}"), CommitOperationAdd("x", b"xy")]
    api.create_commit(REPO, operations, commit_message="model")
    assert hub.content(REPO, "config.json") == b"z}"  # { is 0x7b, z is 0x7a
    assert hub.content(REPO, "x") == b"xy"


@one_leg
def test_a_delay_is_waited(hub: "FakeHub", api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("hub_http.time.sleep", waited.append)
    hub.faults.append({"match": "whoami", "delay": 30})
    api.whoami()
    assert 30 in waited


@one_leg
def test_yaml_that_cannot_be_read_is_refused_before_anything_is_sent(
    hub: "FakeHub", api: HfApi
) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="bad yaml"):
        add(api, "README.md", b"---\nlicense: [\n---\n# Model\n")
    add(api, "README.md", b"---\nlicense: mit\n---\n# Model\n")
    assert "README.md" in hub.head(REPO)[1]
