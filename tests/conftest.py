"""Checkpoints, each built once in a session. Tests share them and must not change them.

    def test_x(tiny): ...                                    # a Path
    def test_y(checkpoint): checkpoint("tiny-v2", fp8="ue8m0")

scripts/make_checkpoint.py has the kinds and options. The folders and files are read-only, so that a
stray write fails. Nothing here imports torch before a checkpoint is requested.

    config, shards = headers(tiny); ...; folder = sparse(config, shards)   # headers without data

And a Hub on 127.0.0.1 (tests/hub), once over Xet and once over LFS:

    def test_z(hub, push):
        code, stdout, stderr = push(tiny, "alice/model", "--yes", HF_TOKEN="hf_other")
        assert hub.content("alice/model", "config.json") == ...
"""

import gc
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from fakehub import FakeHub

    from dstools_converters.export.deepseek import Options

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the Hub

SCRIPTS = Path(__file__).parents[1] / "scripts"
SAMPLE = Path(__file__).parent / "data" / "sample-v3"


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Leave what is there, modules above all, out of later collections of garbage.

    accelerate asks for them in every run of a trainer, and each took 0.3 s.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let nanobind's modules find nothing leaked at the end."""
    gc.unfreeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch use one thread: tiny matrices gain nothing from more, which wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` if there is no GPU."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("not run: needs a CUDA device")


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """tree(folder): the sha256 of every file, by its path in the folder"""

    def get(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return get


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not run: needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """load_script(name): scripts/NAME.py as a module, which may import its neighbours."""
    sys.path.append(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture(scope="session")
def make_checkpoint(load_script: Callable[[str], ModuleType]) -> ModuleType:
    """scripts/make_checkpoint.py as a module; needs torch and transformers."""
    module = load_script("make_checkpoint")
    import torch

    torch.set_num_threads(2)
    return module


@pytest.fixture(scope="session")
def checkpoint(
    make_checkpoint: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """checkpoint(kind, **options): the folder `make` wrote, the same one each time."""
    made: dict[str, Path] = {}

    def get(kind: str, **options: object) -> Path:
        key = "-".join([kind, *(f"{name}={options[name]}" for name in sorted(options))])
        if key not in made:
            folder = make_checkpoint.make(kind, tmp_path_factory.mktemp("made") / key, **options)
            for file in folder.iterdir():
                file.chmod(0o444)
            folder.chmod(0o555)
            made[key] = folder
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    """DeepSeek-V3 with MTP in BF16: ragged shapes, some shards."""
    return checkpoint("tiny")


@pytest.fixture(scope="session")
def tiny_aligned(checkpoint: Callable[..., Path]) -> Path:
    """The same, every quantized side a multiple of 128."""
    return checkpoint("tiny-aligned")


@pytest.fixture(scope="session")
def tiny_fp8(checkpoint: Callable[..., Path]) -> Path:
    """`tiny` in native block FP8 with F32 scales."""
    return checkpoint("tiny", fp8="float32")


@pytest.fixture(scope="session")
def padded_sample(
    load_script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The trained sample model in sizes that engines serve, by scripts/pad_sample_model.py."""
    folder = tmp_path_factory.mktemp("padded") / "sample"
    load_script("pad_sample_model").pad(SAMPLE, folder)
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    return folder


@pytest.fixture
def fork_server() -> Iterator[Callable[..., Callable[..., dict[str, Any]]]]:
    """fork_server(**environment): runner.py, asked by `ask(args=[...])`; ends with the test."""
    with ExitStack() as stack:

        def start(**environment: str) -> Callable[..., dict[str, Any]]:
            runner = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("runner.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | environment,
                )
            )
            assert runner.stdin
            assert runner.stdout
            requests, answers = runner.stdin, runner.stdout

            def ask(**request: Any) -> dict[str, Any]:
                requests.write(json.dumps(request) + "\n")
                requests.flush()
                return json.loads(answers.readline())  # type: ignore[no-any-return]

            return ask

        yield start


@pytest.fixture(params=["xet", "lfs"])
def leg(request: pytest.FixtureRequest) -> str:
    """How large files travel: `xet`, in chunks through hf_xet, or `lfs`, in plain HTTP."""
    return str(request.param)


@pytest.fixture
def hub(leg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """An empty Hub, and the environment in which commands find it; alice is logged in."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("hub")))
    import fakehub

    hub = fakehub.FakeHub(tmp_path / "hub")
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_DISABLE_XET": str(int(leg == "lfs")),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_good",
        "NO_COLOR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield hub
    hub.close()
    stored = [file["data"] for commit in hub.commits.values() for file in commit["files"].values()]
    for place in (hub.root, tmp_path / "hf-home"):
        files = [path for path in place.rglob("*") if path.is_file() and path.name != "token"]
        stored += [path.read_bytes() for path in files]
    for content in filter(None, stored):
        assert not any(token.encode() in content for token in hub.tokens), content[:1000]


@pytest.fixture
def without_token(hub: "FakeHub") -> Callable[[str], str]:
    """without_token(text): the same text; fails if a token of this Hub is in it"""

    def check(text: str) -> str:
        assert not any(token in text for token in hub.tokens), text
        return text

    return check


class Run(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def push(without_token: Callable[[str], str]) -> Callable[..., Run]:
    """push(*arguments, **environment): `dstools push` against the Hub, in a process of its own."""

    def run(*arguments: object, **environment: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "dstools", "push", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        return Run(done.returncode, without_token(done.stdout), without_token(done.stderr))

    return run


Shards = dict[str, dict[str, tuple[str, list[int]]]]  # file -> tensor -> dtype, shape
ITEM_BYTES = {
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "F8_E5M2": 1,
    "U8": 1,
    "BF16": 2,
    "F16": 2,
    "I32": 4,
    "F32": 4,
}


@pytest.fixture(scope="session")
def headers() -> Callable[[Path], tuple[dict[str, Any], Shards]]:
    """headers(folder): the config, and the file, dtype and shape of every tensor, to be edited."""

    def get(folder: Path) -> tuple[dict[str, Any], Shards]:
        shards: Shards = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            shards[path.name] = {name: (e["dtype"], e["shape"]) for name, e in header.items()}
        return json.loads((folder / "config.json").read_text()), shards

    return get


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any], Shards], Path]:
    """sparse(config, shards): a checkpoint with these headers, an index, and holes for data."""

    def make(config: dict[str, Any], shards: Shards) -> Path:
        folder = tmp_path_factory.mktemp("sparse")
        (folder / "config.json").write_text(json.dumps(config))
        where = {name: shard for shard, tensors in shards.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        for shard, tensors in shards.items():
            header: dict[str, Any] = {}
            end = 0
            for name, (dtype, shape) in tensors.items():
                begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            text = json.dumps(header).encode()
            with (folder / shard).open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + end)
        return folder

    return make


# ---------------------------------------------------------------------------------------- exports


def _export(folder: Path, out: Path, options: "Options") -> None:
    """Write what `dstools export` writes, of a checkpoint without a tokenizer, too."""
    from dstools.convert import TOOL
    from dstools_converters.checkpoint.folder import open_checkpoint
    from dstools_converters.export.deepseek import Beside, plan, run
    from dstools_converters.export.genai import Tokens
    from dstools_converters.model.tokenizer import end_ids, load_tokenizer
    from dstools_converters.runtime.defaults import read_defaults
    from dstools_converters.runtime.weights import sound_inventory
    from dstools_converters.sidefiles.carried import carried, carried_files

    tokens = Tokens(None, [1], None)
    if (folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder)
        ends = sorted(end_ids(folder, tokenizer))
        tokens = Tokens(tokenizer.bos_token_id, ends, tokenizer.pad_token_id)
    files = {name: carried(path) for name, path in carried_files(folder).items()}
    files["config.json"] = folder / "config.json"
    with open_checkpoint(folder) as checkpoint:
        job = plan(sound_inventory(checkpoint, options.mtp), options, TOOL)
        beside = Beside(tokens, read_defaults(folder).sampling, files)
        run(job, out, beside, workers=2, progress=lambda nbytes: None)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(folder, options, ...): a DeepSeek model as a graph, the same folder each time.

    Of the sample, and with 512 tokens, unless told otherwise; further arguments are changes of the
    options, export.deepseek.Options.
    """
    made: dict[tuple[Path, Options], Path] = {}

    def get(folder: Path = SAMPLE, options: "Options | None" = None, **changes: Any) -> Path:
        from dstools_converters.export.deepseek import Options

        key = (folder, replace(options or Options(context=512), **changes))
        if key not in made:
            out = tmp_path_factory.mktemp("export") / "out"
            _export(folder, out, key[1])
            made[key] = out
        return made[key]

    return get


@pytest.fixture(scope="session")
def dense_source(
    make_checkpoint: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """dense_source(kind, ...): a Llama or Qwen with the sample's tokenizer; SmolLM2 with its own.

    Further arguments are changes of config.json.
    """
    made: dict[str, Path] = {}

    def get(kind: str, **changes: Any) -> Path:
        key = f"{kind} {changes}"
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp("dense") / "in"
            if kind == "smollm2":
                return Path(make_checkpoint.make(kind, folder))
            with pytest.MonkeyPatch.context() as patch:
                config = make_checkpoint.CONFIGS[kind] | changes
                patch.setitem(make_checkpoint.CONFIGS, "dense", config)
                make_checkpoint.make("dense", folder)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes((SAMPLE / name).read_bytes())
        return made[key]

    return get


@pytest.fixture(scope="session")
def dense_folder(
    dense_source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """dense_folder(kind): what `dstools export` makes of dense_source(kind)."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        from click.testing import CliRunner

        from dstools.cli import main

        if kind not in made:
            source, out = dense_source(kind), tmp_path_factory.mktemp("exported") / "out"
            done = CliRunner().invoke(main, ["export", str(source), str(out), "--onnx"])
            assert done.exit_code == 0, done.output
            made[kind] = out
        return made[kind]

    return get
