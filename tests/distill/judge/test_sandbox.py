"""Tests of the sandbox: each way out is tried, and closed."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.judge import sandbox
from dstools_distill.judge.sandbox import LAUNCH, Result, judge, run

needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="needs apt install bubblewrap")


def ran(program: str, stdin: bytes = b"", seconds: float = 1) -> Result:
    return run(program, stdin, seconds, memory_mib=256)


@needs_bwrap
def test_a_program_reads_its_input_and_prints() -> None:
    assert ran("print(input()[::-1])", b"abc\n") == Result(b"cba\n", "")
    assert ran("import sys; print(len(sys.stdin.read()))", b"x" * 1_000_000).stdout == b"1000000\n"


@needs_bwrap
def test_a_program_that_raises_has_failed() -> None:
    assert ran("print(1); 1 / 0") == Result(b"1\n", "failed")


@needs_bwrap
def test_the_environment_is_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert b"secret" not in ran("import os; print(dict(os.environ))").stdout
    # nor in the environment of any process that it can see
    look = "import glob\nfor f in glob.glob('/proc/[0-9]*/environ'): print(open(f).read())"
    assert b"secret" not in ran(look).stdout


@needs_bwrap
def test_no_file_outside_can_be_read(tmp_path: Path) -> None:
    token = Path.home() / ".cache" / "huggingface" / "token"
    (tmp_path / "token").write_text("secret")
    for path in (tmp_path / "token", token, Path("/etc/passwd"), Path(__file__)):
        assert ran(f"print(open({str(path)!r}).read())").problem == "failed"


@needs_bwrap
def test_no_file_outside_can_be_written(tmp_path: Path) -> None:
    for path in (
        tmp_path / "x",
        Path("/usr/x"),
        Path("/x"),
        Path("/job/main.py"),
        Path("/dev/shm/x"),
    ):
        assert ran(f"open({str(path)!r}, 'w').write('x')").problem == "failed"
        assert not (path.exists() and path.name == "x")
    assert ran("open('/tmp/x', 'w').write('x'); print('ok')") == Result(b"ok\n", "")
    assert not Path("/tmp/x").exists()


@needs_bwrap
@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(600)",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os\nwhile True: os.fork()",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).syscall(57) >= 0",
        "import ctypes; assert ctypes.CDLL(None).syscall(435, 0, 0) >= 0",
        "import multiprocessing as m; m.Process(target=print).start()",
    ],
)
def test_no_second_process_can_be_started(program: str) -> None:
    assert ran(program).problem == "failed"


@needs_bwrap
def test_threads_can_be_started() -> None:
    program = "import threading as t; x = t.Thread(target=print, args=(1,)); x.start(); x.join()"
    assert ran(program) == Result(b"1\n", "")


@needs_bwrap
def test_memory_is_bounded() -> None:
    program = "try: bytearray(3 << 30)\nexcept MemoryError: print('refused')"
    assert ran(program) == Result(b"refused\n", "")
    fill = "for i in range(100): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))"
    assert ran(fill).problem == "failed"


@needs_bwrap
def test_output_is_bounded() -> None:
    flood = ran("while True: print('x' * 100_000)", seconds=5)
    assert flood.problem == "output-flood"
    assert len(flood.stdout) == sandbox.MAX_OUTPUT_BYTES


@needs_bwrap
def test_time_is_bounded_asleep_and_at_work() -> None:
    started = time.monotonic()
    assert ran("while True: pass").problem == "timeout"
    assert ran("import time; time.sleep(600)").problem == "timeout"
    assert time.monotonic() - started < 60


@needs_bwrap
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        dial = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
        assert ran(dial).problem == "failed"


def processes(mark: int) -> list[str]:
    """The sandboxes whose limit of memory is `mark` MiB."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(mark << 20).encode() in path.read_bytes():
                numbers.append(path.parent.name)
    return numbers


@needs_bwrap
def test_no_process_outlives_its_sandbox() -> None:
    assert run("import time; time.sleep(600)", b"", 0.2, memory_mib=267).problem == "timeout"
    assert wait_for(lambda: not processes(267))


