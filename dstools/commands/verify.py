"""The command `dstools verify`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.options import (
    FELL_SHORT,
    Command,
    json_option,
    one_line,
    option,
    path_argument,
    progress_bar,
    show,
    workers_option,
)

if TYPE_CHECKING:
    from dstools_converters.verify.engines import Engine
    from dstools_converters.verify.report import Report

EXAMPLES = """\
dstools verify ./DeepSeek-V3-fp8 --source ./DeepSeek-V3-bf16
dstools verify ./DeepSeek-V3-fp8 --engine vllm --tp 8"""
SHOWN = 20
SHOWN_ALIKE = 5  # of one code


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Check files, names, shapes, scales and values."
)
@path_argument(
    "folder", help="A checkpoint or exported folder, or org/name[@revision] in the Hub cache."
)
@option("--source", section="Checks", help="Compare every element with this source checkpoint.")
@option(
    "--engine",
    section="Checks",
    type=click.Choice(["vllm", "sglang", "trtllm", "transformers"]),
    help="Check this engine's requirements.",
)
@option(
    "--tp",
    section="Checks",
    type=click.IntRange(1, 1024),
    default=1,
    help="Check for tensor parallelism over this many GPUs; needs --engine.",
)
@option(
    "--sums",
    "checks_sums",
    section="Checks",
    is_flag=True,
    help="Hash every file and compare with SHA256SUMS and the Hub's download metadata.",
)
@option(
    "--signed-by",
    "key",
    metavar="PUB.pem",
    section="Checks",
    type=click.Path(path_type=Path),
    help="Check model.sig, and each file, with this elliptic curve key.",
)
@option(
    "--headers-only",
    section="Checks",
    is_flag=True,
    help="Read headers and scales, not the weights.",
)
@workers_option
@json_option
def verify(
    folder: str,
    source: str | None,
    engine: "Engine | None",
    tp: int,
    checks_sums: bool,
    key: Path | None,
    headers_only: bool,
    workers: int,
    as_json: bool,
) -> None:
    """Check a checkpoint: files, names, shapes and every value, with --source against that.

    Of what dstools export wrote, it checks every file and tensor against export.json, and graphs
    and configs against each other; with --source, every tensor against the checkpoint.
    Prints the findings, then what was checked and what was not. Exits with 3 on any error.
    """
    from dstools.source import resolve
    from dstools_converters.verify.folder import verify as verify_folder
    from dstools_converters.verify.hashes import bytes_to_read

    if tp > 1 and engine is None:
        raise click.UsageError("--tp needs --engine")
    if headers_only and source is not None:
        raise click.UsageError("--source reads the weights: leave out --headers-only")
    original = resolve(source) if source else None
    signed_by = None
    if key is not None:
        from dstools_converters.sidefiles.signature import load_verifier

        signed_by = load_verifier(key)
    place = resolve(folder)
    total = bytes_to_read(place, checks_sums=checks_sums, headers_only=headers_only)
    with progress_bar(total, "verify") as progress:
        report = verify_folder(
            place,
            source=original,
            engine=engine,
            tp=tp,
            checks_sums=checks_sums,
            signed_by=signed_by,
            headers_only=headers_only,
            workers=workers,
            progress=progress,
        )
    show(report, as_json, _text(report, folder))
    if not report.ok:
        click.get_current_context().exit(FELL_SHORT)


def _text(report: "Report", folder: str) -> str:
    """Return findings and verdict; folder: as it was typed."""
    lines = []
    for level in ("error", "warning", "note"):
        findings = [finding for finding in report.findings if finding.level == level]
        shown: Counter[str] = Counter()
        for finding in findings:
            if shown[finding.code] == SHOWN_ALIKE or shown.total() == SHOWN:
                continue
            shown[finding.code] += 1
            lines.append(one_line(f"{level}: {finding.where}: {finding.message}"))
            if finding.hint:
                lines.append(one_line(f"  hint: {finding.hint}"))
        if len(findings) > shown.total():
            lines.append(f"{level}: {len(findings) - shown.total()} more; --json lists all")
    compared = report.elements_compared
    lines.append(f"checked: {'; '.join(report.checked)}")
    if report.not_checked:
        lines.append(f"not checked: {'; '.join(report.not_checked)}")
    counts = [f"{report.tensors} tensors"] if report.tensors else []  # some exports list none
    counts += [f"{compared} elements against the source"] if compared else []
    count = f" ({', '.join(counts)})" if counts else ""
    verdict = "ok" if report.ok else "falls short"
    lines.append(one_line(f"{folder}: {verdict}{count}"))
    return "\n".join(lines)
