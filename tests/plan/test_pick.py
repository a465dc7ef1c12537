"""`Pick`: what is drawn follows from seed, place and visit alone, in every order, and as often as it should."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.pick import ORDERS, Pick
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import Layout

FEW = settings(max_examples=60, deadline=None)
SIZES = [(size, count) for size in range(1, 9) for count in range(1, size + 1)]


def family_of(size: int) -> tuple[str, ...]:
    return tuple(f"l/{index}" for index in range(size))


def said(drawn: frozenset[str]) -> str:
    """``l/0`` and ``l/2`` as ``02``."""
    return "".join(sorted(group[2:] for group in drawn))


def draws(pick: Pick, size: int, visits: int, **options: Any) -> list[str]:
    return [said(pick.draw(family_of(size), visit, **options)) for visit in range(visits)]


# --- in the family's order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        (Pick("l", 1, "forward"), ["0", "1", "2", "3", "0", "1"]),
        (Pick("l", 1, "backward"), ["3", "2", "1", "0", "3", "2"]),
        (Pick("l", 2, "forward"), ["01", "23", "01", "23", "01", "23"]),
        (Pick("l", 3, "forward"), ["012", "013", "023", "123", "012", "013"]),
        (Pick("l", 3, "backward"), ["123", "023", "013", "012", "123", "023"]),
        (Pick("l", 4, "backward"), ["0123"] * 6),
        (Pick("l", 1, "forward", keep=True), ["0", "01", "012", "0123", "0123", "0123"]),
        (Pick("l", 1, "backward", keep=True), ["3", "23", "123", "0123", "0123", "0123"]),
        (Pick("l", 3, "backward", keep=True), ["123", "0123", "0123", "0123", "0123", "0123"]),
        (Pick("l", 1, "forward", keep=True, drawn="freeze"), ["123", "23", "3", "", "", ""]),
        (Pick("l", 1, "backward", drawn="freeze"), ["012", "013", "023", "123", "012", "013"]),
    ],
)
def test_forward_and_backward_go_round_the_family(pick: Pick, expected: list[str]) -> None:
    assert draws(pick, 4, 6) == expected


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_a_draw_in_order_is_that_of_an_endless_row(size: int, count: int) -> None:
    for order, step in (("forward", 1), ("backward", -1)):
        row = list(itertools.islice(itertools.cycle(family_of(size)[::step]), 20 * count))
        expected = [said(frozenset(row[visit * count : (visit + 1) * count])) for visit in range(20)]
        assert draws(Pick("l", count, order), size, 20) == expected  # type: ignore[arg-type]


# --- shuffled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_shuffled_passes_have_each_group_once(size: int, count: int) -> None:
    """Also where draws straddle passes: draws and passes meet again after lcm(size, count) groups."""
    pick, aligned = Pick("l", count, "shuffle"), math.lcm(size, count) // count
    for seed in range(20):
        for cycle in range(2):
            drawn = [
                pick.draw(family_of(size), visit, seed=seed) for visit in range(cycle * aligned, (cycle + 1) * aligned)
            ]
            assert all(len(groups) == count for groups in drawn)
            had = Counter(group for groups in drawn for group in groups)
            assert had == dict.fromkeys(family_of(size), math.lcm(size, count) // size)


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_within_shuffled_passes_no_group_lags_or_leads(size: int, count: int) -> None:
    """After any number of draws, groups differ by one turn, or by two where a pass was begun to fill a draw."""
    for seed in range(10):
        had = Counter(dict.fromkeys(family_of(size), 0))
        for visit in range(4 * size):
            had.update(Pick("l", count, "shuffle").draw(family_of(size), visit, seed=seed))
            passes = (visit + 1) * count // size
            assert min(had.values()) >= passes  # every pass that is over had each group
            assert max(had.values()) <= passes + 1


def test_permutations_are_as_likely_as_each_other() -> None:
    """Pearson's chi-square over the 24 orders of 4 groups: 23 degrees of freedom exceed 60 once in 30,000."""
    seeds = 2400
    orders = Counter("".join(draws(Pick("l", 1, "shuffle"), 4, 4, seed=seed)) for seed in range(seeds))
    assert len(orders) == 24
    assert sum((n - seeds / 24) ** 2 / (seeds / 24) for n in orders.values()) < 60


def test_passes_follow_each_other_independently() -> None:
    """One pass in 24 is like the one before it; and every pair of first groups is as likely as any other."""
    seeds = 2400
    same, pairs = 0, Counter[str]()
    for seed in range(seeds):
        both = draws(Pick("l", 1, "shuffle"), 4, 8, seed=seed)
        same += both[:4] == both[4:]
        pairs[both[0] + both[4]] += 1
    assert abs(same - seeds / 24) < 5 * math.sqrt(seeds / 24)
    assert sum((n - seeds / 16) ** 2 / (seeds / 16) for n in pairs.values()) < 45  # 15 degrees: once in 15,000
    assert len(pairs) == 16


