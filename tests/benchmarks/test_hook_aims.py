from __future__ import annotations

import pytest

from tests.benchmarks.hook_aims import rows


def case(name, hooks, share):
    spread = {"median": hooks, "mean": 2 * hooks}
    return {
        "name": name,
        "groups": 1000,
        "parameters": 10000,
        "hooks_us": spread,
        "share_of_sgd": {"median": share},
        "sgd_step_us": {"median": 1000.0},
        "bare_step_us": {"median": 1000.0},
    }


def test_two_aims_in_three_rows():
    results = [{"cases": [case("two groups", us, 0), case("halves", us, share), case("periods", us, share)]}
               for us, share in ((10, 0.04), (30, 0.06))]  # fmt: skip
    small, halves, periods = rows(results)
    assert (small.samples, small.aim) == ([0.5, 1.5], 1.0)
    assert (halves.samples, halves.aim, periods.samples) == ([0.04, 0.06], 0.05, [0.04, 0.06])
    assert halves.figure == "hooks, 1,000 groups of 10,000 tensors, halves"
    assert small.note == pytest.approx("30 µs (mean 60 µs); beside a bare step of 1 ms")
