"""The steps of an epoch: with what was planned, in which phase, and how long they took."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_freeze import FreezeController, Phase, Phases
from lightning_freeze.report import steps
from lightning_freeze.report.steps import StepKind, Steps, runs_of, steps_of
from tests.loop import fit
from tests.recipes import model_of

A, B, BOTH = frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})


def decoded(made: Steps, epoch: int = 0) -> list[tuple[StepKind, int]]:
    return [*runs_of([json.loads(json.dumps(made.record(epoch)))])]


def test_what_was_planned_and_where_comes_back() -> None:
    made = Steps()
    made.plan([BOTH, B], "phases[0]", {"a": 0.5})
    made.add(0, A)
    made.add(1, B)
    made.plan([A, B], "phases[1]")
    made.add(0, A)
    made.add(0, A)
    assert decoded(made, epoch=3) == [
        (StepKind(0, A, BOTH, "phases[0]", epoch=3), 1),
        (StepKind(1, B, B, "phases[0]", epoch=3), 1),
        (StepKind(0, A, A, "phases[1]", epoch=3), 2),
    ]
    assert [kind.lr_factors for kind, _ in decoded(made)] == [{"a": 0.5}, {"a": 0.5}, {}]


def test_the_time_of_a_batch_counts_to_the_step_that_it_ended_in(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 5.0, 100.0, 104.0])
    monkeypatch.setattr(steps, "perf_counter", lambda: next(now))
    made = Steps()
    made.begin_batch()
    made.add(0, A)
    made.begin_batch()
    made.add(0, B)
    made.pause()  # a validation of 95 seconds
    made.begin_batch()
    made.add(0, B)
    made.pause()
    assert made.record(0)["seconds"] == [2.0, 7.0]
    assert made.seconds == 9.0


def test_batches_that_accumulate_count_to_the_step_that_they_end_in(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 100.0, 116.0])
    monkeypatch.setattr(steps, "perf_counter", lambda: next(now))
    made = Steps()
    for stepped in (False, A, False):
        made.begin_batch()
        if stepped:
            made.add(0, A)
    made.begin_batch()
    made.pause()  # a validation of 85 seconds within the window
    made.begin_batch()
    made.add(0, B)
    made.pause()
    assert made.record(0)["seconds"] == [3.0, 28.0]


def test_entries_that_repeat_are_written_out() -> None:
    record = {"type": "phase", "first": 0, "sets": [["a"], ["b"]], "epoch": 0}
    record["steps"] = [{"times": 2, "steps": [[0, 0, 2], {"times": 3, "steps": [[0, 1, 1]]}]}, [0, 0, 1]]
    assert [groups for _, groups in steps_of([record])] == [A, A, B, B, B] * 2 + [A]


def test_a_run_is_recorded_with_its_phases() -> None:
    model, records = model_of("alternating"), list[Any]()
    optimizer = model.configure_optimizers()
    one, two = (name for name, _ in model.named_children())
    schedule = Phases([Phase([one], updates=1, lr={one: 0.1}), Phase([two], updates=2)], repeat=True)
    with FreezeController(model, schedule, record=records.append) as controller:
        controller.attach(optimizer, closures=True)
        controller.begin()
        fit(model, optimizer, controller, [None] * 6)
        controller.finish()
    run, phase, counts = records
    assert len(run["run"]) == 12
    assert {record["run"] for record in records} == {run["run"]}
    assert phase["places"] == ["phases[0]", "phases[1]"]
    assert phase["lr_factors"] == [{one: 0.1}, {}]
    assert phase["planned"] == [None, None]
    assert sum(phase["seconds"]) == pytest.approx(counts["seconds"], abs=1e-5)
    assert counts["seconds"] > 0
    assert counts["step_seconds"] == pytest.approx(counts["seconds"] / 6, rel=1e-3)
    sizes = run["groups"]
    assert counts["trainable_elements"] == pytest.approx((2 * sizes[one]["elements"] + 4 * sizes[two]["elements"]) / 6)
    assert counts["gradient_bytes"] == max(size["bytes"] for size in sizes.values())
    rate = optimizer.param_groups[0]["lr"]
    assert counts["lr"] == {one: pytest.approx(rate * 0.1), two: rate}
    held = sum(
        v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if hasattr(v, "numel")
    )
    assert counts["state_bytes"] == held


def test_what_was_planned_of_a_step_is_of_its_optimizer() -> None:
    run = {
        "type": "run",
        "updates_before": 0,
        "optimizers": [{"name": "A", "groups": ["g"]}, {"name": "B", "groups": ["d", "e"]}],
    }
    sets = {"sets": [["g"], ["d"]], "planned": [["g", "d"], ["g", "d", "e"]]}
    phase = {"type": "phase", "first": 0, **sets, "steps": [[0, 0, 1], [1, 1, 1]]}
    kinds = [kind for kind, _ in runs_of([run, phase])]
    assert [kind.planned for kind in kinds] == [{"g"}, {"d", "e"}]
    assert [kind.planned for kind, _ in runs_of([phase])] == [
        {"g", "d"},
        {"g", "d", "e"},
    ]  # by whom it is held is not known
