"""The rows that TRL's SFTTrainer makes of conversations: its own code is run, up to its batches."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.model.tokenizer import Messages, time_limit
from dstools_distill.tokens.invariant import Trained

Form = Literal["messages", "prompt-completion"]
TELLING = (
    *("assistant_only_loss", "chat_template_path", "completion_only_loss", "dataset_name"),
    *("max_seq_length", "model_name_or_path", "packing_strategy"),
)
SHARED = ("eos_token", "learning_rate", "max_length", "packing", "per_device_train_batch_size")
RENAMED = {"max_seq_length": "max_length"}
READ = (  # the keys that decide the ids and labels of one row
    *("max_length", "truncation_mode", "assistant_only_loss", "completion_only_loss"),
    *("eos_token", "pad_token", "chat_template_path"),
)
UNREAD = (  # keys that affect ids, masks or length too, but are ignored here
    *("dataset_kwargs", "padding_free"),
    *("tokenizer_name_or_path", "trust_remote_code"),
)
TIME_LIMIT_SECONDS = 300  # a run takes about 2; a chat template may loop


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Return the keys that neither TRL's SFT script nor open-r1's template key accounts for."""
    from trl.scripts.utils import ScriptArguments
    from trl.trainer.model_config import ModelConfig
    from trl.trainer.sft_config import SFTConfig

    known = {"chat_template"}  # open-r1's
    for table in (ModelConfig, ScriptArguments, SFTConfig):
        known |= set(table.__dataclass_fields__)
    return [key for key in config if key not in known]


def findings(config: dict[str, Any]) -> list[Finding]:
    """Return findings about keys that TRL does not have, and about those that are not read here."""
    found: list[Finding] = []
    for key in unknown_keys(config):
        new = RENAMED.get(key)
        what = "this TRL has no such key" + (
            f", only {new}, which is taken to be meant" if new else ""
        )
        hint = "is it spelled right, of another version, or read by a script of your own?"
        found.append(Finding.warning("unknown-key", printable(key), what, hint))
    what = "affects ids, masks or length, and is ignored here"
    return found + [Finding.note("not-read", key, what) for key in UNREAD if config.get(key)]


def trl_rows(
    tokenizer: Any, config: dict[str, Any], form: Form, conversations: list[Messages]
) -> list[Trained]:
    """Run SFTTrainer up to its batches, on a CPU, and return a row for each conversation.

    Every conversation must end with an assistant's message. Changes `tokenizer` into the one that
    TRL would save: with the template that `chat_template` (open-r1's key) or `chat_template_path`
    gives. Raises DstoolsError with TRL's own words if it refuses, and if `chat_template_path` does
    not exist here.
    """
    config = {RENAMED.get(key, key): value for key, value in config.items()}
    if config.get("chat_template"):
        tokenizer.chat_template = config["chat_template"]
    path = str(config.get("chat_template_path") or ".")
    if "{" in path or not Path(path).exists():
        raise DstoolsError(
            f"chat_template_path: {printable(path)}: no such file or folder",
            "download the tokenizer and name its folder; nothing is downloaded here",
        )
    if form == "messages":
        rows: list[dict[str, Any]] = [{"messages": messages} for messages in conversations]
    else:
        rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in conversations]
    try:
        _, batches = trained(tokenizer, config, rows)
    except TimeoutError:
        raise DstoolsError(
            f"TRL takes more than {TIME_LIMIT_SECONDS} s with this chat template"
        ) from None
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"TRL refuses: {type(error).__name__}: {reason}") from error
    return [Trained(b["input_ids"][0].tolist(), b["labels"][0].tolist()) for b in batches]


def trained(
    tokenizer: Any, config: dict[str, Any], rows: list[dict[str, Any]]
) -> tuple[Any, list[dict[str, Any]]]:
    """Return the data set that SFTTrainer prepares of rows, and a batch of each of its rows."""
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    with _quiet(), tempfile.TemporaryDirectory() as folder, time_limit(TIME_LIMIT_SECONDS):
        trainer = SFTTrainer(
            _tiny_model(len(tokenizer)),
            args=SFTConfig(
                output_dir=folder,
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                **{key: config[key] for key in READ if key in config},
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        prepared: Any = trainer.train_dataset
        return prepared, [trainer.data_collator([row]) for row in prepared]


def _tiny_model(vocab_size: int) -> Any:
    """Return a model of one layer: SFTTrainer asks for one, but its batches do not depend on it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide TRL's warnings and the progress bars of datasets."""
    import datasets

    logger = logging.getLogger("trl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.enable_progress_bars()
        logger.setLevel(level)
