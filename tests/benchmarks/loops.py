"""What callbacks take of a step: their hooks are called in a loop within a fit, and what is not theirs is not timed.

A Trainer fits, up to its first batch; within it the next one, and so on. Then each contestant's loop makes a few steps in
turn: it calls the hooks of every callback in Lightning's order, with real forward, backward and update in between, or with
made-up gradients. The time is the processor's: of the main thread within the hooks, torch's step hooks among them, and of all
other threads during the whole step. An empty callback in a loop of its own is what to take off. On a GPU it is the wall
clock's, which waits for all that is queued there.

Python's garbage collector leaves alone what was made before the first step, since all contestants are in one process.

What lies between the hooks takes the processor's cache from them, as in training. A loop that is `light` has almost nothing
there, so that what grows is the hooks' own work.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tests.benchmarks.quiet import quiet_fit


class Spent(NamedTuple):
    """Seconds of a step: of its hooks by the main thread and by all threads, and of the whole step by all threads."""

    main: float
    all: float
    whole: float
    trainable: frozenset[str] | None  # the groups that trained


def _awaited() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


class Watch:
    """Sums the main thread's time between `go` and `pause`."""

    def __init__(self, device: str, light: bool = False) -> None:
        self.light = light
        self.own: set[int] = set()  # the identities of the optimizers whose steps are timed
        self.now, self.process = (_awaited, _awaited) if device == "cuda" else (time.thread_time, time.process_time)
        self.main = self._since = 0.0

    def go(self) -> None:
        """What follows is timed."""
        self._since = self.now()

    def pause(self) -> None:
        """What follows is not."""
        self.main += self.now() - self._since

    @contextmanager
    def around(self, kind: type[Optimizer]) -> Iterator[None]:
        """Of the steps of a class of optimizers, only hooks and closure are timed. May be nested."""
        inner: Callable[..., Any] = inspect.unwrap(kind.step, stop=lambda step: hasattr(step, "untimed"))
        inner = getattr(inner, "untimed", inner)

        def step(optimizer: Optimizer, closure: Any = None) -> Any:
            if id(optimizer) not in self.own:  # a clone, which the probe of a later fit steps
                with torch.no_grad():
                    return inner(optimizer, closure)
            closure()
            self.pause()
            if not self.light:
                with torch.no_grad():
                    inner(optimizer)
            self.go()
            return None

        hooked: Any = Optimizer.profile_hook_step(step)
        hooked.hooked, hooked.untimed = True, inner
        with mock.patch.object(kind, "step", hooked):
            yield


Work = Callable[[int, Any], Any]
"""A batch's forward, of its number and the model."""


class _MadeUp:
    """In place of a loss: its backward gives a gradient to each parameter that requires one."""

    requires_grad = True

    def __init__(self, module: pl.LightningModule) -> None:
        self._given = [(p, torch.full_like(p, 1e-6)) for p in module.parameters()]

    def backward(self) -> None:
        for parameter, gradient in self._given:
            parameter.grad = gradient if parameter.requires_grad else None


class _Done(Exception):
    """All steps are made, and with them the fits end."""


