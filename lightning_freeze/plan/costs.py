"""How much memory a plan needs over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Size:
    """How large a group is."""

    elements: int  # of its parameters
    gradient: int  # bytes of their gradients
    state: int  # bytes of optimizer state that they hold once they have been updated


@dataclass(frozen=True)
class Held:
    """Whose optimizer state takes up memory."""

    before: frozenset[str] = frozenset()  # the groups whose state is there before the first update
    leaves: bool = False  # whether state is dropped, or moved to host memory, when its group freezes
    unless_within: int = 0  # it stays where the group trains again within so many updates


@dataclass(frozen=True)
class Timeline:
    """What each update of a run needs: elements that train, bytes of their gradients, bytes of optimizer state."""

    elements: list[int]
    gradient: list[int]
    state: list[int]


ALL_KEPT = Held()


def over_time(trained: Sequence[frozenset[str]], sizes: Mapping[str, Size], held: Held = ALL_KEPT) -> Timeline:
    """What a run needs, update by update, by the groups that each update trains."""
    sets = set(trained)
    if unknown := set().union(*sets) - set(sizes):
        raise ValueError(
            f"updates train {', '.join(map(repr, sorted(unknown)))}, but `sizes` knows only "
            f"{', '.join(map(repr, sizes)) or 'no group'}. Give a Size for each group."
        )
    elements = {groups: sum(sizes[g].elements for g in groups) for groups in sets}
    gradient = {groups: sum(sizes[g].gradient for g in groups) for groups in sets}
    state_changes = [0] * (len(trained) + 1)
    for group, first, end in _intervals_with_state(trained, held):
        state_changes[first] += sizes[group].state
        state_changes[end] -= sizes[group].state
    return Timeline(
        [elements[groups] for groups in trained],
        [gradient[groups] for groups in trained],
        list(accumulate(state_changes[:-1])),
    )


def _intervals_with_state(trained: Sequence[frozenset[str]], held: Held) -> Iterator[tuple[str, int, int]]:
    """Each (group, first update, end) between which a group's state is held."""
    frozen_at = dict.fromkeys(held.before, 0)
    since: dict[str, int] = {}
    before = frozenset[str]()
    for number, groups in enumerate(trained):
        if groups == before:
            continue
        for group in groups - before:
            frozen = frozen_at.pop(group, number)
            stayed = not held.leaves or number - frozen < held.unless_within
            since[group] = frozen if stayed else number
        for group in before - groups:
            frozen_at[group] = number
            yield group, since.pop(group), number
        before = groups
    kept = {} if held.leaves else frozen_at
    for group, first in (*since.items(), *kept.items()):
        yield group, first, len(trained)
