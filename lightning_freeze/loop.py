"""The loop of a run: decide what trains, apply it through the holds, and count what truly ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from lightning_freeze.audit.moved import stalled
from lightning_freeze.audit.run_audit import RunAudit
from lightning_freeze.holds.optimizer_state import SHORTEST
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.groups import Groups
from lightning_freeze.plan.membership import Membership, Sets, Split, Step
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import REST, Plan, Position, Schedule
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Steps
from lightning_freeze.report.table import folded
from lightning_freeze.setup import Built, Wires

_NO_END = 1 << 62
_NOT_BEGUN = "`begin_step()` was not called before the forward of this step. Call it at the beginning of every batch: "


class RunState(Enum):
    """Where a run is."""

    ATTACHED = auto()
    """The optimizers are hooked; no batch has begun."""
    TRAINING = auto()
    PAUSED = auto()
    """Between batches, where nothing is to be seen of the holds."""


@dataclass(eq=False)
class Place:
    """Where a run is; it outlives the attachment to optimizers.

    Args:
        at: The position in the schedule.
        steps: The steps made since the last epoch's end.
        plan: The schedule, as it was bound last.
        loop: The loop, while it is attached.
        epoch_length: The updates of the last epoch.
        said: What is said once, and was.
    """

    at: Position = field(default_factory=Position)
    steps: Steps = field(default_factory=Steps)
    plan: Plan | None = None
    loop: Loop | None = None
    epoch_length: int = 0
    said: set[str] = field(default_factory=set)

    def position(self) -> Position:
        """The position in the schedule."""
        return self.at

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

    def wires(self, say: Callable[[str], None], suspects: Sequence[str]) -> Wires:
        """What holds ask of the run.

        Args:
            say: Says a line once.
            suspects: Names of what else in the run writes to weights.
        """
        return Wires(
            lambda: self.at.total,
            lambda: self._loop.frozen,
            lambda: self._loop.soon(),
            lambda: self._loop.describe(),
            say,
            suspects,
            self.said,
        )

    @property
    def _loop(self) -> Loop:
        assert self.loop is not None, "holds ask while the run is attached"
        return self.loop

    def where(self) -> dict[str, object]:
        """What all ranks must agree on."""
        sets = self.loop.sets if self.loop is not None else ()
        return {"trainable": [sorted(groups) for groups in sets], **self.at.as_dict()}


class Loop:
    """What trains, decided from the plan and applied through the holds.

    Args:
        schedule: The schedule.
        groups: The groups.
        plan: The schedule, bound to the optimizers.
        members: The index of the run.
        built: Its holds.
        audit: Its audit.
        place: Where it is.
        manual: Whether the model steps its optimizers itself, so that what trains can change within a batch.
        say: Says a line.
    """

    def __init__(
        self,
        schedule: Schedule,
        groups: Groups,
        plan: Plan,
        members: Membership,
        built: Built,
        audit: RunAudit,
        place: Place,
        manual: bool,
        say: Callable[[str], None],
    ) -> None:
        place.plan, place.loop = plan, self
        self.members = members
        self.built = built
        self.hooks = StepHooks(members.steps, built.holds, self._arrives, self._ran)
        self.state = RunState.ATTACHED
        self.sets: Sets = ()
        """What each optimizer trains, as decided."""
        self._schedule = schedule
        self._groups = groups.members
        self._audit = audit
        self._place = place
        self._manual = manual
        self._say = say
        self._announced: Sets = ()
        self._applied: Sets = ()
        self._lr_factors: dict[str, float] | None = None
        self._stable_until = 0

    @property
    def plan(self) -> Plan:
        """The schedule, bound to the optimizers as they are now."""
        assert self._place.plan is not None
        return self._place.plan

    @property
    def frozen(self) -> set[int]:
        """The identities of what is frozen, by the set that is applied or by the coming one."""
        splits = [self.members.split(sets) for sets in (self._applied, self.sets) if sets]
        return {id(parameter) for split in splits for parameter in split.frozen}

    def begin_step(self, epoch: int | None) -> None:
        """A batch begins.

        Args:
            epoch: The epoch that it belongs to; by default the one that the run is in.
        """
        at = self._place.at
        self._audit.shards.close()  # before anything walks over parameters, or changes what requires a gradient
        for step in self.members.steps:
            self.hooks.restore(step)  # after a step that failed, and that the model has survived
        self.state = RunState.TRAINING
        if self.plan.begin_window(at, at.epoch if epoch is None else epoch):
            self.decide()
            self.say_why()
        if self.sets is not self._applied:
            self._announce()
            self._apply()
        self.built.holds.before_forward()

    def pause(self) -> None:
        """Until the next batch, nothing is skipped: validation finds every ``requires_grad`` as the user left it."""
        self.built.holds.pause()
        if self.state is RunState.TRAINING:
            self.state = RunState.PAUSED

    def decide(self, again: bool = False) -> None:
        """What trains now, from the plan; the holds follow with the next batch or step.

        Args:
            again: Whether rates are set again: the position is another.
        """
        plan, at = self.plan, self._place.at
        if "ran out" not in self._place.said and plan.ran_out(at):
            self._place.said.add("ran out")
            last = ", ".join(sorted(plan.trainable(at)))
            self._say(
                f"freeze: the schedule has run out after {at.total} updates; its last set stays trainable: {last}."
            )
        sets = tuple([plan.trains(at, step.index) for step in self.members.steps])
        self._stable_until = at.total + plan.stable_updates(at)
        if plan.rated and ((lr_factors := plan.lr_factors(at)) != self._lr_factors or again):
            self._lr_factors = lr_factors
            for step in self.members.steps:
                step.factors = {id(p): f for group, f in lr_factors.items() for p in step.members.get(group, ())}
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
            now = folded(self.plan.trainable(at), self._groups)
            self._say(f"freeze, epoch {max(0, at.epoch - 1)}: {at.why}. Now training: {now}.")
            at.why = ""

    def describe(self) -> tuple[str, str, str, str]:
        """What trains, what is frozen, when, and in which phase, for messages."""
        at = self._place.at
        place, trainable = self.plan.where(at), self.plan.trainable(at)
        return (
            folded(trainable, self._groups),
            folded(sorted(self.members.freezable.keys() - trainable), self._groups),
            f"after {at.total} updates in epoch {at.epoch}",
            f" ({place})" if place else "",
        )

    def soon(self) -> frozenset[str]:
        """The groups that train again within a few updates, if every group finds its gradients."""
        at, optimizers = self._place.at, len(self.members.steps)
        length, made = self._place.epoch_length or _NO_END, at.total - self._place.steps.first
        coming = preview(
            self.plan,
            -(-SHORTEST // optimizers),
            lambda epoch: -(-length // optimizers),
            tuple(range(optimizers)),
            at,
            done=made // optimizers,
        )
        return frozenset().union(*(step.trained for step in coming))

    def stalled(self) -> list[Finding]:
        """Optimizers that a phase waits for, and that came to no step in the epoch."""
        if not self._audit.begun:
            return []  # a run resumed from a checkpoint of after the epoch's last batch
        waited_for = self.plan.pending(self._place.at)
        idle = [step for step in self.members.steps if step.index in waited_for and not step.attempted]
        return stalled(
            {step.index: type(step.optimizer).__qualname__ for step in idle},
            self._place.at.epoch,
            {step.index: [group for group in step.members if group != REST] for step in idle},
        )

    def detach(self, bring_back: bool) -> None:
        """Undo everything."""
        self._place.loop = None
        try:
            self.hooks.detach()
        finally:
            self.built.holds.detach(bring_back)

    @property
    def _split(self) -> Split:
        return self.members.split(self.sets)

    def _announce(self) -> None:
        if self.sets is not self._announced:
            self._announced = self.sets
            self.built.holds.decided(self._split)

    def _apply(self) -> None:
        if self.sets is self._applied:
            return
        freezes, thaws = self.members.changes(self._applied, self.sets)
        self._applied = self.sets
        self.built.holds.thaw(thaws, self._split)
        self.built.holds.freeze(freezes, self._split)

    def _arrives(self, step: Step) -> None:
        """The last moment before a step."""
        if len(step.optimizer.param_groups) != step.param_groups:
            self._rebind()
        if self.state is RunState.ATTACHED and step.has_gradients:
            raise RuntimeError(_NOT_BEGUN + "phases that count epochs, and skipped backward work, begin with it.")
        if self.sets is not self._applied:
            if self.built.skip.active and not self._manual and self._applied:
                raise RuntimeError(
                    _NOT_BEGUN + "what trains now has no gradient of a backward that was skipped for others."
                )
            self._apply()

    def _ran(self, step: Step) -> None:
        """A step ran: neither skipped nor raised."""
        if not step.updated:
            return
        at = self._place.at
        self._place.steps.add(step.index, step.updated)
        self.plan.update(at, step.index, step.updated)
        if at.total > self._stable_until:
            self.decide()
            self._announce()

    def _rebind(self) -> None:
        """An optimizer was given other parameters during the run: sort them in, where the run is."""
        self.built.holds.thaw(self.members.everything(), self._split)
        self.members.refresh()
        self._place.plan = self._schedule.bind(self.members.layout)
        self.built.holds.rebind(self.members)
        self.sets = self._announced = self._applied = ()
        self._lr_factors = None
        self.decide()
        self._announce()
