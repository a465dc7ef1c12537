"""A run in the terminal: when each group trained, the verdict, and the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from lightning_freeze.errors import counted
from lightning_freeze.report.repeats import bin_width
from lightning_freeze.report.run_data import RunData
from lightning_freeze.report.run_table import notes
from lightning_freeze.report.table import Strip, new_table, share

_SHOWN = 10


def run_view(report: RunData) -> Table:
    """A row for each group: what was planned and done, when, and what was found; the verdict beneath."""
    total, width = report.steps.length, bin_width(report.steps.length)
    planned, updated = Counter[str](), Counter[str]()
    for kind, number in report.steps.counts.items():
        planned.update(dict.fromkeys(kind.planned, number))
        updated.update(dict.fromkeys(kind.updated, number))
    shares = {group: [0.0] * -(-total // width) for group in updated}
    for begin, kind, number in report.steps.binned(width):
        index = begin // width
        for group in kind.updated:
            shares[group][index] += number / min(width, total - index * width)
    numbers = ("elements", "planned", "updated", "share", "violations", "warnings")
    names = dict.fromkeys(
        [report.run.get("model", "A run"), *(each["name"] for each in report.run.get("optimizers", ()))]
    )
    made = f"{counted(total, 'update')} in {counted(len({kind.epoch for kind in report.steps.counts}), 'epoch')}"
    table = new_table(escape(", ".join([*names, made])), ("group", *numbers, "when"), right=numbers, wrapped=("when",))
    table.caption = escape(report.verdict.capitalize())
    found = Counter((finding.group, finding.severity) for finding in report.findings)
    for group, size in report.run["groups"].items():
        counts = (size["elements"], planned[group], updated[group], found[group, "error"], found[group, "warning"])
        elements, planned_, updated_, *findings = map("{:,}".format, counts)
        strip = Strip(shares.get(group, [0.0] * -(-total // width)))
        table.add_row(escape(group), elements, planned_, updated_, share(updated[group], total), *findings, strip)
    return table


def lines(report: RunData) -> Iterator[str]:
    """The findings, worst first: each with its fix, the first few of many."""
    ranked = [each for severity in ("error", "warning") for each in report.findings if each.severity == severity]
    for finding in ranked[:_SHOWN]:
        yield f"- [{finding.severity}] {finding.text}"
    if len(ranked) > _SHOWN:
        yield f"- and {counted(len(ranked) - _SHOWN, 'finding')} more: `--html FILE` writes a page with all of them."
    yield from (f"- [info] {note}" for note in notes(report.findings, {}))
