"""The moved audit: what was planned to train over an epoch did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, compress

import torch
from torch import Tensor

from lightning_freeze.audit.fingerprint import Digest, differ, digests, settled
from lightning_freeze.report.findings import Finding

_SHOWN = 5


_Pull = Tensor | float | None
"""What draws at a parameter: the largest entry of its gradient, 0 at a rate that is not above zero; None without one."""


class MovedAudit:
    """Compares the bits of what was planned to train at both ends of an epoch.

    A parameter that kept its bits is a finding only where it had no gradient at its group's first update of the epoch,
    or one that was not zero at a learning rate that was above zero then. A gradient of zero is no finding: rows of an embedding that
    were not looked up, units that are dead for now.

    Args:
        groups: Group to (FQN, parameter) of its members.
        rate: Gives the learning rate that a parameter has now.
        excused: Says of a parameter, at an epoch's end, that it need not have moved.
        split: Whether this process holds parts of parameters, so that each that kept its bits is told of by itself, to be
            compared with what others say.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[tuple[str, Tensor]]],
        rate: Callable[[Tensor], float],
        excused: Callable[[Tensor], bool] = lambda parameter: False,
        split: bool = False,
    ) -> None:
        self._groups = groups
        self._split = split
        self._excused = excused
        self._rate = rate
        self._before: dict[str, list[Digest | None]] = {}
        self._planned: set[str] = set()
        self._last_planned: frozenset[str] = frozenset()
        self._pulls: dict[str, list[_Pull]] = {}  # at the first update of the epoch
        self.moved: frozenset[str] = frozenset()
        """The parameters that the last epoch moved, of the groups that were to train."""
        self._places = {id(p): (group, n) for group, members in groups.items() for n, (_, p) in enumerate(members)}

    def print_of(self, parameter: Tensor) -> Digest | None:
        """The bits of what may train, as the epoch began with them; None for anything else."""
        group, number = self._places.get(id(parameter), ("", 0))
        return self._before[group][number] if group in self._before else None

    def begin_epoch(self, known: Callable[[Tensor], Digest | None] = lambda parameter: None) -> None:
        """Remember the bits of everything that may train.

        Args:
            known: Gives the digest of a parameter that was made a moment ago, where one was.
        """
        every = [p for members in self._groups.values() for _, p in members]
        there = [known(p) for p in every]
        made = iter(digests(p for p, old in zip(every, there, strict=True) if old is None))
        found = (next(made) if old is None else old for old in there)
        self._before = {group: [next(found) for _ in members] for group, members in self._groups.items()}
        self._planned.clear()
        self._last_planned = frozenset()
        self._pulls.clear()

    def stepped(self, planned: frozenset[str], updated: frozenset[str]) -> None:
        """An optimizer has stepped: which groups were to train, and which had a gradient (it is still there)."""
        if planned is not self._last_planned:
            self._last_planned = planned
            self._planned |= planned
        if not updated <= self._pulls.keys():
            for group in updated - self._pulls.keys():
                self._pulls[group] = [self._pull(parameter) for _, parameter in self._groups.get(group, ())]

    def end_epoch(self, epoch: int, known: Callable[[Tensor], Digest | None] = lambda parameter: None) -> list[Finding]:
        """What was planned to train and did not. Begins the next epoch.

        Args:
            epoch: The epoch that has ended.
            known: As for `begin_epoch`.
        """
        groups = [group for group in self._groups if group in self._planned]
        pulls, before = dict(self._pulls), self._before
        self.begin_epoch(known)
        ends = [zip(before[group], self._before[group], strict=True) for group in groups]
        # What had no bits at the beginning, a lazy parameter, cannot have kept them.
        flags = settled([old is None or differ(old, new) for old, new in chain(*ends)])
        self.moved = frozenset(compress((name for group in groups for name, _ in self._groups[group]), flags))
        return [finding for group in groups for finding in self._judge(group, pulls.get(group), epoch)]

    def _needs_not(self, parameter: Tensor) -> bool:
        """Whether a parameter that kept its bits may have: also one without elements, which FSDP1 keeps on other ranks."""
        return self._excused(parameter) or not parameter.numel()

    def _pull(self, parameter: Tensor) -> _Pull:
        if parameter.grad is None:
            return None
        return torch.linalg.vector_norm(_values(parameter.grad), ord=math.inf) if self._rate(parameter) > 0 else 0.0

    def _judge(self, group: str, pulls: Sequence[_Pull] | None, epoch: int) -> list[Finding]:
        members = self._groups[group]
        kept = [
            (name, pull)
            for (name, parameter), pull in zip(members, pulls or [None] * len(members), strict=True)
            if name not in self.moved and not self._needs_not(parameter)
        ]
        idle = [name for name, pull in kept if pull is None]
        stuck = [name for name, pull in kept if pull]
        found = [_no_gradient(group, idle, len(members), epoch, ever=pulls is not None)] if idle else []
        told = [[name] for name in stuck] if self._split else [stuck]
        return [*found, *(_unmoved(group, names, len(members), epoch) for names in told if names)]


def _values(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return gradient if gradient.numel() else gradient.new_zeros(1)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _no_gradient(group: str, names: Sequence[str], size: int, epoch: int, *, ever: bool) -> Finding:
    message = (
        f"{len(names)} of {size} parameters of group {group!r} got no gradient in epoch {epoch}, though the group was to "
        f"train: {_listed(names)}. "
        + (
            "They were left out of the loss: a branch that was not taken, a `detach`, or requires_grad=False set during "
            "the run; or an autograd function between them and a frozen bottom hands on no gradient (`skip_backward: false` "
            "tells). Use them in the loss, or take them out of what is to train (`except:` in a group, "
            "requires_grad=False without one)."
            if ever
            else "No optimizer step of the epoch found one: is the group used in the loss, is its optimizer stepped "
            "after a backward, was requires_grad set to False during the run?"
        )
    )
    return Finding(
        "moved", "no_gradient", "warning", message, cause="no_gradient", epoch=epoch, parameter=names[0], group=group
    )


def _unmoved(group: str, names: Sequence[str], size: int, epoch: int) -> Finding:
    message = (
        f"{len(names)} of {size} parameters of group {group!r} kept every bit in epoch {epoch}, though they had a "
        f"gradient that was not zero and a learning rate above zero: {_listed(names)}. Either the update is lost to "
        "rounding (a small rate in half precision: keep the weights in float32), or something undoes it (a copy of the "
        "weights that is written back, an optimizer that holds other tensors)."
    )
    return Finding(
        "moved", "unmoved", "warning", message, cause="unmoved", epoch=epoch, parameter=names[0], group=group
    )


def stalled(optimizers: Mapping[int, str], epoch: int, groups: Mapping[int, Sequence[str]]) -> list[Finding]:
    """Findings for optimizers that the schedule waits for and that were never stepped in the epoch."""
    return [
        Finding(
            "moved",
            "stalled",
            "warning",
            f"optimizer {index} ({name}), which holds {_listed(groups[index])}, was never stepped in epoch {epoch}, and "
            "the schedule waits for it: nothing will follow until it makes its updates. Call its `step()` in "
            "`training_step`, or take its groups out of the schedule.",
            cause="stalled",
            epoch=epoch,
            group=groups[index][0] if groups[index] else None,
        )
        for index, name in optimizers.items()
    ]
