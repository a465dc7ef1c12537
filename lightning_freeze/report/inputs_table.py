"""The table of what modules are handed and do not use."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.report.findings import Finding, once_a_class
from lightning_freeze.report.table import NONE, counted, print_line, print_whole


def inputs_table(findings: Sequence[Finding]) -> Table:
    """What modules are handed and do not use, each input of a class once.

    Args:
        findings: All findings; those about one input of a class share a row.
    """
    inputs = len({(finding.module_class, finding.argument) for finding in findings})
    caption = f"{counted(len(findings), 'finding')} over {counted(inputs, 'input')}"
    table = Table(title="inputs", caption=caption, box=box.SIMPLE)
    for name in ("input", "verdict", "confirmed", "used in", "bytes a call", "first module"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("used in", "bytes a call") else "left")
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
    """Print the table of inputs as wide as its names are, so that they can be copied, and what each finding says.

    Args:
        console: Where to.
        findings: All findings.
    """
    print_whole(console, inputs_table(findings))
    for finding in once_a_class(findings):
        print_line(console, f"- [{finding.severity}] {finding.message}")
