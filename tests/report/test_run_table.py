"""The table of a run and the line of an epoch say the numbers of the records."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lightning_freeze.report.findings import Finding
from lightning_freeze.report.run_table import epoch_line, notes, summary_table

DASH = "\N{EN DASH}"
RUN = {
    "type": "run",
    "groups": {
        "slow": {"parameters": 2, "elements": 1234567},
        "fast": {"parameters": 1, "elements": 30},
        "rest": {"parameters": 0, "elements": 0},
    },
}


def counts(**changed: Any) -> dict[str, Any]:
    return {
        "type": "counts",
        "epoch": 3,
        "updates": {"slow": 1200, "fast": 6000},
        "total": 6000,
        "intervals": 4800,
        "intervals_in_epoch": 80,
        "findings": {"error": 0, "warning": 0, "info": 0},
        **changed,
    }


def finding(severity: str, group: str | None = None) -> dict[str, Any]:
    return {"type": "finding", "severity": severity, **({"group": group} if group else {})}


def rendered(*records: dict[str, Any]) -> str:
    out = StringIO()
    Console(file=out, width=120, color_system=None).print(summary_table(records))
    return out.getvalue()


def rows(*records: dict[str, Any]) -> dict[str, list[str]]:
    """Group to the cells beside it, read from the rendered text."""
    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in rendered(*records).splitlines() if "│" in line
    ]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [RUN, counts()],
            {
                "slow": ["2", "1,234,567", "1,200", "20%", "0", "0"],
                "fast": ["1", "30", "6,000", "100%", "0", "0"],
                "rest": ["0", "0", "0", "0%", "0", "0"],
            },
        ),
        (
            [RUN, finding("error", "slow"), finding("warning", "slow"), finding("error", "slow"), counts()],
            {"slow": ["2", "1,234,567", "1,200", "20%", "2", "1"]},
        ),
        (
            [RUN, counts(), counts(updates={"slow": 1, "fast": 3}, total=3)],
            {"slow": ["2", "1,234,567", "1", "33%", "0", "0"]},
        ),
        ([RUN], {"slow": ["2", "1,234,567", "0", DASH, "0", "0"]}),
        ([RUN, counts(updates={"slow": 0, "fast": 0}, total=0)], {"fast": ["1", "30", "0", DASH, "0", "0"]}),
    ],
    ids=["plain", "findings", "last_counts", "no_counts", "no_updates"],
)
def test_a_row_holds_the_numbers_of_its_group(records: list[Any], expected: dict[str, list[str]]) -> None:
    found = rows(*records)
    assert {group: found[group] for group in expected} == expected


def test_every_group_has_a_row_in_order() -> None:
    assert list(rows(RUN, counts())) == ["slow", "fast", "rest"]


@pytest.mark.parametrize(
    ("records", "caption"),
    [
        ([counts()], "4,800 frozen intervals compared, every bit held"),
        ([finding("warning", "slow"), counts()], "4,800 frozen intervals compared, every bit held"),
        ([counts(intervals=0)], "nothing was frozen"),
        ([finding("error", "slow"), finding("error"), counts()], "2 violations: what was planned frozen moved"),
    ],
)
def test_the_caption_is_the_verdict(records: list[Any], caption: str) -> None:
    # Rich breaks a caption at the table's width.
    assert caption in " ".join(rendered(RUN, *records).split())


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_with_an_error_no_bit_is_said_to_have_held(severity: str) -> None:
    said = "every bit held" in " ".join(rendered(RUN, finding(severity), counts()).split())
    assert said is (severity != "error")


@pytest.mark.parametrize(
    ("record", "before", "expected"),
    [
        (
            counts(),
            {"slow": 1180, "fast": 5900},
            "freeze, epoch 3: slow +20 (1200), fast +100 (6000) | 80 frozen intervals compared | no findings",
        ),
        (
            counts(epoch=0, updates={"slow": 1}, findings={"error": 2, "warning": 1, "info": 0}),
            {},
            "freeze, epoch 0: slow +1 (1) | 80 frozen intervals compared | 2 errors, 1 warning",
        ),
        (
            counts(updates=dict.fromkeys("abcdef", 5), intervals_in_epoch=0),
            dict.fromkeys("abcdef", 5),
            "freeze, epoch 3: a +0 (5), b +0 (5), c +0 (5), d +0 (5), and 2 more groups | 0 frozen intervals "
            "compared | "
            "no findings",
        ),
        (
            counts(updates=dict.fromkeys("abcd", 5)),
            {},
            "freeze, epoch 3: a +5 (5), b +5 (5), c +5 (5), d +5 (5) | 80 frozen intervals compared | no findings",
        ),
    ],
)
def test_the_line_of_an_epoch(record: dict[str, Any], before: dict[str, int], expected: str) -> None:
    assert epoch_line(record, before) == expected


def test_names_with_markup_survive_in_the_summary() -> None:
    assert "[x]" in rendered({"type": "run", "groups": {"[x]": {"parameters": 1, "elements": 1}}})


def test_what_is_exempt_is_named_beneath_the_table() -> None:
    text = rendered({**RUN, "moved_by": {"target": "user", "exempt.teacher": "user: moved by [EMA]"}}, counts())
    assert "every bit held; exempt: target (user); exempt: teacher (user: moved by [EMA])" in " ".join(text.split())


@pytest.mark.parametrize("count", [1, 60])
def test_buffers_that_moved_for_one_reason_are_one_line(count: int) -> None:
    why = "batch-norm statistics follow every forward in train mode, frozen weights or not."
    found = [
        Finding(
            "buffers", "buffer", "info", f"buffer 'bn.{n}.running_mean' of a frozen module moved in epoch 0: {why}",
            cause="statistics", epoch=0, parameter=f"bn.{n}.running_mean",
        )
        for n in range(count)
    ]  # fmt: skip
    other = replace(found[0], cause="outside", message="buffer 'u' of a frozen module moved: its module changes it")
    warned = replace(found[0], severity="warning")
    line, last = notes([*found, other, warned])
    assert last == other.message
    if count == 1:
        assert line == found[0].message
    else:
        assert line == f"60 buffers of frozen modules moved in epoch 0 ('bn.0.running_mean' and 59 more): {why}"
