"""The chat template of a student: its prompts, and what it writes around an answer.

A prompt is what serving renders: the template with its generation prompt. Answers are never put
through a template, see dstools_converters.model.reasoning.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.reasoning import OPEN, opens_think, plain_opening
from dstools_converters.model.tokenizer import chat_text
from dstools_converters.model.tokenizer import load_tokenizer as read_tokenizer

Messages = list[dict[str, str]]
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
ANSWER = "the answer of the probe"  # not part of any template
PROBE = [{"role": "user", "content": "7"}]


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
            if tokenizer.encode(token, add_special_tokens=False) not in _added(tokenizer):
                raise DstoolsError(
                    f"{folder}: {token} of the template {template} is not a single token here",
                    "choose the template that this model was trained with, or add the token to "
                    "the tokenizer and the embedding",
                )
        file = Path(__file__).parent / "chat_templates" / f"{template}.jinja"
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        tokenizer.eos_token = FAMILIES[template][-1]
    return tokenizer


def _added(tokenizer: Any) -> list[list[int]]:
    """Return the id of each added token, such as <|im_end|>, as `encode` returns it: [n][1]."""
    return [[number] for number in tokenizer.added_tokens_decoder]


def prompt_text(tokenizer: Any, messages: Messages) -> str:
    """Return the text that serving shows the model: the template with its generation prompt.

    Raises DstoolsError if the tokenizer has no template, or if the template refuses the messages or
    takes more than 10 s.
    """
    if not tokenizer.chat_template:
        raise DstoolsError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template",
            "add one to tokenizer_config.json, or for a student set "
            f"student.template = {' | '.join(FAMILIES)}",
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


def end_token_id(tokenizer: Any) -> int:
    """Return the id of the token that the chat template writes after an answer."""
    return answer_form(tokenizer).end


class Form(NamedTuple):
    """What a template writes around an answer that has no trace."""

    plain: str  # between the generation prompt and the answer
    end: int  # the token after the answer


def answer_form(tokenizer: Any) -> Form:
    """Return what belongs around an answer, found by rendering a probe.

    `plain` is its `plain_opening`. Raises DstoolsError unless the template
    writes the answer exactly once and one added token after it.
    """
    prompt = prompt_text(tokenizer, PROBE)
    text = chat_text(tokenizer, [*PROBE, {"role": "assistant", "content": ANSWER}])
    before, answer, after = text.partition(ANSWER)
    if not answer or ANSWER in after:
        raise DstoolsError("the chat template does not write an answer exactly once", TEMPLATE_HINT)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)
    if not after.strip():
        raise DstoolsError(
            "the chat template writes no end token after an answer: the student would never stop",
            TEMPLATE_HINT,
        )
    if ids[:1] not in _added(tokenizer):
        shown = printable(after.strip())
        raise DstoolsError(
            f"the chat template ends an answer with {shown}, which is not a single token here",
            TEMPLATE_HINT,
        )
    return Form(plain_opening(prompt, before), ids[0])


TEMPLATE_HINT = f"fix chat_template.jinja, or set student.template = {' | '.join(FAMILIES)}"
