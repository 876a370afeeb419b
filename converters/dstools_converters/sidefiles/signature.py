"""model.sig: a signature over every file of a folder, made and checked by model-signing.

The signature is a Sigstore bundle of the OpenSSF Model Signing format, signed by an elliptic curve
key, without a network: `model_signing verify key` reads it, too. Source: model-signing 1.1.1,
signing.py and verifying.py.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.sidefiles.carried import LATER, require_own
from dstools_converters.sidefiles.sums import SIGNATURE

Sign = Callable[[Path], None]  # writes the signature of a folder
Verifier = Callable[[Path], Finding | None]  # returns what is wrong with that of a folder

NOT_SIGNED = (".cache", *LATER)
CURVES = "an elliptic curve key: openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"
DIGESTS = re.compile(r": Expected 'Digest\(.*?\)', Actual 'Digest\(.*?\)'(?=['\"])")


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

    It reads every file of the folder, and returns None where all are as they were signed.
    Raises DstoolsError where the key cannot be used, or model-signing is not installed.
    """
    with _of_the_key(key, "--signed-by"):
        from cryptography.exceptions import InvalidSignature
        from model_signing import hashing, verifying

        config = verifying.Config().use_elliptic_key_verifier(public_key=key)

    def check(folder: Path) -> Finding | None:
        if not (folder / SIGNATURE).is_file():
            return Finding.error("signature", SIGNATURE, "is missing: the folder is not signed")
        links = [path for path in folder.rglob("*") if path.is_symlink()]
        try:
            for path in links:
                require_own(path, folder)
            if links:  # of a Hub cache, or shards on another disk
                config.set_hashing_config(hashing.Config().set_allow_symlinks(True))
            with redirect_stdout(sys.stderr):  # of warnings
                config.verify(folder, folder / SIGNATURE)
        except InvalidSignature:
            message = f"was changed, or not made with the key that belongs to {key}"
            return Finding.error("signature", SIGNATURE, message)
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            text = DIGESTS.sub("", str(error)).removeprefix("Signature mismatch: ")
            message = f"is invalid: {printable(text)}"
            return Finding.error("signature", SIGNATURE, message)
        except DstoolsError as error:
            return Finding.error("signature", SIGNATURE, f"is not checked: {error}", error.hint)
        return None

    return check


@contextmanager
def _of_the_key(key: Path, option: str) -> Iterator[None]:
    """Raise DstoolsError, naming the option, where a package is missing or the key is not one."""
    try:
        yield
    except ImportError as error:
        raise DstoolsError(
            f"{option} needs model-signing: {error}", 'pip install "dstools-llm[sign]"'
        ) from error
    except OSError as error:
        raise DstoolsError(f"{option} {key}: {error.strerror}", f"name {CURVES}") from error
    except (ValueError, TypeError, AttributeError) as error:  # AttributeError: an RSA key
        reason = "is not an elliptic curve key" if type(error) is AttributeError else str(error)
        raise DstoolsError(f"{option} {key}: {reason}", f"name {CURVES}") from error
