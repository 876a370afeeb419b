"""The files of a folder that are published, those that are left out, and those that are refused.

A folder with SHA256SUMS publishes the files that this lists, a stage of `distill` the outputs of
its manifest, both with the card, licence, evaluation, report and plots that were added since. Any
other folder publishes the kinds of files below, never whatever it holds.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dstools_converters.checkpoint.folder import WEIGHT_SUFFIXES
from dstools_converters.errors import DstoolsError, Finding, printable, size
from dstools_converters.files import is_lfs_pointer, json_object, real
from dstools_converters.sidefiles.carried import TRAINING_FILES, TRAINING_FOLDERS
from dstools_converters.sidefiles.manifest import MANIFEST
from dstools_converters.sidefiles.sums import SIGNATURE, SUMS, read_sums

README = "README.md"
EVAL_RESULTS = ".eval_results"
MAX_FILE_BYTES = 500 * 10**9  # docs/hub/storage-limits: a hard limit, and below it an advice
ADVISED_FILE_BYTES = 200 * 10**9
# card, licence, evaluation, report and plots: made after the weights, in any folder
ADDED = re.compile(
    r"(readme|data|citation)\.md|(licen[cs]e|notice|copying|use_policy)([\w.-]*)"
    r"|eval\.json|report\.(html|md)|\.eval_results/[\w.-]+\.ya?ml"
    r"|((plots|figures|images|assets)/)*[^/]+\.(png|svg|jpe?g|gif|webp)",
    re.IGNORECASE,
)
KINDS = re.compile(
    r"[\w.-]*config[\w.-]*\.json|params\.json"
    r"|[^/]+\.safetensors|[^/]+\.safetensors\.index\.json"
    r"|(tokenizer|vocab|special_tokens|added_tokens|chat_template|spiece|sentencepiece)[^/]*"
    r"|merges\.txt|[^/]+\.tiktoken|(additional_chat_templates/)?[\w.-]+\.jinja"
    r"|manifest\.json|calibration\.json|expert_load\.json|recipe\.(ya?ml|toml)"
)
SECRETS = re.compile(
    r"\.env(\..*)?|.*\.env|\.netrc|_netrc|\.git-credentials|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)(\.\w+)?"
    r"|.*\.(key|pem|p12|pfx|ppk)|\.?token|(.*[_-])?credentials(\.\w+)?|secrets?(\.\w+)?",
    re.IGNORECASE,
)
TEMPORARY = re.compile(
    r".*(\.(tmp|temp|partial|part|incomplete|swp|swo|crdownload)|~)|\.~lock.*|tmp[\w]{8}",
    re.IGNORECASE,
)
TOOLS = (
    ".git",
    ".cache",
    "__pycache__",
    ".ipynb_checkpoints",
)  # folders that are never looked into


@dataclass(frozen=True)
class Selection:
    """The files of a folder, by their path in the repository."""

    files: dict[str, Path]
    sums: dict[str, str]  # the sha256 that a list gives, where there is one
    listed_by: str  # the file that lists them; "" without
    left_out: list[str]
    faults: list[Finding]  # why it must not or cannot be published
    warnings: list[Finding]

    @property
    def nbytes(self) -> int:
        """Return the size of all files."""
        return sum(path.stat().st_size for path in self.files.values() if path.is_file())


def select(folder: Path) -> Selection:
    """Return what is published of a folder; nothing is read but lists and configs.

    Raises DstoolsError where a list cannot be read.
    """
    if not folder.is_dir():
        raise DstoolsError(f"{folder}: no such folder", "name the folder of a model")
    listed_by, sums = _listed(folder)
    present, folders = _walk(folder)
    files, left_out = {}, [f"{name}/" for name in folders]
    for name, path in present.items():
        if name in (SUMS, SIGNATURE):
            continue  # written anew; the signature is decided on later
        if name in sums or ADDED.fullmatch(name) or (not listed_by and _is_known(name)):
            files[name] = path
        elif not _is_stage_record(name, listed_by):
            left_out.append(name)
    faults = list(_faults(folder, present, files, sums, listed_by))
    return Selection(files, sums, listed_by, sorted(left_out), faults, list(_large(files)))


def _listed(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the file that lists the folder's files, and what it lists."""
    sums = read_sums(folder)
    if sums is not None:
        return SUMS, sums
    if (folder / MANIFEST).is_file():
        manifest = json_object(folder / MANIFEST)
        outputs = manifest.get("outputs") if isinstance(manifest, dict) else None
        if isinstance(manifest, dict) and isinstance(outputs, dict) and "stage" in manifest:
            try:
                return MANIFEST, {str(name): str(out["sha256"]) for name, out in outputs.items()}
            except (TypeError, KeyError) as error:
                raise DstoolsError(
                    f"{MANIFEST}: its outputs have no sha256", "run the stage again"
                ) from error
    return "", {}


