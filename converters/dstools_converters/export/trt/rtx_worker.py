"""The process in which TensorRT-RTX parses and builds a graph.

    python -m dstools_converters.export.trt.rtx_worker REQUEST RESULT

Both are JSON files, a `Request` and a `Built` of rtx.py. Takes about twice the baked weights of
memory.
"""

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dstools_converters.export.trt.network import configure, describe, listener, load_plugins
from dstools_converters.export.trt.rtx import Built, Request
from dstools_converters.tables import Reader, json_table


def run(request: Request, trt: Any) -> Built:
    """Return what a library, `trt`, makes of a graph."""
    log = listener(trt)
    built = Built(trt.__version__)
    if request.plugins and not load_plugins(trt, request.plugins):
        return replace(built, is_registered=False)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(request.graph).read_bytes(), request.weights):
        return replace(built, errors=tuple(map(_said, _errors(parser))))
    built = describe(trt, network, built)
    engines = {}
    for target in request.targets:
        config = configure(trt, builder, request.profiles, is_aliasing=request.is_aliasing)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
        engine = builder.build_serialized_network(network, config)
        engines[target] = 0 if engine is None else engine.nbytes
    return replace(built, engines=engines, errors=tuple(log.errors))


def _errors(parser: Any) -> list[str]:
    found = [parser.get_error(number) for number in range(parser.num_errors)]
    return [f"{error.node_name() or 'graph'}: {error.desc()}" for error in found]


def _said(message: str) -> str:
    """Return a message on one line."""
    return re.sub(r"\s+", " ", message).strip()


def main() -> None:
    """Read a request, build, and write what was built."""
    import tensorrt_rtx_bindings

    asked, answer = map(Path, sys.argv[1:])
    request = Reader(str(asked), "json").read(Request, json_table(asked))
    built = run(request, tensorrt_rtx_bindings)
    answer.write_text(json.dumps(asdict(replace(built, errors=tuple(map(_said, built.errors))))))


if __name__ == "__main__":
    main()
