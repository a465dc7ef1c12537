"""What our hooks cost a training step, summed inside the hooks: microseconds a step, never one run minus another.

Every hook of the callback that runs within a step, and the gate's own hooks in the optimizer's step, are wrapped by a
clock. Under Lightning the user's forward and backward run inside the closure that the gate wraps, so of that closure
only the hooks' own part (``StepHooks._last_moment``) is timed. The fingerprints taken where something freezes or thaws
(``WeightAudit.thaw`` and ``freeze``) are taken out of the hooks' cost and stand by themselves, for each such boundary. Not in
it: what Lightning and torch need to call a hook, whoever's it is.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import AlternatingFreeze, Every, FreezeScheduler, Phase, Phases
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.holds.step_hooks import StepHooks
from tests.benchmarks.quiet import quiet_fit
from tests.threads import threads

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
GATE_HOOKS = ("_before", "_last_moment", "_after")
OTHER_HOOKS = ("setup", "on_fit_start", "on_train_start", "on_train_epoch_end", "on_train_end", "on_fit_end")


class Clock:
    """Sums the time inside wrapped functions, step by step; what is nested is counted once.

    Args:
        overhead: Seconds that a wrapper records for a function that does nothing; taken off each call.
    """

    def __init__(self, overhead: float = 0.0) -> None:
        self.overhead = overhead
        self.steps: list[dict[str, float]] = []
        self.boundaries: list[float] = []
        self.other: dict[str, float] = defaultdict(float)
        self._now: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def wrap(self, function: Callable[..., Any], name: str, into: str = "step") -> Callable[..., Any]:
        """A function that adds its own time, without that of wrapped functions which it calls."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begin
                inner = self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent
                own = max(0.0, spent - inner - self.overhead)
                if into == "step":
                    self._now[name] += own
                elif into == "boundary":
                    self.boundaries.append(own)
                else:
                    self.other[name] += own

        return timed

    def next_step(self) -> None:
        """A step begins; keep what the one before it has cost."""
        self.steps.append(dict(self._now))
        self._now.clear()


def wrapper_overhead(calls: int = 20_000) -> float:
    """Seconds that a wrapper records for a function that does nothing: the median of many calls."""
    clock = Clock()
    nothing = clock.wrap(lambda self, lane: None, "nothing")
    seen = []
    for _ in range(calls):
        nothing(None, None)
        seen.append(clock._now.pop("nothing"))
    return statistics.median(seen)