def _walk(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the files of a folder by their path in it, and folders that were not looked into."""
    present, others = {}, []
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        for name in sorted(folders):
            link = (Path(place) / name).is_symlink()
            if name in TOOLS or TRAINING_FOLDERS.fullmatch(name) or link:
                folders.remove(name)
                if link:
                    present[str(inside / name)] = Path(place) / name
                elif name not in TOOLS:
                    others.append(str(inside / name))
        folders.sort()
        present |= {str(inside / name): Path(place) / name for name in names}
    return dict(sorted(present.items())), others


def _is_known(name: str) -> bool:
    base = name.rpartition("/")[2]
    return bool(KINDS.fullmatch(name)) and not TRAINING_FILES.fullmatch(base)


def _is_stage_record(name: str, listed_by: str) -> bool:
    """Return whether a file tells of a stage of `distill` and is not of the model."""
    return listed_by == MANIFEST and name in (MANIFEST, "timing.json")


def _faults(
    folder: Path,
    present: dict[str, Path],
    files: dict[str, Path],
    sums: dict[str, str],
    listed_by: str,
) -> Iterator[Finding]:
    """Yield what must not be in a folder that is published, or in the way it is."""
    for name in sorted(sums.keys() - present.keys()):
        message = f"is listed in {listed_by} and is not in the folder"
        yield refusal("missing", name, message, "restore it; a folder is published whole")
    for name, path in present.items():
        base = name.rpartition("/")[2]
        if SECRETS.fullmatch(base):
            yield refusal("secret", name, "may hold a secret", "move it out of the folder")
        elif TEMPORARY.fullmatch(base):
            hint = "remove it, unless a program is still writing it"
            yield refusal("temporary", name, "is a temporary file", hint)
        elif base == ".gitignore":
            yield refusal("gitignore", name, "makes the Hub skip files in silence", "remove it")
        elif path.suffix == ".py" and name not in sums:
            message = f"is code that {SUMS} does not list"
            hint = f"remove it, or add it to {SUMS} if the model needs it and you have read it"
            yield refusal("code", name, message, hint)
        elif name in files:
            yield from _of_file(folder, name, path)
        elif listed_by == SUMS and _is_known(name):
            message = f"belongs to a model, and {SUMS} does not list it"
            hint = f"remove it, or delete {SUMS} if it is of other files: push writes it anew"
            yield refusal("unlisted", name, message, hint)
        elif path.is_symlink() and path.is_dir():
            hint = "put the folder itself there, or remove the link"
            yield refusal("link", name, "is a link to a folder", hint)
    yield from _auto_map(files)


def _of_file(folder: Path, name: str, path: Path) -> Iterator[Finding]:
    """Yield what is wrong with a file that would be published."""
    if not path.is_file():
        yield refusal("link", name, "is not a file, or a link to nothing", "remove it")
    elif path.is_symlink() and not real(path).is_relative_to(real(folder)):
        hint = "put the file itself there: `cp -rL` copies a folder with what its links lead to"
        yield refusal("link", name, "is a link out of the folder", hint)
    elif not name.isprintable() or "\\" in name:
        yield refusal("name", name, "has a name that the Hub does not take", "rename it")
    elif path.stat().st_size > MAX_FILE_BYTES:
        message = f"has {size(path.stat().st_size)}, over the Hub's limit of 500 GB"
        yield refusal("large-file", name, message, "write smaller shards")
    elif is_lfs_pointer(path):
        message = "is a Git LFS pointer, not the file"
        yield refusal("pointer", name, message, "run `git lfs pull` in the folder")


def _auto_map(files: dict[str, Path]) -> Iterator[Finding]:
    """Yield configs whose `auto_map` names code that is not published."""
    for name in ("config.json", "tokenizer_config.json"):
        table = json_object(files[name]) if name in files and files[name].is_file() else {}
        code = table.get("auto_map") if isinstance(table, dict) else None
        for value in code.values() if isinstance(code, dict) else ():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str) and "--" not in reference:  # of another repository
                    module = f"{reference.rpartition('.')[0].replace('.', '/')}.py"
                    if module not in files:
                        message = f"auto_map names {printable(module)}, which is not published"
                        hint = f"remove auto_map, or put {module} there and list it in {SUMS}"
                        yield refusal("auto-map", name, message, hint)


def refusal(code: str, name: str, message: str, hint: str) -> Finding:
    """Return a finding that stops a push."""
    return Finding.error(code, printable(name), message, hint)


def _large(files: dict[str, Path]) -> Iterator[Finding]:
    for name, path in files.items():
        if path.is_file() and path.stat().st_size > ADVISED_FILE_BYTES:
            message = f"has {size(path.stat().st_size)}; the Hub advises files under 200 GB"
            yield Finding.warning("large-file", printable(name), message)


def is_weights(name: str) -> bool:
    """Return whether a file of a repository is weights or an index of weights."""
    base = name.rpartition("/")[2]
    if TRAINING_FILES.fullmatch(base):
        return False
    return base.endswith((*WEIGHT_SUFFIXES, ".index.json"))


# ------------------------------------------------------------------------ what text files give away

TEXT = (*(".json", ".md", ".txt", ".jinja", ".yaml", ".yml", ".toml", ".html", ".svg", ".py"), "")
MAX_TEXT_BYTES = 64 << 20
_PATH = rb"(?:\\?/|~|\.{1,2}\\?/|[A-Za-z]:[\\/]|file:)[^\"]*"
LOCAL_NAME = re.compile(
    rb'"(_name_or_path|name_or_path|base_model|base_model_name_or_path)"\s*:\s*"(' + _PATH + rb')"'
)
PRIVATE = re.compile(
    rb"hf_[A-Za-z0-9]{34}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b"
)


def leaks(files: dict[str, Path], card: bytes, folder: Path, token: str) -> Iterator[Finding]:
    """Yield, by file and line, texts that give away a folder of this machine or a secret.

    Looks at text files and at the headers of weights, for the home, the working folder and the
    folder itself, for `token` and what looks like one, and for private keys. `card` is the README.
    """
    places = _places(Path.home(), Path.cwd(), real(folder))
    for name, path in (files | {README: folder / README}).items():
        if name == README:
            raw = card
        elif path.suffix == ".safetensors" and path.is_file():
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                raw = file.read(min(length, MAX_TEXT_BYTES))
        elif path.suffix.lower() in TEXT and path.is_file():
            raw = path.read_bytes() if path.stat().st_size <= MAX_TEXT_BYTES else b""
        else:
            continue
        for code, pattern, message, hint in (
            ("secret", re.compile(re.escape(token.encode())), "holds your token", TOKEN_HINT),
            ("secret", PRIVATE, "holds what looks like a token or a private key", TOKEN_HINT),
            ("local-path", LOCAL_NAME, "names a local path", NAME_HINT),
            ("local-path", places, "names a folder of this machine", "remove it from the file"),
        ):
            if match := pattern.search(raw):
                line = raw.count(b"\n", 0, match.start()) + 1
                where = f" in {match[1].decode()}" if pattern is LOCAL_NAME else ""
                yield refusal(code, f"{name}, line {line}", message + where, hint)


NAME_HINT = "remove that key, or name the model as org/name"
TOKEN_HINT = "remove it; a token that was in a shared file should be revoked"


def _places(*folders: Path) -> re.Pattern[bytes]:
    """Return a pattern of folders of this machine, as a whole path or the start of one."""
    patterns = {rb"(?!)"}
    for folder in folders:
        for spelled in {str(folder), json.dumps(str(folder))[1:-1]}:
            depth = len(folder.parts) - 1
            if depth == 0:
                continue  # the root
            # "/root" alone may be a token of a vocabulary
            rest = rb"(?![\w.-])" if depth > 1 else rb"/[\w.-]"
            patterns.add(rb"(?<![\w.~-])" + re.escape(os.fsencode(spelled)) + rest)
    return re.compile(b"|".join(sorted(patterns)))
