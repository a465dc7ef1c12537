"""The probe: what an optimizer does to a parameter that is frozen, learnt from twins of it under the gate itself."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.run_context import plain_optimizer
from lightning_freeze.holds.snapshots import changed, same
from lightning_freeze.probe.clone import family, options, reaches, undisturbed
from lightning_freeze.probe.proxies import NoTwinError, is_plain, parameters_of, small_ones
from lightning_freeze.probe.trial import ALL, FIRST, FROZEN, MOVING, NOT_OURS, WARMEST, How, Trial, named, ways

FROZEN_STEPS = 21
"""Steps through which a parameter stays frozen in the probe, at least: wrappers such as Lookahead act every few."""

_FEWER = 7  # the same for one that is frozen from the first step on, unless a period is longer
_WARM = 3
_LONGEST = 256  # of a period that is waited for
_MOST_PERIODS = 4
_PERIOD = re.compile(r"k|(?!.*(warm|total|max)).*(freq|every|interval|period|gap|steps|sync|merge).*")
_KEPT = 64
_STILL = "it moved nothing"
_NONE = "whose gradient is None"
_RENAMED = {"holds_left_out": "holds_excluded", "clocks": "step_counters", "reads_early": "reads_before_closure"}


@dataclass(frozen=True)
class OptimizerTraits:
    """What `probe_optimizer` learnt. What could not be learnt is None.

    Args:
        name: The optimizer's class.
        skips_none: Whether a parameter whose gradient is None keeps its value and its state, bit for bit, while others are
            updated, and trains on afterwards.
        holds_excluded: The same of a parameter that is left out of the param groups for the step.
        all_none_ok: Whether a step survives in which nothing has a gradient, held in the way that holds.
        late_first_step_ok: Whether a parameter that was frozen from the very first step is held, and trains later.
        step_counters: Entries of param groups that run on while a parameter of theirs is frozen, such as ``step``.
        steps_in_backward: Whether it updates parameters within backward, before any hook of a step.
        closure_reentrant: Whether one step calls its closure more than once.
        reads_before_closure: Whether it reads gradients before it calls its closure (as SAM does), so that those of what is frozen are
            emptied before the step, too.
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


def probe_optimizer(optimizer: Optimizer, closure: bool | None = None) -> OptimizerTraits:
    """Run twins of an optimizer on small parameters: freeze some, thaw them, and see what holds.

    A twin has the class, the hyper-parameters and the param groups of the optimizer, wrapped optimizers included, over
    two small parameters for each kind that a group has: number of dimensions, dtype, device. The gate that holds a run's
    parameters holds theirs; hooks that were registered on the optimizer are not run. The optimizer itself, its parameters, its state and every global random state are left as they
    are. (The idea is that of torch's own tests, which step each optimizer of a database, ``optim_db``, in every
    configuration.)

    Args:
        optimizer: Any `torch.optim.Optimizer`, wrappers included, or what Lightning and Fabric make of one.
        closure: Whether its steps are handed a closure, as Lightning hands them one; by default, only where it asks for one.

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
    if key is not None and key in _known:
        _known.move_to_end(key)
        return _known[key]
    held = parameters_of(optimizer)
    versions = [p._version for p in held]
    with undisturbed(held), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that warns has done so when the user made it
        traits = _probed(optimizer, closure)
    if versions != [p._version for p in held]:
        raise UnsupportedError(
            f"{type(optimizer).__qualname__} reaches its parameters in a way that a copy of it still does, so that trying it "
            "out has changed them. Begin with new ones, and use an optimizer that holds its parameters in `param_groups`."
        )
    if key is not None:
        _known[key] = traits
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    return traits


_known: OrderedDict[Any, OptimizerTraits] = OrderedDict()


def _key(optimizer: Optimizer, closure: bool | None) -> Any:
    """What decides on an optimizer's traits; None where that is not told by plain values."""
    if not type(optimizer).__module__.startswith("torch.optim."):
        return None  # a class of one's own may change from one fit to the next
    own = {key: value for key, value in vars(optimizer).items() if not NOT_OURS.fullmatch(key)}
    held = [own, *map(options, optimizer.param_groups)]
    if not is_plain([[*each.values()] for each in held]) or optimizer.state or _hooked_by(optimizer):
        return None
    try:
        kinds = small_ones(optimizer, family(optimizer)[1:]).kinds
    except NoTwinError:
        return None
    said = repr([sorted(each.items()) for each in (*held, optimizer.defaults)])
    return type(optimizer), type(optimizer).step, closure, kinds, said


