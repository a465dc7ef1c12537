"""A run in the terminal."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lightning_freeze import read_report
from lightning_freeze.report.run_view import lines, run_view
from tests.report.made_runs import write


def printed(name: str, folder: Path) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(read_report(write(name, folder)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_says_what_was_planned_and_done_and_when(tmp_path: Path) -> None:
    shown = printed("violations", tmp_path)
    assert "DigitsMixer, Adam, Muon, 16 updates in 2 epochs" in shown
    (body,) = [line.split() for line in shown.splitlines() if line.startswith("  body ")]
    assert body == ["body", "3,000", "6", "6", "38%", "1", "0", "████", "██"]
    assert "2 violations: what was planned frozen moved" in shown


def test_optimizers_of_one_class_are_named_once(tmp_path: Path) -> None:
    report = read_report(write("small", tmp_path))
    report.run["optimizers"].append(report.run["optimizers"][0])
    assert str(run_view(report).title) == "DigitsMixer, AdamW, 36 updates in 3 epochs"


def test_findings_come_worst_first_each_with_its_fix(tmp_path: Path) -> None:
    said = [*lines(read_report(write("violations", tmp_path)))]
    assert [line.partition("]")[0] for line in said] == ["- [error", "- [error", "- [warning", "- [warning", "- [info"]
    assert said[0].endswith("or do it where the group trains. More: `lightning-freeze explain value`.")
    assert "24 buffers of frozen modules moved" in said[-1]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("small", "18 of 18 frozen intervals held, bit for bit"),
        ("not_yet", "Nothing was frozen"),
        ("untrusted", "6 of 6 frozen intervals held, bit for bit"),
    ],
)
def test_it_ends_with_the_verdict(name: str, verdict: str, tmp_path: Path) -> None:
    shown = printed(name, tmp_path)
    assert verdict in shown
    assert name != "untrusted" or "[bold]" in shown


def test_its_repr_is_a_line(tmp_path: Path) -> None:
    report = read_report(write("small", tmp_path))
    assert repr(report) == f"<RunReport of {report.path}: 18 of 18 frozen intervals held, bit for bit>"


def test_a_thousand_million_updates_are_counted_by_their_runs(tmp_path: Path) -> None:
    shown = printed("folded", tmp_path)
    assert "1,000,000,010 updates in 2 epochs" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith("  ") and "," in line}
    assert rows["body"][:4] == ["3,000", "85,000,009", "85,000,009", "9%"]
    assert rows["head"] == ["200", "1,000,000,010", "940,000,008", "94%", "0", "0", "█" * 40]
