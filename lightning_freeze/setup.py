"""Facts of a run, before its first step: refusals, what each optimizer needs, and one ordered list of holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.audit.run_audit import size_of
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.backward import SkipBackward as SkipHold
from lightning_freeze.holds.checkpointing import ReentrantInputs
from lightning_freeze.holds.ddp import ZeroGradsForDDP
from lightning_freeze.holds.eval_mode import EvalModes
from lightning_freeze.holds.fsdp2 import Shards
from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.holds.hold import Hold, Holds
from lightning_freeze.holds.optimizer_state import OffloadState, OptimizerState, ResetState
from lightning_freeze.holds.param_groups import ExcludeParams, LearningRateFactors
from lightning_freeze.holds.run_context import RunContext, compiled
from lightning_freeze.holds.schedule_free import ScheduleFreeGuard
from lightning_freeze.holds.skip_decision import Decision, SkipBackward, choose
from lightning_freeze.plan.groups import Groups, Rest
from lightning_freeze.plan.membership import Membership, held_by
from lightning_freeze.plan.preview import Step as Preview
from lightning_freeze.plan.preview import longest_interval
from lightning_freeze.plan.schedule import REST, Plan, Position, Schedule
from lightning_freeze.probe.clone import family
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.probe.state_reset import supports_state_reset
from lightning_freeze.probe.step_counters import first_update
from lightning_freeze.probe.verdict import way_of
from lightning_freeze.report.records import Record

_ALIKE = 0.05


def refuse_optimizers(optimizers: Iterable[Optimizer], scheduled: Iterable[Tensor]) -> None:
    """Refuse optimizers of which it is known, without a probe, that they hold nothing still.

    Args:
        optimizers: The run's optimizers.
        scheduled: The parameters that will be frozen at times.

    Raises:
        UnsupportedError: LBFGS, or what is no torch optimizer and has no step hooks, holds a scheduled parameter.
    """
    wanted = {id(parameter) for parameter in scheduled}
    for index, optimizer in enumerate(optimizers):
        if not hasattr(optimizer, "param_groups"):
            raise UnsupportedError(
                f"optimizer {index} ({type(optimizer).__qualname__}) has no `param_groups`, so what it holds is not known. Let "
                "its class inherit from torch.optim.Optimizer, or hand over the optimizer that it wraps."
            )
        if wanted.isdisjoint(held_by(optimizer)):
            continue
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedError(
                f"optimizer {index} is LBFGS, which flattens all its parameters into one vector and steps along it, so "
                "it moves a parameter whose gradient is None. Use another optimizer for the groups that freeze (AdamW, "
                "SGD), or give LBFGS only parameters of `rest` with `rest: train`."
            )
        if not isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise UnsupportedError(
                f"optimizer {index} ({type(optimizer).__qualname__}) has no step hooks, so nothing can be held at the "
                "last moment before its step. Let its class inherit from torch.optim.Optimizer."
            )


def refuse_without_rate(optimizers: Iterable[Optimizer], rated: Iterable[Tensor]) -> None:
    """Refuse factors on learning rates where there is none, or none that could be multiplied for one step.

    Args:
        optimizers: The run's optimizers.
        rated: The parameters whose rate the schedule changes.

    Raises:
        UnsupportedError: A param group has no ``lr``, or none that is a number; LBFGS holds such a parameter.
    """
    wanted = {id(parameter) for parameter in rated}
    for index, optimizer in enumerate(optimizers):
        if wanted.isdisjoint(held_by(optimizer)):
            continue
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedError(
                f"the schedule sets learning rates (`lr` or `ramp`) of what optimizer {index} holds, which is LBFGS: it has "
                "one param group and reads its rate before anything can be changed. Take those groups out of `lr`."
            )
        for group in optimizer.param_groups:
            if not isinstance(group.get("lr"), (int, float, Tensor)):
                raise UnsupportedError(
                    f"the schedule sets learning rates (`lr` or `ramp`), and optimizer {index} "
                    f"({type(optimizer).__qualname__}) has `lr`: {group.get('lr')!r} in a param group, which is no number. "
                    "Give the optimizer a learning rate, or take `lr` and `ramp` out of the schedule."
                )


def refuse_fully_frozen(optimizer: Optimizer, index: int, why: str) -> None:
    """Refuse a fused optimizer that the schedule can leave without any gradient under a GradScaler.

    Raises:
        UnsupportedError: It is fused: torch's scaler then fails with "No inf checks were recorded".
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UnsupportedError(
            f"optimizer {index} ({type(optimizer).__qualname__}) is fused and steps under a GradScaler, and {why}; with "
            'no gradient at all, torch\'s scaler fails in the middle of training ("No inf checks were recorded"). '
            "Use `fused=False`, precision 'bf16-mixed' (which needs no scaler), or a schedule in which one of its "
            "groups always trains."
        )


