"""What became of an input in one call, and over all calls of a module. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Verdict = Literal["used", "passed_through", "stored", "dead", "metadata", "unused", "conditional"]

BLAMED: frozenset[str] = frozenset({"unused", "dead", "metadata"})
"""Verdicts of a call by which the module itself made nothing of what it was handed."""

STRENGTH: tuple[Verdict, ...] = ("used", "stored", "passed_through", "dead", "metadata", "unused")


@dataclass(slots=True)
class Fate:
    """What was seen of one input while its module was running.

    Args:
        computed: Something computed from it is in the result.
        returned: It, or a view of it, is in the result.
        left: Its value left torch, or was saved for backward, so that nobody can say where it went.
        kept: It, or something of it, outlives the call elsewhere than in the result.
        read: An operator read it.
        asked: Its shape, data type or device was asked for.
        handed: It was handed to a child that made nothing of it.
        handed_computed: Something computed from it was.
    """

    computed: bool = False
    returned: bool = False
    left: bool = False
    kept: bool = False
    read: bool = False
    asked: bool = False
    handed: bool = False
    handed_computed: bool = False

    def verdict(self) -> Verdict:
        """The verdict of the call.

        What was computed from an input and handed to a child that ignores it is the child's fault, not the parent's.

        Example:
            >>> Fate(read=True).verdict(), Fate(read=True, handed_computed=True).verdict(), Fate().verdict()
            ('dead', 'passed_through', 'unused')
        """
        if self.computed or self.left:
            return "used"
        if self.kept:
            return "stored"
        if self.returned or self.handed_computed:
            return "passed_through"
        if self.read:
            return "dead"
        if self.asked:
            return "metadata"
        return "passed_through" if self.handed else "unused"


class Judged(NamedTuple):
    """The verdict on one input of one call.

    Args:
        verdict: The verdict.
        proof: What confirms it: ``bytecode``, ``replay``, or None.
        excuse: The declaration that covers the input, or None.
        hidden: Whether a replay showed a use that no label shows.
    """

    verdict: Verdict
    proof: str | None = None
    excuse: str | None = None
    hidden: bool = False


@dataclass
class Tally:
    """What became of one input of one module over its calls.

    Args:
        module: FQN of the module, ``''`` for the root.
        module_class: Name of its class.
        argument: The leaf path.
        name: The parameter of ``forward`` that the path begins with.
        swallowed: Whether that parameter is ``**kwargs``.
        source: File and line of its ``forward``, or None.
        of_torch: Whether its class is torch's own, which the user can only call in another way.
        verdicts: How often each verdict was given.
        confirmed: In how many of the blamed calls the verdict was confirmed, by ``bytecode`` or by ``replay``.
        excused: In how many of the blamed calls a declaration covers it.
        handed_by: The calls that it came down through, outermost first: FQN, and what it was called there.
        bytes_passed: The most bytes that it had in a blamed call.
        bytes_sole: The most of them that nothing but the call held.
        bytes_kept: The most of them that were alive after the outermost forward, though it was made within.
    """

    module: str
    module_class: str
    argument: str
    name: str
    swallowed: bool = False
    source: tuple[str, int] | None = None
    of_torch: bool = False
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    confirmed: Counter[str] = field(default_factory=Counter)
    excused: int = 0
    handed_by: tuple[tuple[str, str], ...] = ()
    bytes_passed: int = 0
    bytes_sole: int = 0
    bytes_kept: int = 0

    @property
    def verdict(self) -> Verdict:
        """The verdict over all calls."""
        return over_calls(self.verdicts)

    @property
    def calls(self) -> int:
        """How many calls handed it over."""
        return sum(self.verdicts.values())

    @property
    def faults(self) -> int:
        """How many calls made nothing of it."""
        return self.calls - self.used

    @property
    def used(self) -> int:
        """How many calls made something of it."""
        return sum(count for verdict, count in self.verdicts.items() if verdict not in BLAMED)


def over_calls(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict over several calls: conditional where some made something of the input and others did not.

    Example:
        >>> over_calls(["used", "unused"]), over_calls(["dead", "unused"]), over_calls(["used", "stored"])
        ('conditional', 'dead', 'used')
    """
    seen = set(verdicts)
    if seen & BLAMED and seen - BLAMED:
        return "conditional"
    return min(seen, key=STRENGTH.index)
