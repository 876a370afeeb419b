"""`dstools dequantize`."""

import click

from dstools.convert import convert
from dstools.options import (
    Command,
    dry_run_option,
    fsync_option,
    hint_command,
    json_option,
    list_option,
    out_argument,
    source_argument,
    workers_option,
)

EXAMPLES = """\
dstools dequantize ./DeepSeek-V3 ./DeepSeek-V3-bf16
dstools dequantize ./DeepSeek-V3 ./DeepSeek-V3-bf16 --dry-run"""


@click.command(cls=Command, epilog=EXAMPLES, short_help="Turn an FP8 checkpoint back into BF16.")
@source_argument
@out_argument
@dry_run_option
@list_option
@workers_option
@fsync_option
@json_option
def dequantize(
    source: str,
    out: str,
    dry_run: bool,
    lists_tensors: bool,
    workers: int,
    is_synced: bool,
    as_json: bool,
) -> None:
    """Turn an FP8 checkpoint into BF16: code times scale in float32, rounded once.

    What was not FP8 keeps its bytes. Stopped at any moment, the same command goes on.
    """
    from dstools.hub.source import resolve
    from dstools_converters.checkpoint.folder import open_checkpoint
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.plan.plan import plan_dequantize

    with open_checkpoint(resolve(source)) as checkpoint:
        plan = plan_dequantize(require_sound(checkpoint))
        convert(
            plan,
            out,
            dry_run=dry_run,
            lists_tensors=lists_tensors,
            workers=workers,
            is_synced=is_synced,
            as_json=as_json,
        )
    if not dry_run:
        hint_command("verify", out, "--source", source)
