"""A process that works through a list of jobs on a card and says what it found, line by line.

    python -m dstools_kernels.proof.worker FIRST

A kernel that hangs or touches foreign memory takes its process along. So a worker prints a line of
JSON before each job and after it, and whoever started it continues with the next job in a new one.
What the card can do at best comes before the first job. Lines are {"job": number, "name"},
{"part": "ceilings", ...}, {"part": "checks" | "forms", ...}, {"part": "times", ...} and, the first
time that an op runs in a form, {"part": "notes", "text"}.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from dstools_kernels.ops import dispatch
from dstools_kernels.proof import card, cases
from dstools_kernels.proof.cases import Case
from dstools_kernels.proof.forms import decode_forms, vendor_forms
from dstools_kernels.proof.roofline import HEADS, HIDDEN, VALUE


class Job(NamedTuple):
    """A case to check and, at a shape of V3, to time."""

    part: str  # "checks", or "forms": what is wrong of those stays off
    case: Case
    is_timed: bool


def jobs(is_card: bool) -> list[Job]:
    """Return what there is to do, in order; on a CPU little of it."""
    if not is_card:
        return [Job("checks", case, case is cases.SMALL[-1]) for case in cases.SMALL]
    forms = [*vendor_forms(4096, HIDDEN, HEADS * VALUE), *decode_forms(cases.BATCH)]
    return [
        *(Job("checks", case, False) for case in cases.SMALL),
        *(Job("checks", case, True) for case in cases.V3),
        *(Job("forms", case, True) for case in forms),
    ]


def work(first: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield what the lines say, from job number `first` on."""
    is_card = device.type == "cuda"
    if first == 0:
        yield {"part": "ceilings"} | card.ceilings(device, 8192 if is_card else 256)
    for number, job in enumerate(jobs(is_card)[first:], start=first):
        yield {"job": number, "name": job.case.name}
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
