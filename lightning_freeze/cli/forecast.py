"""What a configured run will do: a fit that is stopped before its first update, and the steps that would follow."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import DummyLogger
from torch.optim import Optimizer

from lightning_freeze.controller import FreezeController
from lightning_freeze.errors import ScheduleError, nearest
from lightning_freeze.holds.optimizer_state import SHORTEST
from lightning_freeze.plan.costs import Held, Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.plan.schedule import Position
from lightning_freeze.report.numbers import human_bytes
from lightning_freeze.report.table import folded
from lightning_freeze.trainer.scheduler import FreezeScheduler
from lightning_freeze.trainer.seam import Callback, LightningModule, Trainer

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
            scheduler.only_look()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are made: the run's own end is no end of what is to be foreseen, where that was said."""
        if self._horizon.epochs is not None or self._horizon.updates is not None:
            trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Everything is there, and Lightning has found out where a resumed run goes on."""
        if self._start is not None:
            return
        self._start = self._controller.position()
        self._epoch, self._done, self._steps = trainer.current_epoch, batch_idx, trainer.global_step
        if pl_module.automatic_optimization:
            self._order = [0]
            self._foresee(trainer, pl_module)
        for index, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_pre_hook(self._stepping(index))

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

    def _stepping(self, index: int) -> Callable[[Optimizer, Any, Any], None]:
        return lambda optimizer, args, kwargs: self._order.append(index)

    def _foresee(self, trainer: Trainer, module: LightningModule) -> None:
        notes: list[str] = []
        horizon = self._horizon
        start = self._start or Position()
        batches = self._batches(trainer, notes)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        factors = [c.get_accumulate_grad_batches for c in callbacks if hasattr(c, "get_accumulate_grad_batches")]
        factor = factors[0] if factors else (lambda epoch: trainer.accumulate_grad_batches)

        def accumulated(epoch: int) -> int:
            return int(factor(epoch)) if module.automatic_optimization else 1

        def windows(epoch: int) -> int:
            return math.ceil(batches / accumulated(epoch))

        if not module.automatic_optimization:
            notes.append(f"In every batch the optimizers step in the order seen in the first: {self._order}.")
        stops = [type(c).__name__ for c in callbacks if type(c).__name__ in ("EarlyStopping", "Timer")]
        if stops:
            notes.append(f"{' and '.join(stops)} may end the run sooner.")
        metrics = {name for name in self._controller.metrics if not any(name in m for m in horizon.metrics.values())}
        if metrics:
            missing = ", ".join(map(repr, sorted(metrics)))
            given = sorted({name for logged in horizon.metrics.values() for name in logged})
            close = nearest(min(metrics), given, 1)
            said = f"The metrics given have no {missing}" if given else f"No values of {missing} are given (--metrics)"
            hint = f" (nearest: {close[0]!r})" if close else ""
            notes.append(
                f"{said}{hint}, so a phase that waits for them is taken to last its max_epochs, or to the end."
            )
        coming = self._controller.preview(
            windows,
            start=start,
            epoch=self._epoch,
            done=self._done // accumulated(self._epoch),
            order=self._order,
            metrics=horizon.metrics,
        )
        steps = self._until_the_end(coming, trainer, notes)
        sizes, unknown = self._controller.sizes()
        notes += _remarks(steps, sizes, start.total)
        every = sum(size.gradient for size in sizes.values())
        freezes = any(len(step.trained) < len(sizes) for step in steps)
        if freezes and not self._controller.backward.skips:
            notes.append(
                f"Until each step, backward makes the gradients of all groups ({human_bytes(every)}): its work for frozen "
                f"ones is not skipped here: {self._controller.backward.why}."
            )
        elif freezes and horizon.world != 1:
            notes.append("Whether backward is skipped for frozen groups, the run's own strategy says at its beginning.")
        mode = self._controller.optimizer_state
        leaves = mode != "keep" and len(trainer.optimizers) == 1
        if mode != "keep" and not leaves:
            notes.append(
                f"With several optimizers, optimizer state is counted as kept: `optimizer_state: {mode}` leaves less of it."
            )
        elif mode == "offload":
            notes.append(
                "Optimizer state is counted as on an accelerator: that of frozen groups is in host memory, unless they train "
                f"again within {SHORTEST} updates."
            )
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
        epochs, updates, all_steps = self._horizon.epochs, self._horizon.updates, None
        if epochs is None and updates is None:
            epochs = trainer.max_epochs - self._epoch if trainer.max_epochs not in (None, -1) else None
            all_steps = trainer.max_steps - self._steps if trainer.max_steps != -1 else None
            if epochs is None and all_steps is None:
                raise ScheduleError(
                    "the run has no end (max_epochs: -1). Say how far to look: --updates N or --epochs N."
                )
        steps: list[Step] = []
        batch = -1
        for number, step in enumerate(
            takewhile(lambda step: epochs is None or step.epoch < self._epoch + epochs, coming)
        ):
            # Lightning counts steps that updated nothing, too, and ends at a batch's end.
            over = all_steps is not None and number >= all_steps and step.batch != batch
            if over or len(steps) == updates:
                break
            if number == _MOST:
                notes.append(f"The plan is cut after {_MOST:,} optimizer steps.")
                break
            batch = step.batch
            if step.trained:
                steps.append(step)
        return steps


def _remarks(steps: Sequence[Step], sizes: Mapping[str, Size], first: int) -> list[str]:
    """What a user may not have meant."""
    notes: list[str] = []
    over = next((number for number, step in enumerate(steps) if step.over), None)
    if over is not None:
        notes.append(
            f"The schedule runs out after update {first + over - 1}; its last set stays trainable. To begin again, write "
            "`repeat: true`."
        )
    idle = [group for group in sizes if not any(group in trained for trained in {step.trained for step in steps})]
    if idle and steps:
        notes.append(f"Never trained in these updates: {folded(idle, sizes)}.")
    return notes


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


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Epoch to the last value of each metric logged in it, from the ``metrics.csv`` of Lightning's CSVLogger.

    Args:
        path: The file: a column ``epoch``, and one for each metric.

    Raises:
        ScheduleError: It is not there, or is no such file.
    """
    if not path.is_file():
        raise ScheduleError(f"the file of metrics {str(path)!r} is not there. It is what Lightning's CSVLogger writes.")
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        rows = list(csv.DictReader(file))
    if not rows or "epoch" not in rows[0]:
        columns = ", ".join(map(str, rows[0])) if rows else "none"
        raise ScheduleError(
            f"{str(path)!r} has no column `epoch` (columns: {columns}). Give the metrics.csv of Lightning's CSVLogger, or a "
            "file like it: epoch,val_loss."
        )
    found: dict[int, dict[str, float]] = {}
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ScheduleError(f"{str(path)!r}, line {number}: it has another number of values than the first line.")
        epoch = int(_number(path, number, "epoch", row["epoch"]))
        for name, value in row.items():
            if name not in ("epoch", "step") and value:
                found.setdefault(epoch, {})[name] = _number(path, number, name, value)
    for logged in found.values():
        for name in [name for name in logged if name.endswith("_epoch")]:  # logged on_step and on_epoch
            logged.setdefault(name.removesuffix("_epoch"), logged[name])
    return found


def _number(path: Path, line: int, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ScheduleError(f"{str(path)!r}, line {line}: {name} is {value!r}, which is no number.") from error
