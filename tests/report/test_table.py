"""Numbers and groups as people write them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lightning_freeze import read_report
from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.plan_table import phases_table, plan_table
from lightning_freeze.report.run_view import run_view
from lightning_freeze.report.table import human_bytes, print_whole
from tests.report.made_runs import write

BYTES = {
    0: "0 B",
    1: "1 B",
    1023: "1023 B",
    1024: "1 KiB",
    1536: "1.5 KiB",
    1290: "1.26 KiB",
    12_700: "12.4 KiB",
    100 * 1024: "100 KiB",
    2**20 - 1: "1 MiB",
    2**20: "1 MiB",
    640 * 2**20: "640 MiB",
    2**30 * 5 // 4: "1.25 GiB",
    2**40: "1 TiB",
    2000 * 2**50: "2000 PiB",
}


@pytest.mark.parametrize("number", BYTES)
def test_bytes_for_people(number: int) -> None:
    assert human_bytes(number) == BYTES[number]


@pytest.mark.parametrize("name", ["violations", "small"])
def test_a_terminal_of_80_columns_shows_every_table_untorn(name: str, tmp_path: Path) -> None:
    report = read_report(write(name, tmp_path))
    steps = [Step(n, n, 0, frozenset({"body"}), {"body": 0.1}) for n in range(60)]
    sizes = {"body": Size(10**7, 10**8, 10**9), "discriminator": Size(10**7, 10**8, 10**9)}
    for table in (run_view(report), plan_table(steps, sizes), phases_table(steps, sizes)):
        console = Console(file=(out := StringIO()), width=80, force_terminal=True, color_system=None)
        print_whole(console, table)
        assert max(map(len, out.getvalue().splitlines())) <= 80
        assert "when" not in [column.header for column in table.columns] or "█" in out.getvalue()
