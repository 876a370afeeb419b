"""Sandbox for untrusted programs: runs them in bubblewrap only, and compares their output.

A case is {"stdin": "2 3\\n", "stdout": "5\\n"}. The program sees the input but never the expected
output. This process compares the bytes, apart from white space at the end of lines
and of the output.

Inside there is no network, no environment and no second process; Python and the system libraries
are the only files, read-only; /tmp holds 16 MiB. CPU time, memory and output are limited. All
processes of a sandbox end with it, and the sandbox ends with this process: bubblewrap sees to that
once it runs, and a pipe that this process holds until then.
"""

import math
import os
import platform
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from dstools_converters.errors import DstoolsError

MAX_OUTPUT_BYTES = 1 << 20
TMP_BYTES = 16 << 20
WALL_FACTOR = 3  # limit of wall-clock time, as a multiple of the limit of CPU time
NUMBER, TOLERANCE = re.compile(rb"[-+]?\d*\.?\d+(?:e[-+]?\d+)?"), 1e-6  # of real numbers
NO_MODULE = 79  # exit status of a program that imports what the sandbox lacks
LAUNCH = f"""
import builtins, os, resource, runpy, sys
seconds, memory, asker = map(int, sys.argv[1:])
os.set_blocking(asker, False)
try:
    if os.read(asker, 1) == b"":  # the asker ended before bubblewrap began to watch it
        sys.exit(1)
except BlockingIOError:
    os.close(asker)
builtins.exit = builtins.quit = sys.exit  # as `site` would, which -S skips
for kind, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory),
                    (resource.RLIMIT_FSIZE, 1 << 24), (resource.RLIMIT_NOFILE, 64),
                    (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(kind, (limit, limit))
sys.argv[:] = ["/job/main.py"]
try:
    runpy.run_path("/job/main.py", run_name="__main__")
except SystemExit as end:  # no status of its own means what one of the sandbox does
    sys.exit(bool(end.code))
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in sys.stdlib_module_names:
        raise
    sys.exit({NO_MODULE})
"""


class Result(NamedTuple):
    """The output of a program, and how it ended."""

    stdout: bytes
    problem: str  # "", "failed", "timeout", "output-flood", or "no-module": the sandbox lacks it


def judge(program: str, cases: list[dict[str, str]], seconds: float, memory_mib: int) -> str:
    """Return "" if a program passes all cases, else "word: detail" of the first failure.

    "code-form" is told if no case fails otherwise: the task's own checker may accept such output.
    Raises DstoolsError if bubblewrap is missing or does not work.
    """
    require()
    form = ""
    for number, case in enumerate(cases, start=1):
        result = run(program, case["stdin"].encode(), seconds, memory_mib)
        if result.problem:
            return f"code-{result.problem}: case {number}"
        wanted = case["stdout"].encode()
        if _lines(result.stdout) == _lines(wanted):
            continue
        if not _differ_in_form(result.stdout, wanted):
            return f"code-output: case {number}"
        form = form or f"code-form: case {number}"
    return form


