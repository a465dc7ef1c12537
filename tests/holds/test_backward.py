"""While backward is skipped, what is frozen has ``requires_grad=False``, and gets back what it had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_freeze.holds.backward import SkipBackward


def test_what_is_lazy_is_frozen_too() -> None:
    layer = nn.LazyLinear(2)
    skip = SkipBackward()
    skip.turn_off(layer.parameters())
    layer(torch.ones(1, 3)).sum()
    assert not layer.weight.requires_grad
    skip.pause()
    assert layer.weight.requires_grad


def test_what_freezes_gives_up_its_gradient_and_gets_none() -> None:
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    skip = SkipBackward()
    skip.turn_off([layer.weight])
    assert skip.held
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is None
    skip.turn_on([layer.weight])
    assert not skip.held
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None


def test_what_the_user_has_frozen_stays_so() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    skip = SkipBackward()
    skip.turn_off(layer.parameters())
    skip.turn_on(layer.parameters())
    skip.pause()
    assert [p.requires_grad for p in layer.parameters()] == [True, False]


def test_what_toggling_restores_to_the_held_value_trains_from_the_next_batch_on() -> None:
    """`untoggle_optimizer` in a helper writes back what it found before the step that ended the set."""
    first, second, user_s = (nn.Parameter(torch.ones(1)) for _ in range(3))
    skip = SkipBackward(manual=True)
    skip.active = True
    skip.turn_off([first, second])  # a batch begins
    found = first.requires_grad, second.requires_grad
    skip.turn_on([first, second])  # a step ends the set
    first.requires_grad, second.requires_grad = found  # what toggled restores it
    skip.turn_off([second])
    skip.before_forward()  # the next batch
    assert first.requires_grad
    assert not second.requires_grad
    user_s.requires_grad = False
    first.requires_grad = False  # between batches: the user's own
    skip.detach()
    assert [p.requires_grad for p in (first, second, user_s)] == [False, True, False]


@pytest.mark.parametrize("turns", ["off", "on"])
def test_an_interrupt_in_the_midst_leaves_nothing_turned_off(turns: str) -> None:
    class Interrupts(nn.Parameter):
        armed = False

        def __setattr__(self, name: str, value: object) -> None:
            if self.armed and name == "requires_grad":
                Interrupts.armed = False
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    parameters = [nn.Parameter(torch.ones(1)), Interrupts(torch.ones(1)), nn.Parameter(torch.ones(1))]
    skip = SkipBackward()
    skip.active = True
    if turns == "on":
        skip.turn_off(parameters)
    Interrupts.armed = True
    with pytest.raises(KeyboardInterrupt):
        (skip.turn_off if turns == "off" else skip.turn_on)(parameters)
    skip.detach()
    assert [parameter.requires_grad for parameter in parameters] == [True] * 3
