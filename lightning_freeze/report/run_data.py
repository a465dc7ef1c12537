"""What the records of a run say of it as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lightning_freeze.plan.costs import Size
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import CountsRecord, PhaseRecord, Record, RunRecord
from lightning_freeze.report.repeats import Runs
from lightning_freeze.report.run_table import verdict
from lightning_freeze.report.steps import StepKind, runs_of


@dataclass(frozen=True)
class RunData:
    """The records of a run; `RunReport` documents its fields."""

    path: Path
    runs: Sequence[RunRecord]
    phases: Sequence[PhaseRecord] = ()
    counts: Sequence[CountsRecord] = ()
    findings: Sequence[Finding] = ()
    _records: Sequence[Record] = field(default=(), repr=False)

    @property
    def run(self) -> RunRecord:
        """The ``run`` record that began the last fit."""
        return self.runs[-1]

    @cached_property
    def steps(self) -> Runs[StepKind]:
        """The optimizer steps in order, equal ones in a row as one with their number."""
        return runs_of(self._records)

    @property
    def updates(self) -> dict[str, int]:
        """Group to its updates."""
        return dict(self.counts[-1]["updates"]) if self.counts else dict.fromkeys(self.run["groups"], 0)

    @property
    def total(self) -> int:
        """The optimizer steps in which anything was updated."""
        return self.counts[-1]["total"] if self.counts else 0

    @property
    def intervals(self) -> int:
        """The frozen intervals that were compared, in all fits of the run."""
        last = {record.get("run"): record["intervals"] for record in self.counts}
        return sum(last.values())

    @property
    def sizes(self) -> dict[str, Size]:
        """Group to what it takes of memory; 0 where its record does not say."""
        groups = self.run["groups"].items()
        return {n: Size(g["elements"], g.get("gradient_bytes", 0), g.get("state_bytes") or 0) for n, g in groups}

    @property
    def violations(self) -> list[Finding]:
        """The findings that break the guarantee."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        buffers = len({finding.parameter for finding in self.findings if finding.audit == "buffers"})
        return verdict(self.intervals, len(self.violations), buffers)
