"""The table of a run and the line of an epoch say the numbers of the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.pictures import Fate
from lightning_freeze.report.table import (
    epoch_line,
    inputs_table,
    phases_table,
    plan_table,
    print_founding,
    print_inputs,
    print_plan,
    summary_table,
)

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


def unused(module: str | None, kind: str = "unused", calls: tuple[int, int] | None = (0, 1)) -> Finding:
    return Finding("inputs", kind, "warning", "m.", module=module, module_class="B", argument="x[0]", calls=calls)


def test_the_table_of_inputs_keeps_names_whole_on_a_narrow_screen() -> None:
    name = "model.encoder.layers.0.blocks.0.attention.output.and.further.down.than.a.screen.is.wide"
    out = StringIO()
    print_inputs(
        Console(file=out, width=80), [unused(name), unused("b"), unused("", "dead"), unused(None, "stale", None)]
    )
    printed = out.getvalue()
    (row,) = [line for line in printed.splitlines() if name in line and "B.x[0]" in line]
    assert "0 of 1 calls" in row
    assert "the root" in printed
    assert "4 findings over 1 input" in printed
    assert "- [warning] m. The same in 1 more of its class: 'b'." in printed


def test_one_finding_is_no_plural() -> None:
    assert inputs_table([unused("a")]).caption == "1 finding over 1 input"
    assert inputs_table([]).caption == "0 findings over 0 inputs"


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
            "freeze, epoch 3: a +0 (5), b +0 (5), c +0 (5), d +0 (5), and 2 groups more | 0 frozen intervals "
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


# --- a plan ---------------------------------------------------------------------------------------------------------


def steps(*sets: str, epoch: int = 10**9) -> list[Step]:
    """A step for each set of groups, written ``a b``, so many in an epoch."""
    return [Step(number // epoch, number, 0, frozenset(names.split())) for number, names in enumerate(sets)]


def sizes(*groups: str) -> dict[str, Size]:
    """10 elements for the first group, 20 for the second, and so on."""
    return {group: Size(10 * n, 40 * n, 80 * n) for n, group in enumerate(groups, 1)}


def printed(planned: Sequence[Step], of: Mapping[str, Size], first: int = 0, width: int = 20) -> str:
    out = StringIO()
    print_plan(Console(file=out, width=width, color_system=None), planned, of, first)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def cells(table: Any) -> list[tuple[str, ...]]:
    """A table's cells, row by row."""
    return list(zip(*(column._cells for column in table.columns), strict=True))


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
    assert [line.split() for line in text.splitlines()[4:6]] == [["a", "10", "0", DASH], ["b", "20", "0", DASH]]
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
    assert cells(table)[0][4] == expected
    assert cells(table)[0][2] == f"{sum(updates):,}"


FAMILY = [f"blocks/{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ("blocks/2 blocks/3 blocks/4 blocks/5 blocks/7", f"blocks/2{DASH}5,7"),
        ("blocks/0", "blocks/0"),
        ("blocks/0 blocks/1", f"blocks/0{DASH}1"),
        ("blocks/0 blocks/2", "blocks/0,2"),
        ("blocks/9 blocks/10 blocks/11 blocks/1", f"blocks/1,9{DASH}11"),
        (" ".join(FAMILY), f"blocks/0{DASH}11"),
        ("head blocks/3 embed", "blocks/3, embed, head"),
        ("stages/a stages/b head", "head, stages/a,b"),
        ("lora/q.1 lora/q.2", "lora/q.1,q.2"),
        ("rest", "rest"),
        ("", ""),
        pytest.param("odd/00 odd/01", f"odd/00{DASH}01"),
    ],
)
def test_a_set_names_rows_of_a_family_as_ranges(trained: str, expected: str) -> None:
    known = sizes(*FAMILY, "stages/a", "stages/b", "lora/q.1", "lora/q.2", "odd/00", "odd/01", "head", "embed", "rest")
    assert cells(phases_table(steps(trained), known))[0][0] == expected


def test_a_phase_over_an_epochs_end_says_both() -> None:
    rows = cells(phases_table(steps(*["a"] * 3, *["b"] * 3, epoch=4), sizes("a", "b"), first=100))
    assert [row[:4] for row in rows] == [("a", "3", "100", "0"), ("b", "3", "103", f"0{DASH}1")]


def test_rates_have_a_column_where_there_are_any() -> None:
    plain = steps("layers/0 layers/1 head", "head")
    assert len(cells(phases_table(plain, sizes("layers/0", "layers/1", "head")))[0]) == 8
    rated = [replace(plain[0], rates={"layers/0": 0.25, "head": 2.0}), plain[1]]
    rows = cells(phases_table(rated, sizes("layers/0", "layers/1", "head")))
    assert [row[-1] for row in rows] == [f"head ×2, layers ×0.25{DASH}1", ""]


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


def test_names_with_markup_survive_in_the_summary() -> None:
    assert "[x]" in rendered({"type": "run", "groups": {"[x]": {"parameters": 1, "elements": 1}}})


# --- the founding table ---------------------------------------------------------------------------------------------

WAYS = ("zero gradients", "None")
ADAM = ("Adam[x]", [Fate("moved", "moved 44%", "exp_avg, step"), Fate("held", "held")])
LOMO = ("LOMO", [Fate("unknown", "could not be stepped: NotImplementedError")])


def founding(rows: Sequence[tuple[str, Sequence[Fate]]], said: Sequence[Sequence[str]]) -> list[str]:
    out = StringIO()
    print_founding(Console(file=out, width=40, color_system=None), "20 steps", WAYS, rows, said)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip(" ─")]


def test_one_optimizer_has_a_row_for_each_way() -> None:
    lines = founding([ADAM], [["clocks: none"]])
    assert [line.split() for line in lines] == [
        "Adam[x]: 20 steps".split(),
        "frozen by the weight what changed of its optimizer state".split(),
        "zero gradients moved 44% exp_avg, step".split(),
        ["None", "held", DASH],
        "a percentage: how far it moved, of how far the weight moved that trained".split(),
        "- clocks: none".split(),
    ]


def test_several_have_a_row_each_and_what_could_not_be_built_says_so() -> None:
    lines = founding([ADAM, LOMO], [[], ["steps within backward: yes"]])
    assert [line.split() for line in lines] == [
        ["20", "steps"],
        "optimizer zero gradients None".split(),
        "Adam[x] moved 44% held".split(),
        "exp_avg, step".split(),
        ["LOMO", DASH, DASH],
        "a percentage: how far it moved, of how far the weight moved that trained".split(),
        "- LOMO: could not be stepped: NotImplementedError".split(),
        "- LOMO: steps within backward: yes".split(),
    ]


def test_long_lists_of_state_are_clipped_in_a_table_of_several() -> None:
    many = ("LBFGS", [Fate("moved", "moved", ", ".join(f"entry{n}" for n in range(20)))] * 2)
    assert all(len(line) < 100 for line in founding([many, many], [[], []]))
    assert any("…" in line for line in founding([many, many], [[], []]))
