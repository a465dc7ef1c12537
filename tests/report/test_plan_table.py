"""The tables of a plan say what will train when, whole on any screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.plan_table import Forecast, phases_table, plan_table
from lightning_freeze.report.table import NONE


def steps(*sets: str, epoch: int = 10**9) -> list[Step]:
    """A step for each set of groups, written ``a b``, so many in an epoch."""
    return [Step(number // epoch, number, 0, frozenset(names.split())) for number, names in enumerate(sets)]


def sizes(*groups: str) -> dict[str, Size]:
    """10 elements for the first group, 20 for the second, and so on."""
    return {group: Size(10 * n, 40 * n, 80 * n) for n, group in enumerate(groups, 1)}


def printed(planned: Sequence[Step], of: Mapping[str, Size], first: int = 0, width: int = 20) -> str:
    out = StringIO()
    Forecast(planned, of, first).print_to(Console(file=out, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def cells(table: Any) -> list[tuple[str, ...]]:
    """A table's cells, row by row."""
    return list(zip(*(column._cells for column in table.columns), strict=True))


def drawn(strip: Any, width: int = 80) -> list[str]:
    """A strip's characters where there is room for so many."""
    return [*strip.__rich_console__(console := Console(), console.options.update(max_width=width))]


def test_a_plan_is_printed_whole_on_a_narrow_screen() -> None:
    planned = steps("a", "a", "a b", "b", epoch=2)
    assert printed(planned, sizes("a", "b", "c"), first=5).split("\n") == [
        "plan: updates 5 to 8, epochs 0 to 1",
        "",
        "  group   elements   updates   share   when",
        " ───────────────────────────────────────────",
        "  a             10         3     75%   ███",
        "  b             20         2     50%     ██",
        "  c             30         0      0%",
        "",
        "",
        "  trains   updates   from update   epochs   elements   of all   gradients   optimizer state",
        " ───────────────────────────────────────────────────────────────────────────────────────────",
        "  a              2             5        0         10    16.7%        40 B              80 B",
        "  a, b           1             7        1         30    50.0%       120 B             240 B",
        "  b              1             8        1         20    33.3%        80 B             240 B",
        "",
        "4 updates; 29.2% of the elements train on average; gradients of what trains need up to 120 B, optimizer state 240 B "
        "at the end.",
    ]


def test_one_update_is_no_plural() -> None:
    text = printed(steps("a"), sizes("a"))
    assert text.startswith("plan: updates 0 to 0, epoch 0\n")
    assert "\n1 update; 100.0% of the elements" in text


def test_a_run_without_updates() -> None:
    text = printed([], sizes("a", "b"))
    assert text.startswith("plan: no updates\n")
    assert [line.split() for line in text.splitlines()[4:6]] == [
        ["a", "10", "0", NONE, NONE],
        ["b", "20", "0", NONE, NONE],
    ]
    assert "trains" not in text
    assert phases_table([], sizes("a")).row_count == 0


def test_a_model_without_elements() -> None:
    assert "1 update" in printed(steps("a"), {"a": Size(0, 0, 0)})


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([1], "█"),
        ([0, 1, 0], " █ "),
        ([1] * 40, "█" * 40),
        ([1] * 41, "█" * 40),
        ([1] * 4000, "█" * 40),
        ([0] * 50 + [1] * 50, " " * 20 + "█" * 20),
        ([1, *[0] * 99] * 40, "░" * 40),  # once in a hundred is seen
        ([1, 1, 0, 0] * 80, "▒" * 40),
        ([1, 1, 1, 0] * 80, "▓" * 40),
        ([1] * 3999 + [0], "█" * 40),
    ],
    ids=[f"strip {n}" for n in range(10)],
)
def test_when_is_a_strip(updates: list[int], expected: str) -> None:
    table = plan_table(steps(*("a b" if one else "b" for one in updates)), sizes("a", "b"))
    assert drawn(cells(table)[0][4]) == [expected]
    assert cells(table)[0][2] == f"{sum(updates):,}"


