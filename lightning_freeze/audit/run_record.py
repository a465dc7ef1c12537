"""What the records of a run say about it: where it runs, how large it is, how fast its steps are."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.report.records import GroupRecord
from lightning_freeze.report.steps import Steps


def surroundings(context: RunContext) -> dict[str, Any]:
    """When, where and of what a run is."""
    seed = os.environ.get("PL_GLOBAL_SEED", "")  # by Lightning's `seed_everything`
    device = context.device or next((p.device for p in context.module.parameters()), "cpu")
    versions = {"lightning_freeze": version("lightning-freeze"), "torch": torch.__version__}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "versions": {**versions, **context.versions, "python": platform.python_version()},
        "model": type(context.module).__name__,
        "strategy": context.strategy or None,
        "precision": context.precision or None,
        "processes": context.world,
        "device": str(device),
        "seed": int(seed) if seed.isdecimal() else None,
    }


def group_sizes(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, GroupRecord]:
    """Group to its size; of a split parameter the whole, of a lazy one nothing."""
    made = {group: [p for p in found if not is_lazy(p)] for group, found in groups.items()}
    return {
        group: {
            "parameters": len(groups[group]),
            "elements": sum(p.numel() for p in found),
            "bytes": sum(p.numel() * p.element_size() for p in found),
        }
        for group, found in made.items()
    }


def step_costs(steps: Steps, groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """What the steps of an epoch took."""
    sizes, seconds, number, most = group_sizes(groups), steps.seconds, steps.number, steps.forgotten.gradient_bytes
    made = [([sizes[group] for group in trained if group in sizes], count) for trained, count in steps.counted()]
    timed = number - steps.restored
    elements = sum(count * sum(size["elements"] for size in trained) for trained, count in made)
    return {
        "seconds": round(seconds, 6),
        "step_seconds": round(seconds / timed, 9) if timed else None,
        "trainable_elements": elements / number if number else 0.0,
        "gradient_bytes": max([most, *(sum(size["bytes"] for size in trained) for trained, _ in made)]),
    }


def state_bytes(optimizers: Iterable[Optimizer]) -> int:
    """The bytes of optimizer state that lie on the devices of the parameters."""
    return sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        if isinstance(parameter, Tensor) and isinstance(state, Mapping)
        for value in state.values()
        if isinstance(value, Tensor) and value.device == parameter.device
    )
