"""Why something frozen moved, when that was, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor, nn

from lightning_freeze.audit.frozen import Change
from lightning_freeze.plan.schedule import REST
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Cause, Finding, Severity


@dataclass(frozen=True)
class AuditContext:
    """What is known of a run when something frozen has moved."""

    mover: Callable[[Tensor], str | None]  # the optimizer that moves a parameter whose gradient is None
    tied: Callable[[Tensor], str | None]  # the FQN of a trained parameter that shares a parameter's memory
    owner: Callable[[str], nn.Module | None]  # the module that owns the parameter or buffer of an FQN
    suspects: Sequence[str] = ()  # names of what else writes to weights (an EMA or SWA callback)
    buffers_held: bool = False  # whether the modules of frozen groups are held in eval mode
    sets_to_none: bool = True  # whether a hold sets frozen gradients to None


_WARNED: dict[str, Severity] = {"cache": "warning"}


def outermost(module: nn.Module, moved: Collection[str]) -> Callable[[str], str]:
    """A parameter that moved to the outermost module whose parameters all moved, else to itself."""

    def above(name: str) -> Iterator[str]:
        return accumulate(name.split("."), "{}.{}".format)

    names = [clean_name(name) for name, _ in module.named_parameters(remove_duplicate=False)] if moved else []
    others = {outer for name in names if name not in moved for outer in above(name)}
    return lambda name: next((outer for outer in above(name) if outer not in others), name)


def explain(change: Change, context: AuditContext, epoch: int, later: int = 0, select: str = "…") -> Finding:
    """The finding for what moved, also in later frozen intervals; ``select`` names all that moved together."""
    watched, buffer = change.watched, change.kind == "buffer"
    name = repr(watched.name)
    what = f"buffer {name} of a frozen module" if buffer else f"{name} (group {watched.group!r}, frozen)"
    if change.kind == "optimizer_state":
        what = f"the optimizer state of {what} ({', '.join(change.entries[:5])})"
    when = f"between updates {change.since} and {change.until}"
    if change.since == change.until:
        when = f"after update {change.until} and before the next"
    when += f", in epoch {epoch}" + (f" (and in {later} later frozen interval{'s' * (later > 1)})" if later else "")
    cause, why = _of_buffer(change, context) if buffer else _replaced(change) or _of_parameter(change, context, select)
    return Finding(
        "buffers" if buffer else "frozen",
        change.kind,
        "info" if buffer and not context.buffers_held else _WARNED.get(cause, "error"),
        f"{what} moved {when}: {why}",
        cause=cause,
        epoch=epoch,
        parameter=watched.name,
        group=watched.group,
        first_update=change.since,
        last_update=change.until,
    )


def _of_parameter(change: Change, context: AuditContext, select: str) -> tuple[Cause, str]:
    """The first cause that applies, and why that moves a frozen parameter and what to change."""
    tensor, owner = change.watched.read(), context.owner(change.watched.name)
    if change.gradient_at is not None:
        return "gradient", f"it had a gradient when its optimizer stepped after update {change.gradient_at}" + (
            ", so something filled `.grad` after it was set to None: a hook of an optimizer, or a `step()` that runs "
            "backward itself. Take frozen parameters out of it (`scheduler.trainable` names what trains)."
            if context.sets_to_none
            else ", and requires_grad=False does not set `.grad` to None. Set `.grad = None` where you freeze it, or let "
            "a FreezeScheduler do the freezing."
        )
    if tensor is not None and (mover := context.mover(tensor)) is not None:
        return "optimizer", (
            f"{mover} moves a parameter whose gradient is None. Use an optimizer that skips such parameters, as those of "
            "torch.optim except LBFGS do, or begin its loop over parameters with `if p.grad is None: continue`."
        )
    if tensor is not None and (tied := context.tied(tensor)) is not None:
        return "tied", (
            f"it shares memory with {tied!r}, which trained. Put both into one group, or untie them (`.detach().clone()`)."
        )
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) and change.kind == "value" and owner.max_norm is not None:
        return "outside", (
            f"it belongs to an {type(owner).__name__} with max_norm={owner.max_norm}, which rescales rows in every "
            "forward. Build it without max_norm, or clip its norm where it trains."
        )
    suspects = f" In this run these write to weights: {', '.join(context.suspects)}." * bool(context.suspects)
    return "outside", (
        "neither a gradient nor its optimizer moved it, so something else wrote to it: a `.data` or in-place write, a "
        f"`load_state_dict`, a callback that averages or swaps weights.{suspects} Let it leave frozen parameters alone, or "
        "do it where the group trains. `FreezeAudit(every_n_updates=1)` narrows down when. If your own code moves it on "
        f"purpose, write {_exemption(select, change.watched.group, context.sets_to_none)}."
    )


def _exemption(select: str, group: str | None, scheduled: bool) -> str:
    """The line that exempts what moved from the audits."""
    if not scheduled:
        return f"`FreezeAudit(exempt={{{select!r}: '<the reason>'}})`"
    taken = f", and `except: {select}` in group `{group}`" if group not in (REST, select) else ""
    return f"`groups: {{{select}: {{select: {select}, by: user}}}}`{taken}"


def _replaced(change: Change) -> tuple[Cause, str] | None:
    """The same for a parameter whose place another has taken."""
    now, first = change.watched.read(), change.watched.first
    if first is None or now is first:
        return None
    return "replaced", (
        f"another parameter took its place, with other bits or another shape (it was {_kind(first)}, now it is {_kind(now)}). "
        "Replace it where its group trains, or by a copy of its bits (`nn.Parameter(old.detach().clone())`)."
    )


def _kind(tensor: Tensor | None) -> str:
    return "gone" if tensor is None else f"{tuple(tensor.shape)} of {tensor.dtype}".replace("torch.", "")


def _of_buffer(change: Change, context: AuditContext) -> tuple[Cause, str]:
    """The same for a buffer of a frozen module."""
    owner, name = context.owner(change.watched.name), change.watched.name.rpartition(".")[2]
    # What a module saves is its state, which follows forwards in train mode alone; what it does not is a cache.
    if context.buffers_held and name in getattr(owner, "_non_persistent_buffers_set", ()):
        return "cache", (
            "it is a cache (`persistent=False`: no checkpoint holds it), which its module fills in eval mode, too. If it "
            "must stay as it is, register it with `persistent=True`: then the run stops."
        )
    if context.buffers_held:
        return "outside", (
            "its module was held in eval mode, so something else wrote to it: a forward after a `.train()` of your own, "
            "an in-place write, a `load_state_dict`. Let it leave the buffers of frozen modules alone; if it is a cache "
            "that the module's forward fills, register it with `persistent=False`."
        )
    if isinstance(owner, nn.modules.batchnorm._NormBase):
        return "statistics", (
            "batch-norm statistics follow every forward in train mode, frozen weights or not. To hold them, set "
            "`frozen_modules: eval`."
        )
    return "outside", (
        "its module changes it in forward (a power iteration, a counter, a cache). `frozen_modules: eval` holds it if the "
        "module does that in train mode only."
    )
