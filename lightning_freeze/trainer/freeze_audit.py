"""`FreezeAudit`: the audit of weights without a schedule."""

from __future__ import annotations

from lightning_freeze.audit.requires_grad import RequiresGradWatch
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.trainer.audited import _Audited
from lightning_freeze.trainer.base import OnFinding
from lightning_freeze.trainer.seam import (
    LightningModule,
    Trainer,
    local_sgd,
    suspects,
)


class FreezeAudit(_Audited):
    """Proves that what has ``requires_grad=False`` keeps every bit, and that the rest moves; schedules nothing.

    For runs that freeze by other means: BackboneFinetuning, PEFT, one's own code. Handed to `FreezeScheduler` as
    ``audit``, it says how the scheduler's own audit is done instead.

    Args:
        every_n_updates: Also compare after every so many optimizer steps, for runs of one long epoch.
        on_finding: Whether a violation stops the run, after saving it, or warns; by default the scheduler's own way, and
            ``raise`` without one.
        inputs: Whether to audit, in the first batch of an epoch and the first of its validation, that no module is
            handed what it never uses; what is found is a warning. An `InputAudit` beside it takes this over.

    Raises:
        FreezeViolation: Something frozen moved.

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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model and its optimizers are there: watch them."""
        if self.created_by == "switch" and any(isinstance(c, _Audited) and c is not self for c in trainer.callbacks):  # type: ignore[attr-defined]
            self._engine = self._watch = None
            return
        self._begin_report(trainer, pl_module)
        self._watch = self._engine = RequiresGradWatch(pl_module, suspects=suspects(trainer), record=self._record)
        run = RunContext(
            pl_module,
            trainer.strategy.model or pl_module,
            trainer.world_size,
            device=trainer.strategy.root_device,
            local_sgd=local_sgd(trainer),
        )
        self._watch.attach(*trainer.optimizers, run=run)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is restored: remember what is to move."""
        if self._watch is not None:
            self._watch.begin(trainer.current_epoch)
            self._running = True
