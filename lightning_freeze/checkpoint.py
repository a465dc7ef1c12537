"""The state that a run saves: its schema, what differs from this run's, and how it is carried over to another schedule."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.groups import Groups
from lightning_freeze.plan.schedule import Plan, Position, Schedule

VERSION = 1
OnScheduleChange = Literal["raise", "continue"]


@dataclass(frozen=True)
class Identity:
    """What a saved state belongs to."""

    schedule: Schedule
    groups: Groups
    optimizers: Sequence[Sequence[str]]
    """For each optimizer the groups that it holds, sorted."""

    def as_dict(self) -> dict[str, Any]:
        """As builtins alone."""
        return {
            "schedule": self.schedule.describe(),
            "groups": self.groups.names(),
            "rest": self.groups.rest,
            "optimizers": [list(groups) for groups in self.optimizers],
        }


_SAID = {
    "schedule": "another schedule",
    "groups": "other groups",
    "rest": "another `rest`",
    "optimizers": "optimizers that hold other groups",
}


def read(state: Mapping[str, Any], mine: Identity, on_change: OnScheduleChange) -> tuple[Position, list[str]]:
    """Where a saved run was, and what differs from this run.

    Raises:
        ScheduleError: It is of another version, or differs; the message shows the difference.
    """
    if state.get("version") != VERSION:
        raise ScheduleError(
            f"the checkpoint's freeze state has version {state.get('version')!r}; this release reads "
            f"{VERSION}. Resume with the release of lightning-freeze that wrote it."
        )
    found = [
        f"{_SAID[what]}:\n{_difference(state[what], value)}"
        for what, value in mine.as_dict().items()
        if state[what] != value
    ]
    if found and on_change == "raise":
        raise ScheduleError(
            f"the checkpoint was made under {found[0]}\nso its counts mean something else here. Resume with the "
            "checkpoint's own; or keep its counts and its place in the schedule with `on_schedule_change: continue`; or "
            "begin a new run from its weights alone (load_from_checkpoint, then fit without ckpt_path)."
        )
    position = Position.from_dict(state["position"])
    position.unheard = None  # what was not logged by then will not be
    return position, found


def carry_over(position: Position, plan: Plan, optimizers: int) -> None:
    """Fit a position that was made under another schedule, or other groups, to this one."""
    fresh = plan.start(position.epoch).updates
    position.updates = {group: position.updates.get(group, count) for group, count in fresh.items()}
    position.thawed = {group: count for group, count in position.thawed.items() if group in fresh}
    position.done = {index: count for index, count in position.done.items() if index < optimizers}
    plan.skip_finished(position)


def warn_of_differences(found: Sequence[str], position: Position, plan: Plan) -> None:
    """Say with what the run goes on under another schedule."""
    place = plan.where(position)
    counts = ", ".join(f"{group} {count}" for group, count in position.updates.items())
    warnings.warn(
        f"the checkpoint was made under {' and '.join(found)}\nBy `on_schedule_change: continue` the run goes on with its "
        f"counts: {counts}; {f'it goes on at {place}; ' if place else ''}what trains next: "
        f"{', '.join(sorted(plan.trainable(position)))}.",
        stacklevel=3,
    )


def warn_of_lost_value(at: Position, awaited: str | None, epoch: int) -> None:
    """Say that an epoch's value of a metric is lost to a checkpoint that was saved just before it was logged."""
    if at.epoch < epoch and awaited is not None and awaited not in at.heard:
        warnings.warn(
            f"the checkpoint was saved after the last batch of epoch {at.epoch} and before {awaited!r} was logged, and "
            f"Lightning goes on with epoch {epoch}: the phase that waits for it never sees that value. A checkpoint saved "
            "after validation, or at the epoch's end, has it.",
            stacklevel=3,
        )


def _difference(theirs: object, mine: object) -> str:
    """What differs between two parts of a configuration, in lines as one would write them in YAML."""
    before, after = (
        yaml.safe_dump(what, default_flow_style=None, sort_keys=False, width=10_000).splitlines()
        for what in (theirs, mine)
    )
    lines = difflib.unified_diff(before, after, "checkpoint", "this run", lineterm="", n=1)
    return "\n".join(line for line in lines if not line.startswith("@@"))
