"""How long groups stay frozen before they train again, as a plan has it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lightning_freeze.plan.preview import Step


class Interval(NamedTuple):
    """A group's time between two of its updates, or before its first.

    Args:
        group: The group.
        before: Its updates until then.
        length: Updates of its optimizer in between, in which it was frozen.
    """

    group: str
    before: int
    length: int


def longest_interval(
    steps: Iterable[Step], optimizer: int, groups: Collection[str], updates: Mapping[str, int]
) -> Interval | None:
    """The longest time that any of an optimizer's groups is frozen and then trains again.

    Args:
        steps: Optimizer steps to come.
        optimizer: The optimizer.
        groups: Its groups.
        updates: The updates that groups have had before.

    Returns:
        The first of the longest; None where none is frozen and trains again.

    Example:
        >>> steps = [Step(0, n, 0, frozenset({"slow", "fast"} if n % 5 == 0 else {"fast"})) for n in range(11)]
        >>> longest_interval(steps, 0, ["slow", "fast"], {})
        Interval(group='slow', before=1, length=4)
    """
    counts = {group: updates.get(group, 0) for group in groups}
    idle = dict.fromkeys(groups, 0)
    longest: Interval | None = None
    for step in steps:
        trained = step.trained.intersection(counts)
        if step.optimizer != optimizer or not trained:
            continue
        for group in counts:
            if group not in trained:
                idle[group] += 1
                continue
            if idle[group] > (longest.length if longest is not None else 0):
                longest = Interval(group, counts[group], idle[group])
            idle[group] = 0
            counts[group] += 1
    return longest
