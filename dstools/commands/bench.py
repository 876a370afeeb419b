"""The command `dstools bench`."""

import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import click

from dstools.commands.generate_export import (
    Engine,
    KnownDense,
    KnownExport,
    engine_option,
    require_export_of,
)
from dstools.commands.generate_memory import free_memory
from dstools.options import Command, device_option, json_option, option, path_argument, show
from dstools.text import require_torch
from dstools_converters.errors import DstoolsError, counted, size
from dstools_converters.runtime.sampling import Sampling

if TYPE_CHECKING:
    from dstools_converters.runtime import decode
    from dstools_converters.runtime.answer import Loop

EXAMPLES = """\
dstools bench ./DeepSeek-V3-onnx --prompt-tokens 256 --batch 4
dstools bench ./DeepSeek-V3-onnx --mtp --json"""
SEED = 0  # of the ids of prompts
WARM_UP = 8  # tokens of the prompt that is answered before the clock starts


class Times(NamedTuple):
    """How long answers took."""

    seconds: float
    first_seconds: float  # until an answer's first token, on average
    tokens_per_second: float | None  # of all answers, once each has its first token
    tokens_per_step: float | None
    ids: list[list[int]]


@dataclass(frozen=True)
class Bench:
    """The speed of an exported folder. As JSON, keys stay; more may come."""

    folder: str
    runs_in: str
    threads: int
    batch: int
    prompt_tokens: int
    tokens: int  # of each answer
    load_seconds: float
    seconds: float
    first_seconds: float  # until the first token, on average
    tokens_per_second: float | None  # of all rows, once each has its first token
    tokens_per_step: float | None
    plain_tokens_per_second: float | None  # of the graph alone, without loop and drafts
    same_ids: bool | None  # as the graph alone
    drafted: list[int]  # drafts that were checked, by their position; [] without --mtp
    kept: list[int]  # and were right
    weight_bytes: int
    cache_bytes_per_token: int
    peak_bytes: int  # of the process, on the host


@click.command(cls=Command, epilog=EXAMPLES, short_help="Time the answers of an exported folder.")
@path_argument("folder", metavar="OUT", help="A folder that dstools export wrote.")
@option(
    "--prompt-tokens",
    section="Prompts",
    type=click.IntRange(1),
    default=128,
    help="Give each prompt this many random tokens.",
)
@option(
    "--max-tokens",
    section="Prompts",
    type=click.IntRange(1),
    default=64,
    help="Let each answer have this many tokens; no token ends it.",
)
@option(
    "--batch",
    section="Prompts",
    type=click.IntRange(1),
    default=1,
    help="Answer this many prompts at a time.",
)
@option(
    "--mtp",
    section="Running",
    is_flag=True,
    help="Draft a token a step with the MTP layer; random prompts keep fewer drafts than others.",
)
@option(
    "--plain",
    section="Running",
    is_flag=True,
    help="Time the same answers by the graph alone, too, without the loop and without drafts.",
)
@device_option(section="Running")
@engine_option
@json_option
def bench(
    folder: str,
    prompt_tokens: int,
    max_tokens: int,
    batch: int,
    mtp: bool,
    plain: bool,
    device: str,
    engine: Engine,
    as_json: bool,
) -> None:
    """Time the answers of an exported folder: the first token, tokens a second, bytes of cache.

    Greedy answers to random prompts, all of one length. A short answer comes first, untimed. With
    --device cuda TensorRT runs the folder: that is checked on a CPU, and has not run on a GPU yet.
    """
    require_torch(device)
    if plain and engine == "genai":
        raise click.UsageError("--plain times the steps of our own loop: leave out --engine genai")
    known = require_export_of(folder, mtp, device, engine)
    _require_steps(known, plain)
    _require_room(known, prompt_tokens, max_tokens, batch)

    import torch

    from dstools_converters.runtime.decode import Loop, Request
    from dstools_converters.runtime.pages import Pool

    numbers = random.Random(SEED)
    vocabulary = range(known.vocab_size)
    prompts = [numbers.choices(vocabulary, k=prompt_tokens) for _ in range(batch)]
    pool = Pool(batch * Pool(1).needed(prompt_tokens + max_tokens))
    begin = time.perf_counter()
    loop = known.loop(pool, Sampling(), frozenset(), int(mtp), rows=batch)
    load_seconds = time.perf_counter() - begin
    measure(loop, [Request(0, prompts[0][:WARM_UP], 2)], folder)
    loop.counts.drafted, loop.counts.kept = [0] * mtp, [0] * mtp
    times = measure(loop, [Request(i, ids, max_tokens) for i, ids in enumerate(prompts)], folder)
    alone = None
    if plain:
        assert isinstance(loop, Loop)
        alone = measure_plain(loop, prompts, max_tokens)
    result = Bench(
        folder=folder,
        runs_in=known.runs_in,
        threads=torch.get_num_threads(),
        batch=batch,
        prompt_tokens=prompt_tokens,
        tokens=max_tokens,
        load_seconds=load_seconds,
        **{key: value for key, value in times._asdict().items() if key != "ids"},
        plain_tokens_per_second=alone.tokens_per_second if alone else None,
        same_ids=alone.ids == times.ids if alone else None,
        drafted=loop.counts.drafted,
        kept=loop.counts.kept,
        weight_bytes=known.held.weights,
        cache_bytes_per_token=known.held.token,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    )
    show(result, as_json, _text(result))


