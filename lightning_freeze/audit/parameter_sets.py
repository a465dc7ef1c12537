"""Parameters that freeze together, with their optimizer state, as the frozen audit watches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import LBFGS

from lightning_freeze.audit.frozen import Watched, WatchedSet
from lightning_freeze.holds.optimizer_state import OffloadState
from lightning_freeze.plan.groups import Member
from lightning_freeze.plan.membership import OptimizerIndex
from lightning_freeze.plan.named_parameters import NamedParameters
from lightning_freeze.probe.proxies import nested_optimizers

_NO_STATE: dict[str, object] = {}


class ParameterSets:
    """Makes the sets that are watched; what freezes again is the same set again, of which more is known."""

    def __init__(self, names: NamedParameters, holders: OptimizerIndex, offload: OffloadState | None) -> None:
        self._names = names
        self._holders = holders
        self._offload = offload
        self._nested = {id(optimizer): nested_optimizers(optimizer) for optimizer in holders.optimizers}
        # By the identity of the first parameter, which it keeps alive.
        self._known: dict[int, tuple[Sequence[Member], WatchedSet]] = {}

    def of(self, members: Sequence[Member]) -> WatchedSet:
        """The set of these, made once."""
        key = id(members[0].parameter)
        known = self._known.get(key)
        if known is None or not (known[0] is members or _alike(known[0], members)):
            known = self._known[key] = (members, self.new(members))
        return known[1]

    def new(self, members: Sequence[Member]) -> WatchedSet:
        """A set of these, which is not remembered."""
        watched = {id(member.parameter): self._watched(member) for member in members}
        holders = {id(holder): holder for member in members for holder in self._state_holders(member.parameter)}
        if len(holders) != 1 or self._offload is not None:
            return WatchedSet(watched)
        (holder,) = holders.values()

        def states() -> list[object]:
            held = holder.state
            return [held.get(member.parameter, _NO_STATE) for member in members] if held else []

        return WatchedSet(watched, states)

    def _watched(self, member: Member) -> Watched:
        path, _, key = member.name.rpartition(".")
        module, first = self._names.names.modules.get(path, self._names.module), member.parameter

        def read() -> Tensor:
            return first if (now := module._parameters.get(key)) is None else now

        return Watched(member.name, member.group, read, self._state(first), first)

    def _state_holders(self, parameter: Tensor) -> list[Any]:
        nested = (each for holder in self._holders.of(parameter) for each in self._nested[id(holder)])
        # LBFGS keeps the history of all its parameters under the first.
        return [each for each in nested if not isinstance(each, LBFGS)]

    def _state(self, parameter: Tensor) -> Callable[[], object]:
        """Gives the state that optimizers hold for a parameter, read each time: `load_state_dict` makes another dict."""
        holders = self._state_holders(parameter)

        def state() -> object:
            if self._offload is not None and self._offload.offloaded(parameter):
                return None
            kept = {id(holder.state): holder.state for holder in holders}  # a wrapper may share it with the one inside
            found = [each.get(parameter, _NO_STATE) for each in kept.values()]
            return found[0] if len(found) == 1 else found

        return state


def _alike(some: Sequence[Member], others: Sequence[Member]) -> bool:
    return len(some) == len(others) and all(
        a.parameter is b.parameter and a.group == b.group for a, b in zip(some, others, strict=True)
    )
