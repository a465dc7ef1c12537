"""Tensors that are made of others: what they hold is found, and the audit follows an input into them and out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils import _pytree as pytree

from lightning_freeze import audit_inputs
from lightning_freeze.inputs.wrappers import within

# ------------------------------------------------------------------------------------------------- kinds of wrappers


class Wrapper(Tensor):
    """Knows its tensor in a way that those that inherit from it choose."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made: Any = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.hold(inner)
        return made

    def hold(self, inner: Tensor) -> None:
        self.inner = inner

    def held(self) -> Tensor:
        return self.inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(lambda v: v.held() if isinstance(v, cls) else v, (args, kwargs or {}))
        return pytree.tree_map(lambda v: cls(v) if isinstance(v, Tensor) else v, func(*args, **kwargs))


class InList(Wrapper):
    def hold(self, inner: Tensor) -> None:
        self.parts = {"of": [inner]}

    def held(self) -> Tensor:
        return self.parts["of"][0]


class InSlot(Wrapper):
    __slots__ = ("never", "slot")

    def hold(self, inner: Tensor) -> None:
        self.slot = inner

    def held(self) -> Tensor:
        return self.slot


class Flattens(Wrapper):
    """Says by torch's protocol alone what it is made of."""

    def hold(self, inner: Tensor) -> None:
        self.held = lambda: inner  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        if name == "hidden":
            return self.held()
        raise AttributeError(name)

    def __tensor_flatten__(self) -> Any:
        return ["hidden"], None


class Opaque(Flattens):
    """Shows nothing."""

    def __tensor_flatten__(self) -> Any:
        raise RuntimeError("not now")


class Subclass(Tensor):
    """The same memory under another class."""


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "attribute": Wrapper,
    "list": InList,
    "slot": InSlot,
    "flatten": Flattens,
    "opaque": Opaque,
    "two": lambda tensor: TwoTensor(tensor, tensor.clone()),
    "within another": lambda tensor: TwoTensor(InList(tensor), InList(tensor.clone())),
    "as_subclass": lambda tensor: tensor.as_subclass(Subclass),
    "make_subclass": lambda tensor: Tensor._make_subclass(Subclass, tensor),  # type: ignore[attr-defined]
    "parameter": lambda tensor: nn.Parameter(tensor, requires_grad=False),
}
SHOWN = [name for name in KINDS if name != "opaque"]


@pytest.mark.parametrize("kind", [Wrapper, InList, InSlot, Flattens])
def test_what_a_wrapper_holds_is_found(kind: Any) -> None:
    inner = torch.ones(2)
    found = within(kind(inner))
    assert found is not None
    assert [part is inner for part in found] == [True]


def test_what_is_held_within_what_is_held_is_found() -> None:
    inner = torch.ones(2)
    outer: Any = InList(InSlot(inner))
    assert [type(part) for part in within(outer) or ()] == [InSlot, Tensor]


def test_a_wrapper_that_holds_itself_ends() -> None:
    made: Any = Wrapper(torch.ones(2))
    made.again = [made]
    assert len(within(made) or ()) == 1


def test_what_shows_nothing_is_told_from_what_holds_nothing() -> None:
    assert within(Opaque(torch.ones(2))) is None
    assert within(torch.ones(2).as_subclass(Subclass)) == []
    assert within(torch.ones(2)) == within(nn.Parameter(torch.ones(2))) == []


# ------------------------------------------------------------------------------------------------- under the audit


class Ignores(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        _ = mask * 2
        return torch.relu(x) + 1


class Calls(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.child(x, mask)


def audited(model: nn.Module, *args: Any, replay: bool = False) -> Any:
    with audit_inputs(model, replay=replay) as audit:
        model(*args)
    assert audit.failure is None, audit.failure
    return audit


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3), torch.randn(2, 3)


def found(audit: Any) -> list[tuple[str, str]]:
    return [(finding.module, finding.argument) for finding in audit.findings]


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_wrappers_that_are_handed_over(kind: str, replay: bool) -> None:
    audit = audited(Calls(Ignores()), *map(KINDS[kind], inputs()), replay=replay)
    assert ("child", "x") not in found(audit)
    if kind in SHOWN:
        assert found(audit) == [("child", "mask")]


@pytest.mark.parametrize("where", ["", "child"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_wraps_an_input(kind: str, where: str) -> None:
    model = Calls(Ignores())
    model.get_submodule(where).register_forward_pre_hook(lambda module, args: tuple(map(KINDS[kind], args)))
    audit = audited(model, *inputs())
    blamed = {key: finding.kind for key, finding in zip(found(audit), audit.findings, strict=True)}
    assert blamed.pop(("", "mask"), "metadata") == "metadata"  # the hook made a wrapper by its shape, for nothing
    assert set(blamed) == {("child", "mask")} or (kind == "opaque" and not blamed)


REPLACED: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": torch.clone,
    "cast": lambda tensor: tensor.to(torch.float64),
    "data": lambda tensor: tensor.data,
    "detach": torch.detach,
    "numpy": lambda tensor: torch.from_numpy(tensor.numpy()),
    "in and out": lambda tensor: InList(tensor).parts["of"][0],
    "computed in and out": lambda tensor: (InList(tensor) * 2).held(),
}


@pytest.mark.parametrize("how", REPLACED)
def test_a_hook_that_replaces_an_input(how: str) -> None:
    model = Calls(Ignores())
    model.child.register_forward_pre_hook(lambda module, args: tuple(map(REPLACED[how], args)))
    audit = audited(model, *inputs())
    # what leaves torch could have gone anywhere
    assert found(audit) == ([] if how == "numpy" else [("child", "mask")])


class Returns(nn.Module):
    """Hands out what it was handed within another, and ignores the mask."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return KINDS[self.kind](x)


@pytest.mark.parametrize("kind", SHOWN)
def test_what_is_returned_within_another_is_passed_through(kind: str) -> None:
    audit = audited(Returns(kind), *inputs())
    assert audit.verdicts["", "x"] in ("passed_through", "used")
    assert found(audit) == [("", "mask")]


class WritesInto(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Any:
        wrapper = InList(torch.zeros(2, 3))
        inner = wrapper.held()
        wrapper.add_(x)
        return inner


def test_what_is_written_into_a_wrapper_is_in_what_it_holds() -> None:
    audit = audited(WritesInto(), *inputs())
    assert audit.verdicts == {("", "x"): "used", ("", "mask"): "unused"}


def test_wrappers_that_share_a_part_are_told_apart() -> None:
    offsets = torch.tensor([0, 1, 3])
    x, mask = (torch.nested.nested_tensor_from_jagged(torch.randn(3, 4), offsets) for _ in range(2))
    assert found(audited(Calls(Ignores()), x, mask)) == [("child", "mask")]


def test_a_wrapper_keeps_its_outputs_bit_for_bit() -> None:
    torch.manual_seed(0)
    args = [KINDS["within another"](tensor) for tensor in inputs()]
    model = Ignores()
    plain = model(*args)
    with audit_inputs(model):
        seen = model(*args)
    assert torch.equal(plain.a.held(), seen.a.held())
    assert torch.equal(plain.b.held(), seen.b.held())
