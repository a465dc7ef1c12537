"""The benchmark of the hooks measures what it says; how fast they are is for `python -m tests.benchmarks` to say."""

from __future__ import annotations

import json

import pytest

from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.holds.step_hooks import StepHooks
from tests.benchmarks.__main__ import detail_table, hooks_table
from tests.benchmarks.hooks import GATE_HOOKS, Clock, measure


@pytest.fixture(scope="module")
def result():
    originals = [*(getattr(StepHooks, name) for name in GATE_HOOKS), WeightAudit.thaw, WeightAudit.freeze]
    measured = measure(steps=12, warm_up=2, blocks=4, each=3)
    assert [*(getattr(StepHooks, name) for name in GATE_HOOKS), WeightAudit.thaw, WeightAudit.freeze] == originals
    return measured


def test_each_case_has_its_numbers(result):
    sizes = [(case["groups"], case["parameters"], case["steps"]) for case in result["cases"]]
    assert sizes == [(2, 2, 58), (4, 12, 10), (4, 12, 10)]
    for case in result["cases"]:
        for key in ("hooks_us", "boundary_us", "bare_step_us", "sgd_step_us"):
            assert 0 < case[key]["p10"] <= case[key]["median"] <= case[key]["p90"], key


def test_each_hook_of_a_step_is_heard(result):
    expected = {
        "on_train_batch_start",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
    }
    expected |= {f"StepHooks.{name}" for name in GATE_HOOKS}
    assert all(set(case["by_hook_us"]) == expected for case in result["cases"])


def test_boundaries_are_those_of_the_schedule(result):
    # `every=5` freezes or thaws twice in 5 steps; the halves change over every 5, and once at the beginning.
    assert [case["boundary_us"]["count"] for case in result["cases"][:2]] == [24, 3]


def test_it_is_json_and_fits_the_tables(result):
    assert json.loads(json.dumps(result)) == result
    assert hooks_table(result).row_count == 3
    assert detail_table(result).row_count > 18


def test_nested_calls_are_counted_once(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr("tests.benchmarks.hooks.time.perf_counter", lambda: next(now))
    clock = Clock()
    inner = clock.wrap(lambda: None, "inner", "boundary")
    clock.wrap(inner, "outer")()
    clock.next_step()
    assert clock.steps == [{"outer": 3.0}]
    assert clock.boundaries == [3.0]
