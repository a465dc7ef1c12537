"""From selectors to disjoint, named groups of parameters, told apart by identity.

Whole segments of names, as finetuning-scheduler, BAdam and rslearn do not: ``layer.1`` never selects ``layer.10``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import torch

from lightning_freeze.plan.schedule import ALL, REST, Layout, Schedule, ScheduleError, nearest

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

Rest = Literal["train", "freeze", "error"]
"""What becomes of the parameters that no group names."""

Selector = str | Sequence[str | Mapping[str, object]] | Mapping[str, object]
"""What a user writes for a group; see `resolve_groups`."""

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WILD = frozenset("*{}")
_KEYS = ("select", "re", "type", "each", "except")


class SelectionError(ValueError):
    """A selector that matches nothing, or parameters that cannot be grouped as asked; found before training starts."""


def clean_name(name: str) -> str:
    """A parameter's or module's name as the user wrote it, without the segments that compiling or wrapping adds.

    Example:
        >>> clean_name("_orig_mod.encoder._checkpoint_wrapped_module.weight")
        'encoder.weight'
    """
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


# --- selectors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pattern:
    """One parsed selector: ``text`` as written, and how it finds parameters."""

    text: str
    kind: Literal["glob", "re", "type"]
    body: str

    @property
    def regex(self) -> re.Pattern[str]:
        return _glob(self.body) if self.kind == "glob" else _regex(self.body, self.text)


@dataclass(frozen=True)
class _Selector:
    """A parsed group: what it takes, what it takes away, and whether each match is a group of its own."""

    include: tuple[_Pattern, ...]
    exclude: tuple[_Pattern, ...]
    each: bool


def _parse(group: str, selector: object) -> _Selector:
    """The selector of one group as typed values; past here nothing is ``str | list | dict``."""
    include: list[_Pattern] = []
    exclude: list[_Pattern] = []
    each: list[_Pattern] = []
    for item in _as_list(selector):
        if isinstance(item, str):
            include.append(_pattern(group, item))
        elif isinstance(item, Mapping):
            for key, value in item.items():
                if key not in _KEYS:
                    close = nearest(str(key), _KEYS, 1) or [_KEYS[0]]
                    raise SelectionError(
                        f"group {group!r} has the unknown key {key!r}; the keys of a selector are {', '.join(_KEYS)}. "
                        f"Nearest: {close[0]!r}."
                    )
                patterns = [_pattern(group, text, key) for text in _texts(group, key, value)]
                {"except": exclude, "each": each}.get(key, include).extend(patterns)
        else:
            raise SelectionError(
                f"group {group!r} has the selector {item!r}; write a name such as 'encoder.layers.0', a list of names, "
                f"or a mapping with the keys {', '.join(_KEYS)}."
            )
    if each and include:
        raise SelectionError(
            f"group {group!r} mixes `each:` (one group for each match) with other selectors (one group together). "
            "Make it two groups."
        )
    if len(each) > 1:
        raise SelectionError(
            f"group {group!r} has {len(each)} patterns under `each:` ({', '.join(repr(p.text) for p in each)}), whose "
            "groups could not be told apart by name. Make it a family for each pattern."
        )
    if not each and not include:
        raise SelectionError(
            f"group {group!r} selects nothing: {selector!r}. Name a module or a parameter, such as 'encoder'."
        )
    return _Selector(tuple(each or include), tuple(exclude), bool(each))


def check_selector(group: str, selector: object) -> None:
    """Check a group's name and the form of its selector, without a model.

    Raises:
        SelectionError: The name is reserved, or the selector is none.
    """
    _check_group_name(group)
    parsed = _parse(group, selector)
    for pattern in (*parsed.include, *parsed.exclude):
        if pattern.kind != "type":
            _ = pattern.regex


def _as_list(selector: object) -> Sequence[object]:
    return selector if isinstance(selector, Sequence) and not isinstance(selector, str) else [selector]


def _texts(group: str, key: str, value: object) -> list[str]:
    texts = _as_list(value)
    for text in texts:
        if not isinstance(text, str):
            raise SelectionError(
                f"group {group!r} has `{key}: {value!r}`, but a selector is text. In YAML, quote patterns that begin "
                "with * or hold braces."
            )
    return [text for text in texts if isinstance(text, str)]


def _pattern(group: str, text: str, key: str = "select") -> _Pattern:
    kind, body = ("glob", text) if key in ("select", "each", "except") else (key, text)
    for prefix in ("re", "type"):
        if kind == "glob" and text.startswith(f"{prefix}:"):
            kind, body = prefix, text.removeprefix(f"{prefix}:").strip()
    body = body.strip()
    if not body or (kind == "glob" and not all(_split(body))):
        raise SelectionError(
            f"group {group!r} has the selector {text!r}, in which a name is empty. Write whole names between dots, "
            "such as 'encoder.layers.0'."
        )
    return _Pattern(text, kind, body)  # type: ignore[arg-type]


@cache
def _glob(body: str) -> re.Pattern[str]:
    """A glob over whole segments as a regular expression; each wildcard is a group that tells what it stood for.

    The empty match of a ``**`` at either end takes the dot beside it along.
    """
    pieces: list[str] = []
    for segment in _split(body):
        if segment == "**":
            pieces.append(r"((?:[^.]+\.)*)")
            continue
        pieces.append(_segment(segment, body) + r"\.")
    # Names are matched with a dot at their end, so that every piece may end in one.
    return re.compile("".join(pieces))


def _split(body: str) -> list[str]:
    """The segments of a selector: split at its dots, except those of a range in braces."""
    return re.split(r"\.(?![^{}]*\})", body)


def _segment(segment: str, body: str) -> str:
    out = ""
    for part in re.split(r"(\*|\{[^}]*\})", segment):
        if part == "*":
            out += r"([^.]+)" if segment == "*" else r"([^.]*)"
        elif part.startswith("{"):
            numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
            if numbers is None or int(numbers[1]) > int(numbers[2]):
                raise SelectionError(
                    f"the selector {body!r} holds {part!r}; braces hold a range of whole numbers, low to high and both "
                    "included, such as {0..5}."
                )
            out += "(" + "|".join(str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)) + ")"
        else:
            out += re.escape(part)
    return out


@cache
def _regex(body: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(body)
    except re.error as error:
        raise SelectionError(f"the selector {text!r} is no regular expression: {error}.") from error


@cache
def _class(path: str) -> type[Module]:
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module_name), name) if module_name else getattr(torch.nn, name)
    except (ImportError, AttributeError) as error:
        close = [f"torch.nn.{c}" for c in nearest(name, (n for n in dir(torch.nn) if n[0].isupper()), 1)]
        hint = f" Nearest: {close[0]!r}." if close else ""
        raise SelectionError(
            f"`type: {path}` names no class that can be imported ({error}). Write the full path, such as "
            f"`type: torch.nn.LayerNorm`.{hint}"
        ) from error
    if not isinstance(found, type) or not issubclass(found, torch.nn.Module):
        raise SelectionError(f"`type: {path}` names {found!r}, which is no torch.nn.Module class.")
    return found


# --- the model's names ----------------------------------------------------------------------------------------------


class _Names:
    """A model's parameters under all their names, and which names a pattern finds."""

    def __init__(self, module: Module) -> None:
        self.parameters = {clean_name(n): p for n, p in module.named_parameters(remove_duplicate=False)}
        self.modules = {clean_name(n): m for n, m in module.named_modules(remove_duplicate=False) if clean_name(n)}
        flat = [name for name in self.parameters if name.rpartition(".")[2].startswith("_flat_param")]
        if flat:
            raise SelectionError(
                f"the model shows only flattened parameters ({flat[0]!r}): FSDP without original parameters. Use "
                "FSDPStrategy(use_orig_params=True), or FSDP2 through ModelParallelStrategy."
            )
        # Each name, of a module or of a parameter, with the parameters at or below it.
        self._below: dict[str, list[str]] = {}
        for name in self.parameters:
            end = name.find(".")
            while end >= 0:
                self._below.setdefault(name[:end], []).append(name)
                end = name.find(".", end + 1)
            self._below.setdefault(name, []).append(name)

    def found(self, pattern: _Pattern) -> dict[str, str]:
        """Each parameter name that a pattern selects, with what its wildcards stood for."""
        if pattern.kind == "type":
            wanted = _class(pattern.body)
            roots = [name for name, module in self.modules.items() if isinstance(module, wanted)]
            return {name: "" for name in self.parameters if any(_inside(name, root) for root in roots)}
        if pattern.kind == "glob" and not _WILD.intersection(pattern.body):
            return dict.fromkeys(self._below.get(pattern.body, ()), "")
        regex = pattern.regex
        if pattern.kind == "re":
            return {name: "" for name in self.parameters if regex.fullmatch(name)}
        found: dict[str, str] = {}
        for prefix, names in self._below.items():  # a prefix stands before the longer ones that begin with it
            match = regex.fullmatch(f"{prefix}.")
            if match:
                part = ".".join(part.rstrip(".") for part in match.groups() if part)
                for name in names:
                    found.setdefault(name, part)
        return {name: found[name] for name in self.parameters if name in found}

    def near(self, text: str) -> list[str]:
        """The names of modules and parameters nearest to one that is none."""
        return nearest(text, [*self.modules, *self.parameters])


