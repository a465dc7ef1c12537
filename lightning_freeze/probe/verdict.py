"""How an optimizer is made to hold what is frozen: without a gradient, left out of its param groups, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.probe.probe import OptimizerTraits

Way = Literal["none", "left out", "unknown"]
"""``none``: its gradient is None. ``left out``: of the param groups, too, for each step. ``unknown``: as ``none``, unproved."""


def way_of(
    traits: OptimizerTraits,
    index: int,
    *,
    late: Sequence[str] = (),
    fully_frozen: str | None = None,
    audited: bool = True,
) -> Way:
    """How an optimizer holds what a schedule freezes.

    Args:
        traits: What the probe has learnt of it.
        index: Its place among the run's optimizers.
        late: Groups of it that are frozen at its first step and train later.
        fully_frozen: Why it can come to a step with nothing to train; None if it never can.
        audited: Whether frozen weights are fingerprinted, so that a leak would be found.

    Raises:
        UnsupportedError: It cannot hold them, or would fail in the middle of training.

    Example:
        >>> way_of(OptimizerTraits("Muon", skips_none=False, holds_excluded=True), 0)
        'left out'
    """
    name, reasons = f"optimizer {index} ({traits.name})", traits.reasons
    if traits.steps_in_backward:
        raise UnsupportedError(
            f"{name} updates parameters within backward, before anything could be held still. Use an optimizer that updates "
            "in `step()` (torch's AdamW and SGD do), or let all that it holds train always."
        )
    if traits.skips_none is None:
        if audited:
            return "unknown"
        raise UnsupportedError(
            f"{name} could not be probed ({traits.why}), so whether it holds a frozen parameter still is not known, and "
            "`audit: false` would not tell. Set `audit: true`: the run then stops at the epoch's end if something moves."
        )
    if not traits.skips_none and not traits.holds_excluded:
        raise UnsupportedError(
            f"{name} cannot hold a frozen parameter still. Run on small parameters of its own, {reasons['skips_none']}; and "
            f"{reasons['holds_excluded']}. Use another optimizer for the groups that freeze (AdamW, SGD), or give this one "
            "only parameters of `rest` with `rest: train`."
        )
    if late and traits.late_first_step_ok is False:
        raise UnsupportedError(
            f"{name} cannot hold what is frozen from its first step on and trains later, as {_listed(late)} "
            f"{'is' if len(late) == 1 else 'are'}. Run on small parameters of its own, {reasons['late_first_step_ok']}. Let "
            "every group train in the first update, such as by a first phase `{train: [all], updates: 1}`; or use another "
            "optimizer for them (AdamW; of a fused one, the same with `fused=False`)."
        )
    if fully_frozen is not None and traits.all_none_ok is False:
        raise UnsupportedError(
            f"{name} cannot make a step in which nothing trains, and {fully_frozen}. Run on small parameters of its own, "
            f"{reasons['all_none_ok']}. Use a schedule in which one of its groups always trains, or another optimizer (AdamW, "
            "SGD)."
        )
    return "none" if traits.skips_none else "left out"


def _listed(groups: Sequence[str]) -> str:
    return ", ".join(groups[:3]) + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
