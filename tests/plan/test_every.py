"""`Every`: a group trains with the first of each N updates of another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import REST, Layout, Plan, Position


def shared(*groups: str, rest: bool = False) -> Layout:
    """All groups in one optimizer."""
    held = {group: frozenset({0}) for group in (*groups, *([REST] if rest else []))}
    return Layout(groups, optimizers=held, rest_trains=rest)


def apart(*groups: str) -> Layout:
    """Each group in an optimizer of its own."""
    return Layout(groups, optimizers={group: frozenset({index}) for index, group in enumerate(groups)})


def batches_of(plan: Plan, group: str, batches: int, order: Sequence[int] = (0,)) -> list[int]:
    """The batches in which a group is updated."""
    return [s.batch for s in preview(plan, batches, 4, order) if group in s.trained]


LAYOUTS = [(shared("slow", "fast"), (0,)), (apart("slow", "fast"), (0, 1)), (apart("slow", "fast"), (1, 0))]


@pytest.mark.parametrize(("layout", "order"), LAYOUTS, ids=["one", "slow_first", "fast_first"])
@pytest.mark.parametrize(
    ("period", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (2, [0, 2, 4, 6, 8]), (5, [0, 5]), (8, [0, 8]), (9, [0])]
)
def test_the_first_of_each_n_updates_trains_both(
    layout: Layout, order: Sequence[int], period: int, expected: list[int]
) -> None:
    plan = Every({"slow": period}, of="fast").bind(layout)
    assert batches_of(plan, "slow", 9, order) == expected
    assert batches_of(plan, "fast", 9, order) == list(range(9))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_periods_stand_beside_each_other(order: Sequence[int]) -> None:
    plan = Every({"a": 2, "b": 3}, of="c").bind(apart("a", "b", "c"))
    assert batches_of(plan, "a", 7, order) == [0, 2, 4, 6]
    assert batches_of(plan, "b", 7, order) == [0, 3, 6]


def test_without_of_each_step_that_updates_anything_counts() -> None:
    plan = Every({"a": 3}).bind(shared("a", "b"))
    assert batches_of(plan, "a", 8) == [0, 3, 6]


def test_without_of_the_steps_of_all_optimizers_count() -> None:
    plan = Every({"a": 4}).bind(apart("a", "b"))
    trained = [step.trained for step in preview(plan, 6, 6, (0, 1)) if step.trained]
    assert trained == [{"a"}, {"b"}, {"b"}, {"b"}, {"a"}, {"b"}, {"b"}, {"b"}]


def test_without_of_the_rest_counts() -> None:
    plan = Every({"a": 2, "b": 3}).bind(shared("a", "b", rest=True))
    assert [sorted(step.trained) for step in preview(plan, 5, 5)] == [
        ["a", "b", REST],
        [REST],
        ["a", REST],
        ["b", REST],
        ["a", REST],
    ]


def test_a_group_without_a_period_trains_always() -> None:
    plan = Every({"a": 3}, of="b").bind(shared("a", "b", "c"))
    assert batches_of(plan, "c", 4) == [0, 1, 2, 3]


def test_a_family_shares_one_period() -> None:
    layout = Layout(("f/0", "f/1", "fast"), families={"f": ("f/0", "f/1")})
    plan = Every({"f": 2}, of="fast").bind(layout)
    assert [batches_of(plan, group, 4) for group in ("f/0", "f/1")] == [[0, 2], [0, 2]]


def test_a_glob_over_groups_gives_each_the_period() -> None:
    plan = Every({"a*": 2}, of="b").bind(shared("a1", "a2", "b"))
    assert [batches_of(plan, group, 4) for group in ("a1", "a2")] == [[0, 2], [0, 2]]


def test_a_step_that_updates_nothing_advances_nothing() -> None:
    plan = Every({"slow": 2}, of="fast").bind(shared("slow", "fast"))
    at = plan.start()
    before = at.copy()
    plan.update(at, 0, frozenset())
    assert at == before


def test_only_updates_of_of_are_counted() -> None:
    plan = Every({"slow": 2}, of="fast").bind(shared("slow", "fast", "other"))
    at = plan.start()
    for groups in ({"slow", "fast"}, {"other"}, {"other"}):
        plan.begin_window(at, 0)
        plan.update(at, 0, frozenset(groups))
    assert plan.trainable(at) == {"fast", "other"}


def test_a_missed_turn_is_made_up_with_the_next_step() -> None:
    plan = Every({"slow": 2}, of="fast").bind(shared("slow", "fast"))
    at = plan.start()
    for _ in range(3):  # slow was due, but had no gradient
        plan.begin_window(at, 0)
        plan.update(at, 0, frozenset({"fast"}))
    made_up = []
    for _ in range(3):
        plan.begin_window(at, 0)
        made_up.append("slow" in plan.trains(at, 0))
        plan.update(at, 0, plan.trains(at, 0))
    assert made_up == [True, True, True]
    assert at.updates == {"slow": 3, "fast": 6}


def test_updates_of_of_in_one_batch_count_each() -> None:
    """A critic of three steps a batch, and a generator for every six of them."""
    plan = Every({"generator": 6}, of="critic").bind(apart("generator", "critic"))
    assert batches_of(plan, "generator", 6, (1, 1, 1, 0)) == [0, 2, 4]


@pytest.mark.parametrize("of_first", [False, True])
def test_epochs_change_nothing(of_first: bool) -> None:
    plan = Every({"slow": 5}, of="fast").bind(apart("slow", "fast"))
    order = (1, 0) if of_first else (0, 1)
    runs = [[(s.batch, s.trained) for s in preview(plan, 11, per_epoch, order)] for per_epoch in (1, 3, 11)]
    assert runs[0] == runs[1] == runs[2]


def test_the_set_for_the_coming_step_names_what_is_due() -> None:
    plan = Every({"slow": 2}, of="fast").bind(shared("slow", "fast"))
    at = plan.start()
    sets = []
    for _ in range(3):
        plan.begin_window(at, 0)
        sets.append(plan.trainable(at))
        plan.update(at, 0, plan.trains(at, 0))
    assert sets == [{"slow", "fast"}, {"fast"}, {"slow", "fast"}]


def test_it_never_runs_out() -> None:
    plan = Every({"slow": 2}, of="fast").bind(shared("slow", "fast"))
    assert not any(step.over for step in preview(plan, 50, 50))


@pytest.mark.parametrize(("slow", "expected"), [(0, {0, 1}), (1, {1})], ids=["due", "not_due"])
def test_it_waits_for_of_and_for_what_is_due(slow: int, expected: set[int]) -> None:
    plan = Every({"slow": 5}, of="fast").bind(apart("slow", "fast", "other"))
    at = plan.start()
    at.updates.update(slow=slow, fast=slow)
    assert plan.pending(at) == expected


@pytest.mark.parametrize(
    ("schedule", "layout", "optimizer", "expected"),
    [
        (Every({"slow": 5}, of="fast"), shared("slow", "fast"), 0, None),
        (
            Every({"slow": 5}, of="fast"),
            apart("slow", "fast"),
            0,
            "between their turns its groups (slow) are all frozen",
        ),
        (Every({"slow": 5}, of="fast"), apart("slow", "fast"), 1, None),
        (Every({"a": 2, "b": 1}), apart("a", "b"), 0, "between their turns its groups (a) are all frozen"),
        (Every({"a": 2, "b": 1}), apart("a", "b"), 1, None),
        (Every({"a": 2, "b": 3}), shared("a", "b", rest=True), 0, None),
    ],
)
def test_an_optimizer_may_idle_between_turns(
    schedule: Every, layout: Layout, optimizer: int, expected: str | None
) -> None:
    assert schedule.bind(layout).can_be_fully_frozen(optimizer) == expected


@pytest.mark.parametrize(
    ("schedule", "layout", "idle"),
    [(Every({"a": 3, "b": 1}), apart("a", "b"), {0}), (Every({"slow": 5}, of="fast"), apart("slow", "fast"), {0})],
)
def test_what_may_idle_does_idle_and_nothing_else(schedule: Every, layout: Layout, idle: set[int]) -> None:
    plan = schedule.bind(layout)
    empty = Counter(step.optimizer for step in preview(plan, 12, 12, (0, 1)) if not step.trained)
    assert set(empty) == idle == {optimizer for optimizer in (0, 1) if plan.can_be_fully_frozen(optimizer)}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("periods", "of", "text", "key"),
    [
        (
            {},
            None,
            "`periods` is {}, but must map groups to periods: `periods: {weight1: 5}` updates",
            "periods",
        ),
        ([5], None, "`periods` is [5], but must map groups to periods", "periods"),
        (
            {"a": 0},
            "b",
            "`periods.a` is 0, but must be a whole number of at least 1: the group is updated once for that many "
            "updates. The nearest valid value is 1.",
            "periods.a",
        ),
        ({"a": 2.6}, "b", "`periods.a` is 2.6, but must be a whole number of at least 1", "periods.a"),
        ({"a": 2.6}, "b", "The nearest valid value is 3.", "periods.a"),
        ({"a": True}, "b", "`periods.a` is True, but must be a whole number", "periods.a"),
        ({"a": "5"}, "b", "`periods.a` is '5', but must be a whole number", "periods.a"),
        ({"a": float("nan")}, "b", "The nearest valid value is 1.", "periods.a"),
        ({"a": float("inf")}, "b", "The nearest valid value is 1.", "periods.a"),
        ({"a": 5}, "", "`of` is '', but must be the name of one group.", "of"),
        ({"a": 5}, ["b"], "`of` is ['b'], but must be the name of one group.", "of"),
        (
            {"a": 5},
            "a",
            "`of` is 'a', which has a period itself. Take it out of `periods`, or omit `of` to count every step.",
            "of",
        ),
    ],
)
def test_a_bad_schedule_is_refused_when_written(periods: Any, of: Any, text: str, key: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Every(periods, of)
    assert text in str(caught.value)
    assert caught.value.key == key


FAMILY = Layout(("f/0", "f/1", "g"), families={"f": ("f/0", "f/1")})


@pytest.mark.parametrize(
    ("schedule", "layout", "text"),
    [
        (
            Every({"slw": 5}, of="fast"),
            shared("slow", "fast"),
            "`periods` names 'slw', which is not a group. Did you mean 'slow'",
        ),
        (
            Every({"slow": 5}, of="fst"),
            shared("slow", "fast"),
            "`of` names 'fst', which is not a group. Did you mean 'fast'",
        ),
        (
            Every({"slow": 5}, of="rest"),
            shared("slow", "fast"),
            "`of` names 'rest', the reserved group of all parameters",
        ),
        (Every({"g": 5}, of="f"), FAMILY, "`of` is 'f', which stands for 2 groups (f/0, f/1); it must be one."),
        (
            Every({"f": 5}, of="f/0"),
            FAMILY,
            "`of` is 'f/0', which `periods` schedules too. Take it out of there.",
        ),
        (
            Every({"f": 5, "f/1": 2}, of="g"),
            FAMILY,
            "`periods` gives 'f/1' two periods, 5 and (as 'f/1') 2. Name each group",
        ),
        (
            Every({"a": 2}, of="b"),
            Layout(("a", "b"), optimizers={"a": frozenset({0, 1}), "b": frozenset({0})}),
            "group 'a' is held by 2 optimizers ([0, 1]), so its updates cannot be counted as one. Make it one "
            "group for "
            "each optimizer.",
        ),
        (
            Every({"a": 2}, of="b"),
            Layout(("a", "b"), optimizers={"a": frozenset({0}), "b": frozenset({0, 1})}),
            "group 'b' is held by 2 optimizers",
        ),
        (
            Every({"a": 2, "b": 3}),
            shared("a", "b"),
            "every group has a period above 1 and there is no `of`, so nothing would train after the first step. "
            "Give `of` a group that trains always",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_model_is_refused(schedule: Every, layout: Layout, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule.bind(layout)
    assert text in str(caught.value)


# --- as a value ------------------------------------------------------------------------------------------------------


def test_it_describes_itself_as_one_would_write_it() -> None:
    schedule = Every({"a": 5}, of="b")
    described = schedule.describe()
    assert described == {"class_path": "Every", "init_args": {"periods": {"a": 5}, "of": "b"}}
    assert Every(**described["init_args"]) == schedule
    assert eval(repr(schedule)) == schedule


def test_schedules_are_equal_when_they_say_the_same() -> None:
    assert Every({"a": 5}, of="b") != Every({"a": 6}, of="b")
    assert len({Every({"a": 5}, of="b"), Every({"a": 5}, of="b"), Every({"a": 5})}) == 2


def test_it_names_each_group_under_its_key() -> None:
    assert Every({"a": 5, "f": 2}, of="b").names() == (("periods", "a"), ("periods", "f"), ("of", "b"))


@pytest.mark.parametrize("layout", [shared, apart])
@pytest.mark.parametrize("seed", range(6))
def test_the_queue_finds_what_a_look_at_every_group_finds(seed: int, layout: Any) -> None:
    """Also where a due group finds no gradient, another is updated unasked, and counts come from elsewhere."""
    rng = random.Random(seed)
    groups = tuple(f"g{number}" for number in range(12))
    periods = {group: rng.randint(1, 6) for group in groups[1:]}
    of = rng.choice(["g0", None] if layout is shared else ["g0"])
    plan = Every(periods, of=of).bind(layout(*groups))
    at = plan.start()
    for number in range(200):
        if rng.random() < 0.5:
            plan.begin_window(at, 0)
        done = made = at.total if of is None else at.updates[of]
        if layout is apart and of in at.window:
            made -= 1
        expected = {"g0"} | {group for group, n in periods.items() if at.updates[group] * n <= made}
        assert plan.trainable(at) == expected
        stable = max(0, min(at.updates[group] * n for group, n in periods.items()) - done - 1)
        assert plan.stable_updates(at) == (stable if layout is shared else 0)
        updated = {group for group in expected if rng.random() < 0.8} | {g for g in groups if rng.random() < 0.02}
        plan.update(at, 0, frozenset(updated))
        if number % 40 == 20:
            at = rng.choice([at.copy, lambda: Position.from_dict(at.as_dict())])()  # noqa: B023
        if number % 40 == 30:
            at.updates = {group: count + rng.randint(0, 3) for group, count in at.updates.items()}


@pytest.mark.parametrize("layout", [shared, apart])
def test_a_step_looks_at_the_groups_that_are_due_alone(layout: Any) -> None:
    """Counted: looks at the counts of 1,000 groups of which a few come due at a time."""

    class Counts(dict[str, int]):
        looks = 0

        def __getitem__(self, key: str) -> int:
            Counts.looks += 1
            return super().__getitem__(key)

    groups = tuple(f"g{number}" for number in range(1000))
    plan = Every({group: 100 + number for number, group in enumerate(groups[1:])}, of="g0").bind(layout(*groups))
    at = plan.start()
    at.updates = Counts(at.updates)
    plan.update(at, 0, plan.trainable(at))
    Counts.looks = 0
    for _ in range(50):
        plan.update(at, 0, plan.trainable(at))
        plan.stable_updates(at)
    assert Counts.looks < 50 * 10
