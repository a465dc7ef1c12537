"""Counts and findings over ranks, in one process; over two in tests/test_ddp.py."""

from __future__ import annotations

import pytest
import torch

from lightning_freeze.report.metrics import over_ranks


@pytest.mark.parametrize(
    ("updates", "findings"),
    [({"slow": 3, "fast": 12}, {"error": 1, "warning": 0}), ({"one": 2**40}, {"error": 0}), ({}, {"error": 4})],
)
def test_in_one_process_they_are_what_they_are(updates: dict[str, int], findings: dict[str, int]) -> None:
    assert over_ranks(updates, findings, torch.device("cpu")) == (updates, findings)
