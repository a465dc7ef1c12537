"""From selectors to disjoint, named groups of parameters, told apart by identity.

Whole segments of names, as finetuning-scheduler, BAdam and rslearn do not: ``layer.1`` never selects ``layer.10``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lightning_freeze.errors import ScheduleError, SelectionError, nearest
from lightning_freeze.plan.schedule import ALL, REST, Layout, Schedule
from lightning_freeze.plan.selectors import (
    Selector,
    _check_group_name,
    _Names,
    _parse,
    _Pattern,
    _pattern,
    _Selector,
    clean_name,
)

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

Rest = Literal["train", "freeze", "error"]
"""What becomes of the parameters that no group names."""


@dataclass(frozen=True)
class Member:
    """A parameter in a group.

    Args:
        name: Its FQN as the user wrote it, the first of them where it is tied.
        parameter: The parameter itself; sameness is identity.
        group: The group that holds it.
    """

    name: str
    parameter: Parameter = field(repr=False)
    group: str


@dataclass(frozen=True)
class Groups:
    """A model's parameters, sorted into disjoint groups.

    Args:
        members: Group to its parameters, ``rest`` last if it has any.
        families: Family name to its groups, in order.
        frozen_by_user: FQNs found with ``requires_grad=False``: the user's own, in no group.
        rest: What becomes of the parameters that no group names.
    """

    members: Mapping[str, tuple[Member, ...]]
    families: Mapping[str, tuple[str, ...]]
    frozen_by_user: tuple[str, ...]
    rest: Rest

    @property
    def named(self) -> tuple[str, ...]:
        """The groups that a schedule may name."""
        return tuple(group for group in self.members if group != REST)

    def names(self) -> dict[str, list[str]]:
        """Group to the FQNs of its parameters."""
        return {group: [member.name for member in members] for group, members in self.members.items()}


def resolve_groups(module: Module, groups: Mapping[str, Selector], rest: Rest = "train") -> dict[str, list[str]]:
    """Sort a model's parameters into the groups that selectors name.

    A selector names whole segments of FQNs and takes the modules or parameters of that name with everything below:
    ``*`` stands for one segment, ``**`` for any number, ``{0..5}`` for a range of numbers, ``re:`` begins a regular
    expression that must match a parameter's whole name, ``type:`` a module class. A list takes several together. A
    mapping may hold ``select``, ``re``, ``type``, ``each`` (a family: one group for each match, ``layers/0``,
    ``layers/1``, … in numerical order) and ``except`` (taken away again).

    Args:
        module: The model. Parameters with ``requires_grad=False`` are the user's own and belong to no group.
        groups: Group to selector.
        rest: With ``"error"``, a parameter that no group names is an error.

    Returns:
        Group to the FQNs of its parameters, in the model's order, without ``rest``. A tied parameter stands under the
        first of its names.

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
    names = _Names(module)
    frozen_by_user = tuple(n for n, p in names.parameters.items() if not p.requires_grad)
    taken: dict[int, tuple[str, str, str]] = {}  # parameter → group, pattern, name
    chosen: dict[str, set[str]] = {}
    families: dict[str, tuple[str, ...]] = {}
    for group, selector in groups.items():
        _check_group_name(group)
        parsed = _parse(group, selector)
        matches = _matches(group, parsed, names)
        if parsed.each:
            families[group] = _family(group, parsed.include[0].text, {part for _, _, part in matches})
        chosen |= {own: set() for own in families.get(group, (group,))}
        for name, text, part in matches:
            if names.parameters[name].requires_grad:
                own = f"{group}/{part}" if parsed.each else group
                _take(taken, names, own, text, name)
                chosen[own].add(name)
    _refuse_empty(chosen, groups, families, frozen_by_user)
    chosen |= _rest(names, taken, rest)
    members = {group: _members(group, own, names) for group, own in chosen.items()}
    return Groups(members, families, frozen_by_user, rest)


def _family(group: str, pattern: str, parts: set[str]) -> tuple[str, ...]:
    if parts == {""}:
        raise SelectionError(
            f"family {group!r} has `each: {pattern}`, which has no wildcard, so it names one thing and not a family. "
            f'Write `each: "{pattern}.*"`.'
        )
    return tuple(f"{group}/{part}" for part in sorted(parts, key=_natural))


def _rest(names: _Names, taken: Mapping[int, object], rest: Rest) -> dict[str, set[str]]:
    """What no group has taken, as a group; nothing where nothing is left."""
    left = [n for n, p in names.parameters.items() if id(p) not in taken and p.requires_grad]
    if left and rest == "error":
        raise SelectionError(
            f"{len(left)} parameter(s) are in no group, and `rest: error` forbids that: {', '.join(left[:5])}"
            + (", …" if len(left) > 5 else "")
            + ". Name them in a group, or set `rest: train` (they train always) or `rest: freeze` (never)."
        )
    return {REST: set(left)} if left else {}


def selectors_for(module: Module, groups: Mapping[str, Selector], schedule: Schedule) -> dict[str, Selector]:
    """The groups as written, and one more for each name in the schedule that is none: it is read as a selector.

    Raises:
        ScheduleError: Such a name selects nothing; the message offers the nearest groups and the nearest names.
    """
    names = _Names(module)
    known = Layout(tuple(groups))
    wanted = dict(groups)
    for key, name in schedule.names():
        if known.knows(name) or name in wanted or name.partition("/")[0] in groups:
            continue
        matched = _selected(key, name, groups, names)
        _refuse_overlap(key, name, matched, groups, names)
        wanted[name] = name
    return wanted


