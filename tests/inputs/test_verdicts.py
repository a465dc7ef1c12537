"""What became of an input: the order of the verdicts, of one call and over several."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import combinations
from typing import Any

import pytest

from lightning_freeze.inputs.verdicts import BLAMED, STRENGTH, Fate, Tally, Verdict

# What each fact says where it is the only one; a fact stands above those below it.
ORDER: list[tuple[str, Verdict]] = [
    ("computed", "used"),
    ("left", "used"),
    ("kept", "stored"),
    ("returned", "passed_through"),
    ("read", "dead"),
    ("asked", "metadata"),
    ("handed", "passed_through"),
]


@pytest.mark.parametrize(("fact", "verdict"), ORDER)
def test_one_fact_alone(fact: str, verdict: Verdict) -> None:
    assert Fate(**{fact: True}).verdict() == verdict


def test_nothing_at_all_is_unused() -> None:
    assert Fate().verdict() == "unused"


@pytest.mark.parametrize("pair", list(combinations(ORDER, 2)), ids=lambda pair: f"{pair[0][0]} over {pair[1][0]}")
def test_of_two_facts_the_stronger_decides(pair: tuple[tuple[str, Verdict], tuple[str, Verdict]]) -> None:
    (strong, verdict), (weak, _) = pair
    assert Fate(**{strong: True, weak: True}).verdict() == verdict


# What a parent computes for a child that ignores it is the child's fault: the parent is not blamed for reading.
@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ("handed_computed", "passed_through"),
        ("handed_computed read", "passed_through"),
        ("handed_computed asked", "passed_through"),
        ("handed_computed read asked handed", "passed_through"),
        ("handed_computed kept", "stored"),
        ("handed_computed computed", "used"),
    ],
)
def test_computed_for_a_child_that_ignores_it(facts: str, verdict: Verdict) -> None:
    assert Fate(**dict.fromkeys(facts.split(), True)).verdict() == verdict


def test_every_fact_is_in_a_table() -> None:
    assert {field.name for field in fields(Fate)} == {fact for fact, _ in ORDER} | {"handed_computed"}


# --- over several calls


def over_calls(*verdicts: Any) -> Verdict:
    return Tally("a", "Block", "mask", "mask", verdicts=Counter(verdicts)).verdict


@pytest.mark.parametrize("blamed", sorted(BLAMED))
@pytest.mark.parametrize("other", sorted(set(STRENGTH) - BLAMED))
def test_blamed_in_some_calls_only_is_conditional(blamed: Any, other: Any) -> None:
    assert over_calls(blamed, other) == over_calls(other, other, blamed) == "conditional"


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ("used", "used"),
        ("used stored", "used"),
        ("passed_through stored", "stored"),
        ("passed_through used", "used"),
        ("unused unused", "unused"),
        ("unused metadata", "metadata"),
        ("metadata dead", "dead"),
        ("unused dead metadata", "dead"),
    ],
)
def test_else_the_strongest(calls: str, verdict: Verdict) -> None:
    given: list[Any] = calls.split()
    assert over_calls(*given) == over_calls(*reversed(given)) == verdict


def test_a_tally_counts_calls_and_uses() -> None:
    tally = Tally("a", "Block", "mask", "mask", verdicts=Counter({"unused": 2, "used": 1, "stored": 1, "dead": 1}))
    assert (tally.calls, tally.used, tally.verdict) == (5, 2, "conditional")
    assert Tally("a", "Block", "mask", "mask", verdicts=Counter({"dead": 2})).verdict == "dead"
