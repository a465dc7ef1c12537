"""The table of a run, and the line at the end of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rich.markup import escape
from rich.table import Table

from lightning_freeze.errors import listed
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record
from lightning_freeze.report.table import counted, share

_SHOWN = 4


def summary_table(records: Iterable[Record]) -> Table:
    """A row for each group of a run: its size, updates, share of all updates, and findings."""
    groups: Mapping[str, Mapping[str, int]] = {}
    counts: Record = {"updates": {}, "total": 0, "intervals": 0}
    found: dict[str, Counter[str | None]] = {"error": Counter(), "warning": Counter(), "info": Counter()}
    buffers, exempt = 0, ""
    for record in records:
        if record["type"] == "run":
            groups = record["groups"]
            exempt = "".join(
                f"; exempt: {group.removeprefix('exempt.')} ({by})" for group, by in record.get("moved_by", {}).items()
            )
        elif record["type"] == "counts":
            counts = record
        elif record["type"] == "finding":
            found[record["severity"]][record.get("group")] += 1
            buffers += record.get("audit") == "buffers"
    table = Table(title="lightning-freeze", caption=escape(_verdict(counts, found["error"].total(), buffers) + exempt))
    table.add_column("group", overflow="fold")
    for name in ("parameters", "elements", "updates", "share", "violations", "warnings"):
        table.add_column(name, justify="right")
    for group, size in groups.items():
        updates = counts["updates"].get(group, 0)
        numbers = (size["parameters"], size["elements"], updates)
        table.add_row(
            escape(group),
            *(f"{number:,}" for number in numbers),
            share(updates, counts["total"]),
            str(found["error"][group]),
            str(found["warning"][group]),
        )
    return table


def _verdict(counts: Record, errors: int, buffers: int) -> str:
    if errors:
        return f"{counted(errors, 'violation')}: what was planned frozen moved"
    if buffers:
        return f"every frozen weight held; {counted(buffers, 'buffer')} of frozen modules moved"
    if counts["intervals"]:
        return f"{counts['intervals']:,} frozen intervals compared, every bit held"
    return "nothing was frozen"


def notes(findings: Iterable[Finding]) -> Iterator[str]:
    """The lines for findings that are for information: one for all buffers that moved for the same reason."""
    alike: dict[str | None, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "info":
            alike.setdefault(finding.cause, []).append(finding)
    for first, *others in alike.values():
        what, _, why = first.message.partition(": ")
        if others:
            names = listed([finding.parameter or "" for finding in (first, *others)], 1)
            what = f"{len(others) + 1} buffers of frozen modules moved in epoch {first.epoch} ({names})"
        yield f"{what}: {why}"


def epoch_line(counts: Record, before: Mapping[str, int]) -> str:
    """An epoch's ``counts`` record in one line; ``before``: the updates at its beginning."""
    updates: Mapping[str, int] = counts["updates"]
    shown = sorted(updates, key=lambda group: updates[group] == before.get(group, 0))[:_SHOWN]  # what moved, first
    parts = [f"{group} +{updates[group] - before.get(group, 0)} ({updates[group]})" for group in shown]
    if len(updates) > _SHOWN:
        parts.append(f"and {len(updates) - _SHOWN} more groups")
    findings = ", ".join(counted(number, severity) for severity, number in counts["findings"].items() if number)
    return (
        f"freeze, epoch {counts['epoch']}: {', '.join(parts)} | "
        f"{counts['intervals_in_epoch']} frozen intervals compared | {findings or 'no findings'}"
    )
