"""`FreezeController`: plan, hold, audit and report in one loop; knows torch but not Lightning."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lightning_freeze import checkpoint, setup
from lightning_freeze.attachment import Attachment
from lightning_freeze.audit.exempt import Exemptions
from lightning_freeze.audit.frozen import collector_paused
from lightning_freeze.audit.ranks import place_mismatch, refuse_mismatch
from lightning_freeze.audit.run_audit import RunAudit
from lightning_freeze.checkpoint import OnScheduleChange
from lightning_freeze.errors import NOT_ATTACHED, SelectionError, did_you_mean, one_of
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.optimizer_state import OPTIMIZER_STATE, OptimizerState
from lightning_freeze.holds.run_context import RunContext, unwrapped
from lightning_freeze.holds.skip_decision import SKIP_BACKWARD, Decision, SkipBackward
from lightning_freeze.loop import ATTACHED, Loop, Place
from lightning_freeze.plan.groups import Groups, Rest, group_parameters, selectors_for
from lightning_freeze.plan.membership import same_objects
from lightning_freeze.plan.metric_log import MetricLog
from lightning_freeze.plan.outlook import Outlook
from lightning_freeze.plan.schedule import NO_END, Schedule
from lightning_freeze.plan.selectors import Selector
from lightning_freeze.probe.probe import OptimizerTraits
from lightning_freeze.probe.state_size import state_bytes
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Log, Record
from lightning_freeze.report.run_table import start_text
from lightning_freeze.report.steps import Steps

_LOG = logging.getLogger("lightning_freeze")
_FORESEEN = 3000  # windows in which the longest frozen interval is looked for

_MOVED = {
    "hear": "metrics.log",
    "awaits": "metrics.awaited",
    "unheard": "metrics.missing",
    "unlogged": "metrics.unlogged",
    "position": "preview.position",
    "sizes": "preview.sizes",
    "hears_backward": "needs_backward",
    "check": "audit.check",
    "counts": "audit.counts",
    "add": "log.add",
    "explain": "holds.explain",
    "before_backward": "holds.before_backward",
    "optimizer_state": "options.optimizer_state",
}
"""Former names, and where they are now."""


class FreezeController(AbstractContextManager["FreezeController", None]):
    """Runs a schedule over a model and its optimizers: plans who trains, holds the others, and proves it.

    Call `attach` and `begin`, then for every batch `begin_step` before the usual backward and ``optimizer.step()``,
    `end_epoch` after each epoch, and at the end `finish` and `detach`; ``with controller:`` detaches by itself. Where
    gradients are clipped, call `before_optimizer_step` before the clipping, so that frozen gradients do not count into the
    norm; under a GradScaler, and under DDP, call `after_backward` after each backward. Call `pause` before code that needs
    ``requires_grad`` as you set it, such as validation between two batches. `state_dict` goes into a checkpoint and back
    into `begin`; load the optimizer's own state before `attach`. With several processes all of them call the same methods
    and get the same findings. ``examples/plain_loop.py`` and ``examples/fabric_loop.py`` are whole programs.

    Args:
        module: The model, with every parameter of every group at ``requires_grad=True``; or its wrapper, from
            DistributedDataParallel, FSDP, Fabric's ``setup`` or `torch.compile`, so that ``skip_backward: auto`` and the
            audit know of it. Names are those of the model within.
        schedule: Who trains when.
        groups: Group to selector (see `resolve_groups`). A name in the schedule that is not a group is read as a selector.
        rest: What becomes of the parameters outside the groups: ``train``, ``freeze`` or ``error``.
        frozen_modules: ``eval`` holds frozen modules in eval mode, so that batch-norm statistics stay frozen too.
        skip_backward: Whether the backward work of frozen groups is skipped, with ``requires_grad=False`` while they are
            frozen: ``auto`` where that is safe.
        optimizer_state: What becomes of the optimizer state of frozen groups: ``keep``, ``offload`` (to host memory,
            until they train again) or ``reset`` (dropped, as in BAdam).
        audit: Whether frozen weights are fingerprinted and moving ones checked.
        on_schedule_change: What becomes of a state that was saved under another schedule or other groups: ``raise``, or
            ``continue`` with its counts, by the names of groups, and its place in the sequence of phases.
        suspects: Names of what else in the run writes to weights, for the audit's explanations.
        say: Called with each line to log.
        record: Called with each record of the run.

    Raises:
        ScheduleError: The schedule names an unknown group, or an argument has an unknown value.
        SelectionError: A selector matches nothing, or parameters cannot be grouped.

    Example:
        >>> import torch
        >>> from lightning_freeze import Every
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> controller = FreezeController(model, Every({"0": 2}, of="1"))
        >>> controller.attach(optimizer)
        >>> controller.begin()
        >>> for _ in range(4):
        ...     controller.begin_step()
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 2)).sum().backward()
        ...     controller.before_optimizer_step(optimizer)
        ...     norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ...     optimizer.step()
        >>> controller.updates
        {'0': 2, '1': 4}
        >>> controller.end_epoch()
        []
        >>> state = controller.state_dict()  # later: controller.begin(state=state)
        >>> controller.finish()
        []
        >>> controller.detach()
    """

    @collector_paused
    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        groups: Mapping[str, Selector] | None = None,
        rest: Rest = "train",
        *,
        frozen_modules: Literal["train", "eval"] = "train",
        skip_backward: SkipBackward = "auto",
        optimizer_state: OptimizerState = "keep",
        audit: bool = True,
        on_schedule_change: OnScheduleChange = "raise",
        suspects: Sequence[str] = (),
        say: Callable[[str], None] = _LOG.info,
        record: Callable[[Record], None] = lambda record: None,
    ) -> None:
        model, wrapper, is_compiled = unwrapped(module)
        one_of("skip_backward", skip_backward, SKIP_BACKWARD)
        one_of("optimizer_state", optimizer_state, OPTIMIZER_STATE)
        self.schedule = schedule
        self.options = setup.Options(skip_backward, optimizer_state, frozen_modules == "eval", audit)
        self.log = Log(record)
        self._place = Place(schedule)
        self.audit = RunAudit(model, self.log, lambda: self._place.at, suspects)
        self.audit.stage = lambda: self._place.plan.stage(self._place.at, True) if self._place.plan else ("", None)
        context = RunContext(model, wrapper, compiled=is_compiled)
        self._attachment = Attachment(self._place, self.options, self.audit, context, say)
        self._on_change = on_schedule_change
        self._place.groups = group_parameters(model, selectors_for(model, dict(groups or {}), schedule), rest)
        self.audit.exempt = Exemptions(model, self.groups)
        self.metrics = MetricLog(schedule, self._place.planned, self._place.logged)
        self.preview = Outlook(self._place.planned, self._place.optimizers, lambda: self.groups, state_bytes)

    def __getattr__(self, name: str) -> Any:
        """Former names are found where they are now, with a warning."""
        if name not in _MOVED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        now = _MOVED[name]
        warnings.warn(f"FreezeController.{name} is now FreezeController.{now}", DeprecationWarning, stacklevel=2)
        return attrgetter(now)(self)

    # --- what a user reads

    @property
    def findings(self) -> list[Finding]:
        """Everything that the audits have found."""
        return self.log.findings

    @property
    def groups(self) -> Groups:
        """The groups and their parameters, as they are now."""
        return self._place.groups

    @property
    def backward(self) -> Decision:
        """Whether the backward work of frozen groups is skipped, and why."""
        return self._attachment.backward

    @property
    def needs_backward(self) -> bool:
        """Whether `after_backward` has something to do: under a GradScaler, and under plain DDP where backward is skipped."""
        return self._attachment.needs_backward

    @property
    def traits(self) -> dict[int, OptimizerTraits]:
        """The traits of each optimizer that holds something which freezes, by its index."""
        return self._attachment.traits

    @property
    def updates(self) -> dict[str, int]:
        """Group to the updates it has had: optimizer steps that truly ran for it."""
        return dict(self._place.at.updates)

    @property
    def total(self) -> int:
        """Optimizer steps so far in which anything was updated."""
        return self._place.at.total

    @property
    def epoch(self) -> int:
        """The epoch the schedule is in, from 0."""
        return self._place.at.epoch

    @property
    def trainable(self) -> frozenset[str]:
        """The groups that the coming step may train, ``rest`` included where it trains."""
        plan, at = self._place.planned()
        return plan.trainable(at) if plan is not None else frozenset()

    @property
    def holds(self) -> Hold:
        """What keeps the frozen parameters as they are; nothing, where it is not attached."""
        return self._place.loop.built.holds if self._place.loop is not None else Hold()

    def may_train(self, group: str) -> bool:
        """Whether the coming step may train a group, or any group of a family.

        Raises:
            SelectionError: There is no such group.
        """
        names = self.groups.families.get(group, (group,))
        known = [*self.groups.members, *self.groups.families]
        if group not in known:
            raise SelectionError(f"there is no group {group!r}.{did_you_mean(group, known, 3)}")
        return not self.trainable.isdisjoint(names)

    # --- a run

    def attach(
        self,
        *optimizers: Optimizer,
        scaler: bool = False,
        epoch: int = 0,
        run: RunContext | None = None,
        waits: bool = False,
        closures: bool | None = None,
    ) -> None:
        """Bind the schedule to the optimizers and hook into them.

        Args:
            optimizers: The run's optimizers, or Fabric's wrappers of them, in the order that schedules count them.
            scaler: Whether a GradScaler steps them.
            epoch: The epoch to begin in.
            run: What decides whether backward can be skipped. By default it follows from the module, and several optimizers
                may each step within a batch.
            waits: Whether the optimizers' state is yet to be loaded, so that steps before `begin` are not counted:
                `torch.distributed.checkpoint` makes one, with gradients of zero, to initialise state.
            closures: Whether steps are given a closure, as Lightning gives them; some optimizers then act otherwise. By
                default, only where an optimizer requires one.

        Raises:
            SelectionError: A parameter of a group is in none of the optimizers.
            ScheduleError: The schedule leaves nothing trainable, or ranks were given different ones.
            UnsupportedError: An optimizer moves frozen parameters, backward cannot be skipped though `skip_backward` is
                true, or optimizer state cannot be reset or offloaded.
        """
        self.detach()
        self._attachment.meet(run, scaler, closures)
        self._attachment.hold(optimizers, attach=not waits, epoch=epoch)

    @collector_paused
    def begin(
        self,
        epoch: int | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        variable_batch_size: bool = False,
        windows_per_epoch: int | None = None,
    ) -> None:
        """Training begins: go on from a saved state, remember what is to move, and record the run.

        Args:
            epoch: The epoch to begin in, where there is no state.
            state: What `state_dict` gave.
            variable_batch_size: Whether batches may differ in size, for each of which code is compiled again.
            windows_per_epoch: Optimizer windows (a batch, or an accumulation of several) in an epoch, from which follows
                how long groups stay frozen; without it, phases that count epochs are taken to have no end.

        Raises:
            ScheduleError: The state was saved under another schedule or other groups, or ranks go on from different places.
        """
        loop, at = self._loop, self._place.at
        self._attachment.begin(variable_batch_size)
        refused: Exception | None = None
        if state is not None:
            try:
                self.load_state_dict(state)
            except Exception as error:  # raised once the other ranks know
                refused = error
        elif epoch is not None:
            at.epoch = epoch
        difference = self.audit.ranks.disagreement({**self._place.where(), "refused": str(refused or "")})
        if refused is not None:
            raise refused
        refuse_mismatch("where training begins", "the checkpoints that the ranks go on from", difference)
        at = self._place.at
        if state is not None and checkpoint.unpacked(state)["schedule"] == self.schedule.describe():
            checkpoint.warn_of_lost_value(at, self.metrics.awaited, at.epoch if epoch is None else epoch)
        loop.hooks.attach()
        loop.built.holds.begin()
        coming = partial(self.preview, windows_per_epoch or NO_END, windows=_FORESEEN)
        setup.warn_of_step_counters(loop.members, self.traits, coming, at.updates, self._attachment.closures)
        record = setup.begin_audit(
            self.audit,
            self.schedule,
            self.options,
            self.backward,
            loop,
            self.traits,
            self.preview.sizes(),
            state is not None,
        )
        setup.warn_of_what_trains(loop.plan, self.schedule, record)
        stage, notes = loop.plan.stage(at)[0], setup.notes(loop, self.options)
        loop.say(start_text(record, stage, self.trainable, loop.plan.when, notes))

    def begin_step(self, epoch: int | None = None, optimizers: Sequence[Optimizer] | None = None) -> None:
        """A batch begins.

        Args:
            epoch: The epoch it belongs to, from 0; by default the one after the last `end_epoch`.
            optimizers: The run's optimizers now; where others were given to `attach`, the schedule goes on with these.

        Raises:
            SelectionError: The model or an optimizer was given a parameter that cannot be grouped.
        """
        loop = self._place.loop or self._loop
        if optimizers is not None and not same_objects(optimizers, loop.given):
            loop = self._attachment.hold_others(loop, optimizers)
        if loop.state is ATTACHED:
            self._attachment.begin_first(loop)
        loop.begin_step(epoch)

    def after_backward(self) -> None:
        """After each backward: zero gradients for DDP, and frozen gradients set to None before a GradScaler."""
        self._loop.built.holds.after_backward(self._loop.members.steps)

    def before_optimizer_step(
        self, optimizer: object, clipped: bool = True, optimizers: Sequence[Optimizer] | None = None
    ) -> None:
        """Before clipping: set the frozen gradients of the optimizer that is about to step to None.

        Args:
            optimizer: The optimizer, or Lightning's wrapper around it.
            clipped: Whether clipping follows. Where not, and backward made no frozen gradients, one parameter of each group
                shows whether other code did; all of them are set to None right before the step in either case.
            optimizers: The run's optimizers now, as for `begin_step`; where this one was not among them, its step has begun.
        """
        loop = self._place.loop or self._loop
        if loop.members.names.touched:
            loop.verify()
        step = loop.members.step_of(optimizer)
        if step is None and (now := optimizers or loop.context.optimizers()) and not same_objects(now, loop.given):
            self.begin_step(None, now)
            loop = self._loop
            if (step := loop.members.step_of(optimizer)) is not None:
                step.note()
        if step is not None:
            step.attempted = True
            loop.built.holds.before_clipping(step, clipped)

    def pause(self) -> None:
        """Until the next batch nothing is skipped: ``requires_grad`` is as the user left it; what has frozen is audited."""
        if self._place.loop is not None:
            self._place.loop.pause()

    def compare_ranks(self, epoch: int | None = None) -> list[Finding]:
        """Whether all ranks are at the same place of the schedule; they call it together.

        Each epoch's end calls it. Call it again where a metric that was logged later may have ended a phase.

        Args:
            epoch: The epoch that has ended, by default the last.
        """
        difference, at = self.audit.ranks.disagreement(self._place.where()), self._place.at
        if difference is None:
            return []
        return self.log.add([place_mismatch(difference, max(0, at.epoch - 1) if epoch is None else epoch, at.total)])

    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it."""
        loop, at = self._loop, self._place.at
        epoch = at.epoch
        loop.verify(walk=True)
        found = self.audit.end_epoch(loop.stalled() if self.audit.weights is not None else ())
        found += self.compare_ranks(epoch)
        self._place.epoch_length = at.total - self.audit.steps.first
        self.audit.record_epoch()
        loop.plan.end_epoch(at)
        loop.decide()
        loop.say_why()
        loop.begin_epoch()
        loop.pause()
        return found

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison, called by all ranks together."""
        return self.audit.finish()

    def flush(self) -> None:
        """Record the steps made since the last epoch's end."""
        self.audit.flush()

    def detach(self, bring_back: bool = True) -> None:
        """Undo everything: hooks, modes, ``requires_grad``, optimizer state that was moved.

        Counts, findings and `state_dict` stay readable. Safe to call again.

        Args:
            bring_back: Whether optimizer state in host memory comes back to its device, as far as that has room for it.
        """
        loop, self.audit.weights = self._place.loop, None  # nothing here keeps a finished run's optimizers alive
        if loop is not None:
            loop.detach(bring_back)

    def __exit__(self, *error: object) -> None:
        """``with controller:`` undoes everything at the block's end, also after an exception."""
        self.detach()

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as builtins alone."""
        rest = {
            "position": self._place.at.as_dict(),
            "steps": self.audit.steps.as_dict(),
            "epoch_updates": self.audit.updates_before,
            "logged": sorted(self.metrics.logged),
        }
        whole = {**self._place.identity.as_dict(), **checkpoint.to_builtins(rest)}
        return {"version": checkpoint.VERSION, **checkpoint.packed(whole)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            ScheduleError: It was made under another schedule or with other groups; the message shows the difference.
        """
        loop, state = self._loop, checkpoint.unpacked(state)
        position, differences = checkpoint.read(state, self._place.identity, self._on_change)
        self.metrics.logged = set(state.get("logged", ()))
        if differences:
            checkpoint.carry_over(position, loop.plan, len(loop.members.steps))
            if "differences" not in self._place.said:  # a state is read again when training starts
                self._place.said.add("differences")
                checkpoint.warn_of_differences(differences, position, loop.plan)
        self._place.at, self.audit.steps = position, Steps.from_dict(state["steps"], self.audit.record_part)
        before = state["epoch_updates"]
        self.audit.updates_before = {group: before.get(group, 0) for group in position.updates}
        loop.decide(again=True)

    # --- inside

    @property
    def _loop(self) -> Loop:
        if self._place.loop is None:
            raise RuntimeError(NOT_ATTACHED)
        return self._place.loop
