"""The tables of a plan: what each group will do, and which sets train one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.plan.costs import ALL_KEPT, Held, Size, over_time
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.numbers import human_bytes
from lightning_freeze.report.table import counted, folded, print_line, print_whole, share, span

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
    table = Table(title="plan: no updates", box=box.SIMPLE)
    if steps:
        begin, end = steps[0].epoch, steps[-1].epoch
        epochs = f"epoch {begin}" if begin == end else f"epochs {begin} to {end}"
        table.title = f"plan: updates {first} to {first + len(steps) - 1}, {epochs}"
    for name in ("group", "elements", "updates", "share", "when"):
        table.add_column(name, justify="left" if name in ("group", "when") else "right", no_wrap=True)
    for group, size in sizes.items():
        trained = [group in step.trained for step in steps]
        updates = sum(trained)
        table.add_row(escape(group), f"{size.elements:,}", f"{updates:,}", share(updates, len(steps)), _strip(trained))
    return table


def _strip(trained: Sequence[bool]) -> str:
    """When something happens, as a strip of characters; a darker one has more of it."""
    width = min(_STRIP, len(trained))
    cells = []
    for cell in range(width):
        part = trained[cell * len(trained) // width : (cell + 1) * len(trained) // width]
        cells.append(_SHADES[math.ceil(sum(part) / len(part) * (len(_SHADES) - 1))])
    return "".join(cells)


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
    total = sum(size.elements for size in sizes.values())
    rows, often = _rows(steps)
    columns = ("times", "updates", "first update") if often else ("updates", "from update", "epochs")
    table = Table(box=box.SIMPLE)
    table.add_column("trains", no_wrap=True)
    for name in (*columns, "elements", "of all", "gradients", "optimizer state"):
        table.add_column(name, justify="right", no_wrap=True)
    rated = any(step.lr_factors for step in steps)
    if rated:
        table.add_column("rates", no_wrap=True)
    for runs in rows[:_MOST_PHASES]:
        begin, end = runs[0][0], runs[-1][-1]
        trained, elements = steps[begin].trained, timeline.elements[begin]
        updates, at = f"{sum(map(len, runs)):,}", f"{first + begin:,}"
        table.add_row(
            escape(folded(trained, sizes)),
            *((f"{len(runs):,}", updates, at) if often else (updates, at, span(steps[begin].epoch, steps[end].epoch))),
            f"{elements:,}",
            share(elements, total, digits=1),
            human_bytes(timeline.gradient[begin]),
            human_bytes(timeline.state[end]),
            *([escape(_lr_factors(steps[end].lr_factors, trained))] * rated),
        )
    if len(rows) > _MOST_PHASES:
        table.caption = f"and {counted(len(rows) - _MOST_PHASES, 'set')} more"
    return table


def _rows(steps: Sequence[Step]) -> tuple[list[list[range]], bool]:
    """The steps through which a set trains, a row each; or, where that is too many rows, a row a set."""
    begins = [i for i, step in enumerate(steps) if i == 0 or step.trained != steps[i - 1].trained]
    runs = [range(begin, end) for begin, end in pairwise([*begins, len(steps)])]
    if len(runs) <= _MOST_PHASES:
        return [[run] for run in runs], False
    sets: dict[frozenset[str], list[range]] = {}
    for run in runs:
        sets.setdefault(steps[run[0]].trained, []).append(run)
    return list(sets.values()), True


def _lr_factors(lr_factors: Mapping[str, float], trained: frozenset[str]) -> str:
    """The factors on learning rates, those of a family in one word."""
    changed = {group.partition("/")[0] for group in lr_factors}
    families: dict[str, list[float]] = {}
    for group in sorted(trained):
        if (family := group.partition("/")[0]) in changed:
            families.setdefault(family, []).append(lr_factors.get(group, 1.0))
    return ", ".join(
        f"{family} ×{min(found):.3g}" + (f"–{max(found):.3g}" if min(found) != max(found) else "")
        for family, found in families.items()
    )


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
    print_whole(console, plan_table(steps, sizes, first))
    if not steps:
        return
    print_whole(console, phases_table(steps, sizes, first, held))
    timeline = over_time([step.trained for step in steps], sizes, held)
    total = sum(size.elements for size in sizes.values())
    mean = sum(timeline.elements) / len(steps)
    most, last = human_bytes(max(timeline.state)), human_bytes(timeline.state[-1])
    print_line(
        console,
        f"{counted(len(steps), 'update')}; {mean / total if total else 0:.1%} of the elements train on average; gradients of "
        f"what trains need up to {human_bytes(max(timeline.gradient))}, optimizer state "
        f"{f'up to {most}' if held.leaves else f'{last} at the end'}.",
    )
