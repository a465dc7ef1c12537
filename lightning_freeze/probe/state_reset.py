"""Whether an optimizer can begin anew for a parameter whose state was dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.probe.clone import options


def begins_anew(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Why an optimizer cannot begin anew for a parameter whose state was dropped, or None where it can, or cannot be asked.

    Its first update after that must be the one that a new optimizer makes: one whose clock is the param group's (as some
    130 of 177 third-party optimizers have it) takes the parameter for an old one. Asked of optimizers made by the class's
    own constructor, since some make their state there.

    Args:
        optimizer: Left as it is, as is the global random state.
        group: One of its parameter groups.
    """
    kind: Any = type(optimizer)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            given = {name: value for name, value in options(group).items() if name in signature(kind).parameters}
            if isinstance(given.get("lr"), (int, float)):
                given["lr"] = 0.01  # a warm-up may begin at 0, at which nothing could be seen
            (one, other), (new, like) = _two_like(group), _two_like(group)
            twin, fresh = kind([one, other], **given), kind([new, like], **given)
            _step(twin, [one, other])
        except Exception:  # third-party code of any kind; where it cannot be run, nothing is known
            return None
        twin.state.pop(other, None)
        with torch.no_grad():
            one.copy_(new)
            other.copy_(like)
        try:
            for optimizer_, parameters in ((twin, (one, other)), (fresh, (new, like))):
                torch.default_generator.manual_seed(0)  # for one that draws: both draw the same
                _step(optimizer_, parameters, 1)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    begun = _two_like(group)[1]
    if torch.allclose(other - begun, like - begun, rtol=0.01, atol=0.0):
        return None
    return (
        "its first update is not that of a new optimizer, so it keeps a clock or an average for the whole param group"
    )


def _two_like(group: Mapping[str, Any]) -> list[torch.nn.Parameter]:
    """Two small parameters with the number of dimensions of a group's first."""
    like: Tensor = group["params"][0]
    shape = (2,) * min(like.dim(), 4)
    return [torch.nn.Parameter(torch.full(shape, value, dtype=torch.float32)) for value in (0.5, 0.75)]


def _step(twin: Optimizer, parameters: Sequence[torch.nn.Parameter], times: int = 3) -> None:
    """Steps in which these have a gradient."""
    for _ in range(times):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.25)
        twin.step()
