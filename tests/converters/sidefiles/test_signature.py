"""model.sig: it holds for the folder and the key that it was made of, and names what differs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.sidefiles.carried import REPORTS
from dstools_converters.sidefiles.signature import load_signer, load_verifier


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """keys(name, key=None, password=None): files of a private key and of its public one."""
    folder = tmp_path_factory.mktemp("keys")

    def make(
        name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
    ) -> tuple[Path, Path]:
        key = key or ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
        form = serialization.PrivateFormat.PKCS8
        private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(pem, info))
        return private, public

    return make


@pytest.fixture
def signed(tmp_path: Path, keys: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path]:
    """A signed folder, and the public key."""
    private, public = keys("ours")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "model.safetensors").write_bytes(bytes(3_000_000))
    load_signer(private)(folder)
    return folder, public


def check(signed: tuple[Path, Path]) -> Finding | None:
    """Return the one finding, None without any."""
    folder, public = signed
    findings = load_verifier(public)(folder)
    assert len(findings) <= 1
    return findings[0] if findings else None


def test_a_signature_holds_for_what_was_signed_and_files_that_come_later(
    signed: tuple[Path, Path],
) -> None:
    assert check(signed) is None
    (signed[0] / "plots").mkdir()
    for name in ("eval.json", *REPORTS, ".gitattributes"):
        (signed[0] / name).write_text("")
    (signed[0] / ".cache").mkdir()
    (signed[0] / ".cache" / "x.metadata").write_text("")
    assert check(signed) is None
    (signed[0] / "plots" / "mine.svg").write_text("")
    assert check(signed) is not None


def test_model_signing_s_own_command_accepts_it(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    command = [sys.executable, "-m", "model_signing", "verify", "key", folder]
    options = ["--signature", folder / "model.sig", "--public_key", public]
    subprocess.run([*command, *options], check=True)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").write_text("{ "), "config.json"),
        (lambda folder: (folder / "sub/model.safetensors").unlink(), "sub/model.safetensors"),
        (lambda folder: (folder / "evil.py").write_text(""), "evil.py"),
    ],
)
def test_a_file_that_changed_is_missing_or_was_added_is_named(
    signed: tuple[Path, Path], damage: Callable[[Path], object], named: str
) -> None:
    damage(signed[0])
    finding = check(signed)
    assert finding is not None
    assert (finding.level, finding.code, finding.where) == ("error", "signature", named)
    assert "digest" not in finding.message.lower()


def test_of_many_changes_each_is_a_finding(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    (folder / "config.json").write_text("{ }")
    (folder / "sub" / "model.safetensors").write_bytes(b"")
    for name in ("evil's.py", "\x1b[31m\n.py"):
        (folder / name).write_text("")
    findings = load_verifier(public)(folder)
    assert {(f.where, f.message) for f in findings} == {
        ("config.json", "is not the file that was signed: its content differs"),
        ("sub/model.safetensors", "is not the file that was signed: its content differs"),
        ("evil's.py", "was not signed: it was added later"),
        ("\\x1b[31m\\n.py", "was not signed: it was added later"),
    }
    assert all(f.hint for f in findings)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe: is not a regular file"),
        (lambda folder: (folder / "loop").symlink_to("loop"), "loop: is a link to nothing"),
        (lambda folder: (Path(f"{folder}/\udcff")).touch(), "\\udcff: its name is not UTF-8"),
    ],
)
def test_what_no_signature_can_hold_is_named(
    signed: tuple[Path, Path], add: Callable[[Path], object], message: str
) -> None:
    add(signed[0])
    finding = check(signed)
    assert finding is not None
    assert finding.message == f"is not checked: {message}"


def test_another_key_a_changed_signature_and_none_are_errors(
    signed: tuple[Path, Path], keys: Callable[..., tuple[Path, Path]]
) -> None:
    folder, _ = signed
    _, other = keys("other")
    finding = check((folder, other))
    assert finding is not None
    assert finding.message == f"was made with another key than the one that belongs to {other}"
    signature = (folder / "model.sig").read_text()
    for damaged in ("", "{}", signature[:100], signature.replace('payload":"', 'payload":"AA')):
        (folder / "model.sig").write_text(damaged)
        assert damaged != signature
        finding = check(signed)
        assert finding is not None
        assert "'" not in finding.message
    (folder / "model.sig").unlink()
    finding = check(signed)
    assert finding is not None
    assert finding.message == "is missing: the folder is not signed"
    os.mkfifo(folder / "model.sig")
    finding = check(signed)
    assert finding is not None
    assert finding.message == "is not a file: the folder is not signed"


def test_a_signed_folder_in_a_hub_cache_is_checked_through_its_links(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, public = signed
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = repo / "snapshots" / "rev" / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(repo / "blobs" / str(number))
        link.symlink_to(repo / "blobs" / str(number))
    snapshot = repo / "snapshots" / "rev"
    assert check((snapshot, public)) is None
    (snapshot / "passwd").symlink_to("/etc/passwd")
    finding = check((snapshot, public))
    assert finding is not None
    assert finding.message == "is not checked: passwd: is a link out of the folder"


def test_a_shard_that_was_linked_from_another_disk_is_checked(
    tmp_path: Path, keys: Callable[..., tuple[Path, Path]]
) -> None:
    private, public = keys("linked")
    folder, moved = tmp_path / "folder", tmp_path / "elsewhere.bin"
    folder.mkdir()
    shard = folder / "model.safetensors"
    shard.write_bytes(bytes(1000))
    load_signer(private)(folder)
    shard.rename(moved)
    shard.symlink_to(moved)
    assert check((folder, public)) is None
    moved.write_bytes(bytes(999) + b"1")
    finding = check((folder, public))
    assert finding is not None
    assert finding.where == "model.safetensors"


def test_a_key_of_another_kind_is_refused_by_name(
    tmp_path: Path, keys: Callable[..., tuple[Path, Path]]
) -> None:
    private, public = keys("rsa", rsa.generate_private_key(65537, 2048))
    _, koblitz = keys("koblitz", ec.generate_private_key(ec.SECP256K1()))
    curve = "is a key of another curve than P-256, P-384 and P-521"
    gone, garbage, pipe = (tmp_path / name for name in ("gone.pem", "garbage.pem", "pipe.pem"))
    garbage.write_bytes(b"\xff\0")
    os.mkfifo(pipe)
    for load, key, message in (
        (load_signer, private, f"--sign {private}: is not an elliptic curve key"),
        (load_signer, public, f"--sign {public}: is a public key, not a private one"),
        (load_signer, gone, f"--sign {gone}: No such file or directory"),
        (load_verifier, public, f"--signed-by {public}: is not an elliptic curve key"),
        (load_verifier, private, f"--signed-by {private}: is a private key, not a public one"),
        (load_verifier, koblitz, f"--signed-by {koblitz}: {curve}"),
        (load_verifier, garbage, f"--signed-by {garbage}: is not a public key in PEM"),
        (load_verifier, pipe, f"--signed-by {pipe}: is not a regular file of 64 KiB or less"),
        (load_signer, tmp_path, f"--sign {tmp_path}: is not a regular file of 64 KiB or less"),
    ):
        with pytest.raises(DstoolsError, match="--sign") as error:
            load(key)
        assert str(error.value).startswith(message)
        command = "openssl ecparam" if load is load_signer else "openssl ec -in"
        assert command in error.value.hint
        assert str(private) not in error.value.hint  # openssl ec reads no RSA


def test_a_private_key_with_a_password_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    locked = serialization.BestAvailableEncryption(b"secret")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, form, locked))
    with pytest.raises(DstoolsError) as error:
        load_signer(path)
    assert str(error.value) == f"--sign {path}: has a password"
    assert error.value.hint == f"name one without: openssl ec -in {path} -out PLAIN.pem"


def test_the_hint_for_a_private_key_makes_the_public_one(
    signed: tuple[Path, Path], keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, public = signed
    private = public.with_name("ours.pem")
    with pytest.raises(DstoolsError) as error:
        load_verifier(private)
    command = error.value.hint.removeprefix("name an elliptic curve key: ")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert load_verifier(tmp_path / "PUB.pem")(folder) == []


def test_without_the_package_the_hint_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(DstoolsError, match="--sign needs model-signing") as error:
        load_signer(tmp_path / "key.pem")
    assert error.value.hint == 'pip install "dstools-llm[sign]"'
