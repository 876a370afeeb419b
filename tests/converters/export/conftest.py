"""Exported folders, each made once.

exported(folder, options)         one graph of a DeepSeek checkpoint
dense_source(kind, **changes)     a dense model with a tokenizer; changes are of config.json
dense_folder(kind)                what onnxruntime-genai's builder makes of it
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.export.deepseek import Beside, Options, plan, run
from dstools_converters.export.genai import Tokens
from dstools_converters.model.tokenizer import end_ids, load_tokenizer
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.weights import sound_inventory

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SHORT = Options(context=512)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def export(folder: Path, out: Path, options: Options) -> Path:
    """Return `out`, where a checkpoint was exported."""
    files: dict[str, Path | bytes] = {
        name: folder / name for name in CARRIED if (folder / name).exists()
    }
    tokens = Tokens(None, [1], None)
    if "tokenizer.json" in files:
        tokenizer = load_tokenizer(folder)
        ends = sorted(end_ids(folder, tokenizer))
        tokens = Tokens(tokenizer.bos_token_id, ends, tokenizer.pad_token_id)
    with open_checkpoint(folder) as checkpoint:
        job = plan(sound_inventory(checkpoint, options.mtp), options, "dstools test")
        beside = Beside(tokens, Sampling(), files)
        run(job, out, beside, workers=2, progress=lambda nbytes: None)
    return out


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that exports a checkpoint, the same one with the same options once."""
    made: dict[tuple[Path, Options], Path] = {}

    def make(folder: Path = SAMPLE, options: Options = SHORT) -> Path:
        key = (folder, options)
        if key not in made:
            made[key] = export(folder, tmp_path_factory.mktemp("export") / "out", options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def dense_source(
    make_checkpoint: ModuleType, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def get(kind: str, **changes: Any) -> Path:
        key = f"{kind} {changes}"
        if key not in made:
            folder = tmp_path_factory.mktemp("dense") / "in"
            with pytest.MonkeyPatch.context() as patch:
                if kind != "smollm2":
                    patch.setitem(
                        make_checkpoint.CONFIGS, "dense", make_checkpoint.CONFIGS[kind] | changes
                    )
                make_checkpoint.make("smollm2" if kind == "smollm2" else "dense", folder)
            if kind != "smollm2":
                for name in TOKENIZER:  # of as many tokens
                    (folder / name).write_bytes((tiny / name).read_bytes())
            made[key] = folder
        return made[key]

    return get


@pytest.fixture(scope="session")
def dense_folder(
    dense_source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        from dstools_converters.export.dense import export_dense

        if kind not in made:
            source, out = dense_source(kind), tmp_path_factory.mktemp("exported") / "out"
            files = {name: source / name for name in TOKENIZER}
            export_dense(require_sound(open_checkpoint(source)), out, files, tool="dstools test")
            made[kind] = out
        return made[kind]

    return get
