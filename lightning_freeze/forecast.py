"""What a configured run will do: a fit that is stopped before its first update, and the steps that would follow."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lightning_freeze._lightning import Callback, LightningModule, Trainer
from lightning_freeze.callbacks import FreezeScheduler
from lightning_freeze.controller import FreezeController
from lightning_freeze.plan.preview import Step
from lightning_freeze.plan.schedule import Position, ScheduleError
from lightning_freeze.report.pictures import Size, human_bytes

_MOST = 10_000_000


class _Seen(Exception):  # noqa: N818 - no error: the fit is ended because nothing more is wanted of it
    """Enough was seen of a fit."""


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Args:
        steps: Its optimizer steps in order, without those in which everything is frozen.
        sizes: Group to what it asks of memory.
        first: The updates that the run had before them.
        notes: What is assumed in it.
    """

    steps: Sequence[Step]
    sizes: Mapping[str, Size]
    first: int
    notes: Sequence[str]

    @property
    def trained(self) -> list[frozenset[str]]:
        """The groups updated by each step."""
        return [step.trained for step in self.steps]

    @property
    def epochs(self) -> list[int]:
        """The steps at which epochs after the first begin."""
        return [i for i, step in enumerate(self.steps) if i and step.epoch != self.steps[i - 1].epoch]


@dataclass(frozen=True)
class Horizon:
    """How far to look, and what to assume.

    Args:
        updates: How many updates to foresee; by default as many as the Trainer's limits allow.
        epochs: How many epochs to foresee.
        batches: Training batches in an epoch of one process; by default as many as the data has.
        world: The processes that will share the data.
        metrics: Epoch to the metrics logged in it, for phases that end by one.
    """

    updates: int | None = None
    epochs: int | None = None
    batches: int | None = None
    world: int = 1
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


class _Look(Callback):
    """Looks at a fit when everything is set up and restored, and ends it.

    Where the model steps several optimizers by hand, its first batch is run to see in which order.
    """

    def __init__(self, scheduler: FreezeScheduler, horizon: Horizon, accumulation: Callable[[int], int] | None) -> None:
        self._scheduler = scheduler
        self._horizon = horizon
        self._accumulation = accumulation
        self._start = Position()
        self._epoch = 0
        self._done = 0
        self._order: list[int] = []
        self.seen: Forecast | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Everything is there, and Lightning has found out where a resumed run goes on."""
        self._start = self._controller.position()
        self._epoch, self._done = trainer.current_epoch, batch_idx
        if pl_module.automatic_optimization or len(trainer.optimizers) < 2:
            self._order = [0]
            self._foresee(trainer, pl_module)
        for index, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_pre_hook(self._stepping(index))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The order of the optimizers is known."""
        self._foresee(trainer, pl_module)

    @property
    def _controller(self) -> FreezeController:
        controller = self._scheduler.controller
        if controller is None:
            raise RuntimeError("a fit begins with its freeze scheduler's on_fit_start")
        return controller

    def _stepping(self, index: int) -> Callable[[Optimizer, Any, Any], None]:
        return lambda optimizer, args, kwargs: self._order.append(index)

    def _foresee(self, trainer: Trainer, module: LightningModule) -> None:
        notes: list[str] = []
        horizon = self._horizon
        batches = self._batches(trainer, notes)
        factor = self._accumulation or (lambda epoch: trainer.accumulate_grad_batches)

        def accumulated(epoch: int) -> int:
            return factor(epoch) if module.automatic_optimization else 1

        def windows(epoch: int) -> int:
            return math.ceil(batches / accumulated(epoch))

        if not module.automatic_optimization and len(trainer.optimizers) > 1:
            notes.append(f"In every batch the optimizers step in the order seen in the first: {self._order}.")
        metrics = {name for name in self._controller.metrics if not any(name in m for m in horizon.metrics.values())}
        if metrics:
            notes.append(
                f"No values of {', '.join(map(repr, sorted(metrics)))} are given (--metrics), so a phase that waits for "
                "them is taken to last its max_epochs, or to the end."
            )
        coming = self._controller.preview(
            windows,
            start=self._start,
            epoch=self._epoch,
            done=self._done // accumulated(self._epoch),
            order=self._order,
            metrics=horizon.metrics,
        )
        steps = self._until_the_end(coming, trainer)
        sizes, unknown = self._controller.sizes()
        every = sum(size.gradient for size in sizes.values())
        if any(len(step.trained) < len(sizes) for step in steps):
            notes.append(
                f"Until each step, backward still makes the gradients of all groups ({human_bytes(every)}): its work for "
                "frozen ones is not skipped yet."
            )
        if unknown:
            notes.append(f"What state {', '.join(unknown)} will hold cannot be said; it is left out.")
        self.seen = Forecast(steps, sizes, self._start.total, notes)
        raise _Seen

    def _batches(self, trainer: Trainer, notes: list[str]) -> int:
        """Training batches of one process in an epoch."""
        if self._horizon.batches is not None:
            return self._horizon.batches
        found = trainer.num_training_batches
        if found == math.inf:
            raise ScheduleError(
                "the training data says no length (an IterableDataset), so it cannot be known where epochs end. Say how "
                "many batches an epoch has: --batches N."
            )
        if self._horizon.world > 1:
            found = math.ceil(found / self._horizon.world)
            notes.append(f"{self._horizon.world} processes share the data: {found} batches each in an epoch.")
        return int(found)

    def _until_the_end(self, coming: Iterator[Step], trainer: Trainer) -> list[Step]:
        epochs, updates = self._horizon.epochs, self._horizon.updates
        if epochs is None and updates is None:
            epochs = trainer.max_epochs - self._epoch if trainer.max_epochs not in (None, -1) else None
            updates = trainer.max_steps - trainer.global_step if trainer.max_steps != -1 else None
            if epochs is None and updates is None:
                raise ScheduleError(
                    "the run has no end (max_epochs: -1). Say how far to look: --updates N or --epochs N."
                )
        steps: list[Step] = []
        for step in takewhile(lambda step: epochs is None or step.epoch < self._epoch + epochs, islice(coming, _MOST)):
            if updates is not None and len(steps) >= updates:
                break
            if step.trained:
                steps.append(step)
        return steps


