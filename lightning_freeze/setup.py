"""Facts of a run, before its first step: what each optimizer needs, and one ordered list of holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from torch import nn

from lightning_freeze.audit.run_audit import RunAudit
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.errors import counted, listed
from lightning_freeze.holds.backward import SkipBackward as SkipHold
from lightning_freeze.holds.checkpointing import ReentrantInputs
from lightning_freeze.holds.ddp import ZeroGradsForDDP
from lightning_freeze.holds.eval_mode import EvalModes
from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.holds.hold import Hold, Holds
from lightning_freeze.holds.optimizer_state import OffloadState, OptimizerState, ResetState
from lightning_freeze.holds.param_groups import ExcludeParams, LearningRateFactors, ShortenParams
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.holds.schedule_free import ScheduleFreeGuard
from lightning_freeze.holds.skip_decision import Decision, SkipBackward, choose
from lightning_freeze.loop import Built, Loop
from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.membership import MANY, Membership, Step, foreign
from lightning_freeze.plan.preview import Step as Preview
from lightning_freeze.plan.preview import longest_interval
from lightning_freeze.plan.schedule import REST, Plan, Schedule
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.probe.step_counters import first_update
from lightning_freeze.probe.verdict import hold_method
from lightning_freeze.report.records import OptimizerRecord, Record

_ALIKE = 0.05


@dataclass(frozen=True)
class Options:
    """The arguments of `FreezeController` that choose holds."""

    skip_backward: SkipBackward
    optimizer_state: OptimizerState
    eval_modules: bool
    audit: bool


def learn(
    members: Membership, plan: Plan, options: Options, closures: bool | None
) -> Iterator[tuple[int, OptimizerTraits]]:
    """Probe each optimizer that holds something which freezes, and note how it must be held, or refuse it.

    Yields:
        The index of an optimizer and its traits, also of one that is refused.
    """
    forever = {REST} if members.groups.rest == "freeze" else set()
    for step in members.steps:
        freezable = step.members.keys() & members.groups.freezable.keys()
        if not freezable or (plan.never_freezes() and not freezable & forever):
            continue
        found = probe_optimizer(step.optimizer, closures)
        yield step.index, found
        late = sorted(freezable - plan.trains(plan.start(), step.index) - forever)
        method = hold_method(
            found, step.index, late=late, fully_frozen=plan.can_be_fully_frozen(step.index), audited=options.audit
        )
        step.excludes, step.reads_before_closure = method == "excluded", found.reads_before_closure
        # torch's own read `param_groups` in each step; what the probe has seen of others is less than that.
        of_torch = type(step.optimizer).__module__.startswith("torch.optim.")
        many = sum(len(step.members[group]) for group in freezable) >= MANY
        step.shortens = many and of_torch and method == "none" and bool(found.holds_excluded)
        if method == "unknown":
            warnings.warn(
                f"optimizer {step.index} ({found.name}) could not be probed: {found.why}. Whether it moves a parameter "
                "whose gradient is None is first known from the audit at the epoch's end. Use an optimizer of torch.optim "
                "to know it before training.",
                stacklevel=4,
            )


def decide_skipping(asked: SkipBackward, run: RunContext, plan: Plan, members: Membership) -> Decision:
    """Whether backward work of frozen groups is skipped."""
    groups = {id(m.parameter): group for group, found in members.groups.freezable.items() for m in found}
    return choose(asked, run, plan.sets(), groups)


def warn_of_step_counters(
    members: Membership,
    traits: Mapping[int, OptimizerTraits],
    coming: Callable[[], Iterator[Preview]],
    updates: Mapping[str, int],
    closures: bool | None,
) -> None:
    """Warn where a step counter of a param group changes the first update after a frozen interval."""
    for step in members.steps:
        found = traits.get(step.index)
        if found is None or not found.step_counters or found.skips_none is None:
            continue
        interval = longest_interval(
            coming(), step.index, step.members.keys() & members.groups.freezable.keys(), updates
        )
        if interval is None:
            continue
        ratio = first_update(
            step.optimizer,
            interval.before,
            interval.length,
            closure=closures,
            excludes=step.excludes,
            reads_before_closure=step.reads_before_closure,
        )
        if ratio is not None and abs(ratio - 1) > _ALIKE:
            warnings.warn(
                f"optimizer {step.index} ({found.name}) counts {', '.join(found.step_counters)} for a whole param group, also "
                f"while a part of it is frozen: after the longest planned interval (`{interval.group}`, frozen for "
                f"{interval.length} updates after {interval.before} of its own) the first update is {ratio:.2f} times as "
                "large as without the interval, in a run on small parameters. Where that matters, let a phase begin with a "
                "`ramp`, or use an optimizer that counts for each parameter (torch's AdamW does).",
                stacklevel=4,
            )


def build_holds(
    loop: Loop, plan: Plan, audit: RunAudit, options: Options, decision: Decision, *, scaler: bool
) -> Built:
    """The holds of a run, in the order in which they freeze: state is dropped before the audit reads it, moved after."""
    members, module = loop.members, loop.context.module
    optimizers = members.holders.optimizers
    guard = ScheduleFreeGuard(members.steps, loop.frozen)
    offload = OffloadState(optimizers, loop.soon) if options.optimizer_state == "offload" else None
    attention = any(isinstance(each, nn.MultiheadAttention) for each in module.modules())
    skip = SkipHold(audit.shards, loop.context.manual_optimization, attention, loop.said, loop.describe)
    skip.allowed = decision.skips
    weights = None
    if options.audit:
        weights = WeightAudit(
            module,
            members.names,
            members.holders,
            members.trained(),
            loop.updates,
            buffers_held=options.eval_modules,
            suspects=audit.suspects,
            offload=offload,
            training_weights=guard.training_weights if guard.steps else nullcontext,
            split=audit.split,
        )
    holds: list[Hold | None] = [
        EvalModes() if options.eval_modules else None,
        guard,
        ResetState(optimizers) if options.optimizer_state == "reset" else None,
        weights,
        offload,
        skip if decision.skips else None,
        ZeroGradsForDDP(decision.reducer, lambda: [*skip.held.values()]) if decision.reducer is not None else None,
        ReentrantInputs(lambda: bool(skip.held), loop.say, loop.said) if decision.skips else None,
        SetGradsToNone(partial(getattr, skip, "active")),
        ExcludeParams() if any(step.excludes for step in members.steps) else None,
        ShortenParams() if any(step.shortens for step in members.steps) else None,
        LearningRateFactors() if plan.rated else None,
    ]
    present = Holds(hold for hold in holds if hold is not None)
    return Built(present, weights, skip, scaler or decision.reducer is not None)


def warn_of_what_trains(plan: Plan, schedule: Schedule, run: Record) -> None:
    """Warn where nothing ever freezes, or where phases name what trains and most of the model trains beside it."""
    rest = run["groups"].get(REST, {"parameters": 0, "elements": 0})
    if not plan.never_freezes() or (rest["parameters"] and run["rest"] == "freeze"):
        part = rest["elements"] / max(1, sum(size["elements"] for size in run["groups"].values()))
        if part > 0.5 and plan.layout.rest_trains and any(key.endswith(".train") for key, _ in schedule.names()):
            warnings.warn(
                f"{part:.0%} of the elements that can train are in no group, and train in every phase, by `rest: train`. To "
                "freeze them, set `rest: freeze`, or name them in a group of their own.",
                stacklevel=3,
            )
    elif not plan.rated:
        outside = f", beside {counted(rest['parameters'], 'parameter')} in no group, by `rest: train`" * bool(
            rest["elements"]
        )
        warnings.warn(
            f"this schedule never freezes anything: its groups ({', '.join(plan.layout.groups)}) train at every step{outside}. "
            f"Name what is to be frozen as a group of its own{', or set `rest: freeze`' * bool(outside)}.",
            stacklevel=3,
        )


def notes(loop: Loop, options: Options) -> Iterator[str]:
    """What to say when a run begins, beside its record."""
    members = loop.members
    yield from (f"{found}; no schedule freezes them." for found in foreign(members.names, members.holders))
    if options.optimizer_state == "offload" and all(p.device.type == "cpu" for p in members.scheduled):
        yield "`optimizer_state: offload` has nothing to do: the optimizer state is in host memory already."
    moved = (m for found in members.groups.moved_by_user.values() for m in found)
    if held := [m.name for m in moved if members.holders.indices(m.parameter)]:
        yield f"an optimizer holds {listed(held)}, which `by: user` takes from the schedule: it trains."


def begin_audit(
    audit: RunAudit,
    schedule: Schedule,
    options: Options,
    decision: Decision,
    loop: Loop,
    traits: Mapping[int, OptimizerTraits],
    sizes: tuple[Mapping[str, Size], Sequence[str]],
    resumed: bool,
) -> Record:
    """Begin to audit, with what else the record of a scheduled run holds; that record."""
    members = loop.members
    groups = members.groups
    return audit.begin(
        lambda: {group: [m.parameter for m in found] for group, found in members.groups.members.items()},
        lambda: members.steps,
        resumed,
        memory={
            group: {"gradient_bytes": size.gradient, "state_bytes": None if sizes[1] else size.state}
            for group, size in sizes[0].items()
        },
        schedule=schedule.describe(),
        users_own=list(groups.frozen_by_user),  # a key in files since the first version
        rest=groups.rest,
        skip_backward={"asked": options.skip_backward, "skips": decision.skips, "why": decision.why},
        optimizer_state=options.optimizer_state,
        frozen_modules="eval" if options.eval_modules else "train",
        optimizers=[_optimizer_record(step, traits.get(step.index)) for step in members.steps],
    )


def _optimizer_record(step: Step, traits: OptimizerTraits | None) -> OptimizerRecord:
    found: OptimizerRecord = {
        "name": type(step.optimizer).__qualname__,
        "groups": [*step.members],
        "excludes": step.excludes,
    }
    if traits is not None:
        found |= {"skips_none": traits.skips_none, "late_first_step_ok": traits.late_first_step_ok}
        found |= {"step_counters": [*traits.step_counters], "why": traits.why or traits.reasons.get("skips_none", "")}
    return found
