"""The probe: what an optimizer does to a parameter that is frozen, learnt from clones of it under the holds of a run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.run_context import plain_optimizer
from lightning_freeze.holds.snapshots import changed, same
from lightning_freeze.probe.clone import clone_by_constructor, options, reaches, undisturbed
from lightning_freeze.probe.proxies import CloneError, is_plain, marks, nested_optimizers, parameters_of, small_plan
from lightning_freeze.probe.trial import (
    ALL,
    FIRST,
    FROZEN,
    MOVING,
    TORCHS,
    CloneTrial,
    StepRecipe,
    error_line,
    step_recipes,
)

FROZEN_STEPS = 21
"""Steps through which a parameter stays frozen in the probe, at least: wrappers such as Lookahead act every few."""

_FEWER = 7  # the same for one that is frozen from the first step on, unless a period is longer
_WARM = 3
_LONGEST = 256  # of a period that is waited for
_MOST_PERIODS = 4
_PERIOD = re.compile(r"k|(?!.*(warm|total|max)).*(freq|every|interval|period|gap|steps|sync|merge).*")
_MOST_KNOWN = 64
_UNMOVED = "it moved nothing"
_NONE, _EXCLUDED = "whose gradient is None", "excluded from the param groups"
_RENAMED = {"holds_left_out": "holds_excluded", "clocks": "step_counters", "reads_early": "reads_before_closure"}


@dataclass(frozen=True)
class OptimizerTraits:
    """What `probe_optimizer` learnt. What could not be learnt is None.

    Args:
        name: The optimizer's class.
        skips_none: Whether a parameter whose gradient is None keeps its value and its state, bit for bit, while others are
            updated, and trains on afterwards.
        holds_excluded: The same of a parameter that is excluded from the param groups for the step.
        all_none_ok: Whether a step in which nothing has a gradient succeeds, by the method that holds.
        late_first_step_ok: Whether a parameter that was frozen from the very first step is held, and trains later.
        step_counters: Entries of param groups that run on while a parameter of theirs is frozen, such as ``step``.
        steps_in_backward: Whether it updates parameters within backward, before any hook of a step.
        closure_reentrant: Whether one step calls its closure more than once.
        reads_before_closure: Whether it reads gradients before it calls its closure (as SAM does), so that those of what is
            frozen are set to None before the step, too.
        extra_state: Attributes, outside of its state and its param groups, that change from step to step.
        why: Where nothing could be learnt: the reason.
        reasons: Of each trait that is False: what happened in the probe.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> probe_optimizer(torch.optim.AdamW([weight])).skips_none
        True
    """

    name: str
    skips_none: bool | None = None
    holds_excluded: bool | None = None
    all_none_ok: bool | None = None
    late_first_step_ok: bool | None = None
    step_counters: tuple[str, ...] = ()
    steps_in_backward: bool | None = None
    closure_reentrant: bool = False
    reads_before_closure: bool = False
    extra_state: tuple[str, ...] = ()
    why: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """Fields by their former names."""
        if name not in _RENAMED:
            raise AttributeError(f"'OptimizerTraits' object has no attribute {name!r}")
        warnings.warn(f"OptimizerTraits.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return getattr(self, _RENAMED[name])


_known: dict[Any, OptimizerTraits] = {}


def probe_optimizer(optimizer: Optimizer, closure: bool | None = None) -> OptimizerTraits:
    """Run clones of an optimizer on small parameters: freeze some, thaw them, and see what holds.

    A clone has the class, hyper-parameters and param groups of the optimizer, nested optimizers included, over two small
    parameters for each kind of parameter (number of dimensions, dtype, device) in a param group. They are frozen as those
    of a run are; hooks registered on the optimizer are not run. The optimizer, its parameters, its state and every global
    random state are left as they are. (The idea is that of torch's own tests, which step each optimizer of a database,
    ``optim_db``, in every configuration.)

    Args:
        optimizer: Any `torch.optim.Optimizer`, wrappers included, or what Lightning and Fabric make of one.
        closure: Whether its steps are given a closure, as Lightning does; by default, only where it needs one.

    Raises:
        UnsupportedError: A copy of the optimizer has reached the parameters of this one.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> lbfgs = probe_optimizer(torch.optim.LBFGS([weight]))
        >>> lbfgs.skips_none, lbfgs.reasons["skips_none"]
        (False, 'the value of a parameter whose gradient is None moved')
    """
    optimizer = plain_optimizer(optimizer)
    if not hasattr(optimizer, "param_groups"):
        return OptimizerTraits(type(optimizer).__qualname__, why="it has no `param_groups`")
    key = _key(optimizer, closure)
    if key in _known:
        return _known[key]
    held = parameters_of(optimizer)
    versions = [p._version for p in held]
    with undisturbed(held):
        traits = _probed(optimizer, closure)
    if versions != [p._version for p in held]:
        raise UnsupportedError(
            f"{type(optimizer).__qualname__} reaches its parameters in a way that a copy of it still does, so that probing it "
            "has changed them. Begin with new ones, and use an optimizer that holds its parameters in `param_groups`."
        )
    if key is not None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = traits
    return traits


def _key(optimizer: Optimizer, closure: bool | None) -> Any:
    """What decides on an optimizer's traits; None where plain values do not."""
    if not type(optimizer).__module__.startswith("torch.optim."):
        return None  # a user's class may change from one fit to the next
    own = {key: value for key, value in vars(optimizer).items() if not TORCHS.fullmatch(key)}
    held = [own, *map(options, optimizer.param_groups)]
    if not is_plain([[*each.values()] for each in held]) or optimizer.state or _hooked_by(optimizer):
        return None
    try:
        models = small_plan(optimizer).models
    except CloneError:
        return None
    kinds = tuple((number, shape, like.dtype, like.device, marks(like)) for number, like, shape in models)
    values = repr([sorted(each.items()) for each in (*held, optimizer.defaults)])
    return type(optimizer), type(optimizer).step, closure, kinds, values


