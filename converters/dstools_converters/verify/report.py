"""The report of a check, and how it grows."""

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.sidefiles.signature import Verifier
from dstools_converters.sidefiles.sums import SIGNATURE
from dstools_converters.verify.hashes import Hashing


@dataclass(frozen=True)
class Report:
    """The result of all checks; `ok` is False where a finding is an error."""

    folder: str
    ok: bool
    findings: list[Finding]
    checked: list[str]
    not_checked: list[str]
    tensors: int
    elements_compared: int  # with the source, each of them


@dataclass
class Results:
    """The results so far."""

    hashing: Hashing
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    elements_compared: int = 0

    def report(self, folder: Path, tensors: int) -> Report:
        """Return the report of `folder`, which holds so many tensors; hashes come first."""
        hashes = self.hashing.result()
        self.findings[:0] = hashes.findings
        return Report(
            folder=str(folder),
            ok=not self.has_error(),
            findings=self.findings,
            checked=hashes.checked + self.checked,
            not_checked=hashes.not_checked + self.not_checked,
            tensors=tensors,
            elements_compared=self.elements_compared,
        )

    def add_signature(self, folder: Path, signed_by: Verifier | None) -> None:
        """Check the signature, or say that there is one."""
        if signed_by is not None:
            findings = signed_by(folder)
            self.findings += findings
            self.checked += [] if findings else ["the signature of every file"]
        elif (folder / SIGNATURE).exists():
            self.not_checked.append("the signature: --signed-by")

    def has_error(self, codes: Container[str] | None = None) -> bool:
        """Return whether a finding is an error, of one of `codes` if given."""
        return any(
            finding.level == "error" and (codes is None or finding.code in codes)
            for finding in self.findings
        )

    def add_refusal(self, error: DstoolsError) -> None:
        """Add why the folder cannot be read as a checkpoint."""
        where, _, message = str(error).partition(": ")
        self.findings.append(Finding.error("unreadable", where, message, error.hint))
        self.not_checked.append("everything else: first mend the errors above")

    def add_config(self, error: DstoolsError) -> None:
        """Add that the config cannot be read."""
        where, _, message = str(error).partition(": ")
        # the file that this error is about is not one to remove
        known = ("quantization-file", where)
        self.findings[:] = [f for f in self.findings if (f.code, f.where) != known]
        self.findings.append(Finding.error("config", where, message, error.hint))
        self.not_checked.append("names, shapes, scales and values: the config cannot be read")
