"""The files of a folder that are published, those that are left out, and those that are refused.

An exported folder publishes the files that export.json lists, native code where it is asked for. A
folder with SHA256SUMS publishes the files that this lists, a stage of `distill` the outputs of
its manifest, both with the card, licence, evaluation, report and plots that were added since. Any
other folder publishes the kinds of files below, never whatever it holds.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dstools.hub.student import card_of
from dstools_converters.checkpoint.config import named_code
from dstools_converters.checkpoint.exported import is_exported
from dstools_converters.checkpoint.folder import WEIGHT_SUFFIXES
from dstools_converters.errors import DstoolsError, Finding, printable, size
from dstools_converters.export.folder import EXPORT, PLUGINS, native_code, require_export
from dstools_converters.files import is_lfs_pointer, json_object, real
from dstools_converters.sidefiles.carried import README, TRAINING_FILES, TRAINING_FOLDERS
from dstools_converters.sidefiles.manifest import MANIFEST
from dstools_converters.sidefiles.sums import MAKE, SIGNATURE, SUMS, read_sums

GITATTRIBUTES = ".gitattributes"  # the Hub writes its own
EVAL_RESULTS = ".eval_results"
MAX_FILE_BYTES = 500 * 10**9  # docs/hub/storage-limits: a hard limit, and below it an advice
ADVISED_FILE_BYTES = 200 * 10**9
DATA_SUFFIXES = (".data", ".plan")  # weights and engines of an exported folder
# card, licence, evaluation, report and plots: made after the weights, in any folder
ADDED = re.compile(
    r"(readme|data|citation)\.md|eval\.json|report\.(html|md)"
    r"|(licen[cs]e|notice|copying|use_policy)([_-][\w-]+)?(\.(md|txt|rst|html))?"
    r"|\.eval_results/[\w.-]+\.ya?ml"
    r"|((plots|figures|images|assets)/)*[^/]+\.(png|svg|jpe?g|gif|webp)",
    re.IGNORECASE,
)
_CONFIGS = "generation|tokenizer|preprocessor|processor|image_processor|video_preprocessor"
_CONFIGS += "|feature_extractor|quantize|quantization|hf_quant"
_TOKENIZER = "tokenizer|vocab|special_tokens_map|added_tokens|chat_template|spiece|sentencepiece"
KINDS = re.compile(
    rf"(({_CONFIGS})_)?config\.json|params\.json"
    r"|[^/]+\.safetensors|[^/]+\.safetensors\.index\.json"
    rf"|({_TOKENIZER})([._-][\w.-]+)?\.(json|model|txt|bpe|spm|jinja)"
    r"|tokenizer\.model\.v\d+|tekken\.json|merges\.txt|[^/]+\.tiktoken"
    r"|(additional_chat_templates/)?[\w.-]+\.jinja"
    r"|manifest\.json|calibration\.json|expert_load\.json|recipe\.(ya?ml|toml)"
)
SECRETS = re.compile(
    r"\.env([.-].*|rc)?|.*\.env|[._]netrc|\.npmrc|\.pypirc|\.git-credentials"
    r"|id_(rsa|dsa|ecdsa|ed25519)(\.\w+)?|.*\.(key|pem|p12|pfx|ppk)"
    r"|\.?(.*[_.-])?(token|password|passwd|secrets?|credentials?)"
    r"(\.(txt|json|ya?ml|toml|ini|cfg))?",
    re.IGNORECASE,
)
TEMPORARY = re.compile(  # the last: of Python's tempfile, which draws digits, too
    r".*(\.(tmp|temp|partial|part|incomplete|swp|swo|crdownload)|~)|\.~lock.*"
    r"|tmp(?=[a-z_]*\d)[a-z0-9_]{8}",
    re.IGNORECASE,
)
TOOLS = (".git", ".cache", "__pycache__", ".ipynb_checkpoints")  # are never looked into


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
    def names(self) -> set[str]:
        """Return the files that will be published: these, a card and SHA256SUMS."""
        return {*self.files, README, SUMS}

    @property
    def nbytes(self) -> int:
        """Return the size of all files."""
        return sum(path.stat().st_size for path in self.files.values() if path.is_file())


def select(folder: Path, *, takes_engines: bool = False) -> Selection:
    """Return what is published of a folder; nothing is read but lists and configs.

    takes_engines: those of an exported folder and its library of plugins, too. Raises DstoolsError
    where a list cannot be read, and for a folder that has neither.
    """
    if not folder.is_dir():
        raise DstoolsError(f"{folder}: no such folder", "name the folder of a model")
    listed_by, sums = _listed(folder)
    if takes_engines:
        sums |= _engines(folder)
    present, folders = _walk(folder)
    files, left_out = {}, [f"{name}/" for name in folders]
    for name, path in present.items():
        if name in (SUMS, SIGNATURE):
            continue  # written anew; the signature is decided on later
        if name == GITATTRIBUTES:
            sums.pop(name, None)
            left_out.append(name)
            continue
        if name in sums or ADDED.fullmatch(name) or (not listed_by and _is_known(name)):
            files[name] = path
        elif not _is_stage_record(name, listed_by):
            left_out.append(name)
    if listed_by == MANIFEST:
        for name, (path, digest) in card_of(folder).items():
            if name not in files:
                present[name] = files[name] = path
                sums[name] = digest
    faults = list(_faults(folder, present, files, sums, listed_by))
    return Selection(files, sums, listed_by, sorted(left_out), faults, list(_large(files)))


def _listed(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the file that lists the folder's files, and what it lists.

    A file has "" in place of a sha256 where the list has those of its tensors.
    """
    if is_exported(folder):
        export = require_export(folder)
        files = {name: digest for name, digest in export.files.items() if name != PLUGINS}
        return EXPORT, {EXPORT: "", **files, **dict.fromkeys(export.weights, "")}
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


