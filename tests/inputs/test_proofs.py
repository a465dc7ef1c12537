"""What the code of a ``forward`` proves: a row for each way of reaching a name without loading it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.inputs.proofs import ignores, loads


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs)


class Forwards:
    def never(self, x: Any, mask: Any = None) -> Any:
        return x + 1

    def loaded(self, x: Any, mask: Any = None) -> Any:
        return x + mask

    def only_asked_for_none(self, x: Any, mask: Any = None) -> Any:
        return x if mask is None else x + 1

    def deleted(self, x: Any, mask: Any = None) -> Any:
        del mask
        return x

    def written_over_and_loaded(self, x: Any, mask: Any = None) -> Any:
        mask = x
        return mask

    def in_a_lambda(self, x: Any, mask: Any = None) -> Any:
        return (lambda: mask)() or x

    def in_a_comprehension(self, x: Any, mask: Any = None) -> Any:
        return [mask for _ in x]

    def in_a_nested_function(self, x: Any, mask: Any = None) -> Any:
        def inner() -> Any:
            nonlocal mask
            mask = x

        return inner

    def by_locals(self, x: Any, mask: Any = None) -> Any:
        return locals()

    def by_vars(self, x: Any, mask: Any = None) -> Any:
        return vars()

    def by_eval(self, x: Any, mask: Any = None) -> Any:
        return eval("mask")

    def by_exec(self, x: Any, mask: Any = None) -> Any:
        exec("mask")
        return x

    def by_getframe(self, x: Any, mask: Any = None) -> Any:
        return sys._getframe().f_locals

    def by_currentframe(self, x: Any, mask: Any = None) -> Any:
        return inspect.currentframe()

    def by_stack(self, x: Any, mask: Any = None) -> Any:
        return inspect.stack()[0].frame.f_locals["mask"]

    def keyword_only(self, x: Any, *, mask: Any = None) -> Any:
        return x

    def starred(self, x: Any, *mask: Any) -> Any:
        return x

    def double_starred(self, x: Any, **mask: Any) -> Any:
        return x

    def starred_and_used(self, x: Any, *mask: Any) -> Any:
        return self.never(x, *mask)

    def no_such_parameter(self, x: Any) -> Any:
        mask = x
        del mask

    def default_of_a_nested_function(self, x: Any, mask: Any = None) -> Any:
        def inner(kept: Any = mask) -> Any:
            return kept

        return inner

    @wrapped
    def decorated(self, x: Any, mask: Any = None) -> Any:
        return x

    @renamed
    def decorated_without_a_name(self, x: Any, mask: Any = None) -> Any:
        return x

    def generator(self, x: Any, mask: Any = None) -> Any:
        yield x

    async def awaited(self, x: Any, mask: Any = None) -> Any:
        return x


NEVER = {"never", "deleted", "keyword_only", "starred", "double_starred", "generator", "awaited"}


@pytest.mark.parametrize("name", [name for name in vars(Forwards) if not name.startswith("_")])
def test_only_a_name_that_is_never_loaded_is_proven(name: str) -> None:
    assert (loads(getattr(Forwards(), name), "mask") is False) is (name in NEVER)
    assert (loads(vars(Forwards)[name], "mask") is False) is (name in NEVER)


@pytest.mark.parametrize("forward", [functools.partial(Forwards.never, mask=None), len, Forwards, SimpleNamespace()])
def test_what_is_no_plain_function_proves_nothing(forward: Any) -> None:
    assert loads(forward, "mask") is None


@pytest.mark.parametrize(
    "name", ["by_locals", "by_exec", "by_getframe", "decorated", "decorated_without_a_name", "no_such_parameter"]
)
def test_what_hides_which_names_it_loads_proves_neither(name: str) -> None:
    assert loads(getattr(Forwards(), name), "mask") is None


@pytest.mark.parametrize(
    "name", ["only_asked_for_none", "in_a_lambda", "in_a_comprehension", "default_of_a_nested_function"]
)
def test_a_name_that_is_loaded_under_a_condition_is_loaded(name: str) -> None:
    assert loads(getattr(Forwards(), name), "mask") is True


class Block(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + 1


class Uses(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + mask


class Replaced(Uses):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda x, mask: x  # type: ignore[method-assign]


def scripted(module: nn.Module) -> nn.Module:
    return torch.jit.trace(module, (torch.ones(2), torch.ones(2)))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Block, True),
        (Uses, False),
        (Replaced, True),
        (lambda: scripted(Block()), True),
        (lambda: scripted(Uses()), False),
    ],
    ids=["plain", "uses it", "forward replaced on the object", "traced", "traced, uses it"],
)
def test_a_module_ignores_an_input(make: Callable[[], nn.Module], expected: bool) -> None:
    assert ignores(make(), "mask") is expected
    assert ignores(make(), "absent") is False
    assert ignores(make(), "x") is False
