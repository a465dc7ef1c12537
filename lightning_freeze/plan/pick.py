"""`Pick`: groups drawn from a family each time that a phase is entered, the same on every rank and after every resume."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning_freeze.errors import ScheduleError, is_list, is_number, one_of, whole_number
from lightning_freeze.plan.schedule import Part

ORDERS = ("forward", "backward", "shuffle", "random")


@dataclass(frozen=True, repr=False)
class Pick(Part):
    """Draws groups of a family each time that its phase is entered.

    What is drawn follows from the schedule's seed, the place of the phase in the schedule and how often it was entered,
    by a hash; no random generator is asked or moved. So ranks agree, a preview is true and a resumed run goes on.

    Args:
        family: The family (or a glob over groups, or ``all``) that is drawn from.
        count: How many groups a draw has, all different.
        order: ``forward`` and ``backward`` go round the family in its order; ``shuffle`` draws without replacement, a
            new permutation for each pass over the family; ``random`` draws each time anew.
        weights: With ``random``, one number for each group of the family: a draw takes them one after the other, each
            with a chance in proportion to its weight among those that are left. A weight of 0 is never drawn.
        keep: Whether what was drawn stays drawn while the row of phases repeats, so that the set grows with each repeat
            and begins anew when the row is run again.
        drawn: What becomes of the drawn groups: ``train``, or ``freeze``: then the others of the family train.

    Raises:
        ScheduleError: An order that is none, a count below 1, or weights that no draw could follow.

    Example:
        >>> layers = ["layers/0", "layers/1", "layers/2"]
        >>> sorted(Pick("layers", count=2, order="forward").draw(layers, visit=1))
        ['layers/0', 'layers/2']

    BAdam (arXiv 2404.02827) goes through blocks in order or shuffled, LISA (arXiv 2403.17919) draws layers at random,
    and weights are its importance sampling.
    """

    family: str
    count: int = 1
    order: Literal["forward", "backward", "shuffle", "random"] = "random"
    weights: list[float] | None = None
    keep: bool = False
    drawn: Literal["train", "freeze"] = "train"
    _always: ClassVar = ("family", "count", "order")

    def __post_init__(self) -> None:
        if not isinstance(self.family, str) or not self.family:
            raise ScheduleError(
                f"`family` is {self.family!r}, but must be the name of one family, as in `groups: {{layers: {{each: "
                '"model.layers.*"}}` and `pick: {family: layers}`.',
                key="pick.family",
                value=self.family,
            )
        object.__setattr__(self, "count", whole_number(self.count, "pick.count", "a draw has that many groups"))
        one_of("pick.order", self.order, ORDERS)
        one_of("pick.drawn", self.drawn, ("train", "freeze"))
        if not isinstance(self.keep, bool):
            raise ScheduleError(
                f"`keep` is {self.keep!r}, but must be true or false: whether what was drawn stays drawn.",
                key="pick.keep",
                value=self.keep,
            )
        if self.keep and self.order == "random":
            raise ScheduleError(
                "`keep` is true under `order: random`, which may draw a group again, so the set need not grow. Use "
                "`order: shuffle`: at random, each group once.",
                key="pick.keep",
                value=True,
            )
        if self.weights is not None:
            object.__setattr__(self, "weights", self._checked(self.weights))

    def _checked(self, weights: object) -> list[float]:
        if self.order != "random":
            raise ScheduleError(
                f"`weights` goes with `order: random`, and the order is {self.order!r}, which draws each group once in "
                "each pass. Write `order: random`, or leave `weights` out.",
                key="pick.weights",
                value=weights,
            )
        if not is_list(weights) or not weights:
            raise ScheduleError(
                f"`weights` is {weights!r}, but must be a list with a number for each group of the family: "
                "`weights: [1, 1, 2, 4]`.",
                key="pick.weights",
                value=weights,
            )
        checked = [_weight(number, weight) for number, weight in enumerate(weights)]
        positive = sum(weight > 0 for weight in checked)
        if positive < self.count:
            raise ScheduleError(
                f"`weights` has {positive} number(s) above 0, but a draw has {self.count} different groups. Lower "
                "`count`, or give more groups a weight.",
                key="pick.weights",
                value=list(weights),
            )
        return checked

    def refuse(self, family: Sequence[str], key: str) -> None:
        """Check the pick against the groups that it will draw from.

        Args:
            family: The groups of the family.
            key: The pick's key in the schedule.

        Raises:
            ScheduleError: More groups are to be drawn than there are, or there is another number of weights.
        """
        if self.count > len(family):
            raise ScheduleError(
                f"`{key}.count` is {self.count}, but {self.family!r} has {len(family)} group(s) ({', '.join(family[:4])}"
                f"{', …' if len(family) > 4 else ''}), and a draw has no group twice. The nearest valid value is "
                f"{len(family)}.",
                key=f"{key}.count",
                value=self.count,
            )
        if self.weights is not None and len(self.weights) != len(family):
            raise ScheduleError(
                f"`{key}.weights` has {len(self.weights)} number(s), but {self.family!r} has {len(family)} groups "
                f"({', '.join(family[:4])}{', …' if len(family) > 4 else ''}). Give each one, in that order.",
                key=f"{key}.weights",
                value=self.weights,
            )

    def draw(
        self, family: Sequence[str], visit: int, stage: int | None = None, *, seed: int = 0, key: str = "pick"
    ) -> frozenset[str]:
        """The groups of the family that train at one visit of the phase.

        Args:
            family: All groups of the family, in order.
            visit: How often the phase was entered before.
            stage: How often, of these, since its row of phases was begun; by default ``visit``.
            seed: The schedule's seed.
            key: The place of the phase in the schedule; two phases draw independently of each other.
        """
        stage = visit if stage is None else stage
        if self.keep:
            order = self._order(family, _Draws(seed, key, visit - stage))
            drawn = order[: (stage + 1) * self.count]
        elif self.order == "random":
            drawn = _weighted(family, self.weights or [1.0] * len(family), self.count, _Draws(seed, key, visit))
        else:
            drawn = self._of_passes(family, visit, seed, key)
        return frozenset(family).difference(drawn) if self.drawn == "freeze" else frozenset(drawn)

    def least(self, groups: int, stages: int | None) -> int:
        """How many groups of a family train at the least at a visit.

        Args:
            groups: How many groups the family has.
            stages: How often the row repeats; None if for ever.
        """
        most = min(groups, self.count * stages if stages is not None else groups) if self.keep else self.count
        return groups - most if self.drawn == "freeze" else min(groups, self.count)

    def _order(self, family: Sequence[str], draws: _Draws) -> list[str]:
        """The whole family, in the order in which one pass draws it."""
        if self.order == "shuffle":
            return draws.permutation(family)
        return list(family) if self.order == "forward" else list(reversed(family))

    def _of_passes(self, family: Sequence[str], visit: int, seed: int, key: str) -> list[str]:
        """A draw from passes over the family one after the other; where two meet in it, it has no group twice."""
        first, size = visit * self.count, len(family)
        begun = first // size
        # Draws and passes begin together again after at most `count` passes, so this need not be followed from the start.
        together = begun - begun % (self.count // math.gcd(self.count, size))
        left: list[str] = []
        order: list[str] = []
        for number in range(together, (first + self.count - 1) // size + 1):
            before, drawn = order, left
            order = self._order(family, _Draws(seed, key, number))
            if drawn:  # the last draw of the pass before goes on into this one, with others
                head = [group for group in order if group not in drawn][: self.count - len(drawn)]
                order = head + [group for group in order if group not in head]
            left = order[len(order) - (number + 1) * size % self.count :]
            if (number + 1) * size % self.count == 0:
                left = []
        start = first - begun * size
        if start + self.count <= size:
            return order[start : start + self.count]
        return before[start:] + order[: self.count - (size - start)]


def _weight(number: int, value: object) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise ScheduleError(
            f"`weights` holds {value!r} in place {number}, but must hold numbers of at least 0. The nearest "
            "valid value is 0, which is never drawn.",
            key="pick.weights",
            value=value,
        )
    return float(value)


@dataclass(frozen=True)
class _Draws:
    """Random numbers that follow from a seed, a place and a counter alone."""

    seed: int
    key: str
    counter: int

    def _words(self) -> Iterator[int]:
        for number in range(1 << 62):
            text = f"{self.seed}|{self.key}|{self.counter}|{number}".encode()
            yield int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"freeze.pick").digest(), "big")

    def permutation(self, of: Sequence[str]) -> list[str]:
        """All of them, in an order that is as likely as any other (the shuffle of Fisher and Yates)."""
        order, words = list(of), self._words()
        for last in range(len(order) - 1, 0, -1):
            other = next(words) % (last + 1)  # of 2**128 numbers: no order is favoured by more than 1e-36
            order[last], order[other] = order[other], order[last]
        return order

    def fractions(self) -> Iterator[float]:
        """Numbers in [0, 1), with all 53 bits of a float."""
        for word in self._words():
            yield (word >> 75) / (1 << 53)


def _weighted(family: Sequence[str], weights: Sequence[float], count: int, draws: _Draws) -> list[str]:
    """Groups one after the other, each with a chance in proportion to its weight among those left.

    In additions and products alone, which every machine rounds alike.
    """
    scale = 1.0 if math.isfinite(sum(weights)) else max(weights)
    left = {group: weight / scale for group, weight in zip(family, weights, strict=True) if weight > 0}
    chosen: list[str] = []
    for fraction, _ in zip(draws.fractions(), range(count), strict=False):
        remaining = {group: weight for group, weight in left.items() if group not in chosen}
        mark, group = fraction * sum(remaining.values()), ""
        for group, weight in remaining.items():  # noqa: B007 - the last one also where rounding leaves a little over
            mark -= weight
            if mark < 0:
                break
        chosen.append(group)
    return chosen
