"""What became of an input in one call, and over all calls of a module. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lightning_freeze.report.findings import OfInputs

Verdict = Literal["used", "passed_through", "stored"] | OfInputs

BLAMED: frozenset[str] = frozenset({"unused", "dead", "metadata"})
"""Verdicts of a call in which the module itself did not use its input."""

STRENGTH: tuple[Verdict, ...] = ("used", "stored", "passed_through", "dead", "metadata", "unused")


@dataclass(slots=True)
class Fate:
    """What was seen of one input in one call."""

    computed: bool = False  # something computed from it is in the result
    returned: bool = False  # it, or a view of it, is in the result
    left: bool = False  # its value left torch or was saved for backward: nobody can say where it went
    kept: bool = False  # it, or a part of it, outlives the call outside the result
    read: bool = False  # an operator read it
    asked: bool = False  # its shape, data type or device was read
    handed: bool = False  # it was passed to a child that did not use it
    handed_computed: bool = False  # something computed from it was

    def verdict(self) -> Verdict:
        """The verdict of the call; what a child ignores is the child's fault, not the parent's.

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
    """The verdict on one input of one call."""

    verdict: Verdict
    proof: str | None = None  # "bytecode" or "replay"
    excuse: str | None = None  # the declaration that covers the input
    hidden: bool = False  # a replay showed a use that no label shows


@dataclass
class Tally:
    """What became of one input of one module over its calls."""

    module: str  # its FQN
    module_class: str
    argument: str  # the leaf path
    name: str  # the parameter of `forward` that the path begins with
    swallowed: bool = False  # that parameter is `**kwargs`
    source: tuple[str, int] | None = None  # file and line of the `forward`
    of_torch: bool = False  # the class is torch's own
    in_batch: bool = False  # it is within a container that the root itself is passed
    loaded: bool = False  # the code of the `forward` names this very input
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    confirmed: Counter[str] = field(default_factory=Counter)  # blamed calls by their proof: `bytecode`, `replay`
    excused: int = 0  # blamed calls in which a declaration covers it
    handed_by: tuple[tuple[str, str], ...] = ()  # the calls above, outermost first: FQN, and its name there
    bytes_passed: int = 0  # the most in a blamed call
    bytes_sole: int = 0  # the most of them that only the call held
    bytes_kept: int = 0  # the most of them made within the outermost forward and alive after it

    @property
    def calls(self) -> int:
        """How many calls passed it."""
        return self.verdicts.total()

    @property
    def used(self) -> int:
        """How many calls used it."""
        return sum(count for verdict, count in self.verdicts.items() if verdict not in BLAMED)

    @property
    def verdict(self) -> Verdict:
        """Over all calls: conditional where some used it and others did not, else the strongest.

        Example:
            >>> Tally("", "Block", "x", "x", verdicts=Counter(used=1, unused=2)).verdict
            'conditional'
        """
        if 0 < self.used < self.calls:
            return "conditional"
        return min(self.verdicts, key=STRENGTH.index)
