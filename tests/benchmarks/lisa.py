"""Optimizer state under LISA: ours, which drops a layer's when it freezes, beside LISA as LMFlow ships it.

LMFlow's way is written anew here: every K steps it turns `requires_grad` off in all layers and on in those drawn; one
optimizer has all parameters, and what state it made for a layer stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from lightning_freeze import FreezeScheduler, Phase, Phases, Pick
from tests.benchmarks.checks import WrongTraining, below, same_bits, weights
from tests.benchmarks.models import Shape, batches, make, shape_for, task
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import fit, threads_for

DRAWS, COUNT, UPDATES = 10, 2, 3
ENDS = ["net.embed", "net.position", "net.norm", "net.head"]


class ByLMFlow(pl.Callback):
    """Layers drawn at random, anew every so many steps; the rest of the model trains always.

    Args:
        updates: Steps between two draws.
        count: Layers of a draw.
        seed: For the draws.
    """

    def __init__(self, updates: int, count: int, seed: int = 0) -> None:
        self.updates, self.count = updates, count
        self.random = np.random.RandomState(seed)
        self.draws: list[set[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.updates:
            return
        layers = pl_module.net.blocks
        drawn = self.random.choice(len(layers), self.count, replace=False)
        layers.requires_grad_(False)
        for number in drawn:
            layers[number].requires_grad_(True)
        self.draws.append({int(number) for number in drawn})


class StateOf(pl.Callback):
    """The bytes of optimizer state that each parameter has after the last step."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        state = trainer.optimizers[0].state
        sizes = {name: nbytes(state.get(parameter, {})) for name, parameter in pl_module.named_parameters()}
        self.bytes = {name: size for name, size in sizes.items() if size}


def nbytes(state: dict[str, Any]) -> int:
    """The bytes of the tensors in one parameter's state."""
    return sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))


def train(shape: Shape, device: str, *callbacks: pl.Callback) -> tuple[dict[str, int], set[str]]:
    """A run that ends within the last draw.

    Returns:
        Bytes of state of each parameter that has some, and the parameters that have moved.
    """
    module, state = task(make(shape)), StateOf()
    before = weights(module)
    fit(module, batches(shape, DRAWS * UPDATES - 1, device), device, state, *callbacks)
    after = weights(module)
    return state.bytes, {name for name, value in before.items() if not same_bits(value, after[name])}


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """The share of all parameters' full state that is kept after ten draws; bytes, so one run says it.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: Not used: each would have the same bytes.
        quick: A tiny model, to see that it runs.
    """
    shape = shape_for(device, quick)
    if not quick:
        shape = Shape(width=256 if device == "cuda" else 64, vocabulary=shape.vocabulary)
    with threads_for(device):
        full, everything = train(shape, device)
        scheduler = FreezeScheduler(
            Phases([Phase(["ends"], pick=Pick("blocks", count=COUNT), updates=UPDATES)], repeat=True),
            {"blocks": {"each": "net.blocks.*"}, "ends": ENDS},
            rest="error",
            optimizer_state="reset",
        )
        drawn = _Trained(scheduler)
        ours, moved = train(shape, device, scheduler, drawn)
        lmflow = ByLMFlow(UPDATES, COUNT)
        theirs, theirs_moved = train(shape, device, lmflow)
    _expect("a bare Trainer trained", everything, set(full))
    ends = below(full, ENDS)
    active = ends | below(full, [f"net.{group.replace('/', '.')}" for group in drawn.last])
    once = [f"net.{group.replace('/', '.')}" for group, count in scheduler.updates.items() if count and "/" in group]
    _expect("lightning-freeze trained", moved, ends | below(full, once))
    _expect("lightning-freeze kept the state of", set(ours), active)
    ever = ends | below(full, [f"net.blocks.{number}" for number in set().union(*lmflow.draws)])
    _expect("LMFlow's LISA trained", theirs_moved, ever)
    _expect("LMFlow's LISA kept the state of", set(theirs), ever)
    if len(lmflow.draws) != DRAWS or len(drawn.last) != COUNT:
        raise WrongTraining(f"LMFlow's LISA drew {len(lmflow.draws)} times, ours {len(drawn.last)} layers at last")
    whole = sum(full.values())
    share = sum(full[name] for name in active) / whole
    figure, over = f"optimizer state after {DRAWS} draws of LISA", "all parameters' full state"
    kept, kept_by_lmflow = sum(ours.values()), sum(theirs.values())

    def sizes(bytes_kept: int, of: int) -> str:
        return f"{bytes_kept / 2**20:,.2f} of {of / 2**20:,.2f} MiB"

    return [
        Ratio(figure, over, [kept / whole], share, note=f"{sizes(kept, whole)}; the aim is the active share"),
        Ratio(f"{figure}, as LMFlow ships it", over, [kept_by_lmflow / whole], note=sizes(kept_by_lmflow, whole)),
        Ratio(figure, "LISA as LMFlow ships it", [kept / kept_by_lmflow], note=sizes(kept, kept_by_lmflow)),
    ]


class _Trained(pl.Callback):
    """The blocks that the scheduler lets train in the last step."""

    def __init__(self, scheduler: FreezeScheduler) -> None:
        self.scheduler = scheduler
        self.last: set[str] = set()

    def on_train_batch_start(self, *_: Any) -> None:
        self.last = {group for group in self.scheduler.trainable if "/" in group}


def _expect(what: str, seen: set[str], expected: set[str]) -> None:
    if seen != expected:
        raise WrongTraining(f"{what} too much: {sorted(seen - expected)}; too little: {sorted(expected - seen)}")
