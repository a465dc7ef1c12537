"""What a configured run will do: a fit that is stopped before its first update, and the steps that would follow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lightning_freeze.cli.forecast_notes import on_backward, on_callbacks, on_metrics, on_state, on_steps
from lightning_freeze.controller import FreezeController
from lightning_freeze.errors import ScheduleError
from lightning_freeze.holds.optimizer_state import SHORTEST
from lightning_freeze.plan.costs import Held, Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.plan.schedule import Position
from lightning_freeze.trainer.scheduler import FreezeScheduler
from lightning_freeze.trainer.seam import Callback, DummyLogger, LightningModule, Trainer

_MOST = 1_000_000
_WATCHED = 100  # batches in which some optimizer must step for its order to be known


class _Seen(Exception):  # noqa: N818 - no error: the fit is ended because nothing more is wanted of it
    """Enough was seen of a fit."""


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Args:
        steps: Its optimizer steps in order, without those in which everything is frozen.
        sizes: Group to what it asks of memory.
        first: The updates that the run had before them.
        held: Whose optimizer state takes up memory.
        notes: What is assumed in it.
    """

    steps: Sequence[Step]
    sizes: Mapping[str, Size]
    first: int
    held: Held
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
        world: The processes that will share the data; None where that is not known.
        metrics: Epoch to the metrics logged in it, for phases that end by one.
    """

    updates: int | None = None
    epochs: int | None = None
    batches: int | None = None
    world: int | None = 1
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


class _Look(Callback):
    """Looks at a fit when everything is set up and restored, and ends it.

    Where the model steps its optimizers by hand, batches are run until one of them has stepped, to see in which order.
    """

    def __init__(self, horizon: Horizon) -> None:
        self._horizon = horizon
        self._scheduler: FreezeScheduler | None = None
        self._start: Position | None = None
        self._epoch = 0
        self._done = 0
        self._steps = 0
        self._order: list[int] = []
        self.seen: Forecast | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The model has added its own callbacks; none has begun."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        schedulers = [callback for callback in callbacks if isinstance(callback, FreezeScheduler)]
        if not schedulers:
            raise ScheduleError(
                "the Trainer has no freeze scheduler (callbacks: "
                f"{', '.join(type(c).__name__ for c in callbacks if c is not self) or 'none'}), so there is nothing to "
                "plan. Add lightning_freeze.FreezeScheduler under `trainer.callbacks`."
            )
        self._scheduler = schedulers[0]
        for scheduler in schedulers:
            scheduler.dry_run()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are made: the run's own end is no end of what is to be foreseen, where that was said."""
        if self._horizon.epochs is not None or self._horizon.updates is not None:
            trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Everything is there, and Lightning has found out where a resumed run goes on."""
        if self._start is not None:
            return
        self._start = self._controller.preview.position()
        self._epoch, self._done, self._steps = trainer.current_epoch, batch_idx, trainer.global_step
        if pl_module.automatic_optimization:
            self._order = [0]
            self._foresee(trainer, pl_module)
        for index, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_pre_hook(lambda *_, index=index: self._order.append(index))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The order of the optimizers is known as soon as one has stepped."""
        if self._order:
            self._foresee(trainer, pl_module)
        if args[-1] + 1 >= self._done + _WATCHED:
            raise ScheduleError(
                f"in manual optimization, no optimizer stepped in {_WATCHED} batches, so it cannot be known when the model "
                "steps which. Plan it in Python, with FreezeController.preview(…, order=…)."
            )

    @property
    def _controller(self) -> FreezeController:
        controller = self._scheduler.controller if self._scheduler is not None else None
        if controller is None:
            raise RuntimeError("a fit begins with its freeze scheduler's on_fit_start")
        return controller

    def _foresee(self, trainer: Trainer, module: LightningModule) -> None:
        """Foresee the run, and end the fit."""
        controller, horizon, start = self._controller, self._horizon, self._start or Position()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        notes: list[str] = []
        batches, accumulated = self._batches(trainer, notes), _accumulation(trainer, module)
        if not module.automatic_optimization:
            notes.append(f"In every batch the optimizers step in the order seen in the first: {self._order}.")
        notes += on_callbacks(callbacks) + on_metrics(controller.metrics.keys, horizon.metrics)
        coming = controller.preview(
            lambda epoch: math.ceil(batches / accumulated(epoch)),
            start=start,
            epoch=self._epoch,
            done=self._done // accumulated(self._epoch),
            order=self._order,
            metrics=horizon.metrics,
        )
        steps = self._until_the_end(coming, trainer, notes)
        sizes, unknown = controller.preview.sizes()
        notes += on_steps(steps, sizes, start.total)
        notes += on_backward(steps, sizes, controller.backward.skips, controller.backward.why, horizon.world)
        mode = controller.options.optimizer_state
        leaves = mode != "keep" and len(trainer.optimizers) == 1
        notes += on_state(mode, leaves)
        if unknown:
            notes.append(f"What state {', '.join(unknown)} will hold cannot be said; it is left out.")
        before = frozenset(group for group, count in start.updates.items() if count and group in sizes)
        held = Held(before, leaves, SHORTEST if mode == "offload" else 0)
        self.seen = Forecast(steps, sizes, start.total, held, notes)
        trainer.callbacks = [c for c in callbacks if c in (self, self._scheduler)]  # type: ignore[attr-defined]
        raise _Seen  # of which the other callbacks need not hear

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
        world = self._horizon.world
        if world is None:
            notes.append("How many processes will share the data is not known here; it is counted for one.")
        elif world > 1:
            found = _shared(trainer, int(found), world)
            notes.append(f"{world} processes share the data: {found} batches each in an epoch.")
        return int(found)

    def _until_the_end(self, coming: Iterator[Step], trainer: Trainer, notes: list[str]) -> list[Step]:
        """The steps that update something, up to the horizon, or to the run's own end."""
        updates, epochs, all_steps = _limit(self._horizon.updates), _limit(self._horizon.epochs), math.inf
        if updates == epochs == math.inf:
            epochs, all_steps = _limit(trainer.max_epochs) - self._epoch, _limit(trainer.max_steps) - self._steps
            if epochs == all_steps == math.inf:
                raise ScheduleError(
                    "the run has no end (max_epochs: -1). Say how far to look: --updates N or --epochs N."
                )
        steps: list[Step] = []
        batch = -1
        for number, step in enumerate(coming):
            # Lightning counts steps that updated nothing, too, and ends at a batch's end.
            over = number >= all_steps and step.batch != batch
            if over or step.epoch >= self._epoch + epochs or len(steps) == updates:
                break
            if number == _MOST:
                notes.append(f"The plan is cut after {_MOST:,} optimizer steps.")
                break
            batch = step.batch
            if step.trained:
                steps.append(step)
        return steps


