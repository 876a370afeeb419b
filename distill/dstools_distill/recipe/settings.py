"""The keys of a recipe with their defaults: one dataclass per table, in the order data flows.

A field without a default must be given. `recipe.py` reads TOML into these; a stage takes no others.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dstools_converters.errors import DstoolsError
from dstools_converters.tables import Positive, Range, Share

Form = Literal["auto", "problem", "messages", "sharegpt", "alpaca", "prompt-completion"]
AnswerType = Literal[
    "auto", "none", "integer", "number", "math", "set", "tuple", "choice", "string", "code"
]
Backend = Literal["hf", "openai", "openai-batch", "replay"]
Keep = Literal["all", "all-correct", "first", "shortest", "diverse"]
Template = Literal["", "qwen2.5", "qwen3", "llama3", "r1-distill", "deepseek-v3", "chatml"]
Precision = Literal["float32", "bf16-autocast", "bfloat16"]
Parallel = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
SPREADING = ("fsdp2", "zero2", "zero3")  # a weight, or its gradient, is divided over processes


@dataclass(frozen=True)
class Source:
    """A source of prompts."""

    path: str  # file.jsonl, file.parquet, "rg:chain_sum" (reasoning-gym), "datasets:org/name"
    form: Form = "auto"
    split: str = "train"  # of a `datasets` name
    licence: str = "unknown"
    answer_type: AnswerType = "auto"  # of gold answers without a type
    size: Positive = 1000  # problems of a reasoning-gym task
    seed: int = 0  # of a reasoning-gym task
    options: dict[str, Any] | None = None  # of a reasoning-gym task
    max_bad: int = 0  # rows without a question that are left out; with more the stage fails
    first_option: Annotated[int, Range(0, 1)] | None = None  # its number, where an answer is one


@dataclass(frozen=True)
class Prompts:
    """The prompts, and which of them are asked."""

    source: tuple[Source, ...]
    system: str = ""  # put before conversations that have no system message; R1 wants none
    near_duplicates: Share = 0.0  # drop at this Jaccard similarity of word 5-grams; 0: exact ones
    pass_rates: str = ""  # a finished `verify` folder: difficulty = 1 - share right there
    min_difficulty: Share = 0.0  # prompts without a known difficulty stay
    max_difficulty: Share = 1.0
    limit: int = 0  # keep the first so many; 0: all


@dataclass(frozen=True)
class Generate:
    """The teacher, and how it samples."""

    backend: Backend
    model: str = ""  # a folder (hf), a name (openai), a JSONL of samples (replay)
    samples: Positive = 1  # of each prompt
    temperature: float = 0.6  # 0: greedy
    top_p: Share = 0.95
    max_tokens: Positive = 32768
    seed: int = 0
    prefill_think: bool = False  # start the answer with <think> and a newline
    base_url: str = ""  # openai: "http://127.0.0.1:8000/v1"
    api_key_env: str = "OPENAI_API_KEY"  # the variable that holds the key; may be unset
    concurrency: Positive = 32  # openai: requests at once
    timeout_seconds: float = 600.0  # openai: without a byte of a reply
    retries: int = 5  # openai: of one request, which is sent 1 + retries times at most
    max_failed: Share = 0.0  # share of samples that may be lost: time-outs, refused requests, ...
    batch_size: Positive = 128  # hf: answers at once
    precision: Literal["float32", "bfloat16"] = "float32"  # hf
    device: Literal["cpu", "cuda"] = "cpu"  # hf
    licence: str = "unknown"  # the teacher's, for the card


@dataclass(frozen=True)
class Verify:
    """What counts as a right answer."""

    reasoning: bool = True  # require a think block; False: judge a text without tags, too
    timeout_seconds: float = 5.0  # CPU time per comparison; past it: unverifiable
    steps: bool = True  # check each step where the task has a checker
    language: str = ""  # "en", "zh", ...: traces must be in it
    min_language: Share = 0.9  # in at least this share of words
    max_repetition: Share = 0.5  # share of a text in repeated 20-word runs
    code_timeout_seconds: float = 10.0  # CPU time of a program per case
    code_memory_mib: int = 1024


@dataclass(frozen=True)
class Decontaminate:
    """Benchmarks that must not be trained on."""

    index: tuple[str, ...] = ()  # files made by `dstools distill index`


@dataclass(frozen=True)
class Select:
    """Which traces are kept."""

    keep: Keep = "all-correct"
    per_prompt: int = 0  # at most so many per prompt; 0: no limit
    min_pass_rate: Share = 0.0  # of the judged samples of a prompt
    max_pass_rate: Share = 1.0
    non_reasoning: str = ""  # JSONL of conversations without a trace, mixed in
    licence: str = "unknown"  # of those
    reasoning_share: Share = 0.75  # of the mix; DeepSeek-R1: 600k of 800k
    limit: int = 0
    seed: int = 0  # of the draw, where there is one, and of the order


@dataclass(frozen=True)
class Student:
    """The model to be trained."""

    model: str = ""  # a folder, or org/name in the Hub cache; empty if `init` is given
    tokenizer: str = ""  # by default the model's
    # config keys of a new model with random weights, model_type among them
    init: dict[str, Any] | None = None
    template: Template = ""  # by default the tokenizer's own
    licence: str = "unknown"


@dataclass(frozen=True)
class Render:
    """How rows become tokens and labels."""

    max_length: Positive = 32768  # tokens; longer rows are dropped, never cut
    max_dropped: Share = 0.02  # share of rows; past it the stage fails
    reasoning: bool = True  # False: train on the answer only


@dataclass(frozen=True)
class Lora:
    """Low-rank updates, trained in place of the weights."""

    rank: Positive = 16
    alpha: int = 32
    dropout: Share = 0.0
    targets: tuple[str, ...] = ("all-linear",)


@dataclass(frozen=True)
class Training:
    """The settings that sft, kd and grpo share."""

    learning_rate: float = 1e-5
    min_learning_rate_ratio: Share = 0.1  # learning rate at the end of the cosine / at its top
    warmup_steps: int = 0
    epochs: float = 1.0
    max_steps: int = 0  # instead of epochs
    batch_size: Positive = 64  # rows per step, over all processes
    micro_batch_size: Positive = 1  # rows at once per process
    optimizer: str = "adamw_torch_fused"  # as transformers' TrainingArguments.optim, or "muon"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "bf16-autocast"
    attention: str = "sdpa"  # as transformers' attn_implementation
    context: int = 0  # new number of positions of the student; 0: as its config says
    activation_checkpointing: bool = False
    lora: Lora | None = None
    ema: Share = 0.0  # decay of an average of the weights, on the CPU; 0: none
    mtp: Literal["keep", "drop"] = "keep"  # the student's MTP layers, which are not trained
    seed: int = 0
    save_steps: int = 0  # steps between checkpoints; 0: ten per run
    log_steps: Positive = 10
    processes: Positive = 1  # 1 with fsdp2, zero2 or zero3: a trial of the launch
    parallel: Parallel = "single"


@dataclass(frozen=True)
class Sft(Training):
    """Supervised fine-tuning on rendered rows."""

    packing: bool = False  # several rows per sequence, kept apart by the attention
    group_by_length: bool = False  # rows of similar length in a step: less padding


@dataclass(frozen=True)
class Kd(Training):
    """Distillation of logits on the student's own answers."""

    teacher: str = ""  # a folder, or org/name in the Hub cache
    beta: float = 1.0  # 0: forward KL, 1: reverse KL, between: Jensen-Shannon
    temperature: float = 1.0
    max_completion_tokens: Positive = 512


