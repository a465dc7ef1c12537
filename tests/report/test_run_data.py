"""What the records of a run say of it as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_freeze.plan.costs import Size
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.run_data import RunData

PLAIN = {"parameters": 1, "elements": 10, "bytes": 20}
WHOLE = {**PLAIN, "gradient_bytes": 40, "state_bytes": 80}


def data(groups: dict[str, Any], state: int | None = None, kept: str = "keep", **more: Any) -> RunData:
    counts: Any = [{"updates": {"a": 3, "b": 0}, "total": 3, "intervals": 2, "state_bytes": state}]
    runs: Any = [{"groups": groups, "optimizer_state": kept}]
    return RunData(Path("freeze_audit.jsonl"), runs, counts=counts if state is not None else (), **more)


SIZES = {
    "by their records": (data({"a": WHOLE}, 500), {"a": Size(10, 40, 80)}),
    "gradients as their parameters, state as it was": (
        data({"a": PLAIN, "b": {**PLAIN, "elements": 5}}, 160),
        {"a": Size(10, 20, 160), "b": Size(5, 20, 80)},
    ),
    "state that was offloaded says nothing": (data({"a": PLAIN}, 160, "offload"), {"a": Size(10, 20, 0)}),
    "no epoch ended": (data({"a": PLAIN}), {"a": Size(10, 20, 0)}),
    "of the first version": (data({"a": {"parameters": 1, "elements": 10}}, 0), {"a": Size(10, 0, 0)}),
}


@pytest.mark.parametrize(("run", "sizes"), SIZES.values(), ids=SIZES)
def test_sizes(run: RunData, sizes: dict[str, Size]) -> None:
    assert run.sizes == sizes


def test_the_verdict_counts_buffers_once() -> None:
    moved = [
        Finding("buffers", "buffer", "info", "m", parameter=name, epoch=epoch) for name in "xy" for epoch in (0, 1)
    ]
    verdict = data({"a": PLAIN}, 0, findings=moved).verdict
    assert verdict == "2 of 2 frozen intervals held, bit for bit; 2 buffers of frozen modules moved"
