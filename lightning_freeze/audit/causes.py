"""Why something frozen moved, when that was, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_freeze.audit.frozen import Shift
from lightning_freeze.report.findings import Finding, Severity

_STATISTICS = (nn.modules.batchnorm._NormBase,)


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


def explain(shift: Shift, around: Surroundings, epoch: int, again: int = 0) -> Finding:
    """The finding for something frozen that moved: what, when, why, and what to change.

    Args:
        shift: What moved.
        around: What is known of the run.
        epoch: The epoch it was found in.
        again: In how many later frozen intervals it moved as well.
    """
    name, group = shift.watched.name, shift.watched.group
    when = _when(shift, epoch, again)
    if shift.kind == "buffer":
        return _buffer(shift, around, epoch, when)
    tensor = shift.watched.read()
    what = f"{name!r} (group {group!r}, frozen)"
    if shift.kind == "optimizer_state":
        what = f"the optimizer state of {what} ({', '.join(shift.entries[:5])})"
    cause, why = _cause(shift, around, tensor)
    return Finding(
        "frozen",
        shift.kind,
        "error",
        f"{what} moved {when}: {why}",
        cause=cause,
        epoch=epoch,
        parameter=name,
        group=group,
        first_update=shift.since,
        last_update=shift.until,
    )


def _when(shift: Shift, epoch: int, again: int) -> str:
    later = f" (and in {again} later frozen interval{'s' * (again > 1)})" if again else ""
    if shift.since == shift.until:
        return f"after update {shift.until} and before the next, in epoch {epoch}{later}"
    return f"between updates {shift.since} and {shift.until}, in epoch {epoch}{later}"


def _cause(shift: Shift, around: Surroundings, tensor: Tensor | None) -> tuple[str, str]:
    if shift.gradient_at is not None and not around.gated:
        return "gradient", (
            f"it had a gradient when its optimizer stepped after update {shift.gradient_at}, and an optimizer moves "
            "whatever has one: requires_grad=False does not empty `.grad`. Set `.grad = None` where you freeze it, or "
            "let a FreezeScheduler do the freezing."
        )
    if shift.gradient_at is not None:
        return "gradient", (
            f"it had a gradient when its optimizer stepped after update {shift.gradient_at}, so the gate was bypassed. "
            "Something fills `.grad` after the gate has emptied it: a hook of an optimizer, or a `step()` that runs "
            "backward itself. Take the frozen parameters out of it (`scheduler.trainable` names what trains)."
        )
    mover = around.mover(tensor) if tensor is not None else None
    if mover is not None:
        return "optimizer", (
            f"{mover} moves a parameter whose gradient is None, so setting gradients to None does not hold it. Use an "
            "optimizer that skips such parameters, as those of torch.optim except LBFGS do; in one of your own, begin "
            "the loop over parameters with `if p.grad is None: continue`."
        )
    partner = around.tied(tensor) if tensor is not None else None
    if partner is not None:
        return "tied", (
            f"it shares memory with {partner!r}, which trained. Put both into one group, or untie them "
            "(`.detach().clone()`)."
        )
    owner = around.owner(shift.watched.name)
    if shift.kind == "value" and isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and owner.max_norm is not None:
        return "outside", (
            f"it belongs to an {type(owner).__name__} with max_norm={owner.max_norm}, which rescales rows in every "
            "forward, without any optimizer. Build it without max_norm, or clip its norm where it trains."
        )
    suspects = f" In this run these write to weights: {', '.join(around.suspects)}." if around.suspects else ""
    return "outside", (
        "it had no gradient when its optimizer stepped, and the optimizer leaves such parameters alone, so something "
        "else wrote to it: a `.data` or in-place write, a `load_state_dict`, a callback that averages or swaps "
        f"weights.{suspects} Let it leave frozen parameters alone, or do it where the group trains. "
        "`FreezeAudit(every_n_updates=1)` narrows down when."
    )


def _buffer(shift: Shift, around: Surroundings, epoch: int, when: str) -> Finding:
    name = shift.watched.name
    owner = around.owner(name)
    statistics = isinstance(owner, _STATISTICS)
    severity: Severity = "error" if around.buffers_held else "info"
    if statistics and not around.buffers_held:
        why = (
            "batch-norm statistics follow every forward in train mode, frozen weights or not. To hold them, set "
            "`frozen_modules: eval`."
        )
    elif around.buffers_held:
        why = (
            "its module was held in eval mode, so something else wrote to it: a forward after a `.train()` of your own, "
            "an in-place write, a `load_state_dict`. Let it leave the buffers of frozen modules alone."
        )
    else:
        why = (
            "its module changes it in forward (a power iteration, a counter, a cache). `frozen_modules: eval` holds it "
            "if the module does that in train mode only."
        )
    return Finding(
        "buffers",
        "buffer",
        severity,
        f"buffer {name!r} of a frozen module moved {when}: {why}",
        cause="statistics" if statistics and not around.buffers_held else "outside",
        epoch=epoch,
        parameter=name,
        first_update=shift.since,
        last_update=shift.until,
    )
