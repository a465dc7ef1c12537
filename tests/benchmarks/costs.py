"""What our hooks and fingerprints take of a step: its mean, a steady step and a switch, over that of an empty callback.

``hooks`` is a run without an audit, ``both`` one with it. Each is timed in turns with an empty callback, and with the bare
SGD step where that is what it is compared with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.benchmarks.cases import Case, halves, periods, two_groups
from tests.benchmarks.details import in_time
from tests.benchmarks.loops import Beside, Spent, in_loops, steady, switching
from tests.benchmarks.quiet import quiet_fit
from tests.benchmarks.ratios import Ratio
from tests.threads import threads

Thread = Literal["main", "all"]


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Every figure, on one thread of the CPU.

    Args:
        device: Not used: hooks run on the host.
        rounds: How often all is measured.
        quick: Few parameters, to see that it runs.
    """
    blocks, each = (4, 3) if quick else (1000, 10)
    with threads(1):
        small = [round_of(two_groups(), *((20, 60) if quick else (500, 3000))) for _ in range(rounds)]
        rows = in_microseconds("two groups, K=5, audit on", small)
        rows.append(whole_fits(two_groups(), rounds, 20 if quick else 2000))
        for name, case, aims in (
            ("in halves, K=5", halves(blocks, each), ((0.1, 0.04), (0.33, 0.2))),
            ("999 periods", periods(blocks, each), ((0.1, 0.08), (0.5, 0.4))),
        ):
            large = [round_of(case, *((2, 10) if quick else (20, 60)), sgd=True) for _ in range(rounds)]
            rows += over_sgd(f"{blocks * each:,} parameters, {name}", large, aims)
        name = f"{blocks * each:,} parameters, in halves, K=5"
        return [*rows, whole_steps(name, halves(blocks, each), rounds, 10 if quick else 40)]


def round_of(case: Case, warm_up: int, steps: int, sgd: bool = False) -> dict[str, list[Spent]]:
    """The steps of one round, in a few at a time: with an empty callback, with hooks alone, and with both."""
    made: dict[str, pl.Callback] = {
        "empty": pl.Callback(),
        "hooks": case.scheduler(audit=False),
        "both": case.scheduler(),
    }
    contestants = {name: (case.make(), callback) for name, callback in made.items()}
    beside = {"SGD": bare_sgd(case.make())} if sgd else {}
    chunk = 10 if sgd else 50
    found = in_loops(contestants, warm_up + steps, chunk, beside=beside)
    return {name: spent[warm_up:] for name, spent in found.items()}


def bare_sgd(model: pl.LightningModule) -> Beside:
    """The step of an optimizer over all parameters, each with a gradient, without hooks or a closure."""
    optimizer: Any = model.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    return Beside(optimizer.step)


def mean(spent: Mapping[str, Sequence[Spent]], name: str, thread: Thread = "all") -> float:
    """The mean step, over that of an empty callback."""
    return statistics.fmean(_of(spent[name], thread)) - statistics.fmean(_of(spent["empty"], thread))


def middle(
    spent: Mapping[str, Sequence[Spent]],
    name: str,
    which: Callable[[Sequence[Spent]], Sequence[int]],
    thread: Thread = "all",
) -> float:
    """The median of some steps, over that of an empty callback's."""
    steps = _of(spent[name], thread)
    return statistics.median(steps[n] for n in which(spent[name])) - statistics.median(_of(spent["empty"], thread))


def _of(spent: Sequence[Spent], thread: Thread) -> list[float]:
    return [getattr(step, thread) for step in spent]


