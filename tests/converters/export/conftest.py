"""Exported folders, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.export.deepseek import Beside, Options, plan, run
from dstools_converters.export.genai import Tokens
from dstools_converters.model.tokenizer import end_ids, load_tokenizer
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.weights import sound_inventory

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SHORT = Options(context=512)
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
