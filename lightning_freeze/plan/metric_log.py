"""The metrics that end phases: which there are, which were logged, and which one the run waits for."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping

from lightning_freeze.plan.schedule import Plan, Position, Schedule


class MetricLog:
    """What a run was told of the metrics that end its phases.

    Args:
        schedule: The schedule.
        place: Gives the plan, where there is one, and where the run is.
        changed: Called where a metric has changed what trains.
    """

    def __init__(
        self,
        schedule: Schedule,
        place: Callable[[], tuple[Plan | None, Position]],
        changed: Callable[[bool], None] = lambda ended: None,
    ) -> None:
        self.keys: dict[str, str] = {metric: key for key, metric in reversed(schedule.metrics())}
        """Each metric that a phase's end hangs on, with the first key in the schedule that names it."""
        self.logged: set[str] = set()
        self._place = place
        self._changed = changed

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, metric: str) -> str:
        return self.keys[metric]

    def items(self) -> ItemsView[str, str]:
        """Each metric with its key in the schedule."""
        return self.keys.items()

    def log(self, metrics: Mapping[str, float]) -> None:
        """Metrics were logged: in the epoch, or right after its end, before the next epoch's first step.

        Args:
            metrics: Name to value, of those that end phases; others are passed over.

        Raises:
            RuntimeError: The run is not attached.
        """
        plan, at = self._place()
        if plan is None:
            raise RuntimeError("the controller is not attached: call attach(*optimizers) before the first step.")
        mine = {name: value for name, value in metrics.items() if name in self.keys}
        self.logged.update(mine)
        self._changed(plan.log_metrics(at, mine))

    @property
    def awaited(self) -> str | None:
        """The metric that is to end the present phase, where one is."""
        plan, at = self._place()
        return plan.awaits(at) if plan is not None else None

    @property
    def missing(self) -> str | None:
        """The metric for which the last epoch's end still waits, because it was not logged by then."""
        return self._place()[1].unheard

    @property
    def unlogged(self) -> dict[str, str]:
        """Those of `keys` that were not logged so far, in this fit or in one that it goes on from."""
        return {metric: key for metric, key in self.keys.items() if metric not in self.logged}