def _lines(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


def _differ_in_form(output: bytes, wanted: bytes) -> bool:
    """Return whether both have the same words, but for case, line breaks and close real numbers."""
    pairs = list(zip_longest(output.lower().split(), wanted.lower().split(), fillvalue=b""))
    return all(one == other or _are_close(one, other) for one, other in pairs)


def _are_close(*words: bytes) -> bool:
    """Return whether two words are numbers, one of them real, that differ by rounding."""
    if not all(map(NUMBER.fullmatch, words)) or b"." not in b"".join(words):
        return False
    return math.isclose(*map(float, words), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


@cache
def require() -> None:
    """Raise DstoolsError unless bubblewrap is installed and works."""
    problem = "is not installed"
    if shutil.which("bwrap"):
        if run("print(6 * 7)", b"", seconds=10, memory_mib=512).stdout == b"42\n":
            return
        problem = "does not work here"
    raise DstoolsError(
        f"judging code answers needs bubblewrap, which {problem}",
        "apt install bubblewrap; the system must allow user namespaces",
    )


def run(program: str, stdin: bytes, seconds: float, memory_mib: int) -> Result:
    """Run a Python program in a sandbox of its own; its stderr is discarded."""
    files = [_memory_file(content) for content in (program.encode(), _no_processes(), stdin)]
    watched, held = os.pipe()
    with os.fdopen(held, "wb"):  # until this process ends
        try:
            process = subprocess.Popen(
                _command(files[0], files[1], watched, seconds, memory_mib),
                stdin=files[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(*files[:2], watched),
                env={"PATH": os.environ.get("PATH", os.defpath)},
                start_new_session=True,
            )
        finally:
            for file in (*files, watched):
                os.close(file)
        with process:
            try:
                return _collect(process, time.monotonic() + WALL_FACTOR * seconds + 1)
            finally:
                process.kill()  # --die-with-parent ends all processes inside


def _collect(process: subprocess.Popen[bytes], deadline: float) -> Result:
    """Read the output of a process until it ends, prints too much or exceeds its time."""
    assert process.stdout is not None
    output = b""
    ready = select.poll()  # select() takes no descriptor over 1023
    ready.register(process.stdout, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not ready.poll(1000 * left):
            break
        piece = os.read(process.stdout.fileno(), 1 << 16)
        output += piece
        if len(output) > MAX_OUTPUT_BYTES:
            return Result(output[:MAX_OUTPUT_BYTES], "output-flood")
        if not piece:
            try:
                code = process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                break
            # 128 + SIGXCPU or SIGKILL: the limit of CPU time
            ends = {0: "", NO_MODULE: "no-module", 152: "timeout", 137: "timeout"}
            return Result(output, ends.get(code, "failed"))
    return Result(output, "timeout")


def _command(program: int, rules: int, asker: int, seconds: float, memory_mib: int) -> list[str]:
    """Return the command line of bubblewrap.

    program, rules, asker: file descriptors of the program, of the seccomp filter, and of a pipe
    that ends with the process that asks.
    """
    home = Path(sys.base_prefix).resolve()
    libraries = [Path(name) for name in ("/usr", "/lib", "/lib64", "/lib32", "/bin")]
    words = [
        "bwrap", "--unshare-all", "--clearenv", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--hostname", "sandbox", "--seccomp", str(rules),
    ]  # fmt: skip
    for path in libraries:
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        else:
            words += ["--ro-bind-try", str(path), str(path)]
    if not any(home.is_relative_to(name) for name in libraries):
        words += ["--ro-bind", str(home), str(home)]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", device, device]
    words += ["--proc", "/proc", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
    words += ["--ro-bind-data", str(program), "/job/main.py"]
    words += ["--remount-ro", "/", "--chdir", "/tmp"]
    python = home / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    limits = [str(max(1, round(seconds))), str(memory_mib << 20), str(asker)]
    return [*words, str(python), "-I", "-S", "-B", "-c", LAUNCH, *limits]


def _memory_file(content: bytes) -> int:
    """Return a descriptor that reads `content`."""
    descriptor = os.memfd_create("sandbox")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


# Numbers of machines and system calls. Source: Linux, audit.h, unistd_64.h, asm-generic/unistd.h
MACHINES = {
    "x86_64": (0xC000003E, {"clone": 56, "fork": 57, "vfork": 58, "unshare": 272, "clone3": 435}),
    "aarch64": (0xC00000B7, {"clone": 220, "unshare": 97, "clone3": 435}),
}
CLONE_THREAD = 0x00010000
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _no_processes() -> bytes:
    """Return the seccomp filter that allows threads but no other processes and no namespaces.

    RLIMIT_NPROC does not bind root, and counts the user's other processes. A filter is a list of
    struct sock_filter {u16 code; u8 jump if true, if false; u32 operand}.
    Source: Linux, Documentation/userspace-api/seccomp_filter.rst.
    """
    if platform.machine() not in MACHINES:
        problem = f"no sandbox for {platform.machine()}"
        raise DstoolsError(problem, "judge code on x86_64 or aarch64")
    machine, calls = MACHINES[platform.machine()]
    rules = [
        (LOAD, 0, 0, 4),  # the machine, from struct seccomp_data
        (EQUAL, 1, 0, machine),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, 0),  # the number of the system call
        (AT_LEAST, 0, 1, 0x40000000),  # x32 calls of x86_64
        (RETURN, 0, 0, REFUSE),
    ]
    for name, number in calls.items():
        match name:
            case "clone":  # allowed for threads; its flags are the first argument
                rules += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, CLONE_THREAD)]
                rules += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
            case "clone3":  # flags not visible to a filter; glibc falls back to clone
                rules += [(EQUAL, 0, 1, number), (RETURN, 0, 0, UNKNOWN)]
            case _:
                rules += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    rules.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)
