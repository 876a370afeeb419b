"""Completion in the shells, by the line of the README: commands, options, choices and files."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
Complete = Callable[[str], list[str]]
# each takes the line that was typed from $LINE, and prints what the shell offers for its last word
BASH = """
{line}
read -r _ _ _ _ function _ <<< "$(complete -p dstools)"  # complete -o nosort -F NAME dstools
IFS=' ' read -r -a COMP_WORDS <<< "$LINE"
[[ $LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo files; }}  # bash completes them
$function dstools
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{ function=$1; }}
_describe() {{ print -l -- ${{completions_with_descriptions%%:*}}; }}
compadd() {{ print -l -- $completions; }}
_path_files() {{ echo files; }}
{line}
words=("${{(@s: :)LINE}}")
CURRENT=${{#words}}
$function
"""
FISH = """
{line}
complete -C $LINE | string split -f 1 \\t
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def line_for(shell: str) -> str:
    """Return the line of the README, as it says to write it for `shell`."""
    (line,) = re.findall(r"`(eval .*_DSTOOLS_COMPLETE.*)`", README)
    assert f"`{shell}_source`" in README or f"{shell}_source" in line
    return line.replace("bash_source", f"{shell}_source")


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    """complete(line): what a shell offers for the last word of the line."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"not run: needs {shell}")
    command = tmp_path / "bin" / "dstools"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dstools "$@"\n')
    command.chmod(0o755)
    script = SHELLS[shell].format(line=line_for(shell))
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]

    def ask(line: str) -> list[str]:
        path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [shell, *options, "-c", script],
            env=os.environ | {"LINE": line, "PATH": path, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return ask


def test_commands_options_and_choices_are_completed(complete: Complete) -> None:
    assert complete("dstools quan") == ["quantize"]
    assert complete("dstools distill de") == ["decontaminate"]
    assert complete("dstools quantize --sca") == ["--scale-fmt"]
    assert complete("dstools verify --engine v") == ["vllm"]
    assert set(complete("dstools verify --s")) == {"--source", "--sums", "--signed-by"}


def test_files_are_completed_where_one_is_asked_for(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "DeepSeek-V3").mkdir()
    for line in ("dstools verify Deep", "dstools verify x --source Deep"):
        assert complete(line) in (["files"], ["DeepSeek-V3/"])  # fish lists them itself
