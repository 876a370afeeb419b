"""What other trainers make of a conversation: ids and labels, for the doctor.

TRL is run. LLaMA-Factory and axolotl are not installed; what they do is derived from their source:
hiyouga/LLaMA-Factory src/llamafactory/data/{template,processor/supervised,processor/processor_utils}.py,
axolotl-ai-cloud/axolotl src/axolotl/prompt_strategies/chat_template.py, both as of 2026.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.tokenizer import chat_text, time_limit
from dstools_distill.records import CLOSE, OPEN
from dstools_distill.tokens.invariant import IGNORED

Messages = list[dict[str, str]]
Form = Literal["messages", "prompt-completion"]
TRL_KEYS = (  # what decides ids and labels of one row
    "max_length",
    "truncation_mode",
    "assistant_only_loss",
    "completion_only_loss",
    "eos_token",
    "pad_token",
    "chat_template_path",
)
TRL_SECONDS = 300  # it takes 2; the template may loop
AXOLOTL_LENGTH = 512  # sequence_len, where a config has none
AXOLOTL_ROLES = {"human": "user", "gpt": "assistant"}  # other names of roles
AXOLOTL_OF_ENTRIES = (
    "roles_to_train",
    "train_on_eos",
    "train_on_eot",
)  # at the top they do nothing
UNREAD = {  # keys that bear on ids, masks or length too, and are not taken into account here
    "TRL": (
        "dataset_kwargs",
        "max_seq_length",
        "padding_free",
        "tokenizer_name_or_path",
        "trust_remote_code",
    ),
    "LLaMA-Factory": (
        "add_special_tokens",
        "add_tokens",
        "new_special_tokens_config",
        "preserve_thinking",
        "split_special_tokens",
        "tokenized_path",
        "tool_format",
    ),
    "axolotl": (
        "added_tokens_overrides",
        "attn_implementation",
        "batch_flattening",
        "chat_template_kwargs",
        "min_sample_len",
        "plugins",
        "pretraining_dataset",
        "special_tokens",
        "tokenizer_config",
        "tokenizer_use_mistral_common",
        "tokens",
        "use_pose",
    ),
}
UNREAD_OF_ENTRIES = (
    "drop_system_message",
    "field_thinking",
    "message_field_training",
    "message_field_training_detail",
    "message_property_mappings",
    "roles",
    "split_thinking",
    "template_thinking_key",
)


class Trained(NamedTuple):
    """A row as a trainer sees it; none where it leaves the row out."""

    ids: list[int]
    labels: list[int]


def unread(trainer: str, config: dict[str, Any]) -> list[str]:
    """Return the keys of a config that bear on ids, masks or length and are not taken into account here."""
    found = [key for key in UNREAD[trainer] if config.get(key)]
    if trainer == "axolotl":
        for n, entry in enumerate(_datasets(config)):
            found += [f"datasets[{n}].{key}" for key in UNREAD_OF_ENTRIES if entry.get(key)]
            found += [f"datasets[{n}].type"] if not _is_conversation(entry) else []
    return found


def trl_rows(
    tokenizer: Any, config: dict[str, Any], form: Form, conversations: list[Messages]
) -> list[Trained]:
    """Run TRL's SFTTrainer up to its batches, with a model of one layer on a CPU.

    Conversations end with an assistant's message. The tokenizer becomes the one that is saved: with
    `chat_template`, which is open-r1's, and what `chat_template_path` names.
    Raises DstoolsError with what TRL says where it refuses, and where that path is none here.
    """
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    if config.get("chat_template"):
        tokenizer.chat_template = config["chat_template"]
    path = str(config.get("chat_template_path") or ".")
    if "{" in path or not Path(path).exists():
        raise DstoolsError(
            f"chat_template_path: {printable(path)}: no such file or folder",
            "download the tokenizer and name its folder; nothing is downloaded here",
        )
    if form == "messages":
        rows: list[dict[str, Any]] = [{"messages": each} for each in conversations]
    else:
        rows = [{"prompt": each[:-1], "completion": each[-1:]} for each in conversations]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    datasets.disable_progress_bars()
    level = logging.getLogger("trl").level
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            time_limit(TRL_SECONDS),
        ):
            warnings.simplefilter("ignore")
            trainer = SFTTrainer(
                model,
                args=SFTConfig(
                    output_dir=folder,
                    report_to=[],
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    **{key: config[key] for key in TRL_KEYS if key in config},
                ),
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )
            prepared: Any = trainer.train_dataset
            batches = [trainer.data_collator([row]) for row in prepared]
    except TimeoutError:
        raise DstoolsError("TRL does not come to an end with this chat template") from None
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"TRL refuses: {type(error).__name__}: {reason}") from error
    finally:
        datasets.enable_progress_bars()
        logging.getLogger("trl").setLevel(level)
    return [Trained(b["input_ids"][0].tolist(), b["labels"][0].tolist()) for b in batches]


# ------------------------------------------------------------------------------- LLaMA-Factory


class Slots(NamedTuple):
    """A registered template of LLaMA-Factory."""

    prefix: str
    system: str
    user: str
    assistant: str
    default_system: str = ""
    thinks: bool = False  # ReasoningTemplate


CHATML = Slots(
    "",
    "<|im_start|>system\n{}<|im_end|>\n",
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "{}<|im_end|>\n",
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
DEEPSEEK = Slots(
    "<｜begin▁of▁sentence｜>", "{}", "<｜User｜>{}<｜Assistant｜>", "{}<｜end▁of▁sentence｜>"
)
LLAMA_FACTORY = {
    "chatml": CHATML,
    "qwen": CHATML._replace(
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "qwen3": CHATML._replace(thinks=True),
    "qwen3_nothink": CHATML,
    "llama3": Slots(
        "<|begin_of_text|>",
        HEADER.format("system") + "{}<|eot_id|>",
        HEADER.format("user") + "{}<|eot_id|>" + HEADER.format("assistant"),
        "{}<|eot_id|>",
    ),
    "deepseek3": DEEPSEEK,
    "deepseekr1": DEEPSEEK._replace(thinks=True),
}


def llama_factory_row(tokenizer: Any, config: dict[str, Any], conversation: Messages) -> Trained:
    """Derive what LLaMA-Factory's supervised processor makes of a conversation.

    Its own templates, not the tokenizer's; each pair of turns cut to what is left of cutoff_len.
    """
    name = config.get("template")
    if name not in LLAMA_FACTORY:
        raise DstoolsError(
            f"template: {printable(str(name))} of LLaMA-Factory is not known here",
            f"known are {', '.join(LLAMA_FACTORY)}",
        )
    slots = LLAMA_FACTORY[name]
    system = config.get("default_system") or slots.default_system
    turns = conversation
    if turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
    cutoff = int(config.get("cutoff_len", 2048))
    row = Trained([], [])
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    for n, (asked, answered) in enumerate(pairs):
        head = slots.prefix + (slots.system.replace("{}", system) if system else "")
        source = (head if n == 0 else "") + slots.user.replace("{}", asked["content"])
        said = _thought(slots, config, answered["content"])
        target = slots.assistant.replace("{}", said)
        source_ids = tokenizer.encode(source, add_special_tokens=False)
        target_ids = tokenizer.encode(target, add_special_tokens=False)
        left = cutoff - len(row.ids)
        if left <= 0:
            break
        source_length, target_length = _shares(len(source_ids), len(target_ids), left)
        source_ids, target_ids = source_ids[:source_length], target_ids[:target_length]
        is_history = bool(config.get("mask_history")) and n < len(pairs) - 1
        row.ids.extend(source_ids + target_ids)
        masked = [IGNORED] * len(source_ids)
        row.labels.extend(source_ids if config.get("train_on_prompt") else masked)
        row.labels.extend([IGNORED] * len(target_ids) if is_history else target_ids)
    return row


def _thought(slots: Slots, config: dict[str, Any], content: str) -> str:
    """Return an answer as a template that thinks has it: enable_thinking false takes the trace out."""
    if not slots.thinks:
        return content
    if config.get("enable_thinking", True) is False:
        before, opened, rest = content.partition(OPEN)
        content = (before + rest.partition(CLOSE)[2]).lstrip("\n") if opened else content
    has_tags = OPEN in content or CLOSE in content
    return content if has_tags else f"{OPEN}\n\n{CLOSE}\n\n{content}"


def _shares(source: int, target: int, cutoff: int) -> tuple[int, int]:
    """Return how many tokens of both stay: infer_seqlen."""
    if target * 2 < cutoff:
        most = cutoff
    elif source * 2 < cutoff:
        most = cutoff - source
    else:
        most = int(cutoff * (target / (source + target)))
    kept = min(most, target)
    return min(max(cutoff - kept, 0), source), kept


# -------------------------------------------------------------------------------------- axolotl


def axolotl_entries(config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the settings that hold for each entry of `datasets`, by its place there.

    roles_to_train, train_on_eos and train_on_eot are an entry's own; a chat template is the entry's, or the
    one at the top; all else stands at the top. Entries of other types than chat_template are left out.
    A config without `datasets` has one entry of defaults. Raises DstoolsError where none is left.
    """
    top = {key: value for key, value in config.items() if key not in AXOLOTL_OF_ENTRIES}
    every = _datasets(config) or [{}]
    found = {}
    for n, entry in enumerate(every):
        if _is_conversation(entry):
            found[n] = top | {key: entry[key] for key in AXOLOTL_OF_ENTRIES if key in entry}
            if entry.get("chat_template") or entry.get("chat_template_jinja"):
                found[n] |= {
                    key: entry.get(key) for key in ("chat_template", "chat_template_jinja")
                }
    if not found:
        raise DstoolsError(
            f"datasets: type {printable(str(every[0]['type']))} of axolotl is not known here",
            "known is chat_template",
        )
    return found