def _require_steps(known: KnownExport | KnownDense, plain: bool) -> None:
    """Raise DstoolsError where steps are to be timed and there are none."""
    if plain and isinstance(known, KnownDense):
        raise DstoolsError("--plain: a dense model has no steps of ours to time", "leave it out")


def _require_room(
    known: KnownExport | KnownDense, prompt_tokens: int, max_tokens: int, batch: int
) -> None:
    """Raise DstoolsError where the prompts and answers do not fit the folder or the memory."""
    length = prompt_tokens + max_tokens
    if length > known.positions:
        larger = ", or export it with a larger --context" if known.is_cut else ""
        raise DstoolsError(
            f"{counted(prompt_tokens, 'token')} and an answer of {max_tokens}: {known.name} is "
            f"made for {known.positions} together",
            f"make --prompt-tokens or --max-tokens smaller{larger}",
        )
    if batch > known.most_rows:
        larger = "" if isinstance(known, KnownDense) else f", or export it with --max-batch {batch}"
        raise DstoolsError(
            f"--batch {batch}: {known.name} is made for {known.most_rows}",
            f"--batch {known.most_rows}{larger}",
        )
    cache = batch * length * known.held.token
    free, step = free_memory(known.held.device), known.step_bytes(length)
    if known.held.weights + cache + step > free:
        raise DstoolsError(
            f"the weights take {size(known.held.weights)}, a cache of {batch * length:,} tokens "
            f"{size(cache)} and a step {size(step)}; {size(free)} of memory is free",
            "make --batch or --prompt-tokens smaller, or free memory",
        )


def measure(loop: "Loop", requests: "Sequence[decode.Request]", name: str) -> Times:
    """Return how long the answers of a loop take; errors call its folder `name`.

    Raises DstoolsError where logits are not finite.
    """
    ids: list[list[int]] = [[] for _ in requests]
    firsts: list[float] = []
    filled = drawn = begun = 0  # tokens so far, and steps, when each answer has its first token
    begin = time.perf_counter()
    for piece in loop.run(requests):
        if piece.reason == "error":
            raise DstoolsError(
                f"{name}: the logits are not finite",
                f"its weights are damaged: dstools verify {name} checks them",
            )
        if not ids[piece.prompt_index]:
            firsts.append(time.perf_counter() - begin)
            begun = loop.counts.steps
        ids[piece.prompt_index] += piece.ids
        drawn += len(piece.ids)
        if len(firsts) == len(requests) and not filled:
            filled = drawn
    seconds, steps = time.perf_counter() - begin, loop.counts.steps - begun
    return Times(
        seconds,
        sum(firsts) / len(firsts),
        (drawn - filled) / (seconds - firsts[-1]) if steps else None,
        (drawn - filled) / steps if steps else None,
        ids,
    )


def measure_plain(loop: "decode.Loop", prompts: list[list[int]], max_tokens: int) -> Times:
    """Return how long greedy answers take by steps of a loop's model, without the loop.

    The prompts have one length; each is read by steps of its own.
    """
    import torch

    from dstools_converters.runtime.pages import Batch

    rows, length = len(prompts), len(prompts[0])
    pages = loop.pool.needed(length + max_tokens)
    table = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
    ids: list[list[int]] = [[] for _ in prompts]
    begin = time.perf_counter()
    for row, prompt in enumerate(prompts):
        for at in range(0, length, loop.chunk):
            new = torch.tensor(prompt[at : at + loop.chunk])
            ends, past = torch.tensor([[0, len(new)], [at, 0]], dtype=torch.int32)
            batch = Batch(new, table[row : row + 1], ends, past[:1])
            logits, _ = loop.model.step(batch, torch.tensor([len(new) - 1]))
        ids[row].append(int(logits.argmax()))
    first = time.perf_counter() - begin
    cumulative, each = torch.arange(rows + 1, dtype=torch.int32), torch.arange(rows)
    for at in range(length, length + max_tokens - 1):
        new = torch.tensor([answer[-1] for answer in ids])
        past = torch.full((rows,), at, dtype=torch.int32)
        logits, _ = loop.model.step(Batch(new, table, cumulative, past), each)
        for answer, token in zip(ids, logits.argmax(-1).tolist(), strict=True):
            answer.append(token)
    seconds, tokens = time.perf_counter() - begin, rows * (max_tokens - 1)
    speed = tokens / (seconds - first) if tokens else None
    return Times(seconds, first, speed, float(rows) if tokens else None, ids)


def _text(result: Bench) -> str:
    lines = [
        f"{result.folder}: {size(result.weight_bytes)} in {result.runs_in}, "
        f"{counted(result.threads, 'thread')}",
        f"batch     {counted(result.batch, 'prompt')} of {counted(result.prompt_tokens, 'token')}, "
        f"answers of {result.tokens}",
        f"load      {result.load_seconds:.2f} s",
        f"first     {result.first_seconds:.3f} s until the first token",
    ]
    if result.tokens_per_second is not None:
        step = f", {result.tokens_per_step:.2f} a step"
        lines.append(f"then      {result.tokens_per_second:.1f} tokens/s{step}")
    if result.plain_tokens_per_second is not None:
        same = "the same ids" if result.same_ids else "other ids"
        lines.append(f"plain     {result.plain_tokens_per_second:.1f} tokens/s, {same}")
    for drafted, kept in zip(result.drafted, result.kept, strict=True):
        lines.append(f"drafts    {kept} of {drafted} kept")
    lines.append(f"cache     {size(result.cache_bytes_per_token)} a token")
    lines.append(f"memory    {size(result.peak_bytes)} at most")
    return "\n".join(lines)
