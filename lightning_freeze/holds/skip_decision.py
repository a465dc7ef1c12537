"""Whether the backward work of what is frozen can be skipped, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.run_context import RunContext, compiled, is_fsdp1

SkipBackward = bool | Literal["auto"]
SKIP_BACKWARD: tuple[SkipBackward, ...] = ("auto", True, False)

_FIND_UNUSED = "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')"
_SPARE_GRAPHS = 2  # for validation and its last, smaller batch
_SETS = 1000  # of trainable groups that are looked at

Unsafe = tuple[str, str]
"""Why skipping would go wrong, and what to change so that it does not."""


@dataclass(frozen=True)
class Decision:
    """Whether the backward work of frozen groups is skipped.

    Args:
        skips: Whether it is.
        why: In a few words, why.
        reducer: The DistributedDataParallel whose reducer waits for every parameter, frozen ones included.
    """

    skips: bool
    why: str
    reducer: DistributedDataParallel | None = None


def choose(mode: SkipBackward, run: RunContext, sets: Iterable[frozenset[str]], groups: Mapping[int, str]) -> Decision:
    """Decide whether to skip the backward work of what is frozen.

    Args:
        sets: The trainable sets of the schedule; only read where code is compiled.
        groups: Identity of a parameter to its group, of those that are frozen at times.

    Raises:
        UnsupportedError: The mode is True where that is not safe.
    """
    if mode is False:
        return Decision(False, "as asked by `skip_backward: false`")
    why, fix = next(chain(_unsafe(run), _recompiles(run, sets, groups)), ("", ""))
    if why and mode == "auto":
        return Decision(False, f"{why}; {fix}")
    if why:
        raise UnsupportedError(
            f"`skip_backward` is true, which is not safe here: {why}. Set `skip_backward: auto`, which then only sets the "
            f"gradients to None; or, to skip: {fix}."
        )
    if mode == "auto" and run.manual_optimization:
        return Decision(
            False,
            "the model steps its optimizers itself, so what trains can change within a batch (`skip_backward: true` skips "
            "anyway)",
        )
    if run.plain_ddp:
        return Decision(True, "DDP is sent gradients of zero for what is frozen", run.plain_ddp)
    if run.ddp:
        return Decision(True, "DDP looks for unused parameters itself")
    return Decision(True, "there is only one process" if run.world == 1 else "the parameters are sharded")


def _unsafe(run: RunContext) -> Iterator[Unsafe]:
    if run.fully_frozen is not None:
        yield (
            f"under a GradScaler, torch fails for an optimizer without any gradient, and {run.fully_frozen}",
            "use precision 'bf16-mixed', which needs no scaler",
        )
    if run.toggles is not None:
        yield (
            f"{run.toggles} calls `toggle_optimizer`, which turns `requires_grad` on and off, and restores what it found "
            "before a step, whatever the schedule decides after it",
            "remove the toggling, which is then done for you",
        )
    if run.ddp is not None:
        yield from _unsafe_under_ddp(run, run.ddp)
        return
    if any(map(is_fsdp1, run.wrapper.modules())):
        yield (
            "FSDP1 keeps several parameters in one flat one, which trains as a whole",
            "use FSDP2, through ModelParallelStrategy",
        )
    if run.world > 1 and not any(hasattr(p, "to_local") for p in run.module.parameters()):
        wrapper = "pass what is called in the model's place, such as DistributedDataParallel(model)"
        yield (
            f"{run.strategy or 'something unknown'} distributes the run over {run.world} processes, and may wait for gradients of "
            "what is frozen",
            "use strategy='ddp', or FSDP2 through ModelParallelStrategy" if run.strategy else wrapper,
        )


def _unsafe_under_ddp(run: RunContext, ddp: DistributedDataParallel) -> Iterator[Unsafe]:
    if ddp.static_graph:
        yield (
            "DDP with static_graph=True assumes that every step uses the same parameters",
            "build DDP without static_graph",
        )
    if run.plain_ddp and run.manual_optimization:
        yield (
            "plain DDP waits in every backward for every parameter, and a model that steps its optimizers itself makes "
            "several",
            _FIND_UNUSED,
        )
    if run.plain_ddp and any(map(_has_hooks, run.module.parameters())):
        yield (
            "plain DDP is sent gradients of zero for frozen parameters, and a parameter has a hook of its own, which would "
            "take those for gradients",
            _FIND_UNUSED,
        )
    if run.compiled or compiled(run.module) or compiled(ddp):
        yield "the model is compiled under DDP, which cuts its graph by buckets", "compile it without DDP"


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _recompiles(run: RunContext, sets: Iterable[frozenset[str]], groups: Mapping[int, str]) -> Iterator[Unsafe]:
    regions = {"": run.module} if run.compiled else compiled(run.module)
    limit: int = torch._dynamo.config.recompile_limit
    for name, patterns in _patterns(regions, sets, groups) if regions else ():
        graphs = patterns * (2 if run.variable_batch_size else 1) + _SPARE_GRAPHS
        if graphs > limit:
            each = " for each batch size" if run.variable_batch_size else ""
            same_size = ", or let all batches have one size (`drop_last=True`)" if run.variable_batch_size else ""
            yield (
                f"{repr(name) if name else 'the model'} is compiled, each set of trainable groups needs a graph of its own"
                f"{each}, and with those for validation torch would compile at least {graphs} where "
                f"torch._dynamo.config.recompile_limit is {limit}, after which it runs uncompiled",
                f"raise that limit, or compile the blocks one by one{same_size}",
            )


def _patterns(
    regions: Mapping[str, nn.Module], sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> Iterator[tuple[str, int]]:
    """For each set and compiled module, how many patterns its graphs hold for so far.

    A graph holds for one pattern of ``requires_grad`` over the parameters of a compiled module, and over its inputs where
    it is not the whole model. Modules of one class share their graphs.
    """
    owners = {name: [groups.get(id(p)) for p in region.parameters()] for name, region in regions.items()}
    seen: defaultdict[object, set[tuple[bool, ...]]] = defaultdict(set)
    for trained in islice(sets, _SETS):
        for name, region in regions.items():
            inner = getattr(region, "_orig_mod", region)
            patterns = seen[type(inner).forward]
            patterns.add(tuple(owner is None or owner in trained for owner in owners[name]))
            yield name, len(patterns) * (2 if name else 1)
