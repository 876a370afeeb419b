"""A process that works through a list of jobs on a card and prints each result as a line.

    python -m dstools_kernels.proof.worker FIRST

A kernel that hangs or touches foreign memory takes its process along. So a worker prints a line of
JSON before each job and after it, and whoever started it continues with the next job in a new one.
Lines are {"job": number, "name"}, {"part": "ceilings", ...}, {"part": "checks" | "forms", ...},
{"part": "times", ...} and, the first time that an op runs in a form, {"part": "notes", "text"}.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch

from dstools_kernels.ops import dispatch
from dstools_kernels.proof import card, cases
from dstools_kernels.proof.cases import Case
from dstools_kernels.proof.forms import decode_forms, vendor_forms
from dstools_kernels.proof.roofline import HEADS, HIDDEN, VALUE


class Job(NamedTuple):
    """A case to check and, at a shape of V3, to time; or what the card does at best to measure."""

    part: Literal["ceilings", "checks", "forms"]  # a form that is wrong stays off
    case: Case | None = None  # of the other two parts
    is_timed: bool = False

    @property
    def name(self) -> str:
        """Return the op and its shape, or the part."""
        return self.case.name if self.case else self.part


def jobs(is_card: bool) -> list[Job]:
    """Return what there is to do, in order; on a CPU little of it."""
    if not is_card:
        return [
            Job("ceilings"),
            *(Job("checks", case, case is cases.SMALL[-1]) for case in cases.SMALL),
        ]
    forms = [*vendor_forms(4096, HIDDEN, HEADS * VALUE), *decode_forms(cases.BATCH)]
    return [
        Job("ceilings"),
        *(Job("checks", case) for case in cases.SMALL),
        *(Job("checks", case, True) for case in cases.V3),
        *(Job("forms", case, True) for case in forms),
    ]


def work(first: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield what the lines say, from job number `first` on."""
    is_card = device.type == "cuda"
    for number, job in enumerate(jobs(is_card)[first:], start=first):
        yield {"job": number, "name": job.name}
        if job.case is None:
            yield {"part": job.part} | card.ceilings(device, 8192 if is_card else 256)
            continue
        checked = card.check(job.case, device)
        yield {"part": job.part} | asdict(checked)
        if checked.is_right and job.is_timed:
            yield {"part": "times"} | asdict(card.timed(job.case, device))


class Notes(logging.Handler):
    """Passes on what the ops log: in which form each runs, and why."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on one line, unless definitions were asked for, to compare with."""
        if dispatch.kernels() != "reference":
            self.note(record.getMessage())


def listen(note: Callable[[str], None]) -> None:
    """Call `note` with each line that the ops log from now on."""
    dispatch.log.setLevel(logging.INFO)
    dispatch.log.addHandler(Notes(note))


def main() -> None:
    """Print the lines."""
    listen(lambda text: say({"part": "notes", "text": text}))
    for line in work(int(sys.argv[1]), card.prepare()):
        say(line)


def say(line: dict[str, Any]) -> None:
    """Print one line at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
