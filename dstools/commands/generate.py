"""The command `dstools generate`."""

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.commands.generate_checkpoint import (
    ENDPOINT,
    KnownCheckpoint,
    Precision,
    look_at_checkpoint,
)
from dstools.commands.generate_export import (
    Engine,
    KnownDense,
    KnownExport,
    engine_option,
    find_export,
    look_at_export,
)
from dstools.commands.generate_memory import make_pool, require_memory
from dstools.options import (
    Command,
    device_option,
    json_option,
    option,
    path_argument,
    show,
    terminal,
)
from dstools.source import resolve
from dstools.text import require_torch
from dstools_converters.errors import DstoolsError, counted, printable, size
from dstools_converters.runtime.sampling import MIN_TEMPERATURE, Sampling

if TYPE_CHECKING:
    from dstools_converters.runtime.answer import Answer, Loop
    from dstools_converters.runtime.decode import Request

EXAMPLES = """\
dstools generate ./DeepSeek-V3 --prompt 'What is 17 + 25?' --chat
dstools generate ./DeepSeek-V3 --prompt '17 + 25 =' --temperature 0 --max-tokens 32 --json"""
Known = KnownCheckpoint | KnownExport | KnownDense
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and ends of lines


def _temperature(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is None or value == 0 or MIN_TEMPERATURE <= value < math.inf:
        return value
    raise click.BadParameter(f"{value:g} is not 0, nor finite and at least {MIN_TEMPERATURE:g}.")


def _share(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is None or 0 <= value <= 1:
        return value
    raise click.BadParameter(f"{value:g} is not in the range 0<=x<=1.")


@click.command(cls=Command, epilog=EXAMPLES, short_help="Answer a prompt, on a CPU or a GPU.")
@path_argument("model", metavar="CKPT", help="A folder, or org/name[@revision] in the Hub cache.")
@option(
    "--prompt",
    section="Prompt",
    metavar="TEXT",
    type=str,
    required=True,
    help="Continue this text; - reads it from stdin, without the line feed at its end.",
)
@option(
    "--chat",
    section="Prompt",
    is_flag=True,
    help="Treat the text as a user message, and render it with the chat template.",
)
@option(
    "--temperature",
    section="Sampling",
    type=float,
    callback=_temperature,
    show_default="that of generation_config.json, else 0",
    help="Draw tokens at this temperature; 0 takes the most probable one.",
)
@option(
    "--top-p",
    section="Sampling",
    type=float,
    callback=_share,
    show_default="that of generation_config.json, else 1",
    help="Draw from the most probable tokens that together reach this share.",
)
@option(
    "--seed",
    section="Sampling",
    type=click.IntRange(0),
    show_default="0",
    help="Draw with this seed; the same one gives the same text.",
)
@option(
    "--max-tokens",
    section="Sampling",
    type=click.IntRange(1),
    default=1024,
    help="End after this many tokens, or where the model's positions end.",
)
@option(
    "--mtp",
    section="Running",
    is_flag=True,
    help="Draft a token a step with the MTP layer, which is faster.",
)
@option(
    "--pool",
    "pool_tokens",
    section="Running",
    metavar="TOKENS",
    type=click.IntRange(1),
    show_default="prompt and answer",
    help="Keep a cache of this many tokens, in pages of 64.",
)
@option(
    "--precision",
    section="Running",
    type=click.Choice(["float32", "bfloat16"]),
    show_default="float32 on the CPU, bfloat16 on a GPU",
    help="Hold weights and cache in this precision; bfloat16 takes half the memory.",
)
@device_option(section="Running")
@engine_option
@json_option
def generate(
    model: str,
    prompt: str,
    chat: bool,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    max_tokens: int,
    mtp: bool,
    pool_tokens: int | None,
    precision: Precision | None,
    device: str,
    engine: Engine,
    as_json: bool,
) -> None:
    """Answer one prompt with CKPT, and print the text as it comes.

    FP8 weights are widened. The whole model has to fit into memory. How it is sampled, the size of
    the cache, and the speed at the end are printed on stderr. On a GPU of Hopper or later the
    project's own Triton kernels run; of an exported folder, its TensorRT engines, which dstools
    export --trt builds. Both are checked on a CPU, and have not been run on a GPU yet.
    """
    if sys.stdout is None:
        raise DstoolsError("stdout is closed, so that no answer could be printed", "leave it open")
    text = _read(prompt)
    require_torch(device)
    known = _look(model, mtp, precision, device, engine)
    sampling = _sampling(known.folder, temperature, top_p, seed)
    if engine == "genai" and sampling.temperature:
        click.echo("note: genai draws with random numbers of its own", err=True)

    from dstools_converters.model.tokenizer import end_ids, load_tokenizer
    from dstools_converters.runtime.answer import answer_prompt, read_prompt
    from dstools_converters.runtime.decode import Request

    tokenizer = load_tokenizer(known.folder)
    ends, vocab_size = end_ids(known.folder, tokenizer), known.vocab_size
    lost = ", ".join(str(end) for end in sorted(ends) if end >= vocab_size)
    if lost:
        click.echo(f"warning: eos_token_id {lost}: the model has {vocab_size} tokens", err=True)
    if all(end >= vocab_size for end in ends):
        click.echo("warning: nothing names a token that ends an answer", err=True)
    asked = read_prompt(tokenizer, text, chat)
    request = Request(0, asked.ids, max_tokens)
    loop = _loop(known, request, pool_tokens, sampling, ends, int(mtp))
    write = _hide if as_json else _write
    answer = answer_prompt(loop, request, asked.opening, tokenizer, write)
    show(answer, as_json, "")  # after the text, the end of its line
    _end(answer, known, loop.counts.not_finite)


def _line(name: str, text: str) -> None:
    click.echo(terminal(f"{name:9} {text}"), err=True)


def _read(prompt: str) -> str:
    """Return the text of --prompt. Raises DstoolsError where it is empty or not UTF-8."""
    if prompt == "-" and sys.stdin is None:
        raise DstoolsError("stdin is closed", "leave it open, or give --prompt the text")
    try:
        if prompt == "-":
            prompt = sys.stdin.buffer.read().decode().removesuffix("\n")
        prompt.encode()
    except UnicodeError as error:
        raise DstoolsError("the prompt is not UTF-8", "convert it with iconv") from error
    if not prompt:
        raise DstoolsError("the prompt is empty", "give --prompt a text")
    return prompt


def _look(model: str, mtp: bool, precision: Precision | None, device: str, engine: Engine) -> Known:
    """Return what is known of a checkpoint or an exported folder."""
    folder = resolve(model)
    export = find_export(folder)
    if export is not None:
        return look_at_export(model, folder, export, mtp, precision, device, engine)
    if engine == "genai":
        raise DstoolsError(
            f"--engine genai: {folder} is a checkpoint",
            f"export it first: dstools export {model} OUT --onnx",
        )
    return look_at_checkpoint(model, folder, mtp, precision, device)


def _sampling(
    folder: Path, temperature: float | None, top_p: float | None, seed: int | None
) -> Sampling:
    """Return how tokens are drawn, and print it with its sources, and what changes nothing."""
    from dstools_converters.runtime.defaults import FILE, read_defaults

    defaults = read_defaults(folder)
    usual = defaults.sampling
    sampling = Sampling(
        usual.temperature if temperature is None else temperature,
        usual.top_p if top_p is None else top_p,
        seed or 0,
    )
    source = defaults.source if temperature is None else "--temperature"
    text = f"temperature {sampling.temperature:g} ({source})"
    if sampling.temperature:
        source = defaults.source if top_p is None else "--top-p"
        text += f", top_p {sampling.top_p:g} ({source}), seed {sampling.seed}"
    _line("sampling", text)
    given = {"--top-p": top_p, "--seed": seed}
    unused = " and ".join(name for name, value in given.items() if value is not None)
    if unused and not sampling.temperature:
        click.echo(f"note: at temperature 0 nothing is drawn: {unused} not used", err=True)
    if lost := defaults.lost(sampling.temperature):
        others = ", ".join(f"{key} {printable(repr(value))}" for key, value in lost.items())
        click.echo(terminal(f"warning: {folder / FILE}: not applied: {others}"), err=True)
    return sampling


def _loop(
    known: Known,
    request: "Request",
    pool_tokens: int | None,
    sampling: Sampling,
    ends: frozenset[int],
    drafts: int,
) -> "Loop":
    """Return what answers the prompt, with its weights and a pool for its cache.

    Raises DstoolsError where prompt and answer do not fit the pool or the model's positions, or
    memory is short, before any weight is read.
    """
    limit = _limit(request, known)
    pool = make_pool(request, limit, pool_tokens, known.most_pages)
    require_memory(known.held, pool, request, limit, known.step_bytes(limit))
    _line("model", f"{known.name}, {size(known.held.weights)} in {known.runs_in}")
    loop = known.loop(pool, sampling, ends, drafts)
    tokens = pool.count * pool.size
    nbytes = size(tokens * known.held.token)
    pages = f"{counted(pool.count, 'page')} of {pool.size} tokens"
    _line("pool", f"{pages}, {tokens:,} tokens, {nbytes}")
    return loop


def _limit(request: "Request", known: Known) -> int:
    """Return how many tokens prompt and answer have at most, and print it.

    Raises DstoolsError where the prompt does not fit the model's positions.
    """
    from dstools_converters.runtime.decode import length_limit
    from dstools_converters.runtime.pages import Pool

    count, positions = len(request.prompt), known.positions
    if known.is_cut and count >= positions:
        raise DstoolsError(
            f"the prompt has {counted(count, 'token')}; {known.name} was exported with --context "
            f"{positions}",
            "shorten it, or export the checkpoint with a larger --context",
        )
    if known.is_sparse_beyond and count >= positions:
        raise DstoolsError(
            f"the prompt has {counted(count, 'token')}; beyond index_topk, {positions}, the "
            "attention of DeepSeek-V3.2 is sparse, which does not run here",
            f"shorten it; or {ENDPOINT}",
        )
    limit = length_limit(request, "the prompt", Pool(positions), known.vocab_size, positions)
    end = f"the model's {positions} positions"
    if known.is_cut:
        end = f"the --context of the export, {positions}"
    elif known.is_sparse_beyond:
        end = f"index_topk, {positions}"
    where = f" to {end}" if limit == positions else ""
    _line("prompt", f"{counted(count, 'token')}, and room for {limit - count}{where}")
    return limit


def _hide(text: str) -> None:
    """Print nothing: --json prints the whole."""


def _write(text: str) -> None:
    """Print text at once; on a terminal, without control characters, which could steer it."""
    if sys.stdout.isatty():
        text = CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    click.echo(text, nl=False, color=True)  # else click cuts escapes out of what goes to a file


def _end(answer: "Answer", known: Known, not_finite: int) -> None:
    """Print the speed, and end as the answer did.

    not_finite: drafts whose logits are not finite. Raises DstoolsError where those of the answer
    are not.
    """
    _line("answer", _speed(answer))
    check = f"dstools verify {known.name} checks them"
    if isinstance(known, KnownCheckpoint):
        check = "dstools verify compares them with the source"
    if not_finite:
        click.echo(
            f"warning: the weights of the MTP layer are damaged: {not_finite} of its drafts had "
            f"logits that are not finite; {check}",
            err=True,
        )
    if answer.reason == "interrupted":
        click.get_current_context().exit(130)
    if answer.reason == "error":
        raise DstoolsError(
            f"the logits after {counted(len(answer.ids), 'token')} of the answer are not finite",
            f"its weights are damaged: {check}",
        )


def _speed(answer: "Answer") -> str:
    speed = answer.speed
    text = f"{counted(answer.tokens, 'token')} ({answer.reason}) in {speed.seconds:.1f} s"
    if answer.tokens:
        text += f", the first after {speed.first_seconds:.1f} s"
    if speed.tokens_per_second is not None:
        text += f"; {speed.tokens_per_second:.1f} tokens/s, {speed.tokens_per_step:.2f} a step"
    for position, (drafted, kept) in enumerate(zip(speed.drafted, speed.kept, strict=True), 1):
        share = f" ({kept / drafted:.1%})" if drafted else ""
        text += f"; draft {position}: {kept} of {drafted} kept{share}"
    return text
