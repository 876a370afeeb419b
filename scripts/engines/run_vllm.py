"""Load and run a checkpoint in vLLM, in vLLM's own environment.

run_vllm.py REQUEST.json ANSWER.json        both as engine_check.py describes them
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model in this process, where it can be compared
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else threads share one core: ten times slower
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    if request["torch_kernels"]:
        os.environ["DSTOOLS_VLLM_FP8"] = "torch"  # for the plugin vllm_without_amx
    from matrices import compare, load_folder
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    wanted = load_folder(Path(request["dequantized"]))
    equal: dict[str, bool] = {}
    load = DefaultModelLoader.load_weights

    def load_and_compare(loader: Any, model: Any, config: Any) -> None:
        load(loader, model, config)
        equal.update(compare(model.named_modules(), wanted))

    DefaultModelLoader.load_weights = load_and_compare  # before kernels repack the weights
    draft = {"method": "mtp", "num_speculative_tokens": 1} if request["drafts"] else None
    llm = LLM(
        model=request["folder"],
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
        seed=0,
        enable_prefix_caching=False,  # else logprobs of cached prompts are missing
        disable_log_stats=False,  # else get_metrics raises
        skip_tokenizer_init=not request["prompts"],  # random models have none
        speculative_config=draft,
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["sequences"]]
    greedy = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    scored = llm.generate(prompts, greedy, use_tqdm=False)
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=request["max_tokens"])
    answers = llm.generate(prompts, greedy, use_tqdm=False) if prompts else []
    counters = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    answer = {
        "version": version("vllm-cpu"),
        "equal": equal,
        "logprobs": [
            [at[token].logprob for at, token in zip(one.prompt_logprobs[1:], ids[1:], strict=True)]
            for one, ids in zip(scored, request["sequences"], strict=True)
        ],
        "tokens": [list(one.outputs[0].token_ids) for one in answers],
        "drafted": counters.get("vllm:spec_decode_num_draft_tokens"),
        "accepted": counters.get("vllm:spec_decode_num_accepted_tokens"),
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
