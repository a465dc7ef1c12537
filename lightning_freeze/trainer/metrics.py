"""The logged metrics that end phases: the new values, equal on all ranks, and the error where one is missing."""

from __future__ import annotations

from torch import Tensor

from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import ScheduleError, nearest
from lightning_freeze.plan.metric_log import MetricLog
from lightning_freeze.trainer import seam


class LoggedMetrics:
    """Passes on what a Trainer logged since an epoch began.

    Lightning keeps the last value of a metric; one that was logged again is another tensor.
    """

    def __init__(self, metrics: MetricLog) -> None:
        self.validated = False
        """Whether a validation has ended in this fit."""
        self._metrics = metrics
        self._before: dict[str, Tensor] = {}
        self.epoch = -1
        self._warned: set[str] = set()
        self._warned_partly: set[str] = set()

    def begin_epoch(self, trainer: seam.Trainer) -> None:
        """Take what is there now as logged before this epoch."""
        self.epoch = trainer.current_epoch
        self._before = dict(trainer.callback_metrics)  # held, so that no other tensor gets their identities

    def read(self, trainer: seam.Trainer) -> None:
        """Log the values of this epoch, averaged over ranks. All ranks call it together."""
        logged = trainer.callback_metrics
        found: dict[str, float | None] = {}
        for name in sorted(self._metrics):
            value = logged.get(name)
            found[name] = float(value) if value is not None and value is not self._before.get(name) else None
        found, partly = Ranks(trainer.strategy.root_device).means(found)
        for name in sorted(partly - self._warned_partly):
            seam.rank_zero_warn(
                f"{name!r}, which ends a phase, was logged on some ranks only; the mean over these is used. Log it on all: "
                f"`self.log({name!r}, …, sync_dist=True)`, without asking for the rank."
            )
        self._warned_partly |= partly
        self._metrics.log({name: value for name, value in found.items() if value is not None})

    def refuse_unlogged(self, trainer: seam.Trainer, epoch: int) -> None:
        """Stop a run whose phase awaits a metric that was not logged; warn of a later phase's.

        Raises:
            ScheduleError: After saving the run.
        """
        if trainer.enable_validation and not self.validated:  # which is not due in every epoch, and may log it
            return
        for metric, key in self._metrics.unlogged.items():
            text = _unlogged(metric, key, epoch, trainer)
            if metric == self._metrics.awaited:
                saved = seam.save_before_stopping(trainer, "freeze-stopped")
                if saved is not None:
                    text += f" The run was saved to {saved!r}: go on from there with the corrected schedule, by "
                    text += "`on_schedule_change: continue`."
                raise ScheduleError(text, key=key)
            if metric not in self._warned:
                self._warned.add(metric)
                seam.rank_zero_warn(f"{text} The run will stop when that phase has had its first epoch.")


def _unlogged(metric: str, key: str, epoch: int, trainer: seam.Trainer) -> str:
    logged = sorted(name for name in trainer.callback_metrics if not name.startswith("freeze/"))  # not our own
    close = nearest(metric, logged)
    value: Tensor | None = trainer.callback_metrics.get(close[0]) if close else None
    return (
        f"`{key}` is {metric!r}, but by the end of epoch {epoch} (update {trainer.global_step}) nothing of "
        f"that name was logged. Logged: {', '.join(map(repr, logged)) or 'nothing'}."
        + (f" Did you mean {close[0]!r}{f' ({float(value):.4g})' if value is not None else ''}?" if close else "")
        + f" Write one of these, or log it: `self.log({metric!r}, …, on_epoch=True)` in the model's training_step or "
        "validation_step."
    )