def _probed(optimizer: Optimizer, closure: bool | None) -> OptimizerTraits:
    traits = OptimizerTraits(type(optimizer).__qualname__)
    if _hooked_by(optimizer):
        return replace(traits, steps_in_backward=True)
    said: list[str] = []
    for how in ways(optimizer, closure, said):
        probe = _Probe(optimizer, how)
        learnt = probe.traits(traits)
        if learnt.steps_in_backward or learnt.skips_none or learnt.holds_excluded:
            return learnt
        failed = learnt.why or probe.fails_anyway()
        if not failed:
            return learnt
        said.append(failed)  # later than in its first steps
    # That it moved nothing says less than what it raised.
    return replace(traits, why=next((why for why in said if not why.startswith(_STILL)), said[0]))


class _Probe:
    """The trials of one optimizer."""

    def __init__(self, optimizer: Optimizer, how: How) -> None:
        self._optimizer, self._how = optimizer, how
        periods = _periods(optimizer)
        longest = max(periods, default=0) + 1
        self._steps, self._fewer = max(FROZEN_STEPS, longest), max(_FEWER, longest)
        # A first update may fail only where it falls on a period: with the step that ends one, or the one after that.
        some = periods[:_MOST_PERIODS]
        self._late_steps = sorted({self._fewer, *some, *(period - 1 for period in some)})
        self._reasons: dict[str, str] = {}
        self._clocks: set[str] = set()
        self._extra: set[str] = set()
        self._moved_idle = ""
        self._others: dict[bool, list[Any]] = {}  # where what trained has come to, by whether the rest was left out
        self._not_late: dict[bool, str] = {}  # why what was frozen from the first step on does not train, by the same

    def traits(self, traits: OptimizerTraits) -> OptimizerTraits:
        """All that is learnt."""
        trial = Trial(self._optimizer, self._how)
        if trial.twin.built and trial.moves_in_backward():
            return replace(traits, steps_in_backward=True, why="it updates parameters within backward")
        traits = replace(traits, steps_in_backward=False)
        if not trial.moves(MOVING):
            why = f"{_STILL} in {WARMEST + 1} steps, so nothing is known of what it would move"
            return replace(traits, closure_reentrant=trial.reentrant, why=why)
        if not trial.heard:
            reasons = dict.fromkeys(("skips_none", "holds_excluded"), "its step does not run torch's step hooks")
            return replace(traits, skips_none=False, holds_excluded=False, reasons=reasons)
        return self._of_freezing(replace(traits, closure_reentrant=trial.reentrant))

    def _of_freezing(self, traits: OptimizerTraits) -> OptimizerTraits:
        none = self._holds_none()
        left = self._holds("holds_excluded", True, self._fewer if none else self._steps)  # where it will not be needed
        out = not none and left
        idles = self._survives_idle(out)
        if none and self._moved_idle:  # so it was not the frozen ones that the others' steps left alone
            none = self._says(
                "skips_none", f"{self._moved_idle} of a parameter moved in steps in which nothing trained"
            )
            out = left
        late = {"late_first_step_ok": self._not_late[out]} if out in self._not_late else {}
        return replace(
            traits,
            skips_none=none,
            holds_excluded=left,
            all_none_ok=idles,
            late_first_step_ok=not late if none or left else None,
            step_counters=tuple(sorted(self._clocks)),
            reads_before_closure=self._how.early,
            extra_state=tuple(sorted(self._extra)),
            reasons=self._reasons | late,
        )

    def _holds_none(self) -> bool:
        """Whether what has no gradient is held; if need be, of gradients that are emptied before the step, too."""
        if self._holds("skips_none", False, self._steps):
            return True
        if self._how.closure == "no":
            return False
        late, self._how = self._how, replace(self._how, early=True)
        if self._holds("skips_none", False, self._steps):
            return True
        self._how = late
        return False

    def _holds(self, trait: str, excludes: bool, steps: int) -> bool:
        """Whether what is frozen stands still: after some updates, a whole param group of it, and from the first step on."""
        what = "left out of the param groups" if excludes else _NONE
        try:
            failed = self._fails_later(what, excludes, steps) or self._fails_from_the_first(what, excludes)
        except Exception as error:  # third-party code of any kind
            failed = f"a step with a parameter {what} raised {named(error)}"
        if failed:
            return self._says(trait, failed)
        self._reasons.pop(trait, None)  # of a first try
        return True

    def _fails_later(self, what: str, excludes: bool, steps: int) -> str:
        """What goes wrong where something is frozen after some updates."""
        trial = Trial(self._optimizer, self._how, excludes)
        trial.run(ALL, _WARM)
        for frozen in ([FROZEN], [FROZEN, FIRST]):
            if frozen[-1] in trial.members:
                step_counters, attributes = trial.step_counters(), trial.attributes()
                moved = _moved(trial, frozen, steps)
                self._others.setdefault(excludes, trial.values(MOVING))
                if moved:
                    return f"{moved} of a parameter {what} moved"
                self._clocks.update(*map(changed, step_counters, trial.step_counters()))
                self._extra.update(changed(attributes, trial.attributes()))
        if excludes and not same(self._others[True], self._where_others_come_to(steps)):
            return f"others trained otherwise than they do beside a parameter {_NONE}"
        if not trial.moves(FROZEN) and self._moves_after(trial.count):
            return f"a parameter {what} did not train again"
        return ""

    def _fails_from_the_first(self, what: str, excludes: bool) -> str:
        """What goes wrong where something is frozen from the first step on; and whether it trains later."""
        late = [Trial(self._optimizer, self._how, excludes) for _ in self._late_steps]
        for trial, steps in zip(late, self._late_steps, strict=True):
            if moved := _moved(trial, [FROZEN], steps):
                return f"{moved} of a parameter {what} from the first step on moved"
        if why := next(filter(None, map(self._why_not_late, late)), ""):
            self._not_late[excludes] = why
        return ""

    def _why_not_late(self, trial: Trial) -> str:
        """Why a parameter that was frozen until now does not train; nothing where it does."""
        try:
            if trial.moves(FROZEN) or not self._moves_after(trial.count):
                return ""
        except Exception as error:
            return f"the first update of a parameter that had been frozen from the first step on raised {named(error)}"
        return "a parameter that was frozen from the first step on did not train later"

    def _where_others_come_to(self, steps: int) -> list[Any]:
        """What trains, beside a parameter without a gradient; where that fails, beside one that trains."""
        if steps == self._steps and False in self._others:
            return self._others[False]
        for trains in (ALL - {FROZEN}, ALL):
            try:
                trial = Trial(self._optimizer, self._how)
                trial.run(ALL, _WARM)
                trial.run(trains, steps)
            except Exception:  # told elsewhere
                continue
            return trial.values(MOVING)
        return self._others[True]

    def fails_anyway(self) -> str | None:
        """What goes wrong in as many steps in which nothing is frozen, so that freezing has no part in it."""
        try:
            Trial(self._optimizer, self._how).run(ALL, self._steps + _WARM)
        except Exception as error:
            return named(error)
        return None

    def _moves_after(self, steps: int) -> bool:
        """Whether something still moves after so many steps in which nothing was frozen: some come to rest by themselves."""
        control = Trial(self._optimizer, self._how)
        control.run(ALL, steps)
        return control.moves(FROZEN)

    def _survives_idle(self, excludes: bool) -> bool:
        try:
            trial = Trial(self._optimizer, self._how, excludes)
            trial.run(ALL, _WARM)
            self._moved_idle = _moved(trial, sorted(ALL), _WARM)
            if self._moved_idle:
                return self._says("all_none_ok", "a step in which nothing had a gradient moved something")
            trial.run(ALL)
        except Exception as error:
            return self._says("all_none_ok", f"a step in which nothing had a gradient raised {named(error)}")
        return True

    def _says(self, trait: str, reason: str) -> bool:
        self._reasons[trait] = reason
        return False


