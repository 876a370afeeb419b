"""Load a causal language model that is not trained: all of its weights, none of them random."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
)
from transformers.utils import logging

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.layerwise.runner import restored

LOAD_HINT = "a model here is a folder of a causal language model that transformers has code for"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def load_model(model: Path, dtype: torch.dtype, **how: Any) -> Any:
    """Return the model in a folder, in `dtype` but for what its code keeps in float32.

    FP8 blocks are widened by our own reader, in memory that holds the model twice for a while. transformers
    5.23 takes the block from rows // rows of scales, and so reads 192 rows in two blocks of 128 as two of 96
    (huggingface/transformers#36026); where a GPU knows FP8, it fetches kernels from the Hub instead.
    how: more of from_pretrained's keywords. Raises DstoolsError where the folder does not hold all of a causal
    language model, or FP8 that we do not read.
    """
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # it names what MTP layers have, and what we raise
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
        auto: Any = AutoModelForCausalLM
        kinds: Any = MODEL_FOR_CAUSAL_LM_MAPPING
        common: dict[str, Any] = how | {
            "config": config,
            "dtype": dtype,
            "output_loading_info": True,
        }
        if getattr(config, "quantization_config", None) is None:
            loaded, info = auto.from_pretrained(
                model, trust_remote_code=False, local_files_only=True, **common
            )
        else:
            weights = _widened(model, dtype)
            del config.quantization_config
            kind = kinds[type(config)]  # auto itself insists on a folder
            loaded, info = kind.from_pretrained(None, state_dict=weights, **common)
            if (model / "generation_config.json").exists():
                loaded.generation_config = GenerationConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"{model}: cannot be loaded: {reason}", LOAD_HINT) from error
    finally:
        logging.set_verbosity(said)
    if lost := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise DstoolsError(
            f"{model}: {len(lost)} weights are missing or of another shape, such as {lost[0]}",
            "they would be random numbers; is the folder whole?",
        )
    return loaded


def _widened(model: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all weights of a folder, those in FP8 as code times scale in `dtype`, the others as they are."""
    found = {}
    with open_checkpoint(model) as checkpoint:
        inventory = require_sound(checkpoint)
        for info, _ in inventory.weights():
            kept = dtype if inventory.is_quantized(info) else DTYPES[info.dtype]
            found[info.name] = restored(inventory, info).to(kept)
    return found
