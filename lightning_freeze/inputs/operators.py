"""What an operator of torch does with each of its operands: reads it, views it, writes to it, or asks its shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SHAPE_OF = {
    "empty_like": 0,
    "zeros_like": 0,
    "ones_like": 0,
    "full_like": 0,
    "rand_like": 0,
    "randn_like": 0,
    "randint_like": 0,
    "new_empty": 0,
    "new_empty_strided": 0,
    "new_zeros": 0,
    "new_ones": 0,
    "new_full": 0,
    "expand_as": 1,
    "view_as": 1,
    "reshape_as": 1,
    "resize_as_": 1,
    "type_as": 1,
}
"""Operators that take one operand for its shape, data type or device alone; the number is that operand's position."""

ASKS = frozenset(
    "size stride numel dim is_same_size _has_same_storage_numel storage_offset is_contiguous device".split()
)
"""Operators without a tensor for a result which ask for metadata only."""

OVERWRITES = frozenset(
    "copy_ zero_ fill_ normal_ uniform_ random_ exponential_ cauchy_ log_normal_ geometric_ bernoulli_ set_".split()
)
"""In-place operators which do not read what they write over."""

STATISTICS = frozenset({"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"})
"""Operators that move running statistics, their fourth and fifth operands, without their schema saying so.

They do so where their sixth, ``training``, is true.
"""


@dataclass(frozen=True)
class Use:
    """What an operator does with its operands.

    Args:
        writes: Positions and keywords of operands that it writes to.
        blind: Those of them that it writes over without reading them.
        shape_only: The operand that it takes for its shape alone, or None.
        views: Its result is a view of its first operand.
        asks: It returns metadata.
        escapes: Its result says something of values that no tensor carries on.
        statistics: It moves running statistics while training.
    """

    writes: tuple[int | str, ...] = ()
    blind: tuple[int | str, ...] = ()
    shape_only: int | None = None
    views: bool = False
    asks: bool = False
    escapes: bool = False
    statistics: bool = False


def use_of(operator: Any) -> Use:
    """What an operator does with its operands, read from its schema.

    Higher-order operators have none: they read everything.

    Example:
        >>> use_of(torch.ops.aten.view.default).views, use_of(torch.ops.aten.add_.Tensor).writes
        (True, (0,))
        >>> use_of(torch.ops.aten.zeros_like.default).shape_only
        0
    """
    schema = getattr(operator, "_schema", None)
    if schema is None:
        return Use()
    space, _, name = schema.name.partition("::")
    writes: list[int | str] = []
    blind: list[int | str] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            key: int | str = argument.name if argument.kwarg_only else position
            writes.append(key)
            if argument.kwarg_only or (space == "aten" and name in OVERWRITES):
                blind.append(key)
    views = not writes and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    tensors = any("Tensor" in str(result.type) for result in schema.returns)
    shape_only = SHAPE_OF.get(name) if space == "aten" else None
    if space == "aten" and name == "to" and schema.overload_name == "other":
        shape_only = 1
    asks = not tensors and not writes and (name in ASKS or name.startswith("sym_"))
    return Use(
        writes=tuple(writes),
        blind=tuple(blind),
        shape_only=shape_only,
        views=views,
        asks=asks,
        statistics=space == "aten" and name in STATISTICS,
        escapes="c10d" in space or _sized_by_values(operator, name) or (not tensors and not writes and not asks),
    )


def _sized_by_values(operator: Any, name: str) -> bool:
    """Whether a result's shape depends on values, so that they are known through shapes alone.

    Indexing is tagged so, too, for boolean masks; that is read and carried on like any other.
    """
    return torch.Tag.dynamic_output_shape in operator.tags and name != "index"