def _moved(trial: Trial, frozen: Sequence[str], steps: int) -> str:
    """What has moved of these groups, frozen through so many steps; nothing where all held."""
    values, states = trial.values(*frozen), trial.states(*frozen)
    trial.run(ALL.difference(frozen), steps)
    if not same(values, trial.values(*frozen)):
        return "the value"
    if same(states, trial.states(*frozen)):
        return ""
    entries = ", ".join(_entries(states, trial.states(*frozen)))
    return "the state" + (f" ({entries})" if entries else "")


def _entries(before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    """The entries of the states of parameters that differ."""
    found: dict[str, None] = {}
    for old, new in zip(chain(*before), chain(*after), strict=True):
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= dict.fromkeys(map(str, changed(old, new)))
    return list(found)


def _periods(optimizer: Optimizer) -> list[int]:
    """What may be periods among its options, such as Lookahead's ``k``; the shortest first."""
    held = [each for member in family(optimizer) for each in (vars(member), *member.param_groups)]
    return sorted(
        {
            value
            for each in held
            for key, value in each.items()
            if type(value) is int and 1 < value <= _LONGEST and _PERIOD.fullmatch(key)
        }
    )


def _hooked_by(optimizer: Optimizer) -> bool:
    """Whether a parameter's backward calls the optimizer: its hooks refer to it."""
    members = {id(member) for member in family(optimizer)}
    return any(
        reaches(hook, members)
        for p in parameters_of(optimizer)
        for hooks in (getattr(p, "_post_accumulate_grad_hooks", None), p._backward_hooks)
        for hook in (hooks or {}).values()
    )
