"""A tiny GPT under LISA (arXiv 2403.17919), on text that ships with Python: the ends always train, two of eight blocks in turn.

Every ten updates other blocks are drawn. Only they, the embedding and the head have gradients and optimizer state, so both need
less memory than where everything trains. The text is Python's own help on its language (``pydoc_data.topics``).

Run it (``--picture`` needs the extra ``plot``)::

    python examples/lisa_gpt.py
    python examples/lisa_gpt.py --steps 1000 --picture lisa.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_freeze import FreezeScheduler, Phase, Phases, Pick, preview_run

LENGTH = 64  # characters that the model sees at once
WIDTH = 48
TEXT = torch.tensor([min(ord(letter), 127) for letter in "".join(topics.values())[:200_000]])


class Block(nn.Module):
    """Attention to earlier characters, then a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.attention(self.norm1(x)).view(batch, length, 3, 4, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.network(self.norm2(x))


class GPT(LightningModule):
    """Predicts the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(128, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(8))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embed(letters) + self.position.weight[: letters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


@torch.no_grad()
def loss_on(model: GPT, pieces: Tensor) -> float:
    return float(model.training_step(pieces, 0))


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Fit; returns the loss on other text before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--picture", type=Path, help="draw the plan")
    options = parser.parse_args(arguments)

    seed_everything(1)
    pieces = TEXT[: len(TEXT) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    pieces = pieces[torch.randperm(len(pieces))]
    data = DataLoader(pieces[200:], batch_size=16, shuffle=True)
    groups = {"blocks": {"each": "blocks.*"}, "ends": ["embed", "position", "norm", "head"]}
    lisa = Phases([Phase(["ends"], pick=Pick("blocks", count=2, order="random"), updates=10)], repeat=True)
    freeze = FreezeScheduler(lisa, groups, rest="freeze", optimizer_state="reset")
    trainer = Trainer(
        max_steps=options.steps, callbacks=[freeze], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = GPT()

    plan = preview_run(trainer, model, data)
    share = sum(sum(plan.sizes[g].elements for g in step.trained) for step in plan.steps) / len(plan.steps)
    total = sum(size.elements for size in plan.sizes.values())
    print(f"of {total:,} elements, {share / total:.0%} train in an update")
    if options.picture:
        plan.draw(options.picture)

    before = loss_on(model, pieces[:200])
    trainer.fit(model, data)
    after = loss_on(model, pieces[:200])
    print(f"loss on other text: {before:.2f} before, {after:.2f} after {options.steps} updates")
    return before, after


if __name__ == "__main__":
    main()