def forecast(trainer: Trainer, fit: Callable[[], None], horizon: Horizon | None = None) -> Forecast:
    """What a run will do from where it would begin, or go on.

    Args:
        trainer: The run's Trainer, with a `FreezeScheduler`. It is of no other use afterwards.
        fit: Fits the model with it.
        horizon: How far to look, and what to assume.

    Raises:
        ScheduleError: There is no scheduler, or no end to what is to be foreseen.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = [callback for callback in callbacks if isinstance(callback, FreezeScheduler)]
    if not schedulers:
        raise ScheduleError(
            f"the Trainer has no freeze scheduler (callbacks: {', '.join(type(c).__name__ for c in callbacks) or 'none'}), "
            "so there is nothing to plan. Add lightning_freeze.FreezeScheduler under `trainer.callbacks`."
        )
    schedulers[0].only_look()
    accumulate = [c.get_accumulate_grad_batches for c in callbacks if hasattr(c, "get_accumulate_grad_batches")]
    look = _Look(schedulers[0], horizon or Horizon(), accumulate[0] if accumulate else None)
    trainer.callbacks = [look, *schedulers]  # type: ignore[attr-defined]
    trainer.loggers = []
    with suppress(_Seen):
        fit()
    if look.seen is None:
        raise ScheduleError(
            f"there is nothing to plan: the fit has no training batches, or no epochs left (max_epochs: "
            f"{trainer.max_epochs}, epoch: {trainer.current_epoch})."
        )
    return look.seen


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Epoch to the last value of each metric logged in it, from the ``metrics.csv`` of Lightning's CSVLogger.

    Args:
        path: The file: a column ``epoch``, and one for each metric.

    Raises:
        ScheduleError: It is not there, or is no such file.
    """
    if not path.is_file():
        raise ScheduleError(f"the file of metrics {str(path)!r} is not there. It is what Lightning's CSVLogger writes.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "epoch" not in rows[0]:
        raise ScheduleError(
            f"{str(path)!r} has no column `epoch` (columns: {', '.join(rows[0]) if rows else 'none'}). Give the metrics.csv "
            "of Lightning's CSVLogger, or a file like it: epoch,val_loss."
        )
    found: dict[int, dict[str, float]] = {}
    for number, row in enumerate(rows, start=2):
        for name, value in row.items():
            if name in ("epoch", "step") or not value:
                continue
            try:
                found.setdefault(int(float(row["epoch"])), {})[name] = float(value)
            except ValueError as error:
                raise ScheduleError(
                    f"{str(path)!r}, line {number}: {name} is {value!r}, which is no number."
                ) from error
    return found
