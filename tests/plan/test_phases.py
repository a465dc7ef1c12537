"""`Phases`: sets of groups one after the other, for updates or epochs, nested and repeated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pytest

from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import REST, Layout, Plan, Position, Schedule

ONE = Layout(("a", "b", "c"), optimizers={g: frozenset({0}) for g in "abc"})
TWO = Layout(("a", "b"), optimizers={"a": frozenset({0}), "b": frozenset({1})})
RESTED = Layout(
    ("a", "b"), optimizers={"a": frozenset({0}), "b": frozenset({1}), REST: frozenset({1})}, rest_trains=True
)


def up(train: str, updates: int) -> Phase:
    return Phase(list(train), updates=updates)


def ep(train: str, epochs: int) -> Phase:
    return Phase(list(train), epochs=epochs)


def said(plan: Plan, batches: int, per_epoch: int = 100, order: Sequence[int] = (0,)) -> str:
    """What each step trains, run-length encoded: ``a2 ab1`` is two steps of a and one of a with b; ``-`` is nothing."""
    sets = ["".join(sorted(step.trained)) or "-" for step in preview(plan, batches, per_epoch, order)]
    return " ".join(f"{name}{len(list(run))}" for name, run in groupby(sets))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Phases([up("a", 2), up("b", 3)]), "a2 b8"),
        (Phases([up("a", 2), up("b", 3)], repeat=False), "a2 b8"),
        (Phases([up("a", 2), up("b", 3)], repeat=1), "a2 b8"),
        (Phases([up("a", 2), up("b", 1)], repeat=2), "a2 b1 a2 b5"),
        (Phases([up("a", 2), up("b", 1)], repeat=True), "a2 b1 a2 b1 a2 b1 a1"),
        (Phases([up("ab", 1), up("bc", 1)], repeat=True), " ".join(["ab1 bc1"] * 5)),
        (Phases([up("a", 1), Phases([up("b", 1), up("c", 2)], repeat=2), Phase(["all"])]), "a1 b1 c2 b1 c2 abc3"),
        (Phases([Phases([up("a", 1), Phases([up("b", 1)], 2)], 2), up("c", 1)], True), "a1 b2 a1 b2 c1 a1 b2"),
        (Phases([Phase(["a"])]), "a10"),
        (Phases([up("a", 1), Phases([up("b", 1), Phase(["c"])])]), "a1 b1 c8"),
        (Phases([up("a", 4)], repeat=True), "a10"),
    ],
)
def test_phases_of_updates_follow_each_other(schedule: Phases, expected: str) -> None:
    assert said(schedule.bind(ONE), 10) == expected


@pytest.mark.parametrize(
    ("schedule", "per_epoch", "expected"),
    [
        (Phases([ep("a", 1), ep("b", 2), Phase(["c"])]), 2, "a2 b4 c4"),
        (Phases([ep("a", 1), ep("b", 1)], repeat=True), 3, "a3 b3 a3 b1"),
        (Phases([ep("a", 1), ep("b", 1)]), 3, "a3 b7"),
        # Entered in the middle of an epoch: that epoch is its first.
        (Phases([up("a", 1), ep("b", 1), Phase(["c"])]), 4, "a1 b3 c6"),
        (Phases([up("a", 1), ep("b", 2), Phase(["c"])]), 4, "a1 b7 c2"),
        # Entered by the update of an epoch's last batch: the next epoch, of its first own step, is its first.
        (Phases([up("a", 4), ep("b", 1), Phase(["c"])]), 4, "a4 b4 c2"),
        (Phases([up("a", 3), ep("b", 1), Phase(["c"])]), 4, "a3 b1 c6"),
        (Phases([ep("a", 1), up("b", 1), ep("c", 1)], repeat=True), 3, "a3 b1 c2 a3 b1"),
        # Updates are not cut short by an epoch's end.
        (Phases([up("a", 5), up("b", 2)], repeat=True), 3, "a5 b2 a3"),
    ],
)
def test_an_epoch_of_a_phase_ends_with_the_training_epoch(schedule: Phases, per_epoch: int, expected: str) -> None:
    assert said(schedule.bind(ONE), 10, per_epoch) == expected


def test_a_phase_that_begins_within_a_batch_counts_that_batchs_epoch() -> None:
    """Optimizer 0 ends the first phase in an epoch's last batch; optimizer 1 makes the next one's first step in it."""
    plan = Phases([up("a", 2), ep("b", 1), Phase(["a"])]).bind(TWO)
    steps = [(s.epoch, "".join(s.trained)) for s in preview(plan, 4, 2, (0, 1)) if s.trained]
    assert steps == [(0, "a"), (0, "a"), (0, "b"), (1, "a"), (1, "a")]


def test_a_batch_that_only_trains_the_rest_is_no_first_step_of_a_phase_entered_in_it() -> None:
    plan = Phases([up("a", 2), Phase(["a"], epochs=1), Phase(["b"])]).bind(RESTED)
    seen = [(s.batch, g) for s in preview(plan, 6, 2, (0, 1)) for g in sorted(s.trained - {REST})]
    assert seen == [(0, "a"), (1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b")]


def test_an_epoch_whose_end_was_not_heard_of_ends_with_the_next_batch() -> None:
    plan = Phases([ep("a", 1), ep("b", 1), Phase(["c"])]).bind(ONE)
    at = plan.start()
    sets = []
    for epoch in (0, 0, 1, 2, 2):
        plan.begin_window(at, epoch)
        sets.append("".join(plan.trainable(at)))
        plan.update(at, 0, plan.trains(at, 0))
    assert sets == ["a", "a", "b", "c", "c"]


def test_an_epoch_without_a_step_of_a_phase_is_not_counted() -> None:
    plan = Phases([ep("a", 1), Phase(["b"])]).bind(ONE)
    at = plan.start()
    plan.end_epoch(at)
    assert plan.trainable(at) == {"a"}


# --- two optimizers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "order", "expected"),
    [
        # The optimizer that steps later in a batch makes the next phase's first step there.
        (Phases([up("a", 1), up("b", 2)], True), (0, 1), ["a", "b", "", "b", "a", "b", "", "b", "a", "b", "", "b"]),
        (Phases([up("a", 1), up("b", 2)], True), (1, 0), ["", "a", "b", "", "b", "a", "b", "", "b", "a", "b", ""]),
        (Phases([up("ab", 2), Phase(["b"])]), (0, 1), ["a", "b", "a", "b", "", "b", "", "b", "", "b", "", "b"]),
        # Optimizer 0 steps twice a batch: it waits, frozen, until optimizer 1 has made its two.
        (Phases([up("ab", 2), Phase(["a"])]), (0, 0, 1), ["a", "a", "b", "", "", "b", "a", "a", "", "a", "a", ""]),
    ],
)
def test_a_phase_of_updates_ends_when_every_optimizer_has_made_them(
    schedule: Phases, order: Sequence[int], expected: list[str]
) -> None:
    steps = preview(schedule.bind(TWO), 12 // len(order), 100, order)
    assert ["".join(sorted(step.trained)) for step in steps] == expected


@pytest.mark.parametrize("order", [(0, 0, 1), (1, 0, 0), (0, 1, 0)])
def test_a_waiting_optimizer_keeps_training_the_rest(order: Sequence[int]) -> None:
    layout = Layout(TWO.groups, optimizers={**TWO.optimizers, REST: frozenset({0, 1})}, rest_trains=True)
    plan = Phases([up("ab", 4), Phase(["b"])]).bind(layout)
    steps = [(s.batch, s.optimizer, s.trained) for s in preview(plan, 4, 100, order)]
    assert [t - {REST} for b, o, t in steps if o == 0] == [{"a"}] * 4 + [set()] * 4
    assert all(REST in trained for _, _, trained in steps)


def test_updates_of_the_rest_alone_do_not_advance_a_phase() -> None:
    plan = Phases([up("a", 1), Phase(["b"])]).bind(RESTED)
    at = plan.start()
    for _ in range(3):
        plan.update(at, 1, frozenset({REST}))
    assert plan.trainable(at) == {"a", REST}


def test_a_phase_that_trains_only_the_rest_counts_its_updates() -> None:
    layout = Layout(("a",), optimizers={"a": frozenset({0}), REST: frozenset({0})}, rest_trains=True)
    assert said(Phases([Phase([], updates=2), Phase(["a"])]).bind(layout), 5) == "rest2 arest3"


def test_a_step_that_updates_nothing_advances_nothing() -> None:
    plan = Phases([up("a", 1), Phase(["b"])]).bind(ONE)
    at = plan.start()
    plan.update(at, 0, frozenset())
    assert at == plan.start()


@pytest.mark.parametrize(
    ("schedule", "done", "expected"),
    [
        (Phases([up("ab", 3)]), {}, {0, 1}),
        (Phases([up("ab", 3)]), {0: 2, 1: 1}, {0, 1}),
        (Phases([up("ab", 3)]), {0: 3, 1: 1}, {1}),
        (Phases([up("a", 3), up("b", 3)]), {}, {0}),
        (Phases([ep("ab", 3)]), {}, set()),  # an epoch ends without them
    ],
)
def test_it_waits_for_the_optimizers_that_have_not_made_their_updates(
    schedule: Phases, done: dict[int, int], expected: set[int]
) -> None:
    plan = schedule.bind(TWO)
    at = plan.start()
    at.done.update(done)
    assert plan.pending(at) == expected


@pytest.mark.parametrize(
    ("schedule", "layout", "optimizer", "expected"),
    [
        (Phases([up("a", 1), up("b", 4)], True), ONE, 0, None),
        (Phases([up("a", 1), up("b", 4)], True), TWO, 0, "in the phase that trains ['b'] all its groups are frozen"),
        (Phases([up("a", 1), up("b", 4)], True), TWO, 1, "in the phase that trains ['a'] all its groups are frozen"),
        (
            Phases([up("ab", 1)], True),
            TWO,
            1,
            "in the phase that trains ['a', 'b'] it waits, frozen, for the other optimizer",
        ),
        (Phases([ep("ab", 1)], True), TWO, 1, None),
        (Phases([Phase(["all"])]), TWO, 0, None),
        (
            Phases([ep("ab", 1), Phases([up("a", 1)], 2), Phase(["all"])]),
            TWO,
            1,
            "in the phase that trains ['a'] all its",
        ),
        (Phases([up("a", 1), up("b", 4)], True), RESTED, 1, None),
        (Phases([up("a", 1), up("b", 4)], True), RESTED, 0, "in the phase that trains ['b'] all its groups are frozen"),
    ],
)
def test_an_optimizer_may_idle_in_a_phase_without_its_groups(
    schedule: Phases, layout: Layout, optimizer: int, expected: str | None
) -> None:
    reason = schedule.bind(layout).can_be_fully_frozen(optimizer)
    assert reason is None if expected is None else (reason or "").startswith(expected)


# --- the end of the schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (Phases([up("a", 1), up("b", 2)]), 3),
        (Phases([up("a", 1), up("b", 2)], repeat=2), 6),
        (Phases([ep("a", 1), ep("b", 1)]), 8),
        (Phases([up("a", 1), up("b", 2)], repeat=True), None),
        (Phases([up("a", 1), Phase(["b"])]), None),
    ],
)
def test_a_schedule_runs_out_with_its_last_step(schedule: Phases, steps: int | None) -> None:
    over = [step.over for step in preview(schedule.bind(ONE), 20, 4)]
    assert over == [steps is not None and step >= steps for step in range(20)]


def test_the_last_set_stays_when_the_schedule_has_run_out() -> None:
    plan = Phases([up("a", 1), up("b", 1)]).bind(TWO)
    at = plan.start()
    sets = []
    for _ in range(6):
        sets.append("".join(sorted(plan.trainable(at))))
        for optimizer in (0, 1):
            plan.update(at, optimizer, plan.trains(at, optimizer) & {"a" if optimizer == 0 else "b"})
    assert sets == ["a", "b", "b", "b", "b", "b"]
    assert plan.pending(at) == set()


def test_any_position_far_out_is_known_at_once() -> None:
    """What trains is a function of the position, not of the way there."""
    plan = Phases([up("a", 1), Phases([up("b", 1), up("c", 2)], repeat=10)], repeat=True).bind(ONE)
    far = [plan.trainable(Position(updates=dict.fromkeys("abc", 0), phase=21 * 10**9 + n)) for n in (0, 1, 2, 3, 20)]
    assert far == [{"a"}, {"b"}, {"c"}, {"b"}, {"c"}]
    assert plan.trainable(Position(updates=dict.fromkeys("abc", 0))) == {"a"}


# --- names -----------------------------------------------------------------------------------------------------------

FAMILY = Layout(("f/0", "f/1", "g"), families={"f": ("f/0", "f/1")})


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (["f/1"], {"f/1"}),
        (["f"], {"f/0", "f/1"}),
        (["f/*"], {"f/0", "f/1"}),
        (["*"], {"f/0", "f/1", "g"}),
        (["all"], {"f/0", "f/1", "g"}),
        (["g", "g", "f/0"], {"g", "f/0"}),
    ],
)
def test_a_name_stands_for(train: list[str], expected: set[str]) -> None:
    plan = Phases([Phase(train)]).bind(FAMILY)
    assert plan.trainable(plan.start()) == expected


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (
            Phases([Phase(["aa"], updates=1), Phases([Phase(["backbone", "hed"])])]),
            "`phases[1].phases[0].train` names 'hed', which is not a group. Did you mean 'head'",
        ),
        (
            Phases([Phase(["rest"])]),
            "`phases[0].train` names 'rest', the reserved group of all parameters that no other",
        ),
        (
            Phases([Phase([])]),
            "`phases[0].train` is empty and no other parameter trains. Name a group, or set `rest: train`.",
        ),
        (Phases([Phase(["x*"])]), "`phases[0].train` names 'x*', which is not a group."),
    ],
)
def test_a_schedule_that_does_not_fit_the_model_is_refused(schedule: Phases, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule.bind(Layout(("aa", "backbone", "head")))
    assert text in str(caught.value)


# --- errors ----------------------------------------------------------------------------------------------------------


OPEN = "has no end and {why}, so what comes after it would never begin. Give it `updates:`, `epochs:` or `until:`, or move it to"


@pytest.mark.parametrize(
    ("phases", "repeat", "text", "key"),
    [
        ([], False, "`phases` is empty, so nothing would ever be trainable. Give at least one phase", "phases"),
        ("a", False, "`phases` is 'a', but must be a list", "phases"),
        (Phase(["a"]), False, "`phases` is Phase(train=['a']), but must be a list", "phases"),
        ([{"train": ["a"]}], False, "`phases[0]` is {'train': ['a']}, which is neither a Phase nor Phases.", "phases"),
        (
            [up("a", 1), Phases([up("b", 1)], repeat=True)],
            False,
            "`phases[1].repeat` is true, but only the outermost phases may repeat for ever. Give it a number: "
            "`repeat: 10`.",
            "repeat",
        ),
        ([up("a", 1)], 0, "`repeat` is 0, but must be a whole number of at least 1", "repeat"),
        ([up("a", 1)], 2.0, "`repeat` is 2.0, but must be a whole number of at least 1", "repeat"),
        ([up("a", 1)], None, "`repeat` is None, but must be a whole number of at least 1", "repeat"),
        ([Phase(["a"]), up("b", 1)], False, "`train: ['a']` " + OPEN.format(why="is not the last one"), "train"),
        ([up("a", 1), Phase(["b"])], True, "`train: ['b']` " + OPEN.format(why="is inside a `repeat`"), "train"),
        ([up("a", 1), Phase(["b"])], 2, "`train: ['b']` " + OPEN.format(why="is inside a `repeat`"), "train"),
        ([up("a", 1), Phases([Phase(["b"])])], 2, "`train: ['b']` " + OPEN.format(why="is inside a `repeat`"), "train"),
        ([Phases([Phase(["b"])]), up("a", 1)], 1, "`train: ['b']` " + OPEN.format(why="is not the last one"), "train"),
    ],
)
def test_bad_phases_are_refused(phases: Any, repeat: Any, text: str, key: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Phases(phases, repeat)
    assert text in str(caught.value)
    assert caught.value.key is not None
    assert caught.value.key.rpartition(".")[2] == key


# --- as a value ------------------------------------------------------------------------------------------------------

NESTED = Phases([ep("a", 1), Phases([up("b", 2)], repeat=3), Phase(["all"])])


def test_it_describes_itself_as_one_would_write_it() -> None:
    assert NESTED.describe() == {
        "class_path": "Phases",
        "init_args": {
            "phases": [
                {"train": ["a"], "epochs": 1},
                {"phases": [{"train": ["b"], "updates": 2}], "repeat": 3},
                {"train": ["all"]},
            ],
            "repeat": False,
        },
    }


def test_only_what_is_not_the_default_is_described_of_seed_and_change() -> None:
    """A state that was saved before there was `change` is of the same schedule."""
    plain = Phases([up("a", 1)])
    assert plain == Phases([up("a", 1)], change="step")
    assert plain.describe()["init_args"].keys() == {"phases", "repeat"}
    other = Phases([up("a", 1)], change="batch", seed=3)
    assert other.describe()["init_args"].items() >= {"change": "batch", "seed": 3}.items()
    assert repr(other).endswith("repeat=False, seed=3, change='batch')")
    assert other != Phases([up("a", 1)], seed=3)


def test_it_names_each_group_under_its_key() -> None:
    assert NESTED.names() == (("phases[0].train", "a"), ("phases[1].phases[0].train", "b"), ("phases[2].train", "all"))


def test_phases_that_contain_themselves_are_refused() -> None:
    """They can be made so only after they were built; in YAML by an alias, which its reader refuses."""
    inner = Phases([Phase(["a"], updates=1)], repeat=2)
    outer = Phases([inner], repeat=2)
    inner.phases.append(outer)
    for use in (outer.names, lambda: outer.bind(Layout(("a",)))):
        with pytest.raises(ScheduleError, match=r"`phases\[0\].phases\[1\]` contains itself.*`repeat: 10`"):
            use()


INNER = Phases([up("a", 1), Phases([up("b", 1), up("a", 1)], 2), Phase(["all"])])
PICKED = Phases([up("a", 1), Phase([], updates=1, pick=Pick("f"))], repeat=True)
DRAWN = Layout(("a", "f/0", "f/1"), families={"f": ("f/0", "f/1")})


@pytest.mark.parametrize(
    ("schedule", "layout", "stages"),
    [
        (
            INNER,
            ONE,
            ["phase 1 of 3", "phase 2 of 3", "phase 2 of 3", "phase 2 of 3, visit 2", "phase 2 of 3, visit 2"]
            + ["phase 3 of 3"] * 2,
        ),
        (PICKED, DRAWN, ["phase 1 of 2", "phase 2 of 2", "phase 1 of 2, visit 2", "phase 2 of 2, visit 2"]),
        (Phases([up("a", 1)]), ONE, ["phase 1 of 1", "after the last phase"]),
    ],
)
def test_the_stage_of_a_step_is_for_people(schedule: Phases, layout: Layout, stages: list[str]) -> None:
    """Before a step it is that of the step; after it, with `ended`, still, though the phase may be over."""
    plan = schedule.bind(layout)
    at, seen = plan.start(), []
    for number, expected in enumerate(stages, start=1):
        plan.begin_window(at, 0)
        seen.append(plan.stage(at)[0])
        assert plan.stage(at)[1] == min(number, len(stages) - (stages[-1] == stages[-2]) - ("after" in stages[-1]))
        assert plan.where(at).startswith(expected)
        plan.update(at, 0, plan.next_update(at, 0))
        assert plan.stage(at, ended=True)[0] == expected
    assert seen == stages


@pytest.mark.parametrize(
    ("schedule", "layout", "group", "when"),
    [
        (INNER, ONE, "a", "phase 1, 2, 3"),
        (INNER, ONE, "c", "phase 3"),
        (Phases([up("a", 1), up("ab", 1)]), ONE, "a", "always"),
        (Phases([up("a", 1), up("b", 1)]), ONE, "c", "never"),
        (PICKED, DRAWN, "f/1", "phase 2, as drawn"),
        (Phases([Phase([], updates=1, pick=Pick("f"))], True), DRAWN, "f/0", "as drawn"),
        (Every({"a": 5}, of="b"), ONE, "a", "with 1 of 5 updates of b"),
        (Every({"a": 5}, of="b"), ONE, "c", "always"),
        (Every({"a": 5}), ONE, "a", "with 1 of 5 updates"),
    ],
)
def test_when_a_group_trains_in_few_words(schedule: Schedule, layout: Layout, group: str, when: str) -> None:
    assert schedule.bind(layout).when(group) == when


# --- many phases -----------------------------------------------------------------------------------------------------


def calls(what: Callable[[], object]) -> int:
    """The calls of functions that something makes."""
    made = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        what()
    finally:
        sys.setprofile(before)
    return made


def written(number: int) -> Phases:
    """So many phases, some of them in sequences of their own."""
    inner = [Phases([up("b", 2), up("c", 1)], 3) if n % 10 == 9 else up("abc"[n % 3], 1 + n % 4) for n in range(number)]
    return Phases(inner, repeat=True)


def test_what_a_switch_does_is_the_same_for_ten_phases_and_ten_thousand() -> None:
    made = []
    for number in (10, 10_000):
        plan: Any = written(number).bind(ONE)
        at = plan.start()
        at.phase = plan._sequence.enters - 1  # the last, within a sequence of its own

        def switch(plan: Plan = plan, at: Position = at) -> None:
            plan.trains(at, 0)
            plan.stable_updates(at)
            plan.pending(at)
            plan.stage(at)
            plan.place(at)

        made.append(calls(switch))
        assert plan.place(at) == f"phases[{number - 1}].phases[1]"
    assert made[0] == made[1]


def test_a_steady_step_reads_no_phase() -> None:
    plan = written(100).bind(ONE)
    at = plan.start()
    plan.trains(at, 0)
    assert calls(lambda: plan.trains(at, 0)) <= 6


def test_binding_is_linear_and_reads_the_groups_once_for_phases_alike() -> None:
    layout = Layout(tuple(f"f/{n}" for n in range(200)), {"f": tuple(f"f/{n}" for n in range(200))})
    drawn = [Phase([], pick=Pick("f", 3), updates=2), Phase(["f/7"], updates=1), Phase(["f"], epochs=1)]
    few, many = (calls(lambda n=n: Phases(drawn * n, True).bind(layout)) for n in (50, 100))  # type: ignore[misc]
    assert many < 2.05 * few
    plan = Phases(drawn * 50, True).bind(layout)
    kinds = {id(each.always) for each in plan._sequence._elements}  # type: ignore[attr-defined]
    assert len(kinds) == 3


def test_the_phases_of_a_group_are_the_first_of_many() -> None:
    plan = Phases([up("a", 1), up("b", 1)] * 50).bind(ONE)
    assert plan.when("a") == "phase 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23 and 38 more"
    assert plan.when("c") == "never"
