#!/usr/bin/env python3
"""The padded sample model's answers on a card, against those of the definitions on the CPU.

    sample_answers.py FIRST

A worker of hopper_check.py; FIRST is the number of a form, of FORMS. Prints the lines that
dstools_kernels/proof/worker.py describes, with {"part": "answers"} for checks.

The model is padded to the kernels' sizes, heads included, and answers in BF16, and then from the
FP8 codes that `dstools quantize` makes of it, each time without drafts and with them. The BF16
answers have to be those of the sample model as it is.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dstools_converters.model.tokenizer import end_ids, load_tokenizer, prompt_ids
from dstools_converters.runtime.decode import Loop, Request
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.serving import Serving
from dstools_converters.runtime.session import Session
from dstools_converters.runtime.weights import load
from dstools_kernels.ops.dispatch import is_interpreted
from dstools_kernels.proof import worker
from dstools_kernels.proof.card import prepare, using

ROOT = Path(__file__).parents[2]
SAMPLE, CHATS = ROOT / "tests/data/sample-v3", ROOT / "tests/data/toy-chat.jsonl"
FORMS = ("BF16 answers of the sample model", "FP8 answers of the sample model")
PROMPTS, TOKENS, PAGES = 8, 48, 32
INTERPRETED = 1, 3  # prompts and tokens; a step takes some twenty seconds
# The gap of two tokens' logits that rounding explains. Between definitions in float32 and in BF16
# it is up to 1.5 (24 prompts of 32 tokens); FP8 products 10 % too large make it 2.9, halved 13.
TIE = 2.0


class Greedy(NamedTuple):
    """Greedy answers, and how many drafts were checked and kept on the way."""

    ids: list[list[int]]
    drafted: int
    kept: int


def main() -> None:
    """Print the lines."""
    torch.set_num_threads(1)  # the model's matrices gain nothing from more
    worker.listen(lambda text: worker.say({"part": "notes", "text": text}))
    device = prepare()
    prompts, tokens = INTERPRETED if is_interpreted() else (PROMPTS, TOKENS)
    for line in work(int(sys.argv[1]), device, prompts, tokens):
        worker.say(line)


def work(first: int, device: torch.device, count: int, tokens: int) -> Iterator[dict[str, Any]]:
    """Yield what the lines say, from form number `first` on, of `count` prompts."""
    with TemporaryDirectory() as folder:
        padded, coded = Path(folder) / "padded", Path(folder) / "coded"
        for number, name in enumerate(FORMS[first:], start=first):
            yield {"job": number, "name": name}
            if not padded.exists():
                run(str(ROOT / "scripts/pad_sample_model.py"), str(SAMPLE), str(padded), "--heads")
            model, source = padded, SAMPLE
            if number:
                run("-m", "dstools", "quantize", str(padded), str(coded))
                model = source = coded
            yield {"part": "answers", "name": name} | compare(model, source, device, count, tokens)


def run(*arguments: str) -> None:
    """Run Python; raise CalledProcessError where it fails."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def compare(
    model: Path, source: Path, device: torch.device, count: int, tokens: int
) -> dict[str, Any]:
    """Compare answers of `model` on `device` with those of `source` by the definitions.

    Return whether they are right, as words too, and where they differ: without drafts from the
    definitions' answers, and with drafts from those without.
    """
    tokenizer = load_tokenizer(model)
    rows = [json.loads(line) for line in CHATS.read_text().splitlines()[:count]]
    prompts = [prompt_ids(tokenizer, row["messages"][:1]) for row in rows]
    ends = end_ids(model, tokenizer)
    serving = load(model, torch.bfloat16, device, keeps_codes=True)
    plain, drafted = (greedy(serving, prompts, ends, tokens, drafts=drafts) for drafts in (0, 1))
    with using("reference"):
        definitions = load(source, torch.bfloat16, torch.device("cpu"), keeps_codes=True)
        wanted = greedy(definitions, prompts, ends, tokens, drafts=0)
        others = differences(plain.ids, wanted.ids, prompts, definitions)
        drafts = differences(drafted.ids, plain.ids, prompts, definitions)
    how = f"{in_words(others, count)} as on the CPU, {in_words(drafts, count)} as without drafts"
    how += f"; {drafted.kept} of {drafted.drafted} drafts kept"
    return {
        "is_right": all(other["gap"] <= TIE for other in others + drafts),
        "how": how,
        "differences": others,
        "differences_by_drafts": drafts,
    }


def in_words(found: list[dict[str, Any]], count: int) -> str:
    """Return how many of `count` answers are equal, and where the others differ."""
    text = f"{count - len(found)} of {count}"
    where = [
        "{prompt} differs from token {token} on, a gap of {gap:.3g}".format(**other)
        for other in found
    ]
    return f"{text} ({'; '.join(where)})" if where else text


def differences(
    given: list[list[int]], wanted: list[list[int]], prompts: list[list[int]], definitions: Serving
) -> list[dict[str, Any]]:
    """Return where answers first differ, each with the gap of the two tokens' logits there."""
    found = []
    for i, (ids, own) in enumerate(zip(given, wanted, strict=True)):
        if ids == own:
            continue
        equal = (a == b for a, b in zip(ids, own, strict=False))
        at = sum(takewhile(bool, equal))
        gap = math.inf  # of an answer that ended as its logits were not finite
        if at < min(len(ids), len(own)):
            logits = logits_after(definitions, prompts[i] + own[:at])
            gap = abs(float(logits[own[at]] - logits[ids[at]]))
        found.append({"prompt": i, "token": at, "gap": gap})
    return found


def greedy(
    serving: Serving, prompts: list[list[int]], ends: frozenset[int], tokens: int, *, drafts: int
) -> Greedy:
    """Return greedy answers, all in one batch."""
    pool = Pool(PAGES)
    rows = len(prompts)
    loop = Loop(Session(serving, pool), pool, Sampling(), ends, rows=rows, drafts=drafts)
    ids: list[list[int]] = [[] for _ in prompts]
    for piece in loop.run([Request(i, prompt, tokens) for i, prompt in enumerate(prompts)]):
        ids[piece.prompt_index] += piece.ids
    return Greedy(ids, sum(loop.counts.drafted), sum(loop.counts.kept))


def logits_after(serving: Serving, ids: list[int]) -> Tensor:
    """Return the logits [V] of the token after `ids`."""
    pool, count = Pool(PAGES), len(ids)
    pages = torch.tensor([pool.take(pool.needed(count))], dtype=torch.int32)
    cumulative, past = torch.tensor([0, count], dtype=torch.int32), torch.zeros(1).int()
    batch = Batch(torch.tensor(ids), pages, cumulative, past)
    return Session(serving, pool).step(batch, torch.tensor([count - 1]))[0][0]


if __name__ == "__main__":
    main()