class Loop(pl.Callback):
    """Stands last in a Trainer; when that starts to train, hands over to what comes next.

    Args:
        watch: Times the hooks.
        work: Each batch's forward; None makes up gradients.
        next_one: Called when training starts.
    """

    def __init__(self, watch: Watch, work: Work | None, next_one: Callable[[], object]) -> None:
        self._watch, self._work, self._next = watch, work, next_one
        self.spent: list[Spent] = []
        self._trainable: frozenset[str] | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.trainer, self._module = trainer, module
        self._optimizer: Any = trainer.optimizers[0]
        self._watch.own.add(id(self._optimizer))
        self._callbacks = [each for each in trainer.callbacks if each is not self]  # type: ignore[attr-defined]
        self._made_up: Any = _MadeUp(module) if self._work is None else None  # its tensors take the cache, too
        with self._watch.around(type(self._optimizer)):
            self._next()

    def _call(self, hook: str, *args: Any) -> None:
        for callback in self._callbacks:
            if callable(function := getattr(callback, hook)):
                function(self.trainer, self._module, *args)

    def step(self, number: int) -> None:
        """A batch, as Lightning's automatic optimization makes it."""
        watch, optimizer = self._watch, self._optimizer

        def closure() -> None:
            watch.pause()
            loss = self._made_up if self._work is None else self._work(number, self._module)
            watch.go()
            self._call("on_before_zero_grad", optimizer)
            watch.pause()
            if changes:
                optimizer.zero_grad()
            watch.go()
            self._call("on_before_backward", loss)
            watch.pause()
            if changes:
                loss.backward()
            watch.go()
            self._call("on_after_backward")
            self._call("on_before_optimizer_step", optimizer)

        trainable: frozenset[str] = getattr(self._callbacks[-1], "trainable", frozenset())
        changes = watch.light is False or trainable != self._trainable
        if trainable != self._trainable:
            self._trainable = trainable  # the same object as long as it is the same set
        watch.main, process, main = 0.0, watch.process(), watch.now()
        watch.go()
        self._call("on_train_batch_start", None, number)
        optimizer.step(closure=closure)
        self._call("on_train_batch_end", None, None, number)
        watch.pause()
        whole = watch.process() - process
        others = max(0.0, whole - (watch.now() - main))
        self.spent.append(Spent(watch.main, watch.main + others, whole, self._trainable))


class Beside:
    """Something else that is timed in turns with the loops: all of a call."""

    def __init__(self, call: Callable[[], object], device: str = "cpu") -> None:
        self._call, self._watch = call, Watch(device)
        self.spent: list[Spent] = []

    def step(self, number: int) -> None:
        """One call."""
        process, main = self._watch.process(), self._watch.now()
        self._call()
        main, process = self._watch.now() - main, self._watch.process() - process
        self.spent.append(Spent(main, process, process, None))


def in_loops(
    contestants: Mapping[str, tuple[pl.LightningModule, pl.Callback]],
    steps: int,
    chunk: int,
    *,
    work: Work | None = None,
    beside: Mapping[str, Beside] = MappingProxyType({}),
    device: str = "cpu",
    light: bool = False,
    at_end: Callable[[Mapping[str, Loop]], object] = lambda loops: None,
) -> dict[str, list[Spent]]:
    """What each contestant's callback took of each step.

    Args:
        contestants: A model and a callback each.
        steps: How many each makes.
        chunk: How many at a time, before it is the next one's turn; every second time backwards.
        work: Each batch's forward; by default gradients are made up.
        beside: What else takes turns with them.
        device: ``cpu`` or ``cuda``.
        light: Whether gradients are made up only where other groups train, and nothing is updated.
        at_end: Called with the loops after the last step, while the fits go on.
    """
    watch, loops, waiting = Watch(device, light), dict[str, Loop](), list(contestants)

    def enter() -> None:
        if waiting:
            name = waiting.pop(0)
            loops[name] = Loop(watch, work, enter)
            quiet_fit(contestants[name][0], DataLoader(range(1)), contestants[name][1], loops[name], device=device)  # type: ignore[arg-type]
        turns: list[Loop | Beside] = [*loops.values(), *beside.values()]
        gc.collect()
        gc.freeze()  # so that no contestant's collections walk over the models of the others
        for begin in range(0, steps, chunk):
            for each in turns[:: -1 if begin // chunk % 2 else 1]:
                for number in range(begin, min(begin + chunk, steps)):
                    each.step(number)
        at_end(loops)
        raise _Done

    with suppress(_Done):
        enter()
    gc.unfreeze()
    return {name: loop.spent for name, loop in loops.items()} | {name: each.spent for name, each in beside.items()}


def steady(steps: Sequence[Spent]) -> list[int]:
    """The steps in which the same groups trained as in the one before and the one after."""
    sets = [step.trainable for step in steps]
    return [n for n in range(1, len(sets) - 1) if sets[n - 1] is sets[n] is sets[n + 1]]


def switching(steps: Sequence[Spent]) -> list[int]:
    """The steps in which other groups trained than in the one before."""
    return [n for n in range(1, len(steps)) if steps[n - 1].trainable is not steps[n].trainable]
