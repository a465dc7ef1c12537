"""`Until`: a phase ends when Lightning's EarlyStopping would have ended the run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import EarlyStopping

from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.preview import preview
from lightning_freeze.plan.schedule import Layout, Plan, Position
from lightning_freeze.plan.until import Until

ONE = Layout(("a", "b", "c"), optimizers={g: frozenset({0}) for g in "abc"})
NEAR = st.sampled_from([0.0, 0.1, 0.2, 0.30000000000000004, 0.3, 0.5, -0.5, 1.0, -0.0, math.nan, math.inf, -math.inf])
VALUES = st.lists(NEAR | st.floats(width=64), max_size=12)


# --- one value after the other ---------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(VALUES, st.sampled_from(["min", "max"]), st.integers(0, 4), st.sampled_from([0.0, 0.1, 0.2, 1e-9, 5.0]))
@example([1.0, 1.0], "min", 0, 0.0)
@example([0.5, 0.4, 0.30000000000000004], "min", 1, 0.1)
@example([0.5, 0.6, 0.7], "max", 1, 0.1)
@example([0.4, 0.3], "min", 1, 0.1)  # 0.3 + 0.1 is 0.4, but 0.4 - 0.1 is more than 0.3
@example([0.2, 0.3], "max", 1, 0.1)
@example([1.7e308, 1.6e308], "min", 2, 5.0)
def test_it_judges_as_early_stopping_does(values: list[float], mode: Any, patience: int, min_delta: float) -> None:
    stopping = EarlyStopping("x", min_delta=min_delta, patience=patience, mode=mode, check_finite=True)
    until = Until("x", mode=mode, patience=patience, min_delta=min_delta)
    best: float | None = None
    wait = 0
    for value in values:
        stops, _ = stopping._evaluate_stopping_criteria(torch.tensor(value, dtype=torch.float64))
        judgement = until.judge(best, wait, value)
        best, wait = judgement.best, judgement.wait
        assert bool(judgement.over) == stops
        assert wait == stopping.wait_count
        assert (math.inf if mode == "min" else -math.inf) if best is None else best == float(stopping.best_score)
        if stops:
            return


@pytest.mark.parametrize(
    ("until", "best", "wait", "value", "over"),
    [
        (Until("x", patience=2), 0.5, 1, 0.6, "'x' (0.6) has not been better than 0.5 for 2 epochs"),
        (Until("x", patience=1), 0.5, 0, 0.5, "'x' (0.5) has not been better than 0.5 for 1 epoch"),
        (Until("x", patience=2), 0.5, 0, 0.6, ""),
        (Until("x", patience=1), 0.5, 0, 0.4, ""),
        (Until("x", patience=1), None, 0, 9.0, ""),
        (Until("x"), 0.5, 0, math.nan, "'x' is nan, which is not finite"),
        (Until("x"), None, 0, -math.inf, "'x' is -inf, which is not finite"),
    ],
)
def test_it_says_why(until: Until, best: float | None, wait: int, value: float, over: str) -> None:
    assert until.judge(best, wait, value).over == over


# --- in a schedule ---------------------------------------------------------------------------------------------------

LOGGED = "x"


def run(
    plan: Plan, values: Sequence[float | None], late: bool = False, batches: int = 2, at: Position | None = None
) -> tuple[str, Position, list[str]]:
    """What trains in each epoch when ``values`` are logged at their ends, ``None`` for none; the position; the whys."""
    at = plan.start() if at is None else at
    sets, whys = "", []
    for value in values:
        metrics = {} if value is None else {LOGGED: value}
        for batch in range(batches):
            plan.begin_window(at, at.epoch)
            if not batch:
                sets += "".join(sorted(plan.trainable(at)))
            plan.update(at, 0, plan.trains(at, 0))
        if not late:
            plan.log_metrics(at, metrics)
        plan.end_epoch(at)
        if late:
            plan.log_metrics(at, metrics)
        if at.why:
            whys.append(at.why)
            at.why = ""
    return sets, at, whys


def until_then_b(**options: Any) -> Plan:
    return Phases([Phase(["a"], until=Until(LOGGED, **options)), Phase(["b"])]).bind(ONE)


NAN = math.nan
CASES: list[tuple[dict[str, Any], list[float | None], str]] = [
    ({"patience": 1}, [3, 2, 2, 1], "aaab"),
    ({"patience": 2}, [3, 2, 2, 1, 1, 1, 0], "aaaaaab"),
    ({"patience": 0}, [3, 3, 0], "aab"),
    ({"patience": 1, "mode": "max"}, [3, 4, 4, 5], "aaab"),
    ({"patience": 1, "min_delta": 0.5}, [3, 2.6, 2.0], "aab"),
    # Values that are not finite
    ({"patience": 9}, [NAN, 1], "ab"),
    ({"patience": 9}, [1, math.inf, 1], "aab"),
    ({"patience": 9, "min_epochs": 3}, [NAN, 1, 1, 1], "aaaa"),
    # At the least, at the most
    ({"patience": 1, "min_epochs": 4}, [1, 1, 1, 1, 0], "aaaab"),
    ({"patience": 1, "min_epochs": 4}, [1, 1, 1, 0, 1, 1], "aaaaab"),
    ({"patience": 9, "max_epochs": 2}, [3, 2, 1], "aab"),
    ({"patience": 1, "max_epochs": 5}, [3, 3, 1], "aab"),
    ({"patience": 9, "max_epochs": 1}, [3, 2], "ab"),
    ({"patience": 1, "min_epochs": 3, "max_epochs": 3}, [3, 3, 3, 3], "aaab"),
    # Epochs without a value say nothing, and count towards the least and the most
    ({"patience": 1}, [3, None, None, 3, 0], "aaaab"),
    ({"patience": 2}, [3, None, 3, None, 3, 0], "aaaaab"),
    ({"patience": 9, "max_epochs": 3}, [3, None, None, 0], "aaab"),
    ({"patience": 9, "max_epochs": 2}, [None, None, 0], "aab"),
    ({"patience": 1, "min_epochs": 3}, [3, 3, None, 3, 0], "aaaab"),
]


@pytest.mark.parametrize("late", [False, True], ids=["heard before the end", "heard after it"])
@pytest.mark.parametrize(("options", "values", "expected"), CASES)
def test_a_phase_ends_by_its_metric(
    options: dict[str, Any], values: list[float | None], expected: str, late: bool
) -> None:
    sets, at, _ = run(until_then_b(**options), values, late)
    assert sets == expected
    assert late or at.heard == {}


@settings(max_examples=150)
@given(
    st.lists(st.none() | st.sampled_from([0.0, 0.1, 0.2, 0.3, NAN, math.inf]), max_size=10),
    st.sampled_from(["min", "max"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.1]),
    st.integers(1, 4),
    st.none() | st.integers(0, 4),
    st.booleans(),
)
def test_a_phase_ends_as_a_plain_loop_with_early_stopping_would(
    values: list[float | None], mode: Any, patience: int, delta: float, least: int, more: int | None, late: bool
) -> None:
    most = None if more is None else least + more

    def loop() -> str:
        stopping, sets, over = EarlyStopping("x", delta, patience, mode=mode), "", False
        for epoch, value in enumerate(values, start=1):
            sets += "b" if over else "a"
            stops = value is not None and stopping._evaluate_stopping_criteria(torch.tensor(value).double())[0]
            over |= (stops and epoch >= least) or epoch == most
        return sets

    options = {"mode": mode, "patience": patience, "min_delta": delta, "min_epochs": least, "max_epochs": most}
    values = [None if value is None else float(torch.tensor(value).double()) for value in values]
    assert run(until_then_b(**options), values, late)[0] == loop()


@pytest.mark.parametrize("late", [False, True])
def test_each_time_that_it_is_entered_it_begins_anew(late: bool) -> None:
    """Neither the best value nor the patience is carried over: the second visit's 9 is its first."""
    plan = Phases([Phase(["a"], until=Until(LOGGED, patience=2)), Phase(["b"], epochs=1)], repeat=True).bind(ONE)
    assert run(plan, [1, 2, 3, 0, 9, 8, 8, 8, 0, 7, 7, 7], late)[0] == "aaabaaaabaaa"
    same = Phases([Phase(["a"], until=Until(LOGGED, patience=1))], repeat=True).bind(ONE)
    sets, at, _ = run(same, [1, 2, 5, 6, 7], late)
    assert sets == "aaaaa"
    assert (at.phase, at.best, at.wait) == (2, 7, 0)