def refuse_state(mode: OptimizerState, optimizers: Iterable[Optimizer], scheduled: Iterable[Tensor]) -> None:
    """Refuse what cannot be done with the state of what is frozen.

    Args:
        mode: What is to be done.
        optimizers: The run's optimizers.
        scheduled: The parameters that are frozen at times.

    Raises:
        UnsupportedError: ``reset`` with an optimizer that cannot begin anew for a parameter; ``offload`` of sharded
            parameters; either with an optimizer that wraps another, or runs no hooks of torch's when its state is saved.
    """
    if mode == "keep":
        return
    wanted = {id(parameter): parameter for parameter in scheduled}
    if mode == "offload" and any(hasattr(parameter, "to_local") for parameter in wanted.values()):
        raise UnsupportedError(
            "`optimizer_state` is 'offload', and parameters are sharded over processes (DTensor): their state is not "
            "moved yet. Use `optimizer_state: keep` or `reset`, or FSDP2's own CPUOffloadPolicy."
        )
    for index, optimizer in enumerate(optimizers):
        wraps = len({id(member.state) for member in family(optimizer)}) > 1
        if (wraps or not hasattr(optimizer, "_optimizer_state_dict_pre_hooks")) and not wanted.keys().isdisjoint(
            held_by(optimizer)
        ):
            reason = "wraps another, so that state is in two places" if wraps else "runs no hooks when it is saved"
            raise UnsupportedError(
                f"`optimizer_state` is {mode!r}, and optimizer {index} ({type(optimizer).__qualname__}) {reason}. Use "
                "`optimizer_state: keep`."
            )
        for group in optimizer.param_groups:
            held = [parameter for parameter in group["params"] if id(parameter) in wanted]
            if mode == "reset" and held and (why := supports_state_reset(optimizer, group)) is not None:
                raise UnsupportedError(
                    f"`optimizer_state` is 'reset', and optimizer {index} ({type(optimizer).__qualname__}) cannot begin anew "
                    f"for a parameter whose state was dropped: {why}. Use `optimizer_state: keep`."
                )


def scheduled(groups: Groups) -> list[nn.Parameter]:
    """The parameters that can be frozen."""
    return [m.parameter for g, found in groups.members.items() if g != REST or groups.rest == "freeze" for m in found]


