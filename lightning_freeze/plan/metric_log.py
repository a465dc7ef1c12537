"""The metrics that end phases: which there are, which were logged, and which one the run awaits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lightning_freeze.errors import NOT_ATTACHED
from lightning_freeze.plan.schedule import Planned, Schedule


class MetricLog:
    """What was logged of the metrics that end a run's phases; ``changed`` is called with whether that ended one."""

    def __init__(self, schedule: Schedule, planned: Planned, changed: Callable[[bool], None]) -> None:
        self.keys: dict[str, str] = {metric: key for key, metric in reversed(schedule.metrics())}
        """Each metric that ends a phase, with the first key in the schedule that names it."""
        self.logged: set[str] = set()
        self._planned = planned
        self._changed = changed

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Take what was logged in the epoch, or after it and before the next one's first step."""
        plan, at = self._planned()
        if plan is None:
            raise RuntimeError(NOT_ATTACHED)
        mine = {name: value for name, value in metrics.items() if name in self.keys}
        self.logged.update(mine)
        self._changed(plan.log_metrics(at, mine))

    @property
    def awaited(self) -> str | None:
        """The metric that is to end the present phase, where one is."""
        plan, at = self._planned()
        return plan.awaits(at) if plan is not None else None

    @property
    def missing(self) -> str | None:
        """The metric that the last epoch's end still awaits, because it was not logged by then."""
        return self._planned()[1].unheard

    @property
    def unlogged(self) -> dict[str, str]:
        """Those of `keys` that were not logged so far, in this fit or in one that it continues."""
        return {metric: key for metric, key in self.keys.items() if metric not in self.logged}
