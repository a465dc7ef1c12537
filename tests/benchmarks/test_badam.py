from __future__ import annotations

import pytest

from tests.benchmarks import badam
from tests.benchmarks.badam import Contest, between_switches, measure
from tests.benchmarks.checks import WrongTraining
from tests.benchmarks.models import TINY, batches, make, task
from tests.benchmarks.turns import INSTALL, Step, Turns, fit


def test_each_row_has_samples_or_says_why_not():
    rows = measure("cpu", rounds=1, quick=True)
    assert [row.aim for row in rows] == [0.6, None, None, None, None, 0.75, None]
    ours = [row for row in rows if "badam" not in row.figure + row.over]
    assert len(ours) == 2
    assert all(row.samples for row in ours)
    for row in rows:
        assert row.samples or row.note.endswith(INSTALL), row


def test_another_order_is_refused(monkeypatch):
    contest = Contest(TINY, "cpu", updates=2)
    contest.run("ours")
    right = badam.recipe

    def longer(blocks, updates):
        return right(blocks, updates + 1)

    monkeypatch.setattr(badam, "recipe", longer)
    with pytest.raises(WrongTraining, match="ours made other updates than"):
        contest.run("ours")


def test_the_package_makes_the_same_updates_bit_for_bit():
    pytest.importorskip("badam")
    contest = Contest(TINY, "cpu", updates=2)
    contest.run("ours")
    contest.run("badam")
    contest.expected = None
    contest.updates = 3
    contest.run("badam")
    contest.updates = 2
    with pytest.raises(WrongTraining, match="badam made other updates"):
        contest.run("badam")


def test_who_trains_everything_is_refused():
    contest, module = Contest(TINY, "cpu", updates=2), task(make(TINY))
    fit(module, batches(TINY, 2, "cpu"), "cpu")
    with pytest.raises(WrongTraining, match="badam: moved although frozen"):
        contest.verify("badam", module, [])


def test_steps_with_switches_can_be_left_out():
    run = [Step(float(number), 0.0) for number in range(1, 9)]  # the first was the warm-up
    left = between_switches(Turns({"ours": [run], "badam": []}), updates=4)
    assert [step.time for step in left.runs["ours"][0]] == [1.0, 2.0, 5.0, 6.0]
