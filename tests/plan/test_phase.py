"""`Phase`: its parts as values, what they must fit of a model, and the factors that they give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_freeze.cli.config import build_schedule
from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import REST, Layout, Plan, Schedule
from lightning_freeze.plan.until import Until
from lightning_freeze.yaml_file import Place

FAMILY = ("l/0", "l/1", "l/2")
GROUPS = (*FAMILY, "head", "stem")
ONE = Layout(GROUPS, families={"l": FAMILY}, optimizers={g: frozenset({0}) for g in GROUPS})
RESTED = Layout(
    GROUPS, families={"l": FAMILY}, optimizers={g: frozenset({0}) for g in (*GROUPS, REST)}, rest_trains=True
)


def lr_factors(phase: Phase, layout: Layout = ONE) -> dict[str, float]:
    plan = Phases([phase]).bind(layout)
    return plan.lr_factors(plan.start())


def rebuilt(described: object) -> Schedule:
    """What the command line reads from a schedule written as YAML."""
    node = yaml.compose(yaml.safe_dump(described), yaml.SafeLoader)
    assert node is not None
    return build_schedule(Place(Path("schedule.yaml"), "", node))


# --- as a value ------------------------------------------------------------------------------------------------------

PHASES = [
    Phase(["head"]),
    Phase(["head"], updates=3),
    Phase([], epochs=2, pick=Pick("l", 2, "shuffle", keep=True, drawn="freeze")),
    Phase(["all"], until=Until("x", "max", 0, 0.25, 2, 9), lr={"l": {"decay": 0.4}, "head": 2, "stem": 0.5}),
    Phase(["l/*", "head"], updates=1, lr={"l": [0.1, 0.2, 1], "all": 1.0}, ramp=4),
    Phase(["head"], updates=5, pick=Pick("l", weights=[1, 0, 2.5])),
]


@pytest.mark.parametrize("phase", PHASES, ids=repr)
def test_a_phase_is_read_again_as_it_was_written(phase: Phase) -> None:
    schedule = Phases([phase])
    described = schedule.describe()
    again = rebuilt(described)
    assert again == schedule
    assert isinstance(again, Phases)
    assert again.phases == [phase]
    assert rebuilt(described["init_args"]) == schedule  # as `phases:` alone
    assert yaml.safe_load(yaml.safe_dump(described)) == described
    assert eval(repr(phase)) == phase
    assert eval(repr(again.phases[0])) == phase


NAMES = st.lists(st.sampled_from([*GROUPS, "l", "all", "l/*"]), max_size=3)
FACTORS = st.floats(1e-6, 1e6) | st.integers(1, 9)
RATES = st.dictionaries(
    st.sampled_from([*GROUPS, "l", "rest"]),
    FACTORS | st.lists(FACTORS, max_size=3) | st.builds(lambda d: {"decay": d}, FACTORS),
    min_size=1,
)
PICKS = st.one_of(
    st.builds(
        Pick, st.just("l"), st.integers(1, 3), st.sampled_from(["forward", "backward", "shuffle"]), keep=st.booleans()
    ),
    st.builds(Pick, st.just("l"), st.integers(1, 3), drawn=st.sampled_from(["train", "freeze"])),
    st.builds(Pick, st.just("l"), weights=st.lists(st.floats(0.5, 9), min_size=3, max_size=3)),
)
UNTILS = st.builds(
    Until,
    st.sampled_from(["val_loss", "1e3", "yes", "a: b"]),
    st.sampled_from(["min", "max"]),
    st.integers(0, 5),
    st.sampled_from([0, 0.1, 1e-12]),
    st.integers(1, 3),
    st.none() | st.integers(3, 9),
)
RAMPS = st.none() | st.integers(1, 9)
ENDS = st.one_of(
    st.builds(lambda n: {"updates": n}, st.integers(1, 99)),
    st.builds(lambda n: {"epochs": n}, st.integers(1, 99)),
    st.builds(lambda u: {"until": u}, UNTILS),
)
ANY = st.builds(
    lambda train, end, pick, lr, ramp: Phase(train, **end, pick=pick, lr=lr, ramp=ramp),
    NAMES,
    ENDS,
    st.none() | PICKS,
    st.none() | RATES,
    RAMPS,
)
ROWS = st.builds(
    Phases,
    st.lists(ANY | st.builds(Phases, st.lists(ANY, min_size=1, max_size=2), st.integers(1, 3)), min_size=1, max_size=3),
    st.booleans() | st.integers(1, 3),
    st.integers(0, 99),
)


@settings(max_examples=40)
@given(ROWS)
def test_any_schedule_is_read_again_as_it_was_written(schedule: Phases) -> None:
    again = rebuilt(schedule.describe())
    assert again == schedule
    assert isinstance(again, Phases)
    assert again.seed == schedule.seed
    assert again.describe() == schedule.describe()


def test_a_description_is_the_phases_own() -> None:
    """What a caller does with it does not reach the schedule."""
    phase = Phase(["a"], lr={"a": [0.5], "b": {"decay": 0.5}}, pick=Pick("l", weights=[1, 2]))
    described = phase.describe()
    described["train"].append("b")
    described["lr"]["b"]["decay"] = 9
    described["pick"]["weights"].append(3)
    assert phase == Phase(["a"], lr={"a": [0.5], "b": {"decay": 0.5}}, pick=Pick("l", weights=[1, 2]))


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase(["a"]), "Phase(train=['a'])"),
        (Phase(["a"], lr={"a": 1}, ramp=2), "Phase(train=['a'], lr={'a': 1.0}, ramp=2)"),
        (
            Phase([], epochs=1, pick=Pick("l")),
            "Phase(train=[], epochs=1, pick=Pick(family='l', count=1, order='random'))",
        ),
        (Phase(["a"], until=Until("x")), "Phase(train=['a'], until=Until(metric='x', mode='min', patience=3))"),
    ],
)
def test_it_is_shown_as_it_is_written(phase: Phase, text: str) -> None:
    assert repr(phase) == text


def test_every_is_read_again_too() -> None:
    assert rebuilt(Every({"a": 2}, of="b").describe()) == Every({"a": 2}, of="b")


# --- factors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "lr", "expected"),
    [
        (["all"], {"head": 0.5}, {"head": 0.5}),
        (["all"], {"head": 1}, {}),
        (["all"], {"l": 0.5}, dict.fromkeys(FAMILY, 0.5)),
        (["all"], {"l/*": 0.5, "head": 2}, {**dict.fromkeys(FAMILY, 0.5), "head": 2.0}),
        (["all"], {"l": [0.1, 0.2, 1.0]}, {"l/0": 0.1, "l/1": 0.2}),
        (["all"], {"l": {"decay": 0.5}}, {"l/0": 0.25, "l/1": 0.5}),
        (["all"], {"l": {"decay": 2}}, {"l/0": 4.0, "l/1": 2.0}),
        (["all"], {"head": [0.5]}, {"head": 0.5}),
        (["all"], {"all": 0.1}, dict.fromkeys(GROUPS, 0.1)),
        (["all"], {"l": 0.5, "l/0": 0.5}, dict.fromkeys(FAMILY, 0.5)),  # the same factor twice
        # Of a name that stands for several groups, those that train
        (["l/1", "head"], {"l": [0.1, 0.2, 0.3]}, {"l/1": 0.2}),
        (["l/1", "head"], {"l": {"decay": 0.5}}, {"l/1": 0.5}),
        (["head"], {"all": 0.1}, {"head": 0.1}),
    ],
)
def test_a_group_has_its_factor(train: list[str], lr: dict[str, Any], expected: dict[str, float]) -> None:
    assert lr_factors(Phase(train, lr=lr)) == expected


def test_the_rest_can_have_a_factor_where_it_trains() -> None:
    assert lr_factors(Phase(["head"], lr={"rest": 0.25}), RESTED) == {REST: 0.25}
    assert lr_factors(Phase(["all"], lr={"all": 0.5}), RESTED) == dict.fromkeys(GROUPS, 0.5)  # the named groups
    with pytest.raises(ScheduleError, match=r"`phases\[0\].lr.rest` names 'rest', the reserved group"):
        lr_factors(Phase(["head"], lr={"rest": 0.25}))


def test_what_is_drawn_has_its_factor_when_it_is_drawn() -> None:
    pick = Pick("l", 1, "forward")
    plan = Phases([Phase(["head"], updates=1, pick=pick, lr={"l": [0.1, 0.2, 0.3]})], repeat=True).bind(ONE)
    assert [step.lr_factors for step in preview(plan, 4, 4)] == [{"l/0": 0.1}, {"l/1": 0.2}, {"l/2": 0.3}, {"l/0": 0.1}]


def test_a_factor_ends_with_its_phase() -> None:
    plan = Phases([Phase(["all"], updates=2, lr={"head": 0.1}), Phase(["all"])]).bind(ONE)
    assert [step.lr_factors for step in preview(plan, 4, 4)] == [{"head": 0.1}, {"head": 0.1}, {}, {}]
    assert plan.rated
    assert not Phases([Phase(["all"], lr={"head": 1})]).bind(ONE).rated


# --- ramps -----------------------------------------------------------------------------------------------------------


def ramped(plan: Plan, updates: int, group: str) -> list[float]:
    """The factor of a group at each update that trains it."""
    return [step.lr_factors.get(group, 1.0) for step in preview(plan, updates, updates) if group in step.trained]


@pytest.mark.parametrize("ramp", [1, 2, 3, 7])
def test_a_group_that_thaws_rises_evenly(ramp: int) -> None:
    plan = Phases([Phase(["head"], updates=2), Phase(["head", "stem"], ramp=ramp)]).bind(ONE)
    assert ramped(plan, 2 + ramp + 3, "stem") == [*((k + 1) / (ramp + 1) for k in range(ramp)), 1, 1, 1]
    assert set(ramped(plan, 2 + ramp + 3, "head")) == {1.0}  # it trained before


def test_a_ramp_rises_to_the_groups_own_factor() -> None:
    phase = Phase(["head", "stem"], lr={"stem": 0.5, "head": 0.25}, ramp=3)
    plan = Phases([Phase(["head"], updates=2), phase]).bind(ONE)
    assert ramped(plan, 7, "stem") == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert ramped(plan, 7, "head") == [1, 1, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_there_is_no_ramp_in_the_first_phase() -> None:
    assert ramped(Phases([Phase(["head"], ramp=3)]).bind(ONE), 3, "head") == [1, 1, 1]


def test_a_ramp_counts_the_groups_own_updates() -> None:
    """A step in which the group had no gradient does not raise its rate."""
    plan = Phases([Phase(["head"], updates=1), Phase(["head", "stem"], ramp=2)]).bind(ONE)
    at = plan.start()
    plan.update(at, 0, plan.trains(at, 0))
    seen = []
    for updated in ({"head"}, {"stem"}, {"head"}, {"head", "stem"}, {"stem"}):
        seen.append(plan.lr_factors(at).get("stem", 1.0))
        plan.update(at, 0, frozenset(updated))
    assert seen == [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1]


def test_a_group_that_froze_and_thaws_again_rises_again() -> None:
    plan = Phases([Phase(["head"], updates=3, ramp=1), Phase(["stem"], updates=2, ramp=2)], repeat=True).bind(ONE)
    assert ramped(plan, 15, "head") == [1, 1, 1, 0.5, 1, 1, 0.5, 1, 1]
    assert ramped(plan, 15, "stem") == [1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 3, 2 / 3]


def test_what_is_drawn_anew_rises() -> None:
    pick = Pick("l", 1, "forward", keep=True)
    plan = Phases([Phase(["head"], updates=2, pick=pick, ramp=1)], repeat=True).bind(ONE)
    assert ramped(plan, 8, "l/1") == [0.5, 1, 1, 1, 1, 1]
    assert ramped(plan, 8, "l/0") == [1] * 8


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 6), st.booleans())
def test_nothing_is_steady_while_a_rate_rises(first: int, ramp: int, second: int, ends: bool) -> None:
    """`stable_updates` never promises more updates than rates and sets stay for."""
    last = [Phase(["stem"], updates=second, ramp=1)] if ends else []
    row = [Phase(["head"], updates=first), Phase(["head", "stem"], updates=ramp + second, ramp=ramp), *last]
    plan = Phases(row, repeat=ends).bind(ONE)
    at, promised, kept = plan.start(), 0, None
    for _ in range(40):
        now = plan.trains(at, 0), plan.lr_factors(at)
        assert promised <= 0 or now == kept
        promised, kept = max(promised - 1, plan.stable_updates(at)), now
        plan.update(at, 0, now[0])


# --- what does not fit a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "key", "text"),
    [
        (
            Phase([], pick=Pick("head")),
            "phases[0].pick.family",
            "`phases[0].pick.family` is 'head', which is one group and not a family: there is nothing to draw. Did you mean 'l'?",
        ),
        (
            Phase([], pick=Pick("k")),
            "phases[0].pick.family",
            "`phases[0].pick.family` names 'k', which is not a group. Known: 'l/0', ",
        ),
        (
            Phase([], pick=Pick("l", 4)),
            "phases[0].pick.count",
            "`phases[0].pick.count` is 4, but 'l' has 3 groups (l/0, l/1, l/2), and a draw has no group twice. The "
            "nearest valid value is 3.",
        ),
        (
            Phase([], pick=Pick("all", 6)),
            "phases[0].pick.count",
            "`phases[0].pick.count` is 6, but 'all' has 5 groups (l/0, l/1, l/2, head, …)",
        ),
        (
            Phase([], pick=Pick("l", weights=[1, 2])),
            "phases[0].pick.weights",
            "`phases[0].pick.weights` has 2 numbers, but 'l' has 3 groups (l/0, l/1, l/2). Give each one, in that order.",
        ),
        (
            Phase(["all"], pick=Pick("l")),
            "phases[0].pick.family",
            "`phases[0].pick.family` is 'l', and the phase trains all of it anyway",
        ),
        (
            Phase(["head"], lr={"stem": 0.1}),
            "phases[0].lr.stem",
            "`phases[0].lr.stem` is a factor for 'stem', which does not train in this phase (`train: ['head']`). Take it",
        ),
        (
            Phase(["head"], lr={"l": 0.1}),
            "phases[0].lr.l",
            "`phases[0].lr.l` is a factor for 'l', which does not train in this phase",
        ),
        (
            Phase(["head"], lr={"haed": 0.1}),
            "phases[0].lr.haed",
            "names 'haed', which is not a group. Did you mean 'head'",
        ),
        (
            Phase(["all"], lr={"l": 0.1, "l/1": 0.2}),
            "phases[0].lr.l/1",
            "`phases[0].lr` gives 'l/1' two factors, 0.1 and (as 'l/1') 0.2. Name each group once.",
        ),
        (
            Phase(["all"], lr={"l": [0.1, 0.2]}),
            "phases[0].lr.l",
            "`phases[0].lr.l` has 2 factors for 3 groups (l/0, l/1, l/2). Give one for each, in that order, or one for all.",
        ),
        (Phase(["all"], lr={"head": []}), "phases[0].lr.head", "`phases[0].lr.head` has 0 factors for 1 group"),
        (
            Phase([]),
            "phases[0].train",
            "`phases[0].train` is empty and no other parameter trains. Name a group, or set `rest: train`.",
        ),
        (
            Phase([], pick=Pick("l", 3, drawn="freeze")),
            "phases[0].train",
            "`phases[0].train` is empty and `phases[0].pick` can leave all of 'l' frozen and no other parameter trains",
        ),
    ],
)
def test_a_phase_that_does_not_fit_the_model_is_refused(phase: Phase, key: str, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Phases([phase]).bind(ONE)
    assert text in str(caught.value)
    assert caught.value.key == key


def test_without_any_family_the_error_shows_how_one_is_made() -> None:
    with pytest.raises(ScheduleError, match=r"`each:` makes a family: `groups: \{a: \{each: \"model.layers"):
        Phases([Phase([], pick=Pick("a"))]).bind(Layout(("a", "b")))


def test_a_family_that_can_be_frozen_whole_is_refused_unless_something_else_trains() -> None:
    """What is kept frozen grows; it is the row's length that says how far."""

    def row(repeat: Any, count: int = 1) -> Phases:
        pick = Pick("l", count, "forward", keep=True, drawn="freeze")
        return Phases([Phase([], updates=1, pick=pick)], repeat=repeat)

    row(2).bind(ONE)
    row(False, 2).bind(ONE)
    for schedule in (row(3), row(2, 2), row(True), Phases([row(3)])):
        with pytest.raises(ScheduleError, match=r"pick` can leave all of 'l' frozen and no other parameter trains"):
            schedule.bind(ONE)
    row(True).bind(RESTED)
    Phases([Phase(["head"], updates=1, pick=Pick("l", 3, drawn="freeze"))]).bind(ONE)


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({"train": "head"}, "train", "`train` is 'head', but must be a list of groups: `train: [head]`."),
        ({"train": None}, "train", "`train` is None, but must be a list of groups"),
        ({"train": [3]}, "train", "`train` holds 3, but must hold names of groups: `train: [head, backbone]`."),
        ({"train": [""]}, "train", "`train` holds '', but must hold names"),
        (
            {"updates": 2, "epochs": 3},
            "epochs",
            "the phase with `train: ['a']` has two ends, `updates: 2` and `epochs: 3`; a phase has at most one. Keep the",
        ),
        (
            {"updates": 0},
            "updates",
            "`updates` is 0, but must be a whole number of at least 1: the phase ends after that many updates. The "
            "nearest valid value is 1.",
        ),
        ({"epochs": 1.5}, "epochs", "`epochs` is 1.5, but must be a whole number of at least 1"),
        ({"epochs": True}, "epochs", "`epochs` is True, but must be a whole number"),
        ({"lr": 0.1}, "lr", "`lr` is 0.1, but must map groups to factors on the learning rate: `lr: {backbone: 0.1}`."),
        ({"lr": {}}, "lr", "`lr` is {}, but must map groups"),
        (
            {"lr": {"a": 0}},
            "lr.a",
            "A rate of 0 freezes nothing (optimizer state goes on): leave the group out of `train`",
        ),
        (
            {"lr": {"a": -1}},
            "lr.a",
            "`lr.a` is -1, but must be a number above 0: a factor on the learning rate. The nearest",
        ),
        ({"lr": {"a": math.nan}}, "lr.a", "The nearest valid value that changes nothing is 1."),
        ({"lr": {"a": math.inf}}, "lr.a", "`lr.a` is inf"),
        ({"lr": {"a": True}}, "lr.a", "`lr.a` is True"),
        ({"lr": {"a": "0.1"}}, "lr.a", "`lr.a` is '0.1'"),
        ({"lr": {"a": None}}, "lr.a", "`lr.a` is None"),
        ({"lr": {"a": [1, 0]}}, "lr.a", "`lr.a` is 0"),
        ({"lr": {"a": {"decay": 0}}}, "lr.a.decay", "`lr.a.decay` is 0"),
        ({"lr": {"a": {"deacy": 0.4}}}, "lr.a", "a mapping there has the one key `decay`: `lr: {a: {decay: 0.4}}`,"),
        ({"lr": {"a": {}}}, "lr.a", "`lr.a` is {}, but a mapping there has the one key `decay`"),
        (
            {"ramp": 0},
            "ramp",
            "`ramp` is 0, but must be a whole number of at least 1: the learning rate of a group that thaws",
        ),
        ({"ramp": 1.5}, "ramp", "`ramp` is 1.5"),
        (
            {"pick": "l"},
            "pick",
            "`pick` is 'l', but must be a mapping such as `pick: {family: layers, count: 1, order:",
        ),
        ({"pick": {"family": "l"}}, "pick", "in Python, Pick(…)."),
        ({"until": {"metric": "x"}}, "until", "in Python, Until(…)."),
    ],
)
def test_a_bad_phase_is_refused(options: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Phase(**{"train": ["a"], **options})
    assert text in str(caught.value)
    assert caught.value.key == key


# --- never freezing, and idling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "never"),
    [
        (Phase(["all"]), True),
        (Phase(["head", "stem"], pick=Pick("l", 3)), True),
        (Phase(["head", "stem"], pick=Pick("l", 2)), False),
        (Phase(["head"], pick=Pick("l", 3)), False),
        (Phase(["head", "stem"], pick=Pick("l", 1, drawn="freeze")), False),
        (Phase(["head", "stem"], updates=2, pick=Pick("l", 3, "forward", keep=True)), True),
    ],
)
def test_whether_it_ever_freezes(phase: Phase, never: bool) -> None:
    assert Phases([phase]).bind(ONE).never_freezes() == never


