"""What a configured run will do: a fit that is stopped before its first update, and the steps that would follow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from lightning_freeze.controller import FreezeController
from lightning_freeze.errors import ScheduleError, nearest
from lightning_freeze.holds.optimizer_state import SHORTEST
from lightning_freeze.plan.costs import Held, Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.plan.schedule import Position
from lightning_freeze.report.plan_table import Forecast
from lightning_freeze.report.table import folded, human_bytes
from lightning_freeze.trainer.scheduler import FreezeScheduler
from lightning_freeze.trainer.seam import Callback, DummyLogger, LightningModule, Trainer

_MOST = 1_000_000
_WATCHED = 100  # batches in which some optimizer must step for its order to be known


class _Seen(Exception):  # noqa: N818 - no error: the fit ends because nothing more is wanted of it
    """Enough was seen of a fit."""


@dataclass(frozen=True)
class Horizon:
    """How far to look, and what to assume.

    Args:
        updates: Updates to foresee; by default as many as the Trainer's limits allow.
        epochs: Epochs to foresee.
        batches: Training batches in an epoch of one process; by default as many as the data has.
        world: The processes that will share the data; None where that is not known.
        metrics: Epoch to the metrics logged in it, for phases that end by one.
    """

    updates: int | None = None
    epochs: int | None = None
    batches: int | None = None
    world: int | None = 1
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


def forecast(
    trainer: Trainer, fit: Callable[[], None], horizon: Horizon | None = None, beside: Sequence[object] = ()
) -> Forecast:
    """What a run will do from where it would begin, or go on; its Trainer is of no other use afterwards.

    The run has callbacks ``beside`` those of this Trainer.

    Raises:
        ScheduleError: There is no scheduler, or no end to what is to be foreseen.
    """
    look = _Look(horizon or Horizon(), beside)
    trainer.callbacks.insert(0, look)  # type: ignore[attr-defined]
    trainer.loggers = [DummyLogger()]
    trainer.num_sanity_val_steps = 0
    with suppress(_Seen), warnings.catch_warnings():
        # Lightning's advice on checkpoints is of no use to a fit that saves none.
        advice = "Checkpoint directory .* exists|The dirpath has changed|Be aware that when using `ckpt_path`"
        warnings.filterwarnings("ignore", message=advice)
        fit()
    if look.seen is None:
        raise ScheduleError(
            f"there is nothing to plan: the fit has no training batches, or no epochs left (max_epochs: "
            f"{trainer.max_epochs}, epoch: {trainer.current_epoch})."
        )
    return look.seen


class _Unread:
    """A loader of which only the length is asked; the data is left alone."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return repeat(None)

    def load_state_dict(self, state: Any) -> None:
        """A resumed fit would move a loader to where it was."""


def _copied(loader: Any) -> Any:
    """A loader with samplers and generators of its own, over the same data; the loader itself where it has no copy."""
    try:
        return deepcopy(loader, {id(loader.dataset): loader.dataset})
    except Exception:
        return loader


