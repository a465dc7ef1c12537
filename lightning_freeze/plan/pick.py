"""`Pick`: groups drawn from a family each time that a phase is entered, the same on all ranks and after a resume."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning_freeze.errors import ScheduleError, counted, is_list, is_number, offer, one_of, whole_number
from lightning_freeze.plan.schedule import Layout, Part

ORDERS = ("forward", "backward", "shuffle", "random")


@dataclass(frozen=True, repr=False)
class Pick(Part):
    """Draws groups of a family each time that its phase is entered.

    What is drawn is a hash of the schedule's seed, the place of the phase in the schedule and how often it was entered;
    no random generator is used. So ranks agree, a preview is true and a resumed run goes on.

    Args:
        family: The family (or a glob over groups, or ``all``) that is drawn from.
        count: How many groups a draw has, all different.
        order: ``forward`` and ``backward`` go round the family in its order; ``shuffle`` draws without replacement, a
            new permutation for each pass over the family; ``random`` makes each draw independently.
        weights: With ``random``, one number for each group of the family: a draw takes them one after the other, each
            with a chance in proportion to its weight among those that are left. A weight of 0 is never drawn.
        keep: Whether what was drawn stays drawn while the sequence of phases repeats, so that the set grows with each
            repeat and starts again from nothing when the sequence is run again.
        drawn: What becomes of the drawn groups: ``train``, or ``freeze``: then the others of the family train.

    Raises:
        ScheduleError: An unknown order, a count below 1, or weights that no draw could follow.

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
                f"`family` is {self.family!r}, but must be the name of one family, made by `each:`: `pick: {{family: layers}}`.",
                key="pick.family",
            )
        object.__setattr__(self, "count", whole_number(self.count, "pick.count", "a draw has that many groups"))
        one_of("pick.order", self.order, ORDERS)
        one_of("pick.drawn", self.drawn, ("train", "freeze"))
        one_of("pick.keep", self.keep, (True, False))
        if self.keep and self.order == "random":
            raise ScheduleError(
                "`keep` is true under `order: random`, which may draw a group again. Use `order: shuffle`: each group once.",
                key="pick.keep",
            )
        if self.weights is not None:
            object.__setattr__(self, "weights", self._checked(self.weights))

    def _checked(self, weights: object) -> list[float]:
        if self.order != "random":
            raise ScheduleError(
                f"`weights` goes with `order: random`, and the order is {self.order!r}. Write `random`, or omit `weights`.",
                key="pick.weights",
            )
        if not is_list(weights) or not weights:
            raise ScheduleError(
                f"`weights` is {weights!r}, but must be a list with a number for each group: `weights: [1, 1, 2, 4]`.",
                key="pick.weights",
            )
        checked: list[float] = []
        for number, weight in enumerate(weights):
            if not is_number(weight) or not 0 <= weight < math.inf:
                raise ScheduleError(
                    f"`weights` holds {weight!r} in place {number}, but must hold numbers of at least 0. The nearest "
                    "valid value is 0, which is never drawn.",
                    key="pick.weights",
                )
            checked.append(float(weight))
        positive = sum(weight > 0 for weight in checked)
        if positive < self.count:
            raise ScheduleError(
                f"`weights` has {counted(positive, 'number')} above 0, but a draw has {self.count} different groups. Lower `count`.",
                key="pick.weights",
            )
        return checked

    def groups_of(self, layout: Layout, trained: frozenset[str], key: str) -> tuple[str, ...]:
        """The groups that it draws from; ``trained`` are those that the phase trains anyway."""
        groups = tuple(dict.fromkeys(layout.expand(self.family, f"{key}.family")))
        listed = f"({', '.join(groups[:4])}{', …' if len(groups) > 4 else ''})"
        if self.family in layout.groups:
            example = f' `each:` makes a family: `groups: {{{self.family}: {{each: "model.layers.*"}}}}`.'
            hint = offer(list(layout.families)[:3]) or example
            raise ScheduleError(
                f"`{key}.family` is {self.family!r}, which is one group and not a family: there is nothing to draw.{hint}",
                key=f"{key}.family",
            )
        if self.count > len(groups):
            raise ScheduleError(
                f"`{key}.count` is {self.count}, but {self.family!r} has {counted(len(groups), 'group')} {listed}, and a draw has no "
                f"group twice. The nearest valid value is {len(groups)}.",
                key=f"{key}.count",
            )
        if self.weights is not None and len(self.weights) != len(groups):
            raise ScheduleError(
                f"`{key}.weights` has {counted(len(self.weights), 'number')}, but {self.family!r} has {len(groups)} groups {listed}. "
                "Give each one, in that order.",
                key=f"{key}.weights",
            )
        if trained.issuperset(groups):
            raise ScheduleError(
                f"`{key}.family` is {self.family!r}, and the phase trains all of it anyway. Take it out of `train`.",
                key=f"{key}.family",
            )
        return groups

    def draw(
        self, family: Sequence[str], visit: int, stage: int | None = None, *, seed: int = 0, key: str = "pick"
    ) -> frozenset[str]:
        """The groups of the family that train at one visit of the phase.

        Args:
            family: All groups of the family, in order.
            visit: How often the phase was entered before.
            stage: How often since its sequence of phases began; by default ``visit``.
            seed: The schedule's seed.
            key: The place of the phase in the schedule; two phases draw independently of each other.
        """
        stage = visit if stage is None else stage
        if self.keep:
            drawn = self._order(family, _random_words(seed, key, visit - stage))[: (stage + 1) * self.count]
        elif self.order == "random":
            words = _random_words(seed, key, visit)
            drawn = (
                _weighted(family, self.weights, self.count, words)
                if self.weights
                else _drawn(family, self.count, words)
            )
        else:
            drawn = self._of_passes(family, visit, seed, key)
        return frozenset(family).difference(drawn) if self.drawn == "freeze" else frozenset(drawn)

    def least(self, groups: int, stages: int | None) -> int:
        """How many of a family's groups train at every visit; ``stages``: how often the sequence repeats."""
        most = min(groups, self.count * stages if stages is not None else groups) if self.keep else self.count
        return groups - most if self.drawn == "freeze" else min(groups, self.count)

    def _order(self, family: Sequence[str], words: Iterator[int]) -> list[str]:
        """The whole family, in the order in which one pass draws it."""
        if self.order == "shuffle":
            return _shuffled(family, words)
        return list(family) if self.order == "forward" else list(reversed(family))

    def _of_passes(self, family: Sequence[str], visit: int, seed: int, key: str) -> list[str]:
        """A draw from passes over the family one after the other; where two meet in it, it has no group twice."""
        first, size = visit * self.count, len(family)
        begun = first // size
        # Draws and passes begin together after at most `count` passes, so not all passes before need be made.
        together = begun - begun % (self.count // math.gcd(self.count, size))
        left: list[str] = []
        order: list[str] = []
        for number in range(together, (first + self.count - 1) // size + 1):
            before, drawn = order, left
            order = self._order(family, _random_words(seed, key, number))
            if drawn:  # the last draw of the pass before goes on into this one, with others
                head = [group for group in order if group not in drawn][: self.count - len(drawn)]
                order = head + [group for group in order if group not in head]
            left = order[len(order) - (number + 1) * size % self.count :]
        start = first - begun * size
        if start + self.count <= size:
            return order[start : start + self.count]
        return before[start:] + order[: self.count - (size - start)]


def _random_words(seed: int, key: str, counter: int) -> Iterator[int]:
    """Numbers of 128 bits that follow from a seed, a place and a counter alone."""
    for number in itertools.count():
        text = f"{seed}|{key}|{counter}|{number}".encode()
        yield int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"freeze.pick").digest(), "big")


