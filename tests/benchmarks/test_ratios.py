from __future__ import annotations

import json

import pytest

from tests.benchmarks.ratios import Ratio


@pytest.mark.parametrize(
    ("samples", "aim", "sense", "met"),
    [
        ([0.9, 1.0, 5.0], 1.0, "at most", True),
        ([0.9, 1.1, 1.2], 1.0, "at most", False),
        ([0.9, 1.1, 1.2], 1.0, "at least", True),
        ([0.1, 0.9, 1.2], 1.0, "at least", False),
        ([1.0], None, "at most", None),
        ([], 1.0, "at most", None),
    ],
)
def test_the_median_meets_the_aim_or_not(samples, aim, sense, met):
    assert Ratio("a", "b", samples, aim, sense).met is met


def test_it_is_json():
    plain = Ratio("a", "b", (3.0, 1.0, 2.0), 1.5, note="n").as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["median"], plain["least"], plain["most"], plain["met"]) == (2.0, 1.0, 3.0, False)
    assert plain["quartiles"] == [1.5, 2.5]
    assert Ratio("a", "b", []).as_dict()["median"] is Ratio("a", "b", []).quartiles is None
    assert Ratio("a", "b", [1.0]).quartiles == (1.0, 1.0)


def test_a_harder_aim_is_told_apart():
    row = Ratio("a", "b", [1.2], 1.5, stretch=1.0)
    assert (row.met, row.stretched) == (True, False)
