"""A folder is checked, and hashed, before it is published."""

from hashlib import sha1, sha256
from pathlib import Path

import pytest

from dstools.hub.selection import select
from dstools.hub.verified import verified
from dstools_converters.errors import DstoolsError


def test_every_file_has_both_hashes_of_the_hub(bare: Path) -> None:
    selection = select(bare)
    counted: list[int] = []
    result = verified(bare, selection, 2, counted.append)
    assert result.blobs.keys() == selection.files.keys()
    for name, blob in result.blobs.items():
        content = (bare / name).read_bytes()
        assert blob.nbytes == len(content)
        assert blob.sha256 == sha256(content).hexdigest()
        assert blob.git_sha1 == sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert result.report.ok
    assert sum(counted) > 0


def test_a_folder_that_falls_short_is_refused_by_file_and_tensor(bare: Path) -> None:
    shard = next(path for path in sorted(bare.glob("*.safetensors")))
    raw = bytearray(shard.read_bytes())
    raw[-2:] = b"\xff\x7f"  # BF16 NaN
    shard.chmod(0o644)
    shard.write_bytes(raw)
    with pytest.raises(DstoolsError, match=shard.name):
        verified(bare, select(bare), 2, lambda nbytes: None)


def test_a_config_that_contradicts_the_weights_is_refused(bare: Path) -> None:
    config = bare / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text().replace('"num_hidden_layers": ', '"num_hidden_layers": 1'))
    with pytest.raises(DstoolsError):
        verified(bare, select(bare), 2, lambda nbytes: None)
