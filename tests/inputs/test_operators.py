"""What operators do with their operands: tables, and torch itself as the oracle for whole families of operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_freeze.inputs.operators import METADATA, OVERWRITES, SHAPE_OF, STATISTICS, Use, use_of

aten = torch.ops.aten

TABLE: list[tuple[Any, Use]] = [
    (aten.add.Tensor, Use()),
    (aten.mm.default, Use()),
    (aten.clone.default, Use()),
    (aten.view.default, Use(views=True)),
    (aten.transpose.int, Use(views=True)),
    (aten.slice.Tensor, Use(views=True)),
    (aten.detach.default, Use(views=True)),
    (aten.split.Tensor, Use(views=True)),
    (aten.unbind.int, Use(views=True)),
    (aten.add_.Tensor, Use(writes=(0,))),
    (aten.index_put_.default, Use(writes=(0,))),
    (aten.copy_.default, Use(writes=(0,), blind=(0,))),
    (aten.zero_.default, Use(writes=(0,), blind=(0,))),
    (aten.bernoulli_.float, Use(writes=(0,), blind=(0,))),
    (aten.add.out, Use(writes=("out",), blind=("out",))),
    (aten._foreach_add_.List, Use(writes=(0,))),
    (aten.zeros_like.default, Use(shape_only=(0,))),
    (aten.new_full.default, Use(shape_only=(0,))),
    (aten.expand_as.default, Use(shape_only=(1,), views=True)),
    (aten.type_as.default, Use(shape_only=(1,))),
    (aten.to.other, Use(shape_only=(1,), views=True)),
    (aten.to.dtype, Use(views=True)),
    (aten.size.int, Use(shape_only=(0, 1))),
    (aten.sym_size.int, Use(shape_only=(0, 1))),
    (aten.is_same_size.default, Use(shape_only=(0, 1))),
    (aten._local_scalar_dense.default, Use(escapes=True)),
    (aten.equal.default, Use(escapes=True)),
    (aten.is_nonzero.default, Use(escapes=True)),
    (aten.nonzero.default, Use(escapes=True)),
    (aten.masked_select.default, Use(escapes=True)),
    (aten.native_batch_norm.default, Use(statistics=True)),
    (torch.ops.higher_order.cond, Use()),
]


@pytest.mark.parametrize(("operator", "expected"), TABLE, ids=lambda value: str(value).replace("Use", "")[:40])
def test_what_it_does(operator: Any, expected: Use) -> None:
    assert use_of(operator) == expected


def operators() -> list[Any]:
    """Every overload of every operator of torch's own that is loaded."""
    found = []
    for name in dir(aten):
        packet = getattr(aten, name)
        if hasattr(packet, "overloads"):
            found += [getattr(packet, overload) for overload in packet.overloads()]
    return found


ALL = operators()


def test_each_of_all_operators_can_be_read() -> None:
    assert len(ALL) > 2000
    assert all(isinstance(use_of(operator), Use) for operator in ALL)


def test_results_that_depend_on_values_by_torch_s_own_account_escape() -> None:
    """``data_dependent_output``: a plain value made of values, as ``item``, ``equal``, ``allclose``."""
    tagged = [op for op in ALL if torch.Tag.data_dependent_output in op.tags and op.is_view is False]
    assert len(tagged) >= 3
    missed = {str(op) for op in tagged if not use_of(op).escapes and not use_of(op).writes}
    # these give back tensors alone, which carry the labels on
    assert missed - {str(op) for op in tagged if all("Tensor" in str(r.type) for r in op._schema.returns)} == set()


def test_shapes_that_depend_on_values_by_torch_s_own_account_escape() -> None:
    tagged = {
        op._schema.name.partition("::")[2]: use_of(op).escapes
        for op in ALL
        if torch.Tag.dynamic_output_shape in op.tags and not op._schema.is_mutable and "copy" not in str(op)
    }
    assert {"nonzero", "masked_select", "bincount", "repeat_interleave"} <= set(tagged)
    # by whole numbers, as it is mostly used, `index` has the shape of its indices; sparse tensors are not followed
    assert {name for name, escapes in tagged.items() if not escapes and "sparse" not in name} == {"index"}


# --- the hand-written tables


@pytest.mark.parametrize("name", sorted({*SHAPE_OF, *OVERWRITES, *STATISTICS}))
def test_a_name_in_a_table_is_an_operator(name: str) -> None:
    if name in STATISTICS and name != "native_batch_norm":
        return  # of other devices
    assert hasattr(aten, name)


@pytest.mark.parametrize("name", sorted(METADATA))
def test_what_asks_returns_no_tensor(name: str) -> None:
    spaces = [space for space in (aten, torch.ops.prim) if hasattr(space, name)]
    assert spaces
    for space in spaces:
        packet = getattr(space, name)
        for operator in [getattr(packet, overload) for overload in packet.overloads() if "out" not in overload]:
            assert use_of(operator) == Use(shape_only=tuple(range(len(operator._schema.arguments))))


def called(name: str, tensor: Tensor) -> Any:
    """An operator that takes one operand for its shape, with that operand."""
    other = torch.arange(4.0).reshape(2, 2)
    more: dict[str, tuple[Any, ...]] = {
        "full_like": (3.0,),
        "randint_like": (5,),
        "new_empty": ((2,),),
        "new_empty_strided": ((2,), (1,)),
        "new_zeros": ((2,),),
        "new_ones": ((2,),),
        "new_full": ((2,), 3.0),
    }
    torch.manual_seed(0)
    if SHAPE_OF[name] == (1,):
        return getattr(aten, name)(other.clone(), tensor)
    return getattr(aten, name)(tensor, *more.get(name, ()))


@pytest.mark.parametrize("name", sorted(set(SHAPE_OF) - {"broadcast_tensors"}))
def test_an_operand_taken_for_its_shape_does_not_matter_by_value(name: str) -> None:
    one, two = called(name, torch.full((2, 2), 7.0)), called(name, torch.full((2, 2), -1.0))
    assert one.shape == two.shape
    if "empty" not in name:
        assert torch.equal(one, two)


def test_broadcast_tensors_takes_no_operand_for_its_shape_alone() -> None:
    assert use_of(aten.broadcast_tensors.default).shape_only == ()


OVERWRITING: dict[str, tuple[Any, ...]] = {
    "copy_": (torch.ones(4),),
    "fill_": (3.0,),
    "random_": (10,),
    "set_": (torch.ones(4),),
    "geometric_": (0.5,),
}


@pytest.mark.parametrize("name", sorted(OVERWRITES - {"eye_"}))
def test_what_is_written_over_blindly_does_not_matter(name: str) -> None:
    made = []
    for value in (1.0, 2.0):
        torch.manual_seed(0)
        made.append(getattr(aten, name)(torch.full((4,), value), *OVERWRITING.get(name, ())))
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("name", ["add_", "mul_", "clamp_"])
def test_the_check_of_blind_writes_can_fail(name: str) -> None:
    made = [getattr(aten, name)(torch.full((4,), value), 1.5) for value in (1.0, 2.0)]
    assert not torch.equal(made[0], made[1]) or name == "clamp_"
    assert use_of(getattr(aten, name).Tensor if name != "clamp_" else aten.clamp_.default).blind == ()


def test_collectives_escape() -> None:
    assert use_of(torch.ops._c10d_functional.all_reduce.default).escapes
