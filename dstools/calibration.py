"""The calibration of `quantize --calibrate`: read the text, then run the model on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dstools.options import progress_bar
from dstools.text import TextOptions, read_text, require_torch, sample_length
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_converters.checkpoint.inventory import Inventory
    from dstools_converters.layerwise.corpus import Corpus
    from dstools_converters.plan.plan import Calibration, Method, Plan
    from dstools_converters.write.stream import Sink


@dataclass(frozen=True)
class CalibrationOptions:
    """The options of the section Calibration."""

    data: Path
    text: TextOptions
    method: "Method"
    min_coverage: int
    kv_cache: bool


@dataclass(frozen=True)
class Calibrator:
    """The text as tokens; `settings` are the options that affect the bytes of the output."""

    settings: "Calibration"
    options: CalibrationOptions
    corpus: "Corpus"

    def run(self, plan: "Plan", sink: "Sink") -> None:
        """Run the model, and fill the sink with the weights that the plan leaves to it."""
        import torch

        from dstools_converters.layerwise.calibrate import calibrate, layer_bytes

        with progress_bar(sum(layer_bytes(plan)), "calibrate") as progress:
            calibrate(
                plan,
                sink,
                torch.from_numpy(self.corpus.ids).long(),
                ram_bytes=self.options.text.ram_bytes,
                min_coverage=self.options.min_coverage,
                progress=progress,
            )


def read_calibration(
    inventory: "Inventory", options: CalibrationOptions, threads: int
) -> Calibrator:
    """Return the text as tokens, and the settings that go into the plan.

    Raises DstoolsError if the text is not usable, or a model cannot run here.
    """
    require_torch(options.text.device)
    from importlib.metadata import version

    from dstools_converters.plan.plan import Calibration

    require_length(inventory, options.text)
    corpus = read_text(options.data, inventory, options.text)
    settings = Calibration(
        method=options.method,
        data=corpus.provenance,
        device=options.text.device,
        threads=threads,
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers")},
        cpu=cpu_instructions(),
        kv_cache=options.kv_cache,
    )
    return Calibrator(settings, options, corpus)


def cpu_instructions() -> str:
    """Return the instructions that torch multiplies with on this CPU: sums depend on them."""
    import torch

    has_amx = torch.cpu._is_amx_tile_supported()
    return torch.backends.cpu.get_cpu_capability() + (" AMX" if has_amx else "")


def require_length(inventory: "Inventory", options: TextOptions) -> None:
    """Raise DstoolsError if the model cannot run, or not on samples of this length."""
    seq_len, mtp = sample_length(inventory, options), inventory.model.num_mtp_layers
    if seq_len < mtp + 2:
        raise DstoolsError(
            f"--seq-len {seq_len}: is too short for {mtp} MTP layers",
            f"--seq-len {mtp + 2} or more",
        )
