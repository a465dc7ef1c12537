"""A private callback around all others, so that nothing of theirs lies between two frozen intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_freeze.trainer import seam

_OF_STEPS = """on_train_batch_start on_train_batch_end on_validation_batch_start on_validation_batch_end
on_before_zero_grad on_before_backward on_after_backward on_before_optimizer_step""".split()


class _Boundaries(seam.Callback):
    """Stands first in a Trainer's list while it trains, then last, and leaves it with the fit."""

    def __init__(self, engine: Any, act: Callable[..., None]) -> None:
        super().__init__()
        vars(self).update(dict.fromkeys(_OF_STEPS))  # Lightning skips what is not callable: a step costs nothing
        self._engine, self._act = engine, act
        engine.audit.ends_later = True
        self._last_check: Callable[[], object] = list

    def __reduce__(self) -> Any:
        return seam.Callback, ()  # a copy, made during a run, is to do nothing

    def stand(self, trainer: seam.Trainer, first: bool = False, last: bool = False) -> None:
        """Enter the list at one of its ends, or leave it; a hook may be running over the former list."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self] * first + others + [self] * last  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        self._engine.pause()

    on_train_epoch_end = on_validation_start

    def on_fit_end(self, trainer: seam.Trainer, *_: Any) -> None:
        self._last_check = self._engine.audit.last_check()
        self.stand(trainer, last=True)

    def teardown(self, trainer: seam.Trainer, *_: Any, **__: Any) -> None:
        self.stand(trainer)
        self._last_check()
        self._act(trainer, unsaved="the fit had ended")

    def on_exception(self, trainer: seam.Trainer, *_: Any) -> None:
        self.stand(trainer)
