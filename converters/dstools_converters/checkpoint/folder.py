"""A checkpoint folder as its headers describe it: the offset of every tensor, and bytes on demand.

Opening reads `config.json`, the index and the header of each shard, nothing else; no model code is
imported and nothing in the folder is executed. Everything read here is untrusted, so each path is
checked before it is used.
"""

import errno
import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from dstools_converters.checkpoint.exported import refuse_exported
from dstools_converters.checkpoint.header import Shard, TensorInfo, read_header
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.files import LFS_HINT, MAX_TABLE_VALUES, is_lfs_pointer, strict_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_config.json"  # of peft, as are its weights
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl",
)  # fmt: skip
TRAINER_STATE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")  # not weights
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # of WEIGHT_SUFFIXES
MAX_CONFIG_BYTES = 8 << 20  # a list of kept modules takes 3 MB; parsed, 20 times as much
MAX_INDEX_BYTES = 64 << 20  # that of DeepSeek-V3 takes 9 MB
MAX_OPEN_FILES = 16  # of a checkpoint that may have thousands
MADV_POPULATE_READ = 22  # Linux 5.14, mman-common.h; not named in Python 3.11


Watch = Callable[[TensorInfo, int, memoryview], object]  # shown a tensor's bytes from an offset on


class Checkpoint:
    """The tensors of a folder, by name, in the order of the shards and of the bytes within them.

    `watch`, where one is set, is shown everything that `read` returns.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        tensors: dict[str, TensorInfo],
        shards: dict[str, Shard],
        index_metadata: dict[str, Any],
        warnings: tuple[Finding, ...] = (),
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self.shards = shards
        self.index_metadata = index_metadata
        self.warnings = warnings  # of its files: what is beside the checkpoint and not read
        self.watch: Watch | None = None
        self._files: dict[str, int] = {}
        self._lock = Lock()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards that `read` has opened."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _map(self, shard: str, start: int, length: int) -> mmap.mmap:
        """Map a part of a shard; a mapping outlives its descriptor, few are kept open."""
        with self._lock:
            file = self._files.pop(shard, None)
            if file is None:
                if len(self._files) >= MAX_OPEN_FILES:  # the least recently used
                    os.close(self._files.pop(next(iter(self._files))))
                file = os.open(self.folder / shard, os.O_RDONLY)
            self._files[shard] = file
            return mmap.mmap(
                file, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, offset=start
            )

    def read(self, info: TensorInfo, begin: int, end: int) -> memoryview:
        """Return bytes [begin, end) of a tensor: the page cache itself, while the view is held.

        Without a copy, reading is a third faster than with pread. All pages are requested at once,
        so that a disk error is an exception here, not a signal later.
        Raises DstoolsError where the file has become shorter or cannot be read.
        """
        if begin == end:
            return memoryview(b"")
        at, granularity = info.offset + begin, mmap.ALLOCATIONGRANULARITY
        start = at // granularity * granularity
        length = info.offset + end - start
        try:
            pages = self._map(info.shard, start, length)
        except ValueError:  # from mmap: the file is shorter
            raise DstoolsError(
                f"{info.shard}: ends before its header says", "download or copy the shard again"
            ) from None
        try:
            pages.madvise(MADV_POPULATE_READ)
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel reads pages as they are touched
                raise DstoolsError(
                    f"{info.where}: cannot be read ({error.strerror})", "check the disk or mount"
                ) from error
        data = memoryview(pages)[at - start :]
        if self.watch is not None:
            self.watch(info, begin, data)
        return data

    def check_unmoved(self) -> None:
        """Raise DstoolsError where a shard has changed since the folder was opened."""
        for shard in self.shards.values():
            try:
                now = (self.folder / shard.name).stat()
                identity = (now.st_ino, now.st_size, now.st_mtime_ns)
                is_same = identity == (shard.inode, shard.nbytes, shard.mtime_ns)
            except OSError:
                is_same = False
            if not is_same:
                raise DstoolsError(
                    f"{shard.name}: changed or was removed while it was being read",
                    "wait until the checkpoint is complete, delete any output, and start again",
                )

    @cached_property
    def digest(self) -> str:
        """Return a sha256 over config, headers, sizes and times, which identifies the source."""
        parts = [json.dumps(self.config, sort_keys=True)]
        parts += [
            f"{s.name} {s.nbytes} {s.mtime_ns} {s.header_sha256}" for s in self.shards.values()
        ]
        return sha256("\n".join(parts).encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`.

    Raises DstoolsError at the first fault of its files: a shard that is missing, cut short or
    outside the folder, an index that disagrees with the shards, a header that is wrong.
    """
    checkpoint, findings = scan(folder)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        error = errors[0].raised()
        if len(errors) > 1:
            error.args = (f"{error} (and {len(errors) - 1} more; `dstools verify` lists all)",)
        raise error
    return checkpoint


