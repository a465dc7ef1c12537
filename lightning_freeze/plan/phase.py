"""`Phase`: one set of groups that train together, with which learning rates, and until when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

from lightning_freeze.errors import ScheduleError, counted, is_list, is_number, whole_number
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.schedule import REST, Layout, Part
from lightning_freeze.plan.until import Until

_COUNTS = {
    "updates": "the phase ends after that many updates",
    "epochs": "the phase ends with that training epoch's end",
    "ramp": "the learning rate of a group that thaws rises over that many updates",
}

LRFactor = float | list[float] | dict[str, float]
"""A factor for a group; a list of them for the groups of a family; or ``{decay: d}``."""


@dataclass(frozen=True, repr=False)
class Phase(Part):
    """One set of groups that train together until the phase ends.

    Args:
        train: Groups, families, globs over groups, selectors, or ``all`` (every named group).
        updates: The phase ends when every optimizer that holds one of its groups has made this many updates in it. An
            optimizer that has made its share waits, frozen, for the others.
        epochs: The phase ends with the nth training epoch's end, the epoch of its first step being the first.
        until: The phase ends when a metric stops improving.
        pick: Groups of a family that train with ``train``, drawn again each time that the phase is entered.
        lr: Group (or family, glob, ``all``, ``rest``) to the factor on the learning rate that the optimizer's groups
            have at each step, whatever scheduler sets it; it ends with the phase. A list gives each group of a family
            its own; ``{decay: 0.4}`` gives a family's last group 1 and each before it 0.4 of the one after it.
        ramp: The learning rate of a group that thaws with this phase rises evenly over its first so many updates, and
            is the group's own at the latest when the phase ends, unless the next one has a ramp, too.

    A phase without an end stays for good: it is the last, and nothing repeats.

    Raises:
        ScheduleError: Two ends, an end below 1, a ``train`` that is not a list of names, a factor that is not above 0.

    Example:
        >>> Phase(train=["head"], updates=4)
        Phase(train=['head'], updates=4)
        >>> phase = Phase(["head"], pick=Pick("layers", order="backward", keep=True), epochs=1, lr={"layers": {"decay": 0.4}})
        >>> last = Phase(["all"], until=Until("val_loss", patience=3), lr={"head": 0.1}, ramp=100)

    Discriminative rates and unfreezing from the top are ULMFiT's (arXiv 1801.06146).
    """

    train: list[str]
    updates: int | None = None
    epochs: int | None = None
    until: Until | None = None
    pick: Pick | None = None
    lr: dict[str, float | list[float] | dict[str, float]] | None = None
    ramp: int | None = None
    _always: ClassVar = ("train",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", _checked_train(self.train))
        for key, kind, example in (
            ("until", Until, "{metric: val_loss, patience: 3}"),
            ("pick", Pick, "{family: layers, count: 1, order: shuffle}"),
        ):
            value = getattr(self, key)
            if value is not None and not isinstance(value, kind):
                raise ScheduleError(
                    f"`{key}` is {value!r}, but must be a mapping such as `{key}: {example}`; in Python, {kind.__name__}(…).",
                    key=key,
                )
        self._check_ends()
        for key, meaning in _COUNTS.items():
            if getattr(self, key) is not None:
                object.__setattr__(self, key, whole_number(getattr(self, key), key, meaning))
        if self.lr is not None:
            object.__setattr__(self, "lr", _checked_lr(self.lr))

    def _check_ends(self) -> None:
        ends = [key for key in ("updates", "epochs", "until") if getattr(self, key) is not None]
        if len(ends) > 1:
            given = " and ".join(f"`{key}: {getattr(self, key)}`" for key in ends)
            raise ScheduleError(
                f"the phase with `train: {self.train}` has {'two' if len(ends) == 2 else 'three'} ends, {given}; a phase has "
                "at most one. Keep the one you mean"
                + (" (`until` has its own `max_epochs`)." if "until" in ends else "."),
                key=ends[-1],
            )

    @property
    def open_ended(self) -> bool:
        """Whether the phase has no end of its own."""
        return self.updates is None and self.epochs is None and self.until is None


def _checked_train(train: object) -> list[str]:
    if not is_list(train):
        raise ScheduleError(f"`train` is {train!r}, but must be a list of groups: `train: [{train}]`.", key="train")
    for name in train:
        if not isinstance(name, str) or not name:
            raise ScheduleError(
                f"`train` holds {name!r}, but must hold names of groups: `train: [head, backbone]`.", key="train"
            )
    return list(train)  # type: ignore[arg-type]


def _checked_lr(lr: object) -> dict[str, LRFactor]:
    if not isinstance(lr, Mapping) or not lr:
        raise ScheduleError(
            f"`lr` is {lr!r}, but must map groups to factors on the learning rate: `lr: {{backbone: 0.1}}`.", key="lr"
        )
    checked: dict[str, LRFactor] = {}
    for group, factor in lr.items():
        key = f"lr.{group}"
        if isinstance(factor, Mapping):
            if list(factor) != ["decay"]:
                raise ScheduleError(
                    f"`{key}` is {dict(factor)!r}, but a mapping there has the one key `decay`: `lr: {{{group}: {{decay: "
                    "0.4}}`, the last group of a family at 1 and each before it at 0.4 of the one after it.",
                    key=key,
                )
            checked[group] = {"decay": _factor(f"{key}.decay", factor["decay"])}
        elif is_list(factor):
            checked[group] = [_factor(key, each) for each in factor]
        else:
            checked[group] = _factor(key, factor)
    return checked


def _factor(key: str, value: object) -> float:
    if not is_number(value) or not 0 < value < math.inf:
        raise ScheduleError(
            f"`{key}` is {value!r}, but must be a number above 0: a factor on the learning rate. "
            + (
                "A rate of 0 freezes nothing (optimizer state goes on): leave the group out of `train`."
                if is_number(value) and value == 0
                else "The nearest valid value that changes nothing is 1."
            ),
            key=key,
        )
    return float(value)


def kind_of(phase: Phase) -> tuple[object, ...]:
    """What its groups and their factors follow from: phases that differ in no more than their ends share it."""
    pick, lr = phase.pick and repr(phase.pick), phase.lr and repr(phase.lr)
    return (*phase.train, pick, lr, phase.ramp is None, phase.updates is None)


class BoundPhase:
    """A phase over a model's groups.

    ``repeat`` is how often its sequence of phases is run, None if for ever.
    """

    def __init__(self, phase: Phase, layout: Layout, key: str, repeat: int | None) -> None:
        self.phase, self.key, self._layout = phase, key, layout
        pick = phase.pick
        self.always = frozenset(g for name in phase.train for g in layout.expand(name, f"{key}.train"))
        self.family: tuple[str, ...] = ()  # the groups that are drawn from
        self._least = 0  # how many of the family train at every visit
        if pick is not None:
            self.family = pick.groups_of(layout, self.always, f"{key}.pick")
            self._least = pick.least(len(self.family), repeat)
        self.possible = self.always.union(self.family)  # all that it may train
        self.at_every_visit = self.possible if self._least == len(self.family) else self.always
        if not self.always and not self._least and not layout.rest_trains:
            drawn = f" and `{key}.pick` can leave all of {pick.family!r} frozen" if pick is not None else ""
            raise ScheduleError(
                f"`{key}.train` is empty{drawn} and no other parameter trains. Name a group, or set `rest: train`.",
                key=f"{key}.train",
            )
        self.lr_factors = {group: factor for group, factor in self._all_lr_factors().items() if factor != 1.0}

    def at(self, phase: Phase, key: str) -> BoundPhase:
        """The same for another phase of its kind, which stands elsewhere."""
        bound = copy(self)
        bound.phase, bound.key = phase, key
        return bound

    def _all_lr_factors(self) -> dict[str, float]:
        factors: dict[str, float] = {}
        for name, factor in (self.phase.lr or {}).items():
            key = f"{self.key}.lr.{name}"
            groups = self._with_lr(name, factor, key)
            for group, its in zip(groups, _factors(factor, groups, key), strict=True):
                if factors.setdefault(group, its) != its:
                    raise ScheduleError(
                        f"`{self.key}.lr` gives {group!r} two factors, {factors[group]:g} and (as {name!r}) {its:g}. Name "
                        "each group once.",
                        key=key,
                    )
        return factors

    def _with_lr(self, name: str, factor: LRFactor, key: str) -> tuple[str, ...]:
        """The groups that a name in ``lr`` stands for."""
        rest = name == REST and self._layout.rest_trains
        groups = (REST,) if rest else self._layout.expand(name, key)
        if isinstance(factor, dict) and (rest or name in self._layout.groups):
            raise ScheduleError(
                f"`{key}` has a `decay`, which goes from group to group of a family, but {name!r} is one group. Give it "
                f"a factor: `lr: {{{name}: {factor['decay']:g}}}`.",
                key=key,
            )
        if not rest and self.possible.isdisjoint(groups):
            raise ScheduleError(
                f"`{key}` is a factor for {name!r}, which does not train in this phase (`train: {self.phase.train}`). "
                "Take it out of `lr`, or into `train`.",
                key=key,
            )
        return groups

    def groups(self, visit: int, stage: int, seed: int) -> frozenset[str]:
        """What it trains when it is entered for the ``visit``-th time."""
        if self.phase.pick is None:
            return self.always
        return self.always | self.phase.pick.draw(self.family, visit, stage, seed=seed, key=self.key)

    @property
    def rated(self) -> frozenset[str]:
        """The groups whose learning rate it changes."""
        return self.possible.union(self.lr_factors) if self.phase.ramp else frozenset(self.lr_factors)

    @property
    def waits(self) -> bool:
        """Whether an optimizer may have to wait for the updates of another."""
        return self.phase.updates is not None and len(self._layout.optimizers_of(self.possible)) > 1

    def always_trains(self, optimizer: int) -> bool:
        """Whether an optimizer has something to train, whatever is drawn."""
        if (self.always or not self.family) and optimizer in self._layout.optimizers_of(self.always):
            return True
        others = sum(optimizer not in self._layout.holders(group) for group in self.family)
        return self._least > others


def _factors(factor: LRFactor, groups: tuple[str, ...], key: str) -> list[float]:
    """The factor of each group that a name in ``lr`` stands for."""
    if isinstance(factor, dict):
        return [factor["decay"] ** (len(groups) - 1 - number) for number in range(len(groups))]
    if not isinstance(factor, list):
        return [factor] * len(groups)
    if len(factor) != len(groups):
        listed = ", ".join(groups[:4]) + (", …" if len(groups) > 4 else "")
        raise ScheduleError(
            f"`{key}` has {counted(len(factor), 'factor')} for {counted(len(groups), 'group')} ({listed}). Give one for each, in that order, or "
            "one for all.",
            key=key,
        )
    return factor
