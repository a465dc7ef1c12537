"""The tables of a plan: what each group will do, and which sets of groups train in turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lightning_freeze.errors import counted
from lightning_freeze.plan.costs import ALL_KEPT, Held, Size, over_time
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.table import Strip, folded, human_bytes, new_table, print_line, print_whole, share, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SETS = 24


@dataclass(frozen=True, repr=False)
class Forecast:
    """What a run will do; printed, it is its tables."""

    steps: Sequence[Step]  # in order, without those in which everything is frozen
    sizes: Mapping[str, Size]  # group to what it takes of memory
    first: int = 0  # the updates before them
    held: Held = ALL_KEPT  # whose optimizer state takes up memory
    notes: Sequence[str] = ()  # what is assumed, and what the user may not have meant
    title: str = ""  # the name of the model's class

    @property
    def trained(self) -> list[frozenset[str]]:
        """The groups updated by each step."""
        return [step.trained for step in self.steps]

    def draw(self, path: Path | str | None = None) -> Figure:
        """Draw it; a path's suffix names the format. Needs matplotlib, the extra ``plot``."""
        from lightning_freeze.report.plan_picture import draw_plan

        return draw_plan(Path(path) if path else None, self.steps, self.sizes, title=self.title, held=self.held)

    def print_to(self, console: Console) -> None:
        """Print the tables and the notes, no line cut."""
        for part in self.__rich__().renderables:
            print_whole(console, part) if isinstance(part, Table) else print_line(console, str(part))

    def __rich__(self) -> Group:
        tables = [plan_table(self.steps, self.sizes, self.first)]
        if self.steps:
            tables.append(phases_table(self.steps, self.sizes, self.first, self.held))
        return Group(*tables, *map(Text, self._said()), *(Text(f"- {note}") for note in self.notes))

    def _said(self) -> Iterator[str]:
        if not self.steps:
            return
        timeline = over_time(self.trained, self.sizes, self.held)
        mean = sum(timeline.elements) / len(self.steps)
        most, last = human_bytes(max(timeline.state)), human_bytes(timeline.state[-1])
        yield (
            f"{counted(len(self.steps), 'update')}; {share(mean, sum(size.elements for size in self.sizes.values()), 1)} of "
            "the elements train on average; gradients of what trains need up to "
            f"{human_bytes(max(timeline.gradient))}, optimizer state "
            f"{f'up to {most}' if self.held.leaves else f'{last} at the end'}."
        )

    def __repr__(self) -> str:
        number, groups = counted(len(self.steps), "update"), counted(len(self.sizes), "group")
        return f"<Forecast of {self.title or 'a run'}: {number} of {groups}>"

    def __str__(self) -> str:
        how: dict[str, Any] = {"color_system": None, "force_jupyter": False, "force_terminal": sys.stdout.isatty()}
        self.print_to(Console(file=(out := StringIO()), **how))
        return out.getvalue()

    def _repr_html_(self) -> str:
        self.print_to(console := Console(file=StringIO(), record=True, force_jupyter=False))
        return console.export_html(inline_styles=True, code_format="<pre style='line-height: 1.15'>{code}</pre>")


def plan_table(steps: Sequence[Step], sizes: Mapping[str, Size], first: int = 0) -> Table:
    """A row for each group: its size, its updates, and when."""
    title = "plan: no updates"
    if steps:
        begin, end = steps[0].epoch, steps[-1].epoch
        epochs = f"epoch {begin}" if begin == end else f"epochs {begin} to {end}"
        title = f"plan: updates {first} to {first + len(steps) - 1}, {epochs}"
    numbers = ("elements", "updates", "share")
    table = new_table(title, ("group", *numbers, "when"), right=numbers, wrapped=("when",))
    for group, size in sizes.items():
        trained = [group in step.trained for step in steps]
        updates = sum(trained)
        table.add_row(escape(group), f"{size.elements:,}", f"{updates:,}", share(updates, len(steps)), Strip(trained))
    return table


def phases_table(steps: Sequence[Step], sizes: Mapping[str, Size], first: int = 0, held: Held = ALL_KEPT) -> Table:
    """A row for each set that trains in turn, with its memory; where these are many, for each set once."""
    timeline = over_time([step.trained for step in steps], sizes, held)
    total = sum(size.elements for size in sizes.values())
    rows, by_set = _rows(steps)
    when = ("times", "updates", "first update") if by_set else ("updates", "from update", "epochs")
    numbers = (*when, "elements", "of all", "gradients", "optimizer state")
    factors = ("learning-rate factors",) if any(step.lr_factors for step in steps) else ()
    table = new_table(None, ("trains", *numbers, *factors), right=numbers)
    for runs in rows[:_MOST_SETS]:
        begin, end = runs[0][0], runs[-1][-1]
        trained, elements = steps[begin].trained, timeline.elements[begin]
        updates, at = f"{sum(map(len, runs)):,}", f"{first + begin:,}"
        table.add_row(
            escape(folded(trained, sizes)),
            *((f"{len(runs):,}", updates, at) if by_set else (updates, at, span(steps[begin].epoch, steps[end].epoch))),
            f"{elements:,}",
            share(elements, total, digits=1),
            human_bytes(timeline.gradient[begin]),
            human_bytes(timeline.state[end]),
            *(escape(_lr_factors(steps[end].lr_factors, trained)) for _ in factors),
        )
    if len(rows) > _MOST_SETS:
        table.caption = f"and {counted(len(rows) - _MOST_SETS, 'set')} more"
    return table


def _rows(steps: Sequence[Step]) -> tuple[list[list[range]], bool]:
    """The steps through which a set trains, a row each; or, where these are too many, a row for each set."""
    begins = [i for i, step in enumerate(steps) if i == 0 or step.trained != steps[i - 1].trained]
    runs = [range(begin, end) for begin, end in pairwise([*begins, len(steps)])]
    if len(runs) <= _MOST_SETS:
        return [[run] for run in runs], False
    sets: dict[frozenset[str], list[range]] = {}
    for run in runs:
        sets.setdefault(steps[run[0]].trained, []).append(run)
    return list(sets.values()), True


def _lr_factors(lr_factors: Mapping[str, float], trained: frozenset[str]) -> str:
    """The factors on learning rates, those of a family as a range."""
    families: dict[str, list[float]] = {}
    for group in sorted(trained):
        families.setdefault(group.partition("/")[0], []).append(lr_factors.get(group, 1.0))
    changed = {group.partition("/")[0] for group in lr_factors}
    return ", ".join(
        f"{family} ×{span(f'{min(found):.3g}', f'{max(found):.3g}')}"
        for family, found in families.items()
        if family in changed
    )
