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

from lightning_freeze import InputAudit
from tests.benchmarks.cases import Case, TwoLayers, halves, periods, two_groups
from tests.benchmarks.details import in_time
from tests.benchmarks.loops import Beside, Spent, in_loops, steady, switching
from tests.benchmarks.quiet import quiet_fit
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import fit, in_turns
from tests.threads import threads

Thread = Literal["main", "all"]
Aims = Mapping[str, tuple[float, float]]
"""A figure's name to its aim and to a harder one."""
HOOKS, BOTH, STEADY = "hooks, in the mean", "hooks and fingerprints, in the mean", "a steady step of both"


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
        found = rows("two groups, K=5", small, {BOTH: (20, 15), STEADY: (11, 8)})
        found.append(whole_fits(two_groups(), rounds, 20 if quick else 2000))
        found.append(input_audit(rounds, 5, 20 if quick else 1000))
        cases: tuple[tuple[str, Case, Aims], ...] = (
            ("in halves, K=5", halves(blocks, each), {HOOKS: (0.1, 0.04), BOTH: (0.33, 0.2)}),
            ("999 periods", periods(blocks, each), {HOOKS: (0.1, 0.08), BOTH: (0.5, 0.4)}),
        )
        for name, case, aims in cases:
            large = [round_of(case, *((2, 10) if quick else (20, 50)), sgd=True) for _ in range(rounds)]
            found += rows(f"{blocks * each:,} parameters, {name}", large, aims)
        name = f"{blocks * each:,} parameters, in halves, K=5"
        return [*found, whole_steps(name, halves(blocks, each), rounds, 10 if quick else 30)]


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
    """The mean step, over that of an empty callback: of each 50 in a row, and of these means the median."""

    def each(steps: list[float]) -> float:
        return statistics.median(statistics.fmean(steps[n : n + 50]) for n in range(0, len(steps), 50))

    return each(_of(spent[name], thread)) - each(_of(spent["empty"], thread))


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


def _over(rounds: Sequence[Mapping[str, Sequence[Spent]]]) -> tuple[str, list[float], str]:
    """What figures are divided by: its name, its seconds in each round, and a note."""
    if "SGD" not in rounds[0]:
        return "1 µs", [1e-6 for _ in rounds], ""
    bare = [statistics.median(_of(spent["SGD"], "all")) for spent in rounds]
    return "bare SGD step", bare, f"; SGD {in_time(1e6 * statistics.median(bare))}"


def rows(name: str, rounds: Sequence[Mapping[str, Sequence[Spent]]], aims: Aims) -> list[Ratio]:
    """Means, a steady step and a switch: over the bare SGD step where that ran, too, else in microseconds."""
    figures: dict[str, tuple[str, Callable[..., float]]] = {
        HOOKS: ("hooks", mean),
        BOTH: ("both", mean),
        STEADY: ("both", partial(middle, which=steady)),
        "a switch of both": ("both", partial(middle, which=switching)),
    }
    over, bare, also = _over(rounds)
    found = []
    if not steady(rounds[0]["both"]):
        figures = {what: figures[what] for what in (HOOKS, BOTH)}
    for what, (who, figure) in figures.items():
        taken, main = ([figure(spent, who, thread=thread) for spent in rounds] for thread in ("all", "main"))
        times = " of all threads, ".join(in_time(1e6 * statistics.median(each)) for each in (taken, main))
        samples = [one / other for one, other in zip(taken, bare, strict=True)]
        aim, stretch = aims.get(what, (None, None))
        note = f"{times} of the main thread{also}"
        found.append(Ratio(f"{name}: {what}", over, samples, aim, stretch=stretch, note=note))
    return found


def input_audit(rounds: int, warm_up: int, steps: int) -> Ratio:
    """What `InputAudit` takes of the steps after the audited one."""
    samples, batch = [], (torch.randn(16, 64), torch.randint(10, (16,)))
    for _ in range(rounds):
        contestants = {"empty": (TwoLayers(), pl.Callback()), "audit": (TwoLayers(), InputAudit(batches=1))}
        found = in_loops(contestants, steps, 50, work=lambda number, module: module.training_step(batch, number))
        spent = {name: each[warm_up:] for name, each in found.items()}
        samples.append(1e6 * middle(spent, "audit", lambda each: range(len(each))))
    return Ratio("the input audit, a step after the audited one", "1 µs", samples)


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
    return Ratio(f"two groups, K=5: {BOTH}, whole fits", "1 µs", samples, note=note)


def whole_steps(name: str, case: Case, rounds: int, steps: int) -> Ratio:
    """The mean step from batch to batch under a Trainer, over that of what trains all."""
    batches = [torch.zeros(1)] * (11 + steps)
    contestants = {
        "ours": lambda: fit(case.make(), batches, "cpu", case.scheduler()),
        "all": lambda: fit(case.make(), batches, "cpu"),
    }
    turns = in_turns(contestants, 2 * rounds, warm_up=10)
    over = "all trainable in a bare Trainer"
    return turns.row(f"{name}: the whole step, in the mean", over, ("ours", "all"), 0.85, "mean")
