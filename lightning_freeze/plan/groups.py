"""From selectors to disjoint, named groups of parameters, compared by identity."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lightning_freeze.errors import ScheduleError, SelectionError, counted, nearest, offer
from lightning_freeze.plan.named_parameters import NamedParameters
from lightning_freeze.plan.schedule import ALL, REST, Layout, Schedule
from lightning_freeze.plan.selectors import ParamNames, ParsedSelector, Selector, check_group_name, clean_name, parse

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

Rest = Literal["train", "freeze", "error"]  # what becomes of the parameters that no group names


@dataclass(frozen=True)
class Member:
    """A parameter in a group."""

    name: str  # its FQN without wrappers, the first of its group's where it is tied
    parameter: Parameter = field(repr=False)
    group: str


@dataclass(frozen=True)
class Groups:
    """A model's parameters, sorted into disjoint groups."""

    members: Mapping[str, tuple[Member, ...]]  # `rest` last if it has any
    families: Mapping[str, tuple[str, ...]]  # family to its groups, in order
    frozen_by_user: tuple[str, ...]  # FQNs found with `requires_grad=False`, in no group
    rest: Rest
    selectors: Mapping[str, Selector] = field(default_factory=dict, repr=False)  # as they were written
    reasons: Mapping[str, str] = field(default_factory=dict)  # the groups with `by: user`, and what `by` says of them
    moved_by_user: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)  # their parameters, in no other group

    @property
    def named(self) -> tuple[str, ...]:
        """The groups that a schedule may name."""
        return tuple(group for group in self.members if group != REST)

    @property
    def freezable(self) -> dict[str, tuple[Member, ...]]:
        """The groups that can be frozen, with ``rest`` where it is."""
        return {group: self.members[group] for group in self.members if group != REST or self.rest == "freeze"}

    def names(self) -> dict[str, list[str]]:
        """Group to the FQNs of its parameters."""
        every = {**self.members, **self.moved_by_user}
        return {group: [member.name for member in members] for group, members in every.items()}


def resolve_groups(module: Module, groups: Mapping[str, Selector], rest: Rest = "train") -> dict[str, list[str]]:
    """Sort a model's parameters into the groups that selectors name.

    A selector names whole segments of FQNs and takes the modules or parameters of that name with everything below:
    ``*`` stands for one segment, ``**`` for any number, ``{0..5}`` for a range of numbers, ``re:`` begins a regular
    expression that must match a parameter's whole name, ``type:`` a module class. A list takes several together. A
    mapping may hold ``select``, ``re``, ``type``, ``each`` (a family: one group for each match, ``layers/0``,
    ``layers/1``, … in numerical order), ``except`` (taken away again) and ``by: user`` (moved by your own code: never
    frozen, trained, counted or audited).

    Args:
        module: The model. Parameters with ``requires_grad=False`` are frozen by the user and belong to no group.
        groups: Group to selector.
        rest: With ``"error"``, a parameter that no group names is an error.

    Returns:
        Group to the FQNs of its parameters, in the model's order, without ``rest``. A tied parameter has the first of its
        names.

    Raises:
        SelectionError: A selector matches nothing, or a parameter (or a tied pair) is in two groups.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> resolve_groups(model, {"first": "0", "biases": "2.bias"})
        {'first': ['0.weight', '0.bias'], 'biases': ['2.bias']}
    """
    found = group_parameters(module, groups, rest)
    return {group: names for group, names in found.names().items() if group != REST}


def group_parameters(module: Module, groups: Mapping[str, Selector], rest: Rest = "train") -> Groups:
    """As `resolve_groups`, with the parameters themselves, families and the rest."""
    names = ParamNames(module)
    chosen, families = _choose(groups, names)
    taken = {id(names.parameters[name]) for name in chosen}
    left = {name: REST for name, p in names.parameters.items() if p.requires_grad and id(p) not in taken}
    reasons = {group: by for group, selector in groups.items() if (by := parse(group, selector).by)}
    found = _grouped(left | chosen, names, Groups({}, families, (), rest, groups, reasons))
    _check(found, groups)
    return found


