"""Reads that no operator tells of: every getter and reader is watched while it is installed, and put back afterwards."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from lightning_freeze.inputs.readers import LIKE, METHODS, PROPERTIES, READERS, Readers


class Listens:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def metadata_read(self, tensor: Tensor) -> None:
        self.heard.append(("metadata_read", id(tensor)))

    def values_read(self, tensor: Tensor) -> None:
        self.heard.append(("values_read", id(tensor)))

    def aliased(self, tensor: Tensor, other: Tensor) -> None:
        self.heard.append(("aliased", id(tensor)))

    def saved(self, ctx: Any, tensors: tuple[Any, ...]) -> None:
        self.heard += [("saved", id(tensor)) for tensor in tensors if isinstance(tensor, Tensor)]

    def failed(self, error: Exception) -> None:
        raise error


@pytest.fixture
def listens() -> Iterator[Listens]:
    watcher = Listens()
    readers = Readers(lambda: watcher)
    readers.install()
    try:
        yield watcher
    finally:
        readers.remove()


def snapshot() -> dict[tuple[str, str], Any]:
    return {
        (owner.__name__, name): value
        for owner in (Tensor, torch, FunctionCtx, nn.Parameter)
        for name, value in vars(owner).items()
    }


ASKED: dict[str, Callable[[Any], Any]] = {
    **{name: operator.attrgetter(name) for name in PROPERTIES},
    **{
        f"{name}()": operator.methodcaller(name)
        for name in METHODS
        if name not in ("new_tensor", "new_zeros", "new_ones", "new_empty", "new_full", "get_device")
    },
    **{f"{name}((2,))": operator.methodcaller(name, (2,)) for name in ("new_zeros", "new_ones", "new_empty")},
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "new_full": lambda x: x.new_full((2,), 1.0),
    "len": len,
    "size of one dimension": lambda x: x.size(0),
    "get_device": lambda x: x.get_device(),
    "shape of a view": lambda x: x.shape[0],
}

LEFT: dict[str, Callable[[Any], Any]] = {
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "numpy.asarray": np.asarray,
    "data_ptr": lambda x: x.data_ptr(),
    "untyped_storage": lambda x: x.untyped_storage(),
    "DLPack": lambda x: np.from_dlpack(x),
    "repr": repr,
    "str": str,
    "format": lambda x: f"{x}",
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("name", ASKED)
def test_metadata_that_is_asked_for_is_heard(name: str, listens: Listens) -> None:
    x = torch.ones(2, 3)
    ASKED[name](x)
    assert ("metadata_read", id(x)) in listens.heard
    assert {what for what, _ in listens.heard} == {"metadata_read"}


@pytest.mark.parametrize("name", LEFT)
def test_values_that_leave_torch_are_heard(name: str, listens: Listens) -> None:
    x = torch.ones(2, 3)
    LEFT[name](x)
    assert ("values_read", id(x)) in listens.heard


@pytest.mark.parametrize("name", LIKE)
def test_what_is_made_like_another_asks_the_other(name: str, listens: Listens) -> None:
    x, like = torch.ones(2), torch.zeros(2)
    getattr(x, name)(like)
    getattr(x, name)(**{"tensor" if name == "to" else "other": like})
    assert listens.heard == [("metadata_read", id(like))] * 2


def test_to_a_type_asks_nobody(listens: Listens) -> None:
    torch.ones(2).to(torch.float64)
    assert listens.heard == []


def test_data_is_an_alias(listens: Listens) -> None:
    x = torch.ones(2)
    assert x.data is not x
    assert ("aliased", id(x)) in listens.heard


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, None, y)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2, None


def test_what_a_custom_function_saves_is_heard(listens: Listens) -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(2)
    Doubles.apply(x, y).sum().backward()  # type: ignore[no-untyped-call]
    assert [what for what, _ in listens.heard].count("saved") == 2
    assert torch.equal(x.grad if x.grad is not None else y, torch.full((2,), 2.0))


def test_what_torch_itself_asks_is_not_the_module_s(listens: Listens) -> None:
    x = torch.ones(2, 3, 4, 4)
    functional.interpolate(x, scale_factor=2.0)
    functional.group_norm(x, 1, torch.ones(3))
    assert ("metadata_read", id(x)) not in listens.heard


def test_everything_is_put_back() -> None:
    before = snapshot()
    readers = Readers(lambda: None)
    readers.install()
    readers.install()  # a second time changes nothing
    assert snapshot() != before
    readers.remove()
    after = snapshot()
    assert after.keys() == before.keys()
    assert [key for key in before if after[key] is not before[key]] == []
    readers.remove()
    assert snapshot().keys() == before.keys()


def test_every_name_of_the_lists_is_wrapped() -> None:
    before = snapshot()
    readers = Readers(lambda: None)
    readers.install()
    try:
        for name in (*PROPERTIES, *METHODS, *LIKE, *READERS, "data"):
            assert vars(Tensor)[name] is not before.get(("Tensor", name)), name
        for name in (
            "numel",
            "is_floating_point",
            "result_type",
        ):  # a compiler's guards and tables know them by identity
            assert vars(torch)[name] is before["torch", name], name
    finally:
        readers.remove()


def said(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (
            value.tolist() if value.numel() < 7 and "empty" not in str(value.dtype) else 0,
            value.dtype,
            value.shape,
        )
    return value.tolist() if isinstance(value, np.ndarray) else value


UNSURE = {"new()", "new_empty((2,))", "data_ptr", "untyped_storage", "pickle", "numpy", "DLPack"}  # memory's own values


@pytest.mark.parametrize("kind", ["tensor", "parameter", "whole numbers", "no watcher"])
@pytest.mark.parametrize("name", [name for name in (*ASKED, *LEFT) if name not in UNSURE])
def test_what_is_read_is_what_would_be_read_without(name: str, kind: str) -> None:
    x: Tensor = torch.arange(6).reshape(2, 3) if kind == "whole numbers" else torch.ones(2, 3)
    x = nn.Parameter(x, requires_grad=False) if kind == "parameter" else x
    read = {**ASKED, **LEFT}[name]
    plainly = said(read(x))
    readers = Readers(lambda: None if kind == "no watcher" else Listens())
    readers.install()
    try:
        watched = read(x)
    finally:
        readers.remove()
    assert said(watched) == plainly


def test_what_can_be_set_can_still_be_set(listens: Listens) -> None:
    x = torch.ones(2)
    x.requires_grad = True
    assert x.requires_grad
    x.data = torch.zeros(3)
    assert x.shape == (3,)
    with pytest.raises(AttributeError):
        x.shape = (2,)  # type: ignore[misc, assignment]


def test_a_subclass_with_a_torch_function_of_its_own_is_asked_as_before(listens: Listens) -> None:
    class Logs(Tensor):
        seen: list[str] = []

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.seen.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.ones(2).as_subclass(Logs)
    assert x.shape == (2,)
    assert x.size() == (2,)
    assert Logs.seen == ["__get__", "size"]
