"""Lightning's hooks: each a line that hands over to `FreezeController` or to the audit."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze._lightning import (
    BarText,
    LateLoading,
    LightningModule,
    Trainer,
    averages,
    clips_by_hand,
    has_scaler,
    loads_later,
    log_directory,
    may_clip,
    rank_zero_only,
    rank_zero_warn,
    resumes,
    save_before_stopping,
    say,
    suspects,
    toggles_by_hand,
    uneven_batches,
    windows_per_epoch,
)
from lightning_freeze.auditor import Auditor, OnFinding
from lightning_freeze.controller import FreezeController, OnScheduleChange
from lightning_freeze.gate.backward import SKIP_BACKWARD, Circumstances, SkipBackward, compiled
from lightning_freeze.gate.refusals import refuse_strategy
from lightning_freeze.gate.state import OPTIMIZER_STATE, OptimizerState
from lightning_freeze.input_audit import InputAudit, InputWatch
from lightning_freeze.metrics_heard import Heard, logs_later, unlogged
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.schedule import Schedule, ScheduleError, one_of, whole_number
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import FILE_NAME, Record, Recorder
from lightning_freeze.report.table import epoch_line, summary_table
from lightning_freeze.watch import RequiresGradWatch
from lightning_freeze.witness.inputs.messages import summary

_UNJUDGED = "unjudged"


class _Audited(Auditor):
    """What the callbacks share: hooks around an engine that audits, and the report of what it finds."""

    def __init__(self, on_finding: OnFinding, every_n_updates: int | None, inputs: bool) -> None:
        super().__init__(on_finding)
        if every_n_updates is not None:
            whole_number(every_n_updates, "every_n_updates", "the audit compares after that many updates, too")
        self._every_n_updates = every_n_updates
        self._engine: FreezeController | RequiresGradWatch | None = None
        self._recorder: Recorder | None = None
        self._records: list[Record] = []
        self._judged = self._checked = 0
        self._handled: BaseException | None = None
        self._running = False
        self._bar: BarText | None = None
        self._audits_inputs = inputs
        self._writes = True
        self._inputs: InputWatch | None = None

    def only_look(self) -> None:
        """Leave no file behind, and let the inputs be: this fit is only looked at."""
        self._writes = self._audits_inputs = False

    @property
    def findings(self) -> list[Finding]:
        """Everything that the audits have found in the last fit."""
        return list(self._engine.findings) if self._engine is not None else []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch begins; between epochs' ends the audit may be due."""
        if self._engine is None:
            return
        self._engine.begin_step(trainer.current_epoch)
        if self._inputs is not None:
            self._inputs.begin_batch(trainer.current_epoch, batch_idx)
        if (
            self._every_n_updates is not None
            and self._made(trainer, pl_module) - self._checked >= self._every_n_updates
        ):
            self._checked = self._made(trainer, pl_module)
            self._engine.check()
            self._judge(trainer)

    def _made(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """The updates so far; of several processes the steps, which are as many on all of them, whatever has happened."""
        if trainer.world_size > 1:
            loop = trainer.fit_loop.epoch_loop
            return int(trainer.global_step if pl_module.automatic_optimization else loop.total_batch_idx)
        return self._engine.total if self._engine is not None else 0

    @property
    def _together(self) -> bool:
        """Whether ranks do what is done now together: not where one of them saves because of an exception."""
        return sys.exc_info()[1] is self._handled

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """The batch's inputs are watched no more."""
        if self._inputs is not None:
            self._inputs.end_batch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A fit's validation says of inputs, too, whether they are used."""
        if self._inputs is not None and not trainer.sanity_checking:
            self._inputs.begin_batch(trainer.current_epoch, batch_idx)

    on_validation_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The audits of the epoch, its line, its metrics; a violation stops the run."""
        if self._engine is None or self._engine.epoch > trainer.current_epoch:  # ended before the run was resumed
            return
        self._tell_inputs(trainer, self._engine)
        self._checked = self._made(trainer, pl_module)
        self._engine.end_epoch()
        if self.asked_by == "switch":
            return self._judge(trainer)
        counts = next(record for record in reversed(self._records) if record["type"] == "counts")
        self._log(trainer, pl_module, counts)
        say(trainer, epoch_line(counts, counts["updates_before_epoch"]))
        self._judge(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last comparison, and the table."""
        if self._engine is None:
            return
        if self._inputs is not None and (stale := self._inputs.end_run()):
            self._engine.add(stale)
            rank_zero_warn(f"freeze: {summary(stale)}. See .findings")
        self._engine.finish()
        if self.asked_by != "switch":
            self._print_table()
        self._judge(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare what is saved; a finding is acted upon at the epoch's end."""
        if self._engine is not None and trainer.training:
            self._engine.check(together=self._together)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record what was done, and undo what was changed."""
        try:
            if self._engine is not None and self._running:
                self._engine.explain(exception)
                self._engine.flush()
        finally:
            self._undo()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo what was changed."""
        self._undo()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo what was changed."""
        self._undo()

    def _begin_report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._undo()
        self._handled = sys.exc_info()[1]  # where the fit is itself a second try
        others = any(isinstance(callback, InputAudit) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        self._inputs = InputWatch(pl_module) if self._audits_inputs and not others else None
        self._records = []
        self._judged = self._checked = 0
        directory = log_directory(trainer)  # on every rank: it may be broadcast
        here = trainer.is_global_zero and not trainer.fast_dev_run and self.asked_by != "switch"  # type: ignore[attr-defined]
        self._recorder = Recorder(directory / FILE_NAME) if here and self._writes else None

    def _record(self, record: Record) -> None:
        # For the table: not the steps of every epoch, which are as long as the run, and of the counts only the last.
        if record["type"] == "counts":
            self._records = [before for before in self._records if before["type"] != "counts"]
        if record["type"] != "phase":
            self._records.append(record)
        if self._recorder is not None:
            self._recorder(record)

    def _undo(self) -> None:
        self._running = False
        if self._engine is not None:
            self._engine.detach(bring_back=False)  # Lightning's teardown takes optimizer state to host memory anyway
        if self._inputs is not None:
            self._inputs.end_batch()
            self._inputs = None
        if self._bar is not None:
            self._bar.remove()
            self._bar = None

    def _log(self, trainer: Trainer, pl_module: LightningModule, counts: Record) -> None:
        if trainer.barebones:
            return
        values = {f"freeze/{group}/updates": float(number) for group, number in counts["updates"].items()}
        values |= {f"freeze/findings/{severity}": float(number) for severity, number in counts["findings"].items()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, reduce_fx="max")

    def _tell_inputs(self, trainer: Trainer, engine: FreezeController | RequiresGradWatch) -> None:
        """What the modules do with their inputs, in one line an epoch."""
        if self._inputs is None:
            return
        findings, fresh = self._inputs.end_epoch(trainer.current_epoch)
        engine.add(fresh)
        if findings:
            line = f"freeze, epoch {trainer.current_epoch}: {summary(findings)}. See .findings, or `lightning-freeze inputs`"
            serious = any(finding.severity == "warning" for finding in findings)
            (rank_zero_warn if serious else lambda text: say(trainer, text))(line)

    def _judge(self, trainer: Trainer) -> None:
        """Act upon the findings since the last time."""
        fresh = self.findings[self._judged :]
        self._judged += len(fresh)
        for finding in fresh:
            if finding.audit == "inputs":  # told in one line
                continue
            if finding.severity == "info":
                say(trainer, f"freeze: {finding.message}")
            elif finding.severity == "warning" or self._on_finding == "warn":
                rank_zero_warn(finding.message)
        if self._on_finding == "warn":
            return
        self._stop_for([finding for finding in fresh if finding.severity == "error"], trainer, "freeze")

    @rank_zero_only
    def _print_table(self) -> None:
        Console().print(summary_table(self._records))


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
                value=schedule,
            )
        if groups is not None and not isinstance(groups, Mapping):
            raise ScheduleError(
                f"`groups` is {groups!r}, but must map names to selectors: {{'head': 'model.head'}}.",
                key="groups",
                value=groups,
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
            around=Circumstances(
                pl_module,
                trainer.strategy.model or pl_module,
                trainer.world_size,
                by_hand=not pl_module.automatic_optimization,
                toggles=toggles_by_hand(pl_module),
                strategy=type(trainer.strategy).__name__,
                device=trainer.strategy.root_device,
                averages=averages(trainer),
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
            uneven=bool(compiled(pl_module)) and uneven_batches(trainer),
            windows_per_epoch=windows_per_epoch(trainer, pl_module),
        )
        # What a checkpoint's own comparison found, and no epoch's end has judged yet.
        self._controller.findings += [Finding.from_dict(plain) for plain in (self._resume or {}).get(_UNJUDGED, [])]
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
        waited = controller.unheard is not None
        self._hear(trainer)
        controller.compare_ranks()
        self._judge(trainer)
        if waited:
            self._refuse_unlogged(trainer, controller, controller.epoch - 1)

    def _hear(self, trainer: Trainer) -> None:
        if self._controller is not None and self._controller.metrics:
            self._controller.hear(self._heard.fresh(trainer, self._controller.metrics))

    def _refuse_unlogged(self, trainer: Trainer, controller: FreezeController, epoch: int) -> None:
        """Stop a run whose present phase waits for a metric that nobody logs; warn of what a later one will wait for."""
        if self._heard.may_come(trainer):
            return
        for metric, key in controller.unlogged.items():
            text = unlogged(metric, key, epoch, trainer)
            if metric == controller.awaits:
                saved = save_before_stopping(trainer, "freeze-stopped")
                mend = f" The run was saved to {saved!r}: go on from there with the mended schedule, by "
                raise ScheduleError(
                    text + (f"{mend}`on_schedule_change: continue`." if saved is not None else ""),
                    key=key,
                    value=metric,
                )
            if metric not in self._heard.told:
                self._heard.told.add(metric)
                rank_zero_warn(f"{text} The run will stop when that phase has had its first epoch.")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """A loss of nothing that trains is said to be one, with phase and groups, and updates nothing."""
        if not loss.requires_grad and self._controller is not None:
            self._controller.before_backward(loss)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation finds every ``requires_grad`` as it was made."""
        if self._controller is not None:
            self._controller.pause()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Frozen parameters are told to DDP, and their infinities not to a scaler."""
        if self._controller is not None and self._controller.hears_backward:
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


class FreezeAudit(_Audited):
    """Proves that what has ``requires_grad=False`` keeps every bit, and that the rest moves; schedules nothing.

    For runs that freeze by other means: BackboneFinetuning, PEFT, one's own code. Handed to `FreezeScheduler` as
    ``audit``, it says how the scheduler's own audit is done instead.

    Args:
        every_n_updates: Also compare after every so many optimizer steps, for runs of one long epoch.
        on_finding: Whether a violation stops the run, after saving it, or warns; by default the scheduler's own way, and
            ``raise`` without one.
        inputs: Whether to audit, in the first batch of an epoch and the first of its validation, that no module is
            handed what it never uses; what is found is a warning. An `InputAudit` beside it takes this over.

    Raises:
        FreezeViolation: Something frozen moved.

    Example:
        >>> FreezeAudit(every_n_updates=1000).findings
        []
    """

    def __init__(
        self, every_n_updates: int | None = None, on_finding: OnFinding | None = None, inputs: bool = True
    ) -> None:
        super().__init__("raise" if on_finding is None else on_finding, every_n_updates, inputs)
        self.inputs = inputs
        self.every_n_updates = every_n_updates
        self.on_finding = on_finding
        self._watch: RequiresGradWatch | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model and its optimizers are there: watch them."""
        if self.asked_by == "switch" and any(isinstance(c, _Audited) and c is not self for c in trainer.callbacks):  # type: ignore[attr-defined]
            self._engine = self._watch = None
            return
        self._begin_report(trainer, pl_module)
        self._watch = self._engine = RequiresGradWatch(pl_module, suspects=suspects(trainer), record=self._record)
        around = Circumstances(
            pl_module,
            trainer.strategy.model or pl_module,
            trainer.world_size,
            device=trainer.strategy.root_device,
            averages=averages(trainer),
        )
        self._watch.attach(*trainer.optimizers, around=around)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is restored: remember what is to move."""
        if self._watch is not None:
            self._watch.begin(trainer.current_epoch)
            self._running = True


def _is(one: object, other: object) -> bool:
    return one is other
