"""The logged metrics that end phases: which are new, equal on all ranks, and what to say where one is not logged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import nearest
from lightning_freeze.trainer.seam import Callback, LightningModule, Trainer, rank_zero_warn


class Heard:
    """What was logged since an epoch began.

    Lightning keeps a metric's last value for ever; that an epoch logged it anew is told by the tensor being another than
    at its first batch. With ``EarlyStopping`` the same question is answered by where its check is called.
    """

    def __init__(self) -> None:
        self.validated = False
        """Whether a validation has ended in this fit."""
        self.told: set[str] = set()
        """The metrics of which it was said that they are not logged."""
        self.partly: set[str] = set()
        """Those of which it was said that only some ranks log them."""
        self._before: dict[str, Tensor] = {}

    def begin_epoch(self, trainer: Trainer) -> None:
        """An epoch begins: what is there now was logged before it."""
        self._before = dict(trainer.callback_metrics)  # held, so that no other tensor gets their identities

    def fresh(self, trainer: Trainer, names: Iterable[str]) -> dict[str, float]:
        """The values of metrics logged since the epoch began, averaged over ranks. Ranks call it together."""
        logged = trainer.callback_metrics
        found: dict[str, float | None] = {}
        for name in sorted(names):
            value = logged.get(name)
            found[name] = float(value) if value is not None and value is not self._before.get(name) else None
        found, partly = Ranks(trainer.strategy.root_device).means(found)
        for name in sorted(partly - self.partly):
            rank_zero_warn(
                f"{name!r}, which ends a phase, was logged on some ranks only, and what these logged is what counts. Log it on "
                f"all: `self.log({name!r}, …, sync_dist=True)`, without asking for the rank."
            )
        self.partly |= partly
        return {name: value for name, value in found.items() if value is not None}

    def may_come(self, trainer: Trainer) -> bool:
        """Whether a metric that is not there yet may still be logged by a validation, which is not due in every epoch."""
        return bool(trainer.enable_validation) and not self.validated


def logs_later(trainer: Trainer, module: LightningModule, callback: Callback) -> bool:
    """Whether something may log at an epoch's end after a callback's part of it.

    The model's own ``on_train_epoch_end``, which Lightning calls after those of callbacks, or a callback behind this one.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    behind = callbacks[callbacks.index(callback) + 1 :] if callback in callbacks else []
    hooks = [type(one).on_train_epoch_end for one in (module, *behind)]
    return not all(hook.__module__.startswith(("pytorch_lightning.", "lightning.")) for hook in hooks)


def unlogged(metric: str, key: str, epoch: int, trainer: Trainer) -> str:
    """What to say of a metric that a phase waits for and nobody logs.

    Args:
        metric: Its name.
        key: The key in the schedule.
        epoch: The epoch that has ended without it.
        trainer: The run's.
    """
    logged = sorted(name for name in trainer.callback_metrics if not name.startswith("freeze/"))  # not our own
    close = nearest(metric, logged)
    value: Tensor | None = trainer.callback_metrics.get(close[0]) if close else None
    return (
        f"`{key}` is {metric!r}, but by the end of epoch {epoch} (update {trainer.global_step}) nothing of "
        f"that name was logged. Logged: {', '.join(map(repr, logged)) or 'nothing'}."
        + (f" Nearest: {close[0]!r}{f' ({float(value):.4g})' if value is not None else ''}." if close else "")
        + f" Write one of these, or log it: `self.log({metric!r}, …, on_epoch=True)` in the model's training_step or "
        "validation_step."
    )
