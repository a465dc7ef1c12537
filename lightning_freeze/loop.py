"""The loop of a run: decide what trains, apply it through the holds, and count what truly ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NoReturn

from torch.optim import Optimizer

from lightning_freeze.audit.frozen import collector_paused
from lightning_freeze.audit.moved import stalled
from lightning_freeze.audit.run_audit import RunAudit
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.checkpoint import Identity
from lightning_freeze.errors import SelectionError, counted
from lightning_freeze.holds.backward import SkipBackward
from lightning_freeze.holds.hold import Holds
from lightning_freeze.holds.optimizer_state import SHORTEST
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.groups import Groups
from lightning_freeze.plan.membership import Membership, Sets, Split, Step
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import NO_END, Plan, Position, Schedule
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.table import folded

_BEFORE_A_BATCH = (
    "it steps before a batch has begun, with which phases that count epochs and skipped backward work begin.",
    "Step in `training_step` or later; `skip_backward: false` does not help.",
    "Call `begin_step()` before each forward.",
)
_SECOND_STEP = (
    "it steps again within a batch, and what trains now has no gradient, since its backward work was skipped.",
    "Set `skip_backward: false`; with phases, `change: batch` is another way.",
    "Call `begin_step()` before each forward, or set `skip_backward: false`.",
)


class RunState(Enum):
    """Where an attached run is; a run that is detached has no loop."""

    ATTACHED = auto()  # the optimizers are hooked; no batch has begun
    TRAINING = auto()
    PAUSED = auto()  # between batches, where nothing is to be seen of the holds


ATTACHED, TRAINING, PAUSED = RunState  # looked up once: through the class it takes a call each time


@dataclass(eq=False)
class Place:
    """Where a run is; it outlives the attachment to optimizers."""

    schedule: Schedule
    at: Position = field(default_factory=Position)
    plan: Plan | None = None  # the schedule, as it was bound last
    loop: Loop | None = None
    groups: Groups = field(default_factory=lambda: Groups({}, {}, (), "train"))
    held_groups: list[list[str]] = field(default_factory=list)  # the groups that each optimizer holds
    epoch_length: int = 0  # the updates of the last epoch
    said: set[str] = field(default_factory=set)  # what is logged once, and was

    @property
    def when(self) -> str:
        """The epoch and the updates so far, for messages."""
        return f"epoch {self.at.epoch}, after {counted(self.at.total, 'update')}"

    @property
    def identity(self) -> Identity:
        """What a checkpoint must agree with."""
        return Identity(self.schedule, self.groups, self.held_groups)

    def planned(self) -> tuple[Plan | None, Position]:
        """The plan, where there is one, and the position."""
        return self.plan, self.at

    def optimizers(self) -> Sequence[Step]:
        """The optimizers; none, where it is not attached."""
        return self.loop.members.steps if self.loop is not None else ()

    def logged(self, ended: bool) -> None:
        """Metrics were logged; where they ended a phase, something else trains."""
        if self.loop is not None:
            self.loop.logged(ended)

    def where(self) -> dict[str, object]:
        """What all ranks must agree on."""
        sets = self.loop.sets if self.loop is not None else ()
        return {"trainable": [sorted(groups) for groups in sets], **self.at.as_dict()}


@dataclass(frozen=True)
class Built:
    """The holds of a run, and those of them that are asked something."""

    holds: Holds
    weights: WeightAudit | None
    skip: SkipBackward
    needs_backward: bool  # whether something is to be done after each backward


class Loop:
    """What trains, decided from the plan and applied through the holds."""

    built: Built
    plan: Plan  # the schedule, bound to the optimizers as they are now
    given: tuple[Optimizer, ...] = ()  # the optimizers as they were given, with what wraps them

    def __init__(
        self, place: Place, members: Membership, audit: RunAudit, context: RunContext, say: Callable[[str], None]
    ) -> None:
        self.members = members
        self.context = context
        self.say = say
        self.said = place.said
        self.state = ATTACHED
        self.sets: Sets = ()  # what each optimizer trains, as decided
        self._audit = audit
        self._place = place
        self._announced: Sets = ()
        self._applied: Sets = ()
        self._lr_factors: dict[str, float] | None = None
        self._stable_until = 0
        self._unwalked: set[int] = set()  # the optimizers whose param groups are to be compared as a whole

    def hold(self, plan: Plan, built: Built, attach: bool, fresh: bool) -> None:
        """Take plan and holds, decide what trains, and hook into the optimizers, where steps are the run's by now."""
        self.built, self.plan = built, plan
        self.hooks = StepHooks(self.members.steps, built.holds, self._arrives, self._ran)
        self._place.loop = self  # now that it can be detached
        self._remember()
        self.members.names.attach()
        self.decide()
        if attach:
            self.hooks.attach()
        built.holds.attach()
        if fresh:
            self.begin_epoch()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FreezeController that is attached to optimizers cannot be copied or pickled: the copy would hold and undo what "
            "this one holds. Call `detach()` before, or copy the model alone."
        )

    def updates(self) -> int:
        """The updates made so far."""
        return self._place.at.total

    def frozen(self) -> set[int]:
        """The identities of what is frozen, by the set that is applied or by the coming one."""
        splits = [self.members.split(sets) for sets in (self._applied, self.sets) if sets]
        return {id(parameter) for split in splits for parameter in split.frozen}

    def begin_step(self, epoch: int | None) -> None:
        """A batch begins, of this epoch or of the one that the run is in."""
        at, audit, holds = self._place.at, self._audit, self.built.holds
        audit.shards.close()  # before anything walks over parameters, or changes what requires a gradient
        for step in self.members.steps:
            if step.entered:
                self.hooks.restore(step)  # after a step that failed, and that the model has survived
        if self.members.names.touched or not at.begun:
            self.verify(walk=not at.begun)
        self.state = TRAINING
        audit.steps.begin_batch()
        if self.plan.begin_window(at, at.epoch if epoch is None else epoch):
            self.decide()
            self.say_why()
        if self.sets is not self._applied:
            self._announce()
            self._apply()
        if not audit.begun:
            audit.begin_batch()
        holds.before_forward()

    def pause(self) -> None:
        """Until the next batch nothing is skipped; what that will find frozen is audited from here on."""
        if self.plan.end_window(self._place.at):
            self.decide()
            self._announce()
        if self.state is not ATTACHED and self.sets is not self._applied and self._audit.weights is not None:
            self._audit.shards.close()
            self._audit.weights.open_early(self._split)
        self.built.holds.pause()
        if self.state is TRAINING:
            self.state = PAUSED
            self._audit.steps.pause()

    def verify(self, walk: bool = False) -> None:
        """Sort in parameters that the model has got; with ``walk``, also those that torch does not tell of."""
        if walk:
            self._audit.shards.close()
        if self.members.names.changed(walk):
            self._rebind()

    def decide(self, again: bool = False) -> None:
        """Decide what trains; with `again`, the position is another, so that learning-rate factors are set again."""
        plan, at = self.plan, self._place.at
        if "ran out" not in self.said and plan.ran_out(at):
            self.said.add("ran out")
            last = ", ".join(sorted(plan.trainable(at)))
            self.say(
                f"freeze: the schedule has run out after {counted(at.total, 'update')}; its last set stays trainable: {last}."
            )
        sets = tuple([plan.trains(at, step.index) for step in self.members.steps])
        self._stable_until = at.total + plan.stable_updates(at)
        if plan.rated and ((lr_factors := plan.lr_factors(at)) != self._lr_factors or again):
            self._lr_factors = lr_factors
            for step in self.members.steps:
                step.factors = {id(p): f for group, f in lr_factors.items() for p in step.members.get(group, ())}
        self._audit.steps.plan(sets, plan.place(at), self._lr_factors or {})
        if sets != self.sets:
            self.sets = sets
            for step, groups in zip(self.members.steps, sets, strict=True):
                step.train(groups)

    def begin_epoch(self) -> None:
        """An epoch begins; buffers are watched by what was decided for it."""
        self._audit.begin_epoch()
        if self._applied and self._audit.weights is not None:
            self._audit.weights.watch_buffers(self._split)
        for step in self.members.steps:
            step.attempted = False
            self._unwalked.add(step.index)

    def logged(self, ended: bool) -> None:
        """Metrics were logged; where they ended a phase, something else trains."""
        if ended:
            self.decide()
        self.say_why()

    # --- what is asked

    def say_why(self) -> None:
        """Say once why a metric has ended a phase."""
        at = self._place.at
        if at.why:
            now = folded(self.plan.trainable(at), self.members.groups.members)
            self.say(f"freeze, epoch {max(0, at.epoch - 1)}: {at.why}. Now training: {now}.")
            at.why = ""

    def describe(self) -> tuple[str, str, str, str]:
        """What trains, what is frozen, when, and in which phase, for messages."""
        at = self._place.at
        place, trainable = self.plan.where(at), self.plan.trainable(at)
        return (
            folded(trainable, self.members.groups.members),
            folded(sorted(self.members.groups.freezable.keys() - trainable), self.members.groups.members),
            f"after {counted(at.total, 'update')} in epoch {at.epoch}",
            f" ({place})" if place else "",
        )

    def soon(self) -> frozenset[str]:
        """The groups that train again within a few updates, if every group finds its gradients."""
        at, optimizers = self._place.at, len(self.members.steps)
        length, made = self._place.epoch_length or NO_END, at.total - self._audit.steps.first
        windows, in_epoch = -(-SHORTEST // optimizers), -(-length // optimizers)
        coming = preview(self.plan, windows, in_epoch, tuple(range(optimizers)), at, done=made // optimizers)
        return frozenset().union(*(step.trained for step in coming))

    def stalled(self) -> list[Finding]:
        """Optimizers that a phase waits for, and that came to no step in the epoch."""
        if not self._audit.begun:
            return []  # a run resumed from a checkpoint of after the epoch's last batch
        waited_for = self.plan.pending(self._place.at)
        idle = [step for step in self.members.steps if step.index in waited_for and not step.attempted]
        return [stalled(step, self._place.at.epoch) for step in idle]

    def detach(self, bring_back: bool) -> None:
        """Undo everything."""
        self._place.loop = None
        names, holds = self.members.names, self.built.holds
        names.detach()
        try:
            self.hooks.detach()
            if names.changed():
                holds.replaced(names.replaced())
        finally:
            holds.detach(bring_back)

    @property
    def _split(self) -> Split:
        return self.members.split(self.sets)

    def _announce(self) -> None:
        if self.sets is not self._announced:
            self._announced = self.sets
            self.built.holds.decided(self._split)

    @collector_paused
    def _apply(self) -> None:
        self._audit.shards.close()  # within a step, modules may show other parameters
        freezes, thaws = self.members.changes(self._applied, self.sets)
        self._applied, split = self.sets, self._split
        self._unwalked.update(range(len(self.sets)))
        self.built.holds.thaw(thaws, split)
        self.built.holds.freeze(freezes, split)

    def _arrives(self, step: Step) -> None:
        # What stands in shortened lists is known, whatever their owner has put into whole ones.
        members, in_parts = self.members, step.shortened
        if self._unwalked and step.index in self._unwalked:
            self._unwalked.discard(step.index)
            in_parts = {}
        if (members.names.touched and members.names.changed()) or members.holders.changed(step.index, in_parts):
            self._rebind()
        if members.lost:
            self._refuse_lost()
        if self.state is ATTACHED and step.has_gradients:
            raise self._misplaced(step, *_BEFORE_A_BATCH)
        if self.sets is not self._applied:
            if self.built.skip.active and not self.context.manual_optimization and self._applied:
                raise self._misplaced(step, *_SECOND_STEP)
            self._apply()

    def _misplaced(self, step: Step, what: str, in_hook: str, in_loop: str) -> RuntimeError:
        hook, name = self.context.hook(), type(step.optimizer).__qualname__
        where, fix = (f"in `{hook}`, ", in_hook) if hook else ("", in_loop)
        where += f"after {counted(self.updates(), 'update')}"
        return RuntimeError(f"optimizer {step.index} ({name}), {where}: {what} {fix}")

    def _ran(self, step: Step) -> None:
        if not step.updated:
            return
        at = self._place.at
        self._audit.steps.add(step.index, step.updated)
        self.plan.update(at, step.index, step.updated)
        if at.total > self._stable_until:
            self.decide()
            self._announce()

    def _rebind(self) -> None:
        """The model or an optimizer has other parameters: sort them in, where the run is."""
        members, holds = self.members, self.built.holds
        self._audit.shards.close()
        holds.replaced(members.names.replaced())
        holds.thaw(members.everything(), self._split)
        try:
            lines = members.refresh()
            self.plan = self._place.schedule.bind(members.layout)
        except SelectionError as error:
            raise SelectionError(f"the model has other parameters, {self._place.when}: {error}") from None
        self._remember()
        holds.rebind(members)
        self.sets = self._announced = self._applied = ()
        self._lr_factors = None
        self.decide()
        self._announce()
        for line in lines:
            self.say(f"freeze, {self._place.when}: {line}")

    def _remember(self) -> None:
        """Keep what outlives the attachment."""
        place = self._place
        place.plan, place.groups, place.held_groups = self.plan, self.members.groups, self.members.held_groups
        for group in self.plan.start().updates:
            place.at.updates.setdefault(group, 0)

    def _refuse_lost(self) -> None:
        """Refuse to go on where a group trains and no optimizer holds a parameter of it."""
        trains = frozenset().union(*self.sets)
        for group, names in self.members.lost.items():
            if group in trains:
                what = f"{names[0]!r} of group {group!r}" if names else f"any parameter of group {group!r}"
                raise SelectionError(
                    f"no optimizer holds {what}, {self._place.when}, so it cannot train: it was replaced, or added, and its "
                    "optimizer has the old one or none. Give it to one, `optimizer.add_param_group({'params': [...]})`, or "
                    "copy into the old parameter (`with torch.no_grad(): old.copy_(new)`)."
                )
