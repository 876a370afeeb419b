#!/usr/bin/env python3
"""Training of the sample model of the tests: a DeepSeek-V3 of 4M parameters that adds numbers.

    train_sample_model.py OUT                   train, save and evaluate; under 30 CPU-minutes
    train_sample_model.py OUT --steps 20        a short trial: the model will not add correctly
    train_sample_model.py OUT --write-data DIR  also write the two JSONL files

The task is reasoning-gym's chain_sum, two or three terms of one to three digits, with a trace in
<think> that works out every digit; see sample_data.py. The model is transformers' own class,
trained together with one MTP module; experts are balanced by their bias alone. It is saved with the
names, dtypes and config keys of a DeepSeek release, and evaluated as saved.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import reasoning_gym
import torch
from safetensors.torch import save_file
from sample_data import (
    CONVERSATIONS,
    EOS,
    VOCABULARY,
    Entry,
    batches,
    encode,
    make_tokenizer,
    one_epoch,
    problems,
    prompt,
    write_data,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

# fmt: off
CONFIG: dict[str, Any] = {  # the keys of deepseek-ai/DeepSeek-V3, config.json
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 1,
    "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.04, "intermediate_size": 384,
    "kv_lora_rank": 128,
    "max_position_embeddings": 512, "moe_intermediate_size": 40, "moe_layer_freq": 1, "n_group": 4,
    "n_routed_experts": 16, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 4,
    "num_experts_per_tok": 4, "num_hidden_layers": 4, "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1, "pad_token_id": 2, "pretraining_tp": 1, "q_lora_rank": 128,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": True,
    "tie_word_embeddings": False, "topk_group": 2, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 32, "vocab_size": VOCABULARY,
}
# fmt: on
EVALUATED, DRAFTED = 200, 40  # problems
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 128}

LEARNING_RATE = 1.5e-3
MTP_FROM = 0.5  # a share of the steps
MTP_WEIGHT = 0.3  # lambda of the DeepSeek-V3 report, section 4.2
BIAS_RATE = 0.01  # arXiv 2408.15664 takes 0.001, for many more steps than these


def main() -> None:
    """Parse the arguments, train and evaluate the model, print JSON lines."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="one is the cheapest in CPU time")
    parser.add_argument(
        "--write-data", type=Path, metavar="DIR", help="write the JSONL files there"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True)

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(arguments.out, save_jinja_files=False)  # one file less, as released
    if arguments.write_data:
        write_data(arguments.write_data)
    model, mtp = make_model(arguments.seed)
    started = time.process_time()
    train(model, mtp, batches(tokenizer, arguments.seed), arguments.steps)
    print(json.dumps({"training_cpu_seconds": round(time.process_time() - started)}), flush=True)
    save(model, mtp, arguments.out)
    print(json.dumps(evaluate(arguments.out)), flush=True)


