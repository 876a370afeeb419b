"""Text for calibration and evaluation: a file of documents, cut into samples of equal length.

A file is read once from end to end, for its sha256 and the offset of every document: with the
shuffled order, 16 bytes of memory a document. Then only as many documents as the samples need are
read again, in an order drawn from the seed, and only those are parsed, checked and tokenized: half
a million tokens of a 10 GB file take little longer than its sha256. A faulty document that is not
drawn goes unnoticed.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import strict_json
from dstools_converters.layerwise.datafile import DataFile, listed, open_data
from dstools_converters.model.messages import (
    ROW_HINT,
    Conversation,
    Rendered,
    plain_text,
    read_conversation,
    render,
)
from dstools_converters.model.tokenizer import load_tokenizer

MAX_DOCUMENT_BYTES = 16 << 20  # tokenizing it takes ten times as much memory, and some 10 s
MIN_SEQ_LEN = 16  # that a hint recommends
MAX_LOST = 0.1  # of the conversations without an answer, and of the characters of answers
LOSSES = {  # what is said of each, and what to do where it is over MAX_LOST
    "unanswered": (
        "the conversation ends without an answer, as do {share} of those read: without answers, "
        "the text is not what the model will write",
        'add the answers to messages, or as "raw"; or write {"text": ...}, which is taken as it is',
    ),
    "dropped": (
        "the chat template drops or changes answers: {share} of the characters of the assistant's "
        "turns in all that was read",
        'write {"text": ...} with the whole text, special tokens included, or give the checkpoint '
        "a chat_template.jinja that writes every turn",
    ),
    "earlier reasoning": (
        "the chat template leaves out the reasoning of earlier turns, as in serving: {share} of "
        "the characters of the assistant's turns in all that was read",
        "",
    ),
    "unread": (
        "text of the assistant is under {name}, which neither dstools nor the chat template reads: "
        "{share} of the characters of the assistant's turns in all that was read",
        "rename the key to reasoning_content if it is the reasoning; else remove it",
    ),
    "doubled": (
        "a message begins or ends with {name}, which the chat template writes as well, and so do "
        "messages in {share} of the conversations read: they went through a template before",
        'write {"text": ...}, which is taken as it is, or remove what the template writes',
    ),
}
PER_CONVERSATION = ("unanswered", "doubled")  # others are counted in characters
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Corpus:
    """Samples of tokens and their provenance."""

    ids: NDArray[np.int32]  # [samples, seq_len]
    name: str  # of the file, without its folder
    sha256: str  # of the whole file
    samples: int
    seq_len: int
    seed: int
    documents: int  # drawn and read; the file may hold more
    tokens_available: int  # in those; the samples are the first samples * seq_len of them
    warnings: tuple[str, ...] = ()  # what the conversations have and the samples do not

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what is needed to make the same samples again."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "samples": self.samples,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "documents": self.documents,
            "tokens_sha256": sha256(self.ids.tobytes()).hexdigest(),  # tokenizer and template, too
        }


def read_corpus(
    path: Path,
    folder: Path,
    *,
    samples: int,
    seq_len: int,
    seed: int,
    vocab_size: int,
    at_least: int | None = None,
) -> Corpus:
    """Return `samples` x `seq_len` tokens of the documents in `path`, by the tokenizer in `folder`.

    In a .jsonl, .ndjson or .json file every line that is not blank is a document: {"text": ...}, or
    {"messages": [{"role", "content"}, ...]}, rendered with its reasoning, see model.messages; other
    keys are ignored. In any other file every paragraph is a document: lines up to a blank line.
    Both may be compressed by gzip. In Parquet, columns take the place of the keys. Documents are
    taken in the order of numpy's PCG64(seed), each with the special tokens that the tokenizer adds
    (mostly BOS; none if the text begins with BOS), joined, and cut every `seq_len` tokens, so a
    sample may hold several documents or a part of one. at_least: accept a file with this many
    samples, fewer than `samples`, and take what it has.

    Raises DstoolsError, naming file and line, for a malformed document, one over 16 MiB, a token
    beyond the `vocab_size` rows of the embedding, and conversations of which more than MAX_LOST
    would be missing; also if the file is missing, empty or has too few tokens, and if there is no
    usable tokenizer. ValueError if a count is not positive.
    """
    at_least = samples if at_least is None else at_least
    if min(samples, seq_len, at_least) < 1:
        raise ValueError(f"counts must be positive, got {samples}, {seq_len} and {at_least}")
    with open_data(path) as data:
        starts, digest = _scan(data.file, is_jsonl=data.is_jsonl)
        if len(starts) == 1:
            raise DstoolsError(f"{path}: is empty", "name a file with text in it")
        reader = _Reader(path, data, starts, load_tokenizer(folder), vocab_size)
        parts: list[NDArray[np.int32]] = []
        tokens, wanted = 0, samples * seq_len
        for number in np.random.default_rng(seed).permutation(len(starts) - 1):
            parts.append(reader.tokens(int(number)))
            tokens += len(parts[-1])
            if tokens >= wanted:
                break
        warnings = reader.losses.warnings(reader.place)
    samples = min(samples, tokens // seq_len)
    if samples < at_least:
        shorter = tokens // at_least
        raise DstoolsError(
            f"{path}: holds {tokens:,} tokens; {at_least} of --samples and {seq_len} of --seq-len "
            f"take {at_least * seq_len:,}",
            f"--samples {samples} would do, or add text"
            if samples
            else f"--seq-len {shorter} would do, or add text"
            if shorter >= MIN_SEQ_LEN
            else "add text",
        )
    ids = np.concatenate(parts)[: samples * seq_len].reshape(samples, seq_len)
    digest = data.sha256 or digest
    return Corpus(ids, path.name, digest, samples, seq_len, seed, len(parts), tokens, warnings)


def _scan(file: BinaryIO, *, is_jsonl: bool) -> "tuple[array[int], str]":
    """Return the offset of each document, then the size of the file; and the sha256.

    Blank lines after a document count as part of it.
    """
    digest, starts = sha256(), array("q")
    begins_line = begins_paragraph = True
    at = 0
    while piece := file.readline(MAX_DOCUMENT_BYTES):  # a longer line comes in parts
        digest.update(piece)
        is_blank = piece.isspace() or (at == 0 and piece.strip() == BYTE_ORDER_MARK)
        if not is_blank and (begins_line if is_jsonl else begins_paragraph):
            starts.append(at)
        begins_line = piece.endswith(b"\n")
        begins_paragraph = is_blank and begins_line
        at += len(piece)
    starts.append(at)
    return starts, digest.hexdigest()


class _Reader:
    """Documents by number, as tokens; an error in one names its line."""

    def __init__(
        self, path: Path, data: DataFile, starts: "array[int]", tokenizer: Any, vocab_size: int
    ) -> None:
        self.path = path
        self.data = data
        self.file = data.file
        self.starts = starts
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.losses = _Losses()

    def tokens(self, number: int) -> NDArray[np.int32]:
        """Return the tokens of a document [n]."""
        start, end = self.starts[number], self.starts[number + 1]
        if end - start > MAX_DOCUMENT_BYTES:
            raise self.error(
                start,
                f"a document of {end - start} bytes; {MAX_DOCUMENT_BYTES} is the limit",
                "split it: one document a line in .jsonl, blank lines between them in other files",
            )
        self.file.seek(start)
        raw = self.file.read(end - start)
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise self.error(
                start + error.start,
                f"byte {start + error.start} of the file is not UTF-8",
                "save the file as UTF-8: iconv -f OLD -t UTF-8",
            ) from None
        raw = raw.removeprefix(BYTE_ORDER_MARK).rstrip()
        document = self.parse(start, raw) if self.data.is_jsonl else raw.decode()
        ids = np.asarray(self.encode(start, document), dtype=np.int64)
        beyond = ids[ids >= self.vocab_size]
        if len(beyond):
            token = printable(str(self.tokenizer.convert_ids_to_tokens(int(beyond[0]))))
            raise self.error(
                start,
                f"token {beyond[0]} ({token}) is beyond the vocabulary of {self.vocab_size}",
                "the tokenizer does not match the model's embedding",
            )
        return ids.astype(np.int32)

    def parse(self, start: int, raw: bytes) -> str | Conversation:
        """Return the text or the conversation in a line of JSONL."""
        try:
            parsed = strict_json(raw)
        except (ValueError, RecursionError) as error:
            raise self.error(start, f"is not valid JSON: {error}", ROW_HINT) from None
        if not isinstance(parsed, dict):
            raise self.error(start, "is not a JSON object", ROW_HINT)
        if ("text" in parsed) == ("messages" in parsed):
            keys = listed([*parsed]) or "no keys"
            neither = f"neither text nor messages, but {keys}"
            has = "both text and messages" if "text" in parsed else neither
            raise self.error(start, f"has {has}", ROW_HINT)
        try:
            if "text" in parsed:
                return plain_text("text", parsed["text"])
            return read_conversation(parsed)
        except DstoolsError as error:
            raise self.error(start, str(error), error.hint) from error

    def encode(self, start: int, document: str | Conversation) -> list[int]:
        """Return the ids of a document."""
        if isinstance(document, str):
            bos = self.tokenizer.bos_token  # a text that begins with it has its special tokens
            is_rendered = bool(bos) and document.startswith(bos)
            ids: list[int] = self.tokenizer(
                document, verbose=False, add_special_tokens=not is_rendered
            )["input_ids"]
            return ids
        if not self.tokenizer.chat_template:
            raise self.error(
                start,
                "has messages, but the checkpoint's tokenizer has no chat template",
                'write {"text": ...} instead, or add the model\'s chat_template.jinja',
            )
        try:
            rendered = render(self.tokenizer, document.turns)
            plain_text("the rendered text", rendered.text)
        except DstoolsError as error:
            raise self.error(start, str(error), error.hint) from error
        self.losses.count(start, document, rendered)
        # the template writes the special tokens itself
        ids = self.tokenizer(rendered.text, verbose=False, add_special_tokens=False)["input_ids"]
        return ids

    def error(self, at: int, message: str, hint: str) -> DstoolsError:
        """Return an error that names the file and the line that holds byte `at`."""
        return DstoolsError(f"{self.place(at)}: {message}", hint)

    def place(self, at: int) -> str:
        """Return the file and the line, or row, that holds byte `at`."""
        self.file.seek(0)
        line, left = 1, at  # bytes before it that are still to be read
        while left and (piece := self.file.read(min(left, 1 << 20))):
            line += piece.count(b"\n")
            left -= len(piece)
        return f"{self.path}: {self.data.unit} {line}"


class _Losses:
    """What the conversations have and their text does not, with the first place of each kind."""

    def __init__(self) -> None:
        self.conversations = self.characters = 0
        self.lost = dict.fromkeys(LOSSES, 0)
        self.first: dict[str, tuple[int, str]] = {}  # the byte it starts at; a key, a token

    def count(self, start: int, conversation: Conversation, rendered: Rendered) -> None:
        """Add the conversation at byte `start`."""
        self.conversations += 1
        self.characters += rendered.characters
        found = (
            (not conversation.is_answered, ""),
            (rendered.dropped, ""),
            (rendered.earlier_reasoning, ""),
            (rendered.unread, rendered.unread_key),
            (bool(rendered.doubled), rendered.doubled),
        )
        for what, (count, name) in zip(LOSSES, found, strict=True):
            self.lost[what] += count
            if count:
                self.first.setdefault(what, (start, name))

    def warnings(self, place: Callable[[int], str]) -> tuple[str, ...]:
        """Return a warning for each kind of loss. Raises DstoolsError if one is too large."""
        written = []
        for what, (start, name) in self.first.items():
            message, hint = LOSSES[what]
            total = self.conversations if what in PER_CONVERSATION else self.characters
            share = self.lost[what] / total
            message = message.format(share=f"{share:.1%}", name=printable(name))
            text = f"{place(start)}: {message}"
            if hint and share > MAX_LOST:
                raise DstoolsError(text, hint)
            written.append(text)
        return tuple(written)
