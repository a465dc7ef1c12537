"""What every callback that audits has: who asked for it, what of it can be copied, and how it stops a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from lightning_freeze.errors import one_of
from lightning_freeze.report.findings import Finding, FreezeViolation
from lightning_freeze.trainer.seam import Callback, Trainer, save_before_stopping

OnFinding = Literal["raise", "warn"]
AskedBy = Literal["switch", "command", "user"]
_LIGHTNINGS_OWN = ("log", "log_dict")  # bound methods of the model, given anew in every run
_OF_A_RUN: dict[str, Any] = {
    **dict.fromkeys(("_engine", "_controller", "_watch", "_inputs", "_recorder", "_bar", "_loading", "_handled")),
    "_stepped": (),
}

_Made = TypeVar("_Made", bound="Auditor")


class Auditor(Callback):
    """The base of `FreezeScheduler`, `FreezeAudit` and `InputAudit`.

    Args:
        on_finding: Whether what it looks for stops a run.
    """

    created_by: AskedBy = "user"
    """Who asked for it: the user, ``lightning-freeze inputs``, or ``LIGHTNING_FREEZE_AUDIT``."""

    def __init__(self, on_finding: OnFinding) -> None:
        super().__init__()
        one_of("on_finding", on_finding, ("raise", "warn"))
        self._on_finding = on_finding

    @classmethod
    def for_the(cls: type[_Made], who: AskedBy, **options: Any) -> _Made:
        """One that the user did not write, and that stands back where the Trainer has the user's own."""
        made = cls(**options)
        made.created_by = who
        return made

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a run hooks into its trainer and its optimizers; a copy of the callback begins without.
        return {key: _OF_A_RUN.get(key, value) for key, value in vars(self).items() if key not in _LIGHTNINGS_OWN}

    def _stop_for(self, errors: Sequence[Finding], trainer: Trainer, what: str) -> None:
        """Stop a run for errors, after saving a fit. All ranks call it together, each with the errors of all."""
        if not errors:
            return
        switched = self.created_by == "switch"
        keeps = bool(trainer.checkpoint_callbacks) or not switched
        saved = save_before_stopping(trainer, f"{what}-violation") if keeps and trainer.state.fn == "fit" else None
        raise FreezeViolation(
            errors,
            saved,
            switched=switched,
            unsaved="" if keeps else "the Trainer keeps no checkpoints",
        )
