"""What a step costs with all blocks frozen but the top one: ours, hand-written, and by other tools.

Each contestant ends with the same bits as the hand-written loop (on a GPU: nearly), so all did the same work.
"""

from __future__ import annotations

import importlib
import logging
import statistics
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import Tensor

from lightning_freeze import FreezeScheduler, Phase, Phases
from lightning_freeze.demos import quiet
from tests.benchmarks.checks import below, check_moved, check_same, weights
from tests.benchmarks.details import in_time
from tests.benchmarks.loops import in_loops
from tests.benchmarks.models import (
    Shape,
    adamw,
    batches,
    freeze_below_top,
    make,
    names_of_top,
    shape_for,
    task,
)
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import Step, Stopwatch, fit, in_turns, threads_for

PEERS = ("BackboneFinetuning", "finetuning-scheduler")


class Contest:
    """Contestants of one shape, on one device, over the same batches.

    Args:
        shape: The model's size.
        device: ``cpu`` or ``cuda``.
        steps: Steps of each run, the first included, which is not counted.
    """

    def __init__(self, shape: Shape, device: str, steps: int) -> None:
        self.shape, self.device = shape, device
        self.data = batches(shape, steps + 1, device)
        self.before = weights(task(make(shape)))
        self.top = below(self.before, names_of_top(shape))
        with quiet():
            self.manual_optimization = self._train_plainly(top_only=True)[1]

    def checked(self, who: str, steps: list[Step], after: dict[str, Tensor], top_only: bool = True) -> list[Step]:
        """The steps, once it is known that the right thing was trained."""
        check_moved(who, self.before, after, self.top if top_only else set(self.before))
        if top_only:
            check_same(who, self.before, after, self.manual_optimization, exact=self.device == "cpu")
        return steps

    def plain(self) -> list[Step]:
        """A loop in plain PyTorch, the floor: no Trainer at all."""
        return self.checked("plain PyTorch", *self._train_plainly(top_only=True))

    def bare(self, top_only: bool) -> list[Step]:
        """A bare Trainer, with everything trainable or with `requires_grad` turned off in hand-written code."""
        net = make(self.shape)
        if top_only:
            freeze_below_top(net)
        return self._fit("a bare Trainer", task(net), top_only=top_only)

    def scheduler(self) -> FreezeScheduler:
        """One phase that trains the top block, without an end."""
        return FreezeScheduler(Phases([Phase(["top"])]), {"top": names_of_top(self.shape)}, rest="freeze")

    def ours(self) -> list[Step]:
        """A Trainer with the scheduler."""
        return self._fit("lightning-freeze", task(make(self.shape)), self.scheduler())

    def step_by_step(self, steps: int) -> tuple[float, float]:
        """Seconds of the median step of ours and of hand-written code, which take turns at every step."""
        net = make(self.shape)
        freeze_below_top(net)
        ours, hand = task(make(self.shape)), task(net)
        found = in_loops(
            {"ours": (ours, self.scheduler()), "hand": (hand, pl.Callback())},
            steps + 2,
            1,
            work=lambda number, module: module.net.loss(self.data[number % len(self.data)]),
            device=self.device,
        )
        check_same("lightning-freeze", self.before, weights(ours), weights(hand), exact=self.device == "cpu")
        one, other = (statistics.median(step.whole for step in spent[2:]) for spent in found.values())
        return one, other

    def backbone_finetuning(self) -> list[Step]:
        """Lightning's own callback; it would thaw the backbone after the first epoch, which is the last."""
        return self._fit(PEERS[0], task(make(self.shape)), BackboneFinetuning(unfreeze_backbone_at_epoch=1))

    def finetuning_scheduler(self) -> list[Step]:
        """Its schedule has one phase, the top block; it takes the package `lightning` alone."""
        package = importlib.import_module("finetuning_scheduler")
        lightning = importlib.import_module("lightning.pytorch")
        callback = package.FinetuningScheduler(
            ft_schedule={0: {"params": sorted(self.top), "max_transition_epoch": 1}},
            max_depth=0,
            restore_best=False,
            epoch_transitions_only=True,
            logging_level=logging.ERROR,
        )
        return self._fit(PEERS[1], task(make(self.shape), lightning), callback, package=lightning)

    def _fit(self, who: str, module: Any, *callbacks: Any, top_only: bool = True, package: Any = pl) -> list[Step]:
        steps = fit(module, self.data, self.device, *callbacks, package=package)
        return self.checked(who, steps, weights(module), top_only)

    def _train_plainly(self, top_only: bool) -> tuple[list[Step], dict[str, Tensor]]:
        module, watch = task(make(self.shape)).to(self.device), Stopwatch(self.device)
        if top_only:
            freeze_below_top(module.net)
        optimizer: torch.optim.Optimizer = adamw(module.parameters())
        for batch in self.data:
            watch.mark()
            optimizer.zero_grad()
            module.net.loss(batch).backward()
            optimizer.step()
        return watch.steps(), weights(module)


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Ours beside the hand-written loop, all trainable, plain PyTorch and other tools.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: How many runs each contestant makes.
        quick: A tiny model, to see that it runs.
    """
    shape = shape_for(device, quick)
    frozen = f"{shape.blocks - 1} of {shape.blocks} blocks frozen"
    with threads_for(device):
        contest = Contest(shape, device, steps=4 if quick else 40 if device == "cuda" else 8)
        contestants: dict[str, Callable[[], list[Step]]] = {
            "all": lambda: contest.bare(top_only=False),
            "hand": lambda: contest.bare(top_only=True),
            "ours": contest.ours,
            "plain": contest.plain,
            PEERS[0]: contest.backbone_finetuning,
            PEERS[1]: contest.finetuning_scheduler,
        }
        turns = in_turns(contestants, rounds, peers=PEERS)
        pairs = [contest.step_by_step(2 if quick else 40) for _ in range(rounds)]
    note = f"{' to '.join(in_time(1e6 * statistics.median(each)) for each in zip(*pairs, strict=True))}; in turns, step by step"
    ours, manual_optimization = f"step, {frozen}", "hand-written: requires_grad=False in a bare Trainer"
    return [
        turns.row(ours, manual_optimization, ("ours", "hand"), 1.03),
        Ratio(
            f"{ours}, in a loop",
            f"{manual_optimization}'s order",
            [one / other for one, other in pairs],
            1.01,
            note=note,
        ),
        turns.row(ours, "all trainable in a bare Trainer", ("ours", "all"), 0.55),
        turns.row(f"{ours}, hand-written", "all trainable in a bare Trainer", ("hand", "all")),
        turns.row(ours, "hand-written in plain PyTorch, no Trainer", ("ours", "plain")),
        turns.row(
            f"{ours}, hand-written in a bare Trainer", "hand-written in plain PyTorch, no Trainer", ("hand", "plain")
        ),
        *(turns.row(f"{ours} by {peer}", manual_optimization, (peer, "hand")) for peer in PEERS),
    ]
