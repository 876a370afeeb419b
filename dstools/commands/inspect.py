"""The command `dstools inspect`."""

from typing import TYPE_CHECKING

import click

from dstools.options import Command, hint_command, json_option, show, source_argument, warn
from dstools_converters.errors import printable, size

if TYPE_CHECKING:
    from dstools_converters.inspect import Report

EXAMPLES = """\
dstools inspect ./DeepSeek-V3
dstools inspect deepseek-ai/DeepSeek-V3 --json"""
MAX_WARNINGS = 3  # `dstools verify` prints more


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Show what a checkpoint holds, from its headers."
)
@source_argument
@json_option
def inspect(source: str, as_json: bool) -> None:
    """Show what a checkpoint holds: parameters, bytes, cache, quantization. Reads headers alone."""
    import gc

    from dstools.source import open_source
    from dstools_converters.checkpoint.inventory import take_inventory
    from dstools_converters.inspect import inspect as inspect_inventory

    gc.disable()  # no cycles in 90,000 tensors; collecting would take a fifth of the time
    try:
        with open_source(source) as checkpoint:
            report = inspect_inventory(take_inventory(checkpoint))
    finally:
        gc.enable()
    for finding in report.disagreements[:MAX_WARNINGS]:
        warn(finding)
    if len(report.disagreements) > MAX_WARNINGS:
        more = len(report.disagreements) - MAX_WARNINGS
        click.echo(f"note: {more} more; dstools verify lists them", err=True)
    show(report, as_json, _text(report))
    if report.quantization == "none" and not report.disagreements:
        hint_command("quantize", source, "OUT", "--dry-run")
    else:
        hint_command("verify", source)


def _text(report: "Report") -> str:
    def count(parameters: int) -> str:
        return f"{parameters / 1e9:.4g}B" if parameters >= 1e9 else f"{parameters / 1e6:.4g}M"

    smaller = report.cache_bytes_per_token_mha / max(report.cache_bytes_per_token, 1)
    layers = f"{report.layers_dense} dense, {report.layers_moe} MoE, {report.layers_mtp} MTP"
    rows = {
        "model": report.model_type,
        "parameters": f"{count(report.parameters)}, "
        f"{count(report.parameters_active)} active per token",
        "MTP": f"{count(report.parameters_mtp)} more" if report.parameters_mtp else "none",
        "layers": layers,
        "experts": report.experts or "none",
        "attention": report.attention,
        "cache": f"{size(report.cache_bytes_per_token)} per token in BF16, "
        f"{smaller:.3g}x less than multi-head ({size(report.cache_bytes_per_token_mha)})",
        "quantization": report.quantization,
        "files": f"{report.shards} shards, {report.tensors} tensors, {size(report.bytes)}",
    }
    lines = [f"{key:14}{value}" for key, value in rows.items()]
    for title, sizes in (("by dtype", report.bytes_by_dtype), ("by role", report.bytes_by_role)):
        lines.append(f"\n{title}")
        lines += [f"  {key:26}{size(nbytes):>12}" for key, nbytes in sizes.items()]
    kept = sum(report.quantized_kept.values())
    lines.append(
        f"\nquantize would write {size(report.quantized_bytes)}; {size(kept)} are copied: "
        + ", ".join(report.quantized_kept)
    )
    if report.unknown_tensors:
        shown = ", ".join(map(printable, report.unknown_tensors[:5]))
        lines.append(f"{len(report.unknown_tensors)} tensors of unknown role, e.g. {shown}")
    return "\n".join(lines)
