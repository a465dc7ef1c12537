from __future__ import annotations

import pytest

from tests.benchmarks import lisa
from tests.benchmarks.checks import WrongTraining
from tests.benchmarks.lisa import ENDS, ByLMFlow, measure, train
from tests.benchmarks.models import Shape

FIVE = Shape(blocks=5, width=8, length=4, batch=2, vocabulary=8)


def test_bytes_of_state_say_what_was_kept(monkeypatch):
    monkeypatch.setattr(lisa, "shape_for", lambda *_: FIVE)
    ours, lmflow, beside = measure("cpu", rounds=1, quick=True)
    assert ours.met
    assert ours.samples == [ours.aim]
    assert ours.aim < lmflow.samples[0] <= 1
    assert beside.samples[0] == pytest.approx(ours.samples[0] / lmflow.samples[0])


def test_lmflow_keeps_the_state_of_all_that_it_ever_drew():
    callback = ByLMFlow(updates=3, count=1)
    kept, moved = train(FIVE, "cpu", callback)
    drawn = {f"net.blocks.{number}" for number in set().union(*callback.draws)}
    assert len(callback.draws) == 10
    assert {".".join(name.split(".")[:3]) for name in kept if ".blocks." in name} == drawn
    assert set(kept) == moved
    assert all(any(name.startswith(end) for name in moved) for end in ENDS)


def test_state_that_is_kept_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(lisa, "shape_for", lambda *_: FIVE)
    monkeypatch.setattr(lisa, "DRAWS", 3)
    real = lisa.FreezeScheduler
    monkeypatch.setattr(
        lisa, "FreezeScheduler", lambda *args, **named: real(*args, **named | {"optimizer_state": "keep"})
    )
    with pytest.raises(WrongTraining, match=r"lightning-freeze kept the state of too much: \['net.blocks"):
        measure("cpu", rounds=1, quick=True)
