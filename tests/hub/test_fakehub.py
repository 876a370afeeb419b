"""The local Hub keeps files, as the real client sends and fetches them."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

if TYPE_CHECKING:
    from fakehub import FakeHub

from hub_calls import REPO, add, one_leg, requests

ODD_NAMES = ["a b.txt", "plots/acc[fp8].png", "100%.txt", "c#.json", "why?.md", "ü+&=.txt"]
pytestmark = pytest.mark.filterwarnings(  # huggingface_hub 2.4 on its LFS leg, by httpx2
    "ignore:Use 'content=<...>' to upload raw:DeprecationWarning"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in three shards, with names that need quoting."""
    folder = tmp_path / "model"
    (folder / "plots").mkdir(parents=True)
    for name in ODD_NAMES:
        (folder / name).write_bytes(name.encode())
    for shard in range(3):
        (folder / f"model-{shard}.safetensors").write_bytes(os.urandom(300_000))
    (folder / "config.json").write_text("{}")
    return folder


def sha256s(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"
    }


def test_a_folder_through_a_pull_request_comes_back_byte_for_byte(
    hub: "FakeHub", api: HfApi, folder: Path, tmp_path: Path, leg: str
) -> None:
    api.create_repo(REPO, private=True)
    pull = api.create_pull_request(REPO, title="Upload")
    api.upload_folder(repo_id=REPO, folder_path=folder, revision=pull.git_reference)
    assert set(hub.head(REPO)[1]) == {".gitattributes"}
    assert api.verify_repo_checksums(REPO, revision=pull.git_reference, local_dir=folder)
    api.change_discussion_status(REPO, pull.num, "open")
    api.merge_pull_request(REPO, pull.num)
    details = api.get_discussion_details(REPO, pull.num)
    assert (details.status, details.merge_commit_oid) == ("merged", hub.head(REPO)[0])
    api.snapshot_download(REPO, local_dir=tmp_path / "back")
    assert sha256s(tmp_path / "back") == sha256s(folder)
    for path in sorted(folder.rglob("*.*")):
        assert hub.content(REPO, str(path.relative_to(folder))) == path.read_bytes()
    assert bool(requests(hub, "PUT /lfs/")) == (leg == "lfs")
    assert bool(requests(hub, "xet-write-token")) == (leg == "xet")


def test_a_file_of_several_parts_is_put_together(hub: "FakeHub", api: HfApi) -> None:
    content = os.urandom(5_000_001)
    api.create_repo(REPO)
    add(api, "model.safetensors", content)
    assert hub.content(REPO, "model.safetensors") == content


@pytest.mark.parametrize("leg", ["xet"], indirect=True)
def test_what_xet_stored_is_downloaded_without_xet_too(
    hub: "FakeHub", api: HfApi, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    path = api.hf_hub_download(REPO, "model-1.safetensors", local_dir=tmp_path / "back")
    assert Path(path).read_bytes() == (folder / "model-1.safetensors").read_bytes()


def test_hf_download_and_from_pretrained_find_a_model(
    hub: "FakeHub", api: HfApi, tiny: Path, tmp_path: Path
) -> None:
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=tiny)
    code = f"""
import sys
from pathlib import Path
from huggingface_hub.cli.hf import main
from transformers import AutoModelForCausalLM
assert AutoModelForCausalLM.from_pretrained("{REPO}").config.model_type == "deepseek_v3"
sys.argv = ["hf", "download", "{REPO}", "--local-dir", {str(tmp_path / "back")!r}]
main()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert sha256s(tmp_path / "back") == sha256s(tiny)


@one_leg
def test_703_files_at_once_lose_no_commit(hub: "FakeHub", api: HfApi) -> None:
    api.create_repo(REPO)

    def send(number: int) -> None:
        add(api, f"{number}.txt", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(48)))
    operations = [CommitOperationAdd(f"more/{n}.txt", b"%d" % n) for n in range(655)]
    api.create_commit(REPO, operations, commit_message="more")
    assert len(hub.head(REPO)[1]) == 703 + 1
    assert len(api.list_repo_commits(REPO)) == 48 + 2


@one_leg
def test_a_large_body_goes_to_disk_and_not_into_memory(hub: "FakeHub", tmp_path: Path) -> None:
    code = """
import http.client, os, resource, subprocess, sys
server = subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
host = server.stdout.readline().decode().strip().removeprefix("http://")
connection = http.client.HTTPConnection(host)
size = {"Content-Length": os.path.getsize(sys.argv[3])}
connection.request("PUT", "/lfs/" + sys.argv[4], open(sys.argv[3], "rb"), size)
assert connection.getresponse().status == 200
server.terminate()
server.wait()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(300_000_000)
    with large.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    server = Path(sys.modules["fakehub"].__file__ or "")
    arguments = [str(server), str(tmp_path / "state"), str(large), sha256]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    assert int(done.stdout) < 100_000  # KiB
    assert (tmp_path / "state" / "lfs" / sha256).stat().st_size == 300_000_000
