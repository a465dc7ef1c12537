"""`FreezeAudit`: the audit of weights without a schedule."""

from __future__ import annotations

from lightning_freeze.audit.requires_grad import RequiresGradWatch
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.arguments import OnFinding
from lightning_freeze.trainer.audited import _Audited


class FreezeAudit(_Audited):
    """Proves that parameters with ``requires_grad=False`` keep every bit, and that the others move.

    It schedules nothing: for runs that freeze by other means, such as BackboneFinetuning, PEFT or code of one's own. As
    the ``audit`` of a `FreezeScheduler`, it says how the scheduler audits.

    Args:
        every_n_updates: Also compare after every so many optimizer steps, for runs of one long epoch.
        on_finding: Whether a violation stops the run, after saving it, or warns. Default: as the scheduler's, and ``raise``
            without one.
        inputs: Whether to audit, in the first batch of an epoch and the first of its validation, that every module uses
            its inputs; findings are warnings. An `InputAudit` in the same Trainer replaces this.

    Raises:
        FreezeViolation: A frozen parameter moved.

    Example:
        >>> FreezeAudit(every_n_updates=1000).findings
        []
    """

    def __init__(
        self, every_n_updates: int | None = None, on_finding: OnFinding | None = None, inputs: bool = True
    ) -> None:
        super().__init__("raise" if on_finding is None else on_finding, every_n_updates, inputs)
        self.inputs = inputs
        self.every_n_updates = every_n_updates
        self.on_finding = on_finding
        self._watch: RequiresGradWatch | None = None

    def on_fit_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self.created_by == "switch" and any(isinstance(c, _Audited) and c is not self for c in trainer.callbacks):  # type: ignore[attr-defined]
            self._engine = self._watch = None
            return
        self._begin_report(trainer, pl_module)
        suspects = seam.averaging_callbacks(trainer)
        self._watch = self._engine = RequiresGradWatch(pl_module, suspects=suspects, record=self._record)
        self._watch.attach(*trainer.optimizers, run=seam.run_context(trainer, pl_module))

    def on_train_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._watch is not None:
            self._watch.begin(trainer.current_epoch)
            self._running = True
