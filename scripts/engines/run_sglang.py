"""Load and run a checkpoint in SGLang, in SGLang's own environment.

run_sglang.py REQUEST.json ANSWER.json        both as engine_check.py describes them
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

import sglang_on_cpu  # here, so that the processes that SGLang starts have it, too

sglang_on_cpu.install()


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    comparison = Path(sys.argv[2]).with_suffix(".equal.json")
    os.environ["DSTOOLS_DEQUANTIZED"] = request["dequantized"]
    os.environ["DSTOOLS_COMPARISON"] = str(comparison)
    import sglang

    engine = sglang.Engine(
        model_path=request["folder"],
        device="cpu",
        dtype="bfloat16",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        grammar_backend="none",
        disable_overlap_schedule=True,
        disable_cuda_graph=True,
        disable_radix_cache=True,
        max_total_tokens=4096,
        context_length=256,
        skip_tokenizer_init=True,
        log_level="warning",
    )
    logprobs = []
    for ids in request["sequences"]:
        scored = engine.generate(
            input_ids=ids,
            sampling_params={"temperature": 0, "max_new_tokens": 1},
            return_logprob=True,
            logprob_start_len=0,
        )
        known = [one[0] for one in scored["meta_info"]["input_token_logprobs"]]
        logprobs.append(known[1 : len(ids)])
    greedy = {"temperature": 0, "max_new_tokens": request["max_tokens"]}
    tokens = [
        engine.generate(input_ids=ids, sampling_params=greedy)["output_ids"]
        for ids in request["prompts"]
    ]
    answer = {
        "version": version("sglang"),
        "equal": json.loads(comparison.read_text()),
        "logprobs": logprobs,
        "tokens": tokens,
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # its processes do not end by themselves


if __name__ == "__main__":
    main()