class _Look(Callback):
    """Looks at a fit when everything is set up and restored, and ends it.

    In manual optimization, batches are run until an optimizer has stepped, to see in which order they do. Otherwise no
    batch is read.
    """

    def __init__(self, horizon: Horizon, beside: Sequence[object]) -> None:
        self._horizon = horizon
        self._beside = beside
        self._scheduler: FreezeScheduler | None = None
        self._start: Position | None = None
        self._epoch = self._done = self._steps = 0
        self._order: list[int] = []
        self._notes: list[str] = []
        self.seen: Forecast | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The model has added its own callbacks; none has begun."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        schedulers = [callback for callback in callbacks if isinstance(callback, FreezeScheduler)]
        if not schedulers:
            raise ScheduleError(
                "the Trainer has no freeze scheduler (callbacks: "
                f"{', '.join(type(c).__name__ for c in (*callbacks, *self._beside) if c is not self) or 'none'}), so there is "
                "nothing to plan. Add lightning_freeze.FreezeScheduler under `trainer.callbacks`."
            )
        self._scheduler = schedulers[0]
        for scheduler in schedulers:
            scheduler.dry_run()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A horizon takes the place of the run's own end, and where no batch is run, none is read."""
        own: Any = trainer
        ask = own.fit_loop._data_source.dataloader
        # Lightning replaces the loaders within a CombinedLoader, which may be the user's.
        own.fit_loop._data_source.dataloader = lambda: copy(found) if hasattr(found := ask(), "flattened") else found
        own.strategy.process_dataloader = _Unread if pl_module.automatic_optimization else _copied
        if pl_module.automatic_optimization:  # it is asked right before a batch goes to the model
            epoch_loop = own.fit_loop.epoch_loop
            own.precision_plugin.convert_input = lambda batch: self._begin(own, pl_module, epoch_loop.batch_idx + 1)
        if self._horizon.epochs is not None or self._horizon.updates is not None:
            trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch of a model in manual optimization, or of one that asks its loader for batches itself."""
        if self._start is None:
            self._begin(trainer, pl_module, batch_idx)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, done: int) -> None:
        """Everything is there, and Lightning knows where a resumed run goes on."""
        self._start = self._controller.preview.position()
        self._epoch, self._done, self._steps = trainer.current_epoch, done, trainer.global_step
        if pl_module.automatic_optimization:
            self._order = [0]
            self._foresee(trainer, pl_module)
        for index, optimizer in enumerate(trainer.optimizers):
            optimizer.register_step_pre_hook(lambda *_, index=index: self._order.append(index))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """The order of the optimizers is known as soon as one has stepped."""
        if self._order:
            self._notes = [f"In every batch the optimizers step in the order seen in the first: {self._order}."]
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
        batches, accumulated = self._batches(trainer), _accumulation(trainer, module)
        coming = controller.preview(
            lambda epoch: math.ceil(batches / accumulated(epoch)),
            start=start,
            epoch=self._epoch,
            done=self._done // accumulated(self._epoch),
            order=self._order,
            metrics=horizon.metrics,
        )
        if controller.schedule.describe()["init_args"].get("change") == "batch":
            self._notes.append("What trains changes only between batches (`change: batch`).")
        self._notes += [
            *_on_callbacks((*callbacks, *self._beside)),
            *_on_metrics(controller.metrics.keys, horizon.metrics),
        ]
        self._notes += [f"Not in the plan: {group}, by {by}." for group, by in controller.groups.reasons.items()]
        steps = self._until_the_end(coming, trainer)
        sizes, unknown = controller.preview.sizes()
        mode = controller.options.optimizer_state
        shrinks = mode != "keep" and len(trainer.optimizers) == 1
        self._notes += [
            *_on_steps(steps, sizes, start.total),
            *_on_backward(steps, sizes, controller, horizon.world),
            *_on_state(mode, shrinks),
        ]
        if unknown:
            self._notes.append(f"The size of the state of {', '.join(unknown)} is not known; it is not counted.")
        before = frozenset(group for group, count in start.updates.items() if count and group in sizes)
        held = Held(before, shrinks, SHORTEST if mode == "offload" else 0)
        self.seen = Forecast(steps, sizes, start.total, held, self._notes, type(module).__name__)
        # The other callbacks are not to see an exception that is not an error.
        trainer.callbacks = [c for c in callbacks if c in (self, self._scheduler)]  # type: ignore[attr-defined]
        raise _Seen

    def _batches(self, trainer: Trainer) -> int:
        """Training batches of one process in an epoch."""
        if self._horizon.batches is not None:
            return self._horizon.batches
        found, world = trainer.num_training_batches, self._horizon.world
        if found == math.inf:
            raise ScheduleError(
                "the training data has no length (an IterableDataset), so it cannot be known where epochs end. Say how many "
                "batches an epoch has: --batches N (in Python batches=N)."
            )
        if world is None:
            self._notes.append("It is counted for one process: how many will share the data is not known here.")
        elif world > 1:
            found = _of_each(trainer, int(found), world)
            self._notes.append(f"{world} processes share the data: {found} batches each in an epoch.")
        return int(found)

    def _until_the_end(self, coming: Iterator[Step], trainer: Trainer) -> list[Step]:
        """The steps that update something, up to the horizon, or to the run's own end."""
        updates, epochs, all_steps = _limit(self._horizon.updates), _limit(self._horizon.epochs), math.inf
        if updates == epochs == math.inf:
            epochs, all_steps = _limit(trainer.max_epochs) - self._epoch, _limit(trainer.max_steps) - self._steps
            if epochs == all_steps == math.inf:
                raise ScheduleError(
                    "the run has no end (max_epochs: -1). Say how far to look: --updates N or --epochs N (in Python "
                    "updates=N or epochs=N)."
                )
        steps: list[Step] = []
        batch = -1
        for number, step in enumerate(coming):
            # Lightning counts steps that updated nothing, too, and ends at a batch's end.
            over = number >= all_steps and step.batch != batch
            if over or step.epoch >= self._epoch + epochs or len(steps) == updates:
                break
            if number == _MOST:
                self._notes.append(f"The plan is cut after {_MOST:,} optimizer steps.")
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


