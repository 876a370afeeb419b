"""`dstools quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.calibration import Options, read_calibration
from dstools.convert import convert, require_new
from dstools.options import (
    Command,
    data_options,
    dry_run_option,
    fsync_option,
    hint_command,
    json_option,
    list_option,
    option,
    out_argument,
    source_argument,
    workers_option,
)

if TYPE_CHECKING:
    from dstools_converters.checkpoint.scheme import Format
    from dstools_converters.plan.plan import Method
    from dstools_kernels.fp8 import ScaleFormat

GIVEN = click.core.ParameterSource.COMMANDLINE  # an environment may have it for other runs
EXAMPLES = """\
dstools quantize ./DeepSeek-V3-bf16 ./DeepSeek-V3-fp8 --scale-fmt ue8m0 --dry-run
dstools quantize ./DeepSeek-V3-bf16 ./DeepSeek-V3-fp8 --calibrate traces.jsonl"""


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Quantize a checkpoint to DeepSeek's block FP8."
)
@source_argument
@out_argument
@option(
    "--format",
    "format_",
    section="Quantization",
    type=click.Choice(["native", "compressed-tensors"]),
    show_default="the recipe's, else native",
    help="Write DeepSeek's own FP8, or compressed-tensors' FP8_BLOCK.",
)
@option(
    "--scale-fmt",
    section="Quantization",
    type=click.Choice(["float32", "ue8m0"]),
    show_default="the recipe's, else that of FP8 in SOURCE or --base, else float32",
    help="Scale blocks by any float32, or by powers of two as V3.1 does.",
)
@option(
    "--recipe",
    section="Quantization",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Follow the rules of this TOML file before DeepSeek's own.",
)
@option(
    "--base",
    section="Quantization",
    metavar="ORIG_FP8",
    help="Give weights that still equal this FP8 checkpoint, dequantized, its bytes back.",
)
@option(
    "--lossless",
    section="Quantization",
    type=click.Choice(["auto", "off"]),
    default="off",
    help="Turn BF16 that was FP8 once back into it: no value changes, or it is quantized as usual.",
)
@option(
    "--calibrate",
    "data",
    section="Calibration",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help='Run the model on this text first: JSONL with "text" or "messages", or plain text.',
)
@option(
    "--method",
    section="Calibration",
    type=click.Choice(["gptq", "mse", "amax"]),
    show_default="gptq with --calibrate, else amax",
    help="Round by what weights are multiplied with, search scales by it, or do neither.",
)
@data_options("Calibration")
@option(
    "--min-coverage",
    section="Calibration",
    metavar="TOKENS",
    type=click.IntRange(0),
    default=0,
    help="Fail where a routed expert sees fewer tokens.",
)
@option(
    "--kv-cache",
    section="Calibration",
    type=click.Choice(["none", "fp8"]),
    default="none",
    help="Write the scales of an FP8 KV cache, as seen in the data.",
)
@dry_run_option
@list_option
@workers_option
@fsync_option
@json_option
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
    samples: int,
    seq_len: int,
    seed: int,
    ram_bytes: int,
    device: str,
    min_coverage: int,
    kv_cache: str,
    dry_run: bool,
    lists_tensors: bool,
    workers: int,
    is_synced: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint into block FP8 the way DeepSeek ships it.

    Linear layers become E4M3 with one scale for 128 x 128 weights; embeddings, head, norms, router
    and the extras of MTP layers stay as they are. Stopped at any moment, the same command goes on.
    """
    from dstools.hub.source import resolve
    from dstools_converters.checkpoint.folder import open_checkpoint
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.plan.plan import plan_quantize
    from dstools_converters.plan.recipe import Recipe, read_recipe

    options = None
    if data is not None:
        options = Options(
            data, method or "gptq", samples, seq_len, seed, ram_bytes, device, min_coverage,
            kv_cache == "fp8",
        )  # fmt: skip
    elif method in ("gptq", "mse"):
        raise click.UsageError(f"--method {method} needs --calibrate")
    else:
        _require_no_options_of_calibration()
    rules = read_recipe(recipe) if recipe else Recipe()
    if data is not None and not dry_run:  # before the data are read, which may take minutes
        require_new(out)
    with open_checkpoint(resolve(source)) as checkpoint:
        inventory = require_sound(checkpoint)
        original = require_sound(open_checkpoint(resolve(base))) if base else None
        calibration = read_calibration(inventory, options, workers) if options else None
        plan = plan_quantize(
            inventory,
            rules,
            format_ or rules.format or "native",
            scale_fmt or rules.scale_format,
            original,
            calibration.settings if calibration else None,
            is_lossless=lossless == "auto",
        )
        convert(
            plan,
            out,
            dry_run=dry_run,
            lists_tensors=lists_tensors,
            workers=workers,
            is_synced=is_synced,
            as_json=as_json,
            calibrate=calibration.run if calibration else None,
        )
    if not dry_run:
        hint_command("verify", out, "--source", source)


def _require_no_options_of_calibration() -> None:
    """Raise UsageError where an option was given that only --calibrate would heed."""
    context = click.get_current_context()
    for param in context.command.params:
        is_given = context.get_parameter_source(param.name or "") == GIVEN
        if getattr(param, "section", "") == "Calibration" and param.name != "method" and is_given:
            raise click.UsageError(f"{param.opts[0]} needs --calibrate")
