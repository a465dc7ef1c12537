"""Bytes of our own in a checkpoint, beside the text that says what it belongs to: the schedule, and the names by group."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any

import torch

from lightning_freeze import resolve_groups
from tests.benchmarks.cases import Case, halves, two_groups
from tests.benchmarks.loops import in_loops
from tests.benchmarks.ratios import Ratio
from tests.threads import threads


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Kilobytes after long runs; the same each time, so one is enough.

    Args:
        device: Not used: the state is the host's.
        rounds: Not used.
        quick: Short runs, to see that it runs.
    """
    phases, steps, blocks, each = (10, 50, 4, 3) if quick else (10_000, 100_000, 1000, 10)
    cases = {
        f"{phases:,} phases, all in one epoch": (halves(2, 1, phases=phases, repeat=False), 5 * phases),
        f"{blocks:,} groups of {blocks * each:,} parameters": (halves(blocks, each), 10),
        f"an epoch of {steps:,} steps, K=5": (two_groups(), steps),
    }
    with threads(1):
        return [_row(name, *saved(case, made)) for name, (case, made) in cases.items()]


def saved(case: Case, steps: int) -> tuple[int, int]:
    """Bytes of the state that a checkpoint holds after so many steps, and of the compressed text."""
    model, scheduler, buffer = case.make(), case.scheduler(), io.BytesIO()
    in_loops(
        {"ours": (model, scheduler)},
        steps,
        steps,
        light=True,
        at_end=lambda _: torch.save(scheduler.state_dict(), buffer),  # within the fit: its end begins another record
    )
    groups: dict[str, Any] = resolve_groups(model, scheduler._groups)
    text = json.dumps([scheduler._schedule.describe(), groups])
    return len(buffer.getvalue()), len(zlib.compress(text.encode(), 9))


def _row(name: str, state: int, text: int) -> Ratio:
    note = f"{state / 1e3:.1f} kB, less {text / 1e3:.1f} kB of schedule and names, compressed"
    return Ratio(f"own bytes of a checkpoint, {name}", "1 kB", [(state - text) / 1e3], 20, note=note)
