"""Which optimizer holds which parameter of which group."""

from __future__ import annotations

from torch.optim import Optimizer


def held_by(*optimizers: Optimizer) -> set[int]:
    """The identities of the parameters that these optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
