"""The table of what modules are given and do not use."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.errors import counted
from lightning_freeze.report.findings import Finding, once_a_class
from lightning_freeze.report.table import NONE, new_table, print_line, print_whole


def inputs_table(findings: Sequence[Finding]) -> Table:
    """A row for each unused input of a class."""
    numbers = ("used in", "bytes a call")
    table = new_table("inputs", ("input", "verdict", "confirmed", *numbers, "first module"), right=numbers)
    inputs = len({(finding.module_class, finding.argument) for finding in findings})
    table.caption = f"{counted(len(findings), 'finding')} over {counted(inputs, 'input')}"
    for finding in once_a_class(findings):
        table.add_row(
            escape(f"{finding.module_class}.{finding.argument}"),
            finding.kind,
            "yes" if finding.confirmed else "no",
            "{} of {} calls".format(*finding.calls) if finding.calls else NONE,
            f"{finding.bytes_passed or 0:,}",
            NONE if finding.module is None else finding.module or "the root",
        )
    return table


def print_inputs(console: Console, findings: Sequence[Finding]) -> None:
    """Print the table, its names unbroken so that they can be copied, and each finding's message."""
    print_whole(console, inputs_table(findings))
    for finding in once_a_class(findings):
        print_line(console, f"- [{finding.severity}] {finding.message}")
