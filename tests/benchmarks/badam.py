"""The BAdam recipe, one block at a time: ours beside the package `badam`, over the same blocks in the same order.

Both train in a Trainer, ours by automatic optimization; `badam` needs manual optimization, since its step wants the
gradients before it calls the closure that makes them. It calls its first switch one update early, so its count begins
at -1 here: then both make the same updates, and on the CPU they end with the same bits.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze import FreezeScheduler, Phase, Phases, Pick
from tests.benchmarks.checks import WrongTraining, below, check_moved, check_same, weights
from tests.benchmarks.inputs import ROOT, process_peak
from tests.benchmarks.models import TINY, Shape, Training, adamw, batches, make, shape_for, task
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import Step, Turns, fit, in_turns, peak_bytes, threads_for, why

UPDATES = 10
"""K. The package's own default is 50; fewer make a run shorter, and a switch's share larger."""

CPU = Shape(length=16)


def recipe(blocks: str, updates: int) -> FreezeScheduler:
    """One block after the other, from the lowest, so many updates each, with fresh optimizer state; the rest never."""
    phases = [Phase([], pick=Pick("blocks", order="forward"), updates=updates)]
    return FreezeScheduler(
        Phases(phases, repeat=True), {"blocks": {"each": blocks}}, rest="freeze", optimizer_state="reset"
    )


class ByPackage(Training):
    """Trains a network with the package's optimizer around AdamW.

    Set after it is made: ``prefixes``, the beginnings of the names of the parameters of each block, and ``updates``.
    """

    automatic_optimization = False
    prefixes: list[str]
    updates: int
    named_parameters: Callable[[], Any]
    optimizers: Callable[[], Any]
    manual_backward: Callable[[Tensor], None]

    def training_step(self, batch: Tensor, _: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        self.manual_backward(self.net.loss(batch))
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        package = importlib.import_module("badam")
        optimizer = package.BlockOptimizer(
            base_optimizer=adamw(self.parameters()),
            named_parameters_list=list(self.named_parameters()),
            block_prefix_list=[[prefix] for prefix in self.prefixes],
            switch_block_every=self.updates,
            switch_mode="ascending",
        )
        optimizer.global_step = -1  # otherwise the first block has an update less than the others
        return optimizer


def by_package(net: nn.Module, prefixes: list[str], updates: int) -> Any:
    """The network under the package's optimizer."""
    made = task(net, kind=ByPackage)
    made.prefixes, made.updates = prefixes, updates
    return made