# --- at random -------------------------------------------------------------------------------------------------------


def inclusion(weights: Sequence[float], count: int) -> list[float]:
    """The chance of each to be in a draw, by every order in which groups can be drawn one after the other."""
    chances = [0.0] * len(weights)
    for order in itertools.permutations([i for i, weight in enumerate(weights) if weight], count):
        chance, left = 1.0, float(sum(weights))
        for index in order:
            chance, left = chance * weights[index] / left, left - weights[index]
        for index in order:
            chances[index] += chance
    return chances


@pytest.mark.parametrize(
    ("weights", "count"),
    [
        ([1, 1, 1, 1], 1),
        ([1, 1, 1], 2),
        ([1, 2, 3], 1),
        ([1, 2, 3], 2),
        ([0.5, 0.0, 4.0, 1.0], 2),
        ([8, 1, 1, 2], 3),
        ([1e-3, 1, 1e3], 2),
        ([0, 3, 0, 0], 1),
    ],
)
def test_groups_are_drawn_as_often_as_their_weights_say(weights: list[float], count: int) -> None:
    size, visits = len(weights), 4000
    pick = Pick("l", count, "random", weights=weights)
    had = Counter(group for visit in range(visits) for group in pick.draw(family_of(size), visit, seed=3))
    for group, weight, chance in zip(family_of(size), weights, inclusion(weights, count), strict=True):
        assert abs(had[group] - visits * chance) <= 4.5 * math.sqrt(visits * chance * (1 - chance)) + 1e-6, group
        assert weight or not had[group]


@pytest.mark.parametrize("size", range(1, 9))
def test_without_weights_all_are_alike(size: int) -> None:
    for count in range(1, size + 1):
        pick, equal = Pick("l", count, "random"), Pick("l", count, "random", weights=[2.5] * size)
        for visit in range(20):
            drawn = pick.draw(family_of(size), visit, seed=1)
            assert len(drawn) == count
            assert drawn == equal.draw(family_of(size), visit, seed=1)


# --- kept, and frozen ------------------------------------------------------------------------------------------------

FAMILY = Layout(
    (*family_of(5), "head"),
    families={"l": family_of(5)},
    optimizers={group: frozenset({0}) for group in (*family_of(5), "head")},
)


def trained(schedule: Phases, batches: int) -> list[str]:
    """What each step trains of the family."""
    return [said(step.trained - {"head"}) for step in preview(schedule.bind(FAMILY), batches, 3)]


