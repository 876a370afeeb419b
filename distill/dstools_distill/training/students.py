"""Student before training: its weights, which of them are trained, and by which optimizer."""

import json
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.integrations import deepspeed as deepspeed_integration

from dstools_converters.errors import DstoolsError, printable
from dstools_distill.loading import require_tied
from dstools_distill.recipe.settings import Lora, Training
from dstools_distill.training.muon import Muon
from dstools_distill.training.untrained import without_mtp_warning


def load_student(
    settings: Training, model: Path | None, init: dict[str, Any] | None, tokenizer: Any
) -> Any:
    """Return the model to train: from a folder, or random from the config keys of `init`.

    Weights are bfloat16 if that is the precision, else float32. Random ones are a function of
    `settings.seed`; special token ids come from the tokenizer, and vocab_size unless given.
    Raises DstoolsError where the folder does not hold a trainable causal language model, or one too
    small for the tokenizer, or one whose head is not the one that its config ties.
    """
    if (model is None) == (init is None):
        raise ValueError("exactly one of model and init must be given")
    options: dict[str, Any] = {
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
        with without_mtp_warning(config):
            student: Any = (
                AutoModelForCausalLM.from_pretrained(model, config=config, **options)
                if model
                else _new_model(config, options)
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
        reason = printable(" ".join(str(error).split())[:300])
        raise DstoolsError(f"{where}: cannot be loaded: {reason}", LOAD_HINT) from error
    if model:
        require_tied(model, student)
    rows = config.get_text_config().vocab_size
    if rows < len(tokenizer):
        raise DstoolsError(
            f"{where}: vocab_size is {rows}, the tokenizer has {len(tokenizer)} tokens",
            "use the tokenizer that the student was made for",
        )
    _check_tokenizer(config, tokenizer)
    return student


def require_room(student: Any, tokens: int, key: str) -> None:
    """Raise DstoolsError where an answer of `tokens` tokens leaves no position for its prompt."""
    positions = student.config.get_text_config().max_position_embeddings
    if tokens >= positions:
        raise DstoolsError(
            f"{key}: {tokens} tokens leave no room for a prompt in {positions} positions",
            f"lower it, or raise the student's positions by {key.partition('.')[0]}.context",
        )


LOAD_HINT = "a student is a causal language model that transformers supports"


def _check_tokenizer(config: Any, tokenizer: Any) -> None:
    """Raise DstoolsError unless AutoTokenizer reads the tokenizer back unchanged with this config.

    For a qwen2 config it loads Qwen2's tokenizer class whatever the files say, and so do servers:
    the vocabulary stays, text is split differently.
    """
    with TemporaryDirectory() as name:
        config.save_pretrained(name)
        tokenizer.save_pretrained(name)
        other = AutoTokenizer.from_pretrained(name)
    for text in PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        read_back = other.encode(text, add_special_tokens=False)
        if ids != read_back:
            raise DstoolsError(
                f"with a {config.model_type} config, transformers reads this tokenizer as "
                f"{type(other).__name__}: {text!r} becomes {len(read_back)} tokens, not {len(ids)}",
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


def _new_model(config: Any, options: dict[str, Any]) -> Any:
    """Return a model with random weights, the same for every value of `parallel`.

    ZeRO-3 would divide them while they are drawn, and draw others; here they are divided later.
    """
    kept = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        return AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = kept


def add_older_rope_keys(path: Path) -> None:
    """Write `rope_theta`, and `rope_scaling` if any, beside `rope_parameters` in a config.json.

    transformers 5 writes the last alone. Older versions, and mistral.rs 0.9.5, look for the former.
    """
    config = json.loads(path.read_text())
    parameters = config.get("rope_parameters") or {}
    if "rope_theta" not in parameters:
        return  # no rotary embedding, or one for each kind of layer, which older keys cannot say
    config["rope_theta"] = parameters["rope_theta"]
    if parameters.get("rope_type", "default") != "default":
        config["rope_scaling"] = {k: v for k, v in parameters.items() if k != "rope_theta"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def optimizers(settings: Training, model: Any) -> tuple[Any, None]:
    """Return the optimizer and scheduler for a trainer; None where it makes its own."""
    if settings.optimizer != "muon":
        return None, None
    muon = Muon(
        model, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    return muon, None


def lora(settings: Training) -> Any:
    """Return peft's config of the low-rank updates, or None without any."""
    if settings.lora is None:
        return None
    from peft import LoraConfig

    table: Lora = settings.lora
    targets: str | list[str] = list(table.targets)
    return LoraConfig(
        r=table.rank,
        lora_alpha=table.alpha,
        lora_dropout=table.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
