"""A run under the callback equals, bit for bit, a plain PyTorch loop that sets the same gradients to None by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_freeze import AlternatingFreeze
from tests.conftest import Net, batches
from tests.observer import same

EVERY = 3
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
}


def manual_optimization(
    make: Any, count: int, accumulate: int, clip: float | None
) -> tuple[Net, torch.optim.Optimizer]:
    model = Net(make)
    optimizer = make(model)
    step = 0
    for number, batch in enumerate(batches(count)):
        if number % accumulate == 0:
            optimizer.zero_grad()
        (model.training_step(batch, number) / accumulate).backward()  # type: ignore[operator]
        if (number + 1) % accumulate == 0 or number + 1 == count:
            if step % EVERY:
                model.layer1.weight.grad = None
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            step += 1
    return model, optimizer


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize(("accumulate", "count"), [(1, 10), (3, 30), (3, 32)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("skip", ["auto", False])
def test_callback_equals_hand_written_loop(
    skip: Any, name: str, accumulate: int, count: int, clip: float | None, trainer: Any
) -> None:
    make = OPTIMIZERS[name]
    expected, expected_optimizer = manual_optimization(make, count, accumulate, clip)
    model = Net(make)
    fit = trainer(
        AlternatingFreeze("layer1", "layer2", every=EVERY, skip_backward=skip),
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    fit.fit(model, batches(count))
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert same(fit.optimizers[0].state_dict(), expected_optimizer.state_dict())


def test_clipping_sees_only_what_trains(trainer: Any) -> None:
    """With the frozen gradient in the norm, the active one would be clipped further: the two runs would differ."""
    expected, _ = manual_optimization(OPTIMIZERS["sgd"], 4, 1, 0.2)
    model = Net(OPTIMIZERS["sgd"])
    # Nulled after clipping instead, as a last-moment guard alone would do.
    optimizer = OPTIMIZERS["sgd"](model)
    for number, batch in enumerate(batches(4)):
        optimizer.zero_grad()
        model.training_step(batch, number).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        if number % EVERY:
            model.layer1.weight.grad = None
        optimizer.step()
    assert not same(dict(model.state_dict()), dict(expected.state_dict()))
