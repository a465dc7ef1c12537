"""Contestants train in turns: in each round every one makes a run of its own, and the round's ratios are of these runs."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, NamedTuple

import pytorch_lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.benchmarks.checks import WrongTraining
from tests.benchmarks.details import in_time
from tests.benchmarks.inputs import allocator_peak
from tests.benchmarks.quiet import quiet_fit
from tests.benchmarks.ratios import Ratio
from tests.threads import threads

INSTALL = "pip install -c constraints.txt -e '.[peers]'"


class Step(NamedTuple):
    """What a step took: of the processor's time, which other processes disturb less, or the GPU's; and by the wall clock."""

    time: float
    wall: float


class Stopwatch:
    """Marks moments; on a GPU by events in its own queue, so that nothing waits for a mark."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """A step ends, another begins."""
        event = None
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()  # type: ignore[no-untyped-call]
        self.marks.append((time.perf_counter(), time.process_time(), event))

    def steps(self) -> list[Step]:
        """From each mark to the next."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return [
            Step(end[1] - begin[1] if begin[2] is None else begin[2].elapsed_time(end[2]) / 1000, end[0] - begin[0])
            for begin, end in zip(self.marks, self.marks[1:], strict=False)
        ]


class _Pace:
    """Marks where each batch begins. Stands first, so that a step is all that lies between two batches' beginnings."""

    watch: Stopwatch

    def on_train_batch_start(self, *_: Any) -> None:
        self.watch.mark()


def fit(
    task: Any,
    data: Sequence[Tensor],
    device: str,
    *callbacks: Any,
    package: ModuleType = pytorch_lightning,
    **settings: Any,
) -> list[Step]:
    """One epoch over some batches under a quiet Trainer.

    Returns:
        Each step, from the beginning of its batch to that of the next; so there is one less than batches.
    """
    watch = Stopwatch(device)
    pace = type("Pace", (_Pace, package.Callback), {"watch": watch})()
    loader = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    quiet_fit(task, loader, pace, *callbacks, device=device, package=package, **settings)
    return watch.steps()


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The most bytes that torch had handed out at once while a function ran, over those before it."""
    gc.collect()
    if device != "cuda":
        return allocator_peak(lambda: (function(), None)[1])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def threads_for(device: str) -> contextlib.AbstractContextManager[None]:
    """On the CPU one thread, which other processes disturb least."""
    return contextlib.nullcontext() if device == "cuda" else threads(1)


def why(who: str, error: Exception) -> str:
    """What stands in the row of a peer that could not be measured."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: {INSTALL}"
    return f"{who} failed with {type(error).__name__}: {error}"


@dataclass
class Turns:
    """What each contestant took in each round.

    Args:
        runs: The steps that were counted, round by round.
        failed: Why a peer has none.
    """

    runs: dict[str, list[list[Step]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def row(
        self,
        figure: str,
        over: str,
        names: tuple[str, str],
        aim: float | None = None,
        middle: Literal["median", "mean"] = "median",
    ) -> Ratio:
        """The ratio of one contestant's median (or mean) step to another's, round by round."""
        lost = [self.failed[name] for name in names if name in self.failed]
        if lost:
            return Ratio(figure, over, [], aim, note="; ".join(lost))
        one, other = (self._middles(name, middle, "time") for name in names)
        times = " to ".join(in_time(1e6 * statistics.median(seconds)) for seconds in (one, other))
        walls = zip(*(self._middles(name, middle, "wall") for name in names), strict=True)
        by_wall = statistics.median(a / b for a, b in walls)
        samples = [a / b for a, b in zip(one, other, strict=True)]
        return Ratio(figure, over, samples, aim, note=f"{times}; by the wall clock {by_wall:.3f}")

    def _middles(self, name: str, middle: Literal["median", "mean"], clock: str) -> list[float]:
        of: Callable[[list[float]], float] = statistics.median if middle == "median" else statistics.fmean
        return [of([getattr(step, clock) for step in run]) for run in self.runs[name]]


def in_turns(
    contestants: Mapping[str, Callable[[], list[Step]]], rounds: int, peers: Collection[str] = (), warm_up: int = 1
) -> Turns:
    """Let each contestant run once in each round; every second round goes backwards.

    Args:
        contestants: What each is called, and what trains it, verifies it and returns its steps.
        rounds: How many runs each has.
        peers: Those that may be missing or fail, without an end to the others. Who trains the wrong thing ends all.
        warm_up: First steps of each run that are not counted.
    """
    turns = Turns({name: [] for name in contestants})
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            if name in turns.failed:
                continue
            try:
                turns.runs[name].append(contestants[name]()[warm_up:])
            except WrongTraining:
                raise
            except Exception as error:
                if name not in peers:
                    raise
                turns.failed[name] = why(name, error)
    return turns
