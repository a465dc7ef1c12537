"""A fit without a Trainer: a model of Lightning's in a plain loop under a `FreezeController`, an order of magnitude faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze import FreezeController


def fit(
    model: Any,
    optimizer: Optimizer,
    controller: FreezeController,
    batches: Iterable[Any],
    after: Callable[[], None] = lambda: None,
    clip: float | None = None,
) -> list[Any]:
    """Train an epoch under a controller that is attached; the epoch's findings.

    Args:
        model: A LightningModule whose ``training_step`` needs no Trainer.
        optimizer: Its optimizer, which the controller was attached to.
        controller: What decides who trains.
        batches: The epoch's batches.
        after: Called after each batch.
        clip: Clip the norm of the gradients to this.
    """
    for number, batch in enumerate(batches):
        step(model, optimizer, controller, batch, number, clip)
        after()
    return controller.end_epoch()


def step(
    model: Any,
    optimizer: Optimizer,
    controller: FreezeController,
    batch: Any,
    number: int,
    clip: float | None = None,
) -> None:
    """One batch, in the order of Lightning's automatic optimization, the closure included."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model.training_step(batch, number)
        loss.backward()
        controller.after_backward()
        controller.before_optimizer_step(optimizer, clipped=clip is not None)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return loss

    controller.begin_step()
    optimizer.step(closure)  # type: ignore[arg-type]
