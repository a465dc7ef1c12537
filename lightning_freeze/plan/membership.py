"""Which optimizer holds which parameter of which group: the one index, and what differs between two trainable sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import chain
from operator import is_

from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer

from lightning_freeze.errors import SelectionError, UnsupportedError, counted
from lightning_freeze.plan.groups import Groups, Member, frozen_modules, regroup
from lightning_freeze.plan.named_parameters import NamedParameters
from lightning_freeze.plan.schedule import NO_END, REST, Layout

_CACHED = 64
MANY = 64  # frozen parameters of a param group from which a step is given a list of what trains; samples at most

Sets = tuple[frozenset[str], ...]  # for each optimizer, the groups that it trains


def held_by(*optimizers: Optimizer) -> set[int]:
    """The identities of the parameters that these optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def same_objects(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether two sequences hold the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


_Places = tuple[tuple[int, int], ...]  # optimizers and their param groups


@lru_cache(4096)
def _optimizers(places: _Places) -> tuple[int, ...]:
    return tuple(dict.fromkeys([index for index, _ in places]))


class OptimizerIndex:
    """Which optimizers hold a parameter, and in which of their param groups."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        for index, optimizer in enumerate(self.optimizers):
            if not hasattr(optimizer, "param_groups"):
                raise UnsupportedError(
                    f"optimizer {index} ({type(optimizer).__qualname__}) has no `param_groups`, so what it holds is not known. "
                    "Let its class inherit from torch.optim.Optimizer, or pass the optimizer that it wraps."
                )
        self._held = [[tuple(group["params"]) for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._found: dict[int, _Places] = {}  # by the identity of a parameter
        self._calls = [0] * len(self.optimizers)  # of `changed`, for each
        for index, groups in enumerate(self._held):
            for number, held in enumerate(groups):
                place: _Places = ((index, number),)  # one object for all of a param group
                for key in map(id, held):
                    self._found[key] = self._found[key] + place if key in self._found else place
        self._indices = {key: _optimizers(places) for key, places in self._found.items()}

    def changed(self, index: int, in_parts: Collection[int] = ()) -> bool:
        """Whether an optimizer holds other parameters now, compared by identity.

        Of the param groups of these numbers a part is compared, the next one with each call.
        """
        groups, held = self.optimizers[index].param_groups, self._held[index]
        self._calls[index] += 1
        if len(groups) != len(held):
            return True
        for number, before in enumerate(held):
            now = groups[number]["params"]
            if len(now) != len(before):
                return True
            if number in in_parts:
                begin = self._calls[index] % -(-len(before) // MANY) * MANY
                now, before = now[begin : begin + MANY], before[begin : begin + MANY]
            if not all(map(is_, now, before)):
                return True
        return False

    def held(self) -> Iterator[Iterator[Tensor]]:
        """What each optimizer held when it was read."""
        return map(chain.from_iterable, self._held)

    def indices(self, parameter: Tensor) -> tuple[int, ...]:
        """The indices of the optimizers that hold a parameter, in order."""
        return self._indices.get(id(parameter), ())

    def of(self, parameter: Tensor) -> list[Optimizer]:
        """The optimizers that hold a parameter."""
        return [self.optimizers[index] for index in self.indices(parameter)]

    def rate(self, parameter: Tensor) -> float:
        """The learning rate of a parameter now; 1 where its param group has none."""
        found = self._found.get(id(parameter), ())
        index, number = found[-1] if found else (0, NO_END)
        groups = self.optimizers[index].param_groups if found else []  # other dicts after each `load_state_dict`
        rate = groups[number].get("lr", 1.0) if number < len(groups) else 1.0
        return float(rate) if isinstance(rate, (int, float, Tensor)) else 1.0


class _Held:
    """One optimizer's parameters, by group and by param group."""

    def __init__(self, optimizer: Optimizer, members: Mapping[str, tuple[Parameter, ...]]) -> None:
        self.optimizer = optimizer
        self.members = members

    @cached_property
    def lists(self) -> list[list[Parameter]]:
        return [[*group["params"]] for group in self.optimizer.param_groups]

    @cached_property
    def places(self) -> dict[str | None, dict[int, list[int]]]:
        """Group to its parameters' places by param group; None to those of what is in no group."""
        group_of = {id(parameter): group for group, held in self.members.items() for parameter in held}
        found: dict[str | None, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, held in enumerate(self.lists):
            for place, parameter in enumerate(held):
                found[group_of.get(id(parameter))][number].append(place)
        return dict(found)


class _StepSplit:
    """One optimizer's parameters under one trainable set; what is seldom asked for is made when it is."""

    def __init__(self, held: _Held, groups: frozenset[str]) -> None:
        members = held.members
        self._held = held
        self.trainable = groups if groups <= members.keys() else groups.intersection(members)
        self.active = [(group, members[group]) for group in self.trainable]

    @property
    def _frozen(self) -> list[tuple[Parameter, ...]]:
        return [held for group, held in self._held.members.items() if group not in self.trainable]

    @cached_property
    def frozen(self) -> tuple[Parameter, ...]:
        return tuple(chain.from_iterable(self._frozen))

    @cached_property
    def samples(self) -> tuple[Parameter, ...]:
        frozen = self._frozen
        return tuple([held[0] for held in frozen[:: -(-len(frozen) // MANY) or 1]])

    @cached_property
    def frozen_identities(self) -> frozenset[int]:
        return frozenset(map(id, self.frozen))

    @cached_property
    def shortened(self) -> dict[int, list[Parameter]]:
        return {
            number: [self._held.lists[number][place] for place in sorted(places)]  # they come in sorted runs
            for number, places in self._staying.items()
            if len(self._held.lists[number]) - len(places) >= MANY
        }

    @cached_property
    def exposed(self) -> tuple[Parameter, ...]:
        whole = [number for number in range(len(self._held.lists)) if number not in self.shortened]
        stay = {number: frozenset(self._staying[number]) for number in whole}
        return tuple(p for n in whole for place, p in enumerate(self._held.lists[n]) if place not in stay[n])

    @cached_property
    def _staying(self) -> dict[int, list[int]]:
        """Param group to the places of what is not frozen."""
        found: dict[int, list[int]] = defaultdict(list)
        for group in (None, *self.trainable):
            for number, places in self._held.places.get(group, {}).items():
                found[number] += places
        return found


@dataclass(eq=False)
class Step:
    """One optimizer and what its next step trains."""

    index: int  # of the optimizer in the run
    optimizer: Optimizer
    members: Mapping[str, tuple[Parameter, ...]]  # group, also `rest`, to the parameters of it that the optimizer holds
    excludes: bool = False  # whether param groups exclude what is frozen, since it moves what has no gradient
    reads_before_closure: bool = False  # whether it reads gradients before it calls its closure
    factors: Mapping[int, float] = field(default_factory=dict)  # identity of a parameter to its lr factor, if not 1
    attempted: bool = False  # whether it came to a step in this epoch, a skipped one included
    initializes: bool = False  # whether its step only makes state, for `torch.distributed.checkpoint`
    updated: frozenset[str] = frozenset()  # the groups that the step updates; known right before it
    leaked: Sequence[Parameter] = ()  # frozen parameters that had a gradient at the step all the same
    depth: int = 0  # of calls of `step` within each other
    entered: bool = False  # whether a step has begun, and not ended
    hides: bool = False  # whether `shortened` stands in its param groups for this step
    trainable: frozenset[str] = field(default=frozenset(), init=False)  # the groups that train now
    samples: Sequence[Parameter] = field(
        default=(), init=False
    )  # one of a frozen group; of more groups, `MANY` at most
    shortened: Mapping[int, list[Parameter]] = field(default_factory=dict, init=False, repr=False)
    """By number, the param groups of which a part trains and much is frozen, without that."""
    exposed: Sequence[Parameter] = field(default=(), init=False, repr=False)
    """What is frozen and in no param group that `shortened` replaces."""
    shortens: bool = False  # whether each step reads its param groups, so that `shortened` may stand in them
    _now: _StepSplit = field(init=False, repr=False)
    _rates: Sequence[object] = field(default=(), init=False, repr=False)  # of the param groups, at the last step

    def __post_init__(self) -> None:
        self._now = _StepSplit(_Held(self.optimizer, {}), frozenset())
        self.rebind(self.members)

    def rebind(self, members: Mapping[str, tuple[Parameter, ...]]) -> None:
        """The optimizer holds other parameters now; `train` is to be called again."""
        self.members = members
        self._split_under = lru_cache(_CACHED)(partial(_StepSplit, _Held(self.optimizer, members)))

    def train(self, groups: frozenset[str]) -> None:
        """From here on these groups train and the others are frozen."""
        now = self._now = self._split_under(groups)
        self.trainable, self.samples = now.trainable, now.samples
        if self.shortens:
            self.shortened, self.exposed = now.shortened, now.exposed

    @property
    def frozen(self) -> tuple[Parameter, ...]:
        """What the optimizer holds and does not train."""
        return self._now.frozen

    @property
    def frozen_identities(self) -> frozenset[int]:
        """The identities of `frozen`."""
        return self._now.frozen_identities

    @property
    def has_gradients(self) -> bool:
        """Whether anything that trains has a gradient."""
        return any(parameter.grad is not None for _, held in self._now.active for parameter in held)

    def learning_rates(self) -> dict[str, float]:
        """Group to the learning rate of its first parameter, with its factor; groups without a rate are left out.

        It is that of the last step: after it, a scheduler may have set the next epoch's.
        """
        first = {id(held[0]): group for group, held in self.members.items() if held}
        groups = self.optimizer.param_groups
        return {
            first[id(p)]: float(rate) * self.factors.get(id(p), 1.0)
            for param_group, rate in zip(groups, self._rates or [group.get("lr") for group in groups], strict=False)
            if isinstance(rate, (int, float, Tensor))
            for p in param_group["params"]
            if id(p) in first
        }

    def note(self) -> None:
        """Remember which groups have a gradient, and the learning rates, right before the step."""
        now, without = self._now, []
        for group, held in now.active:  # loops, here and below: a comprehension is a call of its own
            if held[0].grad is None and _without_gradient(held):
                without.append(group)
        self.updated = now.trainable.difference(without) if without else now.trainable
        self._rates = rates = []
        for param_group in self.optimizer.param_groups:
            rates.append(param_group.get("lr"))


def _without_gradient(held: Sequence[Parameter]) -> bool:
    # FSDP1 keeps parameters without elements whole on other ranks: a group of these alone is taken to have a gradient.
    here = [parameter for parameter in held if isinstance(parameter, UninitializedTensorMixin) or parameter.numel()]
    return bool(here) and all(parameter.grad is None for parameter in here)


@dataclass(frozen=True)
class HeldGroup:
    """The parameters of a group that the same optimizers hold, so that they freeze and thaw together."""

    group: str
    steps: tuple[Step, ...]  # of these optimizers
    members: tuple[Member, ...]

    def frozen(self, sets: Sets) -> bool:
        """Whether no optimizer trains it."""
        for step in self.steps:  # noqa: SIM110 - a generator takes three times as long
            if self.group in sets[step.index]:
                return False
        return True

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of its members."""
        return tuple([member.parameter for member in self.members])


@dataclass(frozen=True, eq=False)
class ParamSet:
    """Parameters that freeze or thaw together."""

    groups: Sequence[HeldGroup] = ()

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._parameters)

    @cached_property
    def _parameters(self) -> tuple[Parameter, ...]:
        return tuple(chain.from_iterable([held.parameters for held in self.groups]))

    @property
    def members(self) -> Iterator[Member]:
        """The parameters with their names and groups."""
        return chain.from_iterable(held.members for held in self.groups)

    @property
    def held(self) -> Iterator[tuple[Optimizer, Parameter]]:
        """Each parameter with each optimizer that holds it."""
        return ((step.optimizer, m.parameter) for held in self.groups for step in held.steps for m in held.members)

    def without(self, groups: frozenset[str]) -> ParamSet:
        """What is in none of these groups."""
        return ParamSet([held for held in self.groups if held.group not in groups]) if groups else self


@dataclass(frozen=True, eq=False)
class Split:
    """What is frozen under one trainable set."""

    held: Iterable[HeldGroup] = field(repr=False)  # all that can be frozen
    sets: Sets
    module: Module = field(repr=False)
    by_user: set[int] = field(repr=False)  # the identities of the parameters that the user froze

    @cached_property
    def frozen(self) -> ParamSet:
        """What no optimizer trains."""
        return ParamSet([held for held in self.held if held.frozen(self.sets)])

    @cached_property
    def frozen_modules(self) -> list[tuple[str, Module]]:
        """The modules that lie in a subtree whose parameters are all frozen, by name."""
        frozen = set(map(id, self.frozen))
        return frozen_modules(self.module, lambda p: None if id(p) in self.by_user else id(p) in frozen)


class Membership:
    """The index of a run: optimizers, groups and parameters."""

    def __init__(self, module: Module, groups: Groups, optimizers: Iterable[Optimizer]) -> None:
        self._module = module
        self.groups = groups
        self.names = NamedParameters(module)
        self.steps = [Step(index, optimizer, {}) for index, optimizer in enumerate(optimizers)]
        self._by_optimizer = {id(step.optimizer): step for step in self.steps}
        self.lost: dict[str, list[str]] = {}  # group to the names of its parameters that no optimizer holds any more
        self._last_held: dict[str, int] = {}  # name to the identity of its parameter, when an optimizer last held it
        self._sort({})
        for found in foreign(self.names, self.holders) if groups.rest == "error" else ():
            raise SelectionError(
                f"{found}; they are in no group, and `rest: error` forbids that. Assign them to the model "
                "(`self.scale = nn.Parameter(...)`), or set `rest: train`."
            )

    def refresh(self) -> list[str]:
        """Sort in the parameters that the model and the optimizers have now; the lines that say which are new.

        Raises:
            SelectionError: A parameter that was added cannot be grouped.
        """
        before = self.layout.optimizers
        self.groups = regroup(self.groups, self.names, held_by(*self.holders.optimizers))
        lines = self.names.refresh()
        self._sort(before)
        return lines

    def _sort(self, before: Mapping[str, frozenset[int]]) -> None:
        self.holders = OptimizerIndex(step.optimizer for step in self.steps)
        self.layout = self._layout(before)
        self._last_held |= {m.name: id(m.parameter) for each in self.trained().values() for m in each}
        for step in self.steps:
            step.rebind(self._held(step.index))
        self._by_user = {id(self.names.by_name.get(name)) for name in self.groups.frozen_by_user}
        self._held_groups = {
            group: list(self._by_holders(group, each)) for group, each in self.groups.freezable.items()
        }
        self._everything = ParamSet(list(chain.from_iterable(self._held_groups.values())))
        self.changes = lru_cache(_CACHED)(self._changes)
        """What freezes and what thaws between two trainable sets; before the first, everything is one or the other."""
        self.split = lru_cache(_CACHED)(self._split)  # what is frozen under a trainable set

    def step_of(self, optimizer: object) -> Step | None:
        """The step of an optimizer, or of a wrapper around it."""
        found = self._by_optimizer.get(id(optimizer))
        return found if found is not None else self._by_optimizer.get(id(getattr(optimizer, "optimizer", None)))

    @property
    def held_groups(self) -> list[list[str]]:
        """The groups that each optimizer holds."""
        return [sorted(step.members) for step in self.steps]

    @property
    def scheduled(self) -> list[Parameter]:
        """The parameters that can be frozen."""
        return [member.parameter for members in self.groups.freezable.values() for member in members]

    def trained(self) -> dict[str, list[Member]]:
        """Group to the members that are to move; of the rest, those that an optimizer holds."""
        return {
            group: [m for m in members if self.holders.indices(m.parameter)]
            for group, members in self.groups.members.items()
            if group != REST or self.layout.rest_trains
        }

    def everything(self) -> ParamSet:
        """All that can be frozen."""
        return self._everything

    def _changes(self, before: Sets, now: Sets) -> tuple[ParamSet, ParamSet]:
        changed: Iterable[str] = self._held_groups
        if before:
            changed = frozenset().union(*map(frozenset.symmetric_difference, before, now))
        freezes: list[HeldGroup] = []
        thaws: list[HeldGroup] = []
        for held in chain.from_iterable(self._held_groups.get(group, ()) for group in changed):
            (freezes if held.frozen(now) else thaws).append(held)
        return ParamSet(freezes), ParamSet(thaws)

    def _split(self, sets: Sets) -> Split:
        return Split(self.everything().groups, sets, self._module, self._by_user)

    def _layout(self, before: Mapping[str, frozenset[int]]) -> Layout:
        """The groups with their optimizers; a group that has lost its parameters keeps those of ``before``."""
        held: dict[str, frozenset[int]] = {}
        self.lost = {}
        for group, members in self.groups.members.items():
            missing = [m for m in members if not self.holders.indices(m.parameter)]
            if missing and group != REST and group not in before:
                raise _outside(group, [m.name for m in missing])
            # Of the rest, an optimizer need not hold all; what was replaced it held.
            lost = [m for m in missing if group != REST or self._last_held.get(m.name) not in (None, id(m.parameter))]
            if lost or not members:
                self.lost[group] = [m.name for m in lost]
            indices = chain.from_iterable(self.holders.indices(m.parameter) for m in members)
            held[group] = frozenset(indices) or before.get(group, frozenset())
        rest_trains = self.groups.rest == "train" and bool(held.get(REST))
        return Layout(self.groups.named, self.groups.families, held, rest_trains, frozenset(self.groups.reasons))

    def _held(self, index: int) -> dict[str, tuple[Parameter, ...]]:
        """Group to the parameters of it that one optimizer holds."""
        held = {
            group: tuple(m.parameter for m in members if index in self.holders.indices(m.parameter))
            for group, members in self.groups.members.items()
        }
        return {group: parameters for group, parameters in held.items() if parameters}

    def _by_holders(self, group: str, members: Sequence[Member]) -> Iterator[HeldGroup]:
        """A group's parameters, sorted by the optimizers that hold them."""
        alike: dict[tuple[int, ...], list[Member]] = {}
        for member in members:
            alike.setdefault(self.holders.indices(member.parameter), []).append(member)
        for indices, found in alike.items():
            yield HeldGroup(group, tuple(self.steps[index] for index in indices), tuple(found))


def _outside(group: str, missing: Sequence[str]) -> SelectionError:
    return SelectionError(
        f"{missing[0]!r} of group {group!r} is in no optimizer"
        + (f" (and {len(missing) - 1} more of the group)" if len(missing) > 1 else "")
        + ", so no schedule can train it. Give it to an optimizer in `configure_optimizers` (every parameter "
        "of a group, also those that are frozen at first), or take it out of the group with `except:`."
    )


def foreign(names: NamedParameters, holders: OptimizerIndex) -> Iterator[str]:
    """Of each optimizer that holds tensors that the model does not have, how many."""
    known = set(map(id, names.by_name.values()))
    for optimizer, held in zip(holders.optimizers, holders.held(), strict=True):
        found = [parameter for parameter in held if id(parameter) not in known]
        if found:
            yield (
                f"an optimizer ({type(optimizer).__qualname__}) holds {counted(len(found), 'tensor')} that the model does not have, "
                f"such as one of shape {tuple(found[0].shape)}"
            )
