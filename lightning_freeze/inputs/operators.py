"""What an operator of torch does with each of its operands: reads it, views it, writes to it, or takes its shape alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIRST = (
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like "
    "new_empty new_empty_strided new_zeros new_ones new_full"
).split()
_SECOND = "expand_as view_as reshape_as resize_as_ type_as".split()
SHAPE_OF = {**dict.fromkeys(_FIRST, (0,)), **dict.fromkeys(_SECOND, (1,))}
"""Operators that take one operand for its shape, data type or device alone: its position."""

METADATA = frozenset(
    "size stride numel dim is_same_size _has_same_storage_numel storage_offset is_contiguous device".split()
)
"""Operators that read metadata alone and return no tensor."""

OVERWRITES = frozenset(
    "copy_ zero_ fill_ normal_ uniform_ random_ exponential_ cauchy_ log_normal_ geometric_ bernoulli_ set_".split()
)
"""In-place operators that do not read what they write over."""

STATISTICS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"})
"""Operators that write to running statistics (operands 3 and 4) where operand 5, ``training``, is true: no schema says so."""


@dataclass(frozen=True, slots=True)
class Use:
    """What an operator does with its operands.

    Args:
        writes: Positions and keywords of operands that it writes to.
        blind: Those of them that it writes over without reading them.
        shape_only: Positions of operands that it takes for their shape, data type or device alone.
        views: Its result is a view of its first operand.
        escapes: Its result says something of values that no tensor carries on.
        statistics: It moves running statistics while training.
    """

    writes: tuple[int | str, ...] = ()
    blind: tuple[int | str, ...] = ()
    shape_only: tuple[int, ...] = ()
    views: bool = False
    escapes: bool = False
    statistics: bool = False

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Tensor, bool]]:
        """The tensors that a call of it writes to, each with whether it is written over without being read."""
        operands: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
        places = (*self.writes, 3, 4) if self.statistics and operands.get(5) else self.writes
        for place in places:
            for item in items_of(operands.get(place)):
                if isinstance(item, Tensor):
                    yield item, place in self.blind


def items_of(operand: Any) -> Any:
    """What may be a tensor in an operand: itself, the items of a list, or of a list of lists, as collectives take."""
    if not isinstance(operand, (list, tuple)):
        return (operand,)
    if not operand or isinstance(operand[0], int):  # sizes
        return ()
    return [item for part in operand for item in part] if isinstance(operand[0], (list, tuple)) else operand


@functools.cache
def use_of(operator: Any) -> Use:
    """What an operator does with its operands, by its schema; a higher-order one has none and reads everything.

    Example:
        >>> use_of(torch.ops.aten.view.default).views, use_of(torch.ops.aten.add_.Tensor).writes
        (True, (0,))
    """
    schema = getattr(operator, "_schema", None)
    if schema is None:
        return Use()
    space, _, name = schema.name.partition("::")
    known = schema.name.removeprefix("aten::")  # the tables are of torch's own
    written = _written(schema, known in OVERWRITES)
    if not written and not any("Tensor" in str(result.type) for result in schema.returns):
        if name in METADATA or name.startswith("sym_"):
            return Use(shape_only=tuple(range(len(schema.arguments))))
        return Use(escapes=True)
    return Use(
        writes=tuple(written),
        blind=tuple(place for place, over in written.items() if over),
        shape_only=(1,) if operator == torch.ops.aten.to.other else SHAPE_OF.get(known, ()),
        views=not written and any(map(_is_view, schema.returns)),
        escapes=_hides_values(operator, space, name),
        statistics=known in STATISTICS,
    )


def _written(schema: Any, over: bool) -> dict[int | str, bool]:
    """The places of operands that are written to, each with whether it is written over."""
    return {
        operand.name if operand.kwarg_only else place: operand.kwarg_only or over
        for place, operand in enumerate(schema.arguments)
        if operand.alias_info is not None and operand.alias_info.is_write
    }


def _is_view(result: Any) -> bool:
    return result.alias_info is not None and not result.alias_info.is_write


def _hides_values(operator: Any, space: str, name: str) -> bool:
    """Whether values go to other ranks, or are known through a result's shape alone.

    Indexing is tagged so, too, for boolean masks; that is read and carried on like any other.
    """
    return "c10d" in space or (torch.Tag.dynamic_output_shape in operator.tags and name != "index")
