"""The table of the zoo, in Markdown, made of nothing but what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tests.zoo.survey import TRAITS, Row
from tests.zoo.trial import TURNS

HEAD = """# The zoo

Made by `python -m tests.zoo --write`; not edited. Each optimizer trains two layers in three Lightning fits, in which
one layer at a time is frozen for up to twenty updates, and an observer compares its bits, values and optimizer state, after
every step. "None" means that what is frozen has no gradient in a step; "left out", that it is out of the param groups for the
step, too. "Clocks" are entries of param groups that run on while something in them is frozen.
"""


def page(rows: Sequence[Row]) -> str:
    """The whole file."""
    built = [row for row in rows if not row.not_built]
    parts = [HEAD, _counts(rows), _confusion(built), _optimizers(built)]
    if len(built) < len(rows):
        parts.append(_not_built([row for row in rows if row.not_built]))
    return "\n".join(parts)


def faults(rows: Iterable[Row]) -> list[str]:
    """What must not be."""
    found = []
    for row in rows:
        who = " ".join(filter(None, (row.package, row.version, row.name)))
        found += [f"{who}, {each}" for each in row.broken]
        for trait in row.off_diagonal:
            real, said = row.verdicts[trait]
            found.append(f"{who}: {trait} is {real}, and the probe says {said}")
    return found


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows that differ in their configuration alone, as one; ``AdamW-3-lr`` is one of AdamW."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        plain = row.name.partition("-")[0]
        key = (
            row.package,
            row.version,
            plain,
            row.way,
            tuple(row.turns.values()),
            tuple(row.step_counters),
            tuple(row.remarks),
        )
        found.setdefault(key if row.package == "torch" and not row.broken else id(row), []).append(row)
    return [replace(rows[0], name=_of_many(rows)) for rows in found.values()]


def _of_many(rows: Sequence[Row]) -> str:
    if len(rows) == 1:
        return rows[0].name
    return f"{rows[0].name.partition('-')[0]} ({len(rows)} configurations)"


def _counts(rows: Sequence[Row]) -> str:
    built = [row for row in rows if not row.not_built]
    ways = Counter(row.way for row in built)
    fits = Counter(word for row in built for word in row.turns.values())
    packages = sorted({(row.package, row.version) for row in rows if row.package != "torch"})
    return "\n".join(
        [
            f"torch {torch.__version__}, " + ", ".join(f"{name} {number}".strip() for name, number in packages) + ".",
            "",
            f"{len(built)} optimizers and configurations: " + _listed(ways) + ".",
            f"{sum(fits.values())} fits: " + _listed(fits) + ".",
            "",
        ]
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda each: -each[1]))


def _confusion(rows: Sequence[Row]) -> str:
    lines = [
        "## What the probe says, and what is so",
        "",
        "What really happens was seen in plain loops, without lightning-freeze. Off the diagonal, nothing should be.",
        "",
        "| trait | so, and said | not so, and said | so, but denied | not so, but claimed | so, not known | not so, not known |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for trait in TRAITS:
        pairs = [tuple(row.verdicts[trait]) for row in rows if trait in row.verdicts]
        if trait == "step_counters":
            continue
        order = [(True, True), (False, False), (True, False), (False, True), (True, None), (False, None)]
        lines.append(f"| `{trait}` | " + " | ".join(str(pairs.count(each)) for each in order) + " |")
    ticks = [row.verdicts["step_counters"] for row in rows if "step_counters" in row.verdicts]
    agree = sum(real == said for real, said in ticks)
    lines += ["", f"Clocks: the same in {agree} of {len(ticks)}.", ""]
    lines += [f"- {fault}" for fault in faults(replace(row, broken=[]) for row in rows)]
    unseen = len(rows) - sum(bool(row.verdicts) for row in rows)
    lines += ["", f"{unseen} do not train this net even with nothing frozen, so nothing could be compared.", ""]
    return "\n".join(lines)


def _optimizers(rows: Sequence[Row]) -> str:
    lines = ["## Optimizers", ""]
    lines += [
        f"| package | optimizer | held by | {' | '.join(TURNS)} | step counters | remarks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(merged(rows), key=lambda row: (row.package != "torch", row.package, row.version, row.name)):
        step_counters = ", ".join(f"`{entry}`" for entry in row.step_counters)
        remarks = "; ".join([*(f"**{each}**" for each in row.broken), *row.remarks])
        cells = [f"{row.package} {row.version}".strip(), row.name, row.way, *row.turns.values(), step_counters, remarks]
        lines.append("| " + " | ".join(_cell(each) for each in cells) + " |")
    return "\n".join([*lines, ""])


def _not_built(rows: Sequence[Row]) -> str:
    lines = ["## Not built", "", "| package | optimizer | reason |", "|---|---|---|"]
    lines += [f"| {row.package} {row.version} | {row.name} | {_cell(row.not_built)} |" for row in rows]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
