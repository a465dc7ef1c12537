"""Who moved, seen by an observer of the tests' own: bits are compared, not values."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer


class Snapshots(pl.Callback):
    """The bits of one weight and its optimizer state before the first batch and after each.

    Args:
        layer: The layer whose ``weight`` is watched.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.values: list[bytes] = []
        self.states: list[Any] = []

    def take(self, module: Any, optimizer: Optimizer) -> None:
        """Take one now; a Trainer does so by itself."""
        weight = getattr(module, self.layer).weight
        self.values.append(weight.detach().view(torch.uint8).numpy().tobytes())
        self.states.append(copy.deepcopy(dict(optimizer.state.get(weight, {}))))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.take(pl_module, trainer.optimizers[0])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        self.take(pl_module, trainer.optimizers[0])

    def moved(self) -> list[bool]:
        """Whether the weight moved in each batch."""
        return [a != b for a, b in pairwise(self.values)]

    def states_moved(self) -> list[bool]:
        """Whether its optimizer state moved in each batch."""
        return [not same(a, b) for a, b in pairwise(self.states)]


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    return type(a) is type(b) and a == b