def _of_each(trainer: Trainer, batches: int, world: int) -> int:
    """The batches of each of several processes, by torch's DistributedSampler, within Lightning's limit."""
    loader: Any = trainer.train_dataloader
    limit = trainer.limit_train_batches
    try:
        samples, size = len(loader.dataset), int(loader.batch_size)
        whole = samples // world if loader.drop_last else math.ceil(samples / world)
        each = whole // size if loader.drop_last else math.ceil(whole / size)
    except (TypeError, AttributeError):  # a loader of another kind
        return math.ceil(batches / world)
    return max(1, min(each, limit) if isinstance(limit, int) else int(each * limit))


# --- notes: each yields a sentence where there is something to say ----------------------------------------------------


def _on_callbacks(callbacks: Sequence[object]) -> Iterator[str]:
    stops = [name for name in (type(each).__name__ for each in callbacks) if name in ("EarlyStopping", "Timer")]
    if stops:
        yield f"{' and '.join(stops)} may end the run sooner."


def _on_metrics(awaited: Iterable[str], given: Mapping[int, Mapping[str, float]]) -> Iterator[str]:
    known = {name for logged in given.values() for name in logged}
    if missing := sorted(set(awaited) - known):
        names = ", ".join(map(repr, missing))
        said = f"The metrics given have no {names}" if known else f"No values of {names} are given (`metrics`)"
        hint = "".join(f" (did you mean {close!r}?)" for close in nearest(missing[0], sorted(known), 1))
        yield f"{said}{hint}, so a phase that waits for them is taken to last its max_epochs, or to the end."


def _on_steps(steps: Sequence[Step], sizes: Mapping[str, Size], first: int) -> Iterator[str]:
    over = next((number for number, step in enumerate(steps) if step.over), None)
    if over is not None:
        yield (
            f"The schedule runs out after update {first + over - 1}; its last set stays trainable. To begin again, write "
            "`repeat: true`."
        )
    trained = frozenset().union(*{step.trained for step in steps})
    if steps and (idle := [group for group in sizes if group not in trained]):
        yield f"Never trained in these updates: {folded(idle, sizes)}."


def _on_backward(
    steps: Sequence[Step], sizes: Mapping[str, Size], controller: FreezeController, world: int | None
) -> Iterator[str]:
    if all(len(step.trained) == len(sizes) for step in steps):
        return
    if not controller.backward.skips:
        every = human_bytes(sum(size.gradient for size in sizes.values()))
        yield (
            f"Until each step, backward makes the gradients of all groups ({every}): its work for frozen ones is not skipped "
            f"here: {controller.backward.why}."
        )
    elif world != 1:
        yield "The run says at its start whether backward is skipped for frozen groups."


def _on_state(mode: str, shrinks: bool) -> Iterator[str]:
    if mode != "keep" and not shrinks:
        yield f"With several optimizers, optimizer state is counted as kept: `optimizer_state: {mode}` leaves less of it."
    elif mode == "offload":
        yield (
            "Optimizer state is counted as on an accelerator: that of frozen groups is in host memory, unless they train "
            f"again within {SHORTEST} updates."
        )
