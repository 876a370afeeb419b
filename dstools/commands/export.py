"""The command `dstools export`."""

import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dstools.convert import TOOL, require_new
from dstools.options import (
    Command,
    gather,
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
from dstools.trt import Wants, finish, prepare, trt_options
from dstools_converters.errors import DstoolsError, counted, install_hint, printable, size
from dstools_converters.files import real

if TYPE_CHECKING:
    from dstools_converters.checkpoint.folder import Checkpoint
    from dstools_converters.export.deepseek import Job
    from dstools_converters.export.folder import Export, Making, Pool, Precision, Verdict
    from dstools_converters.export.genai import Tokens
    from dstools_converters.runtime.sampling import Sampling

EXAMPLES = """\
dstools export ./DeepSeek-V3-fp8 ./DeepSeek-V3-onnx --onnx
dstools export ./DeepSeek-V3-fp8 ./DeepSeek-V3-onnx --onnx --ep 8 --expert-weights input"""
DENSE = ("llama", "qwen2", "qwen3")  # which onnxruntime-genai's builder exports
GIVEN = click.core.ParameterSource.COMMANDLINE  # a variable may be set for other runs
of_graph = partial(option, section="Graph")
of_ranks = partial(option, section="Ranks")


@dataclass(frozen=True)
class Wanted:
    """The options of graphs and ranks."""

    dtype: "Precision | None"
    context: int | None
    max_batch: int
    page: int
    mtp: bool | None
    picks_rows: bool
    tp: int
    ep: int
    expert_weights: Literal["baked", "input"]


wanted_options = gather(
    "wanted",
    Wanted,
    of_graph(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        default=None,
        show_default="float32; with --trt that of the checkpoint",
        help="Hold activations, caches and weights that are not FP8 in this precision.",
    ),
    of_graph(
        "--context",
        type=click.IntRange(2),
        metavar="TOKENS",
        show_default="all positions of the model",
        help="Let a prompt and its answer have this many tokens.",
    ),
    of_graph(
        "--max-batch",
        type=click.IntRange(1, 4096),
        default=4,
        help="Size the cache for this many concurrent requests.",
    ),
    of_graph("--page-size", "page", type=int, default=64, help="Use pages of this many tokens."),
    of_graph(
        "--mtp/--no-mtp",
        default=None,
        show_default="where the checkpoint has its layer",
        help="Write mtp.onnx, which drafts the tokens that follow.",
    ),
    of_graph(
        "--logits-indices",
        "picks_rows",
        is_flag=True,
        help="Add an input that says which tokens' logits are wanted.",
    ),
    of_ranks(
        "--tp",
        type=click.IntRange(1, 1024),
        default=1,
        help="Shard attention heads and MLP widths over this many ranks.",
    ),
    of_ranks(
        "--ep",
        type=click.IntRange(1, 1024),
        default=1,
        help="Shard routed experts over this many ranks.",
    ),
    of_ranks(
        "--expert-weights",
        type=click.Choice(["baked", "input"]),
        default="baked",
        help="Take routed experts from the graph, or as inputs, from experts.safetensors.",
    ),
)


@dataclass(frozen=True)
class Report:
    """What an export wrote."""

    out: str
    dtype: str
    graphs: list[str]
    bytes_out: int  # of weights
    tensors: "dict[Making, int]"  # copied, converted or made -> how many; of ours
    pool: "Pool | None"  # what the caches take where it runs
    runs_here: bool  # by `dstools generate`
    checks: "dict[str, Verdict]"  # of --check


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Export a checkpoint as an ONNX graph that runs."
)
@source_argument
@out_argument
@option("--onnx", section="What", is_flag=True, help="Write graph and weights for ONNX Runtime.")
@option(
    "--format",
    "format_",
    section="What",
    type=click.Choice(["deepseek-inference"]),
    help="Write the sharded layout of DeepSeek's own inference code instead, for --tp ranks.",
)
@wanted_options
@trt_options
@workers_option
@json_option
def export(
    source: str,
    out: str,
    onnx: bool,
    format_: str | None,
    workers: int,
    as_json: bool,
    wanted: Wanted,
    wants: Wants,
) -> None:
    """Export a checkpoint as an ONNX graph, DeepSeek's with latent caches in pages.

    ONNX Runtime runs the folder on a CPU, onnxruntime-genai's Engine serves it, and TensorRT builds
    it with the plugins of dstools. FP8 weights keep codes and scales. A DeepSeek model of any size
    takes about 1 GB of memory, nearly all of it libraries. Interrupted, the same command resumes;
    with --plugins, --check or --trt it adds these to a complete folder. Llama and Qwen are left to
    genai's builder, which loads all in float32, and checked; interrupted, it begins anew.
    """
    if onnx and format_ is not None:
        raise click.UsageError("--onnx and --format are two exports; give one of them")
    if not onnx and format_ is None:
        raise click.UsageError("say what to write: --onnx, or --format deepseek-inference")
    if not wants.needs_library:  # which may be added to a finished export
        require_new(out)
    with open_source(source) as checkpoint:
        _require_outside(out, checkpoint.folder)
        if format_ is not None:
            _refuse_options("--format deepseek-inference", "tp", "mtp")
            report = _export_shards(checkpoint, out, wanted.tp, bool(wanted.mtp))
        else:
            _require_packages()
            if checkpoint.config.get("model_type") in DENSE:
                _refuse_options(f"a model of {checkpoint.config['model_type']}")
                report = _export_dense(checkpoint, out)
            else:
                report = _export_graph(checkpoint, out, workers, wanted, wants)
    show(report, as_json, _text(report))
    if report.runs_here:
        hint_command("generate", out, "--prompt", "17 + 25 =")


