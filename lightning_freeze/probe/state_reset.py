"""Whether an optimizer can begin anew for a parameter whose state was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_freeze.probe.clone import Twin, options, undisturbed
from lightning_freeze.probe.proxies import Plan, StandIns
from lightning_freeze.probe.trial import ALL, MOVING, How, Trial


def supports_state_reset(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Why an optimizer cannot begin anew for a parameter whose state was dropped, or None where it can, or cannot be asked.

    Its first update after that must be the one that a new optimizer makes: one whose clock is the param group's (as some
    130 of 177 third-party optimizers have it) takes the parameter for an old one. Asked of optimizers made by the class's
    own constructor, since some make their state there.

    Args:
        optimizer: Left as it is, as is the global random state.
        group: One of its parameter groups.
    """
    kind: Any = type(optimizer)

    def build(_: Optimizer, stand_ins: StandIns) -> Twin:
        given = {name: value for name, value in options(group).items() if name in signature(kind).parameters}
        if isinstance(given.get("lr"), (int, float)):
            given["lr"] = 0.01  # a warm-up may begin at 0, at which nothing could be seen
        return Twin(kind([*stand_ins.likes], **given), stand_ins, built=True)

    shape = (2,) * min(group["params"][0].dim(), 4)
    plan = Plan(((0, torch.empty(shape, dtype=torch.float32, device="cpu"), shape),), {}, both=True, uniform=True)
    with undisturbed():
        try:
            old, new = (Trial(optimizer, How(plan, build)) for _ in range(2))
            old.run(ALL, 3)
        except Exception:  # third-party code of any kind; where it cannot be run, nothing is known
            return None
        old.forget(MOVING)
        new.count = old.count  # so that both are given the same gradient
        try:
            alike = all(map(_alike, old.update(MOVING), new.update(MOVING)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    if alike:
        return None
    return (
        "its first update is not that of a new optimizer, so it keeps a clock or an average for the whole param group"
    )


def _alike(update: torch.Tensor, fresh: torch.Tensor) -> bool:
    return torch.allclose(update, fresh, rtol=0.01, atol=0.0)
