"""Encoding of texts, by fastokens where it is installed and gives the same ids as tokenizers.

fastokens reads the same tokenizer.json and encodes ten times faster, but knows fewer parts of the
format. So both encode texts of the run and a list of awkward ones first; where any id differs, or
fastokens does not know the tokenizer, tokenizers encodes the run. Decoding, by which every row is
checked, is always that of tokenizers. Source: crusoecloud/fastokens.
"""
# ruff: noqa: RUF001

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from dstools_converters.errors import printable
from dstools_converters.model.tokenizer import PROBE, PROBED_TOKENS

log = logging.getLogger(__name__)
Encode = Callable[[list[str]], list[list[int]]]
AWKWARD = (
    PROBE,
    *("", " ", "\n", "\r\n\r\n \t\n", " " * 300, "\n" * 300, "a" * 3000, "0" * 1000, "7" * 17),
    *("\u00a0\u3000\u2009x\u200b\u200d\ufeffy", "\u0000\x7f\ufffd\ue000\U000e0041", "\u2028x"),
    *("e\u0301E\u0308n\u0303\u0323", "ﬁﬀ Å\u212b Ω\u2126 ①½ｱ", "\u1112\u1161\u11ab한국", "İıſßǅ"),
    *("👨\u200d👩\u200d👧🏽🇩🇪\ufe0f❤️", "𝐱𝟐 𒀀 𠀀 ඞ", "नि ก็ עִבְרִית العَرَبِيَّة", "一二三，。：「」！？"),
    *("it's I'M we'll 'Tis ''s x'S", "1,234.56e-7 0x1F 3/4 50% $5 €6", "a_b.c-d@e:f/g\\h|i~j`k^l"),
    *(r"$\frac{x^2}{\sqrt{y_1}}$ \begin{align*}&=\\", "def f(x):\n\treturn  x**2 # ok\r\n"),
    *("<|im_start|>", "<｜User｜>", "< think>", "<think", "</think >", "<think></think>\n\n"),
)


def encoder(backend: Any, *, fast: bool) -> Encode:
    """Return a function from texts to their ids, without special tokens that no text spells.

    backend: of tokenizers, which encodes all texts unless `fast`, and then still those at which
    fastokens fails: it refuses a byte that no token has, where tokenizers leaves it out, and a text
    too long for the stack of its regular expressions.
    """

    def plain(texts: list[str]) -> list[list[int]]:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    if not fast:
        return plain
    quick = _fastokens(backend)

    def encode(texts: list[str]) -> list[list[int]]:
        try:
            return quick(texts)
        except BaseException as error:
            _raise_unless_of_fastokens(error)
            return plain(texts)

    return encode


def _fastokens(backend: Any) -> Encode:
    """Return the encoder of fastokens. Raises ValueError if it does not know the tokenizer."""
    from fastokens import Tokenizer

    made = Tokenizer.from_json_str(backend.to_str())
    return lambda texts: [encoding.ids for encoding in made.encode_batch(texts)]


def _raise_unless_of_fastokens(error: BaseException) -> None:
    """Raise `error` unless it is a ValueError or a Rust panic, whose class no module exports."""
    if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
        raise error


def is_fast(backend: Any, texts: Sequence[str]) -> bool:
    """Return whether fastokens may encode a run, of which `texts` are some.

    Logs one line where it is installed and may not.
    """
    if find_spec("fastokens") is None:
        return False
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    tokens = [f" {token}a{token} {token}\n" for token in added[:PROBED_TOKENS]]
    probed = [*AWKWARD, "".join(tokens), *tokens, *texts]
    try:
        found = _fastokens(backend)(probed)
    except BaseException as error:
        _raise_unless_of_fastokens(error)
        log.warning(
            "rendering: tokenizers encodes, as fastokens does not: %s", printable(str(error))
        )
        return False
    wanted = encoder(backend, fast=False)(probed)
    for text, some, others in zip(probed, found, wanted, strict=True):
        if some != others:
            log.warning(
                "rendering: tokenizers encodes, as fastokens gives other ids for %s",
                printable(repr(text[:60])),
            )
            return False
    return True
