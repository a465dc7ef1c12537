"""What it takes to see, before each step, that an optimizer holds the same parameters as before."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_freeze.plan.membership import OptimizerIndex
from tests.benchmarks.details import in_time
from tests.benchmarks.ratios import Ratio
from tests.threads import threads


def processor_time(function: Callable[[], object], times: int) -> float:
    """Seconds of the processor's time of a call, the mean over some."""
    begin = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - begin) / times


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """The comparison over its aims, on one thread of the CPU.

    Args:
        device: Not used: the comparison runs on the host.
        rounds: How often both are measured, in turns.
        quick: Few parameters, to see that it runs.
    """
    times = 1 if quick else 10
    with threads(1):
        few, many = (
            torch.optim.SGD([nn.Parameter(torch.zeros(64)) for _ in range(count)], lr=0.1)
            for count in (8, 100 if quick else 10_000)
        )
        for parameter in many.param_groups[0]["params"]:
            parameter.grad = torch.full_like(parameter, 1e-6)
        small, large = OptimizerIndex([few]), OptimizerIndex([many])
        rows = [
            (
                processor_time(lambda: small.changed(0, {0}), 1000 * times),
                processor_time(lambda: large.changed(0), times),
                processor_time(many.step, times),
            )
            for _ in range(rounds)
        ]
    last = f"{in_time(rows[-1][0] * 1e6)} for 8 parameters; {in_time(rows[-1][1] * 1e6)} for {len(many.param_groups[0]['params']):,}"
    return [
        Ratio("replaced parameters, 8 compared before a step", "1 µs", [row[0] * 1e6 for row in rows], 1.0, note=last),
        Ratio("replaced parameters, all compared before a step", "SGD step", [row[1] / row[2] for row in rows], 0.01),
    ]
