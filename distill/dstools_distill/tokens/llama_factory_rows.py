"""The rows that LLaMA-Factory makes of conversations: derived from its source, not run.

Source: hiyouga/LLaMA-Factory, src/llamafactory/data/{template,processor/supervised,
processor/processor_utils}.py, as of 2026.
"""

from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.reasoning import CLOSE, OPEN
from dstools_converters.model.tokenizer import Messages
from dstools_distill.tokens.invariant import IGNORED, Trained

CUTOFF_LEN = 2048  # where a config has no cutoff_len
TELLING = ("cutoff_len", "template", "stage", "finetuning_type", "dataset_dir")
UNREAD = (  # keys that affect ids, masks or length too, but are ignored here
    "add_special_tokens",
    "add_tokens",
    "new_special_tokens_config",
    "preserve_thinking",
    "split_special_tokens",
    "tokenized_path",
    "tool_format",
)


class Slots(NamedTuple):
    """A registered template of LLaMA-Factory; {} is the content of a message."""

    prefix: str
    system: str
    user: str
    assistant: str
    default_system: str = ""
    thinks: bool = False  # a ReasoningTemplate


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
TEMPLATES = {
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
    """Return the row that the supervised processor makes of a conversation.

    It uses templates of its own, not the tokenizer's, and cuts each pair of turns to what is left
    of cutoff_len. Raises DstoolsError for a template that is not in TEMPLATES.
    """
    name = config.get("template")
    if name not in TEMPLATES:
        raise DstoolsError(
            f"template: {printable(str(name))} of LLaMA-Factory is not known here",
            f"known are {', '.join(TEMPLATES)}",
        )
    slots = TEMPLATES[name]
    system = config.get("default_system") or slots.default_system
    turns = conversation
    if turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
    cutoff = int(config.get("cutoff_len", CUTOFF_LEN))
    row = Trained([], [])
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    for n, (question, answer) in enumerate(pairs):
        head = slots.prefix + (slots.system.replace("{}", system) if system else "")
        source = (head if n == 0 else "") + slots.user.replace("{}", question["content"])
        target = slots.assistant.replace("{}", _thought(slots, config, answer["content"]))
        source_ids = tokenizer.encode(source, add_special_tokens=False)
        target_ids = tokenizer.encode(target, add_special_tokens=False)
        left = cutoff - len(row.ids)
        if left <= 0:
            break
        source_length, target_length = shares(len(source_ids), len(target_ids), left)
        source_ids, target_ids = source_ids[:source_length], target_ids[:target_length]
        is_history = bool(config.get("mask_history")) and n < len(pairs) - 1
        row.ids.extend(source_ids + target_ids)
        masked = [IGNORED] * len(source_ids)
        row.labels.extend(source_ids if config.get("train_on_prompt") else masked)
        row.labels.extend([IGNORED] * len(target_ids) if is_history else target_ids)
    return row


def _thought(slots: Slots, config: dict[str, Any], content: str) -> str:
    """Return an answer as a ReasoningTemplate writes it; without enable_thinking the trace goes."""
    if not slots.thinks:
        return content
    if config.get("enable_thinking", True) is False:
        before, opener, rest = content.partition(OPEN)
        content = (before + rest.partition(CLOSE)[2]).lstrip("\n") if opener else content
    has_tags = OPEN in content or CLOSE in content
    return content if has_tags else f"{OPEN}\n\n{CLOSE}\n\n{content}"


def shares(source: int, target: int, cutoff: int) -> tuple[int, int]:
    """Return how many tokens of source and target are kept: infer_seqlen."""
    if target * 2 < cutoff:
        most = cutoff
    elif source * 2 < cutoff:
        most = cutoff - source
    else:
        most = int(cutoff * (target / (source + target)))
    kept = min(most, target)
    return min(max(cutoff - kept, 0), source), kept
