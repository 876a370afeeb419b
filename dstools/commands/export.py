"""The command `dstools export`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dstools.convert import TOOL, require_new
from dstools.options import (
    Command,
    hint_command,
    json_option,
    option,
    out_argument,
    progress_bar,
    show,
    source_argument,
    terminal,
    warn,
    workers_option,
)
from dstools.source import open_source
from dstools_converters.errors import DstoolsError, Finding, printable, size
from dstools_converters.files import real

if TYPE_CHECKING:
    from dstools_converters.export.deepseek import Beside, Job, Options
    from dstools_converters.export.folder import Export, Precision
    from dstools_converters.checkpoint.inventory import Inventory

EXAMPLES = """\
dstools export ./DeepSeek-V3-fp8 ./V3-onnx --onnx --context 8192
dstools export ./DeepSeek-V3-fp8 ./V3-ranks --onnx --ep 8 --expert-weights input"""
EXTRA = 'pip install "dstools-llm[export]"'
of_graph = partial(option, section="Graph")
of_ranks = partial(option, section="Ranks")


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Export a checkpoint as an ONNX graph that runs."
)
@source_argument
@out_argument
@option("--onnx", section="What", is_flag=True, help="Write graph and weights for ONNX Runtime.")
@of_graph(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    help="Hold activations, caches and weights that are not FP8 in this precision.",
)
@of_graph(
    "--context",
    type=click.IntRange(2),
    metavar="TOKENS",
    show_default="all positions of the model",
    help="Let a prompt and its answer have this many tokens.",
)
@of_graph(
    "--max-batch",
    type=click.IntRange(1, 4096),
    default=4,
    help="Make the pool of pages for this many rows at a time.",
)
@of_graph("--page-size", "page", type=int, default=64, help="Put this many tokens on a page.")
@of_graph(
    "--mtp/--no-mtp",
    default=None,
    show_default="where the checkpoint has its layer",
    help="Write mtp.onnx, which drafts the tokens that follow.",
)
@of_graph(
    "--logits-indices",
    "picks_rows",
    is_flag=True,
    help="Add an input that says which tokens' logits are wanted.",
)
@of_ranks("--tp", type=click.IntRange(1, 1024), default=1, help="Divide heads and widths by this.")
@of_ranks("--ep", type=click.IntRange(1, 1024), default=1, help="Divide routed experts by this.")
@of_ranks(
    "--expert-weights",
    type=click.Choice(["baked", "input"]),
    default="baked",
    help="Take routed experts from the graph, or as inputs, from experts.safetensors.",
)
@workers_option
@json_option
def export(
    source: str,
    out: str,
    onnx: bool,
    dtype: "Precision",
    context: int | None,
    max_batch: int,
    page: int,
    mtp: bool | None,
    picks_rows: bool,
    tp: int,
    ep: int,
    expert_weights: Literal["baked", "input"],
    workers: int,
    as_json: bool,
) -> None:
    """Export a DeepSeek checkpoint as one ONNX graph with latent caches in pages.

    ONNX Runtime runs the folder on a CPU, onnxruntime-genai's Engine serves it, and TensorRT builds
    it with the plugins of dstools. FP8 weights keep their codes and scales; weights are streamed,
    so a model of any size takes less than 1 GB of memory. Interrupted, the same command resumes.
    """
    if not onnx:
        raise click.UsageError("say what to write: --onnx")
    require_new(out)
    _require_packages()
    from dstools_converters.export import deepseek
    from dstools_converters.export.ranks import Ranks
    from dstools_converters.runtime.weights import holds_mtp, sound_inventory

    with open_source(source) as checkpoint:
        _require_outside(out, checkpoint.folder)
        wants_mtp = holds_mtp(checkpoint) if mtp is None else mtp
        options = deepseek.Options(
            dtype,
            context,
            max_batch,
            page,
            wants_mtp,
            Ranks(tp, ep),
            expert_weights == "input",
            picks_rows,
        )
        job = deepseek.plan(sound_inventory(checkpoint, wants_mtp), options, TOOL)
        beside = _beside(job)
        _show_pool(job)
        with progress_bar(0, "export") as progress:
            written = deepseek.run(job, Path(out), beside, workers=workers, progress=progress)
    show(written, as_json, _text(written, out))
    hint_command("generate", out, "--prompt", "What is 17 + 25?", "--chat")
