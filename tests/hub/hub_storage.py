"""Contents of files in the local Hub: LFS uploads, Xet tokens, downloads.

A record of a file is {"data", "size", "oid", "sha256"}: `data` its bytes if git holds them, else
None; `oid` the git blob; `sha256` None for what git holds. Large files are in STATE/lfs by sha256
(LFS uploads), or in STATE/cas, into which the real hf_xet stores chunks when the address of the
storage service is `local://FOLDER`.

Sources: git-lfs/git-lfs, docs/api/batch.md; huggingface.co/docs/xet/shard; huggingface_hub 2.4,
lfs.py and file_download.py; hf_xet 1.8, for `local://` and its folders, which are not documented.
"""

import hashlib
import re
import struct
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hub_accounts import check_read, check_write
from hub_http import Refusal, Reply

if TYPE_CHECKING:
    from fakehub import FakeHub, _Handler

File = dict[str, Any]
LARGE = (".safetensors", ".bin", ".onnx", ".engine", ".gguf", ".pt", ".pth")


def git_sha(data: bytes) -> str:
    """Return the name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def small_file(data: bytes) -> File:
    return {"data": data, "size": len(data), "oid": git_sha(data), "sha256": None}


def large_file(sha256: str, size: int) -> File:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return {"data": None, "size": size, "oid": git_sha(pointer.encode()), "sha256": sha256}


def open_file(hub: "FakeHub", file: File) -> BinaryIO:
    """Open the content of a file, wherever it is stored."""
    if file["data"] is not None:
        return BytesIO(file["data"])
    path = hub.root / "lfs" / file["sha256"]
    if not path.exists():
        restore(hub, file, path)
    return path.open("rb")


def restore(hub: "FakeHub", file: File, path: Path) -> None:
    """Write a file that hf_xet stored as chunks."""
    from hf_xet import XetFileInfo, XetSession

    part = path.with_name(f"{path.name}.{threading.get_ident()}")
    info = XetFileInfo(xet_hashes(hub)[file["sha256"]], file["size"])
    with XetSession().new_file_download_group(
        endpoint=f"local://{hub.root / 'cas'}", token="local", token_expiry_unix_secs=expiry()
    ) as group:
        group.start_download_file(info, str(part))
    part.replace(path)


# ---------------------------------------------------------------------------------------------- LFS


def batch(call: "_Handler", repo: str) -> Reply:
    """Answer POST /REPO.git/info/lfs/objects/batch"""
    asked = call.read_json()
    check_write(call, repo, asked.get("ref", {}).get("name", "main"))
    check_quota(call.hub, repo, sum(wanted["size"] for wanted in asked["objects"]))
    return Reply(
        {
            "transfer": "multipart",
            "objects": [upload_actions(call.hub, repo, wanted) for wanted in asked["objects"]],
        }
    )


def upload_actions(hub: "FakeHub", repo: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the URLs to which an object is sent; none if it is here already."""
    oid, size = wanted["oid"], wanted["size"]
    if (hub.root / "lfs" / oid).exists():
        return {"oid": oid, "size": size}
    url = f"{hub.url}/lfs/{oid}"
    upload: dict[str, Any] = {"href": url}
    if size >= hub.multipart_at:
        parts = -(-size // hub.part_size)
        urls = {str(part): f"{url}/{part}" for part in range(1, parts + 1)}
        upload["header"] = {"chunk_size": str(hub.part_size), **urls}
    verify = {"href": f"{hub.url}/{repo}.git/info/lfs/objects/verify"}
    return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}


def put(call: "_Handler", oid: str, part: str | None) -> Reply:
    """Answer PUT /lfs/OID[/PART]: pre-signed, no token; parts are written in place."""
    folder = call.hub.root / "lfs"
    path = folder / (f"{oid}.parts" if part else f"{oid}.{threading.get_ident()}")
    offset = (int(part) - 1) * call.hub.part_size if part else 0
    digest = hashlib.sha256()
    if part:
        path.touch()  # parts may come at once
    with path.open("r+b" if part else "wb", buffering=0) as file:
        file.seek(offset)
        for chunk in map(call.rot, call.body):
            file.write(chunk)
            if not part:
                digest.update(chunk)
    if not part:
        keep(path, digest.hexdigest(), oid)
    return Reply(headers={"ETag": f'"{oid[:16]}-{part or 0}"'})


def complete(call: "_Handler", oid: str) -> Reply:
    """Answer POST /lfs/OID: all parts are here"""
    path = call.hub.root / "lfs" / f"{oid}.parts"
    if path.with_name(oid).exists():  # the answer to the first call was lost
        return Reply()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    keep(path, found, oid)
    return Reply()