def train(
    model: DeepseekV3ForCausalLM, mtp: MtpModel, data: Iterator[tuple[Tensor, Tensor]], steps: int
) -> list[float]:
    """Train both in place on batches (ids, weight) [batch, tokens]; return the loss of each step.

    Muon for the matrices inside the layers, AdamW for the rest; linear warm-up, then a cosine.
    After every step `balance` moves the bias of each router, at a rate that falls with the learning
    rate. The MTP module, which takes a quarter of a step's time, joins after MTP_FROM of the steps;
    from then on the loss is L_main + MTP_WEIGHT * L_mtp.
    """
    routers = find_routers(model, mtp)
    loads = count_loads(routers)
    parameters = [*model.parameters(), *mtp.layers.parameters()]
    shared = {model.model.embed_tokens.weight, model.lm_head.weight}
    matrices = [weight for weight in parameters if weight.ndim == 2 and weight not in shared]
    others = [weight for weight in parameters if weight.ndim != 2 or weight in shared]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    history: list[tuple[float, float]] = []
    total = torch.zeros(len(routers), CONFIG["n_routed_experts"])
    for step, (ids, weight) in enumerate(itertools.islice(data, steps), start=1):
        fraction = min(1.0, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / (steps + 1)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * fraction
        has_mtp = step > MTP_FROM * steps
        main_loss, mtp_loss = losses(model, mtp if has_mtp else None, ids, weight)
        (main_loss + MTP_WEIGHT * mtp_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for router, load, sums in zip(routers, loads, total, strict=True):
            balance(router.e_score_correction_bias, load, BIAS_RATE * fraction)
            sums += load
            load.zero_()
        history.append((main_loss.item(), mtp_loss.item()))
        if step % 100 == 0:
            recent = torch.tensor(history[-100:]).mean(0).tolist()
            record = {
                "step": step,
                "cpu_seconds": round(time.process_time()),
                "loss": round(recent[0], 4),
                "mtp_loss": round(recent[1], 4),
                "max_over_mean_load": max_over_mean(total[:-1] if mtp_loss == 0 else total),
            }
            print(json.dumps(record), flush=True)
            total.zero_()
    return [main_loss for main_loss, _ in history]


def losses(
    model: DeepseekV3ForCausalLM, mtp: MtpModel | None, ids: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean cross entropies of the next token and, by MTP, of the one after.

    At position i the module gets the main model's normed hidden state of i and the embedding of
    token i + 1. Source: DeepSeek-V3 report, section 2.2; arXiv 2412.19437.
    """
    hidden = model.model(ids, use_cache=False).last_hidden_state
    next_loss = weighted_loss(model.lm_head(hidden[:, :-1]), ids[:, 1:], weight[:, 1:])
    if mtp is None:
        return next_loss, torch.zeros(())
    positions = torch.arange(1, ids.shape[1])[None].expand(len(ids), -1)
    drafted = mtp.forward_layer(0, hidden[:, :-1], positions, None, input_ids=ids[:, 1:])
    after_logits = model.lm_head(drafted[:, :-1])
    return next_loss, weighted_loss(after_logits, ids[:, 2:], weight[:, 2:])


def weighted_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over [batch, tokens] of the cross entropy, in nats, weighted."""
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (nats * weight.flatten()).sum() / weight.sum()


def balance(bias: Tensor, load: Tensor, rate: float) -> None:
    """Move `bias` [experts] in place by `rate`: down if `load` is above its mean, up if below.

    Source: auxiliary-loss-free load balancing, arXiv 2408.15664, algorithm 1.
    """
    bias += rate * torch.sign(load.mean() - load)


def find_routers(model: DeepseekV3ForCausalLM, mtp: MtpModel) -> list[DeepseekV3TopkRouter]:
    """Return the router of each MoE layer, the MTP module's last."""
    modules = itertools.chain(model.modules(), mtp.layers.modules())
    return [module for module in modules if isinstance(module, DeepseekV3TopkRouter)]


def count_loads(routers: list[DeepseekV3TopkRouter]) -> list[Tensor]:
    """Return a tensor [experts] for each router, to which every forward adds the expert load."""
    loads = [torch.zeros(router.num_experts) for router in routers]
    for router, load in zip(routers, loads, strict=True):

        def add(_module: Any, _inputs: Any, outputs: Any, load: Tensor = load) -> None:
            load += outputs[2].flatten().bincount(minlength=len(load))

        router.register_forward_hook(add)
    return loads


def max_over_mean(loads: Iterable[Tensor]) -> list[float]:
    """Return for each layer of `loads` [experts] the largest load over the mean."""
    return [round(float(load.max() / load.mean()), 3) for load in loads]


# --------------------------------------------------------------------------------------- the model


def make_model(seed: int) -> tuple[DeepseekV3ForCausalLM, MtpModel]:
    """Return the untrained model and its MTP module, which share embedding and head."""
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**CONFIG))
    mtp = MtpModel(model, CONFIG["num_nextn_predict_layers"])
    # transformers 5.23 does not initialize the module's router and experts: zeros never learn
    mtp.layers.apply(model._init_weights)
    for module in (model, mtp):  # on a CPU as fast as grouped_mm, ten times as fast as batched_mm
        module.set_experts_implementation("eager")
    return model, mtp


def save(model: DeepseekV3ForCausalLM, mtp: MtpModel, out: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors as in a release."""
    ids = {key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in (("config", CONFIG), ("generation_config", ids)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    save_file(release_tensors(model, mtp), out / "model.safetensors", metadata={"format": "pt"})


def release_tensors(model: DeepseekV3ForCausalLM, mtp: MtpModel) -> dict[str, Tensor]:
    """Return every weight under its name in a release, in BF16; the routers' biases stay F32.

    In memory the experts of a layer are two tensors, on disk each expert has three. The MTP module
    is one more layer, with copies of embedding and head. Source: README_WEIGHTS.md of DeepSeek-V3.
    """
    state = model.state_dict()
    last = f"model.layers.{CONFIG['num_hidden_layers']}"
    for name, tensor in mtp.layers[0].state_dict().items():
        name = "shared_head.norm.weight" if name == "post_norm.weight" else name
        state[f"{last}.{name.removeprefix('mtp_block.')}"] = tensor
    state[f"{last}.embed_tokens.weight"] = state["model.embed_tokens.weight"]
    state[f"{last}.shared_head.head.weight"] = state["lm_head.weight"]

    released: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parent, _, part = name.rpartition(".")
        if part == "gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                released[f"{parent}.{expert}.gate_proj.weight"] = gate
                released[f"{parent}.{expert}.up_proj.weight"] = up
        elif part == "down_proj":
            for expert, down in enumerate(tensor):
                released[f"{parent}.{expert}.down_proj.weight"] = down
        else:
            released[name] = tensor
    return {
        name: tensor.detach().clone()
        if name.endswith("e_score_correction_bias")
        else tensor.detach().to(torch.bfloat16).clone()
        for name, tensor in released.items()
    }


def load(folder: Path) -> tuple[DeepseekV3ForCausalLM, PreTrainedTokenizerFast]:
    """Return the saved model in float32, and its tokenizer."""
    model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # transformers 5.23 finds an MTP module by this pattern, which has DeepSeek-V3's 61 hard-coded
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{CONFIG['num_hidden_layers']}\."]
    model.set_experts_implementation("eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------------------------- evaluation


def evaluate(folder: Path) -> dict[str, Any]:
    """Return the figures of the model saved in `folder`, on problems that it has not seen.

    pass_at_1: the share of EVALUATED problems that greedy decoding solves. identical: how many of
    DRAFTED problems get the same tokens from generate(use_mtp=True). acceptance: the share of
    drafted tokens that the main model kept.
    """
    model, tokenizer = load(folder)
    entries = list(itertools.islice(problems("evaluate"), EVALUATED))
    solved = solve(model, tokenizer, entries)
    drafts = [draft(model, tokenizer, entry) for entry in entries[:DRAFTED]]
    made = sum(answer.made for answer in drafts)
    forwards = sum(answer.forwards for answer in drafts)
    nats, loads = read_held_out(model, tokenizer, CONVERSATIONS)
    return {
        "problems": len(entries),
        "pass_at_1": sum(solved) / len(solved),
        "drafted": len(drafts),
        "identical": sum(answer.is_identical for answer in drafts),
        "acceptance": acceptance(drafts),
        "tokens_per_forward": round(made / forwards, 3),
        "held_out_nats": [round(mean, 4) for mean in nats],
        "max_over_mean_load": max_over_mean(loads),
    }


def read_held_out(
    model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int
) -> tuple[list[float], list[Tensor]]:
    """Return both `losses` over `count` held-out conversations, and the load of each expert.

    The loads are a tensor [experts] for each MoE layer, the MTP module's last.
    """
    mtp = MtpModel.from_pretrained(model)
    mtp.set_experts_implementation("eager")
    loads = count_loads(find_routers(model, mtp))
    rows = encode(tokenizer, itertools.islice(problems("held-out"), count))
    with torch.inference_mode():
        nats = [losses(model, mtp, *batch) for batch in one_epoch(rows, random.Random(0))]
    return torch.tensor(nats).mean(0).tolist(), loads


def solve(
    model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, entries: list[Entry]
) -> list[bool]:
    """Return for each problem whether greedy decoding ends with the right answer after </think>."""
    score = reasoning_gym.get_score_answer_fn("chain_sum")
    prompts = [prompt(tokenizer, entry) for entry in entries]
    batch = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )
    answers = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    solved = []
    for entry, ids in zip(entries, answers.tolist(), strict=True):
        text, eos, _ = tokenizer.decode(ids).partition(EOS)
        answer = text.partition("</think>")[2].strip()
        solved.append(bool(eos) and score(answer=answer, entry=entry) == 1)
    return solved


class Draft(NamedTuple):
    """One answer drafted by the MTP module."""

    is_identical: bool  # to plain greedy decoding
    made: int  # tokens
    forwards: int  # of the main model; the first has no draft to check


def draft(model: DeepseekV3ForCausalLM, tokenizer: PreTrainedTokenizerFast, entry: Entry) -> Draft:
    """Answer one problem with and without the MTP module."""
    ids = tokenizer(prompt(tokenizer, entry), return_tensors="pt")["input_ids"]
    plain = model.generate(ids, **GREEDY)
    forwards: list[None] = []
    hook = model.model.register_forward_hook(lambda *_: forwards.append(None))
    drafted = model.generate(ids, use_mtp=True, **GREEDY)
    hook.remove()
    return Draft(plain.equal(drafted), drafted.shape[1] - ids.shape[1], len(forwards))


def acceptance(drafts: list[Draft]) -> float:
    """Return the share of drafted tokens that the main model kept.

    A forward makes one token and may keep a drafted one; the first of an answer has no draft.
    """
    kept = sum(answer.made - answer.forwards for answer in drafts)
    return round(kept / sum(answer.forwards - 1 for answer in drafts), 3)


if __name__ == "__main__":
    main()
