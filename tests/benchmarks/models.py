"""The model that contestants train: a transformer of equal blocks, of a size that suits the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytorch_lightning
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """How large a transformer is, and its batches.

    Args:
        blocks: Equal blocks, one above the other.
        width: Of the stream through them.
        length: Tokens of a text.
        batch: Texts of a batch.
        vocabulary: Tokens that there are.
    """

    blocks: int = 12
    width: int = 256
    length: int = 32
    batch: int = 8
    vocabulary: int = 512


CPU = Shape()
CUDA = Shape(width=1024, length=256, batch=16, vocabulary=8192)
TINY = Shape(blocks=3, width=16, length=4, batch=2, vocabulary=16)


def shape_for(device: str, quick: bool = False) -> Shape:
    """Large enough that the backward is most of a step, small enough that a run takes seconds."""
    return TINY if quick else CUDA if device == "cuda" else CPU


class Transformer(nn.Module):
    """Embeddings, blocks, and a head that says the next token."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList([self._block(shape.width) for _ in range(shape.blocks)])
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary)

    @staticmethod
    def _block(width: int) -> nn.Module:
        heads = max(2, width // 64)
        return nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def loss(self, tokens: Tensor) -> Tensor:
        """The cross entropy of each next token."""
        return nn.functional.cross_entropy(self(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())


def make(shape: Shape, seed: int = 0) -> Transformer:
    """The same weights each time."""
    torch.manual_seed(seed)
    return Transformer(shape)


def batches(shape: Shape, count: int, device: str) -> list[Tensor]:
    """Batches that lie ready on the device; the same each time, the same few over and over."""
    random = torch.Generator().manual_seed(1)
    few = [torch.randint(shape.vocabulary, (shape.batch, shape.length), generator=random).to(device) for _ in range(8)]
    return [few[number % len(few)] for number in range(count)]


def adamw(parameters: Any) -> torch.optim.AdamW:
    """The optimizer of all contestants, over what requires a gradient."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-4, weight_decay=0.01)


class Training:
    """Trains a network whose `loss` takes a batch; ``net.blocks.0`` is the lowest of its blocks."""

    net: Any
    parameters: Callable[[], Any]

    @property
    def backbone(self) -> nn.ModuleList:
        """All modules below the top block; `BackboneFinetuning` asks for it by this name."""
        return nn.ModuleList([self.net.embed, self.net.position, *self.net.blocks[:-1]])

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.net.loss(batch)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.parameters())


def task(net: nn.Module, package: ModuleType = pytorch_lightning, kind: type = Training) -> Any:
    """A LightningModule of either Lightning package around a network."""
    made = type("Task", (kind, package.LightningModule), {})()
    made.net = net
    return made


def freeze_below_top(net: Transformer) -> None:
    """What one writes oneself: everything below the top block gets no gradient."""
    for module in (net.embed, net.position, net.blocks[:-1]):
        module.requires_grad_(False)


def names_of_top(shape: Shape) -> list[str]:
    """The modules from the top block upwards, in a task."""
    return [f"net.blocks.{shape.blocks - 1}", "net.norm", "net.head"]
