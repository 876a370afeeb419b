"""What must survive a power cut: files and folders, flushed to the disk."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and flush it; its name is the folder's, which `sync` flushes."""
    path.write_bytes(data)
    sync(path)