@pytest.mark.parametrize("order", ["forward", "backward", "shuffle"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_kept_grows_and_begins_anew_with_the_row(order: Any, count: int) -> None:
    grown = Phases([Phase([], updates=1, pick=Pick("l", count, order, keep=True))], repeat=4)
    steps = trained(Phases([Phase(["head"], updates=1), grown], repeat=True, seed=2), 200)
    rows = [steps[start : start + 5] for start in range(0, 200, 5)]
    for row in rows:
        sets = [set(step) for step in row]
        assert [len(step) for step in sets] == [0, *(min(5, count * stage) for stage in (1, 2, 3, 4))]
        assert all(before <= after for before, after in itertools.pairwise(sets))
    others = {tuple(row) for row in rows}
    assert len(others) > 5 if order == "shuffle" else len(others) == 1


def test_what_is_kept_for_ever_never_begins_anew() -> None:
    steps = trained(Phases([Phase([], updates=1, pick=Pick("l", 2, "shuffle", keep=True))], repeat=True), 20)
    assert [len(step) for step in steps] == [2, 4, *[5] * 18]


def test_kept_over_two_nested_rows() -> None:
    """The row that holds the phase is the one that counts, however deep it lies."""
    pick = Pick("l", 1, "forward", keep=True)
    steps = trained(Phases([Phases([Phases([Phase([], updates=1, pick=pick)], repeat=3)], repeat=2)], repeat=2), 12)
    assert steps == ["0", "01", "012"] * 4


@FEW
@given(st.data())
def test_what_is_drawn_to_be_frozen_is_what_would_train(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 7))
    count, order = data.draw(st.integers(1, size)), data.draw(st.sampled_from(ORDERS))
    keep = order != "random" and data.draw(st.booleans())
    visit, stage, seed = (data.draw(st.integers(0, 40)) for _ in range(3))
    train, freeze = (
        Pick("l", count, order, keep=keep, drawn=drawn).draw(family_of(size), visit + stage, stage, seed=seed)
        for drawn in ("train", "freeze")
    )
    assert train | freeze == set(family_of(size))
    assert not train & freeze


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("drawn", ["train", "freeze"])
def test_the_least_that_trains_is_what_the_smallest_draw_has(order: Any, keep: bool, drawn: Any) -> None:
    if keep and order == "random":
        return
    for size, count in SIZES:
        pick = Pick("l", count, order, keep=keep, drawn=drawn)
        for stages in (1, 2, 5, None):
            visits = range(16 if stages is None else stages)
            smallest = min(len(pick.draw(family_of(size), 10 + visit, visit)) for visit in visits)
            assert pick.least(size, stages) == smallest, (size, count, stages)


# --- the same everywhere, and moves nothing --------------------------------------------------------------------------

# Pinned: a change of the hash, or of how its numbers are used, would change what every resumed run draws.
PINNED: dict[str, list[str]] = {
    "shuffle 2": ["12", "03", "14", "03", "24", "34", "02", "12"],
    "shuffle 3": ["012", "134", "023", "034", "124", "124", "013", "024"],
    "random 2": ["34", "23", "01", "14", "01", "23", "34", "02"],
    "random 1": ["3", "2", "1", "1", "0", "3", "4", "0"],
    "weighted": ["23", "23", "12", "13", "12", "23", "23", "02"],
    "kept": ["04", "0124", "01234"],
}


def drawn_now() -> dict[str, list[str]]:
    here: dict[str, Any] = {"seed": 7, "key": "phases[0]"}
    kept = Pick("l", 2, "shuffle", keep=True)
    return {
        "shuffle 2": draws(Pick("l", 2, "shuffle"), 5, 8, **here),
        "shuffle 3": draws(Pick("l", 3, "shuffle"), 5, 8, **here),
        "random 2": draws(Pick("l", 2), 5, 8, **here),
        "random 1": draws(Pick("l", 1), 5, 8, **here),
        "weighted": draws(Pick("l", 2, weights=[1, 2, 3, 4, 0]), 5, 8, **here),
        "kept": [said(kept.draw(family_of(5), 5 + stage, stage, **here)) for stage in range(3)],
    }


def test_draws_are_what_they_were() -> None:
    assert drawn_now() == PINNED


def test_another_process_draws_alike() -> None:
    """Under another hash seed, and with other global seeds, as ranks have them."""
    code = (
        "import json, random, numpy, torch; random.seed(5); numpy.random.seed(6); torch.manual_seed(7)\n"
        "from tests.plan.test_pick import drawn_now\nprint(json.dumps(drawn_now()))"
    )
    here = str(Path(__file__).resolve().parents[2])
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=here, env=environment, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == PINNED


def test_drawing_moves_no_global_generator() -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert drawn_now() == PINNED
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert after[0] == before[0]
    assert repr(after[1]) == repr(before[1])
    assert torch.equal(after[2], before[2])


@pytest.mark.parametrize("order", ["shuffle", "random"])
def test_other_seeds_and_places_draw_differently(order: Any) -> None:
    rows = {
        (seed, key): tuple(draws(Pick("l", 1, order), 8, 16, seed=seed, key=key))
        for seed in range(4)
        for key in ("phases[0]", "phases[1]", "phases[0].phases[0]")
    }
    assert len(set(rows.values())) == len(rows)
    # A hash of `seed|key|visit` must keep them apart: seed 1 with visit 11 is not seed 11 with visit 1.
    assert len({tuple(draws(Pick("l", 1, order), 8, 16, seed=seed)) for seed in (0, 1, 11, 111)}) == 4


def test_two_phases_of_one_schedule_draw_independently() -> None:
    row = [Phase([], updates=1, pick=Pick("l")), Phase([], updates=1, pick=Pick("l"))]
    steps = trained(Phases(row, repeat=True), 400)
    alike = sum(steps[at] == steps[at + 1] for at in range(0, 400, 2))
    assert abs(alike - 200 / 5) < 5 * math.sqrt(200 * 0.2 * 0.8)


def test_the_seed_stands_with_the_schedule() -> None:
    def row(seed: int) -> list[str]:
        return trained(Phases([Phase([], updates=1, pick=Pick("l", 2))], repeat=True, seed=seed), 20)

    assert row(0) == trained(Phases([Phase([], updates=1, pick=Pick("l", 2))], repeat=True), 20)
    assert len({tuple(row(seed)) for seed in range(5)}) == 5
    inner = Phases([Phase(["head"], updates=1)], repeat=2, seed=1)
    with pytest.raises(ScheduleError, match=r"`phases\[1\].seed` is 1, but a schedule has one `seed`") as caught:
        Phases([Phase(["head"], updates=1), inner])
    assert caught.value.key == "phases[1].seed"
    with pytest.raises(ScheduleError, match="`seed` is -1, but must be a whole number of at least 0"):
        Phases([Phase(["head"])], seed=-1)


@FEW
@given(
    st.sampled_from(ORDERS),
    st.integers(1, 8).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))),
    st.integers(0, 10**15),
    st.integers(0, 2**63),
)
def test_any_visit_far_out_is_known_at_once(order: Any, sizes: tuple[int, int], visit: int, seed: int) -> None:
    size, count = sizes
    drawn = Pick("l", count, order).draw(family_of(size), visit, seed=seed)
    assert len(drawn) == count
    assert drawn <= set(family_of(size))