@dataclass(frozen=True)
class Grpo(Training):
    """Group-relative policy optimisation. Defaults: DeepSeek-R1, arXiv 2501.12948."""

    group_size: int = 16
    temperature: float = 1.0
    max_completion_tokens: Positive = 32768
    beta: float = 0.001  # weight of the KL to the reference
    clip: float = 10.0  # epsilon
    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    language_weight: float = 0.0
    language: str = "en"
    replace_reference_steps: int = 400  # by the policy of that step; 0: never


@dataclass(frozen=True)
class Mtp:
    """The fit of an MTP layer to the trained model, on rendered rows."""

    learning_rate: float = 1e-3  # at first; it falls to 0
    epochs: float = 1.0
    max_steps: int = 0  # instead of epochs
    batch_size: Positive = 8  # rows
    seed: int = 0


@dataclass(frozen=True)
class Eval:
    """How the student is evaluated."""

    source: tuple[Source, ...]
    samples: Positive = 1  # of each problem
    temperature: float = 0.0  # 0: greedy
    top_p: Share = 0.95
    max_tokens: Positive = 32768
    seed: int = 0
    k: tuple[int, ...] = (1,)  # pass@k and maj@k
    batch_size: Positive = 64
    limit: int = 0
    baseline: bool = True  # also evaluate the student before training
    at_least: Share = 0.0  # pass@1 of the last model; below it the run exits 3
    reasoning: bool = True  # require a think block; False: the student only answers
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Card:
    """The card of the run."""

    name: str = "student"
    licence: str = "unknown"  # of the trained student
    licence_link: str = ""  # of a licence outside the Hub's list: an address, or a file, "LICENSE"


