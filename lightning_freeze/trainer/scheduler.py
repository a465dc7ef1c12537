"""`FreezeScheduler`: Lightning's hooks, each a line that calls `FreezeController`."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.errors import ScheduleError, whole_number
from lightning_freeze.holds.run_context import compiled
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.schedule import Schedule
from lightning_freeze.report.findings import Finding
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.arguments import (
    FrozenModules,
    OnFinding,
    OnScheduleChange,
    OptimizerState,
    Rest,
    Selector,
    SkipBackward,
    check_words,
)
from lightning_freeze.trainer.freeze_audit import FreezeAudit, _Audited
from lightning_freeze.trainer.fsdp2_checkpoints import load_without_state, loads_later
from lightning_freeze.trainer.metrics import LoggedMetrics

if TYPE_CHECKING:
    from lightning_freeze.controller import FreezeController

_RUN = "run"
"""The key, in a checkpoint, of the run's id in its records."""
_PENDING = "unjudged"
"""The key, in a checkpoint, of findings that no epoch's end has acted on."""


class FreezeScheduler(_Audited):
    """Trains each group of parameters when a schedule says so, freezes it otherwise, and proves it every epoch.

    Gradients of frozen parameters are set to None before clipping and again right before the optimizer's step, so that
    momentum, weight decay and running averages do not move them. Learning-rate schedulers count on while a group is
    frozen. A second fit of the same Trainer goes on in the schedule; under another Trainer it begins again.

    Args:
        schedule: `Every` or `Phases`; in YAML also the path of a file that holds one.
        groups: Group to selector (see `resolve_groups`). A name in the schedule that is not a group is read as a selector.
        rest: Parameters outside the groups: ``train`` (always), ``freeze`` (never) or ``error``.
        skip_backward: Whether to skip the backward work of frozen groups, by ``requires_grad=False`` while they are
            frozen: ``auto`` where that is safe, and says in a line why or why not; ``True``, or an error where it is not;
            ``False`` only sets gradients to None after backward. Skipping changes no bit of Linear, LSTM, convolutions of
            contiguous inputs, Embedding and Llama; GRU, attention with a learnt bias, T5 and TransformerEncoderLayer round
            otherwise, since torch chooses kernels by ``requires_grad``.
        optimizer_state: The optimizer state of frozen groups: ``keep``; ``offload``, from an accelerator to host memory
            until they train again, unless that is within ten updates; ``reset``, dropped, so that they start without, as
            in BAdam. A checkpoint holds what there is, and can be resumed under another value.
        frozen_modules: ``eval`` keeps frozen modules in eval mode: batch-norm statistics and dropout are frozen too.
        audit: Whether to audit, or a `FreezeAudit` that says how.
        on_finding: Whether a frozen parameter that moved stops the run at the epoch's end, after saving it, or warns.
        on_schedule_change: Whether a checkpoint of another schedule, or of other groups, is refused (``raise``), or the
            run resumes from it (``continue``): with its counts, by the names of groups, and its place in the sequence of
            phases.
        verbose: Whether to print the tables at the start and the end, an epoch's line and what is for information.

    Raises:
        ScheduleError: The schedule cannot be run, or awaits a metric that was not logged.
        SelectionError: The groups cannot be resolved.
        UnsupportedError: Under this optimizer or strategy frozen parameters would move, or `skip_backward` or
            `optimizer_state` would go wrong.
        FreezeViolation: A frozen parameter moved.

    Example:
        >>> FreezeScheduler(Every({"layer1": 5}, of="layer2")).updates
        {}
    """

    def __init__(
        self,
        schedule: Phases | Schedule,
        groups: dict[str, Selector] | None = None,
        rest: Rest = "train",
        skip_backward: SkipBackward = "auto",
        optimizer_state: OptimizerState = "keep",
        frozen_modules: FrozenModules = "train",
        audit: bool | FreezeAudit = True,
        on_finding: OnFinding = "raise",
        on_schedule_change: OnScheduleChange = "raise",
        verbose: bool = True,
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise ScheduleError(
                f"`schedule` is {schedule!r}, but must be a schedule: Every({{'layer1': 5}}, of='layer2'), or Phases([…])."
                + " Paths and mappings are read by a LightningCLI alone." * isinstance(schedule, (str, Mapping, Path)),
                key="schedule",
            )
        if groups is not None and not isinstance(groups, Mapping):
            raise ScheduleError(
                f"`groups` is {groups!r}, but must map names to selectors: {{'head': 'model.head'}}.", key="groups"
            )
        words: dict[str, Any] = {"rest": rest, "skip_backward": skip_backward, "optimizer_state": optimizer_state}
        words |= {"frozen_modules": frozen_modules, "on_schedule_change": on_schedule_change}
        check_words(**words)
        how = audit if isinstance(audit, FreezeAudit) else FreezeAudit(inputs=bool(audit))
        super().__init__(how.on_finding or on_finding, how.every_n_updates, how.inputs, verbose and how.verbose)
        self._schedule = schedule
        self._groups = {**(groups or {}), **how.exempt}
        self._options: dict[str, Any] = {**words, "audit": bool(audit)}
        self._clips = True
        self._controller: FreezeController | None = None
        self._logged: LoggedMetrics | None = None
        self._resume: dict[str, Any] | None = None
        self._fitted_by: weakref.ref[seam.Trainer] | None = None

    @property
    def state_key(self) -> str:
        """One key for all schedulers, so that a checkpoint of one is understood, or refused, by another."""
        return "lightning_freeze.FreezeScheduler"

    @property
    def updates(self) -> dict[str, int]:
        """Group to the optimizer steps that ran for it."""
        return self._controller.updates if self._controller is not None else {}

    @property
    def controller(self) -> FreezeController | None:
        """The controller of the last fit; None before the first."""
        return self._controller

    @property
    def trainable(self) -> frozenset[str]:
        """The groups that the coming step may train."""
        return self._controller.trainable if self._controller is not None else frozenset()

    def will_train(self, group: str) -> bool:
        """Whether the coming step may train a group; otherwise a ``training_step`` can skip its forward.

        Raises:
            lightning_freeze.SelectionError: There is no such group.
        """
        return self._controller is not None and self._controller.may_train(group)

    def copy_for(self, trainer: seam.Trainer, other: seam.Trainer) -> FreezeScheduler:
        """A copy that goes on under another Trainer as this callback would under its own."""
        copied = copy.deepcopy(self)
        if self._fitted_by is not None and self._fitted_by() is trainer:
            copied._controller, copied._fitted_by = self._controller, weakref.ref(other)
        return copied

    def setup(self, trainer: seam.Trainer, pl_module: seam.LightningModule, stage: str) -> None:
        self._undo()  # what an interrupted fit left
        self._resume = None
        if stage != "fit":
            return
        seam.refuse_strategy(trainer.strategy)
        schedulers = [type(c).__name__ for c in trainer.callbacks if isinstance(c, FreezeScheduler)]  # type: ignore[attr-defined]
        if len(schedulers) > 1:
            raise ScheduleError(
                f"the Trainer has {len(schedulers)} freeze schedulers ({', '.join(schedulers)}), which would undo each "
                "other. Put everything into the groups and the schedule of one."
            )

    def on_fit_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        from lightning_freeze.controller import FreezeController  # not before a fit: `--help` takes as long as without

        self._resume = self._state_to_resume(trainer)
        self._begin_report(trainer, pl_module)
        before = self._controller
        controller = self._engine = self._controller = FreezeController(
            pl_module,
            self._schedule,
            self._groups,
            **self._options,
            suspects=seam.averaging_callbacks(trainer),
            say=lambda text: self._say(trainer, text),
            record=self._record,
        )
        try:
            self._attach(trainer, pl_module, controller)
        except BaseException:
            self._controller = before  # where a corrected fit goes on
            raise

    def _attach(self, trainer: seam.Trainer, pl_module: seam.LightningModule, controller: FreezeController) -> None:
        controller.audit.ends_later = True
        self._logged = LoggedMetrics(controller.metrics) if controller.metrics else None
        self._clips = seam.may_clip(trainer, pl_module)
        controller.attach(
            *trainer.optimizers,
            scaler=seam.has_scaler(trainer),
            run=seam.run_context(trainer, pl_module),
            waits=loads_later(trainer),
            closures=True,
        )
        self._removals.append(load_without_state(trainer))
        self._fitted_by = weakref.ref(trainer)
        if self._resume is not None:  # known already, unless the strategy loads checkpoints later
            controller.load_state_dict(self._resume)
        clipping = None if pl_module.automatic_optimization else seam.method_that_names(pl_module, seam.CLIPPING)
        if clipping is not None:
            seam.rank_zero_warn(
                f"{clipping} clips gradients itself, in manual optimization, before `step()`: there the frozen gradients "
                "still count in the norm. Clip only the parameters that train: ask `will_train(group)`."
            )

    def on_train_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._controller is None:
            return
        if seam.resumes(trainer) and self._resume is None:
            seam.rank_zero_warn(
                f"the checkpoint {str(trainer.ckpt_path)!r} holds no state of a freeze scheduler, so the schedule starts "
                "from its first step."
            )
        self._controller.log.run = (self._resume or {}).get(_RUN, "")
        self._controller.begin(
            trainer.current_epoch,
            self._resume,
            variable_batch_size=bool(compiled(pl_module)) and seam.batch_sizes_vary(trainer),
            windows_per_epoch=seam.windows_per_epoch(trainer, pl_module),
        )
        # Findings of the checkpoint's own comparison, which no epoch's end has acted on yet.
        self._controller.log.findings += [Finding.from_dict(plain) for plain in (self._resume or {}).get(_PENDING, [])]
        self._running = True
        self._removals.append(seam.add_bar_text(trainer, "train", lambda: _shown(self.trainable)))

    def _begin_epoch(self, trainer: seam.Trainer) -> None:
        if self._logged is not None and self._logged.epoch != trainer.current_epoch:
            self._log_late_metrics(trainer)
            self._logged.begin_epoch(trainer)
        super()._begin_epoch(trainer)

    def on_validation_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._logged is not None:
            self._logged.validated |= not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        controller = self._controller
        if self._logged is not None and controller is not None and controller.epoch <= trainer.current_epoch:
            self._logged.read(trainer)
            if not seam.logs_later(trainer, pl_module, self):
                self._logged.refuse_unlogged(trainer, controller.epoch)
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        self._log_late_metrics(trainer)
        super().on_train_end(trainer, pl_module)

    def _log_late_metrics(self, trainer: seam.Trainer) -> None:
        """Read what was logged for an epoch after our hook at its end; what it still awaits is refused."""
        controller = self._controller
        if self._logged is None or controller is None:
            return
        awaited = controller.metrics.missing is not None
        self._logged.read(trainer)
        controller.compare_ranks()
        self._act_on_findings(trainer)
        if awaited:
            self._logged.refuse_unlogged(trainer, controller.epoch - 1)

    def on_before_backward(self, trainer: seam.Trainer, pl_module: seam.LightningModule, loss: Tensor) -> None:
        if not loss.requires_grad and self._controller is not None:
            self._controller.holds.before_backward(loss)

    def on_after_backward(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._controller is not None and self._controller.needs_backward:
            self._controller.after_backward()

    def on_before_optimizer_step(self, trainer: seam.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if self._controller is not None:
            self._controller.before_optimizer_step(optimizer, self._clips)

    def on_save_checkpoint(self, trainer: seam.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        callbacks = checkpoint.get("callbacks", {})
        if self._logged is not None and self._running and self._all_ranks:
            self._logged.read(trainer)  # the checkpoint may be one of after validation, or after the epoch's end
            if self.state_key in callbacks:
                callbacks[self.state_key] = self.state_dict()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if callbacks.get(self.state_key):
            pending = self.findings[self._acted_on :]
            callbacks[self.state_key][_PENDING] = [finding.as_dict() for finding in pending]

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, in builtins and tensors alone."""
        if self._controller is None:
            return {}
        return {**self._controller.state_dict(), _RUN: self._controller.log.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training starts."""
        self._resume = state_dict

    def _state_to_resume(self, trainer: seam.Trainer) -> dict[str, Any] | None:
        """A checkpoint's state, or that of an earlier fit of the same Trainer."""
        before = self._controller
        if self._resume is not None or before is None or before.total == 0 or seam.resumes(trainer):
            return self._resume
        if self._fitted_by is not None and self._fitted_by() is trainer:
            self._say(
                trainer, f"freeze: the fit goes on after this Trainer's last one, which made {before.total} updates."
            )
            return self.state_dict()
        self._say(trainer, "freeze: the Trainer is another than that of the last fit, so the schedule begins again.")
        return None


def _shown(groups: Iterable[str]) -> str:
    names = sorted(groups)
    return "+".join(names[:3]) + "…" * (len(names) > 3)


class AlternatingFreeze(FreezeScheduler):
    """Updates one group once for every N updates of another: weight1 every N updates of weight2.

    Args:
        slow: Selector (or a list of them) of the parameters that are updated rarely; the group is called ``slow``.
        fast: The parameters that are updated always; the group is called ``fast``.
        every: The number of updates of ``fast`` for one of ``slow``.
        together: Whether both are updated in one step (`Every`), or in turn (`Phases`): ``fast`` alone N times, then
            ``slow`` alone once.
        rest, skip_backward, optimizer_state, frozen_modules, audit, on_finding, on_schedule_change, verbose: As for
            `FreezeScheduler`.

    Raises:
        ScheduleError: ``every`` is not a whole number of at least 1.

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
        rest: Rest = "train",
        skip_backward: SkipBackward = "auto",
        optimizer_state: OptimizerState = "keep",
        frozen_modules: FrozenModules = "train",
        audit: bool | FreezeAudit = True,
        on_finding: OnFinding = "raise",
        on_schedule_change: OnScheduleChange = "raise",
        verbose: bool = True,
    ) -> None:
        whole_number(every, "every", "`slow` is updated once for that many updates of `fast`")
        self.slow, self.fast, self.every, self.together = slow, fast, every, together
        plan: Schedule = Phases([Phase(["fast"], updates=every), Phase(["slow"], updates=1)], repeat=True)
        if together:
            plan = Every({"slow": every}, of="fast")
        groups: dict[str, Any] = {"slow": slow, "fast": fast}
        words = (rest, skip_backward, optimizer_state, frozen_modules, audit, on_finding, on_schedule_change, verbose)
        super().__init__(plan, groups, *words)
