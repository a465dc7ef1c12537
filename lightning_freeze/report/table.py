"""The tables of a fit, of its inputs, of a plan and of a probe, and the line at the end of an epoch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.plan.costs import ALL_KEPT, Held, Size, over_time
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.findings import Finding, once_a_class
from lightning_freeze.report.pictures import Fate, human_bytes
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
            escape(group),
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
    _print_whole(console, inputs_table(findings))
    for finding in once_a_class(findings):
        console.print(f"- [{finding.severity}] {finding.message}", markup=False, highlight=False, soft_wrap=True)


def _print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as its names are."""
    table.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table, soft_wrap=True)


_STRIP = 40
_SHADES = " ░▒▓█"
_MOST_PHASES = 24


def plan_table(steps: Sequence[Step], sizes: Mapping[str, Size], first: int = 0) -> Table:
    """What each group will do in a run: its size, its updates, and when.

    Args:
        steps: The optimizer steps to come.
        sizes: Group to what it asks of memory.
        first: The updates that the run had before.
    """
    last = first + len(steps)
    epochs = _span(steps[0].epoch, steps[-1].epoch, "epoch") if steps else "no epochs"
    table = Table(
        title=f"plan: updates {first} to {last - 1}, {epochs}" if steps else "plan: no updates", box=box.SIMPLE
    )
    table.add_column("group", no_wrap=True)
    for name in ("elements", "updates", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("when", no_wrap=True)
    for group, size in sizes.items():
        trained = [group in step.trained for step in steps]
        share = f"{sum(trained) / len(steps):.0%}" if steps else _NONE
        table.add_row(escape(group), f"{size.elements:,}", f"{sum(trained):,}", share, _strip(trained))
    return table


def phases_table(steps: Sequence[Step], sizes: Mapping[str, Size], first: int = 0, held: Held = ALL_KEPT) -> Table:
    """A run as the sets that train one after the other, with what each asks of memory.

    Where sets change too often for a table, each set stands once, with how often it is entered.

    Args:
        steps: The optimizer steps to come.
        sizes: Group to what it asks of memory.
        first: The updates that the run had before.
        held: Whose optimizer state takes up memory.
    """
    timeline = over_time([step.trained for step in steps], sizes, held)
    runs: list[tuple[int, int]] = []  # where each set is entered, and where it ends
    for index, step in enumerate(steps):
        if index == 0 or step.trained != steps[index - 1].trained:
            runs.append((index, index))
        runs[-1] = (runs[-1][0], index)
    total = sum(size.elements for size in sizes.values())
    often = len(runs) > _MOST_PHASES
    table = Table(box=box.SIMPLE)
    table.add_column("trains", no_wrap=True)
    columns = ("times", "updates", "first update") if often else ("updates", "from update", "epochs")
    for name in (*columns, "elements", "of all", "gradients", "optimizer state"):
        table.add_column(name, justify="right", no_wrap=True)
    rated = any(step.rates for step in steps)
    if rated:
        table.add_column("rates", no_wrap=True)
    sets: dict[frozenset[str], list[tuple[int, int]]] = {}
    for run in runs:
        sets.setdefault(steps[run[0]].trained, []).append(run)
    rows = list(sets.items()) if often else [(steps[r[0]].trained, [r]) for r in runs]
    for trained, at in rows[:_MOST_PHASES]:
        updates = sum(end - begin + 1 for begin, end in at)
        begin, end = at[0][0], at[-1][1]
        place = (
            (f"{len(at):,}", f"{updates:,}", f"{first + begin:,}")
            if often
            else (f"{updates:,}", f"{first + begin:,}", _span(steps[begin].epoch, steps[end].epoch))
        )
        elements = timeline.elements[begin]
        table.add_row(
            escape(folded(trained, sizes)),
            *place,
            f"{elements:,}",
            f"{elements / total:.1%}" if total else _NONE,
            human_bytes(timeline.gradient[begin]),
            human_bytes(timeline.state[end]),
            *([escape(_rates(steps[end].rates, trained))] if rated else []),
        )
    if len(rows) > _MOST_PHASES:
        table.caption = f"and {_count(len(rows) - _MOST_PHASES, 'set')} more"
    return table


def print_plan(
    console: Console,
    steps: Sequence[Step],
    sizes: Mapping[str, Size],
    first: int = 0,
    held: Held = ALL_KEPT,
) -> None:
    """Print what a run will do: by group, and by the sets that train one after the other.

    Args:
        console: Where to.
        steps: The optimizer steps to come.
        sizes: Group to what it asks of memory.
        first: The updates that the run had before.
        held: Whose optimizer state takes up memory.
    """
    _print_whole(console, plan_table(steps, sizes, first))
    if not steps:
        return
    _print_whole(console, phases_table(steps, sizes, first, held))
    timeline = over_time([step.trained for step in steps], sizes, held)
    total = sum(size.elements for size in sizes.values())
    mean = sum(timeline.elements) / len(steps)
    gradients = max(timeline.gradient)
    state = (
        f"{human_bytes(timeline.state[-1])} at the end"
        if not held.leaves
        else f"up to {human_bytes(max(timeline.state))}"
    )
    console.print(
        f"{_count(len(steps), 'update')}; {mean / total if total else 0:.1%} of the elements train on average; gradients of what trains need "
        f"up to {human_bytes(gradients)}, optimizer state {state}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


_COLORS = {"held": "green", "state moved": "yellow", "moved": "red", "refused": "blue", "raised": "magenta"}
_LONGEST = 26


def founding_table(title: str, ways: Sequence[str], rows: Sequence[tuple[str, Sequence[Fate]]]) -> Table:
    """What optimizers do to a frozen weight, and beneath it, to their state of it.

    One optimizer has a row for each way of freezing; of several, each has one row.

    Args:
        title: What stands above.
        ways: The ways of freezing.
        rows: Of each optimizer its name, and what became of the weight by each way; one alone is for all ways.
    """
    moved = any(fate.kind == "moved" for _, fates in rows for fate in fates)
    caption = "a percentage: how far it moved, of how far the weight moved that trained" if moved else None
    table = Table(box=box.SIMPLE, caption=caption)
    if len(rows) == 1 and len(rows[0][1]) == len(ways):
        name, fates = rows[0]
        table.title = f"{escape(name)}: {title}"
        for column in ("frozen by", "the weight", "what changed of its optimizer state"):
            table.add_column(column, no_wrap=True)
        for way, fate in zip(ways, fates, strict=True):
            table.add_row(escape(way), _colored(fate), escape(_clipped(fate.below, 64)) or _NONE)
        return table
    table.title = title
    for column in ("optimizer", *ways):
        table.add_column(escape(column), no_wrap=True)
    for name, fates in rows:
        cells = [
            f"{_colored(fate)}\n[dim]{escape(_clipped(fate.below, _LONGEST))}[/dim]" if fate.below else _colored(fate)
            for fate in fates
        ]
        table.add_row(escape(name), *(cells if len(fates) == len(ways) else [_NONE] * len(ways)))
    return table


def print_founding(
    console: Console,
    title: str,
    ways: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Fate]]],
    said: Sequence[Sequence[str]],
) -> None:
    """Print what optimizers do to a frozen weight, and what there is to say of each.

    Args:
        console: Where to.
        title: What stands above.
        ways: The ways of freezing.
        rows: Of each optimizer its name, and what became of the weight by each way; one alone is for all ways.
        said: Lines about each.
    """
    _print_whole(console, founding_table(title, ways, rows))
    for (name, fates), lines in zip(rows, said, strict=True):
        of = "" if len(rows) == 1 else f"{name}: "
        alone = [fates[0].word] if len(fates) == 1 else []
        for line in (*alone, *lines):
            console.print(f"- {of}{line}", markup=False, highlight=False, soft_wrap=True)


