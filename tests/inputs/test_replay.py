"""Confirmation by running a copy again: what it answers, and that nobody can tell that it ran."""

from __future__ import annotations

import itertools
import logging
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.inputs.leaves import leaves_of, signature_of
from lightning_freeze.inputs.replay import Replay


class Of(nn.Module):
    """A module whose forward is a function of itself, x and mask."""

    def __init__(self, run: Callable[[Any, Any, Any], Any], **held: Any) -> None:
        super().__init__()
        self.run = run
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("sums", torch.zeros(3))
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Any, mask: Any) -> Any:
        return self.run(self, x, mask)


def ask(module: nn.Module, mask: Any, x: Any = None, *, path: str = "mask", writes: bool = False) -> bool | None:
    x = torch.linspace(-1, 1, 12).reshape(4, 3) if x is None else x
    leaves = leaves_of(signature_of(module.forward), (x, mask), {})
    (leaf,) = [leaf for leaf in leaves if leaf.argument == path]
    return Replay(module, (x, mask), {}, writes=writes).unaffected(leaf)


def asks_values(value: Any) -> Callable[[Any, Any, Any], Any]:
    return lambda m, x, mask: x + 1 if bool((mask == value).all()) else x + 2


def number() -> Tensor:
    return torch.linspace(0, 1, 3)


