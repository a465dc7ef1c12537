"""Which optimizer holds which parameter of which group: the one index, and what differs between two trainable sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer

from lightning_freeze.errors import SelectionError
from lightning_freeze.plan.groups import Groups, Member, frozen_modules
from lightning_freeze.plan.schedule import REST, Layout
from lightning_freeze.plan.selectors import clean_name

_KEPT = 64

Sets = tuple[frozenset[str], ...]
"""For each optimizer, the groups that it trains."""


def held_by(*optimizers: Optimizer) -> set[int]:
    """The identities of the parameters that these optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


class Holders:
    """Which optimizers hold a parameter, and in which of their param groups.

    Args:
        optimizers: The run's optimizers.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        self._found: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for index, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._found.setdefault(id(parameter), []).append((index, group))
        self._lists = [list(group["params"]) for optimizer in self.optimizers for group in optimizer.param_groups]

    def indices(self, parameter: Tensor) -> tuple[int, ...]:
        """The places of the optimizers that hold a parameter, in order."""
        return tuple(dict.fromkeys(index for index, _ in self._found.get(id(parameter), ())))

    def of(self, parameter: Tensor) -> list[Optimizer]:
        """The optimizers that hold a parameter."""
        return [self.optimizers[index] for index in self.indices(parameter)]

    def rate(self, parameter: Tensor) -> float:
        """The learning rate of a parameter now; 1 where its param group has none."""
        found = self._found.get(id(parameter), ())
        rate = found[-1][1].get("lr", 1.0) if found else 1.0
        return float(rate) if isinstance(rate, (int, float, Tensor)) else 1.0

    def changed(self) -> bool:
        """Whether an optimizer holds other parameters now, compared by identity."""
        now = [group["params"] for optimizer in self.optimizers for group in optimizer.param_groups]
        return len(now) != len(self._lists) or any(
            len(mine) != len(theirs) or any(a is not b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self._lists, now, strict=True)
        )


@dataclass(frozen=True)
class _Sides:
    """One optimizer's parameters under one trainable set; ``samples`` has one of each frozen group."""

    trainable: frozenset[str]
    frozen: tuple[Parameter, ...]
    samples: tuple[Parameter, ...]
    active: tuple[tuple[str, tuple[Parameter, ...]], ...]

    @cached_property
    def identities(self) -> frozenset[int]:
        return frozenset(map(id, self.frozen))


_NOTHING = _Sides(frozenset(), (), (), ())


@dataclass(eq=False)
class Step:
    """One optimizer and what its next step trains.

    Args:
        index: Its place among the run's optimizers.
        optimizer: The optimizer.
        members: Group to the parameters of it that this optimizer holds, ``rest`` included.
        excludes: Whether what is frozen is excluded from its param groups for each step, since it moves what has no
            gradient.
        reads_before_closure: Whether it reads gradients before it calls its closure.
        factors: Identity of a parameter to the factor on its learning rate, where that is not 1.
        attempted: Whether it came to a step in this epoch, a skipped one included.
        initializes: Whether its step only makes state: `torch.distributed.checkpoint` makes one, to see what there is.
        updated: The groups that the step updates; known at its last moment.
        leaked: Frozen parameters that had a gradient at the step all the same.
    """

    index: int
    optimizer: Optimizer
    members: Mapping[str, tuple[Parameter, ...]]
    excludes: bool = False
    reads_before_closure: bool = False
    factors: Mapping[int, float] = field(default_factory=dict)
    attempted: bool = False
    initializes: bool = False
    updated: frozenset[str] = frozenset()
    leaked: Sequence[Parameter] = ()
    param_groups: int = 0
    depth: int = 0
    _kept: dict[frozenset[str], _Sides] = field(default_factory=dict, repr=False)
    _now: _Sides = field(default=_NOTHING, repr=False)

    def __post_init__(self) -> None:
        self.param_groups = len(self.optimizer.param_groups)

    def rebind(self, members: Mapping[str, tuple[Parameter, ...]]) -> None:
        """The optimizer holds other parameters now; say again what it is to train."""
        self.members = members
        self.param_groups = len(self.optimizer.param_groups)
        self._kept.clear()

    def train(self, groups: frozenset[str]) -> None:
        """From here on these groups train and the others are frozen."""
        sides = self._kept.get(groups)
        if sides is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            frozen = [held for group, held in self.members.items() if group not in groups]
            active = tuple((group, held) for group, held in self.members.items() if group in groups)
            sides = self._kept[groups] = _Sides(
                frozenset(group for group, _ in active),
                tuple(chain.from_iterable(frozen)),
                tuple(held[0] for held in frozen),
                active,
            )
        self._now = sides

    @property
    def trainable(self) -> frozenset[str]:
        """The groups of this optimizer that train now."""
        return self._now.trainable

    @property
    def frozen(self) -> tuple[Parameter, ...]:
        """What it holds and does not train."""
        return self._now.frozen

    @property
    def samples(self) -> tuple[Parameter, ...]:
        """One parameter of each frozen group."""
        return self._now.samples

    @property
    def frozen_identities(self) -> frozenset[int]:
        """The identities of `frozen`."""
        return self._now.identities

    @property
    def has_gradients(self) -> bool:
        """Whether anything that trains has a gradient."""
        return any(parameter.grad is not None for _, held in self._now.active for parameter in held)

    def note(self) -> None:
        """Remember which groups have a gradient, right before the step."""
        now = self._now
        without = [group for group, held in now.active if held[0].grad is None and _without_gradient(held)]
        self.updated = now.trainable.difference(without) if without else now.trainable


