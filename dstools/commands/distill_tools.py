"""`dstools distill index` and `doctor`: the tools beside the stages of a recipe."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from dstools.options import FELL_SHORT, Command, json_option, option, path_argument, show


@click.command(
    cls=Command,
    short_help="Hash benchmarks into an index for decontaminate.",
    epilog="dstools distill index benchmarks.ngrams aime24.jsonl math500.jsonl\n"
    "dstools distill index benchmarks.ngrams gpqa.parquet --json",
)
@path_argument("out", metavar="OUT", help="The index to write; it must not exist.")
@path_argument(
    "files", metavar="FILE...", nargs=-1, required=True, help="Your copies of benchmarks."
)
@json_option
def index(out: str, files: tuple[str, ...], as_json: bool) -> None:
    """Hash your copies of benchmarks into an index for `decontaminate`.

    The index holds no text. A file is JSONL, Parquet, or plain text with one problem per line.
    """
    from dstools_distill.data.decontaminate import build_index

    built = build_index([Path(file) for file in files], Path(out))
    lines = [f"{name:24} {rows:8,} rows" for name, rows in built.benchmarks.items()]
    show(built, as_json, "\n".join([*lines, f"wrote {out}"]))


@click.command(
    cls=Command,
    short_help="Show what a trainer would lose of a trace.",
    epilog="dstools distill doctor ./Qwen2.5-7B --config trl.yaml --data traces.jsonl\n"
    "dstools distill doctor ./Qwen2.5-7B --prepared last_run_prepared --data traces.jsonl",
)
@path_argument("tokenizer", metavar="TOKENIZER", help="A folder with a tokenizer, or org/name.")
@option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration of a trainer: TRL (run here), LLaMA-Factory or axolotl.",
)
@option(
    "--prepared",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Judge the tokenized data that a trainer wrote: a folder, JSONL, Arrow or Parquet.",
)
@option(
    "--data",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Run TRL on these rows, or compare the prepared data with those that it was made of.",
)
@json_option
def doctor(
    tokenizer: str, config: Path | None, prepared: Path | None, data: Path | None, as_json: bool
) -> None:
    """Show what another trainer would train on, and what of a trace would be lost.

    TRL's own code is run for --config; axolotl and LLaMA-Factory prepare their data themselves, and
    --prepared judges it. TOKENIZER is the one that serves. Exits 3 if anything would be lost.
    """
    from dstools.source import resolve
    from dstools_distill.tokens.doctor import diagnose, diagnose_prepared, text

    if prepared and config:
        raise click.UsageError("--prepared holds the rows: leave out --config")
    with redirect_stdout(sys.stderr):  # what libraries print is no part of the result
        folder = resolve(tokenizer)
        if prepared:
            diagnosis = diagnose_prepared(folder, prepared, data)
        else:
            diagnosis = diagnose(folder, config, data)
    show(diagnosis, as_json, text(diagnosis))
    if any(finding.level == "error" for finding in diagnosis.findings):
        click.get_current_context().exit(FELL_SHORT)
