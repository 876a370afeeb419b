"""What `quantize --calibrate` adds: read the data, and run the model on it before the rest is written."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dstools.options import progress_bar
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_converters.checkpoint.inventory import Inventory
    from dstools_converters.layerwise.corpus import Corpus
    from dstools_converters.plan.plan import Calibration, Method, Plan
    from dstools_converters.write.stream import Sink


@dataclass(frozen=True)
class Options:
    """The options of the section Calibration."""

    data: Path
    method: "Method"
    samples: int
    seq_len: int
    seed: int
    ram_bytes: int
    device: str
    min_coverage: int
    kv_cache: bool


@dataclass(frozen=True)
class Calibrator:
    """The data, read; `settings` are what of all options decides the bytes of the output."""

    settings: "Calibration"
    options: Options
    corpus: "Corpus"

    def run(self, plan: "Plan", sink: "Sink") -> None:
        """Run the model, and fill the sink with what the plan leaves to it."""
        import torch

        from dstools_converters.layerwise.calibrate import calibrate, layer_bytes

        with progress_bar(sum(layer_bytes(plan)), "calibrate") as progress:
            calibrate(
                plan,
                sink,
                torch.from_numpy(self.corpus.ids).long(),
                ram_bytes=self.options.ram_bytes,
                min_coverage=self.options.min_coverage,
                progress=progress,
            )


def read_calibration(inventory: "Inventory", options: Options, threads: int) -> Calibrator:
    """Return the data as tokens, and the settings that go into the plan.

    Raises DstoolsError where the data are not usable, or a model cannot be run here.
    """
    require_torch(options.device)
    from importlib.metadata import version

    from dstools_converters.layerwise.corpus import read_corpus
    from dstools_converters.plan.plan import Calibration

    require_length(inventory, options.seq_len)
    corpus = read_corpus(
        options.data,
        inventory.checkpoint.folder,
        samples=options.samples,
        seq_len=options.seq_len,
        seed=options.seed,
        vocab_size=inventory.model.vocab_size,
    )
    settings = Calibration(
        method=options.method,
        data=corpus.provenance,
        device=options.device,
        threads=threads,
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers")},
        kv_cache=options.kv_cache,
    )
    return Calibrator(settings, options, corpus)


def require_length(inventory: "Inventory", seq_len: int) -> None:
    """Raise DstoolsError where the model cannot be run, or not on samples of this length."""
    from dstools_converters.model.architecture import read_architecture

    architecture = read_architecture(inventory.checkpoint.config)
    mtp, known = inventory.model.num_mtp_layers, inventory.checkpoint.config
    longest = [known.get("max_position_embeddings"), architecture.index_topk]
    limit = min((length for length in longest if isinstance(length, int)), default=None)
    if limit is not None and seq_len > limit:
        raise DstoolsError(
            f"--seq-len {seq_len}: config.json lets the model be run on up to {limit} tokens",
            f"--seq-len {limit} or less",
        )
    if seq_len < mtp + 2:
        raise DstoolsError(
            f"--seq-len {seq_len}: leaves nothing to {mtp} MTP layers",
            f"--seq-len {mtp + 2} or more",
        )


def require_torch(device: str) -> None:
    """Raise DstoolsError where a model cannot be run here."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise DstoolsError(f"running a model needs {name}", 'pip install "dstools-llm[torch]"')
    # Threads that spin while they wait take the core from the one they wait for, on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DstoolsError("--device cuda: torch finds no CUDA device", "leave it out for the CPU")