def _export_graph(
    checkpoint: "Checkpoint", out: str, workers: int, wanted: Wanted, wants: Wants
) -> Report:
    """Write the graphs of a DeepSeek model, and do for TensorRT what is asked for."""
    from dstools_converters.export import deepseek
    from dstools_converters.export.ranks import Ranks
    from dstools_converters.export.trt.engine import own_precision
    from dstools_converters.runtime.weights import holds_mtp, sound_inventory

    mtp = holds_mtp(checkpoint) if wanted.mtp is None else wanted.mtp
    inventory = sound_inventory(checkpoint, mtp)
    options = deepseek.Options(
        wanted.dtype or (own_precision(inventory) if wants.engine else "float32"),
        wanted.context,
        wanted.max_batch,
        wanted.page,
        mtp,
        Ranks(wanted.tp, wanted.ep),
        wanted.expert_weights == "input",
        wanted.picks_rows,
    )
    job = deepseek.plan(inventory, options, TOOL)
    folder = Path(out)
    written = deepseek.finished(job, folder) if wants.needs_library else None
    if written is None:
        require_new(out)
    if wants.check:
        _require_twin_space(folder, job, is_written=written is not None)
    library = prepare(wants, job)
    if written is None:
        notes = deepseek.caveats(job) + (_judge(job) if options.dtype == "float16" else ())
        for note in notes:
            click.echo(f"warning: {note}", err=True)
        parts = (_tokens(checkpoint), _sampling(checkpoint), _files(checkpoint), notes)
        _show_pool(deepseek.pool(job))
        with progress_bar(deepseek.weight_bytes(job), "export") as progress:
            written = deepseek.run(
                job, folder, deepseek.Beside(*parts), workers=workers, progress=progress
            )
    if wants.needs_library:
        written = finish(wants, folder, job, library, sys.argv[1:])
    return _report(written, out)


def _require_twin_space(folder: Path, job: "Job", *, is_written: bool) -> None:
    """Raise DstoolsError where the disk is too small for a folder and what its check writes."""
    from dstools_converters.export.deepseek import weight_bytes
    from dstools_converters.export.trt.check import is_alone
    from dstools_converters.export.trt.logits import require_twin_space

    is_begun = is_written or folder.with_name(f"{folder.name}.incomplete").exists()
    if is_alone(job):
        require_twin_space(folder, job, 0 if is_begun else weight_bytes(job))


def _export_dense(checkpoint: "Checkpoint", out: str) -> Report:
    """Let onnxruntime-genai's builder write a dense model."""
    from dstools.machine import memory
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.export.dense import export_dense

    inventory, files = require_sound(checkpoint), _files(checkpoint)
    written = export_dense(inventory, Path(out), files, tool=TOOL, free=memory().free)
    return _report(written, out)


def _export_shards(checkpoint: "Checkpoint", out: str, ranks: int, mtp: bool) -> Report:
    """Write the layout of DeepSeek's inference code."""
    from dstools_converters.checkpoint.inventory import require_sound, without_mtp
    from dstools_converters.export.deepseek_inference import plan_shards, write_shards
    from dstools_converters.export.folder import require_export

    sound = require_sound(checkpoint if mtp else without_mtp(checkpoint))
    plan = plan_shards(sound, ranks, mtp=mtp)
    files = {name: content for name, content in _files(checkpoint).items() if name != "config.json"}
    with progress_bar(plan.nbytes, "export") as progress:
        write_shards(plan, Path(out), files, tool=TOOL, progress=progress)
    if plan.note:
        click.echo(f"warning: {plan.note}", err=True)
    if plan.left_out:
        names = ", ".join(map(printable, plan.left_out[:3]))
        text = f"left out, {len(plan.left_out)} in all, since DeepSeek's code reads none: {names}"
        click.echo(terminal(f"warning: {text}"), err=True)
    return _report(require_export(Path(out)), out)