def regroup(groups: Groups, before: NamedParameters, held: Container[int]) -> Groups:
    """The groups of a model that has got other parameters: each takes the group of its name.

    What optimizers hold, by identity in ``held``, stays in its group where a module was taken away.

    Raises:
        SelectionError: A parameter that was added is in no group under ``rest: error``, or in two.
    """
    names, group_of, added = ParamNames(before.module), dict[str, str](), list[str]()
    members = [m for found in (*groups.members.values(), *groups.moved_by_user.values()) for m in found]
    known = {id(member.parameter): member.group for member in members}
    stays = {id(parameter) for name, parameter in names.parameters.items() if before.by_name.get(name) is parameter}
    for name, parameter in names.parameters.items():
        old = before.by_name.get(name)
        own, others = known.get(id(parameter)), known.get(id(old))
        if group := (own or others) if old is None or id(parameter) in stays else (others or own):
            group_of[name] = group
        elif parameter is not old and parameter.requires_grad:
            added.append(name)
    if added:
        chosen, families = _choose(groups.selectors, names)
        group_of |= {name: chosen.get(name, REST) for name in added}
        groups = replace(groups, families=families)
    gone = [member for member in members if member.name not in group_of and id(member.parameter) in held]
    found = _grouped(group_of, names, groups, gone)
    _check(found, {})
    return found


def _grouped(group_of: Mapping[str, str], names: ParamNames, groups: Groups, gone: Iterable[Member] = ()) -> Groups:
    """Groups with these members, and with those that the model shows no more."""
    members: dict[str, dict[int, Member]]
    members = {each: {} for group in groups.selectors for each in groups.families.get(group, (group,))}
    for name, parameter in names.parameters.items():
        if (group := group_of.get(name)) is not None:
            members.setdefault(group, {}).setdefault(id(parameter), Member(name, parameter, group))
    for member in gone:
        members.setdefault(member.group, {}).setdefault(id(member.parameter), member)
    if REST in members:
        members[REST] = members.pop(REST)  # the last
    own = groups.reasons
    by_user = tuple(n for n, p in names.parameters.items() if not p.requires_grad and group_of.get(n) not in own)
    each = {group: tuple(found.values()) for group, found in members.items()}
    moved = dict(zip(own, map(each.pop, own), strict=True))
    return replace(groups, members=each, frozen_by_user=by_user, moved_by_user=moved)


def _choose(groups: Mapping[str, Selector], names: ParamNames) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """The group of each parameter that trains or the user moves, by name, and the groups of each family."""
    taken: dict[int, tuple[str, str, str]] = {}  # parameter → group, pattern, name
    group_of: dict[str, str] = {}
    families: dict[str, tuple[str, ...]] = {}
    for group, selector in groups.items():
        check_group_name(group)
        parsed = parse(group, selector)
        matches = _matches(group, parsed, names)
        if parsed.each:
            families[group] = _family(group, parsed.include[0].text, {part for _, _, part in matches})
        for name, text, part in matches:
            if parsed.by or names.parameters[name].requires_grad:
                group_of[name] = f"{group}/{part}" if parsed.each else group
                _take(taken, names, group_of[name], text, name)
    return group_of, families


def _family(group: str, pattern: str, parts: set[str]) -> tuple[str, ...]:
    if parts == {""}:
        raise SelectionError(
            f"family {group!r} has `each: {pattern}`, which has no wildcard and so names one thing. Write "
            f'`each: "{pattern}.*"`.'
        )
    return tuple(f"{group}/{part}" for part in sorted(parts, key=_natural))


def _check(found: Groups, selectors: Mapping[str, Selector]) -> None:
    """Refuse groups without parameters, and a rest where there must be none."""
    for group, selector in selectors.items():
        for each in found.families.get(group, (group,)):
            if not found.members.get(each, True):  # those that the user moves are none of them
                raise SelectionError(
                    f"group {each!r} (by {selector!r}) is empty, because all its parameters have requires_grad=False "
                    f"({len(found.frozen_by_user)} in the model, such as {found.frozen_by_user[0]!r}). Leave "
                    "requires_grad=True for all that the schedule is to train, also what is frozen at first."
                )
    left = found.members.get(REST)
    if left and found.rest == "error":
        listed = ", ".join(member.name for member in left[:5]) + (", …" if len(left) > 5 else "")
        raise SelectionError(
            f"{counted(len(left), 'parameter')} in no group, which `rest: error` forbids: {listed}. Name them in a group, or "
            "set `rest: train` (they train always) or `rest: freeze` (never)."
        )


def selectors_for(module: Module, groups: Mapping[str, Selector], schedule: Schedule) -> dict[str, Selector]:
    """The groups as written, and one for each other name in the schedule, read as a selector."""
    known, others = Layout(tuple(groups)), dict[str, str]()
    for key, name in schedule.names():
        if not known.knows(name) and name.partition("/")[0] not in groups:
            others.setdefault(name, key)
    if not others:
        return dict(groups)
    names = ParamNames(module)
    for name, key in others.items():
        _refuse_overlap(key, name, _selected(key, name, groups, names), groups, names)
    return {**groups, **{name: name for name in others}}


