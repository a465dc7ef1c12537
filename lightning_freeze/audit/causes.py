"""Why something frozen moved, when that was, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_freeze.audit.frozen import Shift
from lightning_freeze.report.findings import Finding


@dataclass(frozen=True)
class Surroundings:
    """What is known of a run when something frozen is found to have moved.

    Args:
        mover: For a parameter: the name of an optimizer that holds it and moves what has no gradient, if one does.
        tied: For a parameter: the FQN of a parameter that shares its memory and trained, if one did.
        owner: For an FQN: the module that owns the parameter or buffer.
        suspects: Names of what else in this run writes to weights (an EMA or SWA callback).
        buffers_held: Whether the modules of frozen groups are held in eval mode.
        gated: Whether a gate empties frozen gradients.
    """

    mover: Callable[[Tensor], str | None]
    tied: Callable[[Tensor], str | None]
    owner: Callable[[str], nn.Module | None]
    suspects: Sequence[str] = ()
    buffers_held: bool = False
    gated: bool = True


_Cause = tuple[str, str]
"""Its name, as a finding holds it, and why that moves something frozen and what to change."""


def explain(shift: Shift, around: Surroundings, epoch: int, again: int = 0) -> Finding:
    """The finding for something frozen that moved: what, when, why, and what to change.

    Args:
        shift: What moved.
        around: What is known of the run.
        epoch: The epoch it was found in.
        again: In how many later frozen intervals it moved as well.
    """
    watched, buffer = shift.watched, shift.kind == "buffer"
    what = (
        f"buffer {watched.name!r} of a frozen module"
        if buffer
        else f"{watched.name!r} (group {watched.group!r}, frozen)"
    )
    if shift.kind == "optimizer_state":
        what = f"the optimizer state of {what} ({', '.join(shift.entries[:5])})"
    causes = _OF_BUFFERS if buffer else _OF_PARAMETERS
    cause, why = next(found for each in causes if (found := each(shift, around)) is not None)
    return Finding(
        "buffers" if buffer else "frozen",
        shift.kind,
        "info" if buffer and not around.buffers_held else "error",
        f"{what} moved {_when(shift, epoch, again)}: {why}",
        cause=cause,
        epoch=epoch,
        parameter=watched.name,
        group=watched.group,
        first_update=shift.since,
        last_update=shift.until,
    )


def _when(shift: Shift, epoch: int, again: int) -> str:
    later = f" (and in {again} later frozen interval{'s' * (again > 1)})" if again else ""
    if shift.since == shift.until:
        return f"after update {shift.until} and before the next, in epoch {epoch}{later}"
    return f"between updates {shift.since} and {shift.until}, in epoch {epoch}{later}"


def _gradient(shift: Shift, around: Surroundings) -> _Cause | None:
    if shift.gradient_at is None:
        return None
    had = f"it had a gradient when its optimizer stepped after update {shift.gradient_at}, "
    if around.gated:
        return "gradient", (
            f"{had}so the gate was bypassed. Something fills `.grad` after the gate has emptied it: a hook of an "
            "optimizer, or a `step()` that runs backward itself. Take the frozen parameters out of it "
            "(`scheduler.trainable` names what trains)."
        )
    return "gradient", (
        f"{had}and an optimizer moves whatever has one: requires_grad=False does not empty `.grad`. Set `.grad = None` "
        "where you freeze it, or let a FreezeScheduler do the freezing."
    )


def _optimizer(shift: Shift, around: Surroundings) -> _Cause | None:
    tensor = shift.watched.read()
    mover = around.mover(tensor) if tensor is not None else None
    if mover is None:
        return None
    return "optimizer", (
        f"{mover} moves a parameter whose gradient is None, so setting gradients to None does not hold it. Use an "
        "optimizer that skips such parameters, as those of torch.optim except LBFGS do; in one of your own, begin "
        "the loop over parameters with `if p.grad is None: continue`."
    )


def _tied(shift: Shift, around: Surroundings) -> _Cause | None:
    tensor = shift.watched.read()
    partner = around.tied(tensor) if tensor is not None else None
    if partner is None:
        return None
    return "tied", (
        f"it shares memory with {partner!r}, which trained. Put both into one group, or untie them "
        "(`.detach().clone()`)."
    )


def _max_norm(shift: Shift, around: Surroundings) -> _Cause | None:
    owner = around.owner(shift.watched.name)
    if shift.kind != "value" or not isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or owner.max_norm is None:
        return None
    return "outside", (
        f"it belongs to an {type(owner).__name__} with max_norm={owner.max_norm}, which rescales rows in every "
        "forward, without any optimizer. Build it without max_norm, or clip its norm where it trains."
    )


def _written(shift: Shift, around: Surroundings) -> _Cause:
    suspects = f" In this run these write to weights: {', '.join(around.suspects)}." if around.suspects else ""
    return "outside", (
        "it had no gradient when its optimizer stepped, and the optimizer leaves such parameters alone, so something "
        "else wrote to it: a `.data` or in-place write, a `load_state_dict`, a callback that averages or swaps "
        f"weights.{suspects} Let it leave frozen parameters alone, or do it where the group trains. "
        "`FreezeAudit(every_n_updates=1)` narrows down when."
    )


def _buffer_written(shift: Shift, around: Surroundings) -> _Cause | None:
    if not around.buffers_held:
        return None
    return "outside", (
        "its module was held in eval mode, so something else wrote to it: a forward after a `.train()` of your own, "
        "an in-place write, a `load_state_dict`. Let it leave the buffers of frozen modules alone."
    )


def _statistics(shift: Shift, around: Surroundings) -> _Cause | None:
    if not isinstance(around.owner(shift.watched.name), nn.modules.batchnorm._NormBase):
        return None
    return "statistics", (
        "batch-norm statistics follow every forward in train mode, frozen weights or not. To hold them, set "
        "`frozen_modules: eval`."
    )


def _forward(shift: Shift, around: Surroundings) -> _Cause:
    return "outside", (
        "its module changes it in forward (a power iteration, a counter, a cache). `frozen_modules: eval` holds it "
        "if the module does that in train mode only."
    )


_OF_PARAMETERS = (_gradient, _optimizer, _tied, _max_norm, _written)
"""Each says whether it is the cause; the first that does is told, and the last always does."""
_OF_BUFFERS = (_buffer_written, _statistics, _forward)
