"""Optimizer state of what is frozen, moved to host memory: its cost in time, and what it gives back. Needs a GPU.

Two halves of the model take turns of 50 updates each. What is counted comes after each had a turn, so that both have
state: two further turns, each with a switch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_freeze import FreezeScheduler, Phase, Phases
from tests.benchmarks.checks import WrongTraining, check_moved, check_same, weights
from tests.benchmarks.lisa import nbytes
from tests.benchmarks.models import Shape, batches, make, task
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import Step, fit, in_turns

UPDATES = 50
MOST = 3
"""Rounds: in each, a hundred steps of each kind are counted."""
LARGE = Shape(width=1536, length=256, vocabulary=8192)


class _Memory(pl.Callback):
    """What is allocated in the middle of the last turn, and the bytes of the state of all parameters, by device."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.allocated = 0
        self.state: dict[str, int] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != self.at:
            return
        self.allocated = torch.cuda.memory_allocated()
        state = trainer.optimizers[0].state
        self.state = {name: nbytes(state.get(parameter, {})) for name, parameter in pl_module.named_parameters()}


class Contest:
    """The same run with the state kept and with it offloaded.

    Args:
        shape: The model's size.
        updates: Of each turn.
    """

    def __init__(self, shape: Shape, updates: int) -> None:
        self.shape, self.updates = shape, updates
        middle = shape.blocks // 2
        self.groups: dict[str, Any] = {
            "lower": ["net.embed", "net.position", *(f"net.blocks.{n}" for n in range(middle))],
            "upper": [*(f"net.blocks.{n}" for n in range(middle, shape.blocks)), "net.norm", "net.head"],
        }
        self.before = weights(task(make(shape)))
        self.memory: dict[str, _Memory] = {}
        self.expected: dict[str, Tensor] | None = None

    def run(self, way: Literal["keep", "offload"]) -> list[Step]:
        """Four turns; the last two are counted."""
        turns = [Phase(["lower"], updates=self.updates), Phase(["upper"], updates=self.updates)]
        scheduler = FreezeScheduler(Phases(turns, repeat=True), self.groups, rest="error", optimizer_state=way)
        module, memory = task(make(self.shape)), _Memory(at=3 * self.updates + self.updates // 2)
        steps = fit(module, batches(self.shape, 4 * self.updates + 1, "cuda"), "cuda", scheduler, memory)
        after = weights(module)
        check_moved(way, self.before, after, set(self.before))
        if self.expected is not None:
            check_same(way, self.before, after, self.expected, exact=False)
        self.expected = after
        if any(not size for size in memory.state.values()) and way == "keep":
            raise WrongTraining("`keep` kept no state of some parameters")
        self.memory[way] = memory
        return steps[2 * self.updates :]


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Offload beside keep.

    Args:
        device: ``cuda``, else there is nothing to measure.
        rounds: How many runs each has, at most three.
        quick: A small model, to see that it runs.
    """
    step, memory, keep = f"step, offload, K={UPDATES}", "device memory given back by offload", "keep"
    if device != "cuda":
        return [
            Ratio(f"{step}, switches included", keep, [], 1.02, note="needs a GPU"),
            Ratio(memory, "the frozen half's optimizer state", [], 0.99, "at least", note="needs a GPU"),
        ]
    contest = Contest(Shape(width=64) if quick else LARGE, updates=5 if quick else UPDATES)
    turns = in_turns({way: partial(contest.run, way) for way in ("keep", "offload")}, min(rounds, MOST), warm_up=0)
    kept = contest.memory["keep"]
    lower = sum(
        size for name, size in kept.state.items() if name.startswith(tuple(f"{g}." for g in contest.groups["lower"]))
    )
    freed = kept.allocated - contest.memory["offload"].allocated
    note = f"{freed / 2**20:,.0f} of {lower / 2**20:,.0f} MiB; all state has {sum(kept.state.values()) / 2**20:,.0f}"
    return [
        turns.row(f"{step}, switches included", keep, ("offload", "keep"), 1.02, middle="mean"),
        turns.row(step, keep, ("offload", "keep")),
        Ratio(memory, "the frozen half's optimizer state", [freed / lower], 0.99, "at least", note=note),
    ]
