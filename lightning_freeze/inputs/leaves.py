"""The tensors in a call's arguments, each under the path that one would write for it inside ``forward``."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEPTH = 8
"""How deep containers within containers are looked into."""


class Leaf(NamedTuple):
    """One tensor of a call's arguments.

    Args:
        argument: Its path as written inside ``forward``: ``mask``, ``batch['a']``, ``bag.b``, ``args[1]``.
        name: The parameter that the path begins with.
        where: Its position in ``args``, or its key in ``kwargs``.
        steps: The keys, positions and attributes that lead from there to the tensor.
        tensor: The tensor.
    """

    argument: str
    name: str
    where: int | str
    steps: tuple[Any, ...]
    tensor: Tensor


class Signature(NamedTuple):
    """The names of a ``forward``'s arguments.

    Args:
        positional: Names that positions are bound to, in order, without ``self``.
        named: Names that can be bound by keyword.
        varargs: The name behind ``*``, or None.
        varkw: The name behind ``**``, or None.
        shift: How many items of ``*args`` come before the call's own: ``self``, where no other parameter takes it.
    """

    positional: tuple[str, ...]
    named: frozenset[str]
    varargs: str | None
    varkw: str | None
    shift: int = 0

    @property
    def takes(self) -> frozenset[str] | None:
        """The names of all that it takes; None where it takes anything."""
        return None if self.varargs is not None or self.varkw is not None else self.named.union(self.positional)

    def at(self, where: int | str) -> tuple[str, str]:
        """The path and the parameter of an argument, by its position or keyword."""
        if isinstance(where, str):
            if where in self.named:
                return where, where
            owner = self.varkw or "kwargs"
            return f"{owner}[{where!r}]", owner
        if where < len(self.positional):
            return self.positional[where], self.positional[where]
        owner = self.varargs or "args"
        return f"{owner}[{where - len(self.positional) + self.shift}]", owner


def signature_of(forward: Callable[..., Any]) -> Signature:
    """The names of a ``forward``'s arguments, or ``args`` and ``kwargs``."""
    plain = getattr(forward, "__func__", forward)
    bound = plain is not forward
    try:
        return _signature(plain, bound)
    except TypeError:  # not hashable
        return _signature.__wrapped__(plain, bound)


@functools.lru_cache(maxsize=4096)
def _signature(function: Callable[..., Any], bound: bool) -> Signature:
    names: dict[Any, list[str]] = defaultdict(list)
    try:
        for parameter in inspect.signature(function).parameters.values():
            names[parameter.kind].append(parameter.name)
    except (TypeError, ValueError):
        return Signature((), frozenset(), "args", "kwargs")
    kinds = inspect.Parameter
    positional = names[kinds.POSITIONAL_ONLY] + names[kinds.POSITIONAL_OR_KEYWORD]
    named = {*names[kinds.POSITIONAL_OR_KEYWORD], *names[kinds.KEYWORD_ONLY]}
    shift = int(bound and not positional)
    if bound and positional:
        named.discard(positional.pop(0))
    varargs, varkw = (next(iter(names[kind]), None) for kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD))
    return Signature(tuple(positional), frozenset(named), varargs, varkw, shift)


_SCALARS = frozenset((bool, int, float, complex, str, bytes, type(None)))


def _contents(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """What a container holds beside scalars: how each is written, its key, and itself."""
    written = "[{!r}]"
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, (dict, UserDict)):
        pairs = list(dict.items(value.data if isinstance(value, UserDict) else value))
    elif (names := _fields(value)) is not None:
        written, pairs = ".{}", [(name, getattr(value, name)) for name in names]
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    return ((written.format(key), key, item) for key, item in pairs if type(item) not in _SCALARS)


def _fields(value: Any) -> Iterable[str] | None:
    """The names of a named tuple's or a dataclass's fields."""
    if isinstance(value, (list, tuple)):
        return getattr(value, "_fields", None) if isinstance(value, tuple) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return None


def leaves_of(signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Leaf]:
    """Every tensor in a call's arguments, in their order."""
    found: list[Leaf] = []
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for where, value in arguments:
        if isinstance(value, Tensor):
            found.append(Leaf(*signature.at(where), where, (), value))
        elif type(value) not in _SCALARS:
            argument, name = signature.at(where)
            found += [Leaf(path, name, where, steps, tensor) for path, steps, tensor in _within(value, argument)]
    return found


def _within(
    value: Any, path: str, steps: tuple[Any, ...] = (), above: tuple[int, ...] = ()
) -> Iterator[tuple[str, tuple[Any, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, steps, value
    elif len(steps) < DEPTH and id(value) not in above:
        for written, key, item in _contents(value):
            yield from _within(item, path + written, (*steps, key), (*above, id(value)))


def replaced(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], new: list[tuple[Leaf, Tensor]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with other tensors for some leaves; the given containers stay as they are.

    Raises:
        TypeError: A container on the way cannot be rebuilt.
    """
    arguments: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
    for leaf, tensor in new:
        arguments[leaf.where] = _rebuilt(arguments[leaf.where], leaf.steps, tensor)
    return tuple(arguments[position] for position in range(len(args))), {key: arguments[key] for key in kwargs}


def _rebuilt(value: Any, steps: Sequence[Any], tensor: Tensor) -> Any:
    if not steps:
        return tensor
    key, *further = steps
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        index = key if fields is None else fields.index(key)
        items = list(value)
        items[index] = _rebuilt(items[index], further, tensor)
        # not `_replace`: PackedSequence and its like check what they are made of
        return type(value)(items) if fields is None else tuple.__new__(type(value), items)
    if isinstance(value, (dict, UserDict, list)):
        made = copy.copy(value)
        made[key] = _rebuilt(made[key], further, tensor)
        return made
    made = object.__new__(type(value))
    vars(made).update(vars(value))
    object.__setattr__(made, key, _rebuilt(getattr(value, key), further, tensor))
    return made


_HOLDS_NONE = (str, bytes, int, float, type, torch.nn.Module)


def tensors_in(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """Every tensor that containers and the attributes of plain objects lead to."""
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(value, depth)]
    while waiting:
        item, left = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif left and item is not None and not isinstance(item, _HOLDS_NONE) and id(item) not in seen:
            seen.add(id(item))
            waiting += [(held, left - 1) for held in _held(item)]


def _held(value: Any) -> list[Any]:
    """What a container or an object holds."""
    held: list[Any] = []
    if isinstance(value, dict):  # a mapping of another kind may do something when it is read
        held += dict.values(value)
    elif isinstance(value, (list, tuple, set, frozenset)):
        held += value
    if hasattr(value, "__dict__") and not callable(value):
        held += vars(value).values()
    slots = [slot for slot in getattr(type(value), "__slots__", ()) if isinstance(slot, str) and hasattr(value, slot)]
    return held + [getattr(value, slot) for slot in slots]
