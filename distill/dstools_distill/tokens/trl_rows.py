"""The data set that TRL's SFTTrainer makes of conversations: its own code is run."""

import logging
import warnings
from inspect import formatannotation
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.model.tokenizer import Messages, time_limit
from dstools_distill.records import Record
from dstools_distill.tokens.faults import finding

RENAMED = {"max_seq_length": "max_length"}
READ = (  # the keys that decide ids and labels
    "max_length",
    "truncation_mode",
    "assistant_only_loss",
    "completion_only_loss",
    "eos_token",
    "pad_token",
    "chat_template_path",
    "packing",
    "packing_strategy",
)
# keys that affect them too, but are ignored here
UNREAD = ("dataset_kwargs", "padding_free", "tokenizer_name_or_path", "trust_remote_code")
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
        what = "this TRL has no such key"
        if key in RENAMED:
            what += f", only {RENAMED[key]}, which is taken to be meant"
        found.append(finding("unknown-key", printable(key), what))
    what = "affects ids, masks or length, and is ignored here"
    found += [finding("not-read", key, what) for key in UNREAD if config.get(key)]
    attention = str(config.get("attn_implementation", "unset"))
    if config.get("packing") and "flash" not in attention:
        what = f"packing with attention {printable(attention)} may let rows see each other"
        found.append(finding("packing-attention", "packing", what))
    return found


def prepare(tokenizer: Any, config: dict[str, Any], chats: list[Messages], folder: Path) -> None:
    """Run SFTTrainer up to its batches, on a CPU, and save the data set that it prepares.

    Every conversation must end with an assistant's message; it is given as prompt and completion
    where the loss is to be on that alone. Changes `tokenizer` into the one that TRL would save:
    with the template that `chat_template` (open-r1's key) or `chat_template_path` gives. Raises
    DstoolsError with TRL's own words if it refuses; for values of a wrong type; and if
    `chat_template_path` does not exist.
    """
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    options = _options({RENAMED.get(key, key): value for key, value in config.items()})
    if config.get("chat_template"):
        tokenizer.chat_template = config["chat_template"]
    rows: list[Record] = [{"messages": chat} for chat in chats]
    if options.get("completion_only_loss"):
        rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    tiny = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)  # what TRL says of the tiny model
    try:
        with warnings.catch_warnings(action="ignore"), time_limit(TIME_LIMIT_SECONDS):
            own: Record = {"output_dir": str(folder), "report_to": [], "use_cpu": True}
            trainer = SFTTrainer(
                LlamaForCausalLM(tiny),  # it asks for one, but the rows do not depend on it
                args=SFTConfig(bf16=False, gradient_checkpointing=False, **own, **options),
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )
            prepared: Any = trainer.train_dataset
            prepared.save_to_disk(folder)
    except TimeoutError:
        raise DstoolsError(
            f"TRL takes more than {TIME_LIMIT_SECONDS} s with this chat template"
        ) from None
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        named = [key for key in options if key in str(error)] or options
        values = printable(", ".join(f"{key}: {options[key]}" for key in named))
        hint = f"check {values}" if values else ""
        raise DstoolsError(f"TRL refuses: {type(error).__name__}: {reason}", hint) from error
    finally:
        datasets.enable_progress_bars()
        logging.disable(logging.NOTSET)


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that are read, with values of their types and a template that exists."""
    from trl.trainer.sft_config import SFTConfig

    options = {key: config[key] for key in READ if key in config}
    fields: dict[str, Any] = SFTConfig.__dataclass_fields__
    wrong = [
        f"{key}: {value} is not {formatannotation(fields[key].type)}"
        for key, value in options.items()
        if value is not None and not isinstance(value, fields[key].type)
    ]
    if wrong:
        raise DstoolsError(printable("; ".join(wrong)), "give each key a value of its type")
    path = str(options.get("chat_template_path") or ".")
    if not Path(path).exists():
        raise DstoolsError(
            f"chat_template_path: {printable(path)}: no such file or folder",
            "download the tokenizer and name its folder; nothing is downloaded here",
        )
    return options