def _colored(fate: Fate) -> str:
    color = _COLORS.get(fate.kind)
    return f"[{color}]{escape(fate.word)}[/{color}]" if color else escape(fate.word)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _strip(trained: Sequence[bool]) -> str:
    """When something happens, as a strip of characters; a darker one has more of it."""
    width = min(_STRIP, len(trained))
    cells = []
    for cell in range(width):
        part = trained[cell * len(trained) // width : (cell + 1) * len(trained) // width]
        cells.append(_SHADES[math.ceil(sum(part) / len(part) * (len(_SHADES) - 1))])
    return "".join(cells)


def folded(groups: Iterable[str], among: Iterable[str]) -> str:
    """Groups in a few words: the members of a family in one, rows of them as a range.

    Args:
        groups: The groups to name.
        among: All groups, in order.

    Example:
        >>> folded({"layers/0", "layers/1", "head"}, ["layers/0", "layers/1", "layers/2", "head"])
        'head, layers/0–1'
    """
    chosen = set(groups)
    families: dict[str, list[str]] = {}
    for group in among:
        family, slash, part = group.partition("/")
        if group in chosen:
            families.setdefault(family if slash else group, []).append(part)
    return ", ".join(
        family if parts == [""] else f"{family}/{_ranges(parts)}" for family, parts in sorted(families.items())
    )


def _rates(rates: Mapping[str, float], trained: frozenset[str]) -> str:
    """The factors on learning rates, those of a family in one word."""
    changed = {group.partition("/")[0] for group in rates}
    families: dict[str, list[float]] = {}
    for group in sorted(trained):
        if (family := group.partition("/")[0]) in changed:
            families.setdefault(family, []).append(rates.get(group, 1.0))
    return ", ".join(
        f"{family} ×{min(found):.3g}" + (f"–{max(found):.3g}" if min(found) != max(found) else "")
        for family, found in families.items()
    )


def _ranges(parts: Sequence[str]) -> str:
    if not all(part.isdigit() for part in parts):
        return ",".join(parts)
    rows: list[list[str]] = []
    for part in sorted(parts, key=int):
        if rows and int(rows[-1][-1]) == int(part) - 1:
            rows[-1].append(part)
        else:
            rows.append([part])
    return ",".join(row[0] if len(row) == 1 else f"{row[0]}–{row[-1]}" for row in rows)


def _span(first: int, last: int, what: str = "") -> str:
    if not what:
        return str(first) if first == last else f"{first}–{last}"
    return f"{what} {first}" if first == last else f"{what}s {first} to {last}"


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
    shown = sorted(updates, key=lambda group: updates[group] == before.get(group, 0))[:_SHOWN]  # what moved, first
    parts = [f"{group} +{updates[group] - before.get(group, 0)} ({updates[group]})" for group in shown]
    if len(updates) > _SHOWN:
        parts.append(f"and {len(updates) - _SHOWN} groups more")
    found: Mapping[str, int] = counts["findings"]
    said = ", ".join(f"{number} {severity}{'s' * (number > 1)}" for severity, number in found.items() if number)
    return (
        f"freeze, epoch {counts['epoch']}: {', '.join(parts)} | "
        f"{counts['intervals_in_epoch']} frozen intervals compared | {said or 'no findings'}"
    )
