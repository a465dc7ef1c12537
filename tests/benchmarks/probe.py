"""``python -m tests.benchmarks.probe``: what it costs to probe an optimizer, beside as many of its own steps."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_freeze import probe_optimizer
from lightning_freeze.holds.snapshots import same, snapshot
from lightning_freeze.probe import probe as probing
from lightning_freeze.probe.trial import Trial
from tests.benchmarks.machine import machine
from tests.threads import threads

ROUNDS = 5
AIM = 50.0
"""Milliseconds for AdamW."""

Make = Callable[[nn.Module], Optimizer]
KINDS: dict[str, Make] = {
    "SGD, momentum": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda m: AdamW(m.parameters()),
    "AdamW, fused": lambda m: AdamW(m.parameters(), fused=True),
    "AdamW, a param group for each of 100 parameters": lambda m: AdamW([{"params": [p]} for p in m.parameters()]),
    "Muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.dim() == 2]),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters()),
}


@dataclass(frozen=True)
class Cost:
    """What probing one optimizer took.

    Args:
        name: The optimizer.
        probes: Milliseconds of each round's probe, with nothing learnt before.
        plain: Milliseconds of as many of its steps over the same small parameters, without a gate, in the same round.
        steps: How many steps the probe makes.
        untouched: Whether the optimizer, its parameters and every global random state were the same, bit for bit, after it.
    """

    name: str
    probes: tuple[float, ...]
    plain: tuple[float, ...]
    steps: int
    untouched: bool


def model() -> nn.Module:
    """50 layers of 64 × 64 with biases: 100 parameters of two kinds."""
    return nn.Sequential(*[nn.Linear(64, 64) for _ in range(50)])


def measure(name: str, rounds: int = ROUNDS) -> Cost:
    """Probe one of `KINDS`, a number of times."""
    optimizer = KINDS[name](model())
    before, states = _all_of(optimizer), _random_states()
    probes, plain, steps = [], [], 0
    for _ in range(rounds + 1):  # of which the first fills caches
        probing._known.clear()
        start = time.perf_counter()
        probe_optimizer(optimizer)
        probes.append(1e3 * (time.perf_counter() - start))
        steps = _count(lambda: probe_optimizer(optimizer))
        plain.append(_plain(KINDS[name], steps))
    untouched = same(before, _all_of(optimizer)) and states == _random_states()
    return Cost(name, tuple(probes[1:]), tuple(plain[1:]), steps, untouched)


def _all_of(optimizer: Optimizer) -> Any:
    held = [snapshot(p) for group in optimizer.param_groups for p in group["params"]]
    return [held, snapshot(vars(optimizer), 12)]


def _random_states() -> str:
    return repr((torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()))


def _count(work: Callable[[], object]) -> int:
    """The steps of twins that a piece of work makes."""
    steps = 0
    run = Trial.run

    def counted(self: Trial, trains: frozenset[str], times: int = 1) -> None:
        nonlocal steps
        steps += times
        run(self, trains, times)

    probing._known.clear()
    Trial.run = counted  # type: ignore[method-assign]
    try:
        work()
    finally:
        Trial.run = run  # type: ignore[method-assign]
    return steps


def _plain(make: Make, steps: int) -> float:
    """Milliseconds of steps over two weights and two biases, as the probe has them; each finds new gradients."""
    with torch.random.fork_rng():
        optimizer = make(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
        held = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [torch.randn_like(p) for p in held]

    def closure() -> Any:
        for p, gradient in zip(held, gradients, strict=True):
            p.grad = gradient.clone()
        return 1.0

    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step(closure)
    return 1e3 * (time.perf_counter() - start)


def table(costs: list[Cost]) -> Table:
    """One line for each optimizer."""
    where = machine()
    drawn = Table(
        title="What probing an optimizer costs",
        caption=f"Median of {len(costs[0].probes)} rounds, least to most. {where['cpu']}, 1 thread, torch {where['torch']}.",
        caption_justify="left",
    )
    for column in ("optimizer", "probe, ms", "steps", "over plain steps", "left as it was"):
        drawn.add_column(column, justify="left" if column == "optimizer" else "right")
    for cost in costs:
        ratio = statistics.median(a / b for a, b in zip(cost.probes, cost.plain, strict=True))
        drawn.add_row(
            cost.name,
            f"{statistics.median(cost.probes):.1f} [{min(cost.probes):.1f}–{max(cost.probes):.1f}]",
            str(cost.steps),
            f"{ratio:.2f}",
            "yes" if cost.untouched else "NO",
        )
    return drawn


def main() -> None:
    """Measure all and draw the table."""
    with threads(1):
        Console().print(table([measure(name) for name in KINDS]))


if __name__ == "__main__":
    main()
