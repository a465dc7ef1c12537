"""Parameters left out of an optimizer's param groups for one step, for optimizers that move what has no gradient."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.optim import Optimizer


class LeftOut:
    """An optimizer without some of its parameters, from here until `put_back`.

    Lists are changed in place, since a wrapper and the optimizer in it may share them. A param group of which nothing is
    left is out as a whole, and its clock with it.

    Args:
        optimizer: The optimizer.
        frozen: The identities of the parameters to be left out.

    Example:
        >>> import torch
        >>> a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> sgd = torch.optim.SGD([a, b], lr=0.5)
        >>> left = LeftOut(sgd, {id(a)})
        >>> [parameter is b for parameter in sgd.param_groups[0]["params"]]
        [True]
        >>> left.put_back()
        >>> len(sgd.param_groups[0]["params"])
        2
    """

    def __init__(self, optimizer: Optimizer, frozen: Collection[int]) -> None:
        self._groups = optimizer.param_groups
        self._whole = list(self._groups)
        self._lists: list[tuple[list[Any], list[Any]]] = []  # the list itself, and what it held
        for group in self._whole:
            stays = [id(parameter) not in frozen for parameter in group["params"]]
            if all(stays):
                continue
            for key in ("params", "param_names"):
                held = group.get(key)
                if isinstance(held, list) and len(held) == len(stays):
                    self._lists.append((held, list(held)))
                    held[:] = [each for each, stay in zip(held, stays, strict=True) if stay]
        self._groups[:] = self._shown = [group for group in self._whole if group["params"]]

    def put_back(self) -> None:
        """The optimizer holds again what it held, and what it was given since."""
        added = [group for group in self._groups if all(group is not shown for shown in self._shown)]
        for now, before in self._lists:
            now[:] = before
        self._groups[:] = self._whole + added
