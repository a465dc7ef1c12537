"""How many graphs compiled code comes to, where each trainable set asks for its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import torch
from torch import nn

from lightning_freeze.holds.run_context import RunContext, compiled
from lightning_freeze.holds.unsafe_skips import Unsafe

_SPARE_GRAPHS = 2  # for validation and its last, smaller batch
_SETS = 1000  # of trainable groups that are looked at


def recompiles(run: RunContext, sets: Iterable[frozenset[str]], groups: Mapping[int, str]) -> Unsafe | None:
    """Why compiled code would be compiled too often."""
    regions = {"": run.module} if run.compiled else compiled(run.module)
    if not regions:
        return None
    limit: int = torch._dynamo.config.recompile_limit
    sizes = 2 if run.variable_batch_size else 1
    for name, patterns in _patterns(regions, sets, groups):
        graphs = patterns * sizes + _SPARE_GRAPHS
        if graphs > limit:
            return Unsafe(
                f"{repr(name) if name else 'the model'} is compiled, each set of trainable groups asks for a graph of its "
                f"own{' for each size of a batch' if run.variable_batch_size else ''}, and with those for validation torch would "
                f"compile at least {graphs} where torch._dynamo.config.recompile_limit is {limit}, after which it runs "
                "uncompiled",
                "raise that limit, or compile the blocks one by one"
                + (", or let all batches be of one size (`drop_last=True`)" if run.variable_batch_size else ""),
            )
    return None


def _patterns(
    regions: Mapping[str, nn.Module], sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> Iterator[tuple[str, int]]:
    """For each compiled module, after each set, how many patterns its graphs were to hold for so far.

    A graph holds for one pattern of ``requires_grad`` over the parameters of a compiled module, and over its inputs where
    it is not the whole model. Modules of one class share their graphs.
    """
    held = [(name, _code(region), [groups.get(id(p)) for p in region.parameters()]) for name, region in regions.items()]
    seen: defaultdict[object, set[tuple[bool, ...]]] = defaultdict(set)
    for trained in islice(sets, _SETS):
        for name, code, owners in held:
            seen[code].add(tuple(owner is None or owner in trained for owner in owners))
            yield name, len(seen[code]) * (2 if name else 1)


def _code(region: nn.Module) -> object:
    inner = getattr(region, "_orig_mod", region)
    return type(inner).forward
