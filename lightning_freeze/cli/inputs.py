"""``lightning-freeze inputs``: what modules are handed and never use, as a whitelist."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from lightning_freeze.cli.command import Command, at_least_one
from lightning_freeze.report.inputs_table import print_inputs
from lightning_freeze.report.table import print_line
from lightning_freeze.trainer.declarations import write_declarations
from lightning_freeze.trainer.input_audit import InputAudit
from lightning_freeze.trainer.seam import LightningModule, Trainer


@dataclass(frozen=True)
class InputsCommand(Command):
    """``lightning-freeze inputs``: a fit of a batch or a few under the input audit, and a whitelist of what it found.

    Args:
        rest: The arguments of the fit.
        out: The whitelist's file.
        batches: How many batches to run.
        audit: The callback; it stands back where the configuration brings its own. Either is silent: the table tells.
    """

    name = "inputs"
    about = "what modules are handed and never use, as a whitelist"
    rest: list[str]
    out: Path
    batches: int
    audit: InputAudit

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """The command that these arguments ask for."""
        parser = argparse.ArgumentParser(
            "lightning-freeze inputs",
            description="Run a batch of training and one of validation under the input audit, print what modules are "
            "handed and do not use, and write a whitelist of it, so that an old project starts clean and only what is "
            "new is found. Everything else is as for `lightning-freeze fit`.",
        )
        parser.add_argument("--out", type=Path, default=Path("inputs.yaml"), help="the file to write, or to add to")
        parser.add_argument(
            "--batches", type=int, default=1, help="batches to run and to watch, of training and then of validation"
        )
        given, rest = parser.parse_known_args(arguments)
        at_least_one(parser, given, "batches")
        return cls(rest, given.out, given.batches, InputAudit.create_for("command", batches=given.batches))

    @property
    def as_fit(self) -> list[str]:
        """A fit of a few batches."""
        return [*super().as_fit, f"--trainer.fast_dev_run={self.batches}"]

    @property
    def callbacks(self) -> list[Any]:
        """The audit."""
        return [self.audit]

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Fit; then print what was found, and write it down."""
        fit()
        callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
        own = [c for c in callbacks if isinstance(c, InputAudit) and c.created_by == "user"]
        findings = (own[0] if own else self.audit).findings
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
        keep = f"  InputAudit(on_finding='raise', whitelist={str(self.out)!r})"
        print_line(console, f"{said}\n{keep}")