def _datasets(config: dict[str, Any]) -> list[dict[str, Any]]:
    entries = _list(config, "datasets")
    if not all(isinstance(entry, dict) for entry in entries):
        raise DstoolsError("datasets: an entry holds no keys", "write it as axolotl's examples do")
    return entries


def _list(config: dict[str, Any], key: str) -> list[Any]:
    """Return the list under a key; [] where there is none."""
    found = config.get(key)
    if not isinstance(found, list | None):
        raise DstoolsError(f"{key}: is no list", "axolotl would refuse it, too")
    return found or []


def _is_conversation(entry: dict[str, Any]) -> bool:
    return bool(entry.get("type", "chat_template") == "chat_template")


def axolotl_template(tokenizer: Any, config: dict[str, Any]) -> None:
    """Give a tokenizer the chat template that `chat_template` and `chat_template_jinja` name."""
    jinja = config.get("chat_template_jinja")
    name = str(config.get("chat_template") or ("jinja" if jinja else "tokenizer_default"))
    if name == "jinja" and isinstance(jinja, str):
        tokenizer.chat_template = jinja if "{" in jinja else _read(jinja)
    elif not (name.startswith("tokenizer_default") and tokenizer.chat_template):
        raise DstoolsError(
            f"chat_template: {printable(name)} of axolotl is not known here",
            "known are tokenizer_default, of a tokenizer that has one, and jinja with chat_template_jinja",
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        message = f"chat_template_jinja: {printable(path)}: {error.strerror}"
        raise DstoolsError(message, "is the path right, from here?") from None


def axolotl_row(tokenizer: Any, config: dict[str, Any], conversation: Messages) -> Trained | None:
    """Derive what axolotl's chat_template strategy makes of a conversation; None: the row is dropped.

    config: of one entry of `datasets`; the tokenizer has its template. A turn is found as what changes in
    the ids when its content is another one. The first of eot_tokens, by default the end-of-sequence token,
    within three tokens behind it is trained on, whatever the template ends a turn with.
    """
    ids = _rendered(tokenizer, conversation)
    labels = [IGNORED] * len(ids)
    roles = [AXOLOTL_ROLES.get(role, role) for role in _list(config, "roles_to_train")]
    if config.get("roles_to_train") is None:
        roles = ["assistant"]
    eos = [tokenizer.eos_token_id]
    eot = tokenizer.convert_tokens_to_ids(_list(config, "eot_tokens")) or eos
    on_eos = config.get("train_on_eos") or "turn"
    on_eot = config.get("train_on_eot") or on_eos
    turns = []  # is it trained on, start, end
    for n, turn in enumerate(conversation):
        trains = bool(config.get("train_on_inputs")) or turn["role"] in roles
        if trains or "all" in (on_eos, on_eot):
            turns.append((trains, *_find_turn(tokenizer, conversation, n)))
    for trains, start, end in turns:
        if trains:
            labels[start:end] = ids[start:end]
    for ends, when in ((eot, on_eot), (eos, on_eos)):
        near = []  # the token that ends a turn, and whether the turn is trained on
        for trains, _, end in turns:
            found = [at for at in range(end, min(end + 4, len(ids))) if ids[at] in ends]
            near += [(at, trains) for at in found[:1]]
        for at, trains in near[-1:] if when == "last" else near:
            if when in ("all", "last") or (when == "turn" and trains):
                labels[at] = ids[at]
    length = int(config.get("sequence_len") or AXOLOTL_LENGTH)
    if len(ids) > length:
        if str(config.get("excess_length_strategy") or "drop").lower() != "truncate":
            return None
        return Trained(ids[:length], labels[:length])
    return Trained(ids, labels)


def _find_turn(tokenizer: Any, conversation: Messages, n: int) -> tuple[int, int]:
    """Return where the ids of a turn start and end."""
    dummy = {"role": conversation[n]["role"], "content": "[[dummy_message]]"}
    other = _rendered(tokenizer, [*conversation[:n], dummy])
    full = _rendered(tokenizer, conversation[: n + 1])
    shorter = min(len(other), len(full))
    start = next((i for i in range(shorter) if other[i] != full[i]), 0)
    same = next((i for i in range(shorter) if other[-1 - i] != full[-1 - i]), shorter)
    return (start, len(full) - same) if len(full) - same > start else (0, 0)


def _rendered(tokenizer: Any, conversation: Messages) -> list[int]:
    ids: list[int] = tokenizer.encode(chat_text(tokenizer, conversation), add_special_tokens=False)
    return ids