class Contest:
    """Ours, the package and everything at once, on one device over the same batches.

    Args:
        shape: The model's size.
        device: ``cpu`` or ``cuda``.
        updates: How many each block has; then it is the next one's turn.
    """

    def __init__(self, shape: Shape, device: str, updates: int) -> None:
        self.shape, self.device, self.updates = shape, device, updates
        self.before = weights(task(make(shape)))
        self.blocks = below(self.before, ["net.blocks"])
        self.expected: dict[str, Tensor] | None = None

    def train(self, who: str) -> tuple[list[Step], Any, list[Any]]:
        """Make the model anew and train it: each block once, or everything for some steps."""
        net, callbacks, steps = make(self.shape), [], self.updates * self.shape.blocks + 1
        if who == "badam":
            prefixes = [f"net.blocks.{number}." for number in range(self.shape.blocks)]
            module = by_package(net, prefixes, self.updates)
        else:
            module = task(net)
        if who == "ours":
            callbacks = [recipe("net.blocks.*", self.updates)]
        elif who == "all":
            steps = min(steps, 9)
        seconds = fit(module, batches(self.shape, steps, self.device), self.device, *callbacks)
        return seconds, module, callbacks

    def verify(self, who: str, module: Any, callbacks: list[Any]) -> None:
        """Each block moved and nothing else; ours and the package's end with the same weights.

        Raises:
            WrongTraining: It is not so.
        """
        after = weights(module)
        check_moved(who, self.before, after, set(self.before) if who == "all" else self.blocks)
        if who == "all":
            return
        for scheduler in callbacks:
            each = {f"blocks/{n}": self.updates + (n == 0) for n in range(self.shape.blocks)}
            made = {group: scheduler.updates.get(group) for group in each}
            if made != each:
                raise WrongTraining(f"{who} made other updates than {each}: {made}")
        if self.expected is not None:
            check_same(who, self.before, after, self.expected, exact=self.device == "cpu")
        self.expected = after

    def run(self, who: str) -> list[Step]:
        """Train, verify, and give the steps."""
        steps, module, callbacks = self.train(who)
        self.verify(who, module, callbacks)
        return steps

    def peak(self, who: str) -> int:
        """The most bytes at once of a run, over those before it: on a GPU torch's, else a process's resident set."""
        if self.device == "cpu":
            return self._resident(who)
        kept: list[Any] = []
        most = peak_bytes(lambda: kept.extend(self.train(who)[1:]), self.device)
        self.verify(who, *kept)
        return most

    def _resident(self, who: str) -> int:
        if who == "badam":
            importlib.import_module(who)
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.badam",
            who,
            json.dumps(asdict(self.shape)),
            str(self.updates),
        ]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, cwd=ROOT, env=alone, check=True, capture_output=True, text=True)
        return int(answer.stdout.splitlines()[-1])


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Time and peak memory of the recipe.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: How many runs each contestant makes.
        quick: A tiny model, to see that it runs.
    """
    shape = CPU if device == "cpu" and not quick else shape_for(device, quick)
    updates = 3 if quick else UPDATES
    with threads_for(device):
        contest = Contest(shape, device, updates)
        turns = in_turns({who: partial(contest.run, who) for who in ("ours", "badam", "all")}, rounds, peers=["badam"])
        memory = measure_memory(Contest(shape, device, updates=2))
    between = between_switches(turns, updates)
    step, package, all_of_it = f"step, BAdam recipe, K={updates}", "package badam", "all trainable in a bare Trainer"
    return [
        turns.row(f"mean {step}, so with its switches", package, ("ours", "badam"), 0.6, middle="mean"),
        turns.row(step, package, ("ours", "badam")),
        between.row(f"{step}, between two switches", package, ("ours", "badam")),
        turns.row(step, all_of_it, ("ours", "all")),
        turns.row(f"{step}, by badam", all_of_it, ("badam", "all")),
        *memory,
    ]


def between_switches(turns: Turns, updates: int) -> Turns:
    """Without the first and the last step of each block, in which ours and the package's make ready for the next one.

    The package collects garbage there, which weighs the more the fewer updates a block has.
    """
    inner = range(1, updates - 1)
    runs = {
        who: [
            [step for number, step in enumerate(run, start=1) if number % updates in inner] for run in turns.runs[who]
        ]
        for who in ("ours", "badam")
    }
    return Turns(runs, turns.failed)


def resident(who: str, shape: Shape, updates: int) -> int:
    """Bytes by which this process's resident set grew at most while a run went on; one of a tiny model came before."""
    Contest(TINY, "cpu", updates).run(who)
    contest = Contest(shape, "cpu", updates)
    gc.collect()
    with suppress(OSError, AttributeError):  # on Linux free memory is given back, and the peak begins again
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = process_peak()
    _, module, callbacks = contest.train(who)
    after = process_peak()
    contest.verify(who, module, callbacks)
    return after - before


def measure_memory(contest: Contest) -> list[Ratio]:
    """The peak of a run, the same in each round, so one is enough."""
    figure = "peak resident memory, BAdam recipe" if contest.device == "cpu" else "peak memory, BAdam recipe"
    ours, everything = contest.peak("ours"), contest.peak("all")
    model = sum(value.nbytes for value in contest.before.values())

    def row(over: str, other: int, aim: float | None = None) -> Ratio:
        note = f"{ours / 2**20:,.1f} to {other / 2**20:,.1f} MiB, of which the model is {model / 2**20:,.1f}"
        return Ratio(figure, over, [ours / other], aim, note=note)

    try:
        rows = [row("package badam", contest.peak("badam"), 0.75)]
    except WrongTraining:
        raise
    except Exception as error:
        rows = [Ratio(figure, "package badam", [], 0.75, note=why("badam", error))]
    return [*rows, row("all trainable in a bare Trainer", everything)]


if __name__ == "__main__":  # a process of its own, for its resident set
    torch.set_num_threads(1)
    print(resident(sys.argv[1], Shape(**json.loads(sys.argv[2])), int(sys.argv[3])))
