"""The chat template of a student: its own, or that of a family that replaces it.

Prompts, and what a template writes around an answer: dstools_converters.model.tokenizer. Answers
are never put through a template, see dstools_converters.model.reasoning.
"""

from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.tokenizer import added_ids
from dstools_converters.model.tokenizer import load_tokenizer as read_tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {  # the tokens that chat_templates/NAME.jinja writes; the last one ends an answer
    "qwen2.5": CHATML,
    "qwen3": CHATML,
    "llama3": LLAMA,
    "r1-distill": DEEPSEEK,
    "deepseek-v3": DEEPSEEK,
    "chatml": CHATML,
}
FOREIGN = (  # control tokens of these and other families, which an answer never spells
    *(token for tokens in (CHATML, DEEPSEEK, LLAMA) for token in tokens),
    *("<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|fim_suffix|>"),  # Qwen, Llama
    *("<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>"),  # Gemma
    *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),  # Mistral
    *("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|end|>"),  # Phi, GLM
    *("<|start|>", "<|channel|>", "<|message|>", "<|return|>"),  # gpt-oss
    *("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "[EOS]"),  # Kimi
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),  # Command
)


def load_tokenizer(folder: Path, template: str = "") -> Any:
    """Return the fast tokenizer in a folder, without running any code of the folder.

    `template`, a name in FAMILIES, replaces its chat template by that family's, and its
    end-of-sequence token by the token that ends an answer there. Raises DstoolsError if the
    tokenizer cannot be read, or lacks a token of the template.
    """
    tokenizer = read_tokenizer(folder)
    if not tokenizer.is_fast:
        raise DstoolsError(
            f"{folder}: has a slow tokenizer, without tokenizer.json",
            "load it with AutoTokenizer and save it with save_pretrained",
        )
    if template:
        if template not in FAMILIES:
            raise DstoolsError(
                f"template {printable(template)!r} is not known",
                f"use one of {', '.join(FAMILIES)}",
            )
        for token in FAMILIES[template]:
            if tokenizer.encode(token, add_special_tokens=False) not in added_ids(tokenizer):
                raise DstoolsError(
                    f"{folder}: {token} of the template {template} is not a single token here",
                    "choose the template that this model was trained with, or add the token to "
                    "the tokenizer and the embedding",
                )
        file = Path(__file__).parent / "chat_templates" / f"{template}.jinja"
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        tokenizer.eos_token = FAMILIES[template][-1]
    return tokenizer
