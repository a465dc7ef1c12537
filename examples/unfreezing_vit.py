"""A small vision transformer under gradual unfreezing (ULMFiT, arXiv 1801.06146): from the head down, a block an epoch.

It is trained on the digits 0 to 4, gets a new head, and is then tuned to the digits 5 to 9 from 60 images only. Each block
trains at half the rate of the block above it, and what thaws begins at a low rate (``ramp``).

Run it (it needs the extra ``demo``; ``--picture`` needs ``plot``)::

    python examples/unfreezing_vit.py
    python examples/unfreezing_vit.py --picture vit.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import FreezeScheduler, Phase, Phases, Pick, preview_run
from lightning_freeze.demos import DigitsData

WIDTH = 32
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


class Block(nn.Module):
    """Attention between patches, then a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, patches, _ = x.shape
        heads = self.attention(self.norm1(x)).view(batch, patches, 3, 4, -1).permute(2, 0, 3, 1, 4)
        x = x + self.mix(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.network(self.norm2(x))


class ViT(LightningModule):
    """Sixteen patches of 2×2 pixels, four blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, WIDTH), nn.Parameter(torch.zeros(16, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
        return self.head(self.blocks(self.embed(patches) + self.position).mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1] % 5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


@torch.no_grad()
def accuracy(model: ViT, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels % 5).float().mean())


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Train and tune; returns the accuracy on the digits 5 to 9 with the new head before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=15, help="epochs of tuning")
    parser.add_argument("--picture", type=Path, help="draw the plan of the tuning")
    options = parser.parse_args(arguments)

    seed_everything(1)
    digits = DigitsData()
    digits.setup("fit")
    images, labels = digits.train.tensors
    low, few = labels < 5, torch.nonzero(labels >= 5).flatten()[:60]
    model = ViT()
    first = DataLoader(TensorDataset(images[low], labels[low]), batch_size=64, shuffle=True)
    Trainer(max_epochs=8, **QUIET).fit(model, first)

    model.head = nn.Linear(WIDTH, 5)
    groups = {"blocks": {"each": "blocks.*"}, "stem": ["embed", "position"]}
    next_block = Phase(
        ["head"], pick=Pick("blocks", order="backward", keep=True), lr={"blocks": {"decay": 0.5}}, ramp=5, epochs=2
    )
    unfreezing = Phases(
        [Phase(["head"], epochs=2), Phases([next_block], repeat=4), Phase(["all"], lr={"blocks": {"decay": 0.5}})]
    )
    trainer = Trainer(max_epochs=options.epochs, callbacks=[FreezeScheduler(unfreezing, groups)], **QUIET)
    second = DataLoader(TensorDataset(images[few], labels[few]), batch_size=10, shuffle=True)
    plan = preview_run(trainer, model, second)
    print(plan)
    if options.picture:
        plan.draw(options.picture)

    others = digits.held_out.tensors
    high = others[1] >= 5
    before = accuracy(model, others[0][high], others[1][high])
    trainer.fit(model, second)
    after = accuracy(model, others[0][high], others[1][high])
    print(f"accuracy on the digits 5 to 9: {before:.0%} with a new head, {after:.0%} after tuning on {len(few)} images")
    return before, after


if __name__ == "__main__":
    main()
