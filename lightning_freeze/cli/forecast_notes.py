"""What is said beneath a forecast: what is assumed in it, and what a user may not have meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning_freeze.errors import nearest
from lightning_freeze.holds.optimizer_state import SHORTEST
from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.table import folded, human_bytes


def on_callbacks(callbacks: Iterable[object]) -> list[str]:
    """The callbacks that end a run before its time."""
    stops = [name for name in (type(each).__name__ for each in callbacks) if name in ("EarlyStopping", "Timer")]
    return [f"{' and '.join(stops)} may end the run sooner."] if stops else []


def on_metrics(awaited: Iterable[str], given: Mapping[int, Mapping[str, float]]) -> list[str]:
    """The metrics that a phase waits for, and that are not given."""
    known = {name for logged in given.values() for name in logged}
    missing = sorted(set(awaited) - known)
    if not missing:
        return []
    names = ", ".join(map(repr, missing))
    said = f"The metrics given have no {names}" if known else f"No values of {names} are given (--metrics)"
    close = nearest(missing[0], sorted(known), 1)
    hint = f" (nearest: {close[0]!r})" if close else ""
    return [f"{said}{hint}, so a phase that waits for them is taken to last its max_epochs, or to the end."]


def on_steps(steps: Sequence[Step], sizes: Mapping[str, Size], first: int) -> list[str]:
    """What a user may not have meant: a schedule that runs out, a group that never trains."""
    notes: list[str] = []
    over = next((number for number, step in enumerate(steps) if step.over), None)
    if over is not None:
        notes.append(
            f"The schedule runs out after update {first + over - 1}; its last set stays trainable. To begin again, write "
            "`repeat: true`."
        )
    idle = [group for group in sizes if not any(group in trained for trained in {step.trained for step in steps})]
    if idle and steps:
        notes.append(f"Never trained in these updates: {folded(idle, sizes)}.")
    return notes


def on_backward(
    steps: Sequence[Step], sizes: Mapping[str, Size], skips: bool, why: str, world: int | None
) -> list[str]:
    """Whether backward makes gradients of frozen groups, where any is ever frozen.

    Args:
        steps: The optimizer steps to come.
        sizes: Group to what it asks of memory.
        skips: Whether backward is skipped for them here.
        why: Why.
        world: The processes of the run, where that is known.
    """
    if all(len(step.trained) == len(sizes) for step in steps):
        return []
    if not skips:
        every = human_bytes(sum(size.gradient for size in sizes.values()))
        return [
            f"Until each step, backward makes the gradients of all groups ({every}): its work for frozen ones is not skipped "
            f"here: {why}."
        ]
    if world == 1:
        return []
    return ["Whether backward is skipped for frozen groups, the run's own strategy says at its beginning."]


def on_state(mode: str, leaves: bool) -> list[str]:
    """How optimizer state is counted, which goes with a group that freezes, or stays."""
    if mode != "keep" and not leaves:
        return [
            f"With several optimizers, optimizer state is counted as kept: `optimizer_state: {mode}` leaves less of it."
        ]
    if mode == "offload":
        return [
            "Optimizer state is counted as on an accelerator: that of frozen groups is in host memory, unless they train "
            f"again within {SHORTEST} updates."
        ]
    return []
