"""File hashes: what differs, is missing or was added is named; without --sums a line says so."""

import os
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub._local_folder import write_download_metadata

from dstools_converters.sidefiles.carried import REPORTS
from dstools_converters.sidefiles.sums import SUMS, format_sums
from dstools_converters.verify import hashes
from dstools_converters.verify.hashes import Blob, Checked, Digests, Hashing, bytes_to_read

FILES = {"config.json": b"{}\n", "model.safetensors": bytes(5_000_000), "sub/code.py": b"pass\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with SHA256SUMS of all its files."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    sums = format_sums({name: sha256(content).hexdigest() for name, content in FILES.items()})
    (folder / SUMS).write_bytes(sums)
    return folder


@pytest.fixture
def download(folder: Path) -> Path:
    """The same, with what the Hub's client leaves in place of SHA256SUMS."""
    (folder / SUMS).unlink()
    for name, content in FILES.items():
        etag = sha256(content).hexdigest()
        if name != "model.safetensors":
            command = ["git", "hash-object", folder / name]
            etag = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        write_download_metadata(folder, name, "c" * 40, etag)
    return folder


def check(folder: Path, *, is_asked: bool = True, **options: Any) -> Checked:
    hashing = Hashing(folder, is_asked=is_asked, **options)
    hashing.hash_rest(workers=2)
    return hashing.result()


def named(result: Checked) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.code, finding.where) for finding in result.findings]


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file, and leave its size and times."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_folder_as_it_was_written_has_no_finding(folder: Path) -> None:
    told: list[int] = []
    result = check(folder, progress=told.append)
    assert result == Checked(checked=["hashes of 3 files from SHA256SUMS"])
    assert sum(told) == bytes_to_read(folder, checks_sums=True) == sum(map(len, FILES.values()))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_named_by_its_file(folder: Path, name: str) -> None:
    flip(folder / name)
    assert named(check(folder)) == [("error", "sum-differs", name)]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_of_a_download_is_named_by_its_file(download: Path, name: str) -> None:
    assert check(download).findings == []
    flip(download / name)
    (finding,) = check(download).findings
    assert (finding.level, finding.code, finding.where) == ("error", "sum-differs", name)
    assert "hf download --force-download" in finding.hint


def test_a_damaged_blob_of_the_hub_cache_is_named_by_the_file(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / "rev").mkdir(parents=True)
    for name, content in (("config.json", b"{}"), ("model.safetensors", bytes(1000))):
        blob = repo / "blobs" / sha256(content).hexdigest()
        blob.write_bytes(content)
        (repo / "snapshots" / "rev" / name).symlink_to(
            os.path.relpath(blob, repo / "snapshots/rev")
        )
    snapshot = repo / "snapshots" / "rev"
    assert check(snapshot) == Checked(checked=["hashes of 2 files from the Hub's client"])
    flip(snapshot / "model.safetensors")
    assert named(check(snapshot)) == [("error", "sum-differs", "model.safetensors")]


def test_a_missing_file_is_an_error_and_an_added_one_a_warning(folder: Path) -> None:
    (folder / "sub" / "code.py").unlink()
    (folder / "sub" / "evil.py").write_text("")
    (folder / "plots").mkdir()
    later = ("eval.json", *REPORTS, "model.sig", ".gitattributes")
    for name in (*later, "plots/mine.svg"):
        (folder / name).write_text("")
    assert named(check(folder)) == [
        ("error", "sum-missing", "sub/code.py"),
        ("warning", "sum-unlisted", "plots/mine.svg"),
        ("warning", "sum-unlisted", "sub/evil.py"),
    ]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_loaders_read_must_be_in_the_list(folder: Path, name: str) -> None:
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if name not in line))
    (folder / "notes.txt").write_text("")
    assert named(check(folder)) == [
        ("error", "sum-unlisted", name),
        ("warning", "sum-unlisted", "notes.txt"),
    ]


@pytest.mark.parametrize("content", ["", "# nothing\n", f"{'0' * 64}  gone\n"])
def test_a_list_of_no_file_of_the_folder_is_an_error(folder: Path, content: str) -> None:
    (folder / SUMS).write_text(content)
    (finding,) = check(folder).findings
    assert (finding.level, finding.code, finding.where) == ("error", "sums", SUMS)
    assert finding.message.startswith("lists no file of this folder")


def test_the_hint_of_a_missing_list_makes_one_that_holds(folder: Path) -> None:
    (folder / SUMS).unlink()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("")
    (finding,) = check(folder).findings
    _, command, _ = finding.hint.split("`")
    for _ in range(2):  # the list is there already
        subprocess.run(["bash", "-c", command], cwd=folder, check=True)
        assert check(folder) == Checked(checked=["hashes of 3 files from SHA256SUMS"])
    assert ".git" not in (folder / SUMS).read_text()


def test_a_list_that_is_a_pipe_or_a_folder_is_an_error(folder: Path) -> None:
    (folder / SUMS).unlink()
    os.mkfifo(folder / SUMS)
    (finding,) = check(folder).findings
    assert finding.message == "is not a regular file"


def test_a_file_of_a_download_without_a_hash_is_said_not_to_be_checked(download: Path) -> None:
    (download / "mine.txt").write_text("")
    assert check(download).not_checked == ["the hash of mine.txt: the Hub's client left none"]
    (download / "yours.txt").write_text("")
    assert check(download).not_checked == ["hashes of 2 files: the Hub's client left none"]


