"""Text for calibration and evaluation: a file of documents, cut into samples of equal length.

A file is read once from end to end, for its sha256 and the offset of every document: with the
shuffled order, 16 bytes of memory a document. Then only as many documents as the samples need are
read again, in an order drawn from the seed, and only those are parsed, checked and tokenized: half
a million tokens of a 10 GB file take little longer than its sha256. A faulty document that is not
drawn goes unnoticed.
"""

import stat
from array import array
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import strict_json
from dstools_converters.model.tokenizer import chat_text, load_tokenizer

JSONL_SUFFIXES = (".jsonl", ".json")
LINE_HINT = 'a line is {"text": "..."} or {"messages": [{"role": "...", "content": "..."}, ...]}'
MAX_DOCUMENT_BYTES = 16 << 20  # tokenizing it takes ten times as much memory, and some 10 s
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
    path: Path, folder: Path, *, samples: int, seq_len: int, seed: int, vocab_size: int
) -> Corpus:
    """Return `samples` x `seq_len` tokens of the documents in `path`, by the tokenizer in `folder`.

    In a .jsonl or .json file every line that is not blank is a document: {"text": ...}, or
    {"messages": [{"role", "content"}, ...]}, to which the tokenizer's chat template is applied;
    other keys are ignored. In any other file every paragraph is a document: lines up to a blank
    line. Documents are taken in the order of numpy's PCG64(seed), each with the special tokens that
    the tokenizer adds (mostly BOS), joined, and cut every `seq_len` tokens, so a sample may hold
    several documents or a part of one.

    Raises DstoolsError, naming file and line, for a malformed document, one over 16 MiB, and a
    token beyond the `vocab_size` rows of the embedding; also if the file is missing, empty or has
    too few tokens, and if there is no usable tokenizer. ValueError if a count is not positive.
    """
    if samples < 1 or seq_len < 1:
        raise ValueError(f"samples and seq_len must be positive, got {samples} and {seq_len}")
    with _open(path) as file:
        starts, digest = _scan(file, is_jsonl=path.suffix in JSONL_SUFFIXES)
        if len(starts) == 1:
            raise DstoolsError(f"{path}: is empty", "name a file with text in it")
        reader = _Reader(path, file, starts, load_tokenizer(folder), vocab_size)
        parts: list[NDArray[np.int32]] = []
        tokens, wanted = 0, samples * seq_len
        for number in np.random.default_rng(seed).permutation(len(starts) - 1):
            parts.append(reader.tokens(int(number)))
            tokens += len(parts[-1])
            if tokens >= wanted:
                break
    if tokens < wanted:
        enough = tokens // seq_len
        raise DstoolsError(
            f"{path}: holds {tokens} tokens; {samples} samples of {seq_len} take {wanted}",
            f"--samples {enough} would do, or add text" if enough else "add text",
        )
    ids = np.concatenate(parts)[:wanted].reshape(samples, seq_len)
    return Corpus(ids, path.name, digest, samples, seq_len, seed, len(parts), tokens)


def _open(path: Path) -> BinaryIO:
    """Open `path` if it is a regular file: a pipe or device might never end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DstoolsError(f"{path}: is a folder", "name one of its files")
        if not stat.S_ISREG(mode):
            raise DstoolsError(f"{path}: is not a regular file", "save its content as a file")
        return path.open("rb")
    except FileNotFoundError:
        raise DstoolsError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise DstoolsError(f"{path}: {error.strerror}", "check its permissions") from error


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
        self, path: Path, file: BinaryIO, starts: "array[int]", tokenizer: Any, vocab_size: int
    ) -> None:
        self.path = path
        self.file = file
        self.starts = starts
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size

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
        is_jsonl = self.path.suffix in JSONL_SUFFIXES
        document = self.parse(start, raw) if is_jsonl else raw.decode()
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

    def parse(self, start: int, raw: bytes) -> str | list[dict[str, str]]:
        """Return the text or the messages in a line of JSONL."""
        try:
            parsed = strict_json(raw)
        except (ValueError, RecursionError) as error:
            raise self.error(start, f"is not valid JSON: {error}", LINE_HINT) from None
        if not isinstance(parsed, dict):
            raise self.error(start, "is not a JSON object", LINE_HINT)
        if ("text" in parsed) == ("messages" in parsed):
            has = "both" if "text" in parsed else "neither"
            raise self.error(start, f"has {has} of the keys text and messages", LINE_HINT)
        if "text" in parsed:
            return self.text(start, "text", parsed["text"])
        messages = parsed["messages"]
        if not isinstance(messages, list) or not messages:
            raise self.error(start, "messages must be a list of messages", LINE_HINT)
        for n, message in enumerate(messages):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise self.error(start, f"messages[{n}] must have role and content", LINE_HINT)
        return [
            {key: self.text(start, f"messages[{n}].{key}", m[key]) for key in ("role", "content")}
            for n, m in enumerate(messages)
        ]

    def text(self, start: int, key: str, value: Any) -> str:
        """Return `value` if it is a text that is not blank and can be encoded as UTF-8."""
        if not isinstance(value, str):
            raise self.error(start, f"{key} is not a string", LINE_HINT)
        if not value.strip():
            raise self.error(start, f"{key} is empty", "remove the line")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(
                start, f"{key} holds half a surrogate pair", "write the character as UTF-8"
            ) from None
        return value

    def encode(self, start: int, document: str | list[dict[str, str]]) -> list[int]:
        """Return the ids of a document."""
        if isinstance(document, str):
            ids: list[int] = self.tokenizer(document, verbose=False)["input_ids"]
            return ids
        if not self.tokenizer.chat_template:
            raise self.error(
                start,
                "has messages, but the checkpoint's tokenizer has no chat template",
                'write {"text": ...} instead, or add the model\'s chat_template.jinja',
            )
        try:
            text = chat_text(self.tokenizer, document)
        except DstoolsError as error:
            raise self.error(start, str(error), error.hint) from error
        # the template writes the special tokens itself
        ids = self.tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        return ids

    def error(self, at: int, message: str, hint: str) -> DstoolsError:
        """Return an error that names the file and the line that holds byte `at`."""
        self.file.seek(0)
        line, left = 1, at  # bytes before it that are still to be read
        while left and (piece := self.file.read(min(left, 1 << 20))):
            line += piece.count(b"\n")
            left -= len(piece)
        return DstoolsError(f"{self.path}: line {line}: {message}", hint)
