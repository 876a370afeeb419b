"""The recipes that come with dstools: the files of `presets/`, one of them a template for six."""

from importlib.resources import files
from pathlib import Path
from string import Template

from dstools_converters.errors import DstoolsError, printable

PRESETS = files("dstools_distill") / "presets"
# The six students of DeepSeek-R1, arXiv 2501.12948 v2, table 6: base, learning rate, template,
# licence, and context where the base has fewer positions than its traces need (Qwen2.5-Math: 4,096;
# the released students have 131,072)
R1_DISTILL = {
    "qwen-1.5b": ("Qwen/Qwen2.5-Math-1.5B", "1e-4", "qwen2.5", "apache-2.0", "131072"),
    "qwen-7b": ("Qwen/Qwen2.5-Math-7B", "8e-5", "qwen2.5", "apache-2.0", "131072"),
    "qwen-14b": ("Qwen/Qwen2.5-14B", "7e-5", "qwen2.5", "apache-2.0", "0"),
    "qwen-32b": ("Qwen/Qwen2.5-32B", "6e-5", "qwen2.5", "apache-2.0", "0"),
    "llama-8b": ("meta-llama/Llama-3.1-8B", "5e-5", "llama3", "llama3.1", "0"),
    "llama-70b": ("meta-llama/Llama-3.3-70B-Instruct", "2e-5", "llama3", "llama3.3", "0"),
}
R1_FILE = "r1-distill"  # the template that the six share
BUNDLED = "dstools:"  # begins a path to the sample model and data that presets use


def presets() -> list[str]:
    """Return the names of the recipes that come with dstools."""
    named = [file.name.removesuffix(".toml") for file in PRESETS.iterdir()]
    named += [f"{R1_FILE}-{name}" for name in R1_DISTILL]
    return sorted(name for name in named if name != R1_FILE)


def preset_text(name: str) -> str:
    """Return the text of a preset, with its comments."""
    if name not in presets():
        known = ", ".join(presets())
        raise DstoolsError(f"{printable(name)}: no such preset", f"there are {known}")
    base = R1_DISTILL.get(name.removeprefix(f"{R1_FILE}-"))
    text = (PRESETS / f"{R1_FILE if base else name}.toml").read_text(encoding="utf-8")
    if base is None:
        return text
    keys = ("model", "learning_rate", "template", "licence", "context")
    return Template(text).substitute(dict(zip(keys, base, strict=True)), title=name)


def bundled(name: str) -> Path:
    """Return the path of `dstools:NAME`, in an installed wheel or in a checkout."""
    package = Path(str(files("dstools_distill")))
    folder = package / "samples"  # in a wheel; see pyproject.toml
    if not folder.is_dir():
        folder = package.parents[1] / "tests" / "data"
    return folder / name.removeprefix(BUNDLED)