def _without_gradient(held: Sequence[Parameter]) -> bool:
    """Whether no parameter of a group has a gradient.

    Of those without elements, which FSDP1 keeps on other ranks as a whole, it is not known; a group of nothing else is
    taken to have one.
    """
    here = [parameter for parameter in held if isinstance(parameter, UninitializedTensorMixin) or parameter.numel()]
    return bool(here) and all(parameter.grad is None for parameter in here)


@dataclass(frozen=True)
class Unit:
    """The parameters of a group that the same optimizers hold, so that they freeze and thaw together."""

    group: str
    holders: tuple[int, ...]
    members: tuple[Member, ...]

    def frozen(self, sets: Sets) -> bool:
        """Whether no optimizer trains it."""
        return not any(self.group in sets[index] for index in self.holders)


@dataclass(frozen=True)
class ParamSet:
    """Parameters that freeze or thaw together."""

    units: Sequence[Unit] = ()
    steps: Sequence[Step] = field(default=(), repr=False)

    def __iter__(self) -> Iterator[Parameter]:
        return (member.parameter for unit in self.units for member in unit.members)

    @property
    def members(self) -> Iterator[Member]:
        """The parameters with their names and groups."""
        return chain.from_iterable(unit.members for unit in self.units)

    @property
    def held(self) -> Iterator[tuple[Optimizer, Parameter]]:
        """Each parameter with each optimizer that holds it."""
        return (
            (self.steps[index].optimizer, member.parameter)
            for unit in self.units
            for index in unit.holders
            for member in unit.members
        )

    def without(self, groups: frozenset[str]) -> ParamSet:
        """What is in none of these groups."""
        return ParamSet([unit for unit in self.units if unit.group not in groups], self.steps) if groups else self


class Split:
    """What is frozen under one trainable set.

    Args:
        frozen: What no optimizer trains.
        modules: Finds the frozen modules, when they are asked for.
    """

    def __init__(self, frozen: ParamSet, modules: Callable[[], list[tuple[str, Module]]]) -> None:
        self.frozen = frozen
        self._modules = modules

    @cached_property
    def frozen_modules(self) -> list[tuple[str, Module]]:
        """The modules that lie in a subtree whose parameters are all frozen, by name."""
        return self._modules()


