"""Run a checkpoint in mistral.rs, in an environment that has it: the text of its answers.

run_mistralrs.py REQUEST.json ANSWER.json        both as engine_check.py describes them
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import mistralrs


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    runner = mistralrs.Runner(which=mistralrs.Which.Plain(model_id=request["folder"]), max_seqs=2)
    texts = []
    for question in request["questions"]:
        chat = mistralrs.ChatCompletionRequest(
            model="default",
            messages=[{"role": "user", "content": question}],
            max_tokens=request["max_tokens"],
            temperature=0.0,
            top_k=1,
        )
        message = runner.send_chat_completion_request(chat).choices[0].message
        texts.append(message.content or "")
    answer = {"version": version("mistralrs"), "texts": texts}
    Path(sys.argv[2]).write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
