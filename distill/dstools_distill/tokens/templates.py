"""How a student is spoken to: its tokenizer, its chat template, and what that asks of an answer.

Prompts are what serving makes of them, the template with its generation prompt; answers are never put
through a template, which may cut the trace out of them.
"""

from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.model.tokenizer import chat_text
from dstools_converters.model.tokenizer import load_tokenizer as read_tokenizer
from dstools_distill.records import OPEN

CHATML = ("<|im_start|>", "<|im_end|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {  # what chat_templates/NAME.jinja writes; the last one ends an answer
    "qwen2.5": CHATML,
    "qwen3": CHATML,
    "llama3": LLAMA,
    "r1-distill": DEEPSEEK,
    "deepseek-v3": DEEPSEEK,
    "chatml": CHATML,
}
ANSWER = "the answer of the probe"  # no template has it
PROBE = [{"role": "user", "content": "7"}]


def load_tokenizer(folder: Path, template: str = "") -> Any:
    """Return the fast tokenizer in a folder; none of the folder's code is run.

    `template`, a name in FAMILIES, puts that family's chat template in place of its own, with the token
    that ends an answer there as the end-of-sequence token. Raises DstoolsError where the tokenizer cannot
    be read, or lacks a token of the template.
    """
    tokenizer = read_tokenizer(folder)
    if not tokenizer.is_fast:
        raise DstoolsError(
            f"{folder}: its tokenizer is a slow one",
            "load it with AutoTokenizer and save_pretrained it once: that writes tokenizer.json",
        )
    if template:
        if template not in FAMILIES:
            raise DstoolsError(
                f"template {printable(template)!r} is not known", f"one of {', '.join(FAMILIES)}"
            )
        for token in FAMILIES[template]:
            if tokenizer.encode(token, add_special_tokens=False) not in _added(tokenizer):
                raise DstoolsError(
                    f"{folder}: {token} of the template {template} is not one token there",
                    "choose the template that this model was trained with, or add the token to "
                    "tokenizer and embedding",
                )
        file = Path(__file__).parent / "chat_templates" / f"{template}.jinja"
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        tokenizer.eos_token = FAMILIES[template][-1]
    return tokenizer


def _added(tokenizer: Any) -> list[list[int]]:
    """Return the ids that texts of their own, such as <|im_end|>, become: [n][1]."""
    return [[number] for number in tokenizer.added_tokens_decoder]


def prompt_text(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Return what serving shows the model: the chat template with its generation prompt.

    Raises DstoolsError where the tokenizer has no template, or it refuses or takes more than 10 s.
    """
    if not tokenizer.chat_template:
        raise DstoolsError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template",
            f"give it one in tokenizer_config.json; a student's may be named: "
            f"student.template = {' | '.join(FAMILIES)}",
        )
    return chat_text(tokenizer, messages, add_generation_prompt=True)


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]], prefill: bool = False) -> list[int]:
    """Return the ids of `prompt_text`; the template writes the special tokens, BOS too, itself.

    prefill: begin the answer with <think> and a newline, unless the template does.
    """
    text = prompt_text(tokenizer, messages)
    if prefill and not opens_think(text):
        text += f"{OPEN}\n"
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def opens_think(text: str) -> bool:
    """Return whether a prompt ends in an opened think block."""
    return text.rstrip().endswith(OPEN)


def end_token_id(tokenizer: Any) -> int:
    """Return the token that the chat template writes after an answer."""
    return answer_form(tokenizer).end


class Form(NamedTuple):
    """What a template wants around an answer that has no trace."""

    plain: str  # between the generation prompt and the answer
    end: int  # the token behind it


def answer_form(tokenizer: Any) -> Form:
    """Return what belongs around an answer, read off a rendered conversation.

    Where the generation prompt opens the think block, it is closed, empty; where the template writes an
    empty block (Qwen3), so do we; else nothing stands before the answer. Raises DstoolsError where the
    template does not write the answer once and one added token behind it.
    """
    prompt = prompt_text(tokenizer, PROBE)
    text = chat_text(tokenizer, [*PROBE, {"role": "assistant", "content": ANSWER}])
    before, found, after = text.partition(ANSWER)
    if not found or ANSWER in after:
        raise DstoolsError("the chat template does not write an answer just once", TEMPLATE_HINT)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)
    if not after.strip():
        raise DstoolsError(
            "the chat template writes no end token behind an answer: the student would never stop",
            TEMPLATE_HINT,
        )
    if ids[:1] not in _added(tokenizer):
        shown = printable(after.strip())
        raise DstoolsError(
            f"the chat template ends an answer with {shown}, which is not one token here",
            TEMPLATE_HINT,
        )
    if opens_think(prompt):
        plain = "\n</think>\n\n" if prompt.endswith("\n") else "\n\n</think>\n\n"
    else:
        plain = before.removeprefix(prompt) if before.startswith(prompt) else ""
    return Form(plain, ids[0])


TEMPLATE_HINT = f"mend chat_template.jinja, or set student.template = {' | '.join(FAMILIES)}"
