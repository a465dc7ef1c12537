"""What a run is attached to: its optimizers, and the facts from which its holds follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.optim import Optimizer

from lightning_freeze import setup
from lightning_freeze.audit.frozen import collector_paused
from lightning_freeze.audit.ranks import refuse_mismatch
from lightning_freeze.audit.run_audit import RunAudit
from lightning_freeze.checkpoint import Identity, carry_over
from lightning_freeze.errors import SelectionError
from lightning_freeze.holds.run_context import RunContext, compiled, plain_optimizer
from lightning_freeze.holds.skip_decision import Decision
from lightning_freeze.loop import Loop, Place
from lightning_freeze.plan.groups import regroup
from lightning_freeze.plan.membership import Membership, held_by
from lightning_freeze.probe.probe import OptimizerTraits
from lightning_freeze.probe.refusals import Facts, refuse, refuse_partitioned


class Attachment:
    """Makes the loop of a run from its optimizers, and another where they are rebuilt."""

    def __init__(
        self, place: Place, options: setup.Options, audit: RunAudit, context: RunContext, say: Callable[[str], None]
    ) -> None:
        self.backward = Decision(False, "the controller is not attached")
        self.needs_backward = False
        self.traits: dict[int, OptimizerTraits] = {}
        self._place = place
        self._options = options
        self._audit = audit
        self._context = context
        self._say = say
        self._variable_batch_size = False

    def meet(self, run: RunContext | None, scaler: bool, closures: bool | None) -> None:
        """Learn of a run what `FreezeController.attach` is given."""
        self._run, self._scaler, self.closures = run, scaler, closures

    @collector_paused
    def hold(self, given: Sequence[Optimizer], *, attach: bool = True, epoch: int | None = None) -> Loop:
        """Hold by these optimizers, which may be wrapped; the loop that does. Without an epoch the run goes on."""
        place, self.traits = self._place, {}
        optimizers = tuple(map(plain_optimizer, given))
        context = self._run or replace(self._context, manual_optimization=len(optimizers) > 1)
        self._audit.meet(context)
        refuse_partitioned(context.module)
        members = Membership(context.module, place.groups, optimizers)
        plan = place.schedule.bind(members.layout)
        facts = Facts(members, plan, self._options.optimizer_state, self._scaler)
        refuse(facts)
        for index, found in setup.learn(members, plan, self._options, self.closures):
            self.traits[index] = found
        reasons = (f"optimizer {step.index} can come to that: {why}" for step, why in facts.fully_frozen())
        context = replace(context, fully_frozen=next(reasons, None))
        self.backward = setup.decide_skipping(self._options.skip_backward, context, plan, members)
        self._compiled = frozenset(compiled(context.module))
        loop = Loop(place, members, self._audit, context, self._say)
        loop.given = tuple(given)
        built = setup.build_holds(loop, plan, self._audit, self._options, self.backward, scaler=self._scaler)
        self._audit.weights, self.needs_backward = built.weights, built.needs_backward
        what = "the schedule, the groups and the optimizers that the ranks were given"
        refuse_mismatch("before training", what, self._mismatch(members) if self._audit.ranks.is_distributed else None)
        if epoch is None:
            carry_over(place.at, plan, len(optimizers))
        else:
            place.at = plan.start(epoch)
        loop.hold(plan, built, attach=attach, fresh=epoch is not None)
        return loop

    def hold_others(self, before: Loop, optimizers: Sequence[Optimizer]) -> Loop:
        """Go on with other optimizers, where the run is; the loop that does."""
        place = self._place
        before.verify()
        self._audit.check()
        checked, self._audit.weights = self._audit.checked, None
        before.detach(bring_back=True)  # an optimizer may be among these again
        held = held_by(*map(plain_optimizer, optimizers))
        try:
            place.groups = regroup(place.groups, before.members.names, held)
            loop = self.hold(optimizers)
        except SelectionError as error:
            raise SelectionError(f"the optimizers were rebuilt, {place.when}: {error}") from None
        if loop.built.weights is not None:
            loop.built.weights.frozen.checked = checked
        classes = ", ".join(type(step.optimizer).__qualname__ for step in loop.members.steps)
        rebuilt = f"the optimizers were rebuilt ({classes}); the schedule goes on."
        self._say(f"freeze, {place.when}: {' '.join((rebuilt, *setup.notes(loop, self._options)))}")
        return loop

    def begin(self, variable_batch_size: bool) -> None:
        """Training begins; for each size of batches code is compiled again."""
        self._variable_batch_size = variable_batch_size
        if self._compiled:  # all ranks must decide alike
            rows = self._audit.ranks.gathered(torch.tensor([variable_batch_size]))
            self._variable_batch_size = any(bool(row[0]) for row in rows)

    @collector_paused
    def begin_first(self, loop: Loop) -> None:
        """The first batch begins."""
        self._decide_again(loop)
        loop.built.holds.begin()

    def _decide_again(self, loop: Loop) -> None:
        """Before the first step: code that was compiled since counts too, and batches of several sizes."""
        if not self.backward.skips:
            return
        now = frozenset(compiled(loop.context.module))
        if now != self._compiled or (now and self._variable_batch_size):
            context = replace(loop.context, variable_batch_size=self._variable_batch_size)
            self.backward = setup.decide_skipping(self._options.skip_backward, context, loop.plan, loop.members)
            if not self.backward.skips:
                loop.built.skip.allowed = False
                self._say(f"freeze: the backward work of frozen groups is not skipped after all: {self.backward.why}.")

    def _mismatch(self, members: Membership) -> str | None:
        """What differs between what the ranks were given."""
        if not self._audit.ranks.is_distributed:
            return None
        return self._audit.ranks.disagreement(
            {
                **Identity(self._place.schedule, members.groups, members.held_groups).as_dict(),
                "excluded": [step.excludes for step in members.steps],
                "skip_backward": self.backward.skips,
                "optimizer_state": self._options.optimizer_state,
                "frozen_modules": "eval" if self._options.eval_modules else "train",
                "audit": self._options.audit,
            }
        )
