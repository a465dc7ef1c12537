"""What the records of a run say of it as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_freeze.plan.costs import Size
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.run_data import RunData

PLAIN = {"parameters": 1, "elements": 10}
WHOLE = {**PLAIN, "bytes": 20, "gradient_bytes": 40, "state_bytes": 80}


def data(*groups: dict[str, Any], findings: Sequence[Finding] = ()) -> RunData:
    runs: Any = [{"groups": dict(zip("ab", groups, strict=False))}]
    counts: Any = [{"updates": {"a": 3}, "total": 3, "intervals": 2}]
    return RunData(Path("freeze_audit.jsonl"), runs, counts=counts, findings=findings)


def test_sizes_are_0_where_records_do_not_say() -> None:
    assert data(WHOLE, PLAIN).sizes == {"a": Size(10, 40, 80), "b": Size(10, 0, 0)}
    assert data({**WHOLE, "state_bytes": None}).sizes == {"a": Size(10, 40, 0)}


def test_the_verdict_counts_buffers_once() -> None:
    moved = [
        Finding("buffers", "buffer", "info", "m", parameter=name, epoch=epoch) for name in "xy" for epoch in (0, 1)
    ]
    verdict = data(PLAIN, findings=moved).verdict
    assert verdict == "2 of 2 frozen intervals held, bit for bit; 2 buffers of frozen modules moved"
