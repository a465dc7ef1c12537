"""The base of the callbacks: who created one, what of it is copied, how it stops a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal, Self

from rich.console import Group
from rich.text import Text

from lightning_freeze.holds.hold import each_tried
from lightning_freeze.report.findings import Finding, FreezeViolation
from lightning_freeze.report.run_table import summary_table
from lightning_freeze.report.table import as_html
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.arguments import OnFinding, check_words

CreatedBy = Literal["switch", "command", "user"]
_NOT_COPIED = ("log", "log_dict")  # set in every run by Lightning
_RESET_IN_COPIES: dict[str, Any] = {
    **dict.fromkeys(("_engine", "_controller", "_inputs", "_recorder", "_handled", "_logged", "_fitted_by")),
    "_removals": (),
}


class Auditor(seam.Callback):
    """The base of `FreezeScheduler`, `FreezeAudit` and `InputAudit`."""

    created_by: CreatedBy = "user"
    """The user, ``lightning-freeze inputs`` or ``LIGHTNING_FREEZE_AUDIT``."""
    _engine: Any = None
    _inputs: Any = None

    def __init__(self, on_finding: OnFinding) -> None:
        super().__init__()
        check_words(on_finding=on_finding)
        self._on_finding = on_finding
        self._removals: list[Callable[[], object]] = []

    @classmethod
    def create_for(cls, creator: CreatedBy, **options: Any) -> Self:
        """A callback that gives way to one of the user's own."""
        callback = cls(**options)
        callback.created_by = creator
        return callback

    def __repr__(self) -> str:
        known = {name.lstrip("_"): value for name, value in vars(self).items()}
        known |= vars(self) | vars(self).get("_options", {})
        arguments = signature(type(self).__init__).parameters.values()
        given = [each.name for each in arguments if known.get(each.name, {}) not in (each.default, {}, [])]
        return f"{type(self).__name__}({', '.join(f'{name}={known[name]!r}' for name in given)})"

    def __rich__(self) -> Group:
        tables = map(summary_table, filter(None, [vars(self).get("_records")]))
        return Group(Text(repr(self)), *tables, self.findings)  # type: ignore[attr-defined]

    _repr_html_ = as_html

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a run hooks into its Trainer and its optimizers; a copy of the callback starts without.
        return {key: _RESET_IN_COPIES.get(key, value) for key, value in vars(self).items() if key not in _NOT_COPIED}

    def on_validation_batch_start(
        self, trainer: seam.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._inputs is not None and not trainer.sanity_checking:
            self._inputs.begin_batch(trainer.current_epoch if trainer.state.fn == "fit" else 0, batch_idx)

    def on_train_batch_end(
        self, trainer: seam.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._inputs is not None:
            self._inputs.end_batch()

    on_validation_batch_end = on_train_batch_end

    def on_exception(self, trainer: seam.Trainer, pl_module: seam.LightningModule, exception: BaseException) -> None:
        """Undo everything; what goes wrong with that becomes a note of the exception."""
        for act in (partial(self._explain, trainer, exception), self._undo):
            try:
                act()
            except Exception as error:
                exception.add_note(f"freeze: as the run ended: {type(error).__name__}: {error}")

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._undo()

    def _act_on_findings(self, trainer: seam.Trainer, unsaved: str = "") -> None:
        """Report the findings since the last call, and stop the run for errors."""

    def _explain(self, trainer: seam.Trainer, exception: BaseException) -> None:
        """Add a note to an exception that comes from us."""

    def _undo(self) -> None:
        """Undo everything; each is tried, whatever another raises. Safe to call again."""
        removals, self._removals = self._removals, []
        if self._inputs is not None:
            removals.append(self._inputs.end_batch)
            self._inputs = None
        each_tried(removals)()

    def _stop_for(self, errors: Sequence[Finding], trainer: seam.Trainer, name: str, unsaved: str = "") -> None:
        """Stop a run for errors, after saving a fit. All ranks call it together, with the errors of all."""
        if not errors:
            return
        switched = self.created_by == "switch"
        unsaved = unsaved or "the Trainer keeps no checkpoints" * (switched and not trainer.checkpoint_callbacks)
        saves = not unsaved and trainer.state.fn == "fit"
        saved = seam.save_before_stopping(trainer, f"{name}-violation") if saves else None
        raise FreezeViolation(errors, saved, switched=switched, unsaved=unsaved)