def test_a_downloaded_file_that_is_gone_is_a_warning(download: Path) -> None:
    (download / "sub" / "code.py").unlink()
    result = check(download)
    assert named(result) == [("warning", "sum-missing", "sub/code.py")]
    assert result.checked == ["hashes of 2 files from the Hub's client"]


def test_both_kinds_of_hashes_are_compared(download: Path) -> None:
    (download / SUMS).write_text(f"{'0' * 64}  config.json\n")
    result = check(download)
    assert named(result) == [("error", "sum-differs", "config.json")]
    assert "SHA256SUMS lists" in result.findings[0].message
    assert result.checked == [
        "the hash of config.json from SHA256SUMS",
        "hashes of 3 files from the Hub's client",
    ]


def test_a_link_out_of_the_folder_is_not_read(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/passwd")
    (finding,) = check(folder).findings
    assert (finding.code, finding.where) == ("sum-unread", "config.json")
    assert finding.message == "is a link out of the folder"


def test_a_shard_that_was_linked_from_another_disk_is_hashed(folder: Path, tmp_path: Path) -> None:
    shard, moved = folder / "model.safetensors", tmp_path / "elsewhere.bin"
    shard.rename(moved)
    shard.symlink_to(moved)
    assert check(folder).findings == []
    flip(moved)
    assert named(check(folder)) == [("error", "sum-differs", "model.safetensors")]


def test_a_pipe_that_the_list_names_does_not_hang(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert named(check(folder)) == [("error", "sum-missing", "config.json")]


def test_a_list_of_another_format_is_an_error_only_where_hashes_are_asked_for(folder: Path) -> None:
    (folder / SUMS).write_text(f"{'0' * 32}  config.json\n")  # of md5sum
    (finding,) = check(folder).findings
    assert (finding.level, finding.where) == ("error", SUMS)
    assert finding.message == "line 1 is not a sha256 and a file name"
    assert bytes_to_read(folder, checks_sums=True, headers_only=True) == 0
    result = check(folder, is_asked=False)
    assert result == Checked(not_checked=["file hashes of SHA256SUMS: --sums"])


def test_asking_where_there_are_no_hashes_is_an_error(folder: Path) -> None:
    (folder / SUMS).unlink()
    assert named(check(folder)) == [("error", "sums", SUMS)]
    assert check(folder, is_asked=False) == Checked()


def test_hashes_that_were_not_asked_for_are_said_not_to_be_checked(download: Path) -> None:
    result = check(download, is_asked=False)
    assert result == Checked(not_checked=["file hashes of the Hub's client: --sums"])
    (download / SUMS).write_text("")
    result = check(download, is_asked=False)
    assert result.not_checked == ["file hashes of SHA256SUMS and the Hub's client: --sums"]


# ------------------------------------------------------------------------------------ for a push


def test_a_file_is_known_by_size_sha256_and_git_s_sha1(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last only of what the Hub may keep in git."""
    monkeypatch.setattr(hashes, "MAX_GIT_BYTES", 5_000_000)
    (folder / "notes [1].txt").write_text("")  # no list has it
    digests = Digests(["config.json", "model.safetensors", "notes [1].txt"])
    assert check(folder, is_asked=False, digests=digests).findings == []
    assert digests.found.keys() == {*digests.names}
    for name, blob in digests.found.items():
        content = (folder / name).read_bytes()
        command = ["git", "hash-object", folder / name]
        sha1 = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        is_large = name == "model.safetensors"
        sha = sha256(content).hexdigest()
        assert blob == Blob(len(content), sha, None if is_large else sha1)
        assert Blob.of(content) == Blob(len(content), sha, sha1)


def test_files_without_a_hash_in_common_are_not_the_same() -> None:
    assert not Blob(1, "a", None).equals(Blob(1, None, "b"))
    assert not Blob(1, None, None).equals(Blob(1, None, None))


def test_only_the_files_that_were_named_are_hashed_and_each_once(download: Path) -> None:
    (download / SUMS).write_text("")
    told: list[int] = []
    digests = Digests(["config.json"])
    check(download, is_asked=False, digests=digests, progress=told.append)
    assert told == [len(FILES["config.json"])]
    told.clear()
    result = check(download, digests=Digests(list(FILES)), progress=told.append)
    assert sum(told) == sum(map(len, FILES.values()))
    assert result.checked == ["hashes of 3 files from the Hub's client"]


def test_files_that_cannot_be_read_have_no_digest_but_an_error(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/passwd")
    digests = Digests(["config.json", "gone.txt"])
    assert named(check(folder, is_asked=False, digests=digests)) == [
        ("error", "sum-unread", "config.json"),
        ("error", "sum-missing", "gone.txt"),
    ]
    assert digests.found == {}


def test_shards_wait_for_whoever_reads_them(folder: Path) -> None:
    hashing = Hashing(folder, is_asked=True)
    hashing.hash_files(workers=1)
    assert [*hashing.waiting] == ["model.safetensors"]
    file = hashing.begin("model.safetensors")
    assert [*hashing.waiting] == []
    content = memoryview(FILES["model.safetensors"])
    file.update(content[:999])
    file.update(content[999:])
    hashing.end(file)
    assert hashing.result() == Checked(checked=["hashes of 3 files from SHA256SUMS"])


def test_a_shard_that_lacks_a_byte_when_it_is_read_is_named(folder: Path) -> None:
    hashing = Hashing(folder, is_asked=True)
    hashing.hash_files(workers=1)
    file = hashing.begin("model.safetensors")
    file.update(memoryview(FILES["model.safetensors"])[1:])
    hashing.end(file)
    assert named(hashing.result()) == [("error", "sum-differs", "model.safetensors")]
