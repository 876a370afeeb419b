"""The data set that TRL's SFTTrainer makes of conversations: its own code is run."""

import logging
import warnings
from argparse import ArgumentError
from dataclasses import fields
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.model.tokenizer import Messages, time_limit
from dstools_distill.records import Record
from dstools_distill.tokens.faults import finding

RENAMED = {"max_seq_length": "max_length"}
READ = {  # the keys that decide ids and labels
    *("max_length", "truncation_mode", "packing", "packing_strategy"),
    *("assistant_only_loss", "completion_only_loss", "eos_token", "pad_token"),
    "chat_template_path",
}
# keys that affect them too, but are ignored here
UNREAD = ("dataset_kwargs", "padding_free", "tokenizer_name_or_path", "trust_remote_code")
OWN: Record = {  # TRL makes sure that there is an output_dir, and nothing is written to it
    "output_dir": gettempdir(),
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}
TIME_LIMIT_SECONDS = 300  # a run takes about 2; a chat template may loop


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Return the keys that neither TRL's SFT script nor open-r1's template key accounts for."""
    from trl.scripts.sft import make_parser

    options_and_values: list[str] = make_parser().set_defaults_with_config(**config)
    keys = [option.removeprefix("--") for option in options_and_values[::2]]
    return [key for key in keys if key != "chat_template"]


def keys_of_others(config: dict[str, Any]) -> list[str]:
    """Return the unknown keys that TRL has for another training, such as RewardConfig's."""
    import trl

    classes = (getattr(trl, name) for name in dir(trl) if name.endswith("Config"))
    theirs = {field.name for each in classes for field in fields(each)}
    return [key for key in unknown_keys(config) if key in theirs]


def findings(config: dict[str, Any]) -> list[Finding]:
    """Return findings about keys that TRL does not have, and about those that are not read here."""
    found: list[Finding] = []
    for key in unknown_keys(config):
        taken = f", only {RENAMED[key]}, which is taken to be meant" if key in RENAMED else ""
        found.append(finding("unknown-key", printable(key), f"this TRL has no such key{taken}"))
    what = "affects ids, masks or length, and is ignored here"
    found += [finding("not-read", key, what) for key in UNREAD if config.get(key)]
    attention = str(config.get("attn_implementation", "unset"))
    if config.get("packing") and "flash" not in attention:
        what = f"packing with attention {printable(attention)} may let rows see each other"
        found.append(finding("packing-attention", "packing", what))
    return found


def prepare(tokenizer: Any, config: dict[str, Any], chats: list[Messages]) -> Any:
    """Run SFTTrainer up to its batches, on a CPU, and return the `Dataset` that it prepares.

    Every conversation must end with an assistant's message; it is given as prompt and completion
    where the loss is to be on that alone. Changes `tokenizer` into the one that TRL would save:
    with the template that `chat_template` (open-r1's key) or `chat_template_path` gives. Raises
    DstoolsError with TRL's own words if it refuses, and if `chat_template_path` does not exist.
    """
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.hf_argparser import DataClassType
    from trl.scripts.utils import TrlParser
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    renamed = {RENAMED.get(key, key): value for key, value in config.items()}
    options = {key: value for key, value in renamed.items() if key in READ}
    path = str(options.get("chat_template_path") or ".")
    if not Path(path).exists():
        raise DstoolsError(
            f"chat_template_path: {printable(path)}: no such file or folder",
            "download the tokenizer and name its folder; nothing is downloaded here",
        )
    if config.get("chat_template"):
        tokenizer.chat_template = config["chat_template"]
    small: Record = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), 8)
    tiny = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **small)
    parser = TrlParser(DataClassType(SFTConfig), exit_on_error=False)
    parser.set_defaults_with_config(**options, **OWN)
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)  # what TRL says of the tiny model
    try:
        with warnings.catch_warnings(action="ignore"), time_limit(TIME_LIMIT_SECONDS):
            [args] = parser.parse_args_into_dataclasses([], look_for_args_file=False)
            rows: list[Record] = [{"messages": chat} for chat in chats]
            if args.completion_only_loss:
                rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
            return SFTTrainer(
                LlamaForCausalLM(tiny),  # it asks for one, but the rows do not depend on it
                args=args,
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            ).train_dataset
    except TimeoutError:
        raise DstoolsError(
            f"TRL takes more than {TIME_LIMIT_SECONDS} s with this chat template"
        ) from None
    except (ArgumentError, ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        named = [key for key in options if key in str(error)] or options
        values = printable(", ".join(f"{key}: {options[key]}" for key in named))
        hint = f"check {values}" if values else ""
        raise DstoolsError(f"TRL refuses: {type(error).__name__}: {reason}", hint) from error
    finally:
        datasets.enable_progress_bars()
        logging.disable(logging.NOTSET)
