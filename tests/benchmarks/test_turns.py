from __future__ import annotations

import pytest
import torch

from tests.benchmarks.checks import WrongTraining
from tests.benchmarks.models import TINY, batches, make, task
from tests.benchmarks.turns import Step, Turns, fit, in_turns, peak_bytes


def run_of(*times):
    return lambda: [Step(time, 2 * time) for time in times]


def test_every_second_round_goes_backwards_and_the_warm_up_is_left_out():
    order = []

    def contestant(name):
        def run():
            order.append(name)
            return run_of(9.0, 1.0, 2.0)()

        return run

    turns = in_turns({name: contestant(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert turns.runs["a"] == [[Step(1.0, 2.0), Step(2.0, 4.0)]] * 3


def test_a_ratio_is_made_within_the_round():
    runs = {"a": [run_of(1, 1, 4)(), run_of(3, 3, 3)()], "b": [run_of(2, 2, 2)(), run_of(3, 3, 3)()]}
    assert Turns(runs).row("a", "b", ("a", "b"), 1.0).samples == [0.5, 1.0]
    assert Turns(runs).row("a", "b", ("a", "b"), middle="mean").samples == [1.0, 1.0]
    assert "by the wall clock 0.750" in Turns(runs).row("a", "b", ("a", "b")).note


def test_a_peer_that_is_not_there_has_no_samples_and_the_others_go_on():
    def missing():
        import no_such_peer  # noqa: F401

    turns = in_turns({"peer": missing, "ours": run_of(1, 1)}, rounds=2, peers=["peer"])
    row = turns.row("ours", "peer", ("ours", "peer"), 1.0)
    assert (list(row.samples), row.met) == ([], None)
    assert row.note == "no_such_peer is not installed: pip install -c constraints.txt -e '.[peers]'"
    assert turns.row("ours", "ours", ("ours", "ours")).samples == [1.0, 1.0]


def failing(error):
    def run():
        raise error

    return run


def test_a_peer_that_fails_says_why():
    turns = in_turns({"peer": failing(RuntimeError("too new"))}, rounds=2, peers=["peer"])
    assert turns.failed == {"peer": "peer failed with RuntimeError: too new"}


def test_one_of_ours_that_fails_ends_all():
    with pytest.raises(RuntimeError, match="broken"):
        in_turns({"ours": failing(RuntimeError("broken"))}, rounds=1, peers=["peer"])


def test_a_peer_that_trains_the_wrong_thing_ends_all():
    with pytest.raises(WrongTraining):
        in_turns({"peer": failing(WrongTraining("moved"))}, rounds=1, peers=["peer"])


def test_a_fit_has_a_step_from_each_batch_to_the_next(capsys):
    steps = fit(task(make(TINY)), batches(TINY, 4, "cpu"), "cpu")
    assert len(steps) == 3
    assert all(step.time > 0 and step.wall > 0 for step in steps)
    assert capsys.readouterr().out == ""


def test_the_peak_has_what_lives_at_once():
    assert 4000 <= peak_bytes(lambda: torch.zeros(1000) + 0, "cpu") < 9000
