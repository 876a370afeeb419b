"""A checkpoint's tokenizer and chat template: both are untrusted, and none of their code is run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import strict_json

TEMPLATE_SECONDS = 10  # those of releases take milliseconds


def load_tokenizer(folder: Path) -> Any:
    """Return the checkpoint's tokenizer; none of its code is run, and nothing is downloaded.

    Raises DstoolsError where it is missing, or transformers cannot read it.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DstoolsError(
            f"a tokenizer needs transformers: {error}", 'pip install "dstools-llm[torch]"'
        ) from error
    hint = "copy tokenizer.json and tokenizer_config.json from the model's release"
    if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").exists():
        raise DstoolsError(f"{folder}: has no tokenizer", hint)
    config = folder / "tokenizer_config.json"
    try:
        settings = strict_json(config.read_bytes()) if config.exists() else {}
        # transformers 5 ignores this flag where tokenizer.json does not add BOS, as in DeepSeek's
        bos = {"add_bos_token": True} if settings.get("add_bos_token") is True else {}
        return AutoTokenizer.from_pretrained(
            os.fspath(folder.resolve()), local_files_only=True, trust_remote_code=False, **bos
        )
    except Exception as error:  # tokenizers, in Rust, raises a bare Exception for a broken file
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"{folder}: its tokenizer cannot be read: {reason}", hint) from error


def chat_text(
    tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool = False
) -> str:
    """Return the messages rendered by the chat template, in the sandbox of transformers.

    Raises DstoolsError, which names neither file nor line, where the template takes more than
    TEMPLATE_SECONDS or refuses the messages. The tokenizer must have a template.
    """
    from jinja2 import TemplateError

    try:
        with time_limit(TEMPLATE_SECONDS):
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
    except TimeoutError as error:
        raise DstoolsError(
            f"the chat template takes more than {TEMPLATE_SECONDS} s",
            "the template is part of the checkpoint; look at chat_template.jinja",
        ) from error
    except (TemplateError, TypeError, ValueError) as error:
        raise DstoolsError(
            f"the chat template refuses the messages: {printable(str(error))}",
            "check that the model knows the roles",
        ) from error
    return text


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
