"""The command `dstools dequantize`."""

import click

from dstools.convert import RunOptions, convert, run_options
from dstools.options import Command, out_argument, source_argument

EXAMPLES = """\
dstools dequantize ./DeepSeek-V3 ./DeepSeek-V3-bf16
dstools dequantize ./DeepSeek-V3 ./DeepSeek-V3-bf16 --dry-run"""


@click.command(cls=Command, epilog=EXAMPLES, short_help="Turn an FP8 checkpoint back into BF16.")
@source_argument
@out_argument
@run_options
def dequantize(source: str, out: str, options: RunOptions) -> None:
    """Turn an FP8 checkpoint into BF16: code times scale in float32, rounded once.

    Other tensors are copied byte for byte. Interrupted, the same command resumes.
    """
    from dstools.source import open_source
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.plan.plan import plan_dequantize

    with open_source(source) as checkpoint:
        plan = plan_dequantize(require_sound(checkpoint))
        convert(plan, source, out, options)