@pytest.mark.parametrize("late", [False, True])
def test_a_value_of_an_epoch_in_which_a_phase_was_not_entered_is_not_its_own(late: bool) -> None:
    """The first phase's last value is forgotten with it, as is one of an epoch that another phase ended in."""
    plan = Phases([Phase(["a"], epochs=1), Phase(["b"], until=Until(LOGGED, patience=1)), Phase(["c"])]).bind(ONE)
    assert run(plan, [0, 5, 4, 4, 4], late)[0] == "abbbc"


def test_entered_in_the_middle_of_an_epoch_that_epoch_is_its_first() -> None:
    plan = Phases([Phase(["a"], updates=1), Phase(["b"], until=Until(LOGGED, patience=1)), Phase(["c"])]).bind(ONE)
    assert run(plan, [1, 1, 1])[0] == "abc"
    # Entered by an epoch's last update, it has made no step in it: the value is of the phase before.
    plan = Phases([Phase(["a"], updates=2), Phase(["b"], until=Until(LOGGED, patience=1)), Phase(["c"])]).bind(ONE)
    assert run(plan, [0, 1, 1, 1])[0] == "abbc"


@pytest.mark.parametrize("late", [False, True])
def test_the_schedule_can_run_out_with_a_metric(late: bool) -> None:
    plan = Phases([Phase(["b"], epochs=1), Phase(["a"], until=Until(LOGGED, patience=1))]).bind(ONE)
    sets, at, whys = run(plan, [1, 1, 1, 0, NAN, 2], late)
    assert sets == "baaaaa"
    assert plan.ran_out(at)
    assert plan.awaits(at) is None
    assert at.unheard is None
    assert len(whys) == 1


