"""The probe's benchmark measures what it says, and sees an optimizer that was touched."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Optimizer

from tests.benchmarks import probe
from tests.benchmarks.probe import Cost, measure, table


def test_figures_are_of_this_run() -> None:
    cost = measure("AdamW", rounds=2)
    assert len(cost.probes) == len(cost.plain) == 2
    assert min(cost.probes) > 0
    assert cost.steps > 40
    assert cost.untouched


def test_a_probe_that_touches_something_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def touches(optimizer: Optimizer) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][-1].mul_(0.999)

    monkeypatch.setattr(probe, "probe_optimizer", touches)
    assert not measure("AdamW", rounds=1).untouched
    monkeypatch.setattr(probe, "probe_optimizer", lambda optimizer: torch.rand(1))
    assert not measure("AdamW", rounds=1).untouched


def test_the_table_says_so() -> None:
    drawn = table([Cost("AdamW", (1.0, 3.0), (1.0, 2.0), 60, False)])
    assert [list(column.cells) for column in drawn.columns] == [["AdamW"], ["2.0 [1.0–3.0]"], ["60"], ["1.25"], ["NO"]]
