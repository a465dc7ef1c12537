"""The hooks' own time beside its two aims; `hooks` measures it and has the details."""

from __future__ import annotations

from typing import Any

from tests.benchmarks import hooks
from tests.benchmarks.details import in_time
from tests.benchmarks.ratios import Ratio

MOST = 3
"""Rounds: one takes some twenty seconds, and within it each figure is the median of many steps."""


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """What the hooks take of a step, always on one thread of the CPU.

    Args:
        device: Not used: hooks run on the host.
        rounds: How often all is measured, at most three times.
        quick: Few parameters, to see that it runs.
    """
    size = {"steps": 12, "warm_up": 2, "blocks": 4, "each": 3} if quick else {"steps": 50}
    return rows([hooks.measure(**size) for _ in range(min(rounds, MOST))])


def rows(results: list[dict[str, Any]]) -> list[Ratio]:
    """The aims' rows, of what `hooks.measure` gave in each round."""
    small, *large = (list(cases) for cases in zip(*(result["cases"] for result in results), strict=True))
    note = f"{_times(small)}; beside a bare step of {in_time(small[0]['bare_step_us']['median'])}"
    found = [
        Ratio("hooks, a step of 2 groups", "20 µs", [case["hooks_us"]["median"] / 20 for case in small], 1.0, note=note)
    ]
    for cases in large:
        first = cases[0]
        found.append(
            Ratio(
                f"hooks, {first['groups']:,} groups of {first['parameters']:,} tensors, {first['name']}",
                "bare SGD step",
                [case["share_of_sgd"]["median"] for case in cases],
                0.05,
                note=f"{_times(cases)} to {in_time(first['sgd_step_us']['median'])}",
            )
        )
    return found


def _times(cases: list[dict[str, Any]]) -> str:
    medians, means = ([case["hooks_us"][key] for case in cases] for key in ("median", "mean"))
    return f"{in_time(sorted(medians)[len(cases) // 2])} (mean {in_time(sorted(means)[len(cases) // 2])})"
