"""Whether a contestant trained what it was to train, and nothing else: bit by bit, after its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class WrongTraining(AssertionError):
    """A contestant trained something else than it was measured for, so its time means nothing."""


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, in host memory."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in module.named_parameters()}


def below(names: Mapping[str, Tensor], modules: Sequence[str]) -> set[str]:
    """The parameters that lie in some modules."""
    return {name for name in names if any(name.startswith(f"{module}.") for module in modules)}


def check_moved(who: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], trained: set[str]) -> None:
    """Refuse a run in which something frozen moved, or something that was to train did not.

    Raises:
        WrongTraining: It did.
    """
    moved = {name for name, value in before.items() if not same_bits(value, after[name])}
    if moved != trained:
        raise WrongTraining(
            f"{who}: moved although frozen: {sorted(moved - trained)}; did not move although it was to train: "
            f"{sorted(trained - moved)}"
        )


def check_same(
    who: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], expected: Mapping[str, Tensor], exact: bool
) -> None:
    """Refuse a run that did not end where another did.

    Args:
        who: Whose run it is.
        before: Where both began.
        after: Where it ended.
        expected: Where the other one did.
        exact: Whether every bit is to agree. On a GPU sums may be made in another order, and Adam makes whole updates
            of what is rounding alone; there the distance is to be below a twentieth of the way.

    Raises:
        WrongTraining: It ended elsewhere.
    """
    if exact:
        if apart := [name for name, value in expected.items() if not same_bits(value, after[name])]:
            raise WrongTraining(f"{who} made other updates than it was to make: {apart}")
        return
    way, distance = (
        sum((value - other[name]).square().sum().item() for name, value in expected.items()) ** 0.5
        for other in (before, after)
    )
    if not distance <= way / 20:
        raise WrongTraining(f"{who} made other updates than it was to make: {distance / way:.1%} of the way apart")


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))