def scan(folder: Path) -> tuple[Checkpoint, list[Finding]]:
    """Return what can be read of the checkpoint in `folder`, and all faults of its files.

    Raises DstoolsError only where there is no checkpoint: no folder, no config.json or no shard.
    """
    if not folder.is_dir():
        raise DstoolsError(f"{folder}: no such folder", "give a checkpoint folder or org/name")
    if _is_adapter(folder):
        raise _adapter_alone(folder)
    refuse_exported(folder)
    config = _read_json(folder / "config.json", MAX_CONFIG_BYTES)
    findings: list[Finding] = []
    weight_map, metadata = _read_index(folder, findings)
    findings += _unlisted(folder, set(weight_map.values()))
    tensors: dict[str, TensorInfo] = {}
    shards: dict[str, Shard] = {}
    for name in sorted(set(weight_map.values())):
        try:
            shard, infos = read_header(folder, name)
        except DstoolsError as error:
            findings.append(Finding.error("shard-unreadable", name, str(error), error.hint))
            continue
        shards[name] = shard
        for info in infos:
            if info.name in tensors:
                other = tensors[info.name].shard
                findings.append(Finding.error("tensor-twice", info.where, f"also in {other}"))
            tensors[info.name] = info
    if (folder / INDEX).exists():
        tied = "lm_head.weight" if config.get("tie_word_embeddings") is True else ""
        findings += _disagreements(weight_map, tensors, shards, tied)
    metadata = metadata if isinstance(metadata, dict) else {}
    warnings = tuple(finding for finding in findings if finding.level == "warning")
    return Checkpoint(folder, config, tensors, shards, metadata, warnings), findings


def _unlisted(folder: Path, listed: set[str]) -> Iterator[Finding]:
    """Yield the files of weights that no index lists.

    Of an index and a model.safetensors beside it, readers take different ones: transformers the
    single file, others the shards of the index. Source: modeling_utils.py,
    _get_resolved_checkpoint_files; Blaizzy/mlx-vlm#1464.
    """
    for name in ADAPTER_WEIGHTS:
        if (folder / name).exists():
            yield Finding.warning(
                "adapter",
                name,
                "is an adapter (LoRA), which is not applied to the weights",
                "if they do not contain it, merge it first (peft: merge_and_unload); if they do, "
                "remove it; dstools does not copy it",
            )
    others = {path.name for path in folder.glob("*.safetensors")} - listed
    for name in sorted(others.difference(ADAPTER_WEIGHTS)):
        if name == SINGLE:
            yield Finding.error(
                "weights-twice",
                f"{SINGLE} and {INDEX}",
                f"are two sets of weights: transformers loads {SINGLE}, other tools the shards of "
                "the index",
                f"delete the older one: {SINGLE}, or {INDEX} with its shards",
            )
        else:
            yield Finding.warning(
                "shard-unlisted", printable(name), "is not part of the checkpoint; not read"
            )


