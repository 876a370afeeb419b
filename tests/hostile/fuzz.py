"""Give damaged input to the readers of files of unknown origin, until one fails.

    python tests/hostile/fuzz.py --minutes 60
    python tests/hostile/fuzz.py --target header --minutes 5

A reader may return, or raise a DstoolsError whose text is safe to print; anything else is a bug.
Input is random bytes, or a sound file with bytes changed, or with other values in its JSON. A
failure prints the smallest input found; hypothesis keeps it in .hypothesis/, to be tried first.
"""

import argparse
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dstools_converters.checkpoint.folder import INDEX, SINGLE, scan
from dstools_converters.checkpoint.inventory import check, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise.datafile import open_data
from dstools_converters.plan.recipe import read_recipe
from dstools_converters.sidefiles.sums import read_sums
from dstools_converters.sidefiles.tokenizer import check_tokenizer
from dstools_distill import records
from dstools_distill.data.sources import Reading, questions
from dstools_distill.recipe.recipe import read_recipe as read_distill_recipe

Target = Callable[[Path, bytes], object]
CONFIG = {
    "model_type": "deepseek_v3", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
    "num_hidden_layers": 2, "num_attention_heads": 1, "kv_lora_rank": 2, "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2, "v_head_dim": 2, "n_routed_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 2, "num_nextn_predict_layers": 1, "eos_token_id": 1, "n_group": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "auto_map": {"AutoModel": "modeling_x.X"},
}  # fmt: skip
OTHER = "a.safetensors"
NORM, WEIGHT = "model.norm.weight", "model.layers.0.self_attn.o_proj.weight"
HEADER = {
    "__metadata__": {"format": "pt"},
    NORM: {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
    WEIGHT: {"dtype": "F8_E4M3", "shape": [4, 2], "data_offsets": [8, 16]},
    f"{WEIGHT}_scale_inv": {"dtype": "F32", "shape": [1, 1], "data_offsets": [16, 20]},
}
TENSORS = [NORM, WEIGHT, f"{WEIGHT}_scale_inv"]
SUMS = b"ab" * 32 + b"  model.safetensors\n" + b"cd" * 32 + b" *config.json\n"
TOKENIZER = {
    "added_tokens": [{"id": 1, "content": "<end>", "special": True}],
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
}
RECIPE = b"""format = "native"
[[rule]]
role = ["o_proj"]
layers = "0-3,60"
scheme = "keep"
[[rule]]
name = "model.layers.*"
scheme = "fp8-block"
"""
DISTILL = b"""preset = "toy-cpu"
seeds = [0, 1]
[select]
keep = "all-correct"
[arms.other]
select = { keep = "all" }
"""
MESSAGES = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
LINES = [{"question": "2 + 2?", "answer": "4"}, {"messages": MESSAGES}]
JSONL = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)


def shard(header: bytes) -> bytes:
    """Return a safetensors file with this header, and 20 bytes of data."""
    return struct.pack("<Q", len(header)) + header + bytes(20)


# ------------------------------------------------------------------------------------- the readers


def read_folder(folder: Path) -> None:
    """Open a checkpoint, and check its inventory."""
    checkpoint, findings = scan(folder)
    findings += check(take_inventory(checkpoint))
    for finding in findings:
        require_printable(f"{finding.where}: {finding.message}; {finding.hint}")


def read_header(folder: Path, raw: bytes) -> None:
    """Read a header as the only shard of a sound config."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / SINGLE).write_bytes(raw)
    read_folder(folder)


def read_index(folder: Path, raw: bytes) -> None:
    """Read an index beside a shard."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / OTHER).write_bytes(shard(json.dumps(HEADER).encode()))
    (folder / INDEX).write_bytes(raw)
    read_folder(folder)


def read_config(folder: Path, raw: bytes) -> None:
    """Read a config beside a shard."""
    (folder / SINGLE).write_bytes(shard(json.dumps(HEADER).encode()))
    (folder / "config.json").write_bytes(raw)
    read_folder(folder)


def read_tokenizer(folder: Path, raw: bytes) -> None:
    """Read a tokenizer.json."""
    (folder / "tokenizer.json").write_bytes(raw)
    for finding in check_tokenizer(folder, 4):
        require_printable(f"{finding.message}; {finding.hint}")