def _inside(name: str, root: str) -> bool:
    return name.startswith(f"{root}.")


# --- groups ---------------------------------------------------------------------------------------------------------


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
        users_own: FQNs found with ``requires_grad=False``: the user's own, in no group.
        rest: What becomes of the parameters that no group names.
    """

    members: Mapping[str, tuple[Member, ...]]
    families: Mapping[str, tuple[str, ...]]
    users_own: tuple[str, ...]
    rest: Rest

    @property
    def named(self) -> tuple[str, ...]:
        """The groups that a schedule may name."""
        return tuple(group for group in self.members if group != REST)

    def names(self) -> dict[str, list[str]]:
        """Group to the FQNs of its parameters."""
        return {group: [member.name for member in members] for group, members in self.members.items()}

    def layout(self, optimizers: Sequence[torch.optim.Optimizer]) -> Layout:
        """What a schedule must know of these groups and the optimizers that hold them.

        Raises:
            SelectionError: A parameter of a named group is in no optimizer.
        """
        holders: dict[int, set[int]] = {}
        for index, optimizer in enumerate(optimizers):
            for param_group in optimizer.param_groups:
                for parameter in param_group["params"]:
                    holders.setdefault(id(parameter), set()).add(index)
        held: dict[str, frozenset[int]] = {}
        for group, members in self.members.items():
            missing = [member.name for member in members if id(member.parameter) not in holders]
            if missing and group != REST:
                raise SelectionError(
                    f"{missing[0]!r} of group {group!r} is in no optimizer"
                    + (f" (and {len(missing) - 1} more of the group)" if len(missing) > 1 else "")
                    + ", so no schedule can train it. Hand it to an optimizer in `configure_optimizers` (every "
                    "parameter of a group, also the ones that are frozen at first), or take it out of the group "
                    "with `except:`."
                )
            held[group] = frozenset().union(*(holders.get(id(member.parameter), ()) for member in members))
        rest_trains = self.rest == "train" and bool(held.get(REST))
        return Layout(self.named, self.families, held, rest_trains)


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
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> resolve_groups(model, {"first": "0", "biases": "2.bias"})
        {'first': ['0.weight', '0.bias'], 'biases': ['2.bias']}
    """
    found = group_parameters(module, groups, rest)
    return {group: names for group, names in found.names().items() if group != REST}


