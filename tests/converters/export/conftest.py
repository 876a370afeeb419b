"""Exported folders, each made once.

exported(folder, options)         one graph of a DeepSeek checkpoint
dense_source(kind, **changes)     a dense model with a tokenizer; changes are of config.json
dense_folder(kind)                what onnxruntime-genai's builder makes of it

    runner = onnx_runner(folder, "model.onnx", pages=12)
    logits = runner.step([3, 4, 5], [[7, 2]], [3], [0])["logits"]
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
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
PLENTY = 1 << 40  # of memory
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
            files = {name: source / name for name in (*TOKENIZER, "config.json")}
            inventory = require_sound(open_checkpoint(source))
            export_dense(inventory, out, files, tool="dstools test", free=PLENTY)
            made[kind] = out
        return made[kind]

    return get


class Runner:
    """An ONNX Runtime session whose caches hold NaN at first, each one buffer in and out.

    profile: a path that begins the name of what `session.end_profiling` writes; None: nothing.
    """

    def __init__(
        self, folder: Path, name: str, pages: int, *, optimized: bool, profile: Path | None
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        )
        self.session = onnxruntime.InferenceSession(
            folder / name, options, providers=["CPUExecutionProvider"]
        )
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.caches = {
            port.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.full((pages, *port.shape[1:]), np.nan, kinds[port.type])
            )
            for port in self.session.get_inputs()
            if port.name.startswith("past_key_values")
        }
        self.dtype = next(iter(self.caches.values())).numpy().dtype

    def step(
        self,
        ids: list[int],
        table: list[list[int]],
        new: list[int],
        past: list[int],
        hidden: Any = None,
    ) -> dict[str, Any]:
        """Return logits and states of `new` tokens of each row, after `past` in its cache."""
        width = max(map(len, table))
        binding = self.session.io_binding()
        feed = {
            "input_ids": np.array(ids, np.int64),
            "block_table": np.array([row + [-1] * (width - len(row)) for row in table], np.int32),
            "cumulative_sequence_lengths": np.cumsum([0, *new]).astype(np.int32),
            "past_sequence_lengths": np.array(past, np.int32),
            "attention_metadata": np.zeros(3, np.int32),
        }
        if hidden is not None:
            feed["hidden_states"] = np.asarray(hidden, self.dtype)
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        for name, cache in self.caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        asked = [port.name for port in self.session.get_outputs() if "present" not in port.name]
        for name in asked:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        outputs = binding.get_outputs()[len(self.caches) :]
        return dict(zip(asked, (output.numpy() for output in outputs), strict=True))


@pytest.fixture(scope="session")
def onnx_runner() -> Callable[..., Runner]:
    """onnx_runner(folder, name="model.onnx", pages=16, optimized=True, profile=None)"""

    def start(
        folder: Path,
        name: str = "model.onnx",
        pages: int = 16,
        *,
        optimized: bool = True,
        profile: Path | None = None,
    ) -> Runner:
        return Runner(folder, name, pages, optimized=optimized, profile=profile)

    return start