def keep(path: Path, found: str, oid: str) -> None:
    """Take a received file into the store, if it is what it claims to be."""
    if found != oid:
        path.unlink()
        raise Refusal(400, "The sha256 of the uploaded file does not match its oid")
    path.replace(path.with_name(oid))


def verify(call: "_Handler", repo: str) -> Reply:
    """Answer POST /REPO.git/info/lfs/objects/verify"""
    check_read(call, repo)
    wanted = call.read_json()
    path = call.hub.root / "lfs" / wanted["oid"]
    if not path.exists() or path.stat().st_size != wanted["size"]:
        raise Refusal(404, "Object does not exist")
    return Reply()


def check_quota(hub: "FakeHub", repo: str, new_bytes: int) -> None:
    """Refuse more than `rules["quota"]` bytes at once for a private repository."""
    quota = hub.rules.get("quota")
    if quota is not None and hub.repos[repo]["private"] and new_bytes > quota:
        raise Refusal(403, "Private repository storage limit reached.")


# ---------------------------------------------------------------------------------------------- Xet


def expiry() -> int:
    return int(time.time()) + 3600


def xet_token(call: "_Handler", repo: str, kind: str, ref: str) -> Reply:
    """Answer GET /api/models/REPO/xet-{read,write}-token/REF"""
    if kind == "write":
        check_write(call, repo, ref)
    check_read(call, repo)
    address, until = f"local://{call.hub.root / 'cas'}", expiry()
    return Reply(
        {"casUrl": address, "accessToken": "local", "exp": until},
        headers={
            "X-Xet-Cas-Url": address,
            "X-Xet-Access-Token": "local",
            "X-Xet-Token-Expiration": str(until),
        },
    )


def xet_hashes(hub: "FakeHub") -> dict[str, str]:
    """Return sha256 -> Xet hash of every file that hf_xet has stored; reads new shards only."""
    with hub.lock:
        for path in (hub.root / "cas" / "xet" / "xorbs" / "shards").glob("*.mdb"):
            if path.name not in hub.shards:
                hub.shards[path.name] = read_shard(path.read_bytes())
        return {sha256: xet for shard in hub.shards.values() for sha256, xet in shard.items()}


def read_shard(raw: bytes) -> dict[str, str]:
    """Return sha256 -> Xet hash of the files in a shard.

    After a header of 48 bytes, entries of 48: one for each file (hash, flags, number of segments),
    then as many for its segments, as many again if flag 31 is set, and its sha256 if flag 30 is.
    A hash of 0xff ends the section.
    """
    files, at = {}, 48
    while (xet := raw[at : at + 32]) != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", raw, at + 32)
        at += 48 * (1 + segments * (1 + (flags >> 31)))
        if flags >> 30 & 1:
            files[hash_text(raw[at : at + 32])] = hash_text(xet)
            at += 48
    return files


def hash_text(raw: bytes) -> str:
    """Return a hash of a shard as text: four little-endian words of 64 bits."""
    return "".join(raw[i : i + 8][::-1].hex() for i in range(0, 32, 8))


# ---------------------------------------------------------------------------------------- downloads


def resolve(call: "_Handler", repo: str, ref: str, path: str) -> Reply:
    """Answer GET or HEAD /REPO/resolve/REF/PATH"""
    commit, files = call.hub.find_commit(call, repo, ref)
    if path not in files:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        refusal.reply.headers["X-Repo-Commit"] = commit
        raise refusal
    file = files[path]
    tag = f'"{file["sha256"] or file["oid"]}"'
    headers = {"X-Repo-Commit": commit, "ETag": tag, "X-Linked-ETag": tag}
    headers |= {"X-Linked-Size": str(file["size"]), "Accept-Ranges": "bytes"}
    if file["sha256"] and (xet := xet_hashes(call.hub).get(file["sha256"])):
        route = f"{call.hub.url}/api/models/{repo}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": xet, "X-Xet-Refresh-Route": route}
    if call.command == "HEAD":
        return Reply(headers=headers | {"Content-Length": str(file["size"])})
    content = open_file(call.hub, file)
    begin, end = 0, file["size"]
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", "")):
        begin, end = int(match[1]), int(match[2]) + 1 if match[2] else end
        if begin >= file["size"]:
            raise Refusal(416, "Range Not Satisfiable")
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file['size']}"
        content.seek(begin)
    return Reply(None, 206 if match else 200, headers, content, end - begin)


def content(hub: "FakeHub", file: File) -> bytes:
    """Return the whole content of a file."""
    with open_file(hub, file) as stream:
        return stream.read()


def is_stored(hub: "FakeHub", sha256: str) -> bool:
    return (hub.root / "lfs" / sha256).exists() or sha256 in xet_hashes(hub)