@pytest.mark.parametrize(
    ("options", "values", "why"),
    [
        ({"patience": 1}, [1, 2], "the phase that trains a is over: 'x' (2) has not been better than 1 for 1 epoch"),
        ({}, [NAN], "the phase that trains a is over: 'x' is nan, which is not finite"),
        ({"max_epochs": 2}, [2, 1], "the phase that trains a is over: it has had 2 epochs"),
        ({"patience": 1, "max_epochs": 2}, [1, 1], "the phase that trains a is over: 'x' (1) has not been better"),
    ],
)
def test_it_is_told_once_why_a_phase_is_over(options: dict[str, Any], values: list[float | None], why: str) -> None:
    _, _, whys = run(until_then_b(**options), [*values, 5, 5, 5])
    assert len(whys) == 1
    assert whys[0].startswith(why)


def test_a_phase_awaits_its_metric_from_its_first_step_on() -> None:
    """Entered by an epoch's very last update, it has had no epoch yet in which it could be logged."""
    plan = Phases([Phase(["a"], updates=1), Phase(["b"], until=Until(LOGGED))]).bind(ONE)
    at = plan.start()
    plan.begin_window(at, 0)
    plan.update(at, 0, frozenset({"a"}))
    assert (plan.awaits(at), plan.where(at)) == (None, "phase 2 of 2, `phases[1]`")
    plan.end_epoch(at)
    plan.begin_window(at, 1)
    assert plan.awaits(at) == LOGGED


def test_only_its_own_metric_is_heard_of() -> None:
    plan = until_then_b(patience=0)
    at = plan.start()
    for _ in range(3):
        plan.begin_window(at, at.epoch)
        plan.log_metrics(at, {"y": NAN})
        plan.end_epoch(at)
    assert (plan.trainable(at), at.unheard, at.heard) == ({"a"}, "x", {})


def test_the_last_value_of_an_epoch_counts() -> None:
    """With several validations in an epoch."""
    plan = until_then_b(patience=1)
    at = plan.start()
    for first, last in ((5, 1), (0, 0.5), (7, 0.5), (0, 9)):
        plan.begin_window(at, at.epoch)
        plan.log_metrics(at, {LOGGED: first})
        plan.begin_window(at, at.epoch)
        plan.log_metrics(at, {LOGGED: last})
        plan.end_epoch(at)
    assert at.epoch == 4
    assert (plan.trainable(at), plan.awaits(at)) == ({"b"}, None)
    assert at.phase == 1


def test_what_is_not_logged_by_the_next_batch_is_not_waited_for() -> None:
    """A value of the next epoch is the next epoch's."""
    plan = until_then_b(patience=1)
    _, at, _ = run(plan, [1, None])
    assert at.unheard == LOGGED
    plan.begin_window(at, at.epoch)
    assert at.unheard is None
    assert not plan.log_metrics(at, {LOGGED: 2})
    assert plan.trainable(at) == {"a"}
    plan.end_epoch(at)
    assert plan.trainable(at) == {"b"}


