"""Reentrant checkpointing above a frozen bottom: without a fix, what trains there gets no gradient."""

from __future__ import annotations

import functools
import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from lightning_freeze.holds.checkpointing import ReentrantInputs


class Model(nn.Module):
    """Three layers, the upper two checkpointed, each in another of the ways in which that is written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = torch.tanh(checkpoint(self.written(layer), x, use_reentrant=True))
        return x

    def written(self, layer: nn.Module) -> Any:
        if self.how == "closure":
            return lambda x: layer(x)
        if self.how == "beyond":  # what it closes over is frozen, what it takes from elsewhere is not
            frozen, held = nn.Identity(), {"layer": layer}
            return lambda x: frozen(held["layer"](x))
        return {"module": layer, "method": layer.__call__, "partial": functools.partial(layer.__call__)}[self.how]


def gradients(how: str, frozen: int, fix: bool) -> tuple[list[Tensor | None], list[str]]:
    """Each layer's gradient with so many bottom layers frozen, and what was said."""
    model, said = Model(how), []
    for layer in model.layers[:frozen]:
        layer.requires_grad_(False)
    hold = ReentrantInputs(lambda: fix, said.append)
    hold.attach()
    try:
        loss = model(torch.ones(1, 2)).sum()
    finally:
        hold.detach()
    if loss.requires_grad:
        loss.backward()
    return [layer.weight.grad for layer in model.layers], said


@pytest.mark.parametrize("how", ["module", "method", "partial", "closure", "beyond"])
@pytest.mark.parametrize("frozen", [1, 2])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # what torch says where nothing is fixed
def test_what_trains_gets_the_gradient_that_it_has_without_freezing(how: str, frozen: int) -> None:
    expected, _ = gradients(how, 0, fix=False)
    without, _ = gradients(how, frozen, fix=False)
    assert without == [None, None, None], "torch's limitation is gone: so can be the fix"
    found, said = gradients(how, frozen, fix=True)
    for number, (gradient, before) in enumerate(zip(found, expected, strict=True)):
        assert before is not None
        assert gradient is None if number < frozen else gradient is not None and torch.equal(gradient, before)
    assert len(said) == 1
    assert "reentrant checkpointing" in said[0]
    assert "`use_reentrant=False`" in said[0]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_segment_without_anything_to_train_is_left_alone() -> None:
    found, said = gradients("module", 3, fix=True)
    assert found == [None, None, None]
    assert said == []


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_an_input_without_a_gradient_to_require_is_said() -> None:
    table, said = nn.Embedding(3, 2), []
    hold = ReentrantInputs(lambda: True, said.append)
    hold.attach()
    checkpoint(table, torch.tensor([1]), use_reentrant=True)
    hold.detach()
    assert "has no floating-point input" in said[0]


def test_of_several_inputs_one_is_enough() -> None:
    """A mask that required a gradient would send attention to other kernels."""
    layer, seen = nn.Linear(2, 2), []

    def segment(mask: Tensor, number: int, x: Tensor) -> Tensor:
        seen.append((x.requires_grad, mask.requires_grad))
        return layer(x) * number + mask

    hold = ReentrantInputs(lambda: True, lambda _: None)
    hold.attach()
    checkpoint(segment, torch.zeros(2), 3, torch.ones(2, 2), use_reentrant=True).sum().backward()
    hold.detach()
    assert seen == [(True, False)] * 2, "in forward, and again in backward"
    assert layer.weight.grad is not None


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_a_frozen_module_reaches_beside_its_own_trains_on() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Linear(2, 2).requires_grad_(False)
            self.shared = [nn.Parameter(torch.ones(2))]  # registered elsewhere

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x) * self.shared[0]

    module = Shares()
    hold = ReentrantInputs(lambda: True, lambda _: None)
    hold.attach()
    checkpoint(module, torch.ones(1, 2), use_reentrant=True).sum().backward()
    hold.detach()
    assert module.shared[0].grad is not None


