"""Lightning's hooks: each a line that hands over to `FreezeController` or to the audit."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.checkpoint import OnScheduleChange
from lightning_freeze.controller import FreezeController
from lightning_freeze.errors import ScheduleError, one_of, whole_number
from lightning_freeze.holds.optimizer_state import OPTIMIZER_STATE, OptimizerState
from lightning_freeze.holds.run_context import RunContext, compiled
from lightning_freeze.holds.skip_decision import SKIP_BACKWARD, SkipBackward
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.schedule import Schedule
from lightning_freeze.report.findings import Finding
from lightning_freeze.trainer.audited import _UNJUDGED, _Audited, _is
from lightning_freeze.trainer.base import OnFinding
from lightning_freeze.trainer.freeze_audit import FreezeAudit
from lightning_freeze.trainer.metrics import Heard, logs_later, unlogged
from lightning_freeze.trainer.seam import (
    BarText,
    LateLoading,
    LightningModule,
    Trainer,
    batch_sizes_vary,
    clips_by_hand,
    has_scaler,
    loads_later,
    local_sgd,
    may_clip,
    rank_zero_warn,
    refuse_strategy,
    resumes,
    save_before_stopping,
    say,
    suspects,
    toggles_by_hand,
    windows_per_epoch,
)


class FreezeScheduler(_Audited):
    """Trains each group of parameters when a schedule says so, holds it still otherwise, and proves it every epoch.

    Gradients of frozen parameters are set to None before clipping and again right before the optimizer's step, so that
    momentum, weight decay and running averages leave them alone. A learning-rate scheduler ticks on while a group is
    frozen.

    Args:
        schedule: `Every` or `Phases`; in YAML also the path of a file that holds one.
        groups: Group to selector (see `resolve_groups`). A name in the schedule that is no group is read as a selector.
        rest: What becomes of parameters outside the groups: ``train`` (always), ``freeze`` (never) or ``error``.
        skip_backward: Whether the backward work of frozen groups is left out, by ``requires_grad=False`` while they are
            frozen: ``auto`` where that is safe, and says in a line why or why not; ``True`` insists; ``False`` empties
            gradients after backward only.
        optimizer_state: What becomes of the optimizer state of frozen groups: ``keep``; ``offload``, from an accelerator
            to host memory until they train again, unless that is within ten updates; ``reset``, dropped, so that they
            begin anew, as in BAdam. Checkpoints hold what there is, and can be resumed under another.
        frozen_modules: ``eval`` holds frozen modules in eval mode: batch-norm statistics and dropout stand still too.
        audit: Whether to audit, or a `FreezeAudit` that says how.
        on_finding: Whether something frozen that moved stops the run at the epoch's end, after saving it, or warns.
        on_schedule_change: Whether a checkpoint of another schedule, or of other groups, is refused (``raise``), or the
            run goes on from it (``continue``): with its counts, by the names of groups, and its place in the row of
            phases.

    Raises:
        ScheduleError: The schedule cannot be run, or hangs on a metric that was not logged.
        SelectionError: The groups cannot be resolved.
        UnsupportedError: The optimizer or the strategy cannot hold a parameter still, or `skip_backward` or
            `optimizer_state` asks for what would go wrong there.
        FreezeViolation: Something frozen moved.

    Example:
        >>> FreezeScheduler(Every({"layer1": 5}, of="layer2")).updates
        {}
    """

    def __init__(
        self,
        schedule: Phases | Schedule,
        groups: dict[str, str | list[Any] | dict[str, Any]] | None = None,
        rest: Literal["train", "freeze", "error"] = "train",
        skip_backward: SkipBackward = "auto",
        optimizer_state: OptimizerState = "keep",
        frozen_modules: Literal["train", "eval"] = "train",
        audit: bool | FreezeAudit = True,
        on_finding: OnFinding = "raise",
        on_schedule_change: OnScheduleChange = "raise",
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise ScheduleError(
                f"`schedule` is {schedule!r}, but must be a schedule: Every({{'layer1': 5}}, of='layer2'), or Phases([…])."
                + " Paths and mappings are read by a LightningCLI alone." * isinstance(schedule, (str, Mapping, Path)),
                key="schedule",
            )
        if groups is not None and not isinstance(groups, Mapping):
            raise ScheduleError(
                f"`groups` is {groups!r}, but must map names to selectors: {{'head': 'model.head'}}.",
                key="groups",
            )
        one_of("rest", rest, ("train", "freeze", "error"))
        one_of("skip_backward", skip_backward, SKIP_BACKWARD)
        one_of("optimizer_state", optimizer_state, OPTIMIZER_STATE)
        one_of("frozen_modules", frozen_modules, ("train", "eval"))
        one_of("on_schedule_change", on_schedule_change, ("raise", "continue"))
        how = audit if isinstance(audit, FreezeAudit) else None
        super().__init__(
            how.on_finding if how is not None and how.on_finding is not None else on_finding,
            how.every_n_updates if how is not None else None,
            how.inputs if how is not None else bool(audit),
        )
        self._schedule = schedule
        self._groups = dict(groups or {})
        self._rest = rest
        self._skip_backward = skip_backward
        self._optimizer_state = optimizer_state
        self._frozen_modules = frozen_modules
        self._audit = bool(audit)
        self._on_schedule_change = on_schedule_change
        self._clips = True
        self._heard = Heard()
        self._listened = -1
        self._controller: FreezeController | None = None
        self._resume: dict[str, Any] | None = None
        self._stepped: Sequence[weakref.ref[Optimizer]] = ()
        self._loading: LateLoading | None = None

    @property
    def state_key(self) -> str:
        """One key for all schedulers, so that a checkpoint of one is understood, or refused, by another."""
        return "lightning_freeze.FreezeScheduler"

    @property
    def updates(self) -> dict[str, int]:
        """Group to the optimizer steps that truly ran for it."""
        return self._controller.updates if self._controller is not None else {}

    @property
    def controller(self) -> FreezeController | None:
        """What ties the schedule to the model and its optimizers; None before the first fit."""
        return self._controller

    @property
    def trainable(self) -> frozenset[str]:
        """The groups that the coming step may train."""
        return self._controller.trainable if self._controller is not None else frozenset()

    def will_train(self, group: str) -> bool:
        """Whether the coming step may train a group, so that a ``training_step`` can leave out its forward.

        Raises:
            lightning_freeze.SelectionError: There is no such group.
        """
        return self._controller is not None and self._controller.may_train(group)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before anything is built: refuse what cannot hold, undo what an interrupted fit left behind."""
        self._undo()
        self._resume = None
        if stage != "fit":
            return
        refuse_strategy(trainer.strategy)
        others = [c for c in trainer.callbacks if isinstance(c, FreezeScheduler)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise ScheduleError(
                f"the Trainer has {len(others)} freeze schedulers ({', '.join(type(c).__name__ for c in others)}), which "
                "would undo each other. Put everything into the groups and the schedule of one."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model and its optimizers are there: resolve the groups, bind the schedule, hook in."""
        again = self._state_of_same_optimizers(trainer)
        self._begin_report(trainer, pl_module)
        self._controller = self._engine = FreezeController(
            pl_module,
            self._schedule,
            self._groups,
            self._rest,
            frozen_modules=self._frozen_modules,
            skip_backward=self._skip_backward,
            optimizer_state=self._optimizer_state,
            audit=self._audit,
            on_schedule_change=self._on_schedule_change,
            suspects=suspects(trainer),
            say=lambda text: say(trainer, text),
            record=self._record,
        )
        self._heard, self._listened = Heard(), -1
        self._clips = may_clip(trainer, pl_module)
        self._controller.attach(
            *trainer.optimizers,
            scaler=has_scaler(trainer),
            run=RunContext(
                pl_module,
                trainer.strategy.model or pl_module,
                trainer.world_size,
                manual_optimization=not pl_module.automatic_optimization,
                toggles=toggles_by_hand(pl_module),
                strategy=type(trainer.strategy).__name__,
                device=trainer.strategy.root_device,
                local_sgd=local_sgd(trainer),
            ),
            waits=loads_later(trainer),
            closures=True,
        )
        self._loading = LateLoading(trainer)
        self._stepped = [weakref.ref(optimizer) for optimizer in trainer.optimizers]
        self._resume = again
        if again is not None:  # known already, unless the strategy loads checkpoints later
            self._controller.load_state_dict(again)
        clipper = None if pl_module.automatic_optimization else clips_by_hand(pl_module)
        if clipper is not None:
            rank_zero_warn(
                f"{clipper} clips gradients itself, in manual optimization, before `step()`: there the frozen gradients "
                "are still counted into the norm. Clip the parameters that train alone: ask `will_train(group)`."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is restored: go on from the checkpoint, or begin anew."""
        if self._controller is None:
            return
        if resumes(trainer) and self._resume is None:
            rank_zero_warn(
                f"the checkpoint {str(trainer.ckpt_path)!r} holds no state of a freeze scheduler, so the schedule begins "
                "anew from its first step."
            )
        self._controller.begin(
            trainer.current_epoch,
            self._resume,
            variable_batch_size=bool(compiled(pl_module)) and batch_sizes_vary(trainer),
            windows_per_epoch=windows_per_epoch(trainer, pl_module),
        )
        # What a checkpoint's own comparison found, and no epoch's end has judged yet.
        self._controller.log.findings += [Finding.from_dict(plain) for plain in (self._resume or {}).get(_UNJUDGED, [])]
        self._running = True
        self._bar = BarText(
            trainer, "train", lambda: "+".join(sorted(self.trainable)[:3]) + "…" * (len(self.trainable) > 3)
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch begins; what the model logged at the last epoch's end, after our part of it, is heard before."""
        controller = self._controller
        if controller is not None and controller.metrics and self._listened != trainer.current_epoch:
            self._hear_late(trainer, controller)
            self._heard.begin_epoch(trainer)
            self._listened = trainer.current_epoch
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, what validation logs has been logged."""
        self._heard.validated |= not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The metrics that end phases are heard, then the epoch ends."""
        controller = self._controller
        if controller is not None and controller.epoch <= trainer.current_epoch:
            self._hear(trainer)
            if controller.metrics and not logs_later(trainer, pl_module, self):
                self._refuse_unlogged(trainer, controller, controller.epoch)
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was logged after our part of the last epoch's end is heard; then a last comparison, and the table."""
        if self._controller is not None and self._controller.metrics:
            self._hear_late(trainer, self._controller)
        super().on_train_end(trainer, pl_module)

    def _undo(self) -> None:
        if self._loading is not None:
            self._loading.remove()
            self._loading = None
        super()._undo()

    def _hear_late(self, trainer: Trainer, controller: FreezeController) -> None:
        """Hear what was logged for an epoch that has ended; whoever waits for a metric still does so in vain."""
        waited = controller.metrics.missing is not None
        self._hear(trainer)
        controller.compare_ranks()
        self._judge(trainer)
        if waited:
            self._refuse_unlogged(trainer, controller, controller.epoch - 1)

    def _hear(self, trainer: Trainer) -> None:
        if self._controller is not None and self._controller.metrics:
            self._controller.metrics.log(self._heard.fresh(trainer, self._controller.metrics.keys))

    def _refuse_unlogged(self, trainer: Trainer, controller: FreezeController, epoch: int) -> None:
        """Stop a run whose present phase waits for a metric that nobody logs; warn of what a later one will wait for."""
        if self._heard.may_come(trainer):
            return
        for metric, key in controller.metrics.unlogged.items():
            text = unlogged(metric, key, epoch, trainer)
            if metric == controller.metrics.awaited:
                saved = save_before_stopping(trainer, "freeze-stopped")
                mend = f" The run was saved to {saved!r}: go on from there with the mended schedule, by "
                raise ScheduleError(
                    text + (f"{mend}`on_schedule_change: continue`." if saved is not None else ""),
                    key=key,
                )
            if metric not in self._heard.told:
                self._heard.told.add(metric)
                rank_zero_warn(f"{text} The run will stop when that phase has had its first epoch.")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """A loss of nothing that trains is said to be one, with phase and groups, and updates nothing."""
        if not loss.requires_grad and self._controller is not None:
            self._controller.holds.before_backward(loss)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation finds every ``requires_grad`` as it was made."""
        if self._controller is not None:
            self._controller.pause()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Frozen parameters are told to DDP, and their infinities not to a scaler."""
        if self._controller is not None and self._controller.needs_backward:
            self._controller.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Empty the frozen gradients of the optimizer that is about to step."""
        if self._controller is not None:
            self._controller.before_optimizer_step(optimizer, self._clips)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare what is saved; what is found stays in the checkpoint until an epoch's end has judged it."""
        if self._controller is not None and self._running and self._controller.metrics and self._together:
            self._hear(trainer)  # a checkpoint of after validation, or after the epoch's end, has heard of it
            if self.state_key in checkpoint.get("callbacks", {}):
                checkpoint["callbacks"][self.state_key] = self.state_dict()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved:
            saved[_UNJUDGED] = [finding.as_dict() for finding in self.findings[self._judged :]]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as builtins alone."""
        return self._controller.state_dict() if self._controller is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training starts."""
        self._resume = state_dict

    def _state_of_same_optimizers(self, trainer: Trainer) -> dict[str, Any] | None:
        """What to go on from: a checkpoint's state, or that of an earlier fit that stepped these very optimizers."""
        if self._resume is not None or self._controller is None:
            return self._resume
        before = [reference() for reference in self._stepped]
        same = len(before) == len(trainer.optimizers) and all(map(_is, before, trainer.optimizers))
        return self._controller.state_dict() if same else None


class AlternatingFreeze(FreezeScheduler):
    """One group is updated once for every N updates of another: weight1 every N updates of weight2.

    Args:
        slow: Selector (or a list of them) of the parameters that are updated rarely; the group is called ``slow``.
        fast: The parameters that are updated always; the group is called ``fast``.
        every: How many updates of ``fast`` go with one of ``slow``.
        together: Whether the two are updated in one step (`Every`), or in turn: ``fast`` alone N times, then ``slow``
            alone once (`Phases`).
        rest, skip_backward, optimizer_state, frozen_modules, audit, on_finding, on_schedule_change: As for
            `FreezeScheduler`.

    Raises:
        ScheduleError: ``every`` is no whole number of at least 1.

    Example:
        >>> AlternatingFreeze(slow="layer1", fast="layer2", every=5).trainable
        frozenset()
    """

    def __init__(
        self,
        slow: str | list[str],
        fast: str | list[str],
        every: int,
        together: bool = True,
        rest: Literal["train", "freeze", "error"] = "train",
        skip_backward: SkipBackward = "auto",
        optimizer_state: OptimizerState = "keep",
        frozen_modules: Literal["train", "eval"] = "train",
        audit: bool | FreezeAudit = True,
        on_finding: OnFinding = "raise",
        on_schedule_change: OnScheduleChange = "raise",
    ) -> None:
        whole_number(every, "every", "`slow` is updated once for that many updates of `fast`")
        schedule: Schedule = (
            Every({"slow": every}, of="fast")
            if together
            else Phases([Phase(["fast"], updates=every), Phase(["slow"], updates=1)], repeat=True)
        )
        super().__init__(
            schedule,
            {"slow": slow, "fast": fast},
            rest,
            skip_backward,
            optimizer_state,
            frozen_modules,
            audit,
            on_finding,
            on_schedule_change,
        )
