"""`Until`: a phase that lasts until a metric stops improving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from lightning_freeze.errors import ScheduleError, is_number, one_of, whole_number
from lightning_freeze.plan.schedule import Part

_COUNTS = {  # the least value, and what it means
    "patience": (0, "the phase ends with that many values in a row that were no improvement"),
    "min_epochs": (1, "the phase lasts at least that many training epochs"),
    "max_epochs": (1, "the phase lasts no more than that many training epochs"),
}


class Judgement(NamedTuple):
    """What one value of a metric makes of a phase."""

    best: float | None  # the best value so far
    wait: int  # values since then that were no improvement
    over: str = ""  # why the phase is over


@dataclass(frozen=True, repr=False)
class Until(Part):
    """Ends a phase when a logged metric has stopped improving, as Lightning's `EarlyStopping` ends a run.

    The metric is read once an epoch, at the training epoch's end; an epoch in which it was not logged (no validation in
    it) counts only towards ``min_epochs`` and ``max_epochs``. A value that is not finite ends the phase, once it has had
    ``min_epochs``. The comparison starts again each time that the phase is entered.

    Args:
        metric: The name under which the model logs it, such as ``val_loss``.
        mode: Whether less (``min``) or more (``max``) is better.
        patience: The phase ends with that many values in a row that were no improvement.
        min_delta: By how much a value must be better than the best so far to be an improvement, in the metric's unit.
        min_epochs: It lasts at least that many training epochs, the one it was entered in included.
        max_epochs: It lasts no more than that many.

    Raises:
        ScheduleError: An unknown mode, a count that is too small, or ``max_epochs`` below ``min_epochs``.

    Example:
        >>> Until("val_loss", patience=2).judge(best=0.5, wait=1, value=0.6).over
        "'val_loss' (0.6) has not been better than 0.5 for 2 epochs"
    """

    metric: str
    mode: Literal["min", "max"] = "min"
    patience: int = 3
    min_delta: float = 0.0
    min_epochs: int = 1
    max_epochs: int | None = None
    _always: ClassVar = ("metric", "mode", "patience")

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise ScheduleError(
                f"`metric` is {self.metric!r}, but must be the name of a logged metric: 'val_loss'.", key="until.metric"
            )
        one_of("until.mode", self.mode, ("min", "max"))
        for key, (least, meaning) in _COUNTS.items():
            if getattr(self, key) is not None or key != "max_epochs":
                object.__setattr__(self, key, whole_number(getattr(self, key), f"until.{key}", meaning, least))
        if not is_number(self.min_delta) or not 0 <= self.min_delta < math.inf:
            raise ScheduleError(
                f"`until.min_delta` is {self.min_delta!r}, but must be a number of at least 0: the least improvement. The "
                "nearest valid value is 0.",
                key="until.min_delta",
            )
        object.__setattr__(self, "min_delta", float(self.min_delta))
        least = self.min_epochs
        if self.max_epochs is not None and self.max_epochs < least:
            raise ScheduleError(
                f"`until.max_epochs` is {self.max_epochs}, below `min_epochs` ({least}). The nearest valid value is {least}.",
                key="until.max_epochs",
            )

    def judge(self, best: float | None, wait: int, value: float) -> Judgement:
        """What a new value makes of the phase; ``best`` is None before the first."""
        if not math.isfinite(value):
            return Judgement(best, wait, f"{self.metric!r} is {value}, which is not finite")
        gained = self.min_delta if self.mode == "min" else -self.min_delta
        if best is None or (value + gained < best if self.mode == "min" else value + gained > best):
            return Judgement(value, 0)
        if wait + 1 < self.patience:
            return Judgement(best, wait + 1)
        waited = f"for {wait + 1} epoch{'s' * (wait > 0)}"
        return Judgement(best, wait + 1, f"{self.metric!r} ({value:.6g}) has not been better than {best:.6g} {waited}")
