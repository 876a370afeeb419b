"""Broken, hostile and odd checkpoints: what `inspect`, `verify` and the converters make of each.

A refusal names a file or tensor, in one line that is safe to print; nothing takes long, takes much
memory, leaves a folder that looks finished or changes its input. Each case is in `cases_*.py`.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases_config  # noqa: F401  each adds its cases to CASES
import cases_files  # noqa: F401
import cases_headers  # noqa: F401
import cases_valid  # noqa: F401
import cases_values  # noqa: F401
import pytest
from model import CANARY, CASES, Case, build

SECONDS = 10
MEMORY_KIB = 300 << 10
FELL_SHORT = 3
GROUPS = sorted({case.group for case in CASES})


def fingerprint(folder: Path) -> dict[str, object]:
    """Return what could change below a folder: names, types, links, times and contents."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        link = str(path.readlink()) if path.is_symlink() else ""
        found[str(path)] = status.st_mode, status.st_size, status.st_mtime_ns, link, content
    return found


def faults(case: Case, command: str, answer: dict[str, Any]) -> list[str]:
    """Return in what a command did not do as it should."""
    code, output = os.waitstatus_to_exitcode(answer["status"]), answer["output"]
    wanted = getattr(case, command if command in ("inspect", "verify") else "convert")
    codes = {0} if wanted != "refused" else {1, FELL_SHORT} if command == "verify" else {1}
    found = [] if code in codes else [f"exits with {code}, should be {wanted}"]
    lines = output.splitlines()
    level = {"refused": "error", "warned": "warning", "ok": "error"}[wanted]
    said = [line for line in lines if line.startswith(f"{level}: ")]
    if wanted == "ok" and said:
        found.append("says an error")
    if wanted != "ok" and not any(case.names in line for line in said):
        found.append(f"no {level} names {case.names}")
    if wanted == "refused" and command != "verify" and len(said) > 1:
        found.append("says several errors")
    if "Traceback" in output:
        found.append("prints a traceback")
    if not all(line.isprintable() for line in output.split("\n")):
        found.append("prints what steers a terminal")
    if answer["grown_kib"] > MEMORY_KIB:
        found.append(f"takes {answer['grown_kib'] >> 10} MiB")
    return found


def run(case: Case, folder: Path, ask: Callable[..., dict[str, Any]]) -> list[str]:
    """Return the faults of all commands on one case, which is written to `folder`/in."""
    source, out = folder / "in", folder / "out"
    model = build(case.base)
    case.change(model)
    model.write(source)
    before = fingerprint(source)
    found = []
    converters = ["quantize", "dequantize"] if case.base == "fp8" else ["quantize"]
    for command in ("inspect", "verify", *converters):
        target = out.with_name(f"out-{command}")
        args = [command, str(source), *([str(target)] if command in converters else [])]
        if command in converters:
            args += ["--no-fsync", "--workers", "2"]
        answer = ask(args=args, seconds=SECONDS)
        wrong = faults(case, command, answer)
        is_refused = case.convert == "refused" and command in converters
        if is_refused and (target.exists() or list(folder.glob(f"{target.name}*/**/config.json"))):
            wrong.append("leaves a folder that looks finished")
        is_sound = case.verify != "refused"  # else the output has the same fault
        if command in converters and not is_refused and is_sound and not wrong:
            again = ask(args=["verify", str(target)], seconds=SECONDS)
            if again["status"]:
                wrong.append(f"writes a folder that is not sound: {again['output']}")
        if wrong:
            found.append(f"{command}: {'; '.join(wrong)}\n{answer['output']}")
    if CANARY.exists():
        found.append("code of the folder was run")
    if fingerprint(source) != before:
        found.append("the input has changed")
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_every_case_of_a_group_has_its_verdict(
    group: str, fork_server: Any, tmp_path: Path
) -> None:
    ask = fork_server()
    wrong = []
    for number, case in enumerate(case for case in CASES if case.group == group):
        folder = tmp_path / str(number)
        folder.mkdir()
        wrong += [f"== {case.title}\n{fault}" for fault in run(case, folder, ask)]
    assert not wrong, f"{len(wrong)} verdicts are wrong\n" + "\n".join(wrong)


def test_there_are_broken_and_sound_cases_of_each_subject() -> None:
    broken = sum(case.is_broken for case in CASES)
    for page in ("docs/reliability.md", "CHANGELOG.md"):
        text = " ".join((Path(__file__).parents[2] / page).read_text().split())
        numbers = re.findall(r"(\d+) broken(?:,| and) (\d+) odd but sound", text)
        assert numbers == [(str(broken), str(len(CASES) - broken))], page
    assert sum(case.group == "valid" for case in CASES) >= 28


def test_titles_are_not_used_twice() -> None:
    counts = Counter(case.title for case in CASES)
    assert [title for title, count in counts.items() if count > 1] == []