def test_an_optimizer_may_idle_where_a_draw_can_pass_it_by() -> None:
    held = {"l/0": 0, "l/1": 0, "l/2": 1, "head": 1, "stem": 1}
    layout = Layout(GROUPS, families={"l": FAMILY}, optimizers={g: frozenset({i}) for g, i in held.items()})

    def idles(count: int, **options: Any) -> str | None:
        phase = Phase(["head"], epochs=1, pick=Pick("l", count, **options))
        return Phases([phase], repeat=True).bind(layout).can_be_fully_frozen(0)

    said = "in the phase that trains ['head', 'a draw from l'] all its groups can be frozen"
    assert idles(1) == said
    assert idles(2) is None  # one of two is optimizer 0's
    assert idles(1, drawn="freeze") is None
    assert idles(2, drawn="freeze") == said


def test_a_decay_of_one_group_is_refused_and_of_a_family_of_one_is_none() -> None:
    with pytest.raises(
        ScheduleError, match=r"`phases\[0\].lr.head` has a `decay`.*'head' is one group.*`lr: {head: 0.5}`"
    ):
        Phases([Phase(["all"], lr={"head": {"decay": 0.5}})]).bind(ONE)
    alone = Layout(("l/0",), {"l": ("l/0",)})
    assert not Phases([Phase(["all"], lr={"l": {"decay": 0.5}})]).bind(alone).rated