def check_bounds(settings: Any, where: str) -> None:
    """Raise DstoolsError where a min_NAME is above its max_NAME; `where` comes before the key."""
    for name, low in vars(settings).items():
        upper = f"max_{name.removeprefix('min_')}"
        if name.startswith("min_") and (high := getattr(settings, upper, low)) < low:
            raise DstoolsError(
                f"{where}{name}: {low:g} is above {upper} = {high:g}, which leaves nothing",
                "swap the two, or leave one out",
            )


def check_length(settings: Training | Mtp, where: str) -> None:
    """Raise DstoolsError for a training of no length; `where` comes before the key."""
    if not settings.epochs and not settings.max_steps:
        raise DstoolsError(
            f"{where}epochs: is 0, which trains nothing",
            "give it a number above 0, or max_steps; to train nothing, leave out the table",
        )


def check_settings(settings: Training, where: str = "") -> None:
    """Raise DstoolsError for settings that contradict each other on any machine.

    where: put before the message.
    """
    processes, parallel = settings.processes, settings.parallel
    whole = "single" if processes == 1 else "ddp"  # keeps each weight whole in each process
    if (processes > 1 and parallel == "single") or (processes == 1 and parallel == "ddp"):
        raise DstoolsError(
            f"{where}processes = {processes} and parallel = {parallel!r} contradict each other",
            'one process: "single", or "fsdp2", "zero2", "zero3" as a trial; '
            'several: one of those or "ddp"',
        )
    at_once = settings.micro_batch_size * processes
    if settings.batch_size % at_once:
        raise DstoolsError(
            f"{where}batch_size = {settings.batch_size} is not a multiple of "
            f"micro_batch_size x processes = {at_once}",
            "choose batch_size as such a multiple; gradients are accumulated",
        )
    if parallel in ("fsdp2", "zero3") and (settings.ema or settings.lora):
        raise DstoolsError(
            f"{where}{parallel} divides each weight over processes; ema and lora need it whole",
            f'choose parallel = "zero2" or "{whole}", or leave out ema and lora',
        )
    if parallel.startswith("zero") and settings.precision == "bfloat16":
        raise DstoolsError(
            f"{where}{parallel} does not train bfloat16 weights without float32 masters",
            'under DeepSpeed, precision = "bf16-autocast" keeps float32 masters',
        )
    if settings.optimizer == "muon" and parallel in SPREADING:
        raise DstoolsError(
            f"{where}muon needs each weight whole, and {parallel} divides it or its gradient",
            f'choose parallel = "{whole}", or another optimizer',
        )
    if settings.optimizer == "muon" and settings.lora:
        raise DstoolsError(
            f"{where}muon trains whole weights, not lora updates", "choose another optimizer"
        )
