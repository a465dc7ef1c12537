"""How the hooks' time grows: exponents fitted to the time of a steady step and of a switch, over sizes of four kinds.

An exponent of 0 is a time that stays the same, of 1 one that doubles where the size does. The loops are light: what lies
between the hooks touches next to nothing, so that no other work's traces in the cache are taken for growth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import pytorch_lightning as pl

from tests.benchmarks.cases import Case, halves, two_groups
from tests.benchmarks.costs import middle
from tests.benchmarks.details import in_time
from tests.benchmarks.loops import Spent, in_loops, steady, switching
from tests.benchmarks.ratios import Ratio
from tests.threads import threads

FLAT, LINEAR = 0.05, 1.05


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """The exponents, on one thread of the CPU.

    Args:
        device: Not used: hooks run on the host.
        rounds: How often each size is measured.
        quick: Small sizes, to see that it runs.
    """
    groups, parameters, phases = ((10, 100, 1000), (100, 1000, 10_000), (100, 1000, 10_000))
    steps, long, most = 400, (1000, 10_000, 100_000), 2000
    if quick:
        groups, parameters, phases, steps, long, most = (2, 4, 8), (4, 8, 16), (4, 8, 16), 20, (20, 40, 60), 8
    by_groups = {n: halves(n, most // n) for n in groups}
    by_parameters = {n: halves(2, n // 2) for n in parameters}
    rows = []
    with threads(1):
        for kind, measured, aim in (
            (f"groups of {most:,} parameters", lambda: in_sizes(by_groups, steps), None),
            ("parameters", lambda: in_sizes(by_parameters, steps), LINEAR),
            ("phases, in the last of them", lambda: in_phases(phases, steps), FLAT),
            ("steps of an epoch", lambda: in_windows(two_groups(), long, steps), FLAT),
        ):
            found = [measured() for _ in range(rounds)]
            rows.append(exponent(f"a steady step, by {kind}", found, steady, FLAT))
            rows.append(exponent(f"a switch, by {kind}", found, switching, aim))
    return rows


Sizes = Mapping[int, Mapping[str, Sequence[Spent]]]
"""Size to the steps of ours, and of an empty callback."""


def in_sizes(cases: Mapping[int, Case], steps: int) -> Sizes:
    """The steps of each size, a few at a time, in turns with an empty callback."""
    contestants = {
        f"{who} {size}": (case.make(), case.scheduler() if who == "both" else pl.Callback())
        for size, case in cases.items()
        for who in ("empty", "both")
    }
    found = in_loops(contestants, steps + steps // 4, chunk=20, light=True)
    return {size: {who: found[f"{who} {size}"][steps // 4 :] for who in ("empty", "both")} for size in cases}


def in_windows(case: Case, ends: Sequence[int], steps: int) -> Sizes:
    """The last of so many steps of one long epoch."""
    contestants = {"empty": (case.make(), pl.Callback()), "both": (case.make(), case.scheduler())}
    found = in_loops(contestants, max(ends), chunk=20, light=True)
    return {end: {who: spent[max(0, end - steps) : end] for who, spent in found.items()} for end in ends}


def in_phases(numbers: Sequence[int], steps: int) -> Sizes:
    """The last steps of schedules of so many phases, two groups in turn."""
    cases = {number: halves(2, 1, phases=number, repeat=False) for number in numbers}
    return {number: in_windows(case, [5 * number], steps)[5 * number] for number, case in cases.items()}


def exponent(
    figure: str, rounds: Sequence[Sizes], which: Callable[[Sequence[Spent]], Sequence[int]], aim: float | None
) -> Ratio:
    """The slope of the logarithm of the time over that of the size, by least squares."""
    times = [{size: middle(spent, "both", which) for size, spent in found.items()} for found in rounds]
    samples = [
        statistics.linear_regression([*map(math.log, each)], [*map(math.log, each.values())]).slope
        for each in times
        if min(each.values()) > 0  # else it was lost in the noise
    ]
    middles = {size: statistics.median(each[size] for each in times) for size in times[0]}
    note = ", ".join(f"{size:,}: {in_time(1e6 * seconds)}" for size, seconds in middles.items())
    return Ratio(figure, "exponent", samples, aim, note=note)
