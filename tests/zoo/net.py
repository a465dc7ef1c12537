"""The net that every optimizer of the zoo trains, in plain loops and under Lightning."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo.zoo import Specimen

LAYERS = ("layer1", "layer2")


class ZooNet(pl.LightningModule):
    """Two layers, and a specimen that trains them."""

    def __init__(self, specimen: Specimen) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.specimen = specimen
        width = specimen.width
        if specimen.sparse:
            self.layer1: nn.Module = nn.Embedding(width, 4, sparse=True)
            self.layer2: nn.Module = nn.Embedding(width, 4, sparse=True)
        else:
            self.layer1 = nn.Linear(width, width, bias=specimen.bias)
            self.layer2 = nn.Linear(width, width + 2, bias=specimen.bias)  # not the same shape: some count parameters
        self.automatic_optimization = specimen.steps in ("closure", "backward")

    def layer(self, name: str) -> list[nn.Parameter]:
        return list(getattr(self, name).parameters())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.specimen.sparse:
            rows = torch.arange(self.specimen.width)
            return (self.layer1(rows) * self.layer2(rows) - x[:1, :1]).square().mean()
        return nn.functional.mse_loss(self.layer2(torch.tanh(self.layer1(x))), y)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(create_graph=self.specimen.graph)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        if self.automatic_optimization:
            return self.loss(*batch)
        optimizer = self.trainer.optimizers[0]

        @torch.enable_grad()
        def closure() -> Any:
            self.zero_grad()
            loss = self.loss(*batch)
            self.manual_backward(loss)
            return (None, loss) if self.specimen.steps == "pair" else loss

        if self.specimen.steps in ("plain", "after"):
            closure()
        if self.specimen.steps == "plain":
            optimizer.step()
        else:
            optimizer.step(closure)
        return None

    def configure_optimizers(self) -> Any:
        return self.specimen.build(self)


def data(specimen: Specimen, count: int) -> DataLoader[Any]:
    """So many batches, always the same ones."""
    made = torch.Generator().manual_seed(1)
    x, y = (torch.randn(count * 4, specimen.width + more, generator=made) for more in (0, 2))
    return DataLoader(TensorDataset(x, y), batch_size=4)