@FEW
@given(st.integers(2, 8).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))), st.integers(0, 99))
def test_a_visit_is_the_same_whether_or_not_those_before_it_were_asked_for(sizes: tuple[int, int], seed: int) -> None:
    size, count = sizes
    one = draws(Pick("l", count, "shuffle"), size, 30, seed=seed)
    other = [said(Pick("l", count, "shuffle").draw(family_of(size), v, seed=seed)) for v in reversed(range(30))]
    assert one == other[::-1]


# --- as a value, and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pick", "described", "text"),
    [
        (Pick("l"), {"family": "l", "count": 1, "order": "random"}, "Pick(family='l', count=1, order='random')"),
        (
            Pick("l", 2, "shuffle", keep=True, drawn="freeze"),
            {"family": "l", "count": 2, "order": "shuffle", "keep": True, "drawn": "freeze"},
            "Pick(family='l', count=2, order='shuffle', keep=True, drawn='freeze')",
        ),
        (
            Pick("l", weights=[1, 2]),
            {"family": "l", "count": 1, "order": "random", "weights": [1.0, 2.0]},
            "Pick(family='l', count=1, order='random', weights=[1.0, 2.0])",
        ),
    ],
)
def test_a_pick_is_its_description(pick: Pick, described: dict[str, Any], text: str) -> None:
    assert pick.describe() == described
    assert repr(pick) == text
    assert Pick(**described) == pick


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({"family": ""}, "pick.family", "`family` is '', but must be the name of one family"),
        ({"family": ["l"]}, "pick.family", "`family` is ['l'], but must be the name of one family"),
        ({"count": 0}, "pick.count", "`pick.count` is 0, but must be a whole number of at least 1"),
        ({"count": 1.6}, "pick.count", "The nearest valid value is 2."),
        ({"count": True}, "pick.count", "`pick.count` is True, but must be"),
        ({"order": "shufle"}, "pick.order", "'random'. Did you mean 'shuffle'?"),
        (
            {"drawn": "frozen"},
            "pick.drawn",
            "`pick.drawn` is 'frozen', but must be one of 'train', 'freeze'. Did you mean",
        ),
        ({"keep": 1, "order": "shuffle"}, "pick.keep", "`pick.keep` is 1, but must be one of True, False"),
        ({"keep": True}, "pick.keep", "`keep` is true under `order: random`, which may draw a group again"),
        ({"weights": [1], "order": "shuffle"}, "pick.weights", "`weights` goes with `order: random`, and the order is"),
        ({"weights": []}, "pick.weights", "`weights` is [], but must be a list with a number for each group"),
        ({"weights": "12"}, "pick.weights", "`weights` is '12', but must be a list"),
        ({"weights": [1, -1]}, "pick.weights", "`weights` holds -1 in place 1, but must hold numbers of at least 0"),
        ({"weights": [1, math.nan]}, "pick.weights", "`weights` holds nan in place 1"),
        ({"weights": [math.inf]}, "pick.weights", "`weights` holds inf in place 0"),
        ({"weights": [True]}, "pick.weights", "`weights` holds True in place 0"),
        (
            {"weights": [1, 0, 0], "count": 2},
            "pick.weights",
            "`weights` has 1 number above 0, but a draw has 2 different groups.",
        ),
    ],
)
def test_a_pick_that_cannot_be_drawn_is_refused(options: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Pick(**{"family": "l", **options})
    assert text in str(caught.value)
    assert caught.value.key == key


def test_weights_whose_sum_is_no_number() -> None:
    drawn = {g for v in range(50) for g in Pick("l", 1, weights=[1e308, 1e308, 1.0]).draw(["a", "b", "c"], v)}
    assert drawn == {"a", "b"}
