"""The steps of an epoch: with what was planned, in which phase, and how long they took."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
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


# --- many steps ------------------------------------------------------------------------------------------------------


class Made:
    """The steps and the records of a run, without the run."""

    def __init__(self) -> None:
        self.records: list[Any] = [{"type": "run", "updates_before": 0}]
        self.steps, self.epoch = Steps(0, self.write), 0

    def write(self, made: Steps) -> None:
        self.records.append(json.loads(json.dumps(made.record(self.epoch))))

    def train(self, sequence: Sequence[tuple[int, frozenset[str]]], first: int, per_epoch: int = 25) -> None:
        for update, (optimizer, groups) in enumerate(sequence, start=first + 1):
            self.steps.plan([groups, groups], "")
            self.steps.add(optimizer, groups)
            if update % per_epoch == 0:
                self.write(self.steps)
                self.steps, self.epoch = Steps(update, self.write), self.epoch + 1

    def resume(self, state: Any, total: int) -> None:
        self.records.append({"type": "run", "updates_before": total})
        self.steps = Steps.from_dict(state, self.write)


def drawn(kind: str, seed: int, length: int = 60) -> list[tuple[int, frozenset[str]]]:
    chosen = random.Random(seed)
    sets = [frozenset(chosen.sample("abcdef", 3)) for _ in range(6)]
    period = [(chosen.randrange(2), chosen.choice(sets)) for _ in range(chosen.randrange(2, 8))]
    if kind == "random":
        return [(chosen.randrange(2), chosen.choice(sets)) for _ in range(length)]
    if kind == "nested":
        period = period[:3] * 3 + period[3:] * 2
    return (period * length)[:length]


@pytest.mark.parametrize("most", [6, 25, 10**6], ids=["tiny parts", "parts", "whole"])
@pytest.mark.parametrize("kind", ["random", "periodic", "nested"])
def test_a_run_that_is_interrupted_anywhere_and_resumed_has_the_very_steps(
    kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_MOST", most)
    for seed in range(3):
        sequence = drawn(kind, seed, 40)
        for stop in range(len(sequence)):
            run = Made()
            run.train(sequence[:stop], 0)
            state, epoch = json.loads(json.dumps(run.steps.as_dict())), run.epoch
            run.train(sequence[stop : stop + 2 * seed], stop)  # after the checkpoint, and lost
            run.resume(state, stop)
            run.epoch = epoch
            again = len(run.records)
            assert run.steps.number == run.steps.restored == stop - state.get("epoch_first", state["first"])
            run.train(sequence[stop:], stop)
            run.write(run.steps)
            assert steps_of(run.records) == sequence
            elsewhere = [run.records[0] | {"updates_before": stop}, *run.records[again:]]
            assert steps_of(elsewhere) == sequence[state["first"] :]


def test_a_resumed_epoch_knows_what_was_recorded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_MOST", 3)
    sequence = drawn("random", 1, 60)
    straight, resumed = Made(), Made()
    straight.train(sequence, 0, per_epoch=10**9)
    resumed.train(sequence[:50], 0, per_epoch=10**9)
    state = json.loads(json.dumps(resumed.steps.as_dict()))
    assert state["forgotten"]["steps"] > 0
    resumed.resume(state, 50)
    resumed.train(sequence[50:], 50, per_epoch=10**9)
    assert resumed.steps.number == straight.steps.number == 60
    totals = [
        sum((Counter(dict.fromkeys(groups, count)) for groups, count in each.steps.counted()), Counter())
        for each in (straight, resumed)
    ]
    assert totals[0] == totals[1]


def test_an_epoch_of_any_length_takes_little_memory_and_no_step_is_lost() -> None:
    run, chosen = Made(), random.Random(0)
    sets = [frozenset(chosen.sample("abcdefgh", 3)) for _ in range(40)]
    sequence = [(0, chosen.choice(sets)) for _ in range(20_000)]
    sizes = []
    for number in range(0, len(sequence), 500):
        run.train(sequence[number : number + 500], number, per_epoch=10**9)
        sizes.append(len(json.dumps(run.steps.as_dict())))
    assert max(sizes) < 40_000  # nothing repeats; whole it would be 300,000
    assert run.steps.number == run.steps.first + len(sequence)
    counts = Counter(group for groups, count in run.steps.counted() for group in groups for _ in range(count))
    assert counts == Counter(group for _, groups in sequence for group in groups)
    parts = len(run.records)
    run.write(run.steps)
    assert parts > 5
    assert {record.get("epoch_first", 0) for record in run.records[2:]} == {0}
    assert steps_of(run.records) == sequence


def test_many_steps_of_a_period_are_a_few_entries() -> None:
    made = Steps()
    for _ in range(20_000):
        made.add(0, BOTH)
        for _ in range(4):
            made.add(0, B)
    assert made.as_dict()["steps"] == [{"times": 19_999, "steps": [[0, 0, 1], [0, 1, 4]]}, [0, 0, 1], [0, 1, 4]]
    assert dict(made.counted()) == {BOTH: 20_000, B: 80_000}
    assert runs_of([made.record(0)]).length == 10**5


def test_the_time_and_the_largest_step_of_what_is_forgotten_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fit whose epoch is recorded in parts, and in one whose is not."""
    found = []
    for most in (1, 10**6):
        monkeypatch.setattr(steps, "_MOST", most)
        model, records = model_of("alternating"), list[Any]()
        optimizer = model.configure_optimizers()
        one, two = (name for name, _ in model.named_children())
        schedule = Phases([Phase([one, two], updates=1), Phase([one], updates=2), Phase([two], updates=1)], repeat=True)
        with FreezeController(model, schedule, record=records.append) as controller:
            controller.attach(optimizer, closures=True)
            controller.begin()
            fit(model, optimizer, controller, [None] * 11)
            controller.finish()
        counts = [record for record in records if record["type"] == "counts"][-1]
        phases = [record for record in records if record["type"] == "phase"]
        assert (len(phases) > 3) == (most == 1)
        assert sum(sum(record["seconds"]) for record in phases) == pytest.approx(counts["seconds"], abs=1e-4)
        assert counts["step_seconds"] == pytest.approx(counts["seconds"] / 11, rel=1e-3)
        found.append((steps_of(records), counts["trainable_elements"], counts["gradient_bytes"]))
    assert found[0] == found[1]
