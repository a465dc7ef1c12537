"""The table at the end of a fit and the line at the end of an epoch, both made from records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.report.findings import Finding, once_a_class
from lightning_freeze.report.records import Record

_SHOWN = 4
_NONE = "–"


def summary_table(records: Iterable[Record]) -> Table:
    """The whole run as a table: each group's size, updates, share of all updates, and findings.

    Args:
        records: The records of one run, in order, as `read_records` gives them.
    """
    groups: Mapping[str, Mapping[str, int]] = {}
    counts: Record = {"updates": {}, "total": 0, "intervals": 0}
    found: dict[str, Counter[str | None]] = {"error": Counter(), "warning": Counter(), "info": Counter()}
    buffers = 0
    for record in records:
        if record["type"] == "run":
            groups = record["groups"]
        elif record["type"] == "counts":
            counts = record
        elif record["type"] == "finding":
            found[record["severity"]][record.get("group")] += 1
            buffers += record.get("audit") == "buffers"
    errors, warnings = found["error"], found["warning"]
    table = Table(title="lightning-freeze", caption=_verdict(counts, errors.total(), buffers))
    table.add_column("group", overflow="fold")
    for name in ("parameters", "elements", "updates", "share", "violations", "warnings"):
        table.add_column(name, justify="right")
    for group, size in groups.items():
        updates = counts["updates"].get(group, 0)
        table.add_row(
            group,
            f"{size['parameters']:,}",
            f"{size['elements']:,}",
            f"{updates:,}",
            f"{updates / counts['total']:.0%}" if counts["total"] else _NONE,
            str(errors[group]),
            str(warnings[group]),
        )
    return table


def inputs_table(findings: Sequence[Finding]) -> Table:
    """What modules are handed and do not use, each input of a class once.

    Args:
        findings: All findings; those about one input of a class share a row.
    """
    told = once_a_class(findings)
    inputs = len({(finding.module_class, finding.argument) for finding in findings})
    table = Table(
        title="inputs", caption=f"{_count(len(findings), 'finding')} over {_count(inputs, 'input')}", box=box.SIMPLE
    )
    for name in ("input", "verdict", "confirmed", "used in", "bytes a call", "first module"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("used in", "bytes a call") else "left")
    for finding in told:
        table.add_row(
            escape(f"{finding.module_class}.{finding.argument}"),
            finding.kind,
            "yes" if finding.confirmed else "no",
            "{} of {} calls".format(*finding.calls) if finding.calls else _NONE,
            f"{finding.bytes_passed or 0:,}",
            _NONE if finding.module is None else finding.module or "the root",
        )
    return table


def print_inputs(console: Console, findings: Sequence[Finding]) -> None:
    """Print the table of inputs as wide as its names are, so that they can be copied, and what each finding says.

    Args:
        console: Where to.
        findings: All findings.
    """
    table = inputs_table(findings)
    table.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table, soft_wrap=True)
    for finding in once_a_class(findings):
        console.print(f"- [{finding.severity}] {finding.message}", markup=False, highlight=False, soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _verdict(counts: Record, errors: int, buffers: int) -> str:
    if errors:
        return f"{errors} violation{'s' * (errors > 1)}: what was planned frozen moved"
    if buffers:
        return f"every frozen weight held; {buffers} buffer{'s' * (buffers > 1)} of frozen modules moved"
    return (
        f"{counts['intervals']:,} frozen intervals compared, every bit held"
        if counts["intervals"]
        else "nothing was frozen"
    )


def epoch_line(counts: Record, before: Mapping[str, int]) -> str:
    """One line for an epoch: each group's updates in it, the frozen intervals compared, the findings.

    Args:
        counts: The epoch's ``counts`` record.
        before: The updates at the epoch's beginning.
    """
    updates: Mapping[str, int] = counts["updates"]
    shown = list(updates)[:_SHOWN]
    parts = [f"{group} +{updates[group] - before.get(group, 0)} ({updates[group]})" for group in shown]
    if len(updates) > _SHOWN:
        parts.append(f"and {len(updates) - _SHOWN} groups more")
    found: Mapping[str, int] = counts["findings"]
    said = ", ".join(f"{number} {severity}{'s' * (number > 1)}" for severity, number in found.items() if number)
    return (
        f"freeze, epoch {counts['epoch']}: {', '.join(parts)} | "
        f"{counts['intervals_in_epoch']} frozen intervals compared | {said or 'no findings'}"
    )
