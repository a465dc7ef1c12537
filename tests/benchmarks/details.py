"""The tables that say where the time of the input audit goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tests.benchmarks import inputs


def in_time(us: float) -> str:
    """Microseconds, to three digits in the unit that fits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}" if us < 1000 * size else f"{us / size:,.0f} {unit}"
    return f"{us:.3g} µs"


def _spread(numbers: Mapping[str, float]) -> str:
    return f"{in_time(numbers['median'])}\n{in_time(numbers['p10'])}\nto {in_time(numbers['p90'])}"


def _ratio(numbers: Mapping[str, float]) -> str:
    return f"{numbers['median']:.3f}\n{numbers['p10']:.3f}\nto {numbers['p90']:.3f}"


def _in_size(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def inputs_table(result: Mapping[str, Any]) -> Table:
    """What the audit of inputs costs, one row a case and pass."""
    machine = result["machine"]
    table = Table(
        title="The cost of the input audit: median, and p10 to p90 below it",
        caption=(
            "Ratio: audited to plain, pair by pair in turns; by the clock on the wall, and by the processor's time, which "
            "other processes disturb less. First: an audit's first pass, which also confirms what it finds, to the "
            "plain median. Findings: of so many inputs, and how many are confirmed. Peak: the most bytes at once from "
            "torch's allocator, plain, and what the first and a later audited pass add. "
            f"{machine['cpu']}, one thread, torch {machine['torch']}, transformers {machine['transformers']}."
        ),
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("case", no_wrap=True)
    for column in ("plain", "audited", "ratio", "processor", "first", "findings", "peak"):
        table.add_column(column, justify="right")
    for case in result["cases"]:
        for name in inputs.PASSES:
            numbers, peaks = case[name], case["allocator_bytes"][name]
            table.add_row(
                f"{case['name']}\n{name.replace('_', ' + ')}\n{case['modules']} modules",
                _spread(numbers["plain_us"]),
                _spread(numbers["audited_us"]),
                _ratio(numbers["ratio"]),
                _ratio(numbers["ratio_processor"]),
                f"{in_time(numbers['first_us'])}\n{numbers['first_ratio']:.2f}",
                f"{numbers['findings']}\nof {numbers['inputs']}\n{numbers['confirmed']} confirmed",
                f"{_in_size(peaks['plain'])}\n{peaks['first'] - peaks['plain']:+,} B\n"
                f"{peaks['audited'] - peaks['plain']:+,} B",
            )
    return table


def resident_table(result: Mapping[str, Any]) -> Table:
    """The peak of the resident set."""
    table = Table(title="The resident set's peak, of processes of each kind")
    for column in ("case", "processes", "plain", "with the audit", "ratio"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in result["resident"]:
        middle = case["median"]
        row = (case["name"], str(case["processes"]), _in_size(middle["plain"]), _in_size(middle["audited"]))
        table.add_row(*row, f"{case['ratio']:.3f}")
    return table
