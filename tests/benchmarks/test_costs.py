"""The benchmarks of hooks and fingerprints measure what they say; how fast they are is for `python -m tests.benchmarks` to say."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.benchmarks import checkpoints, costs, growth, startup
from tests.benchmarks.growth import exponent
from tests.benchmarks.loops import Spent

ROWS = {costs: 13, growth: 8, startup: 2, checkpoints: 3}


@pytest.mark.parametrize("benchmark", ROWS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_each_figure_has_its_samples(benchmark):
    threads = torch.get_num_threads()
    rows = benchmark.measure("cpu", rounds=1, quick=True)
    assert torch.get_num_threads() == threads
    assert len(rows) == ROWS[benchmark]
    for row in rows:
        assert row.samples, row.figure
        assert all(map(math.isfinite, row.samples)), row.figure
        assert json.loads(json.dumps(row.as_dict())) == row.as_dict()


def test_what_is_over_an_empty_callback_is_given():
    a, b = frozenset("a"), frozenset("b")
    both = [Spent(5.0, 6.0, 6.0, each) for each in (a, a, a)] + [Spent(9.0, 9.0, 9.0, b)]
    spent = {"empty": [Spent(1.0, 1.0, 1.0, None)] * 4, "both": both}
    assert (costs.mean(spent, "both"), costs.mean(spent, "both", "main")) == (5.75, 5.0)
    assert costs.middle(spent, "both", costs.steady) == 5.0
    assert costs.middle(spent, "both", costs.switching, "main") == 8.0


@pytest.mark.parametrize(("power", "met"), [(0, True), (1, False)])
def test_an_exponent_is_fitted(power, met):
    found = {
        size: {"both": [Spent(0.0, 1e-5 * size**power, 1.0, frozenset())] * 5, "empty": [Spent(0.0, 0.0, 1.0, None)]}
        for size in (10, 100, 1000)
    }
    row = exponent("a step", [found], costs.steady, 0.05)
    assert row.samples == pytest.approx([power])
    assert row.met is met
