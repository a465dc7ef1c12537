"""A private callback around all others: nothing of theirs lies between two frozen intervals, or prevents the undoing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_freeze.trainer import seam
from lightning_freeze.trainer.base import Auditor

_OF_STEPS = """on_train_batch_start on_train_batch_end on_validation_batch_start on_validation_batch_end
on_before_zero_grad on_before_backward on_after_backward on_before_optimizer_step""".split()


class _Boundaries(seam.Callback):
    """Stands first in a Trainer's list until a fit ends, then last, and leaves it with the run.

    Lightning calls no callback's ``on_exception`` after one that raises there, so this one calls its auditor's.
    """

    def __init__(self, auditor: Auditor) -> None:
        super().__init__()
        vars(self).update(dict.fromkeys(_OF_STEPS))  # Lightning skips what is not callable: a step costs nothing
        self._auditor = auditor
        self._last_check: Callable[[], object] = list

    def __reduce__(self) -> Any:
        return seam.Callback, ()  # a copy, made during a run, is to do nothing

    def stand(self, trainer: seam.Trainer, first: bool = False, last: bool = False) -> None:
        """Enter the list at one of its ends, or leave it."""
        # Another list, since a hook may be running over the former one.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self] * first + others + [self] * last  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._auditor._engine is not None:
            self._auditor._engine.pause()

    on_train_epoch_end = on_validation_start

    def on_fit_end(self, trainer: seam.Trainer, *_: Any) -> None:
        if self._auditor._engine is not None:
            self._last_check = self._auditor._engine.audit.last_check()
        self._auditor._undo()
        self.stand(trainer, last=True)

    def teardown(self, trainer: seam.Trainer, *_: Any, **__: Any) -> None:
        self.stand(trainer)
        self._auditor._undo()
        self._last_check()
        self._auditor._act_on_findings(trainer, unsaved="the fit had ended")

    def on_exception(self, trainer: seam.Trainer, *args: Any) -> None:
        self.stand(trainer)
        self._auditor.on_exception(trainer, *args)
