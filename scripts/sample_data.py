"""Problems, traces, tokenizer and batches of the sample model: short sums of reasoning-gym.

A checksum of a problem decides what it is used for, so the splits share no question.
"""

import itertools
import json
import random
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import reasoning_gym
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Entry = dict[str, Any]  # a problem of reasoning-gym: question, answer, metadata
Split = Literal["train", "evaluate", "calibrate", "held-out"]

VOCABULARY = 320
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
ASSISTANT_ID = 4
ASIDE: dict[int, Split] = {0: "evaluate", 1: "calibrate", 2: "held-out"}  # the rest is training
CONVERSATIONS = 1000  # in each JSONL file
BATCH = 32
PROMPT_WEIGHT = 0.1  # of a prompt token in the loss: enough for a meaningful perplexity


def problems(split: Split) -> Iterator[Entry]:
    """Yield the distinct problems of one split; each use but training gets a twentieth."""
    drawn = reasoning_gym.create_dataset(
        "chain_sum", size=60_000, seed=11, min_terms=2, max_terms=3, min_digits=1, max_digits=3
    )
    seen = set()
    for entry in drawn:
        expression = entry["metadata"]["expression"]
        share = zlib.crc32(expression.encode()) % 20
        if expression not in seen and ASIDE.get(share, "train") == split:
            seen.add(expression)
            yield entry


def conversation(entry: Entry) -> list[dict[str, str]]:
    """Return question and answer as the messages of a chat."""
    answer = f"<think>\n{trace(entry['metadata']['expression'])}\n</think>\n\n{entry['answer']}"
    return [
        {"role": "user", "content": entry["question"]},
        {"role": "assistant", "content": answer},
    ]


def trace(expression: str) -> str:
    """Return a worked chain of sums, a line a term: the sum, its columns from the right, the total.

    `57 + 68` gives `57+68|7+8+0=15,5+6+1=12|125`: digit, digit, carry, and the two digits they
    make. `5 - 12` gives `5-12|12>5:2-5-0=17,1-0-1=00|-7`: the smaller magnitude from the larger
    one; the first digit after each = is the borrow.
    """
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        addend = int(sign + term)
        small, large = sorted((abs(total), abs(addend)))
        if (total >= 0) == (addend >= 0):
            work = columns(abs(total), abs(addend), "+")
        else:
            work = f"{large}>{small}:{columns(large, small, '-')}"
        lines.append(f"{total}{sign}{term}|{work}|{total + addend}")
        total += addend
    return "\n".join(lines)


def columns(above: int, below: int, sign: Literal["+", "-"]) -> str:
    """Return the columns of a written sum or difference, from the right."""
    carry, column_texts = 0, []
    digits = itertools.zip_longest(reversed(str(above)), reversed(str(below)), fillvalue="0")
    for a, b in digits:
        value = int(a) + int(b) + carry if sign == "+" else int(a) - int(b) - carry
        out = f"{abs(value // 10)}{value % 10}"  # -1 // 10 is -1: one borrowed
        column_texts.append(f"{a}{sign}{b}{sign}{carry}={out}")
        carry = int(out[0])
    return ",".join(column_texts)


def write_data(folder: Path) -> None:
    """Write the first CONVERSATIONS of two splits as JSON lines of `messages`."""
    splits: tuple[tuple[Split, str], ...] = (("calibrate", "calibration"), ("held-out", "heldout"))
    for split, name in splits:
        entries = itertools.islice(problems(split), CONVERSATIONS)
        lines = [json.dumps({"messages": conversation(entry)}) + "\n" for entry in entries]
        (folder / f"sample-v3-{name}.jsonl").write_text("".join(lines))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with DeepSeek's special tokens, digits and the task's phrases."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=[BOS, EOS, PAD, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (entry["question"] for entry in itertools.islice(problems("train"), 2000))
    tokenizer.train_from_iterator(texts, trainer)
    # not special, as in DeepSeek's tokenizer: skip_special_tokens must not remove the trace
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE,
    )


def prompt(tokenizer: PreTrainedTokenizerFast, entry: Entry) -> str:
    """Return the prompt of one problem."""
    text: str = tokenizer.apply_chat_template(
        conversation(entry)[:1], tokenize=False, add_generation_prompt=True
    )
    return text


def encode(tokenizer: PreTrainedTokenizerFast, entries: Iterable[Entry]) -> list[list[int]]:
    """Return the token ids of each problem with its answer."""
    texts = [
        tokenizer.apply_chat_template(conversation(entry), tokenize=False) for entry in entries
    ]
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    return ids


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the training split without end, in a new order each epoch."""
    rows = encode(tokenizer, problems("train"))
    for epoch in itertools.count():
        yield from one_epoch(rows, random.Random(f"{seed}-{epoch}"))


def one_epoch(rows: list[list[int]], order: random.Random) -> list[tuple[Tensor, Tensor]]:
    """Return `rows`, shuffled, as batches of (ids, weight) [batch, tokens], int64 and float32.

    The rows of a batch have one length: padding would be routed, too, and distort the loads. Rows
    that do not fill a batch are left out of the epoch, unless their length has no full batch at
    all.
    """
    by_length: dict[int, list[list[int]]] = {}
    for row in order.sample(rows, len(rows)):
        by_length.setdefault(len(row), []).append(row)
    made = []
    for same in by_length.values():
        for start in range(0, max(1, len(same) - BATCH + 1), BATCH):
            ids = torch.tensor(same[start : start + BATCH])
            is_answer = (ids == ASSISTANT_ID).cumsum(1) > 0
            made.append((ids, torch.where(is_answer, 1.0, PROMPT_WEIGHT)))
    order.shuffle(made)
    return made
