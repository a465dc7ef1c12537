"""By which method an optimizer is made to hold what is frozen, if any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.probe.probe import OptimizerTraits

HoldMethod = Literal["none", "excluded", "unknown"]
"""``none``: gradients are None. ``excluded``: from param groups, too, for each step. ``unknown``: as ``none``, unproved."""


def hold_method(
    traits: OptimizerTraits,
    index: int,  # its place among the run's optimizers
    *,
    late: Sequence[str] = (),  # groups of it that are frozen at its first step and train later
    fully_frozen: str | None = None,  # why it can come to a step with nothing to train
    audited: bool = True,  # whether a leak would be found
) -> HoldMethod:
    """The method by which an optimizer holds what a schedule freezes; refused where it cannot, or would fail later."""
    if traits.skips_none is None and not traits.steps_in_backward and audited:
        return "unknown"
    if refusal := _refusal(traits, late, fully_frozen):
        raise UnsupportedError(f"optimizer {index} ({traits.name}) {refusal}")
    return "none" if traits.skips_none else "excluded"


def _refusal(traits: OptimizerTraits, late: Sequence[str], fully_frozen: str | None) -> str:
    reasons = traits.reasons
    if traits.steps_in_backward:
        return (
            "updates parameters within backward, before anything could be frozen. Use an optimizer that updates in `step()` "
            "(torch's AdamW and SGD do), or let all that it holds train always."
        )
    if traits.skips_none is None:
        return (
            f"could not be probed ({traits.why}): whether it keeps a parameter frozen is not known, and `audit: false` would "
            "not show it. Set `audit: true`: the run then stops at the epoch's end if something moves."
        )
    if not traits.skips_none and not traits.holds_excluded:
        return (
            f"cannot keep a parameter frozen. On small parameters, {reasons['skips_none']}; and {reasons['holds_excluded']}. "
            "Use another optimizer for the groups that freeze (AdamW, SGD), or give this one only parameters of `rest` with "
            "`rest: train`."
        )
    if late and traits.late_first_step_ok is False:
        groups = ", ".join(late[:3]) + (f" and {len(late) - 3} more" if len(late) > 3 else "")
        return (
            f"cannot hold what is frozen from its first step on and trains later ({groups}). On small parameters, "
            f"{reasons['late_first_step_ok']}. Let every group train in the first update, such as by a first phase `{{train: "
            "[all], updates: 1}`; or use another optimizer for them (AdamW; of a fused one, the same with `fused=False`)."
        )
    if fully_frozen is not None and traits.all_none_ok is False:
        return (
            f"cannot make a step in which nothing trains, and {fully_frozen}. On small parameters, {reasons['all_none_ok']}. "
            "Use a schedule in which one of its groups always trains, or another optimizer (AdamW, SGD)."
        )
    return ""
