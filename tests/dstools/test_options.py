"""The parts that commands share: help by section, records of options, output, sizes, the bar."""

import json
import math
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from dstools.options import SETTINGS, SIZE, Command, gather, hint_command, option, show

Run = Callable[..., Result]


def test_the_progress_bar_is_in_bytes_and_only_for_a_terminal(
    tiny_aligned: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "dstools", "quantize", str(tiny_aligned)]
    piped = subprocess.run(
        [*command, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert len(piped.stderr.splitlines()) == 1  # the hint
    mine, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    ended = subprocess.run(
        [*command, str(tmp_path / "b")],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(mine, 4096):
            shown += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(mine)
    assert "convert: 100%" in shown.decode()
    assert "B/s" in shown.decode()
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("7", 7), ("5GB", 5 * 10**9), ("1.5 kB", 1500), ("64 MiB", 64 << 20), ("1tib", 1 << 40)],
)
def test_an_option_reads_a_size_with_or_without_unit(text: str, nbytes: int) -> None:
    assert SIZE.convert(text, None, None) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1", "5 XB", "1e9", "5GBs"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as 5GB or 500MiB"):
        SIZE.convert(text, None, None)


def test_options_are_listed_by_section_in_the_order_of_their_declaration() -> None:
    @click.command(cls=Command, epilog="a\nb", context_settings=SETTINGS)
    @option("--one", section="First", help="1.")
    @option("--two", section="Second", help="2.")
    @option("--three", section="First", help="3.")
    def command(one: str, two: str, three: str) -> None:
        """Do it."""

    lines = CliRunner().invoke(command, ["--help"]).stdout.splitlines()
    words = [line.split()[0] for line in lines if line.strip()]
    assert words == [
        *("Usage:", "Do", "First:", "--one", "--three", "Second:", "--two"),
        *("Options:", "-h,", "Examples:", "a", "b"),
    ]


def test_gathered_options_arrive_as_one_record_in_the_order_declared() -> None:
    @dataclass(frozen=True)
    class Pair:
        second: int
        first: str

    @click.command(cls=Command)
    @click.argument("name")
    @gather("pair", Pair, option("--first"), option("--second", type=int, default=2))
    @option("--last")
    def command(name: str, pair: Pair, last: str) -> None:
        click.echo(f"{name} {pair.first} {pair.second} {last}")

    assert [param.name for param in command.params] == ["name", "first", "second", "last"]
    words = ["n", "--first", "a", "--last", "z"]
    assert CliRunner().invoke(command, words).stdout == "n a 2 z\n"


def test_json_has_null_where_a_number_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Report:
        values: list[float]
        by_name: dict[str, float]

    show(Report([math.nan, 1.5], {"a": math.inf}), True, "text")
    assert capsys.readouterr().out == '{"values": [null, 1.5], "by_name": {"a": null}}\n'
    show(Report([], {}), False, "two\nlines\x1b[0m")
    assert capsys.readouterr().out == "two\nlines\\x1b[0m\n"


def test_a_hint_is_quoted_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    hint_command("verify", "a folder")
    assert capsys.readouterr() == ("", "hint: dstools verify 'a folder'\n")


def test_names_cannot_act_on_the_terminal(
    dstools: Run, edited: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    name = json.dumps("model.\x1b]0;x\x07")[1:-1].encode()
    old = b"model.layers.1.input_layernorm.weight"[: len(name)]
    folder = edited(tiny, tmp_path / "in")
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.write_bytes(path.read_bytes().replace(old, name))
    for args in (["inspect", folder], ["compare", folder, folder], ["verify", folder]):
        output = dstools(*args).output
        assert "\x1b" not in output
        assert "\x07" not in output