def _probed(optimizer: Optimizer, closure: bool | None) -> OptimizerTraits:
    traits = OptimizerTraits(type(optimizer).__qualname__)
    if _hooked_by(optimizer):
        return replace(traits, steps_in_backward=True)
    failures: list[str] = []
    for recipe in step_recipes(optimizer, closure, failures):
        probe = _Probe(optimizer, recipe)
        learnt = probe.traits(traits)
        if learnt.steps_in_backward or learnt.skips_none or learnt.holds_excluded:
            return learnt
        failed = learnt.why or probe.fails_unfrozen()
        if not failed:
            return learnt
        failures.append(failed)  # later than in its first steps
    # That it moved nothing says less than what it raised.
    return replace(traits, why=next((why for why in failures if not why.startswith(_UNMOVED)), failures[0]))


class _Probe:
    """The trials of one optimizer by one recipe."""

    def __init__(self, optimizer: Optimizer, recipe: StepRecipe) -> None:
        self._optimizer, self._recipe = optimizer, recipe
        periods = _periods(optimizer)
        longest = max(periods, default=0) + 1
        self._steps, self._fewer = max(FROZEN_STEPS, longest), max(_FEWER, longest)
        # A first update may fail only where it falls on a period: with the step that ends one, or the one after that.
        some = periods[:_MOST_PERIODS]
        self._late_steps = sorted({self._fewer, *some, *(period - 1 for period in some)})
        self._reasons: dict[str, str] = {}
        self._step_counters: set[str] = set()
        self._extra_state: set[str] = set()
        self._moved_fully_frozen = ""
        self._not_late: dict[bool, str] = {}  # by exclusion: why what was frozen from the first step on does not train

    def traits(self, traits: OptimizerTraits) -> OptimizerTraits:
        """All that is learnt."""
        trial = CloneTrial(self._optimizer, self._recipe)
        if self._recipe.build is clone_by_constructor and trial.moves_in_backward():  # which may have registered hooks
            return replace(traits, steps_in_backward=True, why="it updates parameters within backward")
        traits = replace(traits, steps_in_backward=False)
        if not trial.moves(MOVING):
            why = f"{_UNMOVED} in {trial.count} steps, so nothing is known of what it would move"
            return replace(traits, closure_reentrant=trial.reentrant, why=why)
        if not trial.hooked:
            reasons = dict.fromkeys(("skips_none", "holds_excluded"), "its step does not run torch's step hooks")
            return replace(traits, skips_none=False, holds_excluded=False, reasons=reasons)
        return self._of_freezing(replace(traits, closure_reentrant=trial.reentrant))

    def _of_freezing(self, traits: OptimizerTraits) -> OptimizerTraits:
        none = self._holds_none()
        excluded = self._holds(True, self._fewer if none else self._steps)  # fewer where it will not be needed
        excludes = not none and excluded
        fully_frozen = self._can_be_fully_frozen(excludes)
        if none and self._moved_fully_frozen:  # so it was not the frozen ones that the others' steps left alone
            moved = f"{self._moved_fully_frozen} of a parameter moved in steps in which nothing trained"
            none = self._fails("skips_none", moved)
            excludes = excluded
        late = {"late_first_step_ok": self._not_late[excludes]} if excludes in self._not_late else {}
        return replace(
            traits,
            skips_none=none,
            holds_excluded=excluded,
            all_none_ok=fully_frozen,
            late_first_step_ok=not late if none or excluded else None,
            step_counters=tuple(sorted(self._step_counters)),
            reads_before_closure=self._recipe.reads_before_closure,
            extra_state=tuple(sorted(self._extra_state)),
            reasons=self._reasons | late,
        )

    def _holds_none(self) -> bool:
        """Whether what has no gradient is held; if need be, of gradients set to None before the step, too."""
        if self._holds(False, self._steps):
            return True
        first = self._recipe
        if first.closure != "no":
            self._recipe = replace(first, reads_before_closure=True)
            if self._holds(False, self._steps):
                return True
            self._recipe = first
        return False

    def _holds(self, excludes: bool, steps: int) -> bool:
        """Whether what is frozen keeps its bits: after some updates, in whole param groups, and from the first step on."""
        trait, what = ("holds_excluded", _EXCLUDED) if excludes else ("skips_none", _NONE)
        try:
            failed = self._fails_later(what, excludes, steps) or self._fails_from_the_first(what, excludes)
        except Exception as error:  # third-party code of any kind
            failed = f"a step with a parameter {what} raised {error_line(error)}"
        if failed:
            return self._fails(trait, failed)
        self._reasons.pop(trait, None)  # of a first try
        return True

    def _fails_later(self, what: str, excludes: bool, steps: int) -> str:
        """What goes wrong where something is frozen after some updates."""
        trial = CloneTrial(self._optimizer, self._recipe, excludes)
        trial.run(ALL, _WARM)
        others: list[Any] = []
        for frozen in ([FROZEN], [FROZEN, FIRST]):
            if frozen[-1] in trial.members:
                entries, attributes = trial.group_entries(), trial.attributes()
                moved = _moved(trial, frozen, steps)
                others = others or trial.values(MOVING)
                if moved:
                    return f"{moved} of a parameter {what} moved"
                self._step_counters.update(*map(changed, entries, trial.group_entries()))
                self._extra_state.update(changed(attributes, trial.attributes()))
        if excludes and not self._others_reach(others, steps):
            return f"others trained differently than with a parameter {_NONE}"
        if not trial.moves(FROZEN) and self._moves_after(trial.count):
            return f"a parameter {what} did not train again"
        return ""

    def _fails_from_the_first(self, what: str, excludes: bool) -> str:
        """What goes wrong where something is frozen from the first step on; and whether it trains later."""
        late = [CloneTrial(self._optimizer, self._recipe, excludes) for _ in self._late_steps]
        for trial, steps in zip(late, self._late_steps, strict=True):
            if moved := _moved(trial, [FROZEN], steps):
                return f"{moved} of a parameter {what} from the first step on moved"
        if why := next(filter(None, map(self._why_not_late, late)), ""):
            self._not_late[excludes] = why
        return ""

    def _why_not_late(self, trial: CloneTrial) -> str:
        """Why a parameter that was frozen until now does not train; empty where it does."""
        try:
            if trial.moves(FROZEN) or not self._moves_after(trial.count):
                return ""
        except Exception as error:
            return f"the first update of a parameter frozen from the first step on raised {error_line(error)}"
        return "a parameter frozen from the first step on did not train later"

    def _others_reach(self, values: list[Any], steps: int) -> bool:
        """Whether others reach these values with a parameter without a gradient; where that fails, with one that trains."""
        for trains in (ALL - {FROZEN}, ALL):
            with suppress(Exception):  # reported elsewhere
                trial = CloneTrial(self._optimizer, self._recipe)
                trial.run(ALL, _WARM)
                trial.run(trains, steps)
                return same(values, trial.values(MOVING))
        return True

    def fails_unfrozen(self) -> str:
        """What goes wrong in as many steps in which nothing is frozen."""
        try:
            CloneTrial(self._optimizer, self._recipe).run(ALL, self._steps + _WARM)
        except Exception as error:
            return error_line(error)
        return ""

    def _moves_after(self, steps: int) -> bool:
        """Whether something still moves after so many steps with nothing frozen: some optimizers come to rest."""
        control = CloneTrial(self._optimizer, self._recipe)
        control.run(ALL, steps)
        return control.moves(FROZEN)

    def _can_be_fully_frozen(self, excludes: bool) -> bool:
        """Whether a step in which nothing has a gradient succeeds and moves nothing."""
        try:
            trial = CloneTrial(self._optimizer, self._recipe, excludes)
            trial.run(ALL, _WARM)
            self._moved_fully_frozen = _moved(trial, sorted(ALL), _WARM)
            if self._moved_fully_frozen:
                return self._fails("all_none_ok", "a step in which nothing had a gradient moved something")
            trial.run(ALL)
        except Exception as error:
            return self._fails("all_none_ok", f"a step in which nothing had a gradient raised {error_line(error)}")
        return True

    def _fails(self, trait: str, reason: str) -> bool:
        self._reasons[trait] = reason
        return False