def _engines(folder: Path) -> dict[str, str]:
    """Return the sha256 of each engine that export.json lists, and of its library of plugins."""
    code = native_code(require_export(folder))
    if not code:
        hint = "leave out --engines, or build one: dstools export --trt, or --plugins"
        raise DstoolsError(f"{folder}: {EXPORT} lists no engine and no plugins", hint)
    return code


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
        hint = "restore it; a folder is published whole"
        if os.path.lexists(folder / name):
            message = f"is listed in {listed_by}, in a folder that is never published"
            hint = f"move it, or remove its line from {listed_by}"
        yield refusal("missing", name, message, hint)
    for name, path in present.items():
        base = name.rpartition("/")[2]
        if SECRETS.fullmatch(base) and not _is_known(name):
            yield refusal("secret", name, "may hold a secret", "move it out of the folder")
        elif TEMPORARY.fullmatch(base):
            hint = "remove it, unless a program is still writing it"
            yield refusal("temporary", name, "is a temporary file", hint)
        elif base == ".gitignore":
            yield refusal("gitignore", name, "makes the Hub skip files in silence", "remove it")
        elif path.suffix == ".py" and name not in sums:
            message = f"is code that {SUMS} does not list"
            hint = f"remove it; or read it, and list it with all other files: {MAKE}"
            yield refusal("code", name, message, hint)
        elif name in files:
            yield from _of_file(folder, name, path)
        elif listed_by in (SUMS, EXPORT) and _is_known(name):
            message = f"belongs to a model, and {listed_by} does not list it"
            hint = f"delete {SUMS} if it is of other files, push writes it anew; or remove the file"
            if listed_by == EXPORT:
                hint = "remove the file; or export the model again"
            yield refusal("unlisted", name, message, hint)
        elif path.is_symlink() and path.is_dir():
            hint = "put the folder itself there, or remove the link"
            if (path / MANIFEST).exists():  # in the folder of a distill run
                hint = f"push one stage: {name}"
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
        auto_map = table.get("auto_map") if isinstance(table, dict) else None
        for repository, module in named_code(auto_map):
            path = f"{module.replace('.', '/')}.py"
            if repository is None and path not in files:
                message = f"auto_map names {printable(path)}, which is not published"
                hint = f"remove auto_map, or put {path} there and list it in {SUMS}"
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
    """Return whether a file of a repository is weights, native code, or a list of weights."""
    base = name.rpartition("/")[2]
    if TRAINING_FILES.fullmatch(base):
        return False
    return base in (EXPORT, PLUGINS) or base.endswith(
        (*WEIGHT_SUFFIXES, *DATA_SUFFIXES, ".index.json")
    )
