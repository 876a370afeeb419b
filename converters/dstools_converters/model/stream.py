"""Text of tokens as they come: each piece is whole characters, and all pieces together the text."""

import re
from typing import Any

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # byte fallback of SentencePiece
BROKEN = "\ufffd"  # a decoder's sign for bytes that are no character, or not yet


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of tokens, special ones included, with every blank as it is."""
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


class TextStream:
    """Decodes tokens in order: what `add` and `end` return is, joined, `decoded` of all of them.

    Held back are bytes that are no whole character yet: signs of BROKEN at the end, and byte
    tokens, as a decoder writes signs for all of a run of them if any one of its bytes is wrong.
    Only a window of the last tokens is decoded again. It begins with a token whose text has been
    returned, as decoders strip a blank before the first one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._returned = 0  # characters of the window's text

    def add(self, ids: list[int]) -> str:
        """Return the characters that further tokens complete; "" if there are none."""
        self._window += ids
        whole = len(self._window)
        while whole and self._is_held(self._window[whole - 1]):
            whole -= 1
        text = decoded(self._tokenizer, self._window[:whole])
        settled = text.rstrip(BROKEN)
        new = settled[self._returned :]
        self._returned += len(new)
        if whole == len(self._window) and settled == text:
            self._window = self._window[-1:]
            self._returned = len(decoded(self._tokenizer, self._window))
        return new

    def end(self) -> str:
        """Return what was held back, after the last token."""
        return decoded(self._tokenizer, self._window)[self._returned :]

    def _is_held(self, token: int) -> bool:
        """Return whether a token is a byte of a run, or has no text and does not end one."""
        text = self._tokenizer.convert_ids_to_tokens(token)
        return text is None or BYTE_TOKEN.fullmatch(text) is not None
