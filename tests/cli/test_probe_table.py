"""The table of the probe is measured: it says of torch's optimizers what ``examples/drift.py`` found, and of planted ones what they do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, SparseAdam

from lightning_freeze.cli import probe_table
from lightning_freeze.cli.probe_table import NONE, OFF, OURS, RATE, STALE, WAYS, ZEROS, Cell, Recipe, Row, measure
from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.plan.membership import Step
from lightning_freeze.probe.trial import ALL, FROZEN
from tests.test_layout import knows_torch_or_lightning

ADAM = ("exp_avg", "exp_avg_sq", "step")


def outcomes(row: Row) -> dict[str, str]:
    return {way: cell.outcome for way, cell in row.cells.items()}


# Recipe, what moves by zero gradients, the state that they move, the state that lr=0 moves; by `test_drift.py`.
KNOWN: dict[str, tuple[Recipe, bool, tuple[str, ...], tuple[str, ...]]] = {
    "SGD": (Recipe(SGD), False, (), ()),
    "momentum": (Recipe(SGD, {"momentum": 0.9}), True, ("momentum_buffer",), ("momentum_buffer",)),
    "decay": (Recipe(SGD, {"weight_decay": 0.01}), True, (), ()),
    "Adam": (Recipe(Adam), True, ADAM, ADAM),
    "AdamW": (Recipe(AdamW), True, ADAM, ADAM),
    "RMSprop": (Recipe(RMSprop), False, ("square_avg", "step"), ("square_avg", "step")),
    "Adagrad": (Recipe(Adagrad), False, ("step",), ("step", "sum")),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_torchs_optimizers_do(name: str) -> None:
    recipe, moves, by_zeros, by_rate = KNOWN[name]
    row = measure(recipe)
    assert row.why == ""
    assert tuple(row.cells) == WAYS
    zeros = row.cells[ZEROS]
    assert (zeros.outcome == "moved", zeros.state) == (moves, by_zeros)
    assert (zeros.share > 0) is moves
    assert row.cells[NONE] == Cell("held", 0.0)
    assert row.cells[OURS] == Cell("held", 0.0, (), "None")
    assert row.cells[RATE] == Cell("state moved" if by_rate else "held", 0.0, by_rate)
    for way in (OFF, STALE):
        assert row.cells[way].outcome == "moved"
        assert row.cells[way].share > 0.5, "a gradient that stays pushes every time"
    assert row.traits.skips_none


def test_how_far_is_a_share_of_what_trained() -> None:
    """Weight decay alone, of zero gradients: each step takes the weight by 1 - lr * decay; the rest is the oracle's."""
    lr, decay, steps = 0.1, 0.5, 4
    recipe = Recipe(SGD, {"lr": lr, "weight_decay": decay})
    run = probe_table._Run(recipe, way=ZEROS)
    run.run(ALL, probe_table.WARM_UP)
    before, trained = run.frozen.detach().clone(), run.trained.detach().clone()
    run.run(ALL - {FROZEN}, steps)
    torch.testing.assert_close(run.frozen.detach(), before * (1 - lr * decay) ** steps)
    share = before.norm() * (1 - (1 - lr * decay) ** steps) / (run.trained.detach() - trained).norm()
    assert measure(recipe, steps).cells[ZEROS].share == pytest.approx(float(share), rel=1e-5)


def test_lbfgs_moves_by_every_way_and_is_refused() -> None:
    row = measure(Recipe(LBFGS), steps=2)
    assert outcomes(row) == {**dict.fromkeys(WAYS, "moved"), RATE: "raised", OURS: "refused"}
    assert "LBFGS doesn't support per-parameter options" in row.cells[RATE].says
    assert "Use another optimizer for the groups that freeze" in row.cells[OURS].says


def test_one_that_takes_sparse_gradients_alone() -> None:
    row = measure(Recipe(SparseAdam))
    assert outcomes(row)[NONE] == outcomes(row)[OURS] == "held"
    assert row.cells[ZEROS] == Cell("state moved", 0.0, ("step",))
    assert row.cells[STALE].outcome == "moved"


# --- planted ones ---------------------------------------------------------------------------------------------------


class Planted(SGD):
    """SGD, with something planted."""

    def each(self) -> list[torch.nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]