def group_parameters(module: Module, groups: Mapping[str, Selector], rest: Rest = "train") -> Groups:
    """As `resolve_groups`, with the parameters themselves, families and the rest."""
    names = _Names(module)
    taken: dict[int, tuple[str, str, str]] = {}  # parameter → group, pattern, name
    sorted_into: dict[str, list[str]] = {}
    families: dict[str, tuple[str, ...]] = {}
    users_own = dict.fromkeys(n for n, p in names.parameters.items() if not p.requires_grad)
    for group, selector in groups.items():
        _check_group_name(group)
        parsed = _parse(group, selector)
        matches = _matches(group, parsed, names)
        if parsed.each:
            parts = sorted({part for _, _, part in matches}, key=_natural)
            if parts == [""]:
                raise SelectionError(
                    f"family {group!r} has `each: {parsed.include[0].text}`, which has no wildcard, so it names one "
                    f'thing and not a family. Write `each: "{parsed.include[0].text}.*"`.'
                )
            families[group] = tuple(f"{group}/{part}" for part in parts)
            sorted_into.update({name: [] for name in families[group]})
        else:
            sorted_into[group] = []
        for name, text, part in matches:
            if name in users_own:
                continue
            own = f"{group}/{part}" if parsed.each else group
            _take(taken, names, own, text, name)
            sorted_into[own].append(name)
    _refuse_empty(sorted_into, groups, families, users_own)
    order = {name: number for number, name in enumerate(names.parameters)}
    left = [n for n, p in names.parameters.items() if id(p) not in taken and n not in users_own]
    if left and rest == "error":
        raise SelectionError(
            f"{len(left)} parameter(s) are in no group, and `rest: error` forbids that: {', '.join(left[:5])}"
            + (", …" if len(left) > 5 else "")
            + ". Name them in a group, or set `rest: train` (they train always) or `rest: freeze` (never)."
        )
    members = {
        group: tuple(_members(group, sorted(chosen, key=order.__getitem__), names))
        for group, chosen in {**sorted_into, **({REST: left} if left else {})}.items()
    }
    return Groups(members, families, tuple(users_own), rest)


