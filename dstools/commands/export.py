"""The command `dstools export`."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    warn,
    workers_option,
)
from dstools.source import open_source
from dstools_converters.errors import DstoolsError, size
from dstools_converters.files import real

if TYPE_CHECKING:
    from dstools_converters.export.deepseek import Beside, Job
    from dstools_converters.export.folder import Export, Making, Pool, Precision

EXAMPLES = """\
dstools export ./DeepSeek-V3-fp8 ./DeepSeek-V3-onnx --onnx
dstools export ./DeepSeek-V3-fp8 ./DeepSeek-V3-onnx --onnx --ep 8 --expert-weights input"""
EXTRA = 'pip install "dstools-llm[export]"'
of_graph = partial(option, section="Graph")
of_ranks = partial(option, section="Ranks")


@dataclass(frozen=True)
class Report:
    """What an export wrote."""

    out: str
    dtype: str
    graphs: list[str]
    bytes_out: int  # of weights
    tensors: "dict[Making, int]"  # copied, converted or made -> how many
    pool: "Pool | None"  # what the caches take where it runs


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
        _show_pool(deepseek.pool(job))
        with progress_bar(deepseek.weight_bytes(job), "export") as progress:
            written = deepseek.run(job, Path(out), beside, workers=workers, progress=progress)
    report = _report(written, out)
    show(report, as_json, _text(report))
    if written.tp > 1 or written.ep > 1 or written.expert_inputs:
        return  # not run here
    hint_command("generate", out, "--prompt", "What is 17 + 25?", "--chat")


def _require_packages() -> None:
    """Raise DstoolsError where what exports is not installed."""
    from dstools.machine import missing

    lacking = missing("export")
    if lacking:
        raise DstoolsError(f"export needs {', '.join(lacking)}", EXTRA)


def _require_outside(out: str, source: Path) -> None:
    if real(Path(out)).is_relative_to(real(source)):
        raise DstoolsError(f"{out}: is inside {source}", "name a folder outside the source")


def _beside(job: "Job") -> "Beside":
    """Return what goes along with a graph; print what of it does not work."""
    from dstools_converters.export.deepseek import Beside
    from dstools_converters.export.genai import Tokens
    from dstools_converters.model.tokenizer import end_ids, load_tokenizer
    from dstools_converters.runtime.defaults import read_defaults
    from dstools_converters.sidefiles.carried import carried, carried_files, check_side_files

    checkpoint = job.inventory.checkpoint
    folder = checkpoint.folder
    for finding in check_side_files(checkpoint):
        if finding.level == "error" and finding.code != "token-ids":
            raise finding.raised()
        warn(finding)
    files = {name: carried(path) for name, path in carried_files(folder).items()}
    files["config.json"] = folder / "config.json"
    tokenizer = load_tokenizer(folder)
    ends = sorted(end_ids(folder, tokenizer))
    if not ends:
        click.echo("warning: nothing names a token that ends an answer", err=True)
    tokens = Tokens(tokenizer.bos_token_id, ends, tokenizer.pad_token_id)
    return Beside(tokens, read_defaults(folder).sampling, files)


def _show_pool(pool: "Pool") -> None:
    """Print what the caches of the folder take where it runs, and warn where that is too much."""
    from dstools.machine import memory

    tokens = pool.num_blocks * pool.page_size
    taken = tokens * pool.token_bytes
    rows = f"{pool.max_batch_size} rows of {pool.context_length:,} tokens"
    click.echo(f"pool      {rows}: {size(taken)} of caches where it runs", err=True)
    now = memory()
    free = min(now.available, now.limit or now.available)
    if taken > free:
        row = -(-pool.context_length // pool.page_size) * pool.page_size * pool.token_bytes
        room = max(int(free * pool.context_length // max(taken, 1)), 2)
        click.echo(
            f"warning: {size(free)} of memory is free here: lower --context, to {room} or less, or "
            f"--max-batch; a row takes {size(row * (taken // (row * pool.max_batch_size)))}",
            err=True,
        )


def _report(written: "Export", out: str) -> Report:
    tensors = [weight for weights in written.weights.values() for weight in weights]
    return Report(
        out,
        written.dtype,
        [note.file for note in written.graphs],
        sum(weight.nbytes for weight in tensors),
        dict(Counter(weight.making for weight in tensors)),
        written.pool,
    )


def _text(report: Report) -> str:
    """Return what was written, for a person."""
    kinds = {"copy": "copied as they are", "convert": "converted", "make": "made here"}
    counts = ", ".join(f"{report.tensors[kind]} {kinds[kind]}" for kind in report.tensors)
    return (
        f"{report.out}: {', '.join(report.graphs)}; {size(report.bytes_out)} of weights, "
        f"{sum(report.tensors.values())} tensors ({counts})"
    )