# name: (forward, mask, answer)
ANSWERS: dict[str, tuple[Callable[[Any, Any, Any], Any], Callable[[], Any], bool | None]] = {
    "never used": (lambda m, x, mask: x + 1, number, True),
    "added": (lambda m, x, mask: x + mask, number, False),
    "times nothing": (lambda m, x, mask: x + 0 * mask, number, False),
    "computed and dropped": (lambda m, x, mask: (m.linear(mask), x)[1], number, True),
    "for its shape": (lambda m, x, mask: x * mask.shape[0], number, True),
    "asked in a condition": (asks_values(1.0), lambda: torch.ones(3), False),
    "a condition on whole numbers": (asks_values(2), lambda: torch.full((3,), 2), False),
    "a condition on truth": (asks_values(True), lambda: torch.tensor([True, True]), False),
    "truth unused": (lambda m, x, mask: x, lambda: torch.tensor([True, False]), True),
    "an index": (lambda m, x, mask: x[mask], lambda: torch.tensor([0, 1]), False),
    "an index of one value": (lambda m, x, mask: x[mask], lambda: torch.tensor([3, 3]), False),
    "half precision": (lambda m, x, mask: x + mask, lambda: number().to(torch.bfloat16), False),
    "complex": (lambda m, x, mask: x + mask.abs(), lambda: number() + 1j, False),
    "bytes": (lambda m, x, mask: x + mask, lambda: torch.tensor([0, 255, 7], dtype=torch.uint8), False),
    "no dimensions": (lambda m, x, mask: x * mask, lambda: torch.tensor(2.0), False),
    "no elements": (lambda m, x, mask: x + mask.sum(), lambda: torch.empty(0), None),
    "with dropout": (lambda m, x, mask: nn.functional.dropout(x, 0.5), number, True),
    "with dropout and used": (lambda m, x, mask: nn.functional.dropout(x, 0.5) + mask, number, False),
    "batch statistics of x": (lambda m, x, mask: m.norm(x), number, True),
    "batch statistics of the mask": (lambda m, x, mask: (m.norm(mask.expand(4, 3)), x)[1], number, False),
    "added to a buffer": (lambda m, x, mask: (m.sums.add_(mask), x)[1], number, False),
    "computed and kept": (lambda m, x, mask: setattr(m, "last", mask * 2) or x, number, False),
    "a plain value kept": (lambda m, x, mask: setattr(m, "last", float(mask.sum())) or x, number, False),
    "a plain value returned": (lambda m, x, mask: (x, float(mask.sum())), number, False),
    "a shape that depends on it": (lambda m, x, mask: x[mask > 0.4], lambda: torch.tensor([0.1, 0.9, 0.1, 0.2]), False),
    "in a dictionary": (lambda m, x, mask: {"a": [x], "b": mask * 2}, number, False),
    "not the same twice": (lambda m, x, mask: x + random.SystemRandom().random(), number, None),
    "cannot be run": (lambda m, x, mask: 1 / 0, number, None),
    "needs gradients": (lambda m, x, mask: torch.autograd.grad((m.sums * mask).sum(), mask)[0], lambda: number().requires_grad_(), True),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_whether_poisoning_changes_anything(name: str) -> None:
    run, mask, expected = ANSWERS[name]
    assert ask(Of(run), mask()) is expected


def test_a_leaf_of_a_container_is_poisoned_alone() -> None:
    module = Of(lambda m, x, batch: x + batch["a"][0])
    batch = {"a": [number(), number()], "b": number()}
    assert ask(module, batch, path="mask['a'][0]") is False
    assert ask(module, batch, path="mask['a'][1]") is True
    assert ask(module, batch, path="mask['b']") is True


def test_the_same_tensor_twice_is_poisoned_where_it_stands() -> None:
    module, one = Of(lambda m, x, mask: x + 1), torch.linspace(0, 1, 3)
    assert ask(module, one, one, path="mask") is True
    assert ask(module, one, one, path="x") is False


class Subclass(Tensor):
    pass


@pytest.mark.parametrize(
    "module",
    [
        torch.jit.trace(nn.Linear(3, 3), torch.ones(1, 3)),  # type: ignore[no-untyped-call]
        torch.fx.symbolic_trace(nn.Linear(3, 3)),
    ],
    ids=["scripted", "graph"],
)
def test_what_cannot_be_copied_is_not_known(module: nn.Module) -> None:
    (leaf,) = leaves_of(signature_of(lambda input: input), (torch.ones(1, 3),), {})
    assert Replay(module, (torch.ones(1, 3),), {}, writes=False).unaffected(leaf) is None


def test_a_subclass_of_tensor_is_not_known() -> None:
    assert ask(Of(lambda m, x, mask: x), number().as_subclass(Subclass)) is None


# --- nobody can tell

LOG = logging.getLogger(__name__)


def noisy(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Draws, prints, logs, warns, counts, moves statistics, and writes to what it holds."""
    print("seen")
    LOG.error("seen")
    warnings.warn("seen", stacklevel=1)
    m.calls += 1
    m.seen.append(mask)
    m.sums.add_(1)
    m.norm(x)
    noise = torch.rand(3) + random.random() + float(np.random.rand()) + torch.rand(3, generator=m.generator)
    return nn.functional.dropout(m.linear(x), 0.5) + noise


@pytest.mark.filterwarnings("always:seen")
def test_nothing_of_it_is_seen(capfd: Any, caplog: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    module = Of(noisy, calls=0, seen=[], generator=generator)
    hooked: list[str] = []
    module.register_forward_hook(lambda *_: hooked.append("forward"))
    module.linear.register_forward_pre_hook(lambda *_: hooked.append("before"))
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    python, numbers, drawn, own = random.getstate(), np.random.get_state(), torch.get_rng_state(), generator.get_state()
    mask, x = number().requires_grad_(), torch.ones(4, 3, requires_grad=True)
    assert ask(module, mask, x) is True
    assert random.getstate() == python
    assert str(np.random.get_state()) == str(numbers)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(generator.get_state(), own)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert (module.calls, module.seen, hooked) == (0, [], [])
    assert mask.grad is None
    assert x.grad is None
    assert all(p.grad is None for p in module.parameters())
    assert capfd.readouterr().out == ""
    assert caplog.records == []
    assert torch.equal(mask, number())
    assert logging.root.manager.disable == 0


def test_the_check_that_nothing_is_seen_can_fail(capfd: Any) -> None:
    module = Of(noisy, calls=0, seen=[], generator=torch.Generator().manual_seed(5))
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="seen"):
        module(torch.ones(4, 3), number())
    assert not torch.equal(torch.get_rng_state(), before)
    assert (module.calls, len(module.seen)) == (1, 1)
    assert capfd.readouterr().out == "seen\n"


def test_what_is_printed_to_standard_error_is_not_seen_either(capsys: Any) -> None:
    ask(Of(lambda m, x, mask: print("seen", file=sys.stderr) or x), number())  # type: ignore[func-returns-value]
    assert capsys.readouterr().err == ""


def test_inputs_that_are_written_to_are_copies() -> None:
    module, x, mask = Of(lambda m, x, mask: x.add_(1)), torch.zeros(3), number()
    assert ask(module, mask, x, writes=True) is True
    assert torch.equal(x, torch.zeros(3))


def test_what_is_written_into_another_input_is_a_use() -> None:
    def into(m: Any, x: Tensor, mask: Tensor) -> None:
        x.add_(mask)

    assert ask(Of(into), number(), torch.zeros(3), writes=True) is False


class Random:
    def __init__(self) -> None:
        self.own = random.Random(0)


def advance(held: Any) -> float:
    """Use a mutable thing once, changing it."""
    if isinstance(held, np.random.Generator):
        return float(held.random())
    if isinstance(held, np.ndarray):
        held[0] += 1
    elif isinstance(held, (bytearray, list)):
        held[0] = held[0] + 1
    elif isinstance(held, dict):
        held["n"] = held.get("n", 0) + 1
    elif isinstance(held, Random):
        return held.own.random()
    elif isinstance(held, random.Random):
        return held.random()
    else:
        return float(next(held))
    return 0.0


MUTABLE: dict[str, Callable[[], Any]] = {
    "list": lambda: [0],
    "dict": dict,
    "random.Random": lambda: random.Random(0),
    "an object with a random.Random": Random,
    "numpy generator": lambda: np.random.default_rng(0),
    "numpy array": lambda: np.zeros(2),
    "bytearray": lambda: bytearray(2),
    "counter": lambda: itertools.count(),
    "iterator": lambda: iter(range(1000)),
}


@pytest.mark.parametrize("name", MUTABLE)
def test_what_a_module_holds_is_as_before(name: str) -> None:
    def run(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        return x + advance(m.held)

    touched, alone = Of(run, held=MUTABLE[name]()), Of(run, held=MUTABLE[name]())
    ask(touched, number())
    for module in (touched, alone):
        module(number(), number())
    assert advance(touched.held) == advance(alone.held)
    if not isinstance(touched.held, (random.Random, Random, np.random.Generator)):
        assert str(touched.held) == str(alone.held) or name == "iterator"


CACHE: dict[str, int] = {}


class CountsInCapitals(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        CACHE["calls"] = CACHE.get("calls", 0) + 1
        return x * CACHE["calls"]


class CountsOnTheClass(nn.Module):
    calls = 0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        type(self).calls += 1
        return x * self.calls


class CountsInAMethod(nn.Module):
    def bump(self) -> int:
        SEEN.append(1)
        return len(SEEN)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * self.bump()


SEEN: list[int] = []


@pytest.mark.parametrize("kind", [CountsInCapitals, CountsOnTheClass, CountsInAMethod])
def test_what_outlives_the_module_is_as_before(kind: Any) -> None:
    CACHE.clear()
    SEEN.clear()
    CountsOnTheClass.calls = 0
    module = kind()
    ask(module, number())
    assert torch.equal(module(torch.ones(3), number()), torch.ones(3))


class Tagged(nn.Module):
    """Finds itself on its input."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + (mask.owner is self)


def test_a_module_that_an_input_leads_to_is_the_copy_that_runs() -> None:
    module, x, mask = Tagged(), torch.ones(2), torch.ones(2)
    mask.owner = module  # type: ignore[attr-defined]
    leaf = leaves_of(signature_of(module.forward), (x, mask), {})[1]
    assert Replay(module, (x, mask), {}, writes=False).unaffected(leaf) is True