def _selected(key: str, name: str, groups: Mapping[str, Selector], names: ParamNames) -> set[str]:
    """The parameters that a name in a schedule selects."""
    try:
        (pattern,) = parse(name, name).include
        matched = names.found(pattern)
    except SelectionError as error:
        raise ScheduleError(f"`{key}` names {name!r}, which is not a group; as a selector, {error}", key=key) from error
    if not matched:
        known = f" (groups: {', '.join(map(repr, groups))})" if groups else ""
        hint = offer(dict.fromkeys([*nearest(name, [*groups, ALL]), *nearest(name, names.below)]))
        raise ScheduleError(
            f"`{key}` names {name!r}, which is not a group{known} and, read as a selector, matches no parameter"
            f"{names.why_nothing(pattern)}.{hint}",
            key=key,
        )
    return set(matched)


def _refuse_overlap(key: str, name: str, matched: set[str], groups: Mapping[str, Selector], names: ParamNames) -> None:
    """Refuse a selector of the parameters of the group whose name is nearest: it is most likely that group."""
    for group in nearest(name, groups, 1):
        matches = _matches(group, parse(group, groups[group]), names)
        parts = {part for n, _, part in matches if n in matched}
        if not parts:
            return
        members = [group] if parts == {""} else [f"{group}/{part}" for part in sorted(parts, key=_natural)]
        if {n for n, _, part in matches if part in parts} == matched:
            held = ", ".join(map(repr, members))
            advice = f"{held} hold{'s' * (len(members) == 1)} the same parameters: write {held} in the schedule" + (
                f", or call the group {name!r}." if members == [group] else "."
            )
        else:
            advice = (
                f"{group!r} holds some of the same parameters, and a parameter is in one group alone: name {group!r} in "
                "the schedule, or make it two groups."
            )
        raise ScheduleError(f"`{key}` names {name!r}, which is not a group, and {advice}", key=key)


def _matches(group: str, selector: ParsedSelector, names: ParamNames) -> list[tuple[str, str, str]]:
    """The (name, pattern, part of a family) that a selector takes, pattern by pattern."""
    gone = {name for pattern in selector.exclude for name in names.require(group, pattern, "except: ")}
    chosen: dict[str, tuple[str, str]] = {}
    for pattern in selector.include:
        for name, part in names.require(group, pattern, "each: " if selector.each else "").items():
            chosen.setdefault(name, (pattern.text, part if selector.each else ""))
    left = [(name, text, part) for name, (text, part) in chosen.items() if name not in gone]
    if not left:
        patterns = ", ".join(pattern.text for pattern in selector.exclude)
        raise SelectionError(
            f"group {group!r} is empty: `except: {patterns}` takes away all that it has ({counted(len(chosen), 'parameter')})."
        )
    return left


def _take(taken: dict[int, tuple[str, str, str]], names: ParamNames, group: str, pattern: str, name: str) -> None:
    first_group, first_pattern, first_name = taken.setdefault(id(names.parameters[name]), (group, pattern, name))
    if first_group == group:
        return
    if first_name == name:
        raise SelectionError(
            f"{name!r} is in two groups: {first_group!r} (by {first_pattern!r}) and {group!r} (by {pattern!r}). Groups are "
            f"disjoint: take it out of one with `except: {name}`."
        )
    raise SelectionError(
        f"{first_name!r} in group {first_group!r} (by {first_pattern!r}) and {name!r} in group {group!r} (by {pattern!r}) "
        "are one tied parameter, which cannot train and be frozen at once. Put both names in one group, or take one away "
        f"with `except: {name}`."
    )


def _natural(part: str) -> list[tuple[int, int, str]]:
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]


def frozen_modules(module: Module, is_frozen: Callable[[Parameter], bool | None]) -> list[tuple[str, Module]]:
    """The modules in subtrees whose parameters are all frozen; parents before children.

    ``is_frozen`` is None for a parameter that the user froze; a subtree of these alone is left as it is.
    """
    states: dict[int, set[bool | None]] = {}

    def collect(at: Module) -> set[bool | None]:
        if id(at) not in states:
            states[id(at)] = set()  # a module that holds itself ends here
            own = {is_frozen(parameter) for parameter in at.parameters(recurse=False)}
            states[id(at)] = own.union(*(collect(child) for child in at.children()))
        return states[id(at)]

    found: dict[int, tuple[str, Module]] = {}

    def walk(name: str, at: Module, inside: bool) -> None:
        here = collect(at)
        inside = inside or (True in here and False not in here)
        if inside:
            found.setdefault(id(at), (clean_name(name), at))
        for child_name, child in at.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child, inside)

    walk("", module, False)
    return list(found.values())
