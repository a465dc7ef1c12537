"""Watches the inputs of modules along the batches of a Trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_freeze.inputs.audit import InputsAudit
from lightning_freeze.inputs.tracer import Tracer
from lightning_freeze.report.findings import Finding
from lightning_freeze.trainer.seam import LightningModule, redirects

_TRAINERS_OWN = ("_trainer", "_fabric")


class InputWatch:
    """An `InputsAudit` that is on in some batches of some epochs.

    Args:
        module: The root of the modules to watch.
        every_n_epochs: In every so many epochs.
        batches: In so many batches from the beginning of an epoch, and of each validation in it.
        options: As for `InputsAudit`.
    """

    def __init__(self, module: LightningModule, every_n_epochs: int = 1, batches: int = 1, **options: Any) -> None:
        self._every_n_epochs, self._batches = every_n_epochs, batches
        self.audit = InputsAudit(module, transparent=redirects, without=_TRAINERS_OWN, yields=True, **options)
        self._open = False
        self._told: set[tuple[str | None, ...]] = set()

    def begin_batch(self, epoch: int, batch: int) -> None:
        """A batch begins."""
        self.end_batch()
        if batch < self._batches and epoch % self._every_n_epochs == 0 and Tracer.active is None:
            self.audit.__enter__()
            self._open = True

    def end_batch(self) -> None:
        """A batch has ended, or something was raised in it."""
        if self._open:
            self._open = False
            self.audit.__exit__()

    def end_epoch(self, epoch: int) -> tuple[list[Finding], list[Finding]]:
        """An epoch has ended: what was found in it, and what of that is new in this run."""
        self.end_batch()
        findings = [replace(finding, epoch=epoch) for finding in self.audit.findings]
        fresh = [finding for finding in findings if self._key(finding) not in self._told]
        self._told |= {self._key(finding) for finding in fresh}
        self.audit.reset()
        return findings, fresh

    def end_run(self) -> list[Finding]:
        """The run has ended: the declarations that covered nothing in all of it."""
        self.end_batch()
        return self.audit.stale

    @staticmethod
    def _key(finding: Finding) -> tuple[str | None, ...]:
        return finding.module, finding.module_class, finding.argument, finding.kind