# --- what each optimizer needs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What a user chose.

    Args:
        skip_backward: Whether backward work of frozen groups is skipped: ``auto`` where that is safe.
        optimizer_state: What becomes of the optimizer state of frozen groups.
        eval_modules: Whether frozen modules are held in eval mode.
        audit: Whether weights are audited.
    """

    skip_backward: SkipBackward
    optimizer_state: OptimizerState
    eval_modules: bool
    audit: bool


def check_optimizers(members: Membership, plan: Plan, groups: Groups, options: Options) -> None:
    """Refuse optimizers under which a schedule cannot be held.

    Raises:
        UnsupportedError: One cannot drop or move state, or has no learning rate to be multiplied.
    """
    optimizers = members.holders.optimizers
    refuse_state(options.optimizer_state, optimizers, members.scheduled)
    rated = [m.parameter for group in plan.rated for m in groups.members.get(group, ())]
    refuse_without_rate(optimizers, rated)


def learn(
    traits: dict[int, OptimizerTraits],
    members: Membership,
    plan: Plan,
    rest: Rest,
    options: Options,
    closures: bool | None,
    say: Callable[[str], None],
) -> None:
    """Probe each optimizer that holds something which freezes, and note how it must be held.

    Args:
        traits: Takes what was learnt, by the index of the optimizer, also of one that is refused.
        members: The index of the run.
        plan: The schedule, bound.
        rest: What becomes of the rest.
        options: What the user chose.
        closures: Whether steps are handed a closure; None where that is not known.
        say: Says a line.

    Raises:
        UnsupportedError: One cannot hold what is frozen.
    """
    forever = {REST} if rest == "freeze" else set()
    for step in members.steps:
        freezable = step.members.keys() & members.freezable.keys()
        if not freezable or (plan.never_freezes() and not freezable & forever):
            continue
        traits[step.index] = found = probe_optimizer(step.optimizer, closures)
        late = sorted(freezable - plan.trains(plan.start(), step.index) - forever)
        way = way_of(
            found, step.index, late=late, fully_frozen=plan.can_be_fully_frozen(step.index), audited=options.audit
        )
        step.excludes, step.reads_before_closure = way == "left out", found.reads_before_closure
        if way == "left out":
            say(
                f"freeze: optimizer {step.index} ({found.name}) is not held by an empty gradient "
                f"({found.reasons['skips_none']}): what is frozen is left out of its param groups for each step, too."
            )
        elif way == "unknown":
            warnings.warn(
                f"optimizer {step.index} ({found.name}) could not be probed: {found.why}. Whether it holds a parameter "
                "still whose gradient is None is not known before training: the audit tells at the epoch's end. To know it "
                "before, use an optimizer of torch.optim.",
                stacklevel=4,
            )


def fully_frozen_reason(members: Membership, plan: Plan) -> str | None:
    """Under a GradScaler: why an optimizer can come to a step with nothing to train; None where none can.

    Raises:
        UnsupportedError: It is a fused one.
    """
    reason = None
    for step in members.steps:
        fully_frozen = plan.can_be_fully_frozen(step.index) if step.members else None
        if fully_frozen is not None:
            refuse_fully_frozen(step.optimizer, step.index, fully_frozen)
            reason = f"optimizer {step.index} can come to that: {fully_frozen}"
    return reason


class Decider:
    """Decides whether backward work is skipped: before training, and again where code was compiled since.

    Args:
        asked: What the user chose.
        context: What is known of the run.
        plan: The schedule, bound.
        members: The index.
    """

    def __init__(self, asked: SkipBackward, context: RunContext, plan: Plan, members: Membership) -> None:
        self._asked = asked
        self._context = context
        self._plan = plan
        self._groups = {id(m.parameter): group for group, found in members.freezable.items() for m in found}
        self.compiled = compiled(context.module).keys()
        """The names of the modules that were compiled."""
        self.decision = self._decide(context)

    def again(self, variable_batch_size: bool) -> Decision:
        """Before the first step: code that was compiled since is counted, too, and the sizes of batches."""
        now = compiled(self._context.module).keys()
        if self.decision.skips and (now != self.compiled or (now and variable_batch_size)):
            self.decision = self._decide(replace(self._context, variable_batch_size=variable_batch_size))
        return self.decision

    def _decide(self, context: RunContext) -> Decision:
        return choose(self._asked, context, self._plan.sets(), self._groups)


def warn_of_step_counters(
    members: Membership,
    traits: Mapping[int, OptimizerTraits],
    coming: Callable[[], Iterator[Preview]],
    updates: Mapping[str, int],
    closures: bool | None,
) -> None:
    """Say what step counters of param groups, which run on while a group is frozen, do to the first update after that."""
    for step in members.steps:
        found = traits.get(step.index)
        if found is None or not found.step_counters or found.skips_none is None:
            continue
        interval = longest_interval(coming(), step.index, step.members.keys() & members.freezable.keys(), updates)
        if interval is None:
            continue
        ratio = first_update(
            step.optimizer,
            interval.before,
            interval.length,
            closure=closures,
            excludes=step.excludes,
            early=step.reads_before_closure,
        )
        if ratio is None or abs(ratio - 1) <= _ALIKE:
            continue
        warnings.warn(
            f"optimizer {step.index} ({found.name}) keeps {', '.join(found.step_counters)} for a whole param group, and goes on "
            f"with it while a part of the group is frozen: after the longest planned interval (`{interval.group}` is frozen "
            f"for {interval.length} updates, after {interval.before} of its own) the first update is {ratio:.2f} times as "
            "large as it would be without the interval, in a run on small parameters. Where that matters, let a phase "
            "begin with a `ramp`, or use an optimizer that counts for each parameter (torch's AdamW does).",
            stacklevel=4,
        )


# --- the holds --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wires:
    """What holds ask of the run that they are part of.

    Args:
        updates: Gives the updates made so far.
        frozen: Gives the identities of what is frozen, by the set that is applied or by the coming one.
        soon: Gives the groups that train again within a few updates.
        describe: Says what trains, what is frozen, and where the run is.
        say: Says a line once.
        suspects: Names of what else in the run writes to weights.
        said: What is said once, and was.
    """

    updates: Callable[[], int]
    frozen: Callable[[], set[int]]
    soon: Callable[[], frozenset[str]]
    describe: Callable[[], tuple[str, str, str, str]]
    say: Callable[[str], None]
    suspects: Sequence[str]
    said: set[str]


@dataclass(frozen=True)
class Built:
    """The holds of a run, and those of them that are asked something.

    Args:
        holds: All, in their order.
        weights: The audit of weights, where there is one.
        skip: What skips backward work.
        needs_backward: Whether something is to be done after each backward.
    """

    holds: Holds
    weights: WeightAudit | None
    skip: SkipHold
    needs_backward: bool


def build_holds(
    members: Membership,
    options: Options,
    context: RunContext,
    decision: Decision,
    shards: Shards,
    rated: bool,
    scaler: bool,
    split: bool,
    wires: Wires,
) -> Built:
    """The holds of a run, in the order in which they freeze: state is dropped before the audit reads it, moved after."""
    module, optimizers = context.module, members.holders.optimizers
    guard = ScheduleFreeGuard(members.steps, wires.frozen)
    offload = OffloadState(optimizers, wires.soon) if options.optimizer_state == "offload" else None
    attention = any(isinstance(each, nn.MultiheadAttention) for each in module.modules())
    skip = SkipHold(shards, context.manual_optimization, attention, wires.said, wires.describe)
    skip.allowed = decision.skips
    weights = None
    if options.audit:
        weights = WeightAudit(
            module,
            members.holders,
            members.trained(),
            wires.updates,
            buffers_held=options.eval_modules,
            suspects=wires.suspects,
            offload=offload,
            training_weights=guard.training_weights if guard.steps else nullcontext,
            split=split,
        )
    holds: list[Hold | None] = [
        EvalModes() if options.eval_modules else None,
        guard,
        ResetState(optimizers) if options.optimizer_state == "reset" else None,
        weights,
        offload,
        skip if decision.skips else None,
        ZeroGradsForDDP(decision.reducer, lambda: [*skip.held.values()]) if decision.reducer is not None else None,
        ReentrantInputs(lambda: bool(skip.held), wires.say, wires.said) if decision.skips else None,
        SetGradsToNone(lambda: skip.active),
        ExcludeParams() if any(step.excludes for step in members.steps) else None,
        LearningRateFactors() if rated else None,
    ]
    present = Holds(hold for hold in holds if hold is not None)
    return Built(present, weights, skip, scaler or decision.reducer is not None)


# --- what is said once ------------------------------------------------------------------------------------------------


def say_frozen_by_user(groups: Groups, say: Callable[[str], None]) -> None:
    """Say what was found with ``requires_grad=False``."""
    own = groups.frozen_by_user
    if own:
        say(
            f"freeze: {len(own)} parameter(s) were found with requires_grad=False ({', '.join(own[:3])}"
            f"{', …' if len(own) > 3 else ''}); they are yours to freeze and belong to no group."
        )


def say_what_is_held(
    plan: Plan, groups: Groups, options: Options, decision: Decision, members: Membership, say: Callable[[str], None]
) -> None:
    """Say how frozen groups are held, and warn where nothing ever freezes."""
    never = plan.never_freezes() and not (groups.rest == "freeze" and REST in groups.members)
    if options.optimizer_state == "offload" and all(p.device.type == "cpu" for p in members.scheduled):
        say("freeze: `optimizer_state: offload` has nothing to do: the optimizer state is in host memory already.")
    if options.skip_backward is not False and not never:
        how = "is skipped" if decision.skips else "is not skipped, their gradients are emptied"
        say(f"freeze: the backward work of frozen groups {how}: {decision.why}.")
    if never and not plan.rated:
        rest = len(groups.members.get(REST, ()))
        warnings.warn(
            f"this schedule never freezes anything: its groups ({', '.join(groups.named)}) train at every step"
            + (f", and so do {rest} parameter(s) in no group, by `rest: train`" if rest else "")
            + ". Name what is to be frozen as a group of its own"
            + (", or set `rest: freeze`." if rest else "."),
            stacklevel=3,
        )


def run_record(schedule: Schedule, groups: Groups, members: Membership, at: Position, resumed: bool) -> Record:
    """The record that a run begins with."""
    return {
        "type": "run",
        "schedule": schedule.describe(),
        "groups": {group: size_of(m.parameter for m in found) for group, found in groups.members.items()},
        "frozen_by_user": list(groups.frozen_by_user),
        "rest": groups.rest,
        "optimizers": [type(step.optimizer).__qualname__ for step in members.steps],
        "updates_before": at.total,
        "epoch": at.epoch,
        "resumed": resumed,
    }
