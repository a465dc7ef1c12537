"""The loop within a fit is that of Lightning, and times what is the hooks' alone."""

from __future__ import annotations

import time

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.benchmarks.cases import TwoLayers, halves, periods, two_groups
from tests.benchmarks.loops import Beside, Spent, in_loops, steady, switching
from tests.benchmarks.quiet import quiet_fit

BATCHES = [(torch.randn(4, 64), torch.randint(10, (4,)))] * 11


def forward(number, module):
    return module.training_step(BATCHES[number], number)


class Notes(pl.Callback):
    def __init__(self):
        self.called = []

    def __getattribute__(self, name):
        if name.startswith("on_") and ("batch" in name or "before" in name or "after" in name):
            self.called.append(name)
        return super().__getattribute__(name)


def test_hooks_come_in_lightnings_order():
    ours, theirs = Notes(), Notes()
    in_loops({"": (TwoLayers(), ours)}, 3, 1, work=forward)
    quiet_fit(TwoLayers(), DataLoader(BATCHES[:3], batch_size=None), theirs)
    assert ours.called == theirs.called


@pytest.mark.parametrize("case", [two_groups(), halves(4, 2), periods(4, 2)], ids=["two groups", "halves", "periods"])
def test_the_same_is_trained_as_in_a_fit(case):
    looped, fitted, scheduler = case.make(), case.make(), case.scheduler()
    in_loops({"": (looped, case.scheduler())}, len(BATCHES), 2, work=forward)
    quiet_fit(fitted, DataLoader(BATCHES, batch_size=None), scheduler)
    assert all(torch.equal(one, other) for one, other in zip(looped.parameters(), fitted.parameters(), strict=True))
    assert torch.optim.SGD.step.__qualname__ != "Watch.around.<locals>.step"


class Works(pl.Callback):
    """Takes a millisecond of the processor's time in a hook."""

    def on_after_backward(self, *_):
        until = time.thread_time() + 1e-3
        while time.thread_time() < until:
            pass


def test_what_is_between_the_hooks_is_not_timed():
    def slow(number, module):
        Works().on_after_backward()
        return module.training_step(BATCHES[0], number)

    found = in_loops({"empty": (TwoLayers(), pl.Callback()), "works": (TwoLayers(), Works())}, 20, 5, work=slow)
    for name, least in (("empty", 0.0), ("works", 1e-3)):
        assert all(least <= step.main <= step.all <= step.whole for step in found[name])
        assert all(step.main + 1e-3 <= step.whole for step in found[name])  # the forward is in the whole alone


def test_steady_steps_and_switches_are_told_apart():
    a, b = frozenset("a"), frozenset("b")
    steps = [Spent(0.0, 0.0, 0.0, each) for each in (a, a, a, b, b, b, b, a)]
    assert (steady(steps), switching(steps)) == ([1, 4, 5], [3, 7])


def test_contestants_take_turns():
    order = []
    beside = {name: Beside(lambda name=name: order.append(name)) for name in "ab"}
    found = in_loops({"": (TwoLayers(), pl.Callback())}, 4, 2, beside=beside)
    assert "".join(order) == "aabb" + "bbaa"
    assert [len(spent) for spent in found.values()] == [4, 4, 4]
