"""Alternating updates on handwritten digits: weight1 is updated with the first of every five updates of weight2.

First the plan is printed, then the model is fitted, and at its end a table says how often each group was updated and whether
every frozen interval kept its bits. The same run from YAML, by the command line, is ``configs/alternating.yaml``.

Run it (it needs the extra ``demo``)::

    python examples/alternating.py
    python examples/alternating.py --every 10 --picture alternating.png
    lightning-freeze plan --config configs/alternating.yaml --epochs 1
    lightning-freeze fit --config configs/alternating.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional

from lightning_freeze import AlternatingFreeze, preview_run
from lightning_freeze.demos import DigitsData


class TwoLayers(LightningModule):
    """Two linear layers with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1 = nn.Linear(64, 32, bias=False)
        self.weight2 = nn.Linear(32, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.weight2(torch.relu(self.weight1(images.flatten(1))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)  # one optimizer, over all parameters, as always


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, int], float]:
    """Print the plan and fit; returns the updates of each group and the accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--every", type=int, default=5, help="updates of weight2 for one of weight1")
    parser.add_argument("--picture", type=Path, help="draw the first epoch's plan; needs the extra `plot`")
    options = parser.parse_args(arguments)

    seed_everything(1)
    freeze = AlternatingFreeze(slow="weight1", fast="weight2", every=options.every)
    trainer = Trainer(
        max_epochs=options.epochs, callbacks=[freeze], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model, digits = TwoLayers(), DigitsData()

    plan = preview_run(trainer, model, digits, epochs=1)
    print(plan)
    if options.picture:
        plan.draw(options.picture)

    trainer.fit(model, digits)
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy {accuracy:.3f}; updates {freeze.updates}; findings: {len(freeze.findings)}")
    return freeze.updates, accuracy


if __name__ == "__main__":
    main()