FAMILY = [f"blocks/{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ("blocks/2 blocks/3 blocks/4 blocks/5 blocks/7", f"blocks/2{NONE}5,7"),
        ("blocks/0", "blocks/0"),
        ("blocks/0 blocks/1", f"blocks/0{NONE}1"),
        ("blocks/0 blocks/2", "blocks/0,2"),
        ("blocks/9 blocks/10 blocks/11 blocks/1", f"blocks/1,9{NONE}11"),
        (" ".join(FAMILY), f"blocks/0{NONE}11"),
        ("head blocks/3 embed", "blocks/3, embed, head"),
        ("stages/a stages/b head", "head, stages/a,b"),
        ("lora/q.1 lora/q.2", "lora/q.1,q.2"),
        ("rest", "rest"),
        ("", ""),
        pytest.param("odd/00 odd/01", f"odd/00{NONE}01"),
    ],
)
def test_a_set_names_rows_of_a_family_as_ranges(trained: str, expected: str) -> None:
    known = sizes(*FAMILY, "stages/a", "stages/b", "lora/q.1", "lora/q.2", "odd/00", "odd/01", "head", "embed", "rest")
    assert cells(phases_table(steps(trained), known))[0][0] == expected


def test_a_phase_over_an_epochs_end_says_both() -> None:
    rows = cells(phases_table(steps(*["a"] * 3, *["b"] * 3, epoch=4), sizes("a", "b"), first=100))
    assert [row[:4] for row in rows] == [("a", "3", "100", "0"), ("b", "3", "103", f"0{NONE}1")]


def test_rates_have_a_column_where_there_are_any() -> None:
    plain = steps("layers/0 layers/1 head", "head")
    assert len(cells(phases_table(plain, sizes("layers/0", "layers/1", "head")))[0]) == 8
    rated = [replace(plain[0], lr_factors={"layers/0": 0.25, "head": 2.0}), plain[1]]
    rows = cells(phases_table(rated, sizes("layers/0", "layers/1", "head")))
    assert [row[-1] for row in rows] == [f"head ×2, layers ×0.25{NONE}1", ""]


def test_many_changes_are_told_by_set() -> None:
    turns = ["a", "b", "b"]
    exact = phases_table(steps(*turns * 12), sizes("a", "b"))
    assert exact.columns[1].header == "updates"
    assert exact.row_count == 24
    often = phases_table(steps(*turns * 12, "a"), sizes("a", "b"), first=1000)
    assert [column.header for column in often.columns[:4]] == ["trains", "times", "updates", "first update"]
    assert [row[:5] for row in cells(often)] == [("a", "13", "13", "1,000", "10"), ("b", "12", "24", "1,001", "20")]
    assert not often.caption


def test_of_many_sets_the_first_are_shown_and_the_rest_is_counted() -> None:
    groups = [f"g{number}" for number in range(26)]
    table = phases_table(steps(*groups, *groups), sizes(*groups))
    assert table.row_count == 24
    assert table.caption == "and 2 sets more"
    assert [row[0] for row in cells(table)] == groups[:24]
    assert "and 2 sets more" in printed(steps(*groups, *groups), sizes(*groups))
    assert phases_table(steps(*groups[:24], *groups[:24]), sizes(*groups)).caption is None


def test_one_set_more_is_no_plural() -> None:
    groups = [f"g{number}" for number in range(25)]
    assert phases_table(steps(*groups), sizes(*groups)).caption == "and 1 set more"


def test_state_is_what_has_been_updated_so_far_and_gradients_what_trains() -> None:
    rows = cells(phases_table(steps("b", "a", "b"), sizes("a", "b")))
    assert [row[-2:] for row in rows] == [("80 B", "160 B"), ("40 B", "240 B"), ("80 B", "240 B")]


def test_names_with_markup_survive_in_the_table_of_phases() -> None:
    table = phases_table(steps("[x] [/bold]"), sizes("[x]", "[/bold]"))
    out = StringIO()
    Console(file=out, width=120).print(table)
    assert "[/bold], [x]" in out.getvalue()


def test_names_with_markup_survive_in_the_table_of_groups() -> None:
    written = "re:layers.[a-z]+"  # a selector that stands in a schedule is its group's name
    text = printed(steps("[x]"), sizes("[x]", written))
    assert [line.split()[0] for line in text.splitlines()[4:6]] == ["[x]", written]


def test_notes_with_markup_survive_in_any_console() -> None:
    made, console = Forecast([], {}, notes=["never trained: [red]"]), Console(file=StringIO(), record=True)
    console.print(made)
    assert "- never trained: [red]" in console.export_text()
    assert "- never trained: [red]" in str(made)