def in_microseconds(name: str, rounds: Sequence[Mapping[str, Sequence[Spent]]]) -> list[Ratio]:
    """Mean, steady step and switch as they are."""
    figures: list[tuple[str, Callable[..., float], float | None, float | None]] = [
        ("the mean of a step", mean, 20, 15),
        ("a steady step", partial(middle, which=steady), 11, 8),
        ("a step that switches", partial(middle, which=switching), None, None),
    ]
    rows = []
    for what, figure, aim, stretch in figures:
        samples = [1e6 * figure(spent, "both") for spent in rounds]
        main = statistics.median(1e6 * figure(spent, "both", thread="main") for spent in rounds)
        hooks = statistics.median(1e6 * figure(spent, "hooks") for spent in rounds)
        note = f"{main:.1f} µs of the main thread; without the audit {hooks:.1f} µs"
        rows.append(Ratio(f"{name}: {what}", "1 µs", samples, aim, stretch=stretch, note=note))
    return rows


def over_sgd(
    name: str, rounds: Sequence[Mapping[str, Sequence[Spent]]], aims: Sequence[tuple[float, float]]
) -> list[Ratio]:
    """The mean of hooks alone and of both, and what a steady step and a switch take, over the bare SGD step."""
    figures: list[tuple[str, str, Callable[..., float], tuple[float | None, float | None]]] = [
        ("hooks", "hooks", mean, aims[0]),
        ("hooks and fingerprints", "both", mean, aims[1]),
        ("a steady step", "both", partial(middle, which=steady), (None, None)),
        ("a step that switches", "both", partial(middle, which=switching), (None, None)),
    ]
    rows = []
    for what, who, figure, (aim, stretch) in figures:
        if figure is not mean and not steady(rounds[0]["both"]):
            continue
        taken = [figure(spent, who) for spent in rounds]
        main = statistics.median(figure(spent, who, thread="main") for spent in rounds)
        bare = [statistics.median(_of(spent["SGD"], "all")) for spent in rounds]
        note = f"{in_time(1e6 * statistics.median(taken))} to {in_time(1e6 * statistics.median(bare))}"
        note += f"; of the main thread {in_time(1e6 * main)}"
        samples = [one / other for one, other in zip(taken, bare, strict=True)]
        rows.append(Ratio(f"{name}: {what}", "SGD step", samples, aim, stretch=stretch, note=note))
    return rows


# --- whole fits and whole steps, with all that Lightning does


class _First(pl.Callback):
    """Notes when the first batch begins. Stands first."""

    begun = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun = self.begun or time.process_time()


def whole_fits(case: Case, rounds: int, steps: int) -> Ratio:
    """From the first batch to the fit's end, so with records, findings and the garbage collector."""
    samples, without = [], []
    batches = [(torch.randn(16, 64), torch.randint(10, (16,)))] * steps

    def step_of(callback: pl.Callback) -> float:
        first = _First()
        quiet_fit(case.make(), DataLoader(batches, batch_size=None), first, callback)  # type: ignore[arg-type]
        return 1e6 * (time.process_time() - first.begun) / steps

    for _ in range(5 * rounds):
        empty, both, hooks = (step_of(each) for each in (pl.Callback(), case.scheduler(), case.scheduler(audit=False)))
        samples.append(both - empty)
        without.append(hooks - empty)
    note = f"{steps:,} steps, to the fit's end; without the audit {statistics.median(without):.1f} µs"
    return Ratio("two groups, K=5, audit on: the mean of a step, whole fits", "1 µs", samples, note=note)


def whole_steps(name: str, case: Case, rounds: int, steps: int) -> Ratio:
    """The mean step, forward, backward and update included, over that of what trains all."""
    samples, means = [], []
    for _ in range(rounds):
        contestants = {"all": (case.make(), pl.Callback()), "ours": (case.make(), case.scheduler())}
        found = in_loops(contestants, 10 + steps, 10, work=lambda number, module: module.training_step([], number))
        means = [statistics.fmean(step.whole for step in spent[10:]) for spent in found.values()]
        samples.append(means[1] / means[0])
    note = f"{in_time(1e6 * means[1])} to {in_time(1e6 * means[0])} in the mean"
    return Ratio(f"{name}: the whole step", "all trainable in a bare Trainer", samples, 0.85, note=note)