def _moved(trial: CloneTrial, frozen: Sequence[str], steps: int) -> str:
    """What has moved of these groups, frozen through so many steps; empty where all held."""
    values, states = trial.values(*frozen), trial.states(*frozen)
    trial.run(ALL.difference(frozen), steps)
    if not same(values, trial.values(*frozen)):
        return "the value"
    now = trial.states(*frozen)
    if same(states, now):
        return ""
    entries: dict[str, None] = {}
    for old, new in zip(chain(*states), chain(*now), strict=True):
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            entries |= dict.fromkeys(map(str, changed(old, new)))
    return f"the state ({', '.join(entries)})" if entries else "the state"


def _periods(optimizer: Optimizer) -> list[int]:
    """What may be periods among its options, such as Lookahead's ``k``; the shortest first."""
    held = [each for member in nested_optimizers(optimizer) for each in (vars(member), *member.param_groups)]
    found = {value for each in held for key, value in each.items() if type(value) is int and _PERIOD.fullmatch(key)}
    return sorted(value for value in found if 1 < value <= _LONGEST)


def _hooked_by(optimizer: Optimizer) -> bool:
    """Whether a parameter's backward calls the optimizer: its hooks refer to it."""
    members = set(map(id, nested_optimizers(optimizer)))
    return any(
        reaches(hook, members)
        for p in parameters_of(optimizer)
        for hooks in (getattr(p, "_post_accumulate_grad_hooks", None), p._backward_hooks)
        for hook in (hooks or {}).values()
    )