def _read_index(folder: Path, findings: list[Finding]) -> tuple[dict[str, str], Any]:
    """Return {tensor: shard} and the metadata of the index; without an index, the single shard."""
    if not (folder / INDEX).exists():
        if not os.path.lexists(folder / SINGLE):
            several = sum(name.endswith(".safetensors") for name in _weights_of_models(folder))
            if not several:
                _refuse_other_weights(folder)
            raise DstoolsError(
                f"{folder}: {several} .safetensors files, but neither {SINGLE} nor {INDEX}",
                "check that the download is complete; a sharded checkpoint needs its index",
            )
        return {"": SINGLE}, None
    index = _read_json(folder / INDEX, MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DstoolsError(f"{INDEX}: has no weight_map", "download the index again")
    for tensor, shard in weight_map.items():
        if type(shard) is not str:
            raise DstoolsError(
                f"{INDEX}: {printable(tensor)} is in {shard!r}, which is not a file name",
                "download the index again",
            )
    outside = {shard for shard in set(weight_map.values()) if not _is_plain(shard)}
    for shard in sorted(outside):
        tensor = next(tensor for tensor, name in weight_map.items() if name == shard)
        findings.append(_unreadable(tensor, shard))
    if outside:
        weight_map = {tensor: s for tensor, s in weight_map.items() if s not in outside}
    return weight_map, index.get("metadata")


def _adapter_alone(folder: Path) -> DstoolsError:
    """Return the refusal of a folder that holds an adapter's weights and no model's."""
    merge = f"PeftModel.from_pretrained(BASE, {str(folder)!r}).merge_and_unload()"
    has_config = (folder / ADAPTER).exists()
    return DstoolsError(
        f"{folder}: holds an adapter (LoRA), not a model",
        f"{'' if has_config else f'restore its {ADAPTER}, then '}merge it with its base model, "
        f"{merge}, and save_pretrained the result",
    )


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter's files, and no weights of a model in any form."""
    has_adapter = any((folder / name).exists() for name in (ADAPTER, *ADAPTER_WEIGHTS))
    return has_adapter and not (folder / INDEX).exists() and not _weights_of_models(folder)


def _weights_of_models(folder: Path) -> list[str]:
    """Return the names of the files of weights, but those of an adapter or of a trainer's state."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in WEIGHT_SUFFIXES
        and path.name not in ADAPTER_WEIGHTS
        and not path.name.startswith(TRAINER_STATE)
    )


def _unreadable(tensor: str, shard: str) -> Finding:
    """Return why a file that the index names is not read."""
    where, named = f"{INDEX}: {printable(tensor)}", f"names {printable(shard)!r}, which is not a"
    if shard.isprintable() and _is_plain(f"{shard}.safetensors"):  # but for its ending
        return Finding.error(
            "shard-format",
            where,
            f"{named} .safetensors file",
            f"delete the index if {SINGLE} holds all weights; if not, convert the other files",
        )
    return Finding.error(
        "path-outside",
        where,
        f"{named} plain file name in this folder",
        "nothing outside the folder is read; download the index again",
    )


def _refuse_other_weights(folder: Path) -> None:
    """Raise DstoolsError where the folder holds weights in a form that is not read."""
    indexes = sorted(path.name for path in folder.glob("*.index.json"))  # of other forms
    names = _weights_of_models(folder) or indexes
    if names:
        first = names[0]
        reason = "; pickles are not read" if Path(first).suffix in PICKLES else ""
        command = f"from_pretrained({str(folder)!r}, dtype='auto').save_pretrained('NEW')"
        raise DstoolsError(
            f"{folder}: holds {printable(first)}, but no .safetensors file{reason}",
            f"convert it in Python: transformers.AutoModelForCausalLM.{command}; then copy the "
            "tokenizer's files to NEW"
            if first.startswith("pytorch_model") and first.endswith(".bin")
            else "only .safetensors files are read; download the model in that form",
        )


def _is_plain(shard: str) -> bool:
    return (
        shard.endswith(".safetensors")
        and shard.isprintable()
        and not shard.startswith(".")
        and os.path.basename(shard) == shard  # noqa: PTH119  a string, not yet a path
        and "\\" not in shard
    )


def _disagreements(
    weight_map: dict[str, str], tensors: dict[str, TensorInfo], shards: dict[str, Shard], tied: str
) -> Iterator[Finding]:
    """Yield where index and shards disagree on the place of a tensor.

    `tied` is the head of a model that uses its embeddings as head: no shard needs to hold it.
    """
    if weight_map == {info.name: info.shard for info in tensors.values()}:
        return
    for name, shard in weight_map.items():
        info = tensors.get(name)
        if shard not in shards or (info is not None and info.shard == shard):
            continue  # an unreadable shard has its own finding
        if name == tied and info is None:
            yield Finding.warning(
                "index-disagrees",
                f"{INDEX}: {name}",
                f"should be in {shard}, but no shard holds it; it is tied to the embeddings",
            )
            continue
        actual = "no shard holds it" if info is None else f"it is in {info.shard}"
        yield Finding.error(
            "index-disagrees",
            f"{INDEX}: {printable(name)}",
            f"should be in {shard}, but {actual}",
            "a shard is missing, cut short or from another download; download again",
        )
    for info in tensors.values():
        if info.name not in weight_map:
            yield Finding.error(
                "index-disagrees",
                info.where,
                "is not in the index",
                "index and shards are from different downloads; download again",
            )


def _read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in a file; raises DstoolsError, naming the file, without one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise DstoolsError(
                f"{path.name}: is not a regular file of {max_bytes >> 20} MiB or less",
                "download the file again",
            )
        content = strict_json(path.read_bytes(), MAX_TABLE_VALUES)
    except OSError as error:
        raise DstoolsError(
            f"{path}: {error.strerror}",
            "a checkpoint folder holds config.json and .safetensors files",
        ) from error
    except (ValueError, RecursionError) as error:
        if is_lfs_pointer(path):
            raise DstoolsError(
                f"{path.name}: is a Git LFS pointer, not the file", LFS_HINT
            ) from error
        raise DstoolsError(
            f"{path.name}: is not valid JSON: {error}", "download the file again"
        ) from error
    if not isinstance(content, dict):
        raise DstoolsError(f"{path.name}: is not a JSON object", "download the file again")
    return content
