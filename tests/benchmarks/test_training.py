"""The contestants do what they are measured for; how fast they are is for `python -m tests.benchmarks` to say."""

from __future__ import annotations

import pytest

from tests.benchmarks import training
from tests.benchmarks.checks import WrongTraining
from tests.benchmarks.models import TINY
from tests.benchmarks.training import Contest, measure
from tests.benchmarks.turns import INSTALL


def test_each_row_has_a_sample_a_round_or_says_why_not():
    rows = measure("cpu", rounds=2, quick=True)
    assert [row.aim for row in rows] == [1.03, 1.01, 0.55, None, None, None, None, None]
    for row in rows[:-1]:
        assert len(row.samples) == 2, row
    assert rows[-1].samples or rows[-1].note.endswith(INSTALL)


@pytest.fixture
def contest():
    return Contest(TINY, "cpu", steps=2)


def test_who_freezes_nothing_is_refused(contest, monkeypatch):
    monkeypatch.setattr(training, "freeze_below_top", lambda net: None)
    with pytest.raises(WrongTraining, match=r"a bare Trainer: moved although frozen: .*net\.blocks\.0"):
        contest.bare(top_only=True)


def test_who_makes_other_updates_is_refused(contest):
    contest.data = contest.data[:-1]
    with pytest.raises(WrongTraining, match="plain PyTorch made other updates"):
        contest.plain()
