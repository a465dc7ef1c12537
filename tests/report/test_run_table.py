"""The table of a run and the line of an epoch say the numbers of the records."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lightning_freeze.report.findings import Finding
from lightning_freeze.report.run_table import epoch_line, notes, start_text, summary_table

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
    _, below = re.split(r"─\s*\n", rendered(*records))
    lines = [re.split(r"\s{2,}", line.strip()) for line in below.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) == 6}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [RUN, counts()],
            {
                "slow": ["1,234,567", "1,200", "20%", "0", "0"],
                "fast": ["30", "6,000", "100%", "0", "0"],
                "rest": ["0", "0", "0%", "0", "0"],
            },
        ),
        (
            [RUN, finding("error", "slow"), finding("warning", "slow"), finding("error", "slow"), counts()],
            {"slow": ["1,234,567", "1,200", "20%", "2", "1"]},
        ),
        (
            [RUN, counts(), counts(updates={"slow": 1, "fast": 3}, total=3)],
            {"slow": ["1,234,567", "1", "33%", "0", "0"]},
        ),
        ([RUN], {"slow": ["1,234,567", "0", DASH, "0", "0"]}),
        ([RUN, counts(updates={"slow": 0, "fast": 0}, total=0)], {"fast": ["30", "0", DASH, "0", "0"]}),
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
        ([counts()], "4,800 of 4,800 frozen intervals held, bit for bit"),
        ([finding("warning", "slow"), counts()], "4,800 of 4,800 frozen intervals held, bit for bit"),
        ([counts(intervals=0)], "nothing was frozen"),
        ([finding("error", "slow"), finding("error"), counts()], "2 violations: what was planned frozen moved"),
    ],
)
def test_the_caption_is_the_verdict(records: list[Any], caption: str) -> None:
    # Rich breaks a caption at the table's width.
    assert caption in " ".join(rendered(RUN, *records).split())


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_with_an_error_no_bit_is_said_to_have_held(severity: str) -> None:
    said = "held, bit for bit" in " ".join(rendered(RUN, finding(severity), counts()).split())
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
    assert "held, bit for bit; exempt: target (user); exempt: teacher (user: moved by [EMA])" in " ".join(text.split())


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
    said: dict[Any, Any] = {}
    line, last = notes([*found, other, warned], said)
    assert last == other.message
    if count == 1:
        assert line == found[0].message
    else:
        assert line == f"60 buffers of frozen modules moved in epoch 0 ('bn.0.running_mean' and 59 more): {why}"
    later = [replace(each, epoch=1) for each in found]
    assert list(notes(later, said)) == []
    assert len([*notes(later[1:] or [replace(later[0], parameter="bn.1.num_batches_tracked")], said)]) == 1


def started(groups: dict[str, int], when: Any = lambda group: "always", notes: Any = (), **run: Any) -> list[str]:
    """The lines of a run's beginning, without what is only there to align them."""
    sizes = {group: {"parameters": 1, "elements": elements} for group, elements in groups.items()}
    record = {"groups": sizes, "optimizers": [], "updates_before": 0, "schedule": {}, "rest": "train", **run}
    lines = start_text(record, "phase 1 of 3", [*groups][:1], when, notes).splitlines()
    return [re.sub(r"\s{2,}", "|", line.strip()) for line in lines if line.strip(" ─")]


def test_a_run_begins_with_a_row_for_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert started({"body": 1500, "[head]": 400, "rest": 100}, {"body": "phase 2", "[head]": "phase 1, 3"}.get) == [
        "lightning-freeze begins, phase 1 of 3. Now training: body.",
        "group|parameters|elements|share|trains",
        "body|1|1,500|75.0%|phase 2",
        "[head]|1|400|20.0%|phase 1, 3",
        "rest|1|100|5.0%|always, by `rest: train`",
    ]


RESUMED = {"updates_before": 69, "epoch": 3}
ADAM, FILLS = (
    {"name": "AdamW", "skips_none": True, "excludes": False},
    {"name": "Muon", "excludes": True, "why": "it moved"},
)
SKIPS = {"asked": "auto", "skips": True, "why": "there is only one process"}


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (RESUMED, "lightning-freeze goes on in epoch 3, after 69 updates, phase 1 of 3. Now training: a."),
        ({"schedule": None}, "lightning-freeze audits what has requires_grad=False, and schedules nothing."),
        ({"rest": "freeze"}, "rest|1|1|50.0%|never, by `rest: freeze`"),
        (
            {"optimizers": [ADAM]},
            "- optimizer 0 (AdamW): the gradients of what is frozen are set to None, which holds it.",
        ),
        (
            {"optimizers": [ADAM, FILLS]},
            "- optimizer 1 (Muon) moves a parameter whose gradient is None (it moved): what is frozen is also excluded from "
            "its param groups for each step.",
        ),
        (
            {"skip_backward": SKIPS},
            "- the backward work of frozen groups is skipped: there is only one process.",
        ),
        (
            {"skip_backward": {**SKIPS, "skips": False}},
            "- the backward work of frozen groups is not skipped, their gradients are set to None: there is only one "
            "process.",
        ),
        (
            {"users_own": [*"pqrs"]},
            "- 4 parameters found with requires_grad=False (p, q, r, …): yours to freeze, and in no group.",
        ),
        ({"moved_by": {"exempt.t": "user: [EMA]"}}, "- moved by your own code, and not audited: t (user: [EMA])."),
        ({"notes": ["a [note]"]}, "- a [note]"),
    ],
)
def test_a_run_begins_with_what_is_recorded_of_it(
    run: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert line in started({"a": 1, "rest": 1}, **run)
    assert line not in started({"a": 1, "rest": 1})


@pytest.mark.parametrize("apart", [False, True])
def test_many_groups_are_few_rows(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    groups = {f"layers/{n}": 10 for n in range(200)} | {"rest": 2000}
    lines = started(groups, lambda group: f"phase {int(group[7:]) + 1}" if apart else "as drawn")
    if apart:
        assert len(lines) == 2 + 26
        assert lines[2] == "layers/0|1|10|0.2%|phase 1"
        assert lines[-2] == "layers/24–199|176|1,760|44.0%|phase 25–phase 200"
    else:
        assert lines[2] == "layers/0–199|200|2,000|50.0%|as drawn"
    assert lines[-1] == "rest|1|2,000|50.0%|always, by `rest: train`"
    run = {"type": "run", "groups": {group: {"parameters": 1, "elements": n} for group, n in groups.items()}}
    made = counts(updates={group: number for number, group in enumerate(groups)}, total=400)
    assert rows(run, finding("error", "layers/7"), made) == {
        "layers/0–199": ["2,000", "0–199", "50%", "1", "0"],
        "rest": ["2,000", "200", "50%", "0", "0"],
    }


def test_the_phase_stands_in_the_line_of_an_epoch() -> None:
    line = epoch_line(counts(updates={"a": 1}, stage="phase 2 of 3, visit 4"), {})
    assert line.startswith("freeze, epoch 3, phase 2 of 3, visit 4: a +1 (1) | ")
