"""The tensors of a call's arguments: found under the path that one would write, and replaced one at a time."""

from __future__ import annotations

import functools
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_freeze.inputs.leaves import DEPTH, Signature, leaves_of, replaced, signature_of, tensors_in

Pair = namedtuple("Pair", "a b")


@dataclass
class Bag:
    a: Any
    b: Any = None


@dataclass(frozen=True)
class Frozen:
    a: Any


@dataclass(slots=True)
class Slots:
    a: Any


@dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """After Hugging Face's ModelOutput: a dataclass that is a mapping of its fields that are set."""

    logits: Any = None
    loss: Any = None

    def __post_init__(self) -> None:
        for key in ("logits", "loss"):
            if getattr(self, key) is not None:
                self[key] = getattr(self, key)


class Batch(dict):  # type: ignore[type-arg]
    """A dictionary whose keys are attributes, too, as many data sets have it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Row(list):  # type: ignore[type-arg]
    pass


def t(value: float = 1.0) -> Tensor:
    return torch.full((2,), value)


class Forwards:
    """Signatures of every kind; each method is a ``forward``."""

    def plain(self, x: Any, mask: Any = None) -> None: ...
    def stars(self, x: Any, *args: Any, mask: Any = None, **kw: Any) -> None: ...
    def only(self, x: Any, /, **kw: Any) -> None: ...
    def batch(self, batch: Any) -> None: ...
    def bare(*args: Any) -> None: ...  # type: ignore[misc]

    @staticmethod
    def static(x: Any, y: Any = None) -> None: ...

    @classmethod
    def shared(cls, x: Any) -> None: ...


FORWARD = Forwards()

# name: (forward, args, kwargs, [(path, parameter)])
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[tuple[str, str]]]] = {
    "by position": (FORWARD.plain, (t(), t()), {}, [("x", "x"), ("mask", "mask")]),
    "by keyword": (FORWARD.plain, (t(),), {"mask": t()}, [("x", "x"), ("mask", "mask")]),
    "a default that is not passed": (FORWARD.plain, (t(),), {}, [("x", "x")]),
    "None": (FORWARD.plain, (t(), None), {}, [("x", "x")]),
    "plain values": (FORWARD.plain, (1, "two"), {}, []),
    "an unknown object": (FORWARD.plain, (SimpleNamespace(a=t()), {t()}), {}, []),
    "a class that is a dataclass": (FORWARD.plain, (t(), Bag), {}, [("x", "x")]),
    "*args": (FORWARD.stars, (t(), t(), None, t()), {}, [("x", "x"), ("args[0]", "args"), ("args[2]", "args")]),
    "**kw": (FORWARD.stars, (t(),), {"mask": t(), "m": t()}, [("x", "x"), ("mask", "mask"), ("kw['m']", "kw")]),
    "a container in **kw": (FORWARD.stars, (t(),), {"m": [t()]}, [("x", "x"), ("kw['m'][0]", "kw")]),
    "a keyword like a position": (FORWARD.only, (t(),), {"x": t()}, [("x", "x"), ("kw['x']", "kw")]),
    "a static method": (FORWARD.static, (t(), t()), {}, [("x", "x"), ("y", "y")]),
    "a class method": (FORWARD.shared, (t(),), {}, [("x", "x")]),
    "bare *args, the first of which is self": (FORWARD.bare, (t(),), {}, [("args[1]", "args")]),
    "dict": (FORWARD.batch, ({"a": t(), 3: t(), (1, 2): t()},), {}, [(f"batch[{k}]", "batch") for k in ("'a'", "3", "(1, 2)")]),
    "list and tuple": (FORWARD.batch, ([t(), (t(), 5)],), {}, [("batch[0]", "batch"), ("batch[1][0]", "batch")]),
    "named tuple": (FORWARD.batch, (Pair(t(), [t()]),), {}, [("batch.a", "batch"), ("batch.b[0]", "batch")]),
    "dataclass": (FORWARD.batch, (Bag(t(), {"k": t()}),), {}, [("batch.a", "batch"), ("batch.b['k']", "batch")]),
    "frozen dataclass": (FORWARD.batch, (Frozen(t()),), {}, [("batch.a", "batch")]),
    "dataclass with slots": (FORWARD.batch, (Slots(t()),), {}, [("batch.a", "batch")]),
    "model output": (FORWARD.batch, (Output(logits=t()),), {}, [("batch['logits']", "batch")]),
    "a mapping that is no dict": (FORWARD.batch, (UserDict({"a": t()}),), {}, [("batch['a']", "batch")]),
    "a parameter": (FORWARD.batch, (nn.Parameter(t()),), {}, [("batch", "batch")]),
    "packed sequence": (FORWARD.batch, (pack_sequence([t()]),), {}, [("batch.data", "batch"), ("batch.batch_sizes", "batch")]),
    "no signature": (max, (t(), t()), {"key": t()}, [("args[0]", "args"), ("args[1]", "args"), ("kwargs['key']", "kwargs")]),
    "a partial": (functools.partial(FORWARD.plain, mask=None), (t(),), {}, [("x", "x")]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_path_and_parameter_of_every_leaf(name: str) -> None:
    forward, args, kwargs, expected = CALLS[name]
    assert [(leaf.argument, leaf.name) for leaf in leaves_of(signature_of(forward), args, kwargs)] == expected


def test_the_paths_are_python_that_finds_the_tensor() -> None:
    batch = {"a": [t(1), Pair(t(2), Bag(t(3)))], "o": Output(loss=t(4))}
    for leaf in leaves_of(signature_of(FORWARD.batch), (batch,), {}):
        assert eval(leaf.argument, {"batch": batch}) is leaf.tensor


def test_a_signature_is_kept_and_one_that_cannot_be_kept_still_works() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, x: Any) -> None: ...

    assert signature_of(FORWARD.plain) is signature_of(Forwards().plain)
    assert signature_of(Unhashable()) == Signature(("x",), frozenset({"x"}), None, None)


def test_a_container_that_holds_itself_ends() -> None:
    loop: list[Any] = [t()]
    loop.append(loop)
    assert [leaf.argument for leaf in leaves_of(signature_of(FORWARD.batch), (loop,), {})] == ["batch[0]"]
    assert len(list(tensors_in(loop))) == 1


def test_looking_does_not_touch_what_is_looked_at() -> None:
    batch: defaultdict[str, Any] = defaultdict(list, a=t())
    leaves_of(signature_of(FORWARD.batch), (batch,), {})
    assert list(batch) == ["a"]


def test_the_depth_has_an_end() -> None:
    def nested(depth: int) -> Any:
        return t() if depth == 0 else [nested(depth - 1)]

    assert len(leaves_of(signature_of(FORWARD.batch), (nested(DEPTH),), {})) == 1
    assert leaves_of(signature_of(FORWARD.batch), (nested(DEPTH + 1),), {}) == []


# --- replacing

CONTAINERS: dict[str, Any] = {
    "alone": lambda: t(1),
    "dict": lambda: {"a": t(1), "b": t(2)},
    "list in tuple": lambda: ([t(1), t(2)], t(3)),
    "named tuple": lambda: Pair(t(1), t(2)),
    "packed sequence": lambda: pack_sequence([t(1), t(2)]),
    "dataclass": lambda: Bag(t(1), t(2)),
    "frozen dataclass": lambda: Frozen([t(1)]),
    "ordered": lambda: OrderedDict(a=t(1), b=t(2)),
    "default dict": lambda: defaultdict(list, a=t(1)),
    "user dict": lambda: UserDict({"a": t(1)}),
    "deep": lambda: {"a": [Pair(t(1), Bag(t(2), {"k": t(3)}))]},
    "dict with attributes": lambda: Batch(a=t(1), b=t(2)),
    "list of a class of its own": lambda: Row([t(1)]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_one_leaf_is_replaced_and_everything_else_stays(name: str) -> None:
    value, signature = CONTAINERS[name](), signature_of(FORWARD.batch)
    before = leaves_of(signature, (value,), {})
    assert before
    for changed in before:
        new = torch.zeros_like(changed.tensor)
        for args, kwargs in (((value,), {}), ((), {"batch": value})):
            (leaf,) = [one for one in leaves_of(signature, args, kwargs) if one.argument == changed.argument]
            args, kwargs = replaced(args, kwargs, [(leaf, new)])
            held = (*args, *kwargs.values())[0]
            assert type(held) is type(value) or isinstance(value, Tensor)
            after = leaves_of(signature, args, kwargs)
            assert [one.argument for one in after] == [one.argument for one in before]
            for one, was in zip(after, before, strict=True):
                assert one.tensor is (new if one.argument == changed.argument else was.tensor)
    assert all(a.tensor is b.tensor for a, b in zip(leaves_of(signature, (value,), {}), before, strict=True))


def test_the_same_tensor_in_two_places_is_replaced_in_one() -> None:
    one, new = t(), t(0)
    leaves = leaves_of(signature_of(FORWARD.plain), (one, one), {})
    args, _ = replaced((one, one), {}, [(leaves[1], new)])
    assert args[0] is one
    assert args[1] is new


def test_several_are_replaced_together() -> None:
    batch = {"a": t(1), "b": [t(2), t(3)]}
    leaves = leaves_of(signature_of(FORWARD.batch), (batch,), {})
    (made,), _ = replaced((batch,), {}, [(leaf, leaf.tensor * 10) for leaf in leaves])
    assert [float(x[0]) for x in (made["a"], *made["b"])] == [10, 20, 30]


def test_what_cannot_be_rebuilt_says_so() -> None:
    value = Slots(t())
    (leaf,) = leaves_of(signature_of(FORWARD.batch), (value,), {})
    with pytest.raises(TypeError):
        replaced((value,), {}, [(leaf, t(0))])


# --- what a result leads to


class Holder:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


RESULTS: dict[str, tuple[Any, int]] = {
    "tensor": (t(), 1),
    "nothing": (None, 0),
    "containers": ({"a": [t(), (t(), 3)], "b": {t()}}, 3),
    "attributes": (SimpleNamespace(a=t(), b=SimpleNamespace(c=t())), 2),
    "slots": (Holder([t(), t()]), 2),
    "model output": (Output(logits=t()), 2),  # by key and by attribute: the same tensor
    "a mapping that is no dict": (UserDict(a=t()), 1),  # by its own dictionary, without asking it
    "a module": (nn.Linear(1, 1), 0),
    "a class": (Bag, 0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_tensors_that_a_result_leads_to(name: str) -> None:
    value, count = RESULTS[name]
    assert len(list(tensors_in(value))) == count


def test_results_are_looked_into_so_deep_and_no_deeper() -> None:
    assert len(list(tensors_in([[t()]], depth=2))) == 1
    assert list(tensors_in([[t()]], depth=1)) == []
