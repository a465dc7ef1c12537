"""One figure of the benchmarks: a ratio of two things measured side by side in one run, beside its aim."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Ratio:
    """A ratio, measured several times over.

    Args:
        figure: What was measured: ``step, 11 of 12 blocks frozen``.
        over: What it is divided by: ``hand-written requires_grad=False``.
        samples: The ratio of each round, in which both were measured in turns; empty where it could not be measured.
        aim: What it is to be, if there is an aim.
        sense: Whether it is to be at most the aim, or at least.
        note: What a reader must know: the absolute figures, what was left out, why there are no samples.
        stretch: A harder aim, if there is one.
    """

    figure: str
    over: str
    samples: Sequence[float]
    aim: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    note: str = ""
    stretch: float | None = None

    @property
    def median(self) -> float | None:
        """The middle of the samples, None where there are none."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def met(self) -> bool | None:
        """Whether the median meets the aim; None without an aim or without samples."""
        return self._meets(self.aim)

    @property
    def stretched(self) -> bool | None:
        """Whether it meets the harder aim; None without one."""
        return self._meets(self.stretch)

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The values below which a quarter and three quarters of the samples lie."""
        if len(self.samples) < 2:
            return (self.samples[0], self.samples[0]) if self.samples else None
        first, _, third = statistics.quantiles(self.samples, method="inclusive")
        return first, third

    def _meets(self, aim: float | None) -> bool | None:
        if aim is None or self.median is None:
            return None
        return self.median <= aim if self.sense == "at most" else self.median >= aim

    def as_dict(self) -> dict[str, Any]:
        """Everything as builtins, with the median and the spread, for JSON."""
        return {
            **asdict(self),
            "samples": list(self.samples),
            "median": self.median,
            "quartiles": self.quartiles and list(self.quartiles),
            "least": min(self.samples, default=None),
            "most": max(self.samples, default=None),
            "met": self.met,
            "stretched": self.stretched,
        }


def spread(numbers: Sequence[float], unit: float = 1e6) -> dict[str, float]:
    """Median, 10th and 90th percentile and mean: of seconds in microseconds, or in another unit."""
    ordered = sorted(numbers)
    tenth = round(0.1 * (len(ordered) - 1))
    return {
        "median": statistics.median(ordered) * unit,
        "p10": ordered[tenth] * unit,
        "p90": ordered[len(ordered) - 1 - tenth] * unit,
        "mean": statistics.fmean(ordered) * unit,
    }