@needs_bwrap
def test_a_sandbox_ends_with_the_process_that_made_it() -> None:
    code = "from dstools_distill.judge.sandbox import run; run('while True: pass', b'', 600, 271)"
    with subprocess.Popen([sys.executable, "-c", code]) as asker:
        assert wait_for(lambda: len(processes(271)) >= 2)  # the second may not be watched yet
        asker.kill()
    assert wait_for(lambda: not processes(271))


@pytest.mark.parametrize("is_there", [True, False])
def test_no_program_starts_after_the_process_that_asked(is_there: bool) -> None:
    """Bubblewrap does not notice a parent that ended before it began to watch."""
    watched, held = os.pipe()
    if not is_there:
        os.close(held)
    command = [sys.executable, "-I", "-S", "-c", LAUNCH, "5", str(1 << 30), str(watched)]
    started = subprocess.run(command, pass_fds=[watched], capture_output=True, check=False)
    os.close(watched)
    if is_there:
        os.close(held)
    assert (b"/job/main.py" in started.stderr) == is_there  # there is none outside
    assert started.returncode == 1


def wait_for(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


ADDS = "a, b = map(int, input().split())\nprint(a + b)"
CASES = [{"stdin": "2 3\n", "stdout": "5"}, {"stdin": "20 3\n", "stdout": "23\n"}]


@needs_bwrap
@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (ADDS, ""),
        (ADDS + "; print('  ')", ""),  # white space at the end does not count
        ("print(5)", "code-output: case 2"),
        ("print('passed'); exit(0)", "code-output: case 1"),
        ("class Same(str):\n  __eq__ = lambda a, b: True\nprint(Same('x'))", "code-output: case 1"),
        ("1 / 0", "code-failed: case 1"),
        ("import numpy", "code-no-module: case 1"),
        ("def main():\n  import numpy.linalg\nmain()", "code-no-module: case 1"),
        (f"try: import numpy\nexcept ImportError: pass\n{ADDS}", ""),
        ("import sys; sys.exit(79)", "code-failed: case 1"),  # as of a module that is not there
        ("import sys; sys.exit(137)", "code-failed: case 1"),  # as of a time limit
        (f"{ADDS}; exit(0)", ""),
        ("import os.nothing", "code-failed: case 1"),  # the program's fault
        ("from math import nothing", "code-failed: case 1"),
        ("while True: pass", "code-timeout: case 1"),
        ("while True: print('x' * 100_000)", "code-output-flood: case 1"),
    ],
)
def test_a_program_is_judged_only_by_its_output(program: str, problem: str) -> None:
    assert judge(program, CASES, seconds=1, memory_mib=256) == problem


@needs_bwrap
@pytest.mark.parametrize(
    ("printed", "wanted", "problem"),
    [
        ("0.3333333333333333", "0.333333\n", "code-form: case 1"),  # the tolerance is not known
        ("3.0", "3\n", "code-form: case 1"),
        ("Yes", "YES\n", "code-form: case 1"),
        ("1 2", "1\n2\n", "code-form: case 1"),
        ("0.3334", "0.333333\n", "code-output: case 1"),
        ("3000001", "3000000\n", "code-output: case 1"),  # integers are exact
        ("1 2 2", "1 2\n", "code-output: case 1"),
    ],
)
def test_an_output_that_differs_in_form_alone_is_not_called_wrong(
    printed: str, wanted: str, problem: str
) -> None:
    cases = [{"stdin": "", "stdout": wanted}]
    assert judge(f"print({printed!r})", cases, seconds=1, memory_mib=256) == problem


@needs_bwrap
def test_a_wrong_output_outweighs_one_that_differs_in_form() -> None:
    cases = [{"stdin": "", "stdout": "A"}, {"stdin": "", "stdout": "b"}]
    assert judge("print('a')", cases, seconds=1, memory_mib=256) == "code-output: case 2"


def test_without_bubblewrap_no_code_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.require.cache_clear()
    with pytest.raises(DstoolsError, match="is not installed") as caught:
        judge("open('/tmp/ran', 'w')", CASES, seconds=1, memory_mib=256)
    assert "apt install bubblewrap" in caught.value.hint
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    sandbox.require.cache_clear()
    with pytest.raises(DstoolsError, match="does not work here"):
        judge("print(1)", CASES, seconds=1, memory_mib=256)
    sandbox.require.cache_clear()