def selectors_for(module: Module, groups: Mapping[str, Selector], schedule: Schedule) -> dict[str, Selector]:
    """The groups as written, and one more for each name in the schedule that is none: it is read as a selector.

    Raises:
        ScheduleError: Such a name selects nothing; the message offers the nearest groups and the nearest names.
    """
    names = _Names(module)
    known = Layout(tuple(groups), dict.fromkeys(groups, ()))
    wanted = dict(groups)
    for key, name in schedule.names():
        family = name.partition("/")[0] if "/" in name else name
        if name in wanted or known.knows(name) or family in groups:
            continue
        try:
            matched = names.found(_pattern(name, name))
        except SelectionError as error:
            raise ScheduleError(
                f"`{key}` names {name!r}, which is no group; as a selector, {error}", key=key
            ) from error
        if not matched:
            close = [*nearest(name, [*groups, ALL]), *names.near(name)]
            hint = f" Nearest: {', '.join(map(repr, close))}." if close else ""
            raise ScheduleError(
                f"`{key}` names {name!r}, which is no group"
                + (f" (groups: {', '.join(map(repr, groups))})" if groups else "")
                + f" and, read as a selector, matches no parameter.{hint}",
                key=key,
                value=name,
            )
        for group in nearest(name, groups, 1):
            matches = _matches(group, _parse(group, groups[group]), names)
            parts = {part for n, _, part in matches if n in matched}
            if not parts:
                continue
            members = [group] if parts == {""} else [f"{group}/{part}" for part in sorted(parts, key=_natural)]
            alike = {n for n, _, part in matches if part in parts} == matched.keys()
            held = ", ".join(map(repr, members if alike else [group]))
            raise ScheduleError(
                f"`{key}` names {name!r}, which is no group, and {held} "
                + (
                    f"hold{'s' * (len(members) == 1)} the same parameters: write {held} in the schedule"
                    + (f", or call the group {name!r}." if members == [group] else ".")
                    if alike
                    else f"holds some of the same parameters, and a parameter is in one group alone: name {held} in the "
                    "schedule, or make it two groups."
                ),
                key=key,
                value=name,
            )
        wanted[name] = name
    return wanted


def _check_group_name(group: object) -> None:
    if not isinstance(group, str) or not group.strip():
        raise SelectionError(f"`groups` has the name {group!r}; a group's name is text.")
    if group in (REST, ALL):
        raise SelectionError(
            f"`groups` has a group called {group!r}, which is reserved: `rest` is every parameter outside the groups, "
            f"`all` every named group. Call it something else, such as '{group}_parameters'."
        )
    if "/" in group or "*" in group:
        if group.startswith(("re:", "type:")) or "*" in group:
            return  # a selector written in a schedule is its own group's name
        raise SelectionError(
            f"group {group!r} has a slash in its name; slashes name the groups of a family (layers/0)."
        )


def _matches(group: str, selector: _Selector, names: _Names) -> list[tuple[str, str, str]]:
    """The (name, pattern, part of a family) that a selector takes, in the model's order."""
    gone: set[str] = set()
    for pattern in selector.exclude:
        found = names.found(pattern)
        if not found:
            raise SelectionError(_no_match(group, pattern, names, "except: "))
        gone |= found.keys()
    chosen: dict[str, tuple[str, str]] = {}
    for pattern in selector.include:
        found = names.found(pattern)
        if not found:
            raise SelectionError(_no_match(group, pattern, names, "each: " if selector.each else ""))
        for name, part in found.items():
            chosen.setdefault(name, (pattern.text, part))
    left = [(name, text, part) for name, (text, part) in chosen.items() if name not in gone]
    if not left:
        raise SelectionError(
            f"group {group!r} is empty: `except: {', '.join(p.text for p in selector.exclude)}` takes away all "
            f"{len(chosen)} parameter(s) that {', '.join(repr(p.text) for p in selector.include)} selects."
        )
    return left


def _no_match(group: str, pattern: _Pattern, names: _Names, key: str) -> str:
    if pattern.kind == "type":
        kinds = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in names.modules.values()})
        close = nearest(pattern.body, kinds) or kinds[:3]
    else:
        close = names.near(pattern.body) or [*names.modules, *names.parameters][:3]
    return (
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
    sorted_into: Mapping[str, list[str]],
    groups: Mapping[str, Selector],
    families: Mapping[str, tuple[str, ...]],
    users_own: Mapping[str, None],
) -> None:
    of_family = {name: family for family, parts in families.items() for name in parts}
    for group, chosen in sorted_into.items():
        if not chosen:
            raise SelectionError(
                f"group {group!r} (by {groups[of_family.get(group, group)]!r}) is empty, because all its parameters were "
                f"found with requires_grad=False ({len(users_own)} in the model, such as {next(iter(users_own))!r}). "
                "Those are yours to freeze and belong to no group. Leave requires_grad=True for everything that the "
                "schedule is to train, also what is frozen at first."
            )


def _members(group: str, chosen: Iterable[str], names: _Names) -> Iterator[Member]:
    seen: set[int] = set()
    for name in chosen:
        parameter = names.parameters[name]
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield Member(name, parameter, group)


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
