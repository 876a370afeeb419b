"""Loading of causal language models for inference: all weights from the folder, none random."""

import ctypes
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
from dstools_converters.checkpoint.tensors import restored
from dstools_converters.errors import DstoolsError, printable

LOAD_HINT = "name the folder of a causal language model that transformers supports"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
LARGE = (1 << 31) - 1  # bytes: the largest int


def load_model(model: Path, dtype: torch.dtype, **options: Any) -> Any:
    """Return the model in a folder, in `dtype` except for what its code keeps in float32.

    options: more keywords of from_pretrained. FP8 blocks are widened by our own reader, which holds
    the model twice for a while: transformers 5.23 takes the block size from rows // rows of scales,
    so that it reads 192 rows in two blocks of 128 as two of 96 (huggingface/transformers#36026),
    and fetches kernels from the Hub if the GPU has FP8. Raises DstoolsError where the folder does
    not hold a whole causal language model, holds FP8 in a format that we do not read, or a head
    that differs from the embeddings that it is tied to.
    """
    verbosity = logging.get_verbosity()
    # its warnings are of MTP layers and of errors that are raised here
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
        auto: Any = AutoModelForCausalLM
        classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING
        common = options | {"config": config, "dtype": dtype, "output_loading_info": True}
        if getattr(config, "quantization_config", None) is None:
            loaded, info = auto.from_pretrained(
                model, trust_remote_code=False, local_files_only=True, **common
            )
        else:
            weights = _widened(model, dtype)
            del config.quantization_config
            model_class = classes[type(config)]  # auto itself requires a folder
            loaded, info = model_class.from_pretrained(None, state_dict=weights, **common)
            if (model / "generation_config.json").exists():
                loaded.generation_config = GenerationConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        reason = printable(str(error).strip().split("\n")[0])
        raise DstoolsError(f"{model}: cannot be loaded: {reason}", LOAD_HINT) from error
    finally:
        logging.set_verbosity(verbosity)
    if lost := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise DstoolsError(
            f"{model}: {len(lost)} weights are missing or have another shape, such as {lost[0]}",
            "they would be random numbers; is the folder complete?",
        )
    require_tied(model, loaded)
    return loaded


def require_tied(folder: Path, model: Any) -> None:
    """Raise DstoolsError where the config ties the output head, and the loaded head is another.

    transformers 5 ties no weights that differ; other engines drop such a head.
    """
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if is_tied and head.weight is not embeddings.weight:
        raise DstoolsError(
            f"{folder}: its output head differs from its embeddings, though config.json has "
            "tie_word_embeddings: true; engines differ in which they use",
            "set it to false to use the head, or remove the head's tensor, in shards and index",
        )


def _widened(model: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all weights of a folder: FP8 as code times scale in `dtype`, others unchanged."""
    weights = {}
    with open_checkpoint(model) as checkpoint:
        inventory = require_sound(checkpoint)
        for info, _ in inventory.weights():
            kept = dtype if inventory.is_quantized(info) else DTYPES[info.dtype]
            weights[info.name] = restored(inventory, info).to(kept)
    return weights


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor; elsewhere do nothing.

    By default a tensor over some MiB is mapped when it is made and unmapped when it is freed, and
    the system zeroes its pages again each time: a fifth to a quarter of the time that training and
    sampling small models take on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, LARGE)
