"""The one list of a run's findings, and the one channel through which records leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record


class Log:
    """Keeps findings and hands over records.

    Args:
        record: Called with each record of the run.

    Example:
        >>> log = Log(print)
        >>> log.record({"type": "counts", "epoch": 0})
        {'type': 'counts', 'epoch': 0}
        >>> log.findings
        []
    """

    def __init__(self, record: Callable[[Record], None]) -> None:
        self.findings: list[Finding] = []
        self.record = record

    def add(self, findings: Iterable[Finding]) -> list[Finding]:
        """Take in findings, each with a record."""
        found = list(findings)
        for finding in found:
            self.record({"type": "finding", **finding.as_dict()})
        self.findings += found
        return found

    def severities(self, epoch: int) -> dict[str, int]:
        """How many findings an epoch has of each severity."""
        counts = {"error": 0, "warning": 0, "info": 0}
        for finding in self.findings:
            counts[finding.severity] += finding.epoch == epoch
        return counts