class Membership:
    """The index of a run: optimizers, groups and parameters.

    Args:
        module: The model.
        groups: Its parameters, sorted into groups.
        optimizers: The run's optimizers.

    Raises:
        SelectionError: A parameter of a named group is in no optimizer.
    """

    def __init__(self, module: Module, groups: Groups, optimizers: Iterable[Optimizer]) -> None:
        self._module = module
        self._groups = groups
        self.holders = Holders(optimizers)
        self.layout = self._layout()
        self.steps = [Step(index, each, self._held(index)) for index, each in enumerate(self.holders.optimizers)]
        self._by_optimizer = {id(step.optimizer): step for step in self.steps}
        self._index()

    def refresh(self) -> None:
        """An optimizer was given other parameters: sort them in.

        Raises:
            SelectionError: A parameter of a named group is in no optimizer.
        """
        self.holders = Holders(self.holders.optimizers)
        self.layout = self._layout()
        for step in self.steps:
            step.rebind(self._held(step.index))
        self._index()

    def changed(self) -> bool:
        """Whether an optimizer holds other parameters than when this was made."""
        return self.holders.changed()

    def step_of(self, optimizer: object) -> Step | None:
        """The step of an optimizer, or of a wrapper around it."""
        found = self._by_optimizer.get(id(optimizer))
        return found if found is not None else self._by_optimizer.get(id(getattr(optimizer, "optimizer", None)))

    @property
    def freezable(self) -> dict[str, tuple[Member, ...]]:
        """The groups that can be frozen, with ``rest`` where it is."""
        members = self._groups.members
        return {group: members[group] for group in members if group != REST or self._groups.rest == "freeze"}

    @property
    def scheduled(self) -> list[Parameter]:
        """The parameters that can be frozen."""
        return [member.parameter for members in self.freezable.values() for member in members]

    def trained(self) -> dict[str, list[Member]]:
        """Group to what of it is to move. Of the rest, only what an optimizer holds; a named group is held whole."""
        return {
            group: [m for m in members if self.holders.indices(m.parameter)]
            for group, members in self._groups.members.items()
            if group != REST or self.layout.rest_trains
        }

    def everything(self) -> ParamSet:
        """All that can be frozen."""
        return ParamSet(list(chain.from_iterable(self._units.values())), self.steps)

    def changes(self, before: Sets, now: Sets) -> tuple[ParamSet, ParamSet]:
        """What freezes and what thaws between two trainable sets; before the first, everything is one or the other."""
        key = (before, now)
        if key not in self._changes:
            if len(self._changes) >= _KEPT:
                self._changes.clear()
            changed = frozenset().union(*map(frozenset.symmetric_difference, before, now)) if before else self._units
            units = [unit for group in changed for unit in self._units.get(group, ())]
            freezes = [unit for unit in units if unit.frozen(now)]
            thaws = [unit for unit in units if not unit.frozen(now)]
            self._changes[key] = (ParamSet(freezes, self.steps), ParamSet(thaws, self.steps))
        return self._changes[key]

    def split(self, sets: Sets) -> Split:
        """What is frozen under a trainable set."""
        if sets not in self._splits:
            if len(self._splits) >= _KEPT:
                self._splits.clear()
            units = [unit for unit in self.everything().units if unit.frozen(sets)]
            self._splits[sets] = Split(ParamSet(units, self.steps), lambda: self._modules(sets))
        return self._splits[sets]

    def _modules(self, sets: Sets) -> list[tuple[str, Module]]:
        frozen = {id(m.parameter): unit.frozen(sets) for unit in self.everything().units for m in unit.members}
        own = self._own
        return frozen_modules(self._module, lambda p: None if id(p) in own else frozen.get(id(p), False))

    def _layout(self) -> Layout:
        held: dict[str, frozenset[int]] = {}
        for group, members in self._groups.members.items():
            indices = {m.name: self.holders.indices(m.parameter) for m in members}
            missing = [name for name, found in indices.items() if not found]
            if missing and group != REST:
                raise SelectionError(
                    f"{missing[0]!r} of group {group!r} is in no optimizer"
                    + (f" (and {len(missing) - 1} more of the group)" if len(missing) > 1 else "")
                    + ", so no schedule can train it. Hand it to an optimizer in `configure_optimizers` (every "
                    "parameter of a group, also the ones that are frozen at first), or take it out of the group "
                    "with `except:`."
                )
            held[group] = frozenset(chain.from_iterable(indices.values()))
        rest_trains = self._groups.rest == "train" and bool(held.get(REST))
        return Layout(self._groups.named, self._groups.families, held, rest_trains)

    def _held(self, index: int) -> dict[str, tuple[Parameter, ...]]:
        held = {
            group: tuple(m.parameter for m in members if index in self.holders.indices(m.parameter))
            for group, members in self._groups.members.items()
        }
        return {group: parameters for group, parameters in held.items() if parameters}

    def _index(self) -> None:
        """Sort what can be frozen by group and by the optimizers that hold it."""
        self._changes: dict[tuple[Sets, Sets], tuple[ParamSet, ParamSet]] = {}
        self._splits: dict[Sets, Split] = {}
        self._units: dict[str, list[Unit]] = {}
        self._own = {
            id(p) for name, p in self._module.named_parameters() if clean_name(name) in self._groups.frozen_by_user
        }
        for group, members in self.freezable.items():
            alike: dict[tuple[int, ...], list[Member]] = {}
            for member in members:
                alike.setdefault(self.holders.indices(member.parameter), []).append(member)
            self._units[group] = [Unit(group, holders, tuple(found)) for holders, found in alike.items()]