class ZerosForNone(Planted):
    """As several Muons do, of whose momentum None is no end."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in self.each():
            momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            momentum.mul_(0.9).add_(torch.zeros_like(p) if p.grad is None else p.grad)
            p.sub_(momentum, alpha=0.01)


class Crashes(Planted):
    def step(self, closure: Any = None) -> Any:
        if any(p.grad is None for p in self.each()):
            raise KeyError("exp_avg")
        return super().step(closure)


class Always(Planted):
    def step(self, closure: Any = None) -> Any:
        raise ZeroDivisionError("of every step")


class Talks(Planted):
    def step(self, closure: Any = None) -> Any:
        print("a step")
        random.random()
        torch.rand(())
        return super().step(closure)


class Twice(Planted):
    """A second derivative, for which backward must leave a graph."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            grads = {p: p.grad for p in self.each() if p.grad is not None}
            seconds = torch.autograd.grad([g.sum() for g in grads.values()], list(grads))
        with torch.no_grad():
            for p, second in zip(grads, seconds, strict=True):
                p -= 0.001 * second


class Still(Planted):
    def step(self, closure: Any = None) -> None:
        pass


class OfAModel(SGD):
    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        super().__init__(model.parameters(), lr=lr)


class Around(Optimizer):
    """A wrapper whose slow weights come back every other step, as Lookahead's do."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.count = optimizer, 0
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> Any:
        self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            fast = [p for group in self.param_groups for p in group["params"]]
            for slow, p in zip(self.slow, fast, strict=True):
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)


class AsksForMuon(SGD):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        params = list(params)
        if not all(isinstance(group, dict) and "use_muon" in group for group in params):
            raise ValueError("`use_muon` must be set.")
        super().__init__(params, lr=lr)


def test_zeros_for_none_are_seen_and_left_out() -> None:
    row = measure(Recipe(ZerosForNone))
    assert row.cells[NONE].outcome == "moved"
    assert row.cells[NONE].state == ("momentum_buffer",)
    assert row.cells[OURS] == Cell("held", 0.0, (), "excluded")
    assert row.traits.skips_none is False


def test_a_crash_is_a_cell() -> None:
    row = measure(Recipe(Crashes))
    assert row.cells[NONE] == Cell("raised", says="KeyError: 'exp_avg'")
    assert row.cells[ZEROS].outcome == "held"
    assert row.cells[OURS] == Cell("held", 0.0, (), "excluded")


def test_one_that_never_steps() -> None:
    row = measure(Recipe(Always))
    assert row.why == "could not be stepped: ZeroDivisionError: of every step"
    assert row.cells == {}


def test_one_that_cannot_be_built() -> None:
    row = measure(Recipe(SGD, {"lr": -1.0}))
    assert row.why == "could not be built: ValueError: Invalid learning rate: -1.0"


def test_where_nothing_trains_nothing_is_said_to_hold() -> None:
    row = measure(Recipe(Still))
    assert set(outcomes(row).values()) == {"unknown"}
    assert row.cells[NONE].says == "the trained weight did not move either"


def test_no_trace_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    assert measure(Recipe(Talks)).cells[NONE].outcome == "held"
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert capsys.readouterr() == ("", "")


def test_it_says_the_same_again() -> None:
    assert measure(Recipe(AdamW)) == measure(Recipe(AdamW))


def test_second_derivatives_get_their_graph() -> None:
    row = measure(Recipe(Twice))
    assert outcomes(row)[NONE] == outcomes(row)[OURS] == "held"
    assert row.cells[ZEROS].says.startswith("RuntimeError: element 0 of tensors does not require grad")


def test_what_is_asked_for_is_put_in() -> None:
    assert Recipe(OfAModel).name == "OfAModel(lr=0.01)"
    row = measure(Recipe(OfAModel))
    assert outcomes(row)[STALE] == "moved"
    assert outcomes(row)[RATE] == "unknown", "it makes one param group, whose rate is everybody's"
    assert measure(Recipe(Around)).cells[NONE].outcome == "moved"
    assert measure(Recipe(AsksForMuon)).why == ""


# --- the proof that it can fail -------------------------------------------------------------------------------------


def test_a_gate_that_does_not_hold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of zero in the place of None, as a broken gate would leave."""

    def zeros(self: SetGradsToNone, step: Step) -> None:
        for parameter in step.frozen:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(SetGradsToNone, "before_step", zeros)
    monkeypatch.setattr(probe_table, "probe_optimizer", lambda optimizer: None)  # which would find out, too
    monkeypatch.setattr("lightning_freeze.setup.probe_optimizer", lambda *_: TRUSTED)
    cell = measure(Recipe(AdamW)).cells[OURS]
    assert (cell.outcome, cell.state) == ("moved", ADAM)


TRUSTED = probe_table.OptimizerTraits("AdamW", True, True, True, True, steps_in_backward=False)


def test_the_measuring_knows_no_lightning() -> None:
    assert knows_torch_or_lightning(Path(probe_table.__file__)) == {"torch"}
