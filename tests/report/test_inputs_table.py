"""The table of inputs names what nobody uses, in full."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from lightning_freeze.report.findings import Finding
from lightning_freeze.report.inputs_table import inputs_table, print_inputs


def unused(module: str | None, kind: str = "unused", calls: tuple[int, int] | None = (0, 1)) -> Finding:
    return Finding("inputs", kind, "warning", "m.", module=module, module_class="B", argument="x[0]", calls=calls)


def test_the_table_of_inputs_keeps_names_whole_on_a_narrow_screen() -> None:
    name = "model.encoder.layers.0.blocks.0.attention.output.and.further.down.than.a.screen.is.wide"
    out = StringIO()
    print_inputs(
        Console(file=out, width=80), [unused(name), unused("b"), unused("", "dead"), unused(None, "stale", None)]
    )
    printed = out.getvalue()
    (row,) = [line for line in printed.splitlines() if name in line and "B.x[0]" in line]
    assert "0 of 1 calls" in row
    assert "the root" in printed
    assert "4 findings over 1 input" in printed
    assert "- [warning] m. The same in 1 more of its class: 'b'." in printed


def test_one_finding_is_no_plural() -> None:
    assert inputs_table([unused("a")]).caption == "1 finding over 1 input"
    assert inputs_table([]).caption == "0 findings over 0 inputs"
