"""The preview, and how long groups stay frozen in it before they train again."""

from __future__ import annotations

import pytest

from lightning_freeze.plan.every import Every
from lightning_freeze.plan.preview import Interval, Step, longest_interval, preview
from lightning_freeze.plan.schedule import Layout


def steps(*rows: str, optimizer: int = 0) -> list[Step]:
    """Each row has the letters of the groups that train."""
    return [Step(0, number, optimizer, frozenset(row)) for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "longest"),
    [
        (("ab", "b", "b", "ab", "b", "ab"), Interval("a", 1, 2)),
        (("b", "b", "b", "ab"), Interval("a", 0, 3)),
        (("ab", "ab"), None),
        (("ab", "b", "b"), None),  # never trains again
        (("ab", "", "", "ab"), None),  # no update is counted
        (("a", "b", "a", "b", "b", "a"), Interval("a", 2, 2)),
    ],
)
def test_longest(rows: tuple[str, ...], longest: Interval | None) -> None:
    assert longest_interval(steps(*rows), 0, ["a", "b"], {}) == longest


def test_earlier_updates_and_other_optimizers() -> None:
    mine, others = steps("ab", "b", "ab"), steps("b", "b", "b", optimizer=1)
    mixed = [step for pair in zip(mine, others, strict=True) for step in pair]
    assert longest_interval(mixed, 0, ["a", "b"], {"a": 7}) == Interval("a", 8, 1)


def test_without_an_optimizer_there_are_no_steps() -> None:
    plan = Every({"a": 2}, of="b").bind(Layout(("a", "b")))
    with pytest.raises(ValueError, match=r"`order` is empty, so no optimizer would ever step"):
        next(preview(plan, 3, 3, order=()))
