from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.benchmarks.recompiles import ASKED, PAGE, WHAT, count, markdown, measure
from tests.pages import part


def test_two_sets_and_their_table() -> None:
    rows = measure([2])
    assert [(row.what, row.asked) for row in rows] == [(what, asked) for what in WHAT for asked in ASKED]
    assert {row.skips for row in rows if row.asked is False} == {False}
    assert all(row.skips for row in rows if row.asked is not False)
    assert not any(row.passed for row in rows)
    assert [row.graphs - row.first for row in rows if row.asked is False] == [0, 0], "recompiled without skipping"
    assert [row.graphs for row in rows if row.what == "model"] == [1, 2, 2]
    more = [replace(row, sets=12, graphs=8, passed=True) for row in rows[1:2]]
    lines = markdown([*rows, *more]).splitlines()
    assert lines[0] == "| compiled | `skip_backward` | 2 sets | 12 sets |"
    assert lines[2] == "| the whole model | false | 1 |  |"
    assert lines[3] == "| the whole model | auto | 2, skips | 8, skips, limit passed |"
    assert lines[4].startswith("| the whole model | true (limit 64) | 2, skips |")
    assert lines[5].startswith("| each block | false |")
    assert len(lines) == 2 + 6


def test_past_the_limit_it_is_said(monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.benchmarks.recompiles.RAISED", 3)
    monkeypatch.setattr("lightning_freeze.holds.skip_decision._recompiles", lambda *_: iter(()))
    row = count(4, "model", True)
    assert row.passed
    assert row.graphs == 3


def test_the_table_in_the_guide_is_what_is_measured() -> None:
    assert part(PAGE, "recompiles").rstrip() == markdown(measure())