def test_a_preview_hears_nothing_and_waits_for_ever_or_for_the_most() -> None:
    assert {"".join(step.trained) for step in preview(until_then_b(), 20, 2)} == {"a"}
    assert "".join("".join(step.trained) for step in preview(until_then_b(max_epochs=2), 8, 2)) == "aaaabbbb"


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.2, NAN, math.inf])), max_size=30),
    st.integers(0, 2),
    st.integers(1, 3),
    st.none() | st.integers(0, 2),
    st.sampled_from([False, True]),
)
def test_a_position_survives_being_saved_between_any_two_calls(
    calls: list[tuple[int, float]], patience: int, least: int, more: int | None, repeat: bool
) -> None:
    """As through JSON, of which Python's knows NaN; 0 is a batch, 1 a value, 2 an epoch's end, 3 both."""
    until = Until(LOGGED, patience=patience, min_epochs=least, max_epochs=None if more is None else least + more)
    row = [Phase(["a"], until=until, ramp=3), Phase(["b"], updates=2, ramp=2), Phase(["c"], until=until, ramp=5)]
    plan, resumed = Phases(row, repeat=repeat).bind(ONE), Phases(row, repeat=repeat).bind(ONE)
    kept, saved = plan.start(), resumed.start()
    for call, value in calls:
        plain = json.loads(json.dumps(saved.as_dict()))
        saved = Position.from_dict(plain)
        assert repr(saved.as_dict()) == repr(plain)
        for one, at in ((plan, kept), (resumed, saved)):
            if call == 0:
                one.begin_window(at, at.epoch)
                one.update(at, 0, one.trains(at, 0))
            if call in (1, 3):
                one.log_metrics(at, {LOGGED: value})
            if call in (2, 3):
                one.end_epoch(at)
        assert repr(saved.as_dict()) == repr(kept.as_dict())
        assert resumed.trainable(saved) == plan.trainable(kept)
        assert resumed.lr_factors(saved) == plan.lr_factors(kept)
        assert resumed.awaits(saved) == plan.awaits(kept)


def test_a_position_of_before_metrics_can_be_read() -> None:
    plan = until_then_b()
    plain = plan.start().as_dict()
    older = {key: plain[key] for key in ("updates", "total", "epoch", "phase", "entered", "done", "epochs")}
    assert Position.from_dict(older) == plan.start()


# --- as a value, and errors ------------------------------------------------------------------------------------------


def test_it_names_its_metrics_under_their_keys() -> None:
    schedule = Phases(
        [Phase(["a"], until=Until("x")), Phases([Phase(["b"], until=Until("y"))], repeat=2), Phase(["c"])]
    )
    assert schedule.metrics() == (("phases[0].until.metric", "x"), ("phases[1].phases[0].until.metric", "y"))


def test_it_describes_itself_as_one_would_write_it() -> None:
    assert Until("x").describe() == {"metric": "x", "mode": "min", "patience": 3}
    full = Until("x", "max", 0, 0.5, 2, 7)
    described = {"metric": "x", "mode": "max", "patience": 0, "min_delta": 0.5, "min_epochs": 2, "max_epochs": 7}
    assert full.describe() == described
    assert Until(**described) == full
    assert repr(full) == "Until(metric='x', mode='max', patience=0, min_delta=0.5, min_epochs=2, max_epochs=7)"


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({"metric": ""}, "until.metric", "`metric` is '', but must be the name of a logged metric: 'val_loss'."),
        ({"metric": 3}, "until.metric", "`metric` is 3, but must be the name"),
        (
            {"mode": "maxx"},
            "until.mode",
            "`until.mode` is 'maxx', but must be one of 'min', 'max'. Did you mean 'max'?",
        ),
        ({"patience": -1}, "until.patience", "`until.patience` is -1, but must be a whole number of at least 0"),
        ({"patience": 2.6}, "until.patience", "The nearest valid value is 3."),
        ({"patience": None}, "until.patience", "`until.patience` is None"),
        ({"min_epochs": 0}, "until.min_epochs", "`until.min_epochs` is 0, but must be a whole number of at least 1"),
        ({"min_epochs": None}, "until.min_epochs", "`until.min_epochs` is None"),
        ({"max_epochs": 0}, "until.max_epochs", "`until.max_epochs` is 0, but must be a whole number of at least 1"),
        (
            {"min_epochs": 3, "max_epochs": 2},
            "until.max_epochs",
            "below `min_epochs` (3). The nearest valid value is 3.",
        ),
        ({"min_delta": -0.1}, "until.min_delta", "`until.min_delta` is -0.1, but must be a number of at least 0"),
        ({"min_delta": NAN}, "until.min_delta", "`until.min_delta` is nan"),
        ({"min_delta": "0"}, "until.min_delta", "`until.min_delta` is '0'"),
        ({"min_delta": True}, "until.min_delta", "The nearest valid value is 0."),
    ],
)
def test_an_end_that_cannot_be_is_refused(options: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Until(**{"metric": "x", **options})
    assert text in str(caught.value)
    assert caught.value.key == key


def test_an_unknown_end_is_refused_by_the_phase() -> None:
    with pytest.raises(ScheduleError, match=r"`until` is 'val_loss', but must be a mapping such as `until: {metric:"):
        Phase(["a"], until="val_loss")  # type: ignore[arg-type]
    with pytest.raises(
        ScheduleError, match=r"has two ends, `epochs: 2` and `until: Until.*Keep the one you mean \(`until"
    ):
        Phase(["a"], epochs=2, until=Until("x"))
    with pytest.raises(ScheduleError, match="has three ends"):
        Phase(["a"], updates=1, epochs=2, until=Until("x"))