def _shuffled(family: Sequence[str], words: Iterator[int]) -> list[str]:
    """A permutation, each as likely as any other (Fisher-Yates)."""
    order = list(family)
    for last in range(len(order) - 1, 0, -1):
        other = next(words) % (last + 1)  # of 2**128 numbers: no order is favoured by more than 1e-36
        order[last], order[other] = order[other], order[last]
    return order


def _fraction(words: Iterator[int]) -> float:
    """The next number in [0, 1), with all 53 bits of a float."""
    return (next(words) >> 75) / (1 << 53)


def _drawn(family: Sequence[str], count: int, words: Iterator[int]) -> list[str]:
    """What `_weighted` draws where all weights are 1, by the places in what is left."""
    left = list(family)
    return [left.pop(min(int(_fraction(words) * len(left)), len(left) - 1)) for _ in range(count)]


def _weighted(family: Sequence[str], weights: Sequence[float], count: int, words: Iterator[int]) -> list[str]:
    """Groups one after the other, each with a chance in proportion to its weight among those left.

    In additions and products alone, which every machine rounds alike.
    """
    scale = 1.0 if math.isfinite(sum(weights)) else max(weights)
    left = {group: weight / scale for group, weight in zip(family, weights, strict=True) if weight > 0}
    chosen: list[str] = []
    for _ in range(count):
        mark, group = _fraction(words) * sum(left.values()), ""
        for group, weight in left.items():  # noqa: B007 - the last one also where rounding leaves a little over
            mark -= weight
            if mark < 0:
                break
        chosen.append(group)
        del left[group]
    return chosen
