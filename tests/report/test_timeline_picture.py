"""The picture of a run: what was planned, what was updated, what moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lightning_freeze import read_report
from lightning_freeze.report.repeats import bin_width
from lightning_freeze.report.run_report import RunReport
from lightning_freeze.report.steps import unfolded
from tests.report.made_runs import folded, write


def outlines(axes: Any, color: str) -> dict[float, list[tuple[float, float]]]:
    """Row to where the outlines of a color begin and end."""
    found: dict[float, list[tuple[float, float]]] = {}
    for collection in axes.collections:
        if len(collection.get_facecolor()) == 0 and to_hex(collection.get_edgecolor()[0]) == color:
            for path in collection.get_paths():
                (left, low), (right, _) = path.vertices.min(axis=0), path.vertices.max(axis=0)
                found.setdefault(int(low), []).append((float(left), float(right)))
    return found


def test_outlines_are_what_was_planned_and_marks_what_moved(tmp_path: Path) -> None:
    figure = read_report(write("violations", tmp_path)).to_png(tmp_path / "a" / "report.png")
    axes = figure.axes[0]
    assert outlines(axes, "#00566b") == {0: [(4, 8), (10, 12)], 1: [(0, 4), (8, 10), (12, 16)], 2: [(0, 16)]}
    assert outlines(axes, "#d55e00") == {0: [(4, 6)], 1: [(9, 10)]}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["body", "head", "rest"]
    assert axes.get_title(loc="left") == "2 violations: what was planned frozen moved"
    assert (tmp_path / "a" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_update_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no update to draw: the run stopped before its first epoch ended"):
        read_report(write("not_yet", tmp_path)).to_png()


@pytest.mark.parametrize("times", [3, pytest.param(25, marks=pytest.mark.slow)])  # update by update, and in bins
def test_what_is_folded_is_drawn_as_if_it_were_written_out(times: int, tmp_path: Path) -> None:
    run, *phases = folded(times)
    spelt = [
        {**each, "steps": [[0, kind, n] for kind, n in unfolded(each["steps"], lambda _, n: n)]} for each in phases
    ]
    figures = [report(tmp_path, [run, *each]).to_png() for each in (phases, spelt)]
    one, other = [[np.asarray(image.get_array()) for image in figure.axes[0].images] for figure in figures]
    assert np.array_equal(one, other)
    assert len(one[0][0]) == -(-(200 * times + 10) // bin_width(200 * times + 10))
    shapes = [[shape.get_data() for axes in figure.axes[1:3] for shape in axes.patches] for figure in figures]
    for ours, theirs in zip(*shapes, strict=True):
        assert np.array_equal(ours.values, theirs.values)
    assert outlines(figures[0].axes[0], "#00566b") == outlines(figures[1].axes[0], "#00566b")
    assert [text.get_text() for text in figures[0].axes[0].texts] == [
        text.get_text() for text in figures[1].axes[0].texts
    ]


def test_a_thousand_million_updates_are_drawn_in_bins(tmp_path: Path) -> None:
    figure = read_report(write("folded", tmp_path)).to_png(tmp_path / "run.png")
    assert figure.axes[0].get_xlim() == (0, 1_000_000_010)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:4] == ["9 %", "85,000,009", "94 %", "940,000,008"]
    assert "a column is a bin of 500,001" in figure.axes[2].get_xlabel()
    assert {len(image.get_array()[0]) for image in figure.axes[0].images} == {2000}


def report(folder: Path, records: Sequence[dict[str, Any]]) -> RunReport:
    """The report of some records."""
    path = folder / "freeze_audit.jsonl"
    path.write_text("".join(json.dumps({"version": 2, "run": "a", **record, "run": "a"}) + "\n" for record in records))  # noqa: F601
    return read_report(path)