def _refuse_options(what: str, *taken: str) -> None:
    """Raise UsageError for an option of DeepSeek's graphs that is not for what is written."""
    context = click.get_current_context()
    for param in context.command.params:
        section = getattr(param, "section", "")
        is_given = context.get_parameter_source(param.name or "") == GIVEN
        is_of_graphs = section in ("Graph", "Ranks", "TensorRT") or param.name == "workers"
        if is_of_graphs and is_given and param.name not in taken:
            raise click.UsageError(f"{param.opts[0]} is not for {what}")


def _require_packages() -> None:
    """Raise DstoolsError where what exports is not installed."""
    from dstools.machine import missing

    lacking = missing("export")
    if lacking:
        raise DstoolsError(f"export needs {', '.join(lacking)}", install_hint("export"))


def _require_outside(out: str, source: Path) -> None:
    if real(Path(out)).is_relative_to(real(source)):
        raise DstoolsError(f"{out}: is inside {source}", "name a folder outside the source")


def _files(checkpoint: "Checkpoint") -> "dict[str, Path | bytes]":
    """Return the files that go along; print what of them does not work.

    Raises DstoolsError for a tokenizer that cannot be read.
    """
    from dstools_converters.sidefiles.carried import carried, carried_files, check_side_files

    for finding in check_side_files(checkpoint):
        if finding.level == "error" and finding.code != "token-ids":
            raise finding.raised()
        warn(finding)
    files = {name: carried(path) for name, path in carried_files(checkpoint.folder).items()}
    return files | {"config.json": checkpoint.folder / "config.json"}


def _tokens(checkpoint: "Checkpoint") -> "Tokens":
    """Return the special tokens of a checkpoint."""
    from dstools_converters.export.genai import Tokens
    from dstools_converters.model.tokenizer import end_ids, load_tokenizer

    tokenizer = load_tokenizer(checkpoint.folder)
    ends = sorted(end_ids(checkpoint.folder, tokenizer))
    if not ends:
        click.echo("warning: nothing names a token that ends an answer", err=True)
    return Tokens(tokenizer.bos_token_id, ends, tokenizer.pad_token_id)


def _judge(job: "Job") -> tuple[str, ...]:
    """Return what is to be noted of float16, at most one sentence.

    Raises DstoolsError where states exceed it.
    """
    from dstools.machine import memory
    from dstools_converters.model.tokenizer import load_tokenizer
    from dstools_converters.runtime.overflow import PROMPTS, judge_float16

    tokenizer = load_tokenizer(job.inventory.checkpoint.folder)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    note = judge_float16(job.inventory, prompts, memory().free)
    return () if note is None else (note,)


def _sampling(checkpoint: "Checkpoint") -> "Sampling":
    from dstools_converters.runtime.defaults import read_defaults

    return read_defaults(checkpoint.folder).sampling


def _show_pool(pool: "Pool") -> None:
    """Print what the caches of the folder take where it runs, and warn where that is too much."""
    from dstools.machine import memory

    tokens = pool.num_blocks * pool.page_size
    taken = tokens * pool.token_bytes
    rows = f"{counted(pool.max_batch_size, 'row')} of {pool.context_length:,} tokens"
    click.echo(f"pool      {rows}: {size(taken)} of caches where it runs", err=True)
    free = memory().free
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
        [name for name in written.files if name.endswith(".onnx")],
        sum(weight.nbytes for weight in tensors),
        dict(Counter(weight.making for weight in tensors)),
        written.pool,
        written.kind != "deepseek-inference"
        and written.tp == written.ep == 1
        and not written.expert_inputs
        and written.dtype != "bfloat16",  # of which ONNX Runtime has no products on a CPU
        written.checks,
    )


def _text(report: Report) -> str:
    """Return what was written, for a person."""
    files = ", ".join(report.graphs) or "shards"
    if not report.tensors:
        return f"{report.out}: {files}, in {report.dtype}"
    kinds = {"copy": "copied as they are", "convert": "converted", "make": "made here"}
    counts = ", ".join(
        f"{report.tensors[kind]} {text}" for kind, text in kinds.items() if kind in report.tensors
    )
    checks = "".join(f"\n{name}: {verdict}" for name, verdict in report.checks.items())
    return (
        f"{report.out}: {files}; {size(report.bytes_out)} of weights, "
        f"{counted(sum(report.tensors.values()), 'tensor')} ({counts}){checks}"
    )
