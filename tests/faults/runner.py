"""Run `dstools` again and again in forks of one process, killed or failing at a given call.

Reads requests as JSON lines, {"args": [...], "below": PATH, "at": k, "mode": MODE}, and answers
each with {"status": wait status, "calls": counted, "output": stdout and stderr}. Started by the
tests with LD_PRELOAD=faults.so; a fork starts in milliseconds, with everything imported.
"""

import ctypes
import json
import os
import sys
import tempfile
import traceback

from dstools.cli import main
from dstools_converters.verify import folder  # noqa: F401  imported once, for all forks
from dstools_converters.write import stream  # noqa: F401

faults = ctypes.CDLL(None)
faults.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
faults.faults_count.restype = ctypes.c_long


def run(args: list[str], below: str, at: int, mode: int) -> int:
    """Run a command in this process; return its exit code and print the calls counted."""
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
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as count:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = run(**request)  # type: ignore[arg-type]
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(count.fileno(), str(faults.faults_count()).encode())
            os._exit(code)
        status = os.waitpid(pid, 0)[1]
        output.seek(0)
        count.seek(0)
        text = output.read().decode(errors="replace")
        return {"status": status, "calls": int(count.read() or 0), "output": text}


for line in sys.stdin:
    sys.stdout.write(json.dumps(fork(json.loads(line))) + "\n")
    sys.stdout.flush()
