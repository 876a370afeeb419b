"""The rows that axolotl makes of conversations: derived from its source, not run.

Source: axolotl-ai-cloud/axolotl, src/axolotl/prompt_strategies/chat_template.py, as of 2026.
"""

from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.tokenizer import Messages, chat_text
from dstools_distill.tokens.invariant import IGNORED, Trained

SEQUENCE_LEN = 512  # where a config has no sequence_len
ROLES = {"human": "user", "gpt": "assistant"}  # other names of roles
OF_ENTRIES = ("roles_to_train", "train_on_eos", "train_on_eot")  # ignored outside `datasets`
TELLING = ("base_model", "sequence_len", "sample_packing")  # the first is required
UNREAD = (  # keys that affect ids, masks or length too, but are ignored here
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
)
UNREAD_OF_ENTRIES = (  # the same, in an entry of `datasets`
    "drop_system_message",
    "field_thinking",
    "message_field_training",
    "message_field_training_detail",
    "message_property_mappings",
    "roles",
    "split_thinking",
    "template_thinking_key",
)


def unread_of_entries(config: dict[str, Any]) -> list[str]:
    """Return what affects ids, masks or length in `datasets`, but is ignored here."""
    keys = []
    for n, entry in enumerate(_datasets(config)):
        keys += [f"datasets[{n}].{key}" for key in UNREAD_OF_ENTRIES if entry.get(key)]
        keys += [f"datasets[{n}].type"] if not _is_conversation(entry) else []
    return keys


def axolotl_entries(config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the settings that apply to each entry of `datasets`, by the entry's index.

    roles_to_train, train_on_eos and train_on_eot are read from the entry alone; a chat template
    from the entry or else from the top level; all other keys from the top level. Entries of types
    other than chat_template are left out. A config without `datasets` has one entry of defaults.
    Raises DstoolsError if no entry is left.
    """
    top = {key: value for key, value in config.items() if key not in OF_ENTRIES}
    entries = _datasets(config) or [{}]
    settings = {}
    for n, entry in enumerate(entries):
        if _is_conversation(entry):
            settings[n] = top | {key: entry[key] for key in OF_ENTRIES if key in entry}
            if entry.get("chat_template") or entry.get("chat_template_jinja"):
                settings[n] |= {
                    key: entry.get(key) for key in ("chat_template", "chat_template_jinja")
                }
    if not settings:
        raise DstoolsError(
            f"datasets: type {printable(str(entries[0]['type']))} of axolotl is not known here",
            "known is chat_template",
        )
    return settings


def _datasets(config: dict[str, Any]) -> list[dict[str, Any]]:
    entries = _list(config, "datasets")
    if not all(isinstance(entry, dict) for entry in entries):
        raise DstoolsError(
            "datasets: an entry is not a mapping", "write it as in axolotl's examples"
        )
    return entries


def _list(config: dict[str, Any], key: str) -> list[Any]:
    """Return the list under a key; [] if the key is missing."""
    value = config.get(key)
    if not isinstance(value, list | None):
        raise DstoolsError(f"{key}: is not a list", "axolotl would refuse it too")
    return value or []


def _is_conversation(entry: dict[str, Any]) -> bool:
    return bool(entry.get("type", "chat_template") == "chat_template")


def set_axolotl_template(tokenizer: Any, config: dict[str, Any]) -> None:
    """Give a tokenizer the chat template that `chat_template` and `chat_template_jinja` name."""
    jinja = config.get("chat_template_jinja")
    name = str(config.get("chat_template") or ("jinja" if jinja else "tokenizer_default"))
    if name == "jinja" and isinstance(jinja, str):
        tokenizer.chat_template = jinja if "{" in jinja else _read(jinja)
    elif not (name.startswith("tokenizer_default") and tokenizer.chat_template):
        raise DstoolsError(
            f"chat_template: {printable(name)} of axolotl is not known here",
            "known are tokenizer_default, if the tokenizer has a template, and jinja with "
            "chat_template_jinja",
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        message = f"chat_template_jinja: {printable(path)}: {error.strerror}"
        raise DstoolsError(message, "is the path right, relative to this folder?") from None


def axolotl_row(tokenizer: Any, config: dict[str, Any], conversation: Messages) -> Trained | None:
    """Return the row that the chat_template strategy makes of a conversation; None if it drops it.

    config: the settings of one entry, see `axolotl_entries`; the tokenizer must have its template.
    A turn is the part of the ids that changes with its content. The first of eot_tokens (default:
    the end-of-sequence token) within three tokens after a turn is trained on, even if the template
    ends the turn with another token.
    """
    ids = _rendered(tokenizer, conversation)
    labels = [IGNORED] * len(ids)
    roles = [ROLES.get(role, role) for role in _list(config, "roles_to_train")]
    if config.get("roles_to_train") is None:
        roles = ["assistant"]
    eos = [tokenizer.eos_token_id]
    eot = tokenizer.convert_tokens_to_ids(_list(config, "eot_tokens")) or eos
    on_eos = config.get("train_on_eos") or "turn"
    on_eot = config.get("train_on_eot") or on_eos
    turns = []  # whether it is trained on, start, end
    for n, turn in enumerate(conversation):
        trains = bool(config.get("train_on_inputs")) or turn["role"] in roles
        if trains or "all" in (on_eos, on_eot):
            turns.append((trains, *_find_turn(tokenizer, conversation, n)))
    for trains, start, end in turns:
        if trains:
            labels[start:end] = ids[start:end]
    for tokens, when in ((eot, on_eot), (eos, on_eos)):
        ends = []  # the place of the token that ends a turn, and whether the turn is trained on
        for trains, _, end in turns:
            near = [at for at in range(end, min(end + 4, len(ids))) if ids[at] in tokens]
            ends += [(at, trains) for at in near[:1]]
        for at, trains in ends[-1:] if when == "last" else ends:
            if when in ("all", "last") or (when == "turn" and trains):
                labels[at] = ids[at]
    length = int(config.get("sequence_len") or SEQUENCE_LEN)
    if len(ids) > length:
        if str(config.get("excess_length_strategy") or "drop").lower() != "truncate":
            return None
        return Trained(ids[:length], labels[:length])
    return Trained(ids, labels)


def _find_turn(tokenizer: Any, conversation: Messages, n: int) -> tuple[int, int]:
    """Return start and end of turn `n` in the ids; (0, 0) if the template leaves it out."""
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
