"""Quantizations that are not read: their names, and the files that describe them.

Sources: ModelOpt, export/convert_hf_config.py (`hf_quant_config.json`, and `quant_algo` in a
`quantization_config` without quant_method); vLLM, `get_config_filenames` of its quantizations.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import strict_json

# of ModelOpt, AutoGPTQ and AutoAWQ
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
MAX_BYTES = 1 << 20  # ModelOpt lists modules one by one for mixed precision
HINT = "start from the BF16 model that it was made from"


def quantization_name(block: Any) -> str:
    """Return what a `quantization_config` calls its quantization, "" where it has no name."""
    if not isinstance(block, dict):
        return ""
    method, producer = block.get("quant_method"), block.get("producer")
    is_modelopt = "quant_algo" in block or str(method).startswith("modelopt")
    if is_modelopt or (isinstance(producer, dict) and producer.get("name") == "modelopt"):
        return f"ModelOpt {printable(str(block.get('quant_algo') or ''))}".rstrip()
    return "" if method is None else f"quant_method {printable(repr(method))}"


def kept_beside(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (file, key, entries) of the lists of kept modules in files beside config.json."""
    for name, block in _blocks(folder):
        for key in ("exclude_modules", "modules_to_not_convert"):  # of ModelOpt, AutoAWQ
            entries = block.get(key) if isinstance(block, dict) else None
            if isinstance(entries, list):
                yield name, key, [str(entry) for entry in entries]


def _blocks(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the files beside config.json that describe a quantization, and what they hold."""
    for name in QUANTIZATION_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
            table = strict_json(content)
        except (OSError, ValueError, RecursionError):
            table = None
        yield name, table.get("quantization", table) if isinstance(table, dict) else None


def refuse_quantization_file(folder: Path) -> None:
    """Raise DstoolsError where a file beside config.json describes the quantization."""
    for name, block in _blocks(folder):
        quantization = quantization_name(block) or "this quantization"
        raise DstoolsError(f"{name}: {quantization} is not supported", HINT)
