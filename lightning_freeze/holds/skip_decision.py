"""Whether the backward work of what is frozen can be skipped, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.run_context import Circumstances, compiled, is_fsdp1

SkipBackward = bool | Literal["auto"]


SKIP_BACKWARD: tuple[SkipBackward, ...] = ("auto", True, False)


_SPARE_GRAPHS = 2  # for validation and its last, smaller batch


_SETS = 1000


@dataclass(frozen=True)
class Choice:
    """Whether the backward work of frozen groups is left out.

    Args:
        skips: Whether it is.
        why: In a few words, why.
        reducer: The DistributedDataParallel whose reducer waits to hear of every parameter, frozen ones included.
    """

    skips: bool
    why: str
    reducer: DistributedDataParallel | None = None


def choose(
    asked: SkipBackward, around: Circumstances, sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> Choice:
    """Whether to leave out the backward work of what is frozen.

    Args:
        asked: What the user asked for.
        around: What is known of the run.
        sets: The sets of groups that the schedule comes to train; asked for where code is compiled alone.
        groups: Identity of a parameter to its group, of those that are frozen at times.

    Raises:
        UnsupportedError: It was asked for where it is not safe.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> choose("auto", Circumstances(model, model), [], {})
        Choice(skips=True, why='there is only one process', reducer=None)
    """
    if asked is False:
        return Choice(False, "as asked by `skip_backward: false`")
    unsafe = _unsafe(around) or _recompiles(around, sets, groups)
    if asked == "auto" and around.by_hand and unsafe is None:
        return Choice(
            False,
            "the model steps its optimizers itself, so what trains can change within a batch (`skip_backward: true` "
            "skips all the same)",
        )
    if unsafe is None:
        plain = isinstance(around.wrapper, DistributedDataParallel) and not around.wrapper.find_unused_parameters
        return Choice(True, _where(around), around.wrapper if plain else None)  # type: ignore[arg-type]
    why, mend = unsafe
    if asked == "auto":
        return Choice(False, f"{why}; {mend}")
    raise UnsupportedError(
        f"`skip_backward` is true, which is not safe here: {why}. Set `skip_backward: auto`, which then only empties the "
        f"gradients; or, to skip: {mend}."
    )


def _where(around: Circumstances) -> str:
    if isinstance(around.wrapper, DistributedDataParallel):
        if around.wrapper.find_unused_parameters:
            return "DDP looks for unused parameters itself"
        return "DDP is told gradients of zero for what is frozen"
    return (
        "there is only one process"
        if around.world == 1
        else "the parameters are sharded, and each process derives by its own"
    )


def _unsafe(around: Circumstances) -> tuple[str, str] | None:
    """Why skipping would go wrong with these processes, and the mend."""
    ddp = around.wrapper
    if around.idle is not None:
        return (
            f"under a GradScaler, torch fails for an optimizer without any gradient, and {around.idle}",
            "use precision 'bf16-mixed', which needs no scaler",
        )
    if around.toggles is not None:
        return (
            f"the code of {around.toggles} calls `toggle_optimizer`, which turns `requires_grad` on and off, and puts back "
            "what it found before a step, whatever the schedule says after it",
            "leave the toggling away, which is then done for you",
        )
    if isinstance(ddp, DistributedDataParallel):
        if ddp.static_graph:
            return (
                "DDP with static_graph=True assumes that every step uses the same parameters",
                "build DDP without static_graph",
            )
        if around.by_hand and not ddp.find_unused_parameters:
            return (
                "plain DDP waits in every backward for every parameter, and a model that steps its optimizers itself makes "
                "several",
                "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')",
            )
        if not ddp.find_unused_parameters and any(map(_has_hooks, around.module.parameters())):
            return (
                "plain DDP is told of frozen parameters by gradients of zero, and a parameter has a hook of its own, which "
                "would take those for gradients",
                "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')",
            )
        if around.compiled or compiled(around.module) or compiled(ddp):
            return "the model is compiled under DDP, which cuts its graph by buckets", "compile it without DDP"
        return None
    if any(map(is_fsdp1, ddp.modules())):
        return (
            "FSDP1 keeps several parameters in one flat one, which trains as a whole",
            "use FSDP2, through ModelParallelStrategy",
        )
    if around.world > 1 and not any(hasattr(p, "to_local") for p in around.module.parameters()):
        if not around.strategy:
            return (
                f"it is not known what shares the run among {around.world} processes, nor whether it waits for gradients of "
                "what is frozen",
                "hand over what is called in the model's place, such as DistributedDataParallel(model)",
            )
        return (
            f"{around.strategy} shares the run among {around.world} processes, and it is not known whether it waits for "
            "gradients of what is frozen",
            "use strategy='ddp', or FSDP2 through ModelParallelStrategy",
        )
    return None


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _recompiles(
    around: Circumstances, sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> tuple[str, str] | None:
    """Why compiled code would be compiled too often, and the mend.

    A graph holds for one pattern of ``requires_grad`` over the parameters of a compiled module, and over its inputs where
    it is not the whole model. Modules of one class share their graphs.
    """
    regions = {"": around.module} if around.compiled else compiled(around.module)
    if not regions:
        return None
    limit: int = torch._dynamo.config.recompile_limit
    held = {name: [groups.get(id(p)) for p in region.parameters()] for name, region in regions.items()}
    patterns: dict[object, set[tuple[bool, ...]]] = {}
    for trained in islice(sets, _SETS):
        for name, owners in held.items():
            seen = patterns.setdefault(_code(regions[name]), set())
            seen.add(tuple(owner is None or owner in trained for owner in owners))
            graphs = len(seen) * (1 if name == "" else 2) * (2 if around.uneven else 1) + _SPARE_GRAPHS
            if graphs > limit:
                what = f"{name!r}" if name else "the model"
                return (
                    f"{what} is compiled, each set of trainable groups asks for a graph of its own"
                    + (" for each size of a batch" if around.uneven else "")
                    + f", and with those for validation torch would compile at least {graphs} where "
                    f"torch._dynamo.config.recompile_limit is {limit}, after which it runs uncompiled",
                    "raise that limit, or compile the blocks one by one"
                    + (", or let all batches be of one size (`drop_last=True`)" if around.uneven else ""),
                )
    return None


def _code(region: nn.Module) -> object:
    inner = getattr(region, "_orig_mod", region)
    return type(inner).forward
