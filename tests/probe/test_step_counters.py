"""What step counters of a param group do to the first update after an interval, and after a reset."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_freeze import AlternatingFreeze, FreezeController, Phase, Phases
from lightning_freeze.probe.step_counters import first_update, supports_state_reset
from tests.conftest import Net, batches
from tests.probe.planted_optimizers import WAYS, BeginsAtOnce, GroupCounter


class StepsNever(SGD):
    def step(self, closure: Any = None) -> Any:
        raise LookupError("not without my data")


def really(make: Any, before: int, length: int) -> float:
    """The same without clones, over one parameter of many elements with one gradient throughout."""
    sizes = []
    for frozen in (0, length):
        a, b = nn.Parameter(torch.ones(50)), nn.Parameter(torch.ones(50))
        optimizer: Optimizer = make([a, b])
        gradient = torch.linspace(0.5, 1.5, 50)
        for step in range(before + frozen + 1):
            b.grad = gradient.clone()
            a.grad = gradient.clone() if step < before or step == before + frozen else None
            old = a.detach().clone()
            optimizer.step()
        sizes.append(float(torch.linalg.vector_norm(a.detach() - old)))
    return sizes[1] / sizes[0]


@pytest.mark.parametrize(("before", "length"), [(0, 1), (0, 9), (0, 50), (5, 50), (40, 9)])
def test_it_is_what_really_happens(before: int, length: int) -> None:
    predicted = first_update(GroupCounter([nn.Parameter(torch.ones(50))]), before, length)
    assert predicted is not None
    assert predicted == pytest.approx(really(GroupCounter, before, length), rel=0.35)  # gradients differ
    assert abs(predicted - 1) > 0.05


def test_an_interval_longer_than_is_run_is_extrapolated() -> None:
    grouped = GroupCounter([nn.Parameter(torch.ones(50))])
    predicted = [first_update(grouped, 0, length) for length in (200, 3000)]
    real = [really(GroupCounter, 0, length) for length in (200, 3000)]
    assert predicted == pytest.approx(real, rel=0.05)
    assert predicted[0] != pytest.approx(predicted[1], rel=0.05)


@pytest.mark.parametrize("make", [AdamW, lambda p: SGD(p, lr=0.1, momentum=0.9)])
def test_one_that_counts_for_each_parameter_is_as_if_there_were_none(make: Any) -> None:
    assert first_update(make([nn.Parameter(torch.ones(50))]), 3, 60) == 1.0


def test_of_one_that_cannot_be_run_nothing_is_known() -> None:
    assert first_update(WAYS["locked"][0](Net()), 3, 60) is None


def test_a_run_is_warned_with_the_group_the_interval_and_the_effect(trainer: Any) -> None:
    model = Net(lambda m: GroupCounter(m.parameters(), lr=0.01))
    expected = first_update(GroupCounter(Net().parameters(), lr=0.01), 1, 9, closure=True)
    with pytest.warns(UserWarning, match=r"counts step for a whole param group") as caught:
        trainer(AlternatingFreeze("layer1", "layer2", every=10), limit_train_batches=12).fit(model, batches(12))
    (said,) = [str(w.message) for w in caught if "param group" in str(w.message)]
    assert "optimizer 0 (GroupCounter)" in said
    assert "(`slow`, frozen for 9 updates after 1 of its own)" in said
    assert f"the first update is {expected:.2f} times as large" in said
    assert "`ramp`" in said


def test_nothing_is_said_where_nothing_thaws_or_nothing_runs_on() -> None:
    for optimizer, schedule in (
        (GroupCounter, Phases([Phase(["layer1", "layer2"], updates=3), Phase(["layer2"])])),
        (AdamW, Phases([Phase(["layer2"], updates=3), Phase(["layer1", "layer2"])])),
    ):
        model = Net()
        controller = FreezeController(model, schedule)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            controller.attach(optimizer(model.parameters()))
            controller.begin()
        controller.detach()


def test_epochs_count_where_their_length_is_known() -> None:
    model = Net()
    controller = FreezeController(model, Phases([Phase(["layer2"], epochs=2), Phase(["layer1", "layer2"])]))
    controller.attach(GroupCounter(model.parameters()))
    with pytest.warns(UserWarning, match=r"`layer1`, frozen for 14 updates after 0 of its own"):
        controller.begin(windows_per_epoch=7)
    controller.detach()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (AdamW, None),
        (lambda p: SGD(p, lr=0.0, momentum=0.9), None),
        (GroupCounter, "its first update is not that of a new optimizer: it keeps a step counter or an average"),
        (BeginsAtOnce, "KeyError: 'average'"),
        (StepsNever, None),  # nothing is known
    ],
)
def test_what_a_reset_does_to_the_first_update(make: Any, reason: str | None) -> None:
    optimizer = make([nn.Parameter(torch.ones(3, 2))])
    state = torch.get_rng_state()
    found = supports_state_reset(optimizer, optimizer.param_groups[0])
    assert found is reason or str(found).startswith(str(reason))
    assert torch.equal(state, torch.get_rng_state())
