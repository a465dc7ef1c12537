"""A fit without a Trainer: a model of Lightning's in a plain loop under a `FreezeController`, an order of magnitude faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze import FreezeController


def fit(
    model: Any,
    optimizer: Optimizer,
    controller: FreezeController,
    batches: Iterable[Any],
    after: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Train an epoch under a controller that is attached; the epoch's findings.

    Args:
        model: A LightningModule whose ``training_step`` needs no Trainer.
        optimizer: Its optimizer, which the controller was attached to.
        controller: What decides who trains.
        batches: The epoch's batches.
        after: Called after each batch.
    """
    for number, batch in enumerate(batches):
        step(model, optimizer, controller, batch, number)
        after()
    return controller.end_epoch()


def step(
    model: Any,
    optimizer: Optimizer,
    controller: FreezeController,
    batch: Any,
    number: int,
) -> None:
    """One batch, in the order of Lightning's automatic optimization, the closure included."""

    def closure() -> Tensor:
        loss: Tensor = model.training_step(batch, number)
        optimizer.zero_grad()
        loss.backward()
        controller.after_backward()
        controller.before_optimizer_step(optimizer, clipped=False)
        return loss

    controller.begin_step()
    optimizer.step(closure)  # type: ignore[arg-type]