class Pace(pl.Callback):
    """Marks where each step begins. Stands before the scheduler, so that no hook of a step comes before its mark."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.next_step()
        self.marks.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        self.marks[-1] = time.perf_counter() - self.marks[-1]


class TwoLayers(pl.LightningModule):
    """The founding example under SGD."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Linear(64, 32, bias=False)
        self.layer2 = nn.Linear(32, 10, bias=False)

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer2(torch.relu(self.layer1(batch[0]))), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ManyParameters(pl.LightningModule):
    """Many small parameters in blocks, one block a group.

    Args:
        blocks: How many groups there will be.
        each: Parameters in a block.
        size: Elements of a parameter.
    """

    def __init__(self, blocks: int, each: int, size: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = [nn.ParameterList([torch.randn(size) for _ in range(each)]) for _ in range(blocks)]
        self.blocks = nn.ModuleList(made)

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        return torch.cat(list(self.parameters())).square().sum() * 1e-2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def sgd_step(model: pl.LightningModule, steps: int) -> list[float]:
    """Seconds of each bare ``SGD.step()`` over all parameters, each with a gradient."""
    optimizer: Any = model.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    seen = []
    for _ in range(steps):
        begin = time.perf_counter()
        optimizer.step()
        seen.append(time.perf_counter() - begin)
    return seen


def train(model: pl.LightningModule, steps: int, clock: Clock, *callbacks: pl.Callback) -> list[float]:
    """One epoch of so many steps under a quiet Trainer.

    Returns:
        Seconds of each step, from its ``on_train_batch_start`` to its ``on_train_batch_end``.
    """
    data = TensorDataset(torch.randn(16, 64).repeat(steps, 1), torch.randint(10, (16,)).repeat(steps))
    pace = Pace(clock)
    quiet_fit(model, DataLoader(data, batch_size=16), pace, *callbacks)
    clock.next_step()
    del clock.steps[0]  # what came before the first step
    return pace.marks


@contextlib.contextmanager
def timed_hooks(scheduler: FreezeScheduler, clock: Clock) -> Iterator[None]:
    """Wrap our hooks: the scheduler's on the object, the step hooks' and the audit's on their classes until the end.

    A hook that the scheduler leaves as Lightning's empty one is not wrapped.
    """
    for names, into in ((STEP_HOOKS, "step"), (OTHER_HOOKS, "other")):
        for name in names:
            if getattr(type(scheduler), name) is not getattr(pl.Callback, name):
                setattr(scheduler, name, clock.wrap(getattr(scheduler, name), name, into))
    patched = [(StepHooks, name, f"StepHooks.{name}", "step") for name in GATE_HOOKS]
    patched += [(WeightAudit, name, name, "boundary") for name in ("thaw", "freeze")]  # type: ignore[misc]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _, _ in patched]
    try:
        for owner, name, label, into in patched:
            setattr(owner, name, clock.wrap(getattr(owner, name), label, into))
        with mock.patch("lightning_freeze.trainer.freeze_audit.as_text"):
            yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def spread(numbers: Sequence[float], unit: float = 1e6) -> dict[str, float]:
    """Median, 10th and 90th percentile and mean: of seconds in microseconds, or in another unit."""
    ordered = sorted(numbers) or [0.0]
    tenth = max(0, round(0.1 * (len(ordered) - 1)))
    return {
        "median": statistics.median(ordered) * unit,
        "p10": ordered[tenth] * unit,
        "p90": ordered[len(ordered) - 1 - tenth] * unit,
        "mean": statistics.fmean(ordered) * unit,
    }


def measure_case(
    name: str,
    make: Callable[[], pl.LightningModule],
    scheduler: FreezeScheduler,
    steps: int,
    warm_up: int,
    overhead: float,
) -> dict[str, Any]:
    """A bare run, a bare optimizer step, and a run with the scheduler whose hooks are timed.

    Args:
        name: What the case is called.
        make: Makes the model.
        scheduler: The callback.
        steps: Steps of each run, those of the warm-up included.
        warm_up: First steps that are left out.
        overhead: What a wrapper records of itself, in seconds.
    """
    bare = train(make(), steps, Clock())[warm_up:]
    sgd = sgd_step(make(), steps)[warm_up:]
    clock = Clock(overhead)
    model = make()
    with timed_hooks(scheduler, clock):
        train(model, steps, clock, scheduler)
    counted = clock.steps[warm_up:]
    hooks = [sum(step.values()) for step in counted]
    labels = sorted({label for step in counted for label in step})
    spent, plain = spread(hooks), spread(sgd)
    boundaries = [thaw + freeze for thaw, freeze in zip(clock.boundaries[::2], clock.boundaries[1::2], strict=True)]
    return {
        "name": name,
        "groups": len(scheduler.updates),
        "parameters": sum(1 for _ in model.parameters()),
        "steps": len(counted),
        "hooks_us": spent,
        "by_hook_us": {label: spread([step.get(label, 0.0) for step in counted]) for label in labels},
        "boundary_us": {**spread(boundaries), "count": len(boundaries)},
        "once_us": {label: seconds * 1e6 for label, seconds in clock.other.items()},
        "bare_step_us": spread(bare),
        "sgd_step_us": plain,
        "share_of_sgd": {key: spent[key] / plain["median"] for key in ("median", "mean")},
        "share_of_bare_step": spent["median"] / spread(bare)["median"],
    }


def halves(blocks: int, updates: int = 5) -> FreezeScheduler:
    """One half of the blocks trains, then the other, for ever."""
    names = [f"g{number}" for number in range(blocks)]
    phases = [Phase(names[: blocks // 2], updates=updates), Phase(names[blocks // 2 :], updates=updates)]
    return FreezeScheduler(Phases(phases, repeat=True), {n: f"blocks.{i}" for i, n in enumerate(names)})


def periods(blocks: int) -> FreezeScheduler:
    """The first block trains always; each of the others has a period, from 2 to 20."""
    groups = {f"g{number}": f"blocks.{number}" for number in range(blocks)}
    return FreezeScheduler(Every({f"g{n}": 2 + n % 19 for n in range(1, blocks)}, of="g0"), groups)


def measure(steps: int = 100, warm_up: int = 25, blocks: int = 1000, each: int = 10) -> dict[str, Any]:
    """Every case, on one thread.

    Args:
        steps: Steps of a run of the large cases; the small one makes five times as many.
        warm_up: First steps that are left out; at least 21 lets each period be seen once.
        blocks: Groups of the large cases.
        each: Parameters in each of those groups.
    """
    with threads(1):
        overhead = wrapper_overhead()

        def many() -> pl.LightningModule:
            return ManyParameters(blocks, each)

        alternating = AlternatingFreeze(slow="layer1", fast="layer2", every=5)
        cases = [
            measure_case("two groups", TwoLayers, alternating, 5 * steps, warm_up, overhead),
            measure_case("two halves", many, halves(blocks), steps, warm_up, overhead),
            measure_case("999 periods", many, periods(blocks), steps, warm_up, overhead),
        ]
    return {"benchmark": "hooks", "wrapper_us": overhead * 1e6, "machine": machine(), "cases": cases}


def machine() -> dict[str, Any]:
    """What was measured on, and with."""
    return {
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "python": platform.python_version(),
        "threads": 1,
        "cpu": _cpu(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
