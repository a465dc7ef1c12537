"""The logged metrics that end phases: which are new, equal on all ranks, and what to say where one is not logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_freeze._lightning import LightningModule, Trainer
from lightning_freeze.plan.schedule import nearest
from lightning_freeze.report.metrics import mean_over_ranks


class Heard:
    """What was logged since it was last asked.

    Lightning keeps a metric's last value for ever; that an epoch logged it anew is told by the tensor's identity. With
    ``EarlyStopping`` the same question is answered by where its check is called.
    """

    def __init__(self) -> None:
        self.validated = False
        """Whether a validation has ended in this fit."""
        self.told: set[str] = set()
        """The metrics of which it was said that they are not logged."""
        self._last: dict[str, object] = {}
        self._logged: set[str] = set()

    def fresh(self, trainer: Trainer, names: Iterable[str]) -> dict[str, float]:
        """The values of metrics that were logged since the last call, averaged over ranks. Ranks call it together."""
        logged = trainer.callback_metrics
        found: dict[str, float | None] = {}
        for name in sorted(names):
            value = logged.get(name)
            found[name] = float(value) if value is not None and value is not self._last.get(name) else None
            if value is not None:
                self._last[name] = value  # held, so that no other tensor gets its identity
        if trainer.world_size > 1:
            found = mean_over_ranks(found, trainer.strategy.root_device)
        new = {name: value for name, value in found.items() if value is not None}
        self._logged.update(new)
        return new

    def missing(self, keys: Mapping[str, str]) -> dict[str, str]:
        """The metrics, and the keys that name them, that no rank has logged in this fit."""
        return {name: key for name, key in keys.items() if name not in self._logged}

    def may_come(self, trainer: Trainer) -> bool:
        """Whether a metric that is not there yet may still be logged by a validation, which is not due in every epoch."""
        return bool(trainer.enable_validation) and not self.validated


def logs_later(module: LightningModule) -> bool:
    """Whether a model has its own ``on_train_epoch_end``, which Lightning calls after those of callbacks."""
    written = getattr(type(module).on_train_epoch_end, "__module__", "")
    return not written.startswith(("pytorch_lightning.", "lightning."))


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