def test_afterwards_it_is_as_it_was() -> None:
    hold = ReentrantInputs(lambda: True, print)
    before = CheckpointFunction.apply
    hold.attach()
    hold.attach()
    assert CheckpointFunction.apply is not before
    hold.detach()
    hold.detach()
    assert "apply" not in vars(CheckpointFunction)


@pytest.mark.parametrize("first_out", [0, 1])
def test_of_two_the_other_stays(first_out: int) -> None:
    """In whichever order they are detached."""
    both = [ReentrantInputs(lambda: True, lambda _: None) for _ in range(2)]
    for each in both:
        each.attach()
    held = CheckpointFunction.apply
    both.pop(first_out).detach()
    assert CheckpointFunction.apply is held
    both.pop().detach()
    assert "apply" not in vars(CheckpointFunction)


def test_one_that_is_never_detached_ends_with_its_run() -> None:
    forgotten = ReentrantInputs(lambda: True, lambda _: None)
    forgotten.attach()
    del forgotten
    gc.collect()
    assert "apply" not in vars(CheckpointFunction)


def test_one_comes_while_another_is_collected() -> None:
    """A collection may begin anywhere, also while the new one is added."""
    forgotten: list[Any] = [ReentrantInputs(lambda: True, lambda _: None)]
    forgotten[0].attach()
    forgotten.append(forgotten)
    new = ReentrantInputs(lambda: True, lambda _: None)
    shared = new._patch
    others = shared._others
    del forgotten
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "_others", lambda user: (gc.collect(), others(user))[1])
        new.attach()
    assert trains_above_a_frozen_bottom()
    new.detach()
    assert "apply" not in vars(CheckpointFunction)


def trains_above_a_frozen_bottom() -> bool:
    layer = nn.Linear(2, 2)
    loss = checkpoint(layer, torch.ones(1, 2), use_reentrant=True).sum()
    if loss.requires_grad:
        loss.backward()
    return layer.weight.grad is not None


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_somebody_else_put_over_it_stays_and_nothing_of_ours_is_left_in_the_end() -> None:
    first, second, third = (ReentrantInputs(lambda: True, lambda _: None) for _ in range(3))
    first.attach()
    ours = CheckpointFunction.apply
    theirs = staticmethod(lambda *arguments: ours(*arguments))
    CheckpointFunction.apply = theirs  # type: ignore[method-assign,assignment]
    first.detach()
    assert vars(CheckpointFunction)["apply"] is theirs
    assert not trains_above_a_frozen_bottom()
    second.attach()
    assert trains_above_a_frozen_bottom()
    second.detach()
    assert vars(CheckpointFunction)["apply"] is theirs
    CheckpointFunction.apply = ours  # type: ignore[method-assign]
    third.attach()
    assert trains_above_a_frozen_bottom()
    third.detach()
    assert "apply" not in vars(CheckpointFunction)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_somebody_else_removed_is_installed_again_with_the_next() -> None:
    first, second = (ReentrantInputs(lambda: True, lambda _: None) for _ in range(2))
    first.attach()
    del CheckpointFunction.apply
    assert not trains_above_a_frozen_bottom()
    second.attach()
    assert trains_above_a_frozen_bottom()
    first.detach()
    second.detach()
    assert "apply" not in vars(CheckpointFunction)


def test_of_two_runs_only_one_that_holds_something_speaks() -> None:
    said: list[str] = []
    holds, fully_frozen = ReentrantInputs(lambda: True, said.append), ReentrantInputs(lambda: False, said.append)
    for each in (holds, fully_frozen):
        each.attach()
    assert trains_above_a_frozen_bottom()
    for each in (holds, fully_frozen):
        each.detach()
    assert len(said) == 1


def test_runs_of_other_threads_come_and_go() -> None:
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            other = ReentrantInputs(lambda: False, lambda _: None)
            other.attach()
            other.detach()

    held = ReentrantInputs(lambda: True, lambda _: None)
    held.attach()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(trains_above_a_frozen_bottom() for _ in range(200))
    finally:
        done.set()
        thread.join()
        held.detach()
    assert "apply" not in vars(CheckpointFunction)
