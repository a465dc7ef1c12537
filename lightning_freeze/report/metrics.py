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


class _Mean(Metric):
    """The mean of each metric over the ranks that have it; not finite where one of them is not."""

    full_state_update = False
    sums: torch.Tensor
    counts: torch.Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(number, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(number, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor, present: torch.Tensor) -> None:
        self.sums += values
        self.counts += present

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sums, self.counts


def mean_over_ranks(values: Mapping[str, float | None], device: torch.device) -> dict[str, float | None]:
    """Each metric's mean over the ranks that have it, so that all ranks go on with the same number.

    Args:
        values: The same names, in the same order, on every rank; None where this rank has no value.
        device: Where the strategy communicates.
    """
    metric = _Mean(len(values)).to(device)
    metric.update(
        torch.tensor(
            [0.0 if value is None else value for value in values.values()], dtype=torch.float64, device=device
        ),
        torch.tensor([value is not None for value in values.values()], dtype=torch.float64, device=device),
    )
    sums, counts = (value.reshape(-1).tolist() for value in metric.compute())
    return {name: total / count if count else None for name, total, count in zip(values, sums, counts, strict=True)}
