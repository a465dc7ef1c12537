from __future__ import annotations

from tests.benchmarks.replacements import measure


def test_both_aims_have_a_row():
    small, large = measure("cpu", 2, quick=True)
    assert (small.aim, large.aim) == (1.0, 0.01)
    assert len(small.samples) == len(large.samples) == 2
    assert min(*small.samples, *large.samples) > 0
