"""A checkpoint's tokenizer and chat template: both are untrusted, and none of their code is run."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, install_hint, printable
from dstools_converters.files import LFS_HINT, is_lfs_pointer, json_object
from dstools_converters.model.reasoning import OPEN, opens_think, plain_opening
from dstools_converters.tables import json_table

Messages = list[dict[str, str]]

log = logging.getLogger(__name__)
TEMPLATE_SECONDS = 10  # those of releases take milliseconds
MAX_ADDED, MAX_COPIES = 1 << 20, 8  # characters besides the messages; times that these are written
PROBE = (  # whatever splits, normalizes or merges in its own way
    "Hello world, how are you?  12 + 34 = 46; 1234567.\n\n    indented\tx\r\n\n\n"
    "don't WON'T 你好\uff0c世界。「日本語」カタカナ한국어 Ärger e\u0301 naïve ﬁ ½ Привет "
    "العربية हिन्दी "
    "👩\u200d💻🎉 ... --- ### $%&@ foo_bar(baz[0])->x != y;  \n </s> <unk> "
)
PROBED_TOKENS = 64  # of the added ones; releases have some 1000 placeholders
FILES = ("tokenizer*", "vocab.*", "merges.txt", "chat_template*", "special_tokens_map.json")
RELEASE_HINT = "copy tokenizer.json and tokenizer_config.json from the model's release"
CONFIG_HINT = "the settings of tokenizer_config.json contradict it; restore both from the release"
TEMPLATE_HINT = (
    "fix chat_template.jinja; for a student, student.template in the recipe names another one"
)
RESTORE_FILE = "restore the file from the model's release"
RESTORE = "restore chat_template.jinja or tokenizer_config.json from the model's release"
TEMPLATE_ERRORS = (  # what expressions of a template raise, besides jinja's own
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
)
ANSWER = "the answer of the probe"  # not part of any template
QUESTION = [{"role": "user", "content": "7"}]
THINKING_SWITCHES = ("enable_thinking", "thinking")  # of Qwen3's template, of DeepSeek-V3.1's


def load_tokenizer(folder: Path) -> Any:
    """Return the checkpoint's tokenizer; none of its code is run, and nothing is downloaded.

    AutoTokenizer may choose a class by model_type that builds other rules than those of
    tokenizer.json, as for qwen2 (huggingface/transformers#45488). Where its ids of a probe text
    are not those of tokenizer.json, the tokenizer is loaded from that file, with a warning. Raises
    DstoolsError where it is missing or a Git LFS pointer, transformers cannot read it, or the ids
    differ even then.
    """
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ImportError as error:
        raise DstoolsError(
            f"a tokenizer needs transformers: {error}", install_hint("torch")
        ) from error
    if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").exists():
        raise DstoolsError(f"{folder}: has no tokenizer", RELEASE_HINT)
    _require_content(folder)
    settings = json_table(folder / "tokenizer_config.json", RESTORE_FILE) or {}
    try:
        # transformers 5 ignores this flag where tokenizer.json does not add BOS, as in DeepSeek's
        bos = {"add_bos_token": True} if settings.get("add_bos_token") is True else {}
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, **bos}
        name = os.path.realpath(folder)
        loaded = AutoTokenizer.from_pretrained(name, **options)
        wanted = _probed(folder)
        loaded.name_or_path = str(folder)  # which messages name, as it was given
        if wanted is None or _ids(loaded, wanted.text) == wanted.ids:
            return loaded
        _warn(folder, type(loaded).__name__)
        loaded = PreTrainedTokenizerFast.from_pretrained(name, **options)
        loaded.name_or_path = str(folder)
        differs = _ids(loaded, wanted.text) != wanted.ids
    except Exception as error:  # tokenizers, in Rust, raises a bare Exception for a broken file
        raise _unreadable(folder, error) from error
    if differs:
        raise DstoolsError(
            f"{folder}: transformers gives other ids than tokenizer.json says", CONFIG_HINT
        )
    return loaded


def _unreadable(folder: Path, error: Exception) -> DstoolsError:
    """Return why transformers does not read the tokenizer of a folder, by the file at fault."""
    from huggingface_hub.errors import StrictDataclassError

    reason = printable(" ".join(str(error).split()))
    if isinstance(error, StrictDataclassError):  # AutoTokenizer reads the config, too
        path = folder / "config.json"
        return DstoolsError(f"{path}: transformers refuses it: {reason}", RESTORE_FILE)
    path = folder / "tokenizer.json"
    if not path.exists():
        return DstoolsError(
            f"{path}: is missing, and the other files make no tokenizer", RELEASE_HINT
        )
    content = json_object(path)
    if isinstance(content, str):
        return DstoolsError(f"{path}: {content}", RELEASE_HINT)
    for key in ("added_tokens", "model"):
        if key not in content:
            return DstoolsError(f"{path}: has no {key}", RELEASE_HINT)
    return DstoolsError(f"{folder}: its tokenizer cannot be read: {reason}", RELEASE_HINT)


def _require_content(folder: Path) -> None:
    """Raise DstoolsError for a file of the tokenizer that is empty or a Git LFS pointer."""
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        if path.is_file() and is_lfs_pointer(path):
            raise DstoolsError(f"{path}: is a Git LFS pointer, not the file", LFS_HINT)
        if path.is_file() and path.stat().st_size == 0:
            raise DstoolsError(f"{path}: is empty", "copy it from the model's release")


@cache
def _warn(folder: Path, name: str) -> None:
    """Warn once that transformers chooses a class `name` that contradicts tokenizer.json."""
    log.warning(
        "warning: %s: %s, which transformers chooses, gives other ids than tokenizer.json, which "
        "is used here; compare the ids of an engine that loads the folder by AutoTokenizer",
        folder,
        name,
    )


class _Probed(NamedTuple):
    """The probe text with the added tokens of a tokenizer.json, and its ids by that file alone."""

    text: str
    ids: list[int]


def _probed(folder: Path) -> _Probed | None:
    """Return the ids that tokenizer.json gives a probe text; None if there is no such file."""
    path = folder / "tokenizer.json"
    return _probed_file(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache(maxsize=8)  # parsing the file takes half as long as transformers' loading
def _probed_file(path: Path, _mtime_ns: int) -> _Probed:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.fspath(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    text = PROBE + "".join(f" {token}a {token}" for token in added[:PROBED_TOKENS])
    return _Probed(text, tokenizer.encode(text, add_special_tokens=False).ids)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def chat_text(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = False,
    thinks: bool = False,
) -> str:
    """Return the messages rendered by the chat template, in the sandbox of transformers.

    thinks: turn the reasoning on, in templates of models that answer with and without it.
    Raises DstoolsError, which names neither file nor line, where the template takes more than
    TEMPLATE_SECONDS, writes far more than the messages, fails or refuses them. The tokenizer must
    have a template.
    """
    from jinja2 import TemplateError

    if not isinstance(tokenizer.chat_template, str | dict):
        raise DstoolsError(
            f"chat_template is {printable(repr(tokenizer.chat_template))}, not a template", RESTORE
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = printable(", ".join(map(str, tokenizer.chat_template)))
        raise DstoolsError(
            f"chat_template has several templates, {names}, and none is called default",
            "call the one to use default, in tokenizer_config.json",
        )
    switches = dict.fromkeys(THINKING_SWITCHES, True) if thinks else {}
    try:
        with time_limit(TEMPLATE_SECONDS):
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **switches
            )
    except TimeoutError as error:
        raise DstoolsError(
            f"the chat template takes more than {TEMPLATE_SECONDS} s", RESTORE
        ) from error
    except (TemplateError, *TEMPLATE_ERRORS) as error:
        reason = printable(str(error) or type(error).__name__)
        if type(error) is TemplateError:  # of its raise_exception, not of jinja
            raise DstoolsError(
                f"the chat template refuses the messages: {reason}",
                "check that the model knows the roles, and their order",
            ) from error
        raise DstoolsError(f"the chat template fails: {reason}", RESTORE) from error
    if len(text) > MAX_ADDED + MAX_COPIES * len(str(messages)):
        raise DstoolsError(f"the chat template writes {len(text):,} characters", RESTORE)
    return text


def prompt_text(tokenizer: Any, messages: list[dict[str, Any]] | Messages) -> str:
    """Return the text that serving shows the model: the template with its generation prompt.

    Raises DstoolsError if the tokenizer has no template, or if the template refuses the messages or
    takes more than TEMPLATE_SECONDS.
    """
    if not tokenizer.chat_template:
        raise DstoolsError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template",
            "add one to tokenizer_config.json; for a student, student.template in the recipe names "
            "one",
        )
    return chat_text(tokenizer, messages, add_generation_prompt=True)


def prompt_ids(tokenizer: Any, messages: Messages, prefill: bool = False) -> list[int]:
    """Return the ids of `prompt_text`; the template itself writes all special tokens, BOS too.

    prefill: open the answer with <think> and a newline, unless the template does.
    """
    text = prompt_text(tokenizer, messages)
    if prefill and not opens_think(text):
        text += f"{OPEN}\n"
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def question_text(tokenizer: Any, text: str) -> str:
    """Return the text that serving shows the model for one message of a user.

    Its content is a list of parts where the template does not write a string. Raises DstoolsError
    as `prompt_text`, and where it writes neither.
    """

    def messages(text: str, in_parts: bool) -> list[dict[str, Any]]:
        content = [{"type": "text", "text": text}] if in_parts else text
        return [{"role": "user", "content": content}]

    failed: DstoolsError | None = None
    for in_parts in (False, True):
        try:
            probe = prompt_text(tokenizer, messages(ANSWER, in_parts))
        except DstoolsError as error:
            failed = failed or error
            continue
        if ANSWER in probe:
            return prompt_text(tokenizer, messages(text, in_parts))
    raise failed or DstoolsError("the chat template does not write the message of a user", RESTORE)


class Form(NamedTuple):
    """What a template writes around an answer that has no trace."""

    plain: str  # between the generation prompt and the answer
    end: int  # the token after the answer


def answer_form(tokenizer: Any) -> Form:
    """Return what belongs around an answer, found by rendering a probe.

    `plain` is its `plain_opening`. Raises DstoolsError unless the template writes the answer
    exactly once and one added token after it.
    """
    prompt = prompt_text(tokenizer, QUESTION)
    text = chat_text(tokenizer, [*QUESTION, {"role": "assistant", "content": ANSWER}])
    before, answer, after = text.partition(ANSWER)
    if not answer or ANSWER in after:
        raise DstoolsError("the chat template does not write an answer exactly once", TEMPLATE_HINT)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)
    if not after.strip():
        raise DstoolsError(
            "the chat template writes no end token after an answer, which would never end",
            TEMPLATE_HINT,
        )
    if ids[:1] not in added_ids(tokenizer):
        shown = printable(after.strip())
        raise DstoolsError(
            f"the chat template ends an answer with {shown}, which is not a single token here",
            TEMPLATE_HINT,
        )
    return Form(plain_opening(prompt, before), ids[0])


def added_ids(tokenizer: Any) -> list[list[int]]:
    """Return the id of each added token, such as <|im_end|>, as `encode` returns it: [n][1]."""
    return [[number] for number in tokenizer.added_tokens_decoder]


def end_token_id(tokenizer: Any) -> int:
    """Return the id of the token that the chat template writes after an answer."""
    return answer_form(tokenizer).end


def end_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer of a checkpoint, none where nothing names any.

    They are those of generation_config.json and of config.json, and the token that the tokenizer's
    template writes after an answer, if it writes one. Raises DstoolsError for an end that is not a
    token id.
    """
    paths = (folder / "generation_config.json", folder / "config.json")
    tables = {str(path): json_table(path, RESTORE_FILE) or {} for path in paths}
    return ends_of(tokenizer, {path: table.get("eos_token_id") for path, table in tables.items()})


def ends_of(tokenizer: Any, named: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids that end an answer, none where nothing names any.

    named: eos_token_id by where it is from, an id, a list of them or None. Raises DstoolsError as
    `end_ids`, which reads it from a folder.
    """
    ends: set[int] = set()
    if tokenizer.chat_template:
        with suppress(DstoolsError):  # it is not needed to ask: only answers have an end
            ends.add(end_token_id(tokenizer))
    for source, listed in named.items():
        for end in listed if isinstance(listed, list) else [listed]:
            if end is None or end == -1:  # -1 of early Llama: none
                continue
            if type(end) is not int or end < 0:
                raise DstoolsError(
                    f"{source}: eos_token_id is {printable(repr(listed))}, not token ids",
                    RESTORE_FILE,
                )
            ends.add(end)
    return frozenset(ends)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after `seconds`: a template may loop forever, and jinja does not stop it.

    Works in the main thread alone, where signals arrive; does nothing elsewhere.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
