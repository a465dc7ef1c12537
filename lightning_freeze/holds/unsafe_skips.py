"""Where leaving out the backward work of what is frozen would go wrong, and what to change there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from lightning_freeze.holds.run_context import RunContext, compiled, is_fsdp1

_FIND_UNUSED = "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')"


class Unsafe(NamedTuple):
    """Why skipping would go wrong in a run.

    Args:
        why: What stands against it.
        fix: What to change, so that it can be skipped.
    """

    why: str
    fix: str


def _scaler(run: RunContext) -> Unsafe | None:
    if run.fully_frozen is None:
        return None
    return Unsafe(
        f"under a GradScaler, torch fails for an optimizer without any gradient, and {run.fully_frozen}",
        "use precision 'bf16-mixed', which needs no scaler",
    )


def _toggling(run: RunContext) -> Unsafe | None:
    if run.toggles is None:
        return None
    return Unsafe(
        f"the code of {run.toggles} calls `toggle_optimizer`, which turns `requires_grad` on and off, and puts back "
        "what it found before a step, whatever the schedule says after it",
        "leave the toggling away, which is then done for you",
    )


def _static_graph(run: RunContext) -> Unsafe | None:
    ddp = run.ddp
    if ddp is None or not ddp.static_graph:
        return None
    return Unsafe(
        "DDP with static_graph=True assumes that every step uses the same parameters",
        "build DDP without static_graph",
    )


def _several_backwards(run: RunContext) -> Unsafe | None:
    if not run.manual_optimization or run.plain_ddp is None:
        return None
    return Unsafe(
        "plain DDP waits in every backward for every parameter, and a model that steps its optimizers itself makes "
        "several",
        _FIND_UNUSED,
    )


def _hooked_parameter(run: RunContext) -> Unsafe | None:
    if run.plain_ddp is None or not any(map(_has_hooks, run.module.parameters())):
        return None
    return Unsafe(
        "plain DDP is told of frozen parameters by gradients of zero, and a parameter has a hook of its own, which "
        "would take those for gradients",
        _FIND_UNUSED,
    )


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _compiled_ddp(run: RunContext) -> Unsafe | None:
    ddp = run.ddp
    if ddp is None or not (run.compiled or compiled(run.module) or compiled(ddp)):
        return None
    return Unsafe("the model is compiled under DDP, which cuts its graph by buckets", "compile it without DDP")


def _flat_parameters(run: RunContext) -> Unsafe | None:
    if run.ddp or not any(map(is_fsdp1, run.wrapper.modules())):
        return None
    return Unsafe(
        "FSDP1 keeps several parameters in one flat one, which trains as a whole",
        "use FSDP2, through ModelParallelStrategy",
    )


def _unknown_sharing(run: RunContext) -> Unsafe | None:
    if run.world == 1 or run.ddp or any(hasattr(p, "to_local") for p in run.module.parameters()):
        return None
    if not run.strategy:
        return Unsafe(
            f"it is not known what shares the run among {run.world} processes, nor whether it waits for gradients of "
            "what is frozen",
            "hand over what is called in the model's place, such as DistributedDataParallel(model)",
        )
    return Unsafe(
        f"{run.strategy} shares the run among {run.world} processes, and it is not known whether it waits for "
        "gradients of what is frozen",
        "use strategy='ddp', or FSDP2 through ModelParallelStrategy",
    )


UNSAFE: tuple[Callable[[RunContext], Unsafe | None], ...] = (
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
