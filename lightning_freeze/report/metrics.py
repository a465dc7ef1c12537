"""Counts and findings over all ranks, for the logger."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torchmetrics import Metric


class _Ranks(Metric):
    """Update counts (equal on all ranks, so the greatest) and findings (of each rank its own, so the sum)."""

    full_state_update = False
    updates: torch.Tensor
    findings: torch.Tensor

    def __init__(self, groups: int, severities: int) -> None:
        super().__init__()
        self.add_state("updates", torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="max")
        self.add_state("findings", torch.zeros(severities, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, updates: torch.Tensor, findings: torch.Tensor) -> None:
        self.updates += updates
        self.findings += findings

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.updates, self.findings


def over_ranks(
    updates: Mapping[str, int], findings: Mapping[str, int], device: torch.device
) -> tuple[dict[str, int], dict[str, int]]:
    """Updates by group and findings by severity over all ranks; in one process as they are.

    Two collectives, whatever the number of groups and parameters.
    """
    metric = _Ranks(len(updates), len(findings)).to(device)
    metric.update(
        torch.tensor(list(updates.values()), dtype=torch.int64, device=device),
        torch.tensor(list(findings.values()), dtype=torch.int64, device=device),
    )
    # torchmetrics makes a scalar of what has one element.
    all_updates, all_findings = (value.reshape(-1).tolist() for value in metric.compute())
    return dict(zip(updates, all_updates, strict=True)), dict(zip(findings, all_findings, strict=True))
