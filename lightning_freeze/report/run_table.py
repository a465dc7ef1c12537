"""The table of a run, and the line at the end of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_freeze.errors import counted, listed
from lightning_freeze.plan.schedule import REST
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record
from lightning_freeze.report.table import as_text, folded, new_table, share, span

_SHOWN, _MOST_ROWS, _LONGEST = 4, 24, 60


def summary_table(records: Sequence[Record]) -> Table:
    """A row for each group of a run: its size, updates, share of all updates, and findings."""
    last = {record["type"]: record for record in records}
    groups, counts = last["run"]["groups"], last.get("counts", {"updates": {}, "total": 0, "intervals": 0})
    found = Counter((record.get("severity"), record.get("group")) for record in records)
    errors = sum(record.get("severity") == "error" for record in records)
    buffers = len({record["parameter"] for record in records if record.get("audit") == "buffers"})
    numbers = ("elements", "updates", "share", "violations", "warnings")
    table = new_table("lightning-freeze", ("group", *numbers), right=numbers, wrapped=("group",))
    table.caption = escape("; exempt: ".join([verdict(counts["intervals"], errors, buffers), *_moved_by(last["run"])]))
    many = len(groups) > _MOST_ROWS
    for name, row in _rows(groups, lambda group: None if many else group):  # of many groups, a family is a row
        made = sorted(counts["updates"].get(group, 0) for group in row)
        violations, warned = (str(sum(found[kind, group] for group in row)) for kind in ("error", "warning"))
        elements, updates = sum(groups[group]["elements"] for group in row), span(f"{made[0]:,}", f"{made[-1]:,}")
        table.add_row(name, f"{elements:,}", updates, share(made[-1], counts["total"]), violations, warned)
    return table


def verdict(intervals: int, errors: int, buffers: int) -> str:
    """The outcome of a run in a sentence."""
    if errors:
        return f"{counted(errors, 'violation')}: what was planned frozen moved"
    moved = f"; {counted(buffers, 'buffer')} of frozen modules moved" if buffers else ""
    held = f"{intervals:,} of {intervals:,} frozen intervals held, bit for bit{moved}"
    return held if intervals else "nothing was frozen"


def start_text(run: Record, stage: str, now: Iterable[str], when: Callable[[str], str], notes: Iterable[str]) -> str:
    """What a run says when it begins: where it begins, a table of its groups, how what is frozen is held, and notes."""
    sizes, rest = run["groups"], run.get("rest")
    begins = "goes on in epoch {epoch}, after {made}" if run["updates_before"] else "begins"
    begins = begins.format(**run, made=counted(run["updates_before"], "update"))
    head = f"{begins}{', ' * bool(stage)}{stage}. Now training: {folded(now, sizes)}."
    head = "audits what has requires_grad=False, and schedules nothing." if run["schedule"] is None else head
    texts = {group: when(group) for group in sizes if group != REST}
    texts[REST] = f"{'always' if rest == 'train' else 'never'}, by `rest: {rest}`"
    total = sum(size["elements"] for size in sizes.values())
    numbers = ("parameters", "elements", "share")
    table = new_table(None, ("group", *numbers, "trains"), right=numbers, wrapped=("group", "trains"))
    for name, row in _rows(sizes, texts.__getitem__):
        parameters, elements = (sum(sizes[group][key] for group in row) for key in ("parameters", "elements"))
        part, text = share(elements, total, 1), escape(span(texts[row[0]], texts[row[-1]]))
        table.add_row(name, f"{parameters:,}", f"{elements:,}", part, text)
    return as_text(Group(Text(f"lightning-freeze {head}"), table, *(Text(f"- {n}") for n in (*_facts(run), *notes))))


def _facts(run: Record) -> Iterator[str]:
    """How what is frozen is held, and what is the user's own."""
    for index, optimizer in enumerate(run["optimizers"]):
        if optimizer.get("excludes"):
            yield (
                f"optimizer {index} ({optimizer['name']}) moves a parameter whose gradient is None ({optimizer['why']}): "
                "what is frozen is also excluded from its param groups for each step."
            )
        elif optimizer.get("skips_none"):
            yield f"optimizer {index} ({optimizer['name']}): the gradients of what is frozen are set to None, which holds it."
    if (skip := run.get("skip_backward")) and skip["asked"] is not False:
        how = "is skipped" if skip["skips"] else "is not skipped, their gradients are set to None"
        yield f"the backward work of frozen groups {how}: {skip['why']}."
    if own := run.get("users_own"):
        yield (
            f"{counted(len(own), 'parameter')} found with requires_grad=False ({', '.join(own[:3])}{', …' * (len(own) > 3)}): "
            "yours to freeze, and in no group."
        )
    yield from (f"moved by your own code, and not audited: {moved}." for moved in _moved_by(run))


def _moved_by(run: Record) -> list[str]:
    return [f"{group.removeprefix('exempt.')} ({by})" for group, by in run.get("moved_by", {}).items()]


def _rows(groups: Iterable[str], alike: Callable[[str], object]) -> list[tuple[str, list[str]]]:
    """Groups by rows, with their names in few words: those of a family that are alike in one, and the last of many."""
    found: dict[object, list[str]] = {}
    for group in groups:
        found.setdefault((group.partition("/")[0], alike(group)), []).append(group)
    rows = [*found.values()]
    rows[_MOST_ROWS:-1] = [[*chain(*rows[_MOST_ROWS:-1])]] if len(rows) > _MOST_ROWS + 1 else []
    return [(escape(n if len(n := folded(row, row)) <= _LONGEST else f"{row[0]} … {row[-1]}"), row) for row in rows]


def notes(findings: Iterable[Finding], said: dict[str | None, object]) -> Iterator[str]:
    """The lines for findings that are for information, one for each cause, where they are others than those last `said`."""
    alike: dict[str | None, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "info":
            alike.setdefault(finding.cause, []).append(finding)
    for cause, (first, *others) in alike.items():
        names = [finding.parameter or "" for finding in (first, *others)]
        what, _, why = first.message.partition(": ")
        if others:
            what = f"{len(names)} buffers of frozen modules moved in epoch {first.epoch} ({listed(names, 1)})"
        if said.get(cause) != names:
            yield f"{what}: {why}"
        said[cause] = names


def epoch_line(counts: Record, before: Mapping[str, int]) -> str:
    """An epoch's ``counts`` record in one line; ``before``: the updates at its beginning."""
    updates: Mapping[str, int] = counts["updates"]
    shown = sorted(updates, key=lambda group: updates[group] == before.get(group, 0))[:_SHOWN]  # what moved, first
    parts = [f"{group} +{updates[group] - before.get(group, 0)} ({updates[group]})" for group in shown]
    if len(updates) > _SHOWN:
        parts.append(f"and {len(updates) - _SHOWN} more groups")
    stage = f", {counts['stage']}" if counts.get("stage") else ""
    findings = ", ".join(counted(number, severity) for severity, number in counts["findings"].items() if number)
    return (
        f"freeze, epoch {counts['epoch']}{stage}: {', '.join(parts)} | "
        f"{counts['intervals_in_epoch']} frozen intervals compared | {findings or 'no findings'}"
    )
