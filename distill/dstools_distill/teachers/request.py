"""The request for one sample from an OpenAI-compatible server, and the key that names it."""

import json
from hashlib import sha256
from typing import Any

from dstools_converters.model.reasoning import OPEN
from dstools_distill.recipe.settings import Generate
from dstools_distill.teachers.teacher import Ask


def request(settings: Generate, ask: Ask) -> dict[str, Any]:
    """Return the body of a chat completion; samples of a prompt differ only in the seed.

    A prefilled <think> is the start of an assistant's message that the server must continue. vLLM
    and SGLang need continue_final_message for that, vLLM and llama.cpp no generation prompt, and
    DeepSeek's API prefix, at its /beta address; each ignores the keys of the others. Sources: vLLM,
    OpenAI-compatible server; SGLang, protocol.py; llama.cpp, tools/server/README.md;
    api-docs.deepseek.com, Chat Prefix Completion.
    """
    messages: list[dict[str, Any]] = list(ask.prompt["messages"])
    body = {
        "model": settings.model,
        "messages": messages,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed + ask.sample,
    }
    if settings.prefill_think:
        messages.append({"role": "assistant", "content": f"{OPEN}\n", "prefix": True})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def request_key(body: dict[str, Any]) -> str:
    """Return 32 hexadecimal digits of the sha256 of the body of a request.

    Of the whole body, not of a list of keys: with a key that is left out, a server's answer to
    another request would be taken for one to this.
    """
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
