"""What holds of every schedule: exact counts, positions that survive being saved, previews that come true."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import REST, Layout, Plan, Position
from lightning_freeze.plan.until import Until

GROUPS = ("a", "b", "c")
LAYOUTS = st.sampled_from(
    [
        Layout(GROUPS),
        Layout(GROUPS, optimizers={g: frozenset({0}) for g in (*GROUPS, REST)}, rest_trains=True),
        Layout(GROUPS, optimizers={g: frozenset({i}) for i, g in enumerate("abc")}),
        Layout(
            GROUPS, optimizers={"a": frozenset({0}), "b": frozenset({1}), "c": frozenset({1}), REST: frozenset({0})}
        ),
        Layout(GROUPS, optimizers={"a": frozenset({2}), "b": frozenset({0, 1}), "c": frozenset({1})}),
    ]
)
ORDERS = st.permutations([0, 1, 2])
NAMES = st.lists(st.sampled_from(GROUPS), min_size=1, max_size=3, unique=True)
COUNTED = st.builds(Phase, NAMES, updates=st.integers(1, 4))
ENDING = st.one_of(COUNTED, st.builds(Phase, NAMES, epochs=st.integers(1, 2)))


def rows(leaves: st.SearchStrategy[Phase], repeat: st.SearchStrategy[bool | int]) -> st.SearchStrategy[Phases]:
    """Rows of phases, nested up to twice."""
    inner = st.recursive(
        leaves,
        lambda child: st.builds(Phases, st.lists(child, min_size=1, max_size=3), st.integers(1, 3)),
        max_leaves=4,
    )
    return st.builds(Phases, st.lists(inner, min_size=1, max_size=3), repeat, change=st.sampled_from(["step", "batch"]))


ANY_REPEAT = st.one_of(st.booleans(), st.integers(1, 3))
PERIODS = st.dictionaries(st.sampled_from("ab"), st.integers(1, 6), min_size=1)
SINGLE = Layout(GROUPS)
FEW = settings(max_examples=60, deadline=None)


def written_out(schedule: Phases) -> Iterator[Phase]:
    """The phases of one run of a row, one after the other, by plain recursion."""
    for _ in range(int(schedule.repeat) or 1):
        for child in schedule.phases:
            yield from [child] if isinstance(child, Phase) else written_out(child)


def held(plan: Plan, optimizer: int, groups: frozenset[str]) -> frozenset[str]:
    """Those of the groups that an optimizer holds."""
    return frozenset(g for g in groups if optimizer in plan.layout.optimizers.get(g, {0}))


def by_hand(
    plan: Plan, at: Position, first: int, last: int, per_epoch: int, order: list[int]
) -> Iterator[tuple[int, int, int, frozenset[str]]]:
    """The steps of batches ``first`` to ``last``, as a training loop calls the plan; moves the position along."""
    for batch in range(first, last):
        plan.begin_window(at, batch // per_epoch)
        for optimizer in order:
            trained = held(plan, optimizer, plan.trains(at, optimizer))
            yield batch // per_epoch, batch, optimizer, trained
            plan.update(at, optimizer, trained)
        if (batch + 1) % per_epoch == 0:
            plan.end_epoch(at)


@FEW
@given(rows(COUNTED, st.just(True)), st.integers(1, 3))
def test_each_cycle_has_exactly_its_updates(schedule: Phases, cycles: int) -> None:
    phases = list(written_out(schedule))
    length = sum(phase.updates or 0 for phase in phases)
    trained = [step.trained for step in preview(schedule.bind(SINGLE), cycles * length, 7)]
    expected = Counter(g for phase in phases for g in set(phase.train) for _ in range(phase.updates or 0))
    for cycle in range(cycles):
        assert Counter(g for groups in trained[cycle * length : (cycle + 1) * length] for g in groups) == expected


@FEW
@given(rows(COUNTED, ANY_REPEAT), st.integers(1, 60))
def test_phases_of_updates_are_the_row_written_out(schedule: Phases, batches: int) -> None:
    once = [frozenset(phase.train) for phase in written_out(schedule) for _ in range(phase.updates or 0)]
    endless = once * batches if schedule.repeat is True else once + [once[-1]] * batches
    assert [step.trained for step in preview(schedule.bind(SINGLE), batches, 7)] == endless[:batches]


@FEW
@given(rows(ENDING, ANY_REPEAT), st.integers(1, 40), st.integers(1, 5))
def test_phases_are_what_a_plain_loop_over_them_does(schedule: Phases, batches: int, per_epoch: int) -> None:
    def loop() -> Iterator[frozenset[str]]:
        batch = 0
        phases = list(written_out(schedule)) * (batches if schedule.repeat is True else 1)
        for phase in phases:
            updates, epochs = 0, 0
            while updates != phase.updates and epochs != phase.epochs:
                yield frozenset(phase.train)
                batch, updates = batch + 1, updates + 1
                epochs += batch % per_epoch == 0
        while True:
            yield frozenset(phases[-1].train)

    steps = preview(schedule.bind(SINGLE), batches, per_epoch)
    assert all(step.trained == expected for step, expected in zip(steps, loop(), strict=False))


@FEW
@given(
    st.one_of(rows(ENDING, ANY_REPEAT), st.builds(Every, PERIODS, st.just("c"))),
    st.sampled_from([SINGLE, Layout(GROUPS, optimizers={g: frozenset({i}) for i, g in enumerate("abc")})]),
    ORDERS,
    st.integers(1, 5),
    st.integers(0, 30),
)
def test_a_saved_position_goes_on_identically(
    schedule: Phases | Every, layout: Layout, order: list[int], per_epoch: int, saved: int
) -> None:
    plan, resumed = schedule.bind(layout), schedule.bind(layout)
    straight = list(by_hand(plan, plan.start(), 0, 40, per_epoch, order))
    at = plan.start()
    before = list(by_hand(plan, at, 0, saved, per_epoch, order))
    loaded = Position.from_dict(json.loads(json.dumps(at.as_dict())))
    assert before + list(by_hand(resumed, loaded, saved, 40, per_epoch, order)) == straight


@FEW
@given(rows(ENDING, ANY_REPEAT), LAYOUTS, ORDERS, st.integers(0, 20))
def test_a_preview_from_a_position_goes_on_from_it(
    schedule: Phases, layout: Layout, order: list[int], batches: int
) -> None:
    plan = schedule.bind(layout)
    at = plan.start()
    for _ in by_hand(plan, at, 0, 2 * batches, 2, order):
        pass
    kept = at.copy()
    foreseen = [s.trained for s in preview(plan, 6, 2, order, start=at)]
    assert at == kept
    assert foreseen == [t for *_, t in by_hand(plan, at, 2 * batches, 2 * batches + 6, 2, order)]


@FEW
@given(
    PERIODS,
    st.sampled_from([(0, 0, 0), (0, 1, 2), (0, 0, 1), (1, 1, 0), (0, 1, 0)]),
    st.permutations([0, 1, 2]),
    st.integers(1, 5),
    st.integers(1, 30),
)
def test_after_s_updates_of_of_a_group_has_had_ceil_s_by_n(
    periods: dict[str, int], optimizers: tuple[int, int, int], order: list[int], per_epoch: int, batches: int
) -> None:
    layout = Layout(
        GROUPS, optimizers={g: frozenset({optimizer}) for g, optimizer in zip(GROUPS, optimizers, strict=True)}
    )
    had: Counter[str] = Counter()
    window: list[Counter[str]] = []
    stepping = [optimizer for optimizer in order if optimizer in optimizers]
    for number, step in enumerate(preview(Every(periods, of="c").bind(layout), batches, per_epoch, stepping), start=1):
        had.update(step.trained)
        if number % len(stepping) == 0:
            window.append(had.copy())
    assert [counts["c"] for counts in window] == list(range(1, batches + 1))
    for counts in window:
        assert {g: counts[g] for g in periods} == {g: math.ceil(counts["c"] / n) for g, n in periods.items()}


@FEW
@given(PERIODS, st.integers(1, 40))
def test_without_of_a_group_has_had_ceil_of_the_steps(periods: dict[str, int], batches: int) -> None:
    had = Counter(g for step in preview(Every(periods).bind(SINGLE), batches, 7) for g in step.trained)
    assert {g: had[g] for g in periods} == {g: math.ceil(batches / n) for g, n in periods.items()}


@FEW
@given(rows(ENDING, ANY_REPEAT), LAYOUTS, ORDERS)
def test_updates_are_counted_as_they_are_made(schedule: Phases, layout: Layout, order: list[int]) -> None:
    plan = schedule.bind(layout)
    at = plan.start()
    steps = [trained for *_, trained in by_hand(plan, at, 0, 15, 4, order)]
    assert at.updates == {g: sum(g in t for t in steps) for g in at.updates}
    assert at.total == sum(bool(trained) for trained in steps)


@FEW
@given(rows(ENDING, ANY_REPEAT), LAYOUTS, ORDERS)
def test_while_any_optimizer_may_step_something_is_trainable(
    schedule: Phases, layout: Layout, order: list[int]
) -> None:
    """No schedule stalls: each batch in which all optimizers step updates something."""
    steps = preview(schedule.bind(layout), 20, 4, order)
    updated: Counter[int] = Counter()
    for step in steps:
        updated[step.batch] += len(step.trained)
    assert all(updated[batch] for batch in range(20))


@given(st.data())
def test_nothing_changes_while_a_plan_says_that_it_is_steady(data: st.DataObject) -> None:
    """Whatever is updated, what trains stays as it is for so many updates."""
    every = Every({"a": data.draw(st.integers(1, 9)), "b": data.draw(st.integers(1, 9))}, of="c")
    row: list[Any] = [Phase(data.draw(st.sampled_from([["a"], ["b", "c"], ["all"]])), updates=n) for n in (1, 3, 5)]
    schedule = data.draw(st.sampled_from([every, Phases(row, repeat=True), Phases([*row, Phase(["a"])])]))
    spread = data.draw(st.sampled_from([(0, 0, 0), (0, 1, 1), (0, 1, 2)]))
    held = {group: frozenset({optimizer}) for group, optimizer in zip("abc", spread, strict=True)}
    plan = schedule.bind(Layout(("a", "b", "c"), optimizers=held))
    at = plan.start()
    steady, before = 0, None
    for _ in range(60):
        plan.begin_window(at, 0)
        optimizer = data.draw(st.sampled_from(sorted(set(spread))))
        now = tuple(plan.trains(at, index) for index in range(3))
        if steady > 0:
            assert now == before
        else:
            before = now
            steady = plan.stable_updates(at) + 1
        mine = [group for group in plan.trains(at, optimizer) if optimizer in held[group]]
        updated = frozenset(data.draw(st.lists(st.sampled_from(mine), unique=True))) if mine else frozenset()
        plan.update(at, optimizer, updated)
        steady -= bool(updated)


# --- with picks, metrics, factors and ramps --------------------------------------------------------------------------

FAMILY = ("f/0", "f/1", "f/2")
DRAWN = st.one_of(
    st.builds(
        Pick, st.just("f"), st.integers(1, 3), st.sampled_from(["forward", "backward", "shuffle"]), keep=st.booleans()
    ),
    st.builds(Pick, st.just("f"), st.integers(1, 3), drawn=st.sampled_from(["train", "freeze"])),
    st.builds(Pick, st.just("f"), st.integers(1, 2), weights=st.sampled_from([[1, 2, 4], [3, 0, 1]])),
)
UNTIL = st.builds(
    Until, st.sampled_from(["x", "y"]), st.sampled_from(["min", "max"]), st.integers(0, 2), max_epochs=st.integers(1, 3)
)
FULL = st.one_of(
    st.builds(Phase, st.just(["a"]), updates=st.integers(1, 4), pick=DRAWN, ramp=st.none() | st.integers(1, 5)),
    st.builds(
        Phase, st.just(["all"]), updates=st.integers(1, 4), lr=st.sampled_from([{"f": {"decay": 0.5}}, {"a": 2}])
    ),
    st.builds(Phase, NAMES.filter(lambda names: set(names) <= {"a", "b"}), until=UNTIL, ramp=st.integers(1, 5)),
    st.builds(Phase, st.just(["b"]), epochs=st.integers(1, 2), pick=DRAWN, lr=st.just({"f": [0.5, 2, 1]})),
)
FULL_LAYOUTS = st.sampled_from(
    [
        Layout(
            ("a", "b", *FAMILY),
            {"f": FAMILY},
            dict(zip(("a", "b", *FAMILY, REST), map(frozenset, held), strict=True)),
            rest,
        )
        for held, rest in (
            (([0], [0], [0], [0], [0], [0]), True),
            (([0], [1], [0], [1], [1], [2]), True),
            (([0], [0, 1], [2], [1], [0, 2], []), False),
        )
    ]
)
ROWS = st.one_of(st.tuples(rows(ENDING, ANY_REPEAT), LAYOUTS), st.tuples(rows(FULL, ANY_REPEAT), FULL_LAYOUTS))
ALTERNATING = st.tuples(
    st.builds(Every, PERIODS, st.just("c")),
    st.sampled_from([SINGLE, Layout(GROUPS, optimizers={g: frozenset({i}) for i, g in enumerate("bac")})]),
)
HEARD = st.dictionaries(st.sampled_from("xy"), st.sampled_from([0.0, 1.0, 2.0, math.nan]))


@settings(max_examples=120, deadline=None)
@given(ROWS, st.lists(st.integers(0, 3) | HEARD, max_size=40))
def test_phases_survive_being_saved_between_any_two_calls(
    row: tuple[Phases, Layout], calls: list[int | dict[str, float]]
) -> None:
    """Also within a batch: 0 to 2 is a step of that optimizer, 3 an epoch's end and a new batch, a mapping a log.

    Where sets change by batch, a run goes on from a batch's end alone.
    """
    schedule, layout = row
    plan, resumed = schedule.bind(layout), schedule.bind(layout)
    kept, saved = plan.start(), resumed.start()
    for call in calls:
        if call == 3 or not plan.by_batch:
            saved = Position.from_dict(json.loads(json.dumps(saved.as_dict())))
        for one, at in ((plan, kept), (resumed, saved)):
            if isinstance(call, dict):
                one.log_metrics(at, call)
            elif call == 3:
                one.end_epoch(at)
                one.begin_window(at, at.epoch)
            else:
                one.update(at, call, held(one, call, one.trains(at, call)))
        assert repr(saved.as_dict()) == repr(kept.as_dict())
        assert [resumed.trains(saved, optimizer) for optimizer in range(3)] == [
            plan.trains(kept, optimizer) for optimizer in range(3)
        ]
        assert resumed.lr_factors(saved) == plan.lr_factors(kept)


@settings(max_examples=180, deadline=None)
@given(ROWS | ALTERNATING, ORDERS, st.integers(1, 5), st.integers(0, 20))
def test_a_preview_comes_true(
    row: tuple[Phases | Every, Layout], order: list[int], per_epoch: int, batches: int
) -> None:
    schedule, layout = row
    foreseen = [
        (s.epoch, s.batch, s.optimizer, s.trained) for s in preview(schedule.bind(layout), batches, per_epoch, order)
    ]
    plan = schedule.bind(layout)
    assert foreseen == list(by_hand(plan, plan.start(), 0, batches, per_epoch, order))


def by_batch_oracle(schedule: Phases, layout: Layout, batches: list[list[int]]) -> Iterator[frozenset[str]]:
    """What each step trains where sets change by batch, by a plain loop over batches."""
    phases, number, done = list(written_out(schedule)), 0, Counter[int]()
    for batch in batches:
        over, phase = schedule.repeat is not True and number >= len(phases), phases[min(number, len(phases) - 1)]
        if schedule.repeat is True:
            phase = phases[number % len(phases)]
        before = done.copy()
        for optimizer in batch:
            held = frozenset(g for g in phase.train if optimizer in layout.holders(g))
            trained = held if over or before[optimizer] < (phase.updates or 0) else frozenset()
            rest = {REST} if layout.rest_trains and optimizer in layout.optimizers.get(REST, ()) else set()
            done[optimizer] += bool(trained)
            yield trained | rest
        if not over and all(
            done[each] >= (phase.updates or 0) for each in layout.optimizers_of(frozenset(phase.train))
        ):
            number, done = number + 1, Counter()


@settings(max_examples=120, deadline=None)
@given(
    st.lists(COUNTED, min_size=1, max_size=3),
    ANY_REPEAT,
    LAYOUTS,
    st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=12),
    st.integers(1, 12),
)
def test_by_batch_a_phase_lasts_through_the_batch_of_its_last_update(
    phases: list[Any], repeat: bool | int, layout: Layout, batches: list[list[int]], saved: int
) -> None:
    """Whatever steps how often in a batch, and where a run went on from a checkpoint between two."""
    schedule = Phases(phases, repeat, change="batch")
    plan, found = schedule.bind(layout), []
    at = plan.start()
    for number, batch in enumerate(batches):
        if number == saved:
            at = Position.from_dict(json.loads(json.dumps(at.as_dict())))
        plan.begin_window(at, 0)
        for optimizer in batch:
            found.append(held(plan, optimizer, plan.trains(at, optimizer)))
            plan.update(at, optimizer, found[-1])
    assert found == list(by_batch_oracle(schedule, layout, batches))


@FEW
@given(rows(FULL, ANY_REPEAT), FULL_LAYOUTS, st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_nothing_changes_while_any_plan_says_that_it_is_steady(
    schedule: Phases, layout: Layout, optimizers: list[int]
) -> None:
    """Neither sets nor rates."""
    plan = schedule.bind(layout)
    at, steady, before = plan.start(), 0, None
    plan.begin_window(at, 0)
    for optimizer in optimizers:
        now = [plan.trains(at, index) for index in range(3)], plan.lr_factors(at)
        assert steady <= 0 or now == before
        steady, before = max(steady, plan.stable_updates(at) + 1), now
        updated = held(plan, optimizer, plan.trains(at, optimizer))
        plan.update(at, optimizer, updated)
        steady -= bool(updated)


@FEW
@given(rows(FULL, ANY_REPEAT), FULL_LAYOUTS, ORDERS)
def test_rates_are_of_what_trains_and_above_zero(schedule: Phases, layout: Layout, order: list[int]) -> None:
    plan = schedule.bind(layout)
    at = plan.start()
    for _ in by_hand(plan, at, 0, 12, 3, order):
        lr_factors = plan.lr_factors(at)
        assert all(rate > 0 for rate in lr_factors.values())
        assert lr_factors.keys() <= plan.rated


@FEW
@given(rows(FULL, ANY_REPEAT), FULL_LAYOUTS, ORDERS)
def test_an_optimizer_that_may_not_idle_never_does(schedule: Phases, layout: Layout, order: list[int]) -> None:
    plan = schedule.bind(layout)
    never = {optimizer for optimizer in range(3) if plan.can_be_fully_frozen(optimizer) is None}
    holds = {
        optimizer for optimizer in range(3) if any(optimizer in layout.optimizers[group] for group in layout.optimizers)
    }
    for step in preview(plan, 15, 4, order):
        assert step.trained or step.optimizer not in never & holds


@FEW
@given(rows(FULL, ANY_REPEAT), FULL_LAYOUTS, ORDERS)
def test_a_plan_that_never_freezes_never_does(schedule: Phases, layout: Layout, order: list[int]) -> None:
    plan = schedule.bind(layout)
    if plan.never_freezes():
        assert all(
            step.trained >= held(plan, step.optimizer, frozenset(layout.groups)) for step in preview(plan, 15, 4, order)
        )
