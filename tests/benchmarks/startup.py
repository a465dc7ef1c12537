"""What a fit's start takes: the names of the package imported, a schedule attached and begun."""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.benchmarks.cases import halves
from tests.benchmarks.quiet import quiet_fit
from tests.benchmarks.ratios import Ratio
from tests.threads import threads

ROOT = Path(__file__).resolve().parents[2]
NAMES = """
import time, pytorch_lightning, lightning_freeze
begin = time.process_time()
for name in lightning_freeze.__all__:
    getattr(lightning_freeze, name)
print(time.process_time() - begin)
"""


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Milliseconds of the processor's time.

    Args:
        device: Not used: all of it runs on the host.
        rounds: How often each is measured.
        quick: Few parameters and one import, to see that it runs.
    """
    blocks, each = (4, 3) if quick else (1000, 10)
    with threads(1):
        attach = [attached(blocks, each) for _ in range(1 if quick else 3 * rounds)]
    note = "from `setup` to the first batch, over an empty callback; as the first batch begins, {:.3g} ms more"
    note = note.format(statistics.median(first for _, first in attach))
    figure = f"attach and begin, {blocks:,} groups of {blocks * each:,} parameters"
    return [
        Ratio(figure, "1 ms", [start - first for start, first in attach], 250, note=note),
        Ratio("names of the package, after Lightning", "1 ms", [imported() for _ in range(1 if quick else rounds)], 60),
    ]


class _Begins(pl.Callback):
    """Stops a clock in each hook up to the first batch; one stands first, another last."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def _mark(self, hook: str) -> None:
        self.at.setdefault(hook, 1e3 * time.process_time())

    def setup(self, *_: Any, **__: Any) -> None:
        self._mark("setup")

    def on_train_start(self, *_: Any) -> None:
        self._mark("train")

    def on_train_batch_start(self, *_: Any) -> None:
        self._mark("batch")


def attached(blocks: int, each: int) -> tuple[float, float]:
    """Milliseconds of all before the first batch, and of those the ones of its own hook; an empty callback's taken off."""
    case = halves(blocks, each)
    taken = []
    for callback in (pl.Callback(), case.scheduler()):
        first, last = _Begins(), _Begins()
        quiet_fit(case.make(), DataLoader([(torch.zeros(1),)], batch_size=None), first, callback, last)  # type: ignore[arg-type]
        taken.append((last.at["batch"] - first.at["setup"], last.at["batch"] - first.at["batch"]))
    (empty, empty_batch), (ours, batch) = taken
    return ours - empty, batch - empty_batch


def imported() -> float:
    """Milliseconds of all public names in a process that has imported Lightning, from compiled files."""
    compileall.compile_dir(ROOT / "lightning_freeze", quiet=1)
    answer = subprocess.run(
        [sys.executable, "-c", NAMES],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return 1e3 * float(answer.stdout)
