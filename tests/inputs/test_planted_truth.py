"""The truth of the planted cases, checked without any audit: change one leaf, and see what the call returns."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .planted import CASES, Case

pytestmark = pytest.mark.slow

Leaf = tuple[str, str]
Change = Callable[[Tensor], Tensor]

# In these themes what is used shows in what the call returns; in the others it may leave by other ways.
VISIBLE = {"containers", "operators", "shapes", "nesting", "dead"}
# Used by construction, but no other value can be had or tried: a tensor without elements.
NOT_TO_BE_SEEN = {("operators_tensors_of_size_zero", "", "memory")}


def parts(value: Any, path: str) -> Iterator[tuple[Any, str, Any]]:
    """The children of a container, as (how to reach it, its path, the child)."""
    if isinstance(value, dict):
        yield from ((key, f"{path}[{key!r}]", value[key]) for key in value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((name, f"{path}.{name}", getattr(value, name)) for name in value._fields)
    elif isinstance(value, (list, tuple)):
        yield from ((number, f"{path}[{number}]", child) for number, child in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, f"{path}.{field.name}", getattr(value, field.name)


def leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield path
    for _, below, child in parts(value, path):
        yield from leaves(child, below)


def swapped(value: Any, path: str, target: str, change: Change) -> Any:
    """The same value with the leaf at `target` changed; what the leaf is not in stays the very same object."""
    if isinstance(value, Tensor):
        return change(value) if path == target else value
    new = [(key, child, swapped(child, below, target, change)) for key, below, child in parts(value, path)]
    if all(before is after for _, before, after in new):
        return value
    if isinstance(value, tuple):
        items = [after for _, _, after in new]
        return tuple.__new__(type(value), items)
    other = copy.copy(value)
    for key, _, after in new:
        if isinstance(value, (dict, list)):
            other[key] = after
        else:
            object.__setattr__(other, key, after)
    return other


def frozen(value: Any) -> Any:
    """What a call returned, detached from whatever happens to it later."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: frozen(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(child) for child in value]
    if isinstance(value, (bool, int, float, complex, str)):
        return value
    return frozen(vars(value)) if hasattr(value, "__dict__") and not callable(value) else None


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.allclose(one, other, 0, 0, True)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def played(
    case: Case, target: Leaf | None = None, change: Change = Tensor.clone
) -> tuple[dict[str, list[Any]], set[Leaf]]:
    """What every call of every module returned, and the leaves that were seen, with one leaf changed."""
    model, run = case.build()
    results: dict[str, list[Any]] = {}
    seen: set[Leaf] = set()

    def watch(name: str, module: nn.Module) -> None:
        forward, signature = module.forward, inspect.signature(module.forward)

        def watched(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for argument, value in list(bound.arguments.items()):
                seen.update((name, path) for path in leaves(value, argument))
                if target is not None and target[0] == name:
                    bound.arguments[argument] = swapped(value, argument, target[1], change)
            result = forward(*bound.args, **bound.kwargs)
            results.setdefault(name, []).append(frozen(result))
            return result

        module.forward = watched

    for name, module in model.named_modules():
        watch(name, module)
    torch.manual_seed(8)
    run(model)
    return results, seen


def not_a_number(leaf: Tensor) -> Tensor:
    return torch.full_like(leaf, float("nan") if leaf.is_floating_point() or leaf.is_complex() else 1)


def turned(leaf: Tensor) -> Tensor:
    if leaf.dtype == torch.bool:
        return ~leaf
    return -leaf.detach() - 1 if leaf.is_floating_point() or leaf.is_complex() else (leaf + 1) % (leaf.max() + 1)


def flipped(leaf: Tensor) -> Tensor:
    return leaf.detach().flip(0) if leaf.dim() else leaf.detach() + 1


CHANGES: list[Change] = [not_a_number, turned, flipped, torch.zeros_like, lambda leaf: leaf.detach() * 2]


def outcomes(case: Case, leaf: Leaf) -> set[str]:
    """What changes of the leaf's values do to what its module returns: "same", "other", or the call "raised"."""
    before, _ = played(case)
    found = set()
    for change in CHANGES:

        def like(tensor: Tensor, change: Change = change) -> Tensor:
            new = change(tensor)
            return new.requires_grad_() if tensor.requires_grad and not new.requires_grad else new

        try:
            after, _ = played(case, leaf, like)
        except Exception:
            found.add("raised")  # a value that the code, or an operator in it, does not take
        else:
            found.add("same" if same(before.get(leaf[0]), after.get(leaf[0])) else "other")
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case.theme in VISIBLE], ids=lambda case: case.name)
def test_every_leaf_of_every_call_has_its_verdict(case: Case) -> None:
    _, seen = played(case)
    assert seen == set(case.expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_change_of_what_is_never_read_shows(case: Case) -> None:
    wrong = {
        leaf: verdict
        for leaf, verdict in case.expected.items()
        if verdict in {"unused", "dead", "metadata"}
        and (leaf[0] == "" or case.theme in VISIBLE)
        and "other" in outcomes(case, leaf)
    }
    assert wrong == {}


@pytest.mark.parametrize("case", [case for case in CASES if case.theme in VISIBLE], ids=lambda case: case.name)
def test_some_change_of_what_is_used_shows(case: Case) -> None:
    wrong = [
        leaf
        for leaf, verdict in case.expected.items()
        if verdict in {"used", "conditional"}
        and (case.name, *leaf) not in NOT_TO_BE_SEEN
        and outcomes(case, leaf) == {"same"}
    ]
    assert wrong == []
