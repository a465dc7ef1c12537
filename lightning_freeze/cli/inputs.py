"""``lightning-freeze inputs``: the unused inputs of modules, as a whitelist."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_freeze.cli.command import Command, at_least_one
from lightning_freeze.report.inputs_table import print_inputs
from lightning_freeze.report.table import print_line
from lightning_freeze.trainer.declarations import write_declarations
from lightning_freeze.trainer.input_audit import InputAudit
from lightning_freeze.trainer.seam import LightningModule, Trainer


class InputsCommand(Command):
    """Fits a few batches under the input audit, prints what it found, and writes a whitelist of it.

    An `InputAudit` of the configuration takes the place of the command's own.
    """

    options = {
        "out": (Path, "the whitelist to write, or to add to; by default inputs.yaml"),
        "batches": (int, "batches to run, of training and then of validation; by default 1"),
    }

    def __init__(self, given: Any) -> None:
        at_least_one(given, "batches")
        self.out: Path = given.get("out", Path("inputs.yaml"))
        self._batches = given.get("batches", 1)
        self._audit = InputAudit.create_for("command", batches=self._batches)

    def configure(self, trainer: Any) -> None:
        """A fit of a few batches."""
        trainer["fast_dev_run"] = self._batches

    @property
    def callbacks(self) -> list[Any]:
        """The audit."""
        return [self._audit]

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Fit; then print the findings, and write them."""
        fit()
        if not trainer.is_global_zero:
            return
        callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
        own = [c for c in callbacks if isinstance(c, InputAudit) and c.created_by == "user"]
        findings = (own[0] if own else self._audit).findings
        new = write_declarations(self.out, findings, datetime.date.today().isoformat())
        console = Console()
        if findings:
            print_inputs(console, findings)
        if new:
            said = f"{new} new {'entry' if new == 1 else 'entries'} written to {self.out}. Judge each; then keep it so:"
        elif any(finding.kind != "stale" for finding in findings):
            said = f"Nothing new: {self.out} lists all of it already. To keep it so:"
        else:
            said = "Nothing was found: every input is used, or declared. To keep it so:"
        print_line(console, f"{said}\n  InputAudit(on_finding='raise', whitelist={str(self.out)!r})")
