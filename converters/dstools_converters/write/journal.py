"""The journal of a conversion: what is done, one JSON record a line, for a next run to resume from.

A record is written after the bytes that it is about. The page cache outlives the process, but not
the machine, so most records count only until the machine restarts:

    record                        meaning                                counts until
    {"plan": …, "settings": …}    whose work this is; the first record   the end
    {"boot": id}                  the records below are of this boot of the machine
    {"job": [shard, number]}      its bytes are written                  a restart, or "opened"
        with "note": {...}        what the job noted of its tensor       the job does not count
    {"layer": number, "note": …}  a calibration is past this layer       a restart
    {"flushed": [shards]}         all layers above, and the jobs above of these shards, are on disk
    {"written": shard}            all its jobs, and it has its name      a restart, or "opened"
    {"synced": shard}             it is on disk                          "opened"
    {"hashed": [shard, sha256]}   of its bytes, in hexadecimal           "opened"
    {"opened": shard}             it begins anew; records above of it do not count
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from dstools_converters.errors import disk_errors
from dstools_converters.files import append_record, recover_log
from dstools_converters.sidefiles.calibration import LayerNote

JOURNAL = "journal.jsonl"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Note = dict[str, Any]  # what a job reports of its tensor: {"tensor": NAME, ...}
Notes = dict[tuple[int, int], Note]  # by shard and job


@dataclass
class Done:
    """What the records of a journal say is done; shards and jobs by their numbers."""

    finished: set[int] = field(default_factory=set)  # shards
    synced: set[int] = field(default_factory=set)  # those of them that are on disk
    sha256: dict[int, str] = field(default_factory=dict)  # of shards, those not finished too
    jobs: dict[int, set[int]] = field(default_factory=dict)  # by shard
    notes: Notes = field(default_factory=dict)  # of jobs that may not count, too
    layers: dict[int, LayerNote] = field(default_factory=dict)


class Journal:
    """The journal of one folder: read at once, appended to after `begin`, by any thread.

    Raises DstoolsError where the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boot = boot_id()
        self.records: list[dict[str, Any]] = []  # of earlier runs
        if path.exists():
            with path.open("r+b") as file:
                self.records = [record for _, record in recover_log(file)]

    def begin(self, fingerprint: Note) -> None:
        """Open the journal for the records of this run."""
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if not self.records:
            self._append(fingerprint)
        self._append({"boot": self.boot})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def sync(self) -> None:
        """Flush the records to the disk."""
        os.fsync(self._file)

    def opened(self, shard: int) -> None:
        """Record that a shard begins anew."""
        self._append({"opened": shard})

    def job(self, shard: int, job: int, note: Note | None) -> None:
        """Record that the bytes of a job are written."""
        self._append({"job": [shard, job]} | ({"note": note} if note is not None else {}))

    def layer(self, layer: int, note: LayerNote) -> None:
        """Record that a calibration is past a layer."""
        self._append({"layer": layer, "note": note._asdict()})

    def flushed(self, shards: Iterable[int]) -> None:
        """Record that the jobs of these shards until now are on disk."""
        self._append({"flushed": sorted(shards)})

    def written(self, shard: int) -> None:
        """Record that a shard is complete and has its name."""
        self._append({"written": shard})

    def hashed(self, shard: int, sha256: str) -> None:
        """Record the sha256 of a complete shard."""
        self._append({"hashed": [shard, sha256]})

    def synced(self, shard: int) -> None:
        """Record that a complete shard is on disk."""
        self._append({"synced": shard})

    def _append(self, record: dict[str, Any]) -> None:
        with disk_errors(self.path):
            append_record(self._file, record)

    def all_notes(self) -> tuple[Notes, dict[int, LayerNote]]:
        """Return every note of jobs and of layers, of a run that has done all its work."""
        notes = {tuple(r["job"]): r["note"] for r in self.records if "job" in r and "note" in r}
        return notes, {r["layer"]: LayerNote(**r["note"]) for r in self.records if "layer" in r}

    def named(self) -> set[int]:
        """Return the shards that are recorded to have their name, and may keep it."""
        keys = ("written", "synced") if self._is_this_boot() else ("synced",)
        return {record[key] for record in self.records for key in keys if key in record}

    def _is_this_boot(self) -> bool:
        boots = [record["boot"] for record in self.records if "boot" in record]
        return bool(boots) and boots[-1] == self.boot

    def done(self) -> Done:
        """Return what is done according to the records that still count."""
        done = Done()
        jobs: dict[int, set[int]] = {}  # of the boot being read, not flushed
        layers: dict[int, LayerNote] = {}
        boot = None
        for record in self.records:
            if "boot" in record and record["boot"] != boot:
                boot = record["boot"]
                jobs, layers = {}, {}
            elif "opened" in record:
                shard = record["opened"]
                for shards in (done.jobs, jobs):
                    shards.pop(shard, None)
                done.finished.discard(shard)
                done.synced.discard(shard)
                done.sha256.pop(shard, None)
            elif "synced" in record:
                done.synced.add(record["synced"])
                done.finished.add(record["synced"])
            elif "written" in record and boot == self.boot:
                done.finished.add(record["written"])
            elif "hashed" in record:
                shard, done.sha256[shard] = record["hashed"]
            elif "job" in record:
                shard, job = record["job"]
                jobs.setdefault(shard, set()).add(job)
                if "note" in record:
                    done.notes[shard, job] = record["note"]
            elif "layer" in record:
                layers[record["layer"]] = LayerNote(**record["note"])
            elif "flushed" in record:
                for shard in record["flushed"]:
                    done.jobs.setdefault(shard, set()).update(jobs.pop(shard, set()))
                done.layers.update(layers)
        if boot == self.boot:
            done.layers.update(layers)
            for shard, numbers in jobs.items():
                done.jobs.setdefault(shard, set()).update(numbers)
        return done


def begun_by(path: Path) -> Note | None:
    """Return the fingerprint of the run that a journal was begun for, None where it was not.

    It is only read: a run may be writing it.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        line = file.readline()
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def boot_id() -> str:
    """Return the id of this boot of the machine; a new one at each call if there is none."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else uuid4().hex
