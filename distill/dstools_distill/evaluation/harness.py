"""Run of EleutherAI's lm-evaluation-harness on a model, and a report of its results.

Its defaults do not fit a reasoning model: it compares trace and answer together, or deletes a
`</think>` that is a special token before the trace is cut there, and stops at the blank line after
the trace and after 256 tokens. So it is given the token that ends a trace, the token that ends an
answer, and the length of an answer.

Source: lm_eval 0.4.13, models/huggingface.py (think_end_token), models/utils.py
(normalize_gen_kwargs).
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, disk_errors, install_hint
from dstools_converters.files import write_synced
from dstools_converters.model.reasoning import CLOSE
from dstools_converters.model.tokenizer import end_token_id
from dstools_distill.store.stage import Report
from dstools_distill.tokens.templates import load_tokenizer

MAX_TOKENS = 32768  # of an answer, as DeepSeek measured R1; at most half the context
RESULTS = "lm-eval.json"  # our report, beside the harness's own files


def lm_eval(model: Path, tasks: str, out: Path) -> Report:
    """Return the report of `lm_eval run --tasks TASKS` on a model; if `out` holds one, read it.

    tasks: names, or paths of task files, separated by commas. out: a folder to make, with the
    harness's files and lm-eval.json; while incomplete it is called `.incomplete`, and another try
    starts anew. The report: tasks {name: {metric: value}}, answers {name: n}, generation,
    model_args, versions.

    Raises DstoolsError where lm_eval is not installed or fails, for a model without a chat template
    or end token, and where `out` holds files without a report.
    """
    if (out / RESULTS).exists():
        finished: Report = json.loads((out / RESULTS).read_bytes())
        return finished
    if importlib.util.find_spec("lm_eval") is None:
        raise DstoolsError("lm_eval is not installed", install_hint("lm-eval"))
    if out.is_dir() and any(out.iterdir()):
        raise DstoolsError(f"{out}: holds files, but no {RESULTS}", "move or remove that folder")
    arguments, generation = _settings(model)
    partial = out.with_name(f"{out.name}.incomplete")
    if partial.exists():
        shutil.rmtree(partial)
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--tasks", tasks, "--output_path", os.fspath(partial), "--log_samples"]
    command += ["--model_args", json.dumps(arguments), "--apply_chat_template"]
    command += ["--gen_kwargs", json.dumps(generation)]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        raise DstoolsError(
            f"lm_eval ended with code {code}",
            "see its message above; are tasks and data on this machine?",
        )
    report = _read(partial)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    with disk_errors(partial):
        write_synced(partial / RESULTS, text.encode())
        partial.rename(out)
    return report


def _settings(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the harness's model_args and gen_kwargs for a model folder."""
    try:
        config = json.loads((model / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DstoolsError(
            f"{model / 'config.json'}: cannot be read: {error}", "name the folder of a model"
        ) from None
    tokenizer = load_tokenizer(model)
    try:
        end = tokenizer.convert_ids_to_tokens(end_token_id(tokenizer))
    except DstoolsError as error:
        raise DstoolsError(f"{model}: {error}", error.hint) from error
    # an id is searched before decoding deletes special tokens; several tokens are never special
    closer = tokenizer.encode(CLOSE, add_special_tokens=False)
    arguments = {
        "pretrained": os.fspath(model),
        "dtype": "auto",
        "think_end_token": closer[0] if len(closer) == 1 else CLOSE,
    }
    context = config.get("text_config", config).get("max_position_embeddings", 2 * MAX_TOKENS)
    return arguments, {"until": [end], "max_gen_toks": min(MAX_TOKENS, context // 2)}


def _read(out: Path) -> Report:
    """Return the content of the harness's only results file."""
    files = sorted(out.rglob("results_*.json"))
    if len(files) != 1:
        raise DstoolsError(f"{out}: lm_eval left {len(files)} files of results", "run it again")
    results = json.loads(files[0].read_bytes())
    config = results["config"]
    return {
        "tasks": {
            task: {
                name: value  # "exact_match,none": the metric, and the filter before it
                for name, value in metrics.items()
                if "," in name and isinstance(value, int | float)
            }
            for task, metrics in sorted(results["results"].items())
        },
        "answers": {
            task: counts["effective"] for task, counts in sorted(results["n-samples"].items())
        },
        "generation": {
            task: options.get("generation_kwargs")
            for task, options in sorted(results["configs"].items())
        },
        "model_args": {k: v for k, v in config["model_args"].items() if k != "pretrained"},
        "dtype": config["model_dtype"].removeprefix("torch."),
        "limit": config["limit"],
        "versions": {
            "lm_eval": results["lm_eval_version"],
            "transformers": results["transformers_version"],
            "tasks": dict(sorted(results["versions"].items())),
        },
    }
