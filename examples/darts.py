"""Architecture search as in DARTS (arXiv 1806.09055): two data sets, of which each trains its own group.

A layer mixes three operations by weights of its own, the architecture. Network weights learn from the training images, the
architecture from other images, in turn, batch by batch; whichever is not trained keeps every bit. One optimizer holds
both: the schedule decides, and the training step takes the batch that fits.

Run it (it needs the extra ``demo``)::

    python examples/darts.py
    python examples/darts.py --epochs 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_freeze import FreezeScheduler, Phase, Phases
from lightning_freeze.demos import DigitsData

OPERATIONS = {
    "3x3 convolution": lambda: nn.Conv2d(12, 12, 3, padding=1),
    "1x1 convolution": lambda: nn.Conv2d(12, 12, 1),
    "average pooling": lambda: nn.AvgPool2d(3, 1, padding=1),
}


class Mixed(nn.Module):
    """A weighted sum of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = nn.ModuleList(make() for make in OPERATIONS.values())
        self.architecture = nn.Parameter(torch.zeros(len(OPERATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.architecture.softmax(0)
        return torch.relu(sum(share * operation(x) for share, operation in zip(shares, self.operations, strict=True)))


class Searched(LightningModule):
    """A small network of two mixed layers."""

    def __init__(self, freeze: FreezeScheduler) -> None:
        super().__init__()
        self.freeze_scheduler = freeze
        self.layers = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), Mixed(), nn.MaxPool2d(2), Mixed(), nn.MaxPool2d(2))
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images.unsqueeze(1)).flatten(1))

    def training_step(self, batch: dict[str, list[Tensor]], batch_idx: int) -> Tensor:
        searches = self.freeze_scheduler.will_train("architecture")
        images, labels = batch["validation" if searches else "training"]
        return cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        shares = [p for name, p in self.named_parameters() if name.endswith("architecture")]
        others = [p for name, p in self.named_parameters() if not name.endswith("architecture")]
        return torch.optim.Adam([{"params": others, "lr": 3e-3}, {"params": shares, "lr": 3e-2}])


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, int], list[str]]:
    """Search; returns the updates of each group and the operation that each layer prefers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args(arguments)

    seed_everything(1)
    in_turn = Phases([Phase(["weights"], updates=1), Phase(["architecture"], updates=1)], repeat=True)
    groups = {"architecture": "**.architecture", "weights": ["**", {"except": "**.architecture"}]}
    freeze = FreezeScheduler(in_turn, groups, rest="error")
    trainer = Trainer(
        max_epochs=options.epochs, callbacks=[freeze], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    digits = DigitsData(validation=0.5)
    digits.setup("fit")
    loaders = {"training": digits.train_dataloader(), "validation": digits.val_dataloader()}
    model = Searched(freeze)
    trainer.fit(model, loaders)

    print(f"updates {freeze.updates}; findings: {len(freeze.findings)}")
    preferred = []
    for number, layer in enumerate(layer for layer in model.layers if isinstance(layer, Mixed)):
        shares = dict(zip(OPERATIONS, layer.architecture.softmax(0).tolist(), strict=True))
        preferred.append(max(shares, key=shares.__getitem__))
        print(f"layer {number}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return freeze.updates, preferred


if __name__ == "__main__":
    main()
