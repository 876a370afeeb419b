"""Run `dstools` again and again in forks of one process, with everything imported.

Reads requests as JSON lines, {"args": [...]}, and answers each with {"status": wait status,
"output": stdout and stderr, "grown_kib": peak memory above that of this process}. Further keys:
"seconds", after which an alarm kills the command, and of tests with LD_PRELOAD=faults.so {"below":
PATH, "at": k, "mode": MODE}, for which the answer has "calls", those counted.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import traceback

import safetensors.numpy  # noqa: F401  imported once, for all forks

from dstools.cli import main
from dstools_converters import inspect  # noqa: F401
from dstools_converters.verify import folder  # noqa: F401
from dstools_converters.write import stream  # noqa: F401

faults = ctypes.CDLL(None)
has_faults = hasattr(faults, "faults_arm")
if has_faults:
    faults.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    faults.faults_count.restype = ctypes.c_long


def run(args: list[str], seconds: int = 0, below: str = "", at: int = 0, mode: int = 0) -> int:
    """Run a command in this process; return its exit code."""
    signal.alarm(seconds)
    if has_faults:
        faults.faults_arm(os.fsencode(below), at, mode)
    try:
        main(args)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 99
    return code


def fork(request: dict[str, object]) -> dict[str, object]:
    """Return what became of a command in a fork."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as count:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = run(**request)  # type: ignore[arg-type]
            sys.stdout.flush()
            sys.stderr.flush()
            if has_faults:
                os.write(count.fileno(), str(faults.faults_count()).encode())
            os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        output.seek(0)
        count.seek(0)
        return {
            "status": status,
            "calls": int(count.read() or 0),
            "output": output.read().decode(errors="replace"),
            "grown_kib": usage.ru_maxrss - before,
        }


for line in sys.stdin:
    sys.stdout.write(json.dumps(fork(json.loads(line))) + "\n")
    sys.stdout.flush()