def _limit(number: int | None) -> float:
    """A limit as Lightning writes it, where -1 and None are none."""
    return math.inf if number in (None, -1) else number


def _accumulation(trainer: Trainer, module: LightningModule) -> Callable[[int], int]:
    """From an epoch to the batches of an optimizer step in it."""
    if not module.automatic_optimization:
        return lambda epoch: 1
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "get_accumulate_grad_batches"):
            return lambda epoch: int(callback.get_accumulate_grad_batches(epoch))
    return lambda epoch: trainer.accumulate_grad_batches


def _shared(trainer: Trainer, batches: int, world: int) -> int:
    """The batches of each of several processes, by the rules of torch's DistributedSampler, within Lightning's limit."""
    loader: Any = trainer.train_dataloader
    limit = trainer.limit_train_batches
    try:
        samples, size = len(loader.dataset), int(loader.batch_size)
        whole = samples // world if loader.drop_last else math.ceil(samples / world)
        each = whole // size if loader.drop_last else math.ceil(whole / size)
    except (TypeError, AttributeError):  # a loader of another kind
        return math.ceil(batches / world)
    return max(1, min(each, limit) if isinstance(limit, int) else int(each * limit))


def forecast(trainer: Trainer, fit: Callable[[], None], horizon: Horizon | None = None) -> Forecast:
    """What a run will do from where it would begin, or go on.

    Args:
        trainer: The run's Trainer, with a `FreezeScheduler`. It is of no other use afterwards.
        fit: Fits the model with it.
        horizon: How far to look, and what to assume.

    Raises:
        ScheduleError: There is no scheduler, or no end to what is to be foreseen.
    """
    look = _Look(horizon or Horizon())
    trainer.callbacks.insert(0, look)  # type: ignore[attr-defined]
    trainer.loggers = [DummyLogger()]
    with suppress(_Seen), warnings.catch_warnings():
        # Lightning's advice on where checkpoints go is of no use to a fit that saves none.
        for said in ("Checkpoint directory .* exists", "The dirpath has changed"):
            warnings.filterwarnings("ignore", message=said)
        fit()
    if look.seen is None:
        raise ScheduleError(
            f"there is nothing to plan: the fit has no training batches, or no epochs left (max_epochs: "
            f"{trainer.max_epochs}, epoch: {trainer.current_epoch})."
        )
    return look.seen
