"""The command `dstools quantize`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.calibration import CalibrationOptions, read_calibration
from dstools.convert import RunOptions, convert, require_new, run_options
from dstools.options import Command, option, out_argument, source_argument, warn
from dstools.text import TextOptions, text_options
from dstools_converters.errors import Finding

if TYPE_CHECKING:
    from dstools_converters.checkpoint.scheme import Format
    from dstools_converters.plan.plan import Method
    from dstools_kernels.fp8 import ScaleFormat

of_quantization = partial(option, section="Quantization")
of_calibration = partial(option, section="Calibration")
GIVEN = click.core.ParameterSource.COMMANDLINE  # a variable may be set for other runs
NO_MLA_SCALES = Finding.warning(
    "kv-cache",
    "--kv-cache fp8",
    "vLLM 0.32 and SGLang 0.5.23 load no scales for a cache of MLA, and run it with 1.0",
    "leave it out; calibration.json has the magnitudes in any case",
)
EXAMPLES = """\
dstools quantize ./DeepSeek-V3-bf16 ./DeepSeek-V3-fp8 --scale-fmt ue8m0 --dry-run
dstools quantize ./DeepSeek-V3-bf16 ./DeepSeek-V3-fp8 --calibrate traces.jsonl"""


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Quantize a checkpoint to DeepSeek's block FP8."
)
@source_argument
@out_argument
@of_quantization(
    "--format",
    "format_",
    type=click.Choice(["native", "compressed-tensors"]),
    show_default="the recipe's, else native",
    help="Write DeepSeek's FP8 format, or FP8_BLOCK of compressed-tensors.",
)
@of_quantization(
    "--scale-fmt",
    type=click.Choice(["float32", "ue8m0"]),
    show_default="the recipe's, else that of FP8 in SOURCE or --base, else float32",
    help="Use any float32 as scale, or powers of two like V3.1.",
)
@of_quantization(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Apply the rules of this TOML file before the default ones.",
)
@of_quantization(
    "--base",
    metavar="ORIG_FP8",
    help="Reuse the FP8 bytes of this checkpoint for weights that are unchanged.",
)
@of_quantization(
    "--lossless",
    type=click.Choice(["auto", "off"]),
    default="off",
    help="Recover the exact FP8 of weights that were dequantized from FP8.",
)
@of_calibration(
    "--calibrate",
    "data",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help='Run the model on this text first: JSONL or Parquet with "text" or "messages", or plain '
    "text; .gz too.",
)
@of_calibration(
    "--method",
    type=click.Choice(["gptq", "mse", "amax"]),
    show_default="gptq with --calibrate, else amax",
    help="Use activations to round (gptq) or to choose scales (mse), or neither (amax).",
)
@text_options("Calibration")
@of_calibration(
    "--min-coverage",
    metavar="TOKENS",
    type=click.IntRange(0),
    default=0,
    help="Fail if a routed expert gets fewer tokens.",
)
@of_calibration(
    "--kv-cache",
    type=click.Choice(["none", "fp8"]),
    default="none",
    help="Write scales for an FP8 KV cache, measured on the text.",
)
@run_options
def quantize(
    source: str,
    out: str,
    format_: "Format | None",
    scale_fmt: "ScaleFormat | None",
    recipe: Path | None,
    base: str | None,
    lossless: str,
    data: Path | None,
    method: "Method | None",
    text: TextOptions,
    min_coverage: int,
    kv_cache: str,
    options: RunOptions,
) -> None:
    """Quantize a checkpoint to block FP8, as DeepSeek ships it.

    Linear layers become E4M3 with one scale for each 128 x 128 weights. Embeddings, head, norms,
    router and the extra weights of MTP layers are copied. Interrupted, the same command resumes.
    """
    from dstools.source import open_source
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.families.shapes import MLA
    from dstools_converters.plan.plan import plan_quantize
    from dstools_converters.plan.recipe import Recipe, read_recipe

    if data is None:
        _require_no_options_of_calibration()
    elif not options.dry_run:
        require_new(out)  # before the text is read, which may take minutes
    rules = read_recipe(recipe) if recipe else Recipe()
    with open_source(source) as checkpoint:
        inventory = require_sound(checkpoint)
        original = require_sound(open_source(base)) if base else None
        calibration = None
        if kv_cache == "fp8" and isinstance(inventory.model.attention, MLA):
            warn(NO_MLA_SCALES)
        if data is not None:
            calibration = read_calibration(
                inventory,
                CalibrationOptions(data, text, method or "gptq", min_coverage, kv_cache == "fp8"),
                options.workers,
            )
        plan = plan_quantize(
            inventory,
            rules,
            format_ or rules.format or "native",
            scale_fmt or rules.scale_format,
            original,
            calibration.settings if calibration else None,
            is_lossless=lossless == "auto",
        )
        convert(plan, source, out, options, calibration.run if calibration else None)


def _require_no_options_of_calibration() -> None:
    """Raise UsageError for an option that only --calibrate uses."""
    context = click.get_current_context()
    method = context.params["method"]
    if method in ("gptq", "mse"):
        raise click.UsageError(f"--method {method} needs --calibrate")
    for param in context.command.params:
        is_given = context.get_parameter_source(param.name or "") == GIVEN
        if getattr(param, "section", "") == "Calibration" and param.name != "method" and is_given:
            raise click.UsageError(f"{param.opts[0]} needs --calibrate")
