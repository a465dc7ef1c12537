"""Whether the backward work of what is frozen can be skipped, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.run_context import Circumstances, compiled, is_fsdp1

SkipBackward = bool | Literal["auto"]
SKIP_BACKWARD: tuple[SkipBackward, ...] = ("auto", True, False)

_SPARE_GRAPHS = 2  # for validation and its last, smaller batch
_SETS = 1000  # of trainable groups that are looked at


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


class Unsafe(NamedTuple):
    """Why skipping would go wrong in a run.

    Args:
        why: What stands against it.
        fix: What to change, so that it can be skipped.
    """

    why: str
    fix: str


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
    unsafe = next(filter(None, (check(around) for check in UNSAFE)), None) or _recompiles(around, sets, groups)
    if unsafe is not None and asked == "auto":
        return Choice(False, f"{unsafe.why}; {unsafe.fix}")
    if unsafe is not None:
        raise UnsupportedError(
            f"`skip_backward` is true, which is not safe here: {unsafe.why}. Set `skip_backward: auto`, which then only "
            f"empties the gradients; or, to skip: {unsafe.fix}."
        )
    if asked == "auto" and around.by_hand:
        return Choice(
            False,
            "the model steps its optimizers itself, so what trains can change within a batch (`skip_backward: true` "
            "skips all the same)",
        )
    return Choice(True, _where(around), _plain_ddp(around))


def _where(around: Circumstances) -> str:
    if _plain_ddp(around):
        return "DDP is told gradients of zero for what is frozen"
    if _ddp(around):
        return "DDP looks for unused parameters itself"
    if around.world == 1:
        return "there is only one process"
    return "the parameters are sharded, and each process derives by its own"


def _ddp(around: Circumstances) -> DistributedDataParallel | None:
    return around.wrapper if isinstance(around.wrapper, DistributedDataParallel) else None


def _plain_ddp(around: Circumstances) -> DistributedDataParallel | None:
    """The DistributedDataParallel whose reducer waits for every parameter."""
    ddp = _ddp(around)
    return None if ddp is None or ddp.find_unused_parameters else ddp


_FIND_UNUSED = "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')"


def _scaler(around: Circumstances) -> Unsafe | None:
    if around.idle is None:
        return None
    return Unsafe(
        f"under a GradScaler, torch fails for an optimizer without any gradient, and {around.idle}",
        "use precision 'bf16-mixed', which needs no scaler",
    )


def _toggling(around: Circumstances) -> Unsafe | None:
    if around.toggles is None:
        return None
    return Unsafe(
        f"the code of {around.toggles} calls `toggle_optimizer`, which turns `requires_grad` on and off, and puts back "
        "what it found before a step, whatever the schedule says after it",
        "leave the toggling away, which is then done for you",
    )


def _static_graph(around: Circumstances) -> Unsafe | None:
    ddp = _ddp(around)
    if ddp is None or not ddp.static_graph:
        return None
    return Unsafe(
        "DDP with static_graph=True assumes that every step uses the same parameters",
        "build DDP without static_graph",
    )


def _several_backwards(around: Circumstances) -> Unsafe | None:
    if not around.by_hand or not _plain_ddp(around):
        return None
    return Unsafe(
        "plain DDP waits in every backward for every parameter, and a model that steps its optimizers itself makes "
        "several",
        _FIND_UNUSED,
    )


def _hooked_parameter(around: Circumstances) -> Unsafe | None:
    if not _plain_ddp(around) or not any(map(_has_hooks, around.module.parameters())):
        return None
    return Unsafe(
        "plain DDP is told of frozen parameters by gradients of zero, and a parameter has a hook of its own, which "
        "would take those for gradients",
        _FIND_UNUSED,
    )


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _compiled_ddp(around: Circumstances) -> Unsafe | None:
    ddp = _ddp(around)
    if ddp is None or not (around.compiled or compiled(around.module) or compiled(ddp)):
        return None
    return Unsafe("the model is compiled under DDP, which cuts its graph by buckets", "compile it without DDP")


def _flat_parameters(around: Circumstances) -> Unsafe | None:
    if _ddp(around) or not any(map(is_fsdp1, around.wrapper.modules())):
        return None
    return Unsafe(
        "FSDP1 keeps several parameters in one flat one, which trains as a whole",
        "use FSDP2, through ModelParallelStrategy",
    )


def _unknown_sharing(around: Circumstances) -> Unsafe | None:
    if around.world == 1 or _ddp(around) or any(hasattr(p, "to_local") for p in around.module.parameters()):
        return None
    if not around.strategy:
        return Unsafe(
            f"it is not known what shares the run among {around.world} processes, nor whether it waits for gradients of "
            "what is frozen",
            "hand over what is called in the model's place, such as DistributedDataParallel(model)",
        )
    return Unsafe(
        f"{around.strategy} shares the run among {around.world} processes, and it is not known whether it waits for "
        "gradients of what is frozen",
        "use strategy='ddp', or FSDP2 through ModelParallelStrategy",
    )


UNSAFE: tuple[Callable[[Circumstances], Unsafe | None], ...] = (
    _scaler,
    _toggling,
    _static_graph,
    _several_backwards,
    _hooked_parameter,
    _compiled_ddp,
    _flat_parameters,
    _unknown_sharing,
)
"""Each says of a run why skipping is unsafe there, or None; the first that does is told."""


def _recompiles(around: Circumstances, sets: Iterable[frozenset[str]], groups: Mapping[int, str]) -> Unsafe | None:
    """Why compiled code would be compiled too often."""
    regions = {"": around.module} if around.compiled else compiled(around.module)
    if not regions:
        return None
    limit: int = torch._dynamo.config.recompile_limit
    sizes = 2 if around.uneven else 1
    for name, patterns in _patterns(regions, sets, groups):
        graphs = patterns * sizes + _SPARE_GRAPHS
        if graphs > limit:
            return Unsafe(
                f"{repr(name) if name else 'the model'} is compiled, each set of trainable groups asks for a graph of its "
                f"own{' for each size of a batch' if around.uneven else ''}, and with those for validation torch would "
                f"compile at least {graphs} where torch._dynamo.config.recompile_limit is {limit}, after which it runs "
                "uncompiled",
                "raise that limit, or compile the blocks one by one"
                + (", or let all batches be of one size (`drop_last=True`)" if around.uneven else ""),
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
