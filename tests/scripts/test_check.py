"""scripts/check.sh and ladder.sh: what they print at the end, with stubs for all that they run."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
# pytest writes what it is asked for, and what Triton's bindings write at exit
PYTEST = """#!/bin/sh
echo "$TRITON_INTERPRET: $*"
echo "nanobind: leaked" >&2
case "$*" in *$BROKEN*) exit 1;; esac
"""
REPORT = "== ladder: L0 interpreter: 3 s, 2 s of CPU"  # what the stub of the last command prints


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str], tuple[int, list[str]]]:
    """check(broken): the exit status and lines of check.sh if pytest fails on such arguments"""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("check.sh", "ladder.sh"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts" / name)
    stubs = dict.fromkeys(("ruff", "mypy", "lint-imports"), "#!/bin/sh\n")
    stubs |= {"pytest": PYTEST, "python": f"#!/bin/sh\necho '{REPORT}'\n"}
    for name, text in stubs.items():
        stub = tmp_path / "bin" / name
        stub.write_text(text)
        stub.chmod(0o755)

    def run(broken: str) -> tuple[int, list[str]]:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", tmp_path / "scripts/check.sh", "-x"],
            env={"PATH": path, "BROKEN": broken},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()

    return run


def test_a_ladder_that_passed_is_a_line_a_step(
    check: Callable[[str], tuple[int, list[str]]],
) -> None:
    status, lines = check("nothing")
    assert status == 0
    assert lines[-2:] == [REPORT, "== all checks passed"]
    assert lines.count("nanobind: leaked") == 1  # that of the main tests


@pytest.mark.parametrize(
    ("broken", "failed"),
    [("-x", "pytest"), ("test_sanitizer", "ladder.sh"), ("-q", "pytest builds ladder.sh")],
)
def test_the_last_line_names_what_failed(
    check: Callable[[str], tuple[int, list[str]]], broken: str, failed: str
) -> None:
    status, lines = check(broken)
    assert status == 1
    assert lines[-1] == f"== failed: {failed}"


def test_a_ladder_that_failed_is_shown_as_a_whole_up_to_the_step(
    check: Callable[[str], tuple[int, list[str]]],
) -> None:
    _, lines = check("test_sample_answers")
    assert lines[-4].startswith("1: -q ")
    assert lines[-4].endswith(" tests/scripts/engines/test_sample_answers.py -k interpreted")
    assert lines[-3:] == [
        "nanobind: leaked",
        "== ladder: failed: tests/scripts/engines/test_sample_answers.py -k interpreted",
        "== failed: ladder.sh",
    ]
    assert any("test_interpreter.py" in line for line in lines)
    assert lines.count("nanobind: leaked") == 3  # of the main tests, of the builds and of the step


def test_tests_that_are_ignored_run_beside_the_others(
    check: Callable[[str], tuple[int, list[str]]],
) -> None:
    _, lines = check("test_compile")  # the last of the ladder, so that all show
    (main,) = (line for line in lines if "--ignore" in line and line.startswith(":"))
    beside = {
        word for line in lines if "--times" in line or "-q tests" in line for word in line.split()
    }
    ignored = {words.split()[0] for words in main.split("--ignore ")[1:]}
    assert len(ignored) == 4
    assert ignored <= beside
