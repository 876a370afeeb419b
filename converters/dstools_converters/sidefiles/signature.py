"""model.sig: a signature over every file of a folder, made and checked by model-signing.

The signature is a Sigstore bundle of the OpenSSF Model Signing format, signed by an elliptic curve
key, without a network: `model_signing verify key` reads it, too. Source: model-signing 1.1.1,
signing.py and verifying.py.
"""

import ast
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from dstools_converters.errors import DstoolsError, Finding, install_hint, printable
from dstools_converters.sidefiles.carried import LATER, require_own
from dstools_converters.sidefiles.sums import SIGNATURE

Sign = Callable[[Path], None]  # writes the signature of a folder
Verifier = Callable[[Path], list[Finding]]  # returns what is wrong with that of a folder

NOT_SIGNED = (".cache", *LATER)
MAX_KEY_BYTES = 1 << 16
COPY_HINT = "copy or download it again"
ADDED_HINT = "remove it if you do not know it"
# of what model-signing says that it found
MISMATCH = "Signature mismatch: "
CHANGED = re.compile(r"Hash mismatch for '(.*)': Expected '.*?', Actual '.*?'", re.DOTALL)
LISTED = re.compile(r"(Extra|Missing) files (?:found )?in model '.*?': (.*)", re.DOTALL)


def load_signer(key: Path) -> Sign:
    """Return a function that signs a folder with a private key, given in PEM without a password.

    Raises DstoolsError where the key cannot be used, or model-signing is not installed.
    """
    with _of_the_key(key, "--sign"):
        from model_signing import hashing, signing

        config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=NOT_SIGNED))
    return lambda folder: config.sign(folder, folder / SIGNATURE)


def load_verifier(key: Path) -> Verifier:
    """Return a function that checks the signature of a folder with a public key, given in PEM.

    It reads every file of the folder, and returns a finding for each that is not as it was signed.
    Raises DstoolsError where the key cannot be used, or model-signing is not installed.
    """
    with _of_the_key(key, "--signed-by"):
        from cryptography.exceptions import InvalidSignature
        from model_signing import hashing, verifying

        config = verifying.Config().use_elliptic_key_verifier(public_key=key)

    def check(folder: Path) -> list[Finding]:
        if not (folder / SIGNATURE).is_file():
            hint = "ask who made it; without --signed-by it is not looked for"
            fault = "is not a file" if (folder / SIGNATURE).exists() else "is missing"
            return _wrong(f"{fault}: the folder is not signed", hint)
        paths = list(folder.rglob("*"))
        links = [path for path in paths if path.is_symlink()]
        try:
            for path in links:
                require_own(path, folder)
            for path in paths:
                _require_signable(path, folder)
            if links:  # of a Hub cache, or shards on another disk
                config.set_hashing_config(hashing.Config().set_allow_symlinks(True))
            with redirect_stdout(sys.stderr):  # of warnings
                config.verify(folder, folder / SIGNATURE)
        except InvalidSignature:
            message = f"was changed, or not made with the key that belongs to {key}"
            return _wrong(message, COPY_HINT)
        except OSError as error:
            where = Path(error.filename or SIGNATURE).name
            return _wrong(f"is not checked: {printable(where)}: {error.strerror}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            return _explain(str(error), key)
        except DstoolsError as error:
            return _wrong(f"is not checked: {error}", error.hint)
        return []

    return check


def _wrong(message: str, hint: str = "") -> list[Finding]:
    return [Finding.error("signature", SIGNATURE, message, hint)]


def _require_signable(path: Path, folder: Path) -> None:
    """Raise DstoolsError for a pipe or the like, and for a name that no signature can hold."""
    name = str(path.relative_to(folder))
    if not path.is_file() and not path.is_dir():
        raise DstoolsError(f"{printable(name)}: is not a regular file", ADDED_HINT)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DstoolsError(f"{printable(name)}: its name is not UTF-8", ADDED_HINT) from None


def _explain(text: str, key: Path) -> list[Finding]:
    """Return the findings of a ValueError of model-signing: one for each file that differs."""
    if text.startswith("Key mismatch"):
        hint = "name the public key of who signed it"
        return _wrong(f"was made with another key than the one that belongs to {key}", hint)
    if not text.startswith(MISMATCH):
        return _wrong("is not a signature of OpenSSF Model Signing", COPY_HINT)
    findings = []
    for difference in ast.literal_eval(text.removeprefix(MISMATCH)):  # a list of texts
        if match := CHANGED.fullmatch(difference):
            changed = "is not the file that was signed: its content differs"
            findings.append((match[1], changed, COPY_HINT))
        elif match := LISTED.fullmatch(difference):
            is_extra = match[1] == "Extra"
            message = "was not signed: it was added later" if is_extra else "is missing"
            hint = ADDED_HINT if is_extra else COPY_HINT
            findings += [(name, message, hint) for name in match[2].split(", ")]
    if not findings:
        return _wrong("is not of the files in this folder", COPY_HINT)
    return [Finding.error("signature", printable(name), *rest) for name, *rest in findings]


def _may_be_elliptic(content: bytes) -> bool:
    """Return whether PEM is a private elliptic curve key, or a key behind a password."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(content, None)
    except TypeError:  # a password
        return True
    except ValueError:
        return False
    return isinstance(key, ec.EllipticCurvePrivateKey)


@contextmanager
def _of_the_key(key: Path, option: str) -> Iterator[None]:
    """Raise DstoolsError, naming the option, where a package is missing or the key is not one."""
    hint = "name an elliptic curve key: "
    if option == "--sign":
        wanted, other = "private", "public"
        hint += "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"
    else:
        wanted, other = "public", "private"
        hint += "openssl ec -in KEY.pem -pubout -out PUB.pem"
    try:
        if key.exists() and not (key.is_file() and key.stat().st_size <= MAX_KEY_BYTES):
            reason = f"is not a regular file of {MAX_KEY_BYTES >> 10} KiB or less"
            raise DstoolsError(f"{option} {key}: {reason}", hint)
        yield
    except ImportError as error:
        raise DstoolsError(
            f"{option} needs model-signing: {error}", install_hint("sign")
        ) from error
    except OSError as error:
        raise DstoolsError(f"{option} {key}: {error.strerror}", hint) from error
    except (ValueError, TypeError, AttributeError) as error:
        content = key.read_bytes()
        if isinstance(error, AttributeError):  # of RSA
            reason = "is not an elliptic curve key"
        elif isinstance(error, TypeError):
            reason = "has a password"
            hint = f"name one without: openssl ec -in {shlex.quote(str(key))} -out PLAIN.pem"
        elif str(error).startswith("Unsupported key for curve"):
            reason = "is a key of another curve than P-256, P-384 and P-521"
        elif f"{other} key-----".upper().encode() in content:
            reason = f"is a {other} key, not a {wanted} one"
            if _may_be_elliptic(content):
                hint = hint.replace("KEY.pem -pubout", f"{shlex.quote(str(key))} -pubout")
        else:
            reason = f"is not a {wanted} key in PEM"
        raise DstoolsError(f"{option} {key}: {reason}", hint) from error
