"""Sequences that are folded while they grow: nothing is lost, what repeats is kept once, and reading costs what is kept."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_freeze.report.repeats import COLUMNS, Folding, Runs, bin_width

Sequence = list[tuple[Any, int]]


def one(number: int, count: int = 1) -> tuple[Any, int]:
    return (0, number), count


def spelt(entries: Any) -> Iterator[tuple[Any, int]]:
    """The oracle: entries written out."""
    for what, count in entries:
        if isinstance(what[0], tuple):
            for _ in range(count):
                yield from spelt(what)
        else:
            yield what, count


def held(entries: Any) -> int:
    """The oracle: entries, with those within."""
    return sum(1 + (held(what) if isinstance(what[0], tuple) else 0) for what, _ in entries)


def nested(drawn: random.Random, depth: int) -> Sequence:
    """A sequence of sequences that repeat."""
    if depth == 0 or drawn.random() < 0.3:
        return [one(drawn.randrange(4), drawn.randrange(1, 3))]
    within = [entry for _ in range(drawn.randrange(1, 4)) for entry in nested(drawn, depth - 1)]
    return within * drawn.randrange(1, 5)


def periodic(drawn: random.Random) -> Sequence:
    """Something before, a period that repeats and is broken off, and something after."""
    period = [one(drawn.randrange(5)) for _ in range(drawn.randrange(1, 9))]
    return [one(9), *period * drawn.randrange(2, 6), *period[: drawn.randrange(len(period))], one(8), *period * 3]


MADE = {
    "random": lambda drawn: [one(drawn.randrange(drawn.randrange(1, 5))) for _ in range(40)],
    "periodic": periodic,
    "nested": lambda drawn: nested(drawn, 3)[:150],
}


@pytest.mark.parametrize("kind", MADE)
def test_a_folded_sequence_is_the_very_sequence_at_every_point(kind: str) -> None:
    for seed in range(60):
        sequence, folding = MADE[kind](random.Random(seed)), Folding()
        for end, entry in enumerate(sequence, start=1):
            folding.add(entry)
            assert [*spelt(folding.entries)] == sequence[:end]
        assert folding.size == held(folding._entries) + held(folding._body)


def every(*periods: int) -> Sequence:
    """The runs of a schedule by periods, over 100,000 steps."""
    runs: list[tuple[Any, int]] = []
    for step in range(100_000):
        trained = tuple(step % period == 0 for period in periods)
        same = bool(runs) and runs[-1][0] == (0, trained)
        runs[-1:] = [(runs[-1][0], runs[-1][1] + 1)] if same else [*runs[-1:], ((0, trained), 1)]
    return runs


FOLDED = {
    "one period": (every(5), 3),
    "interleaved": (every(5, 7), 21),
    "two optimizers in turn": ([((0, 0), 1), ((1, 1), 4)] * 10_000, 3),
    "a long cycle": ([one(number) for number in range(900)] * 5, 901),
    "all of it twice in a period": ([one(int(number)) for number in "010212"] * 1000, 8),
    "within each other": ((([one(0), one(1, 2)] * 3 + [one(2)]) * 4 + [one(3)]) * 500, 14),
}


@pytest.mark.parametrize(("sequence", "most"), FOLDED.values(), ids=FOLDED)
def test_what_repeats_is_kept_once(sequence: Sequence, most: int) -> None:
    folding = Folding()
    for entry in sequence:
        folding.add(entry)
    assert held(folding.entries) <= 2 * most
    assert len(folding._seen) <= 2 * most + 66
    assert [*spelt(folding.entries)] == sequence


def runs(entries: Any) -> Runs[Any]:
    return Runs((runs(what) if isinstance(what[0], tuple) else what, count) for what, count in entries)


def folded(sequence: Sequence) -> Runs[Any]:
    folding = Folding()
    for entry in sequence:
        folding.add(entry)
    return runs(folding.entries)


@pytest.mark.parametrize("kind", MADE)
def test_it_is_read_as_if_it_were_written_out(kind: str) -> None:
    for seed in range(30):
        sequence = MADE[kind](random.Random(seed))
        things, made = [what for what, count in sequence for _ in range(count)], folded(sequence)
        assert [*made] == sequence
        assert (made.length, made.number, made.counts) == (len(things), len(sequence), Counter(things))
        assert [*made.counts] == [*dict.fromkeys(things)]
        for end in range(0, len(things) + 2, 3):
            assert [what for what, count in made.head(end) for _ in range(count)] == things[:end]
        for width in (1, 2, 7, 1000):
            parts = [*made.binned(width)]
            assert [begin for begin, *_ in parts] == [sum(n for *_, n in parts[:end]) for end in range(len(parts))]
            for begin in range(0, len(things), width):
                there = Counter[Any]()
                for at, what, count in parts:
                    if begin <= at < begin + width:
                        there[what] += count
                assert there == Counter(things[begin : begin + width])
            assert {things.index(what) for what in made.counts} <= {begin for begin, *_ in parts}


def test_a_thousand_million_things_are_read_by_what_is_kept() -> None:
    inner = Runs([("a", 4), ("b", 1)])
    made = Runs([(Runs([(inner, 3), ("c", 5), ("a", 10**6)]), 990), (inner, 10**6), ("a", 10**7)])
    assert made.length == made.counts.total() > 10**9
    parts = [*made.binned(bin_width(made.length))]
    assert sum(count for *_, count in parts) == made.length
    assert len(parts) <= 3 * COLUMNS + 3
    assert made.head(10**9).length == 10**9
