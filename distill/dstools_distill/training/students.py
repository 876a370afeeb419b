"""The student before it is trained: its weights, what of them is trained, and by which optimizer."""

from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.integrations import deepspeed as deepspeed_integration

from dstools_converters.errors import DstoolsError, printable
from dstools_distill.recipe.settings import Lora, Training
from dstools_distill.training.muon import Muon


def load_student(
    settings: Training, model: Path | None, init: dict[str, Any] | None, tokenizer: Any
) -> Any:
    """Return the model to train: from a folder, or random from the config keys of `init`.

    float32, or bfloat16 where that is the precision. Random weights are a function of `settings.seed`, special
    token ids come from the tokenizer, vocab_size is its length unless given. Raises DstoolsError where
    the folder holds no causal language model that can be trained, or one too small for the tokenizer.
    """
    if (model is None) == (init is None):
        raise ValueError("exactly one of model and init must be given")
    how: dict[str, Any] = {
        "dtype": torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
        "attn_implementation": settings.attention,
    }
    where = f"{model or 'student.init'}"
    try:
        config = AutoConfig.from_pretrained(model) if model else _new_config(init or {}, tokenizer)
        if getattr(config, "quantization_config", None) is not None:
            raise DstoolsError(f"{where}: is quantized", "train the model before quantization")
        if settings.context:
            config.max_position_embeddings = settings.context
        set_seed(settings.seed)
        student: Any = (
            AutoModelForCausalLM.from_pretrained(model, config=config, **how)
            if model
            else _new_model(config, how)
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
        reason = printable(" ".join(str(error).split())[:300])
        raise DstoolsError(f"{where}: cannot be loaded: {reason}", LOAD_HINT) from error
    rows = config.get_text_config().vocab_size
    if rows < len(tokenizer):
        raise DstoolsError(
            f"{where}: vocab_size is {rows}, the tokenizer has {len(tokenizer)} tokens",
            "give the student the tokenizer that it was made for",
        )
    _check_tokenizer(config, tokenizer)
    return student


def require_room(student: Any, tokens: int, key: str) -> None:
    """Raise DstoolsError where an answer of so many tokens leaves no position for its prompt."""
    positions = student.config.get_text_config().max_position_embeddings
    if tokens >= positions:
        raise DstoolsError(
            f"{key}: {tokens} tokens leave no room for a prompt in the student's {positions} positions",
            f"lower it, or give the student more: {key.partition('.')[0]}.context",
        )


LOAD_HINT = "a student is a causal language model that transformers has code for"


def _check_tokenizer(config: Any, tokenizer: Any) -> None:
    """Raise DstoolsError unless the tokenizer is read back as it is beside this config.

    AutoTokenizer, and all that serves a model with it, puts Qwen2's in the place of any other where the
    config says qwen2: the words stay, the cuts between them change.
    """
    with TemporaryDirectory() as name:
        config.save_pretrained(name)
        tokenizer.save_pretrained(name)
        other = AutoTokenizer.from_pretrained(name)
    for text in PROBES:
        ids, read = (each.encode(text, add_special_tokens=False) for each in (tokenizer, other))
        if ids != read:
            raise DstoolsError(
                f"beside a {config.model_type} config, transformers reads this tokenizer as "
                f"{type(other).__name__}: {text!r} becomes {len(read)} tokens, not {len(ids)}",
                'give student.init another model_type, such as "llama"',
            )


PROBES = (
    "12 + 345 = 357\n\nState the final answer.",
    "def f(x):\n    return x ** 2  # naïve ﬁ 数学",
    "<think>\n7 x 8 = 56, wait\n</think>\n\n\\boxed{56}\t\r\n",
)


def _new_config(init: dict[str, Any], tokenizer: Any) -> Any:
    if "model_type" not in init:
        raise DstoolsError("student.init: has no model_type", 'such as model_type = "qwen2"')
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **init})
    known = type(config)().to_dict()
    for key in init:
        if key not in known and key not in config.attribute_map:
            near = get_close_matches(key, known, 1)
            raise DstoolsError(
                f"student.init: {printable(key)}: a {config.model_type} config has no such key",
                f"did you mean {near[0]}?" if near else "transformers would ignore it",
            )
    return config


def _new_model(config: Any, how: dict[str, Any]) -> Any:
    """Return a model with random weights, the same ones in every way of running.

    ZeRO-3 would spread them while they are drawn, and draw others; here they are spread later.
    """
    kept = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        return AutoModelForCausalLM.from_config(config, **how)  # type: ignore[no-untyped-call]
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = kept


def optimizers(settings: Training, model: Any) -> tuple[Any, None]:
    """Return the optimizer and scheduler to hand to a trainer; None where it makes its own."""
    if settings.optimizer != "muon":
        return None, None
    muon = Muon(
        model,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    return muon, None


def lora(settings: Training) -> Any:
    """Return peft's config of the low-rank updates that are asked for, or None."""
    if settings.lora is None:
        return None
    from peft import LoraConfig

    asked: Lora = settings.lora
    targets: str | list[str] = list(asked.targets)
    return LoraConfig(
        r=asked.rank,
        lora_alpha=asked.alpha,
        lora_dropout=asked.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
