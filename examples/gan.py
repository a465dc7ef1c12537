"""A GAN in manual optimization: the generator is updated once for every five updates of the discriminator.

The training step asks ``will_train`` and leaves the generator's work out of the batches in which it is frozen. The frozen network
keeps every bit, whatever momentum its optimizer has. The same schedule in YAML is ``configs/gan.yaml``.

Run it (it needs the extra ``demo``; a picture of generated digits needs ``plot``)::

    python examples/gan.py
    python examples/gan.py --epochs 60 --picture digits.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lightning_freeze import Every, FreezeScheduler
from lightning_freeze.demos import DigitsData


class GAN(LightningModule):
    """Two small networks, an optimizer for each."""

    def __init__(self, freeze: FreezeScheduler) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.freeze_scheduler = freeze
        self.generator = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid())
        self.discriminator = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for_generator, for_discriminator = optimizers
        real = batch[0].flatten(1)
        with torch.no_grad():
            fake = self.generator(torch.randn(len(real), 16))

        for_discriminator.zero_grad()
        self.manual_backward(self.mistakes(real, 1.0) + self.mistakes(fake, 0.0))
        for_discriminator.step()

        if self.freeze_scheduler.will_train("generator"):
            for_generator.zero_grad()
            self.manual_backward(self.mistakes(self.generator(torch.randn(len(real), 16)), 1.0))
            for_generator.step()

    def mistakes(self, images: Tensor, truth: float) -> Tensor:
        """How wrong the discriminator is, if the images are real (1) or generated (0)."""
        scores = self.discriminator(images)
        return binary_cross_entropy_with_logits(scores, torch.full_like(scores, truth))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.999)) for network in networks]


def main(arguments: Sequence[str] | None = None) -> dict[str, int]:
    """Fit; returns the updates of each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--picture", type=Path, help="draw some generated digits")
    options = parser.parse_args(arguments)

    seed_everything(1)
    freeze = FreezeScheduler(Every({"generator": 5}, of="discriminator"))
    trainer = Trainer(
        max_epochs=options.epochs, callbacks=[freeze], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = GAN(freeze)
    trainer.fit(model, DigitsData())

    with torch.no_grad():
        images = model.generator(torch.randn(40, 16))
        deceived = (model.discriminator(images) > 0).float().mean()
    print(f"updates {freeze.updates}; findings: {len(freeze.findings)}")
    print(f"the discriminator takes {deceived:.0%} of 40 generated images for real ones")
    if options.picture:
        from matplotlib.image import imsave

        rows = images.reshape(4, 10, 8, 8).transpose(1, 2).reshape(32, 80)
        imsave(options.picture, rows.repeat_interleave(6, 0).repeat_interleave(6, 1).numpy(), cmap="gray_r")
    return freeze.updates


if __name__ == "__main__":
    main()