def _selected(key: str, name: str, groups: Iterable[str], names: _Names) -> set[str]:
    """The parameters that a name in a schedule selects."""
    try:
        matched = names.found(_pattern(name, name))
    except SelectionError as error:
        raise ScheduleError(f"`{key}` names {name!r}, which is no group; as a selector, {error}", key=key) from error
    if not matched:
        close = [*nearest(name, [*groups, ALL]), *names.near(name)]
        hint = f" Nearest: {', '.join(map(repr, close))}." if close else ""
        raise ScheduleError(
            f"`{key}` names {name!r}, which is no group"
            + (f" (groups: {', '.join(map(repr, groups))})" if groups else "")
            + f" and, read as a selector, matches no parameter.{hint}",
            key=key,
        )
    return set(matched)


def _refuse_overlap(key: str, name: str, matched: set[str], groups: Mapping[str, Selector], names: _Names) -> None:
    """Refuse a selector of the parameters of the group whose name is nearest: it is most likely that group."""
    for group in nearest(name, groups, 1):
        matches = _matches(group, _parse(group, groups[group]), names)
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
        raise ScheduleError(f"`{key}` names {name!r}, which is no group, and {advice}", key=key)


def _matches(group: str, selector: _Selector, names: _Names) -> list[tuple[str, str, str]]:
    """The (name, pattern, part of a family) that a selector takes, pattern by pattern."""
    gone = {name for pattern in selector.exclude for name in _found(group, pattern, names, "except: ")}
    chosen: dict[str, tuple[str, str]] = {}
    for pattern in selector.include:
        for name, part in _found(group, pattern, names, "each: " if selector.each else "").items():
            chosen.setdefault(name, (pattern.text, part))
    left = [(name, text, part) for name, (text, part) in chosen.items() if name not in gone]
    if not left:
        raise SelectionError(
            f"group {group!r} is empty: `except: {', '.join(p.text for p in selector.exclude)}` takes away all "
            f"{len(chosen)} parameter(s) that {', '.join(repr(p.text) for p in selector.include)} selects."
        )
    return left


def _found(group: str, pattern: _Pattern, names: _Names, key: str) -> dict[str, str]:
    """What a pattern finds, which must be something."""
    if found := names.found(pattern):
        return found
    if pattern.kind == "type":
        kinds = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in names.modules.values()})
        close = nearest(pattern.body, kinds) or kinds[:3]
    else:
        close = names.near(pattern.body) or [*names.modules, *names.parameters][:3]
    raise SelectionError(
        f"group {group!r}: the selector {key + pattern.text!r} matches no parameter. "
        f"Nearest: {', '.join(map(repr, close)) or 'none, the model has no parameters'}. "
        + (
            "A `re:` must match a parameter's whole name: `re:.*norm.*`."
            if pattern.kind == "re"
            else "Selectors name whole segments between dots; `**.` before a name finds it at any depth."
        )
    )


def _take(taken: dict[int, tuple[str, str, str]], names: _Names, group: str, pattern: str, name: str) -> None:
    before = taken.setdefault(id(names.parameters[name]), (group, pattern, name))
    if before[0] == group:
        return
    if before[2] == name:
        raise SelectionError(
            f"{name!r} is in two groups: {before[0]!r} (by {before[1]!r}) and {group!r} (by {pattern!r}). Groups are "
            f"disjoint: take it out of one with `except: {name}`."
        )
    raise SelectionError(
        f"{before[2]!r} in group {before[0]!r} (by {before[1]!r}) and {name!r} in group {group!r} (by {pattern!r}) are "
        f"one tied parameter, which cannot train and be frozen at once. Put both names in one group, or take one away "
        f"with `except: {name}`."
    )


def _refuse_empty(
    chosen: Mapping[str, set[str]],
    groups: Mapping[str, Selector],
    families: Mapping[str, tuple[str, ...]],
    frozen_by_user: Sequence[str],
) -> None:
    of_family = {name: family for family, parts in families.items() for name in parts}
    for group, names in chosen.items():
        if not names:
            raise SelectionError(
                f"group {group!r} (by {groups[of_family.get(group, group)]!r}) is empty, because all its parameters were "
                f"found with requires_grad=False ({len(frozen_by_user)} in the model, such as {frozen_by_user[0]!r}). "
                "Those are yours to freeze and belong to no group. Leave requires_grad=True for everything that the "
                "schedule is to train, also what is frozen at first."
            )


def _members(group: str, chosen: set[str], names: _Names) -> tuple[Member, ...]:
    """A group's parameters in the model's order, a tied one under the first of its chosen names."""
    members: dict[int, Member] = {}
    for name, parameter in names.parameters.items():
        if name in chosen:
            members.setdefault(id(parameter), Member(name, parameter, group))
    return tuple(members.values())


def _natural(part: str) -> list[tuple[int, int, str]]:
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]


def frozen_modules(module: Module, is_frozen: Callable[[Parameter], bool | None]) -> list[tuple[str, Module]]:
    """The modules that lie in a subtree which has parameters, all of them frozen; parents before children.

    Args:
        module: The model.
        is_frozen: For a parameter: True if frozen by the plan, False if it trains, None if it is the user's own. A
            subtree of the user's own parameters alone is left as it is.
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