def read_lines(folder: Path, raw: bytes) -> None:
    """Read JSONL as a text to calibrate with, and as questions of distill."""
    path = folder / "data.jsonl"
    path.write_bytes(raw)
    try:
        with open_data(path) as data:
            data.file.read()
    except DstoolsError as error:
        require_printable(f"{error}; {error.hint}")
    for number, line in records.lines(path):
        try:
            records.parse(line, path, number)
        except DstoolsError as error:
            require_printable(f"{error}; {error.hint}")
    for _ in questions(path, "auto", Reading()):
        pass


def read_file(name: str, read: Callable[[Path], object]) -> Target:
    """Return a target that writes the file `name` and reads it by `read`."""

    def target(folder: Path, raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        read(folder / name)

    return target


def require_printable(text: str) -> None:
    """Raise AssertionError where a text steers a terminal."""
    assert text.isprintable(), f"not safe to print: {text!r}"


# ---------------------------------------------------------------------------------------- the input


def dumps(value: object) -> bytes:
    """Return JSON, of NaN and lone surrogates too."""
    return json.dumps(value).encode()


TARGETS: dict[str, tuple[list[bytes], Target]] = {  # name -> sound files, and their reader
    "header": ([shard(dumps(HEADER))], read_header),
    "index": ([dumps({"metadata": {}, "weight_map": dict.fromkeys(TENSORS, OTHER)})], read_index),
    "config": ([dumps(CONFIG)], read_config),
    "tokenizer": ([dumps(TOKENIZER)], read_tokenizer),
    "sums": ([SUMS], read_file("SHA256SUMS", lambda path: read_sums(path.parent))),
    "recipe": ([RECIPE], read_file("fp8.toml", read_recipe)),
    "distill-recipe": ([DISTILL], read_file("recipe.toml", read_distill_recipe)),
    "jsonl": ([JSONL, *map(dumps, LINES)], read_lines),
}
NUMBERS = st.sampled_from([0, -1, 1, 1 << 24, 1 << 31, 1 << 63, 1 << 64, 10**40, 0.5, 1e308])
TEXTS = st.sampled_from(["", "\x1b[2J", "\n", "\ud800", "../a", "a" * 999, "BF16", "0-3", *TENSORS])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)


@st.composite
def inputs(draw: st.DrawFn, sound: list[bytes]) -> bytes:
    """Draw random bytes, or a sound file that is damaged as bytes or as JSON."""
    raw = draw(st.sampled_from(sound))
    kind = draw(st.sampled_from(["bytes", "json", "json", "random"]))
    if kind == "random":
        return draw(st.binary(max_size=64))
    start = 8 if raw[8:9] == b"{" and raw[:1] != b"{" else 0  # after the length of a header
    if kind == "json" and raw[start : start + 1] == b"{" and b"}\n{" not in raw:
        value, _ = json.JSONDecoder().raw_decode(raw[start:].decode("latin-1"))
        for _ in range(draw(st.integers(1, 3))):
            replace_in(draw, value)
        return shard(dumps(value)) if start else dumps(value)
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(at + draw(st.integers(0, 16)), len(data))
        data[at:end] = draw(
            st.binary(max_size=8) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
        )
    return bytes(data)


def replace_in(draw: st.DrawFn, value: Any) -> None:
    """Give some place of a JSON value another value, or leave it out."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if isinstance(value[key], dict | list) and draw(st.booleans()):
            value = value[key]
            continue
        if isinstance(value, dict) and draw(st.integers(0, 4)) == 0:
            del value[key]
        else:
            value[key] = draw(VALUES)
        return


# ------------------------------------------------------------------------------------------ the run


def fuzz(name: str, examples: int, number: int) -> None:
    """Give `examples` inputs, drawn with a seed, to a target; raises what a reader raised."""
    sound, target = TARGETS[name]

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs(sound))
    def give(raw: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="dstools-fuzz-") as folder:
            try:
                target(Path(folder), raw)
            except DstoolsError as error:
                require_printable(str(error))
                require_printable(error.hint)

    give()


def main() -> None:
    """Parse the command line and run until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--target", choices=TARGETS, action="append")
    args = parser.parse_args()
    end, rounds = time.monotonic() + args.minutes * 60, 0
    while time.monotonic() < end:
        for name in args.target or TARGETS:
            fuzz(name, 1000, rounds)
        rounds += 1
        sys.stdout.write(f"{rounds} rounds of 1000 inputs each\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
