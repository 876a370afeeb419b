"""Runs programs of strangers, in bubblewrap or not at all, and compares what they print.

A gold is JSON: [{"stdin": "2 3\\n", "stdout": "5\\n"}, ...]. The program sees an input and never what is
expected; this process compares the bytes, white space at ends of lines and of the text aside. What a program
says of itself is never believed.

Inside: no network, no environment, no files but Python's and the system's libraries, read-only; 16 MiB to
write in /tmp; no second process; limits of CPU time, memory and output. The processes of a sandbox
end with it, and it ends with this process.
"""

import json
import os
import platform
import select
import shutil
import struct
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError

MAX_OUTPUT_BYTES = 1 << 20
TMP_BYTES = 16 << 20
WALL_FACTOR = 3  # a program that sleeps is ended after so many times its CPU time
MAX_CASES = 100
LAUNCH = """
import builtins, resource, runpy, sys
builtins.exit = builtins.quit = sys.exit  # which site would do
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
for what, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory),
                    (resource.RLIMIT_FSIZE, 1 << 24), (resource.RLIMIT_NOFILE, 64),
                    (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (limit, limit))
sys.argv[:] = ["/job/main.py"]
runpy.run_path("/job/main.py", run_name="__main__")
"""


class Ran(NamedTuple):
    """How a program ended."""

    stdout: bytes
    problem: str  # "", "failed", "timeout" or "output-flood"


def read_cases(gold: str) -> list[dict[str, str]] | None:
    """Return the cases of a gold; None where it is not a list of at most 100 of them."""
    try:
        cases = json.loads(gold)
    except ValueError:
        return None
    is_list = isinstance(cases, list) and 0 < len(cases) <= MAX_CASES
    return cases if is_list and all(map(_is_case, cases)) else None


def _is_case(case: Any) -> bool:
    return (
        isinstance(case, dict)
        and set(case) == {"stdin", "stdout"}
        and all(isinstance(each, str) for each in case.values())
    )


def judge(program: str, cases: list[dict[str, str]], seconds: float, memory_mib: int) -> str:
    """Return "" where a program prints what every case expects, else "word: detail" of the first that fails.

    Raises DstoolsError where there is no bubblewrap that works.
    """
    require()
    for number, case in enumerate(cases, start=1):
        ran = run(program, case["stdin"].encode(), seconds, memory_mib)
        if ran.problem:
            return f"code-{ran.problem}: case {number}"
        if _lines(ran.stdout) != _lines(case["stdout"].encode()):
            return f"code-output: case {number}"
    return ""


def _lines(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


@cache
def require() -> None:
    """Raise DstoolsError unless bubblewrap is there and works."""
    problem = "is not installed"
    if shutil.which("bwrap"):
        ran = run("print(6 * 7)", b"", seconds=10, memory_mib=512)
        if ran.stdout == b"42\n":
            return
        problem = "does not work here"
    raise DstoolsError(
        f"code answers are judged in bubblewrap alone, which {problem}",
        "apt install bubblewrap; the system must allow user namespaces",
    )


def run(program: str, stdin: bytes, seconds: float, memory_mib: int) -> Ran:
    """Run a Python program in a sandbox of its own, one CPU, its errors thrown away."""
    files = [_memory_file(content) for content in (program.encode(), _no_processes(), stdin)]
    try:
        process = subprocess.Popen(
            _command(files[0], files[1], seconds, memory_mib),
            stdin=files[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=files[:2],
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
    finally:
        for file in files:
            os.close(file)
    with process:
        try:
            return _collect(process, time.monotonic() + WALL_FACTOR * seconds + 1)
        finally:
            process.kill()  # and with it, by --die-with-parent, all that is inside


def _collect(process: subprocess.Popen[bytes], deadline: float) -> Ran:
    """Read what a process prints until it ends, floods or is late."""
    assert process.stdout is not None
    found = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        piece = os.read(process.stdout.fileno(), 1 << 16)
        found += piece
        if len(found) > MAX_OUTPUT_BYTES:
            return Ran(found[:MAX_OUTPUT_BYTES], "output-flood")
        if not piece:
            try:
                code = process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                break
            # 128 + SIGXCPU or SIGKILL: the limit of CPU time
            return Ran(found, "timeout" if code in (152, 137) else "failed" if code else "")
    return Ran(found, "timeout")


def _command(program: int, rules: int, seconds: float, memory_mib: int) -> list[str]:
    """Return the command line of bubblewrap."""
    home = Path(sys.base_prefix).resolve()
    libraries = [
        name for name in ("/usr", "/lib", "/lib64", "/lib32", "/bin") if Path(name).exists()
    ]
    words = [
        "bwrap", "--unshare-all", "--clearenv", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--hostname", "sandbox", "--seccomp", str(rules),
    ]  # fmt: skip
    for name in libraries:
        path = Path(name)
        words += (
            ["--symlink", os.fspath(path.readlink()), name]
            if path.is_symlink()
            else ["--ro-bind", name, name]
        )
    if not any(home.is_relative_to(name) for name in libraries):
        words += ["--ro-bind", str(home), str(home)]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", device, device]
    words += ["--proc", "/proc", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
    words += [
        "--ro-bind-data",
        str(program),
        "/job/main.py",
        "--remount-ro",
        "/",
        "--chdir",
        "/tmp",
    ]
    python = home / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    limits = [str(max(1, round(seconds))), str(memory_mib << 20)]
    return [*words, str(python), "-I", "-S", "-B", "-c", LAUNCH, *limits]


def _memory_file(content: bytes) -> int:
    """Return a descriptor that reads `content`."""
    descriptor = os.memfd_create("sandbox")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


# Numbers of system calls and of the machine. Source: Linux, asm/unistd_64.h, asm-generic/unistd.h, audit.h.
MACHINES = {
    "x86_64": (0xC000003E, {"clone": 56, "fork": 57, "vfork": 58, "unshare": 272, "clone3": 435}),
    "aarch64": (0xC00000B7, {"clone": 220, "unshare": 97, "clone3": 435}),
}
CLONE_THREAD = 0x00010000
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _no_processes() -> bytes:
    """Return the seccomp filter that allows threads, no other processes and no namespaces.

    RLIMIT_NPROC would not do: it does not bind root, and counts what else a user runs. A program is a list of
    struct sock_filter {u16 code; u8 jump if true, if false; u32 operand}; see Linux, seccomp_filter.rst.
    """
    if platform.machine() not in MACHINES:
        raise DstoolsError(
            f"no sandbox for {platform.machine()}", "judge code on x86_64 or aarch64"
        )
    machine, calls = MACHINES[platform.machine()]
    rules = [
        (LOAD, 0, 0, 4),  # the machine, of struct seccomp_data
        (EQUAL, 1, 0, machine),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, 0),  # the number of the call
        (AT_LEAST, 0, 1, 0x40000000),  # the x32 calls of x86_64
        (RETURN, 0, 0, REFUSE),
    ]
    for name, number in calls.items():
        match name:
            case "clone":  # a thread, or not: its flags are the first argument
                rules += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, CLONE_THREAD)]
                rules += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
            case "clone3":  # its flags cannot be seen; glibc then takes clone
                rules += [(EQUAL, 0, 1, number), (RETURN, 0, 0, UNKNOWN)]
            case _:
                rules += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    rules.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)
