"""A run in the terminal: when each group trained, the verdict, and the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from lightning_freeze.errors import counted
from lightning_freeze.report.run_data import RunData
from lightning_freeze.report.run_table import notes
from lightning_freeze.report.table import Strip, new_table, share

_SHOWN = 10


def run_view(report: RunData) -> Table:
    """A row for each group: what was planned and done, when, and what was found; the verdict beneath."""
    steps = [step for step, count in report.steps for _ in range(count)]
    numbers = ("elements", "planned", "updated", "share", "violations", "warnings")
    names = dict.fromkeys(
        [report.run.get("model", "A run"), *(each["name"] for each in report.run.get("optimizers", ()))]
    )
    made = f"{counted(len(steps), 'update')} in {counted(len({step.epoch for step in steps}), 'epoch')}"
    table = new_table(escape(", ".join([*names, made])), ("group", *numbers, "when"), right=numbers, wrapped=("when",))
    table.caption = escape(report.verdict.capitalize())
    found = Counter((finding.group, finding.severity) for finding in report.findings)
    for group, size in report.run["groups"].items():
        planned, trained = sum(group in step.planned for step in steps), [group in step.updated for step in steps]
        counts = (size["elements"], planned, sum(trained), found[group, "error"], found[group, "warning"])
        elements, planned_, updated, *findings = map("{:,}".format, counts)
        of_all = share(sum(trained), len(steps))
        table.add_row(escape(group), elements, planned_, updated, of_all, *findings, Strip(trained))
    return table


def lines(report: RunData) -> Iterator[str]:
    """The findings, worst first: each with its fix, the first few of many."""
    ranked = [each for severity in ("error", "warning") for each in report.findings if each.severity == severity]
    for finding in ranked[:_SHOWN]:
        yield f"- [{finding.severity}] {finding.text}"
    if len(ranked) > _SHOWN:
        yield f"- and {counted(len(ranked) - _SHOWN, 'finding')} more: `--html FILE` writes a page with all of them."
    yield from (f"- [info] {note}" for note in notes(report.findings, {}))
