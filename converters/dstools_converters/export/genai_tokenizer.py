"""Comparison of onnxruntime-genai's own tokenizer with the tokenizer.json of an exported folder.

It silently skips steps of tokenizer.json that it does not know, so that it returns other ids, and
the model sees another text. It agrees with DeepSeek's own tokenizers, and not with the sample
model's, whose ByteLevel step has use_regex false.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from dstools_converters.export.folder import GENAI_CONFIG
from dstools_converters.export.genai import ERRORS, find_genai

TOKENIZER = "tokenizer.json"
FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What splits, normalizes, adds or merges in its own way: spaces, ends of lines, digits, special
# tokens, contractions, scripts, marks, characters of several bytes, code and formulas
TEXTS = (
    *("Hello world", "  two before", "two after  ", "a  b   c\td", "\t\ttabs", "x\n\n\ny", "\r\n"),
    *("1234567 + 89 = 1234656", "3.14159", "12 345", "O(n^2) <= 5%", "...!!??", "wait -- what?"),
    *(
        "<｜User｜>Hi<｜Assistant｜><think>\n",
        "<think>\nOkay</think>\n\nx",
        "<｜end▁of▁sentence｜>",
    ),
    *("I'm, you're, WE'LL", "don't", "café's", "äöü ñ ß", "Ünïcödé", "e\u0301 combined", "ﬁ ½ ²"),
    *("你好\uff0c世界。这是一个测试", "日本語のテスト", "안녕하세요", "مرحبا بالعالم", "Привет"),
    *(
        "हिन्दी",
        "🙂👍🏽",
        "👩\u200d💻",
        "\u00a0space",
        "zero\u200bwidth",
        "\\frac{1}{2}",
        "$\\alpha$",
    ),
    *("def f(x):\n    return x+1\n", "https://x.y/z?a=b&c=d", "foo_bar(baz[0])->x != y;"),
)
CUT = "🙂 你好 ñ"  # its characters are cut between tokens


def agrees(files: Mapping[str, Path | bytes]) -> bool | None:
    """Return whether genai encodes and decodes as tokenizer.json says.

    files: those of an exported folder, by name; no weights are read. None where there is no
    tokenizer.json, or onnxruntime-genai is not installed.
    """
    genai = find_genai()
    if genai is None or TOKENIZER not in files:
        return None
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file in FILES:
            content = files.get(file, b"")
            read = content if isinstance(content, bytes) else content.read_bytes()
            if read:
                (folder / file).write_bytes(read)
        return _agrees(genai, folder)


def remarks(verdict: bool | None) -> tuple[str, ...]:
    """Return what people should know of a verdict of `agrees`."""
    if verdict is None:
        return ("onnxruntime-genai's tokenizer was not compared with tokenizer.json.",)
    if not verdict:
        return ("onnxruntime-genai's tokenizer contradicts tokenizer.json: give it ids, not text.",)
    return ()


def _agrees(genai: ModuleType, folder: Path) -> bool:
    from tokenizers import Tokenizer

    config: dict[str, Any] = {"type": "llama", "vocab_size": 1, "context_length": 1}
    (folder / GENAI_CONFIG).write_text(json.dumps({"model": config}))
    own = Tokenizer.from_file(str(folder / TOKENIZER))
    try:
        theirs = genai.Tokenizer(str(folder))
        for text in TEXTS:
            if theirs.encode(text).tolist() != own.encode(text, add_special_tokens=False).ids:
                return False
        stream = theirs.create_stream()
        ids = own.encode(CUT, add_special_tokens=False).ids
        return "".join(stream.decode(token) for token in ids) == CUT
    except ERRORS:  # a tokenizer that it cannot read
        return False
