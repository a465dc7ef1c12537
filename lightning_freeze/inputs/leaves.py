"""The tensors in a call's arguments, each under the path that one would write for it inside ``forward``."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEPTH = 8
"""How deep containers within containers are looked into."""


class Step(NamedTuple):
    """One step into a container: how it is written, and how it is taken."""

    kind: str  # "argument", "item", "attribute"
    key: Any


class Leaf(NamedTuple):
    """One tensor of a call's arguments.

    Args:
        argument: Its path as written inside ``forward``: ``mask``, ``batch['a']``, ``bag.b``, ``args[1]``.
        name: The parameter that the path begins with.
        where: The position in ``args``, or the key in ``kwargs``, that it came by.
        steps: From there to the tensor.
        tensor: The tensor.
    """

    argument: str
    name: str
    where: int | str
    steps: tuple[Step, ...]
    tensor: Tensor


class Signature(NamedTuple):
    """What a ``forward`` calls its arguments.

    Args:
        positional: Names that positions are bound to, in order, without ``self``.
        named: Names that can be bound by keyword.
        varargs: The name behind ``*``, or None.
        varkw: The name behind ``**``, or None.
    """

    positional: tuple[str, ...]
    named: frozenset[str]
    varargs: str | None
    varkw: str | None
    shift: int = 0  # of the positions in ``*args``, where it holds ``self`` as well

    @property
    def takes(self) -> frozenset[str] | None:
        """The names of all that it takes; None where it takes anything."""
        return None if self.varargs is not None or self.varkw is not None else self.named.union(self.positional)

    def at(self, where: int | str) -> tuple[str, str]:
        """The path and the parameter's name of what stands at a position or under a keyword."""
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
    """The names of a ``forward``'s arguments; of one that cannot be inspected, ``args`` and ``kwargs``."""
    plain = getattr(forward, "__func__", forward)
    bound = plain is not forward
    try:
        return _signature(plain, bound)
    except TypeError:  # not hashable
        return _signature.__wrapped__(plain, bound)


@functools.lru_cache(maxsize=4096)
def _signature(function: Callable[..., Any], bound: bool) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return Signature((), frozenset(), "args", "kwargs")
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    shift = int(bound and not positional)
    if bound and positional:
        named.discard(positional[0])
        del positional[0]
    return Signature(
        tuple(positional),
        frozenset(named),
        next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None),
        next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None),
        shift,
    )


_SCALARS = frozenset((bool, int, float, complex, str, bytes, type(None)))


def children(value: Any) -> Iterator[tuple[str, Step, Any]] | None:
    """What a container holds beside scalars, each with how it is written and reached; None for what is no container."""
    kind, written = "item", "[{!r}]"
    names = _fields(value)
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, (dict, UserDict)):
        pairs = list(dict.items(value.data if isinstance(value, UserDict) else value))
    elif names is not None:
        kind, written = "attribute", ".{}"
        pairs = ((name, getattr(value, name)) for name in names)
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return None
    return ((written.format(key), Step(kind, key), item) for key, item in pairs if type(item) not in _SCALARS)


def _fields(value: Any) -> Iterable[str] | None:
    """The names of a named tuple's or a dataclass's fields; None for anything else."""
    if isinstance(value, (list, tuple)):
        return getattr(value, "_fields", None) if isinstance(value, tuple) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (field.name for field in dataclasses.fields(value) if hasattr(value, field.name))
    return None


def leaves_of(signature: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Leaf]:
    """Every tensor in a call's arguments, in the order in which they were handed over.

    Args:
        signature: What the module's ``forward`` calls them.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Example:
        >>> def forward(x, *pair, mask=None): ...
        >>> one = torch.ones(1)
        >>> found = leaves_of(signature_of(forward), (one, {"a": one}), {"mask": [one]})
        >>> [leaf.argument for leaf in found]
        ['x', "pair[0]['a']", 'mask[0]']
    """
    found: list[Leaf] = []
    handed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for where, value in handed:
        if isinstance(value, Tensor):
            argument, name = signature.at(where)
            found.append(Leaf(argument, name, where, (), value))
        elif isinstance(value, (list, tuple, dict, UserDict)) or dataclasses.is_dataclass(value):
            argument, name = signature.at(where)
            _within(value, argument, name, where, (), found, ())
    return found


def _within(
    value: Any,
    argument: str,
    name: str,
    where: int | str,
    steps: tuple[Step, ...],
    found: list[Leaf],
    above: tuple[int, ...],
) -> None:
    held = None if len(steps) >= DEPTH or id(value) in above else children(value)
    if held is None:
        return
    for written, step, item in held:
        path, further = argument + written, (*steps, step)
        if isinstance(item, Tensor):
            found.append(Leaf(path, name, where, further, item))
        elif not isinstance(item, (str, int, float, type(None))):
            _within(item, path, name, where, further, found, (*above, id(value)))


def replaced(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], new: list[tuple[Leaf, Tensor]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with some leaves replaced; containers on the way are rebuilt, the given ones stay as they are.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        new: The leaves to replace, each with the tensor to stand in its place.

    Raises:
        TypeError: A container on the way cannot be rebuilt.
    """
    positions: list[Any] = list(args)
    keywords = dict(kwargs)
    for leaf, tensor in new:
        if isinstance(leaf.where, str):
            keywords[leaf.where] = _rebuilt(keywords[leaf.where], leaf.steps, tensor)
        else:
            positions[leaf.where] = _rebuilt(positions[leaf.where], leaf.steps, tensor)
    return tuple(positions), keywords


def _rebuilt(value: Any, steps: tuple[Step, ...], tensor: Tensor) -> Any:
    if not steps:
        return tensor
    step = steps[0]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        changed = {step.key: _rebuilt(getattr(value, step.key), steps[1:], tensor)}
        # not `_replace`: PackedSequence and its like check what they are made of
        return tuple.__new__(type(value), [changed.get(name, getattr(value, name)) for name in value._fields])
    if isinstance(value, tuple):
        items = list(value)
        items[step.key] = _rebuilt(items[step.key], steps[1:], tensor)
        return type(value)(items) if type(value) is not torch.Size else tuple(items)
    if step.kind == "item":
        made = copy.copy(value)
        made[step.key] = _rebuilt(made[step.key], steps[1:], tensor)
        return made
    made = object.__new__(type(value))
    for key, held in vars(value).items():
        object.__setattr__(made, key, held)
    object.__setattr__(made, step.key, _rebuilt(getattr(value, step.key), steps[1:], tensor))
    return made


def tensors_in(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """Every tensor that a result leads to: through containers and through the attributes of plain objects.

    Example:
        >>> len(list(tensors_in({"a": [torch.ones(1)], "b": (torch.ones(1), 3)})))
        2
    """
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(value, depth)]
    while waiting:
        item, left = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif left and item is not None and not isinstance(item, _HOLDS_NONE) and id(item) not in seen:
            seen.add(id(item))
            waiting += [(held, left - 1) for held in _held(item)]


_HOLDS_NONE = (str, bytes, int, float, type, torch.nn.Module)


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
