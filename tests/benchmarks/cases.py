"""Models and schedules whose steps are almost nothing but ours: the example of two layers, and very many parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_freeze import AlternatingFreeze, Every, FreezeScheduler, Phase, Phases


class TwoLayers(pl.LightningModule):
    """The example of alternating updates, under SGD."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Linear(64, 32, bias=False)
        self.layer2 = nn.Linear(32, 10, bias=False)

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.layer2(torch.relu(self.layer1(batch[0]))), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ManyParameters(pl.LightningModule):
    """Many small parameters in blocks, one block a group, under SGD.

    Args:
        blocks: How many groups there will be.
        each: Parameters in a block.
        size: Elements of a parameter.
    """

    def __init__(self, blocks: int, each: int, size: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = [nn.ParameterList([torch.randn(size) for _ in range(each)]) for _ in range(blocks)]
        self.blocks = nn.ModuleList(made)

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        return torch.cat(list(self.parameters())).square().sum() * 1e-2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass(frozen=True)
class Case:
    """A model under a schedule.

    Args:
        make: Makes the model.
        scheduler: Makes the callback, with its options.
    """

    make: Callable[[], pl.LightningModule]
    scheduler: Callable[..., FreezeScheduler]


def two_groups(every: int = 5) -> Case:
    """The two layers, one of which trains in one of so many steps."""

    def scheduler(**options: Any) -> FreezeScheduler:
        return AlternatingFreeze(slow="layer1", fast="layer2", every=every, **options)

    return Case(TwoLayers, scheduler)


def halves(blocks: int, each: int, updates: int = 5, phases: int = 2, repeat: bool = True) -> Case:
    """One half of the blocks trains, then the other: so many updates each, in so many phases, for ever or once."""
    names = [f"g{number}" for number in range(blocks)]
    sides = (names[: blocks // 2], names[blocks // 2 :])

    def scheduler(**options: Any) -> FreezeScheduler:
        plan = Phases([Phase(sides[number % 2], updates=updates) for number in range(phases)], repeat=repeat)
        return FreezeScheduler(plan, {name: f"blocks.{number}" for number, name in enumerate(names)}, **options)

    return Case(lambda: ManyParameters(blocks, each), scheduler)


def periods(blocks: int, each: int) -> Case:
    """The first block trains always; each of the others has a period, from 2 to 20."""
    groups = {f"g{number}": f"blocks.{number}" for number in range(blocks)}

    def scheduler(**options: Any) -> FreezeScheduler:
        return FreezeScheduler(Every({f"g{n}": 2 + n % 19 for n in range(1, blocks)}, of="g0"), groups, **options)

    return Case(lambda: ManyParameters(blocks, each), scheduler)
