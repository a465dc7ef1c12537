"""What a probe has measured, as a table and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from rich.console import Console

from lightning_freeze.report import probe_report
from lightning_freeze.report.probe_report import Fate, print_comparison
from lightning_freeze.report.table import NONE

# --- the table ------------------------------------------------------------------------------------------------------

TWO = ("zero gradients", "None")
ADAM = ("Adam[x]", [Fate("moved", "moved 44%", "exp_avg, step"), Fate("held", "held")])
LOMO = ("LOMO", [Fate("unknown", "could not be stepped: NotImplementedError")])


def printed(rows: Sequence[tuple[str, Sequence[Fate]]], notes: Sequence[Sequence[str]]) -> list[str]:
    out = StringIO()
    print_comparison(Console(file=out, width=40, color_system=None), "20 steps", TWO, rows, notes)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip(" ─")]


def test_one_optimizer_has_a_row_for_each_method() -> None:
    lines = printed([ADAM], [["step counters: none"]])
    assert [line.split() for line in lines] == [
        "Adam[x]: 20 steps".split(),
        "frozen by the weight what changed of its optimizer state".split(),
        "zero gradients moved 44% exp_avg, step".split(),
        ["None", "held", NONE],
        "a percentage: how far it moved, of how far the weight moved that trained".split(),
        "- step counters: none".split(),
    ]


def test_several_have_a_row_each_and_what_could_not_be_built_says_so() -> None:
    lines = printed([ADAM, LOMO], [[], ["steps within backward: yes"]])
    assert [line.split() for line in lines] == [
        ["20", "steps"],
        "optimizer zero gradients None".split(),
        "Adam[x] moved 44% held".split(),
        "exp_avg, step".split(),
        ["LOMO", NONE, NONE],
        "a percentage: how far it moved, of how far the weight moved that trained".split(),
        "- LOMO: could not be stepped: NotImplementedError".split(),
        "- LOMO: steps within backward: yes".split(),
    ]


def test_long_lists_of_state_are_clipped_in_a_table_of_several() -> None:
    many = ("LBFGS", [Fate("moved", "moved", ", ".join(f"entry{n}" for n in range(20)))] * 2)
    assert all(len(line) < 100 for line in printed([many, many], [[], []]))
    assert any("…" in line for line in printed([many, many], [[], []]))


# --- the picture ----------------------------------------------------------------------------------------------------

METHODS = ("zero gradients", "None", "lr=0")
FATES = [
    ("SGD", [Fate("held", "held"), Fate("held", "held"), Fate("raised", "raised KeyError")]),
    ("$Adam$", [Fate("moved", "moved 44%"), Fate("held", "held"), Fate("state moved", "s")]),
    ("LOMO", [Fate("unknown", "could not be stepped: NotImplementedError")]),
]


def test_each_cell_of_the_comparison_has_its_color_and_its_word() -> None:
    axes = probe_report.draw_comparison(None, METHODS, FATES, title="title").axes[0]
    colors = {(p.get_x(), p.get_y()): p.get_facecolor() for p in axes.patches}
    expected = {
        (column, row): to_rgba(probe_report._KINDS[fate.kind].fill)
        for row, (_, fates) in enumerate(FATES)
        for column, fate in enumerate(fates)
    }
    assert colors == expected
    assert [p.get_width() for p in axes.patches] == [1] * 6 + [3]
    assert [text.get_text() for text in axes.texts] == [fate.word for _, fates in FATES for fate in fates]
    assert [label.get_text() for label in axes.get_yticklabels()] == [name for name, _ in FATES]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(METHODS)
    assert len({to_rgba(kind.fill) for kind in probe_report._KINDS.values()}) == len(probe_report._KINDS)


@pytest.mark.parametrize("number", [1, 8, pytest.param(200, marks=pytest.mark.slow)])
def test_the_comparison_is_legible_whatever_its_length(number: int, tmp_path: Path) -> None:
    rows = [(f"package.Optimizer{n}(base_optimizer=AdamW)", FATES[n % 3][1]) for n in range(number)]
    figure = probe_report.draw_comparison(None, METHODS, rows, title="title")
    axes = figure.axes[0]
    figure.canvas.draw()
    inside = figure.get_tightbbox().transformed(figure.dpi_scale_trans)  # what is written
    boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_yticklabels())]
    assert all(box.x0 >= inside.x0 and box.x1 <= inside.x1 for box in boxes)
    rows_apart = axes.get_window_extent().height / number
    assert all(box.height < rows_apart for box in boxes)
    probe_report.draw_comparison(tmp_path / "new" / "probe.png", METHODS, rows)
    width = imread(tmp_path / "new" / "probe.png").shape[1]
    assert width >= probe_report.draw_comparison(None, METHODS, rows).get_tightbbox().width * figure.dpi


def test_what_cannot_be_drawn_as_a_comparison() -> None:
    with pytest.raises(ValueError, match="there is no optimizer to draw: `rows` is empty. Probe at least one."):
        probe_report.draw_comparison(None, METHODS, [])
    with pytest.raises(ValueError, match=r"'SGD' has 2 words for 3 methods. Give one for each, or one for all."):
        probe_report.draw_comparison(None, METHODS, [("SGD", FATES[0][1][:2])])


def test_a_comparison_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a picture of a probe needs matplotlib, the extra `plot`: pip install"):
        probe_report.draw_comparison(None, METHODS, FATES)
