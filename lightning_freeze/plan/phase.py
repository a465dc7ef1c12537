"""`Phase`: one set of groups that train together, at which rates, and until when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lightning_freeze.errors import ScheduleError, is_list, is_number, whole_number
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.schedule import Part
from lightning_freeze.plan.until import Until

_COUNTS = {
    "updates": "the phase ends after that many updates",
    "epochs": "the phase ends with that training epoch's end",
    "ramp": "a group that thaws makes that many updates at a rising rate",
}

Rate = float | list[float] | dict[str, float]
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
        pick: Groups of a family that train beside ``train``, drawn anew each time that the phase is entered.
        lr: Group (or family, glob, ``all``, ``rest``) to the factor on the learning rate that the optimizer's groups
            have at each step, whatever scheduler sets it; it ends with the phase. A list gives each group of a family
            its own; ``{decay: 0.4}`` gives a family's last group 1 and each before it 0.4 of the one after it.
        ramp: A group that thaws with this phase makes its first so many updates at a rate that rises evenly to its own;
            it is there at the latest when the phase ends, unless the next one has a ramp, too.

    With no end the phase stays for good: then it is the last, and nothing repeats.

    Raises:
        ScheduleError: Two ends, an end below 1, a ``train`` that is no list of names, a factor that is not above 0.

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
        self._check_parts()
        self._check_ends()
        for key, meaning in _COUNTS.items():
            if getattr(self, key) is not None:
                object.__setattr__(self, key, whole_number(getattr(self, key), key, meaning))
        if self.lr is not None:
            object.__setattr__(self, "lr", _checked_rates(self.lr))

    def _check_ends(self) -> None:
        ends = {key: getattr(self, key) for key in ("updates", "epochs", "until")}
        given = {key: value for key, value in ends.items() if value is not None}
        if len(given) > 1:
            raise ScheduleError(
                f"the phase with `train: {self.train}` has {'two' if len(given) == 2 else 'three'} ends, "
                f"{' and '.join(f'`{key}: {value}`' for key, value in given.items())}; a phase has at most one. Keep the "
                "one you mean" + (" (`until` has its own `max_epochs`)." if "until" in given else "."),
                key=list(given)[-1],
                value=list(given.values())[-1],
            )

    def _check_parts(self) -> None:
        for key, kind, example in (
            ("until", Until, "{metric: val_loss, patience: 3}"),
            ("pick", Pick, "{family: layers, count: 1, order: shuffle}"),
        ):
            value = getattr(self, key)
            if value is not None and not isinstance(value, kind):
                raise ScheduleError(
                    f"`{key}` is {value!r}, but must be a mapping such as `{key}: {example}`; in Python, "
                    f"{kind.__name__}(…).",
                    key=key,
                    value=value,
                )

    @property
    def open_ended(self) -> bool:
        """Whether the phase has no end of its own."""
        return self.updates is None and self.epochs is None and self.until is None


def _checked_train(train: object) -> list[str]:
    if not is_list(train):
        raise ScheduleError(
            f"`train` is {train!r}, but must be a list of groups: `train: [{train}]`.", key="train", value=train
        )
    for name in train:
        if not isinstance(name, str) or not name:
            raise ScheduleError(
                f"`train` holds {name!r}, but must hold names of groups: `train: [head, backbone]`.",
                key="train",
                value=name,
            )
    return list(train)  # type: ignore[arg-type]


def _checked_rates(lr: object) -> dict[str, Rate]:
    if not isinstance(lr, Mapping) or not lr:
        raise ScheduleError(
            f"`lr` is {lr!r}, but must map groups to factors on the learning rate: `lr: {{backbone: 0.1}}`.",
            key="lr",
            value=lr,
        )
    lr_factors: dict[str, Rate] = {}
    for group, rate in lr.items():
        key = f"lr.{group}"
        if isinstance(rate, Mapping):
            if list(rate) != ["decay"]:
                raise ScheduleError(
                    f"`{key}` is {dict(rate)!r}, but a mapping there has the one key `decay`: `lr: {{{group}: {{decay: "
                    "0.4}}`, the last group of a family at 1 and each before it at 0.4 of the one after it.",
                    key=key,
                    value=rate,
                )
            lr_factors[group] = {"decay": _factor(f"{key}.decay", rate["decay"])}
        elif is_list(rate):
            lr_factors[group] = [_factor(key, one) for one in rate]
        else:
            lr_factors[group] = _factor(key, rate)
    return lr_factors


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
            value=value,
        )
    return float(value)
