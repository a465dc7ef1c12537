"""Delayed policy updates as in TD3 (arXiv 1802.09477): two critics in every batch, the actor in every second one.

The task is in this file: push a mass on a line to the middle, with little force. Actor and critics learn from random
transitions. Two phases share the critics, so the schedule says ``change="batch"``: what trains changes between batches only,
and the actor never goes one critic update early. The slow copies of the networks are moved by the model itself: ``by: user``.

Run it::

    python examples/td3.py
    python examples/td3.py --epochs 20
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import FreezeScheduler, Phase, Phases


def push(state: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """The next (position, velocity) of some masses, and the reward."""
    position, velocity = state.unbind(1)
    velocity = velocity + 0.1 * force.squeeze(1)
    position = position + 0.1 * velocity
    return torch.stack([position, velocity], 1), -(position**2 + 0.1 * velocity**2 + 0.01 * force.squeeze(1) ** 2)


def score(actor: nn.Module | None) -> float:
    """The mean reward over 60 steps from 64 places; without an actor nobody pushes."""
    torch.manual_seed(1)
    state, total = torch.randn(64, 2), 0.0
    for _ in range(60):
        force = actor(state) if actor is not None else torch.zeros(64, 1)
        state, reward = push(state, force)
        total += float(reward.mean()) / 60
    return total


class TD3(LightningModule):
    """An actor, two critics, a slow copy of each."""

    def __init__(self, freeze: FreezeScheduler) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.freeze_scheduler = freeze
        self.actor = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
        self.critics = nn.ModuleList(nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1)) for _ in range(2))
        self.slow_actor, self.slow_critics = copy.deepcopy(self.actor), copy.deepcopy(self.critics)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for_actor, for_critics = optimizers
        state, force = batch
        with torch.no_grad():
            after, reward = push(state, force)
            chosen = (self.slow_actor(after) + 0.1 * torch.randn_like(force)).clamp(-1, 1)
            values = [critic(torch.cat([after, chosen], 1)) for critic in self.slow_critics]
            target = reward.unsqueeze(1) + 0.95 * torch.minimum(*values)

        for_critics.zero_grad()
        self.manual_backward(sum(mse_loss(critic(torch.cat([state, force], 1)), target) for critic in self.critics))
        for_critics.step()

        if self.freeze_scheduler.will_train("actor"):
            for_actor.zero_grad()
            self.manual_backward(-self.critics[0](torch.cat([state, self.actor(state)], 1)).mean())
            for_actor.step()
            self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copies a little towards the networks."""
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critics, self.critics)):
            for mine, theirs in zip(slow.parameters(), fast.parameters(), strict=True):
                mine.lerp_(theirs, 0.02)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(network.parameters(), lr=2e-3) for network in (self.actor, self.critics)]


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, int], float, float]:
    """Fit; returns the updates of each group, and the score without and with the actor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args(arguments)

    seed_everything(1)
    delayed = Phases(
        [Phase(["critics"], updates=1), Phase(["critics", "actor"], updates=1)], repeat=True, change="batch"
    )
    slow = {"select": ["slow_actor", "slow_critics"], "by": "user"}
    freeze = FreezeScheduler(delayed, {"actor": "actor", "critics": "critics", "slow": slow})
    trainer = Trainer(
        max_epochs=options.epochs, callbacks=[freeze], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    transitions = TensorDataset(1.5 * torch.randn(8192, 2), 2 * torch.rand(8192, 1) - 1)
    model = TD3(freeze)
    trainer.fit(model, DataLoader(transitions, batch_size=128, shuffle=True))

    before, after = score(None), score(model.actor)
    print(f"updates {freeze.updates}; findings: {len(freeze.findings)}")
    print(f"mean reward {before:.2f} where nobody pushes, {after:.2f} with the actor")
    return freeze.updates, before, after


if __name__ == "__main__":
    main()
