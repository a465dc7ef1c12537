"""What a run will do from where it stands, and how much memory its groups need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_freeze.errors import NOT_ATTACHED
from lightning_freeze.plan import preview as previews
from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.groups import Groups
from lightning_freeze.plan.membership import Step
from lightning_freeze.plan.schedule import Planned, Position

StateBytes = Callable[[Optimizer, Sequence[Parameter]], Sequence[int | None]]
"""The bytes of optimizer state that each of some parameters will have; None where that is not known."""


class Outlook:
    """Previews a run from where it stands, by the plan that the run itself follows."""

    def __init__(
        self,
        planned: Planned,
        optimizers: Callable[[], Sequence[Step]],
        groups: Callable[[], Groups],
        state_bytes: StateBytes,
    ) -> None:
        self._planned = planned
        self._optimizers = optimizers
        self._groups = groups
        self._state_bytes = state_bytes

    def __call__(
        self,
        windows_per_epoch: int | Callable[[int], int],
        *,
        windows: int | None = None,
        start: Position | None = None,
        epoch: int | None = None,
        done: int = 0,
        order: Sequence[int] | None = None,
        metrics: Mapping[int, Mapping[str, float]] | None = None,
    ) -> Iterator[previews.Step]:
        """The optimizer steps to come.

        Args:
            windows_per_epoch: Optimizer windows (a batch, or an accumulation of several) in an epoch, or a function from
                an epoch to that.
            windows: How many windows to preview; without end by default.
            start: Where to begin; by default where the run stands.
            epoch: The epoch of the first window; by default the one that the run is in.
            done: Windows that this epoch has had.
            order: The optimizers in the order in which a window steps them; by default as they were attached.
            metrics: Epoch to the metrics logged in it, for phases that end by one.
        """
        plan, at = self._planned()
        if plan is None:
            raise RuntimeError(NOT_ATTACHED)
        chosen = tuple(step.index for step in self._optimizers()) if order is None else order
        return previews.preview(
            plan, windows, windows_per_epoch, chosen, start or at, epoch=epoch, done=done, metrics=metrics
        )

    def position(self) -> Position:
        """A copy of where the run stands in its schedule."""
        return self._planned()[1].copy()

    def sizes(self) -> tuple[dict[str, Size], list[str]]:
        """How much memory each group needs, lazy parameters none; and the optimizers whose future state is not known."""
        steps = self._optimizers()
        if not steps:
            raise RuntimeError(NOT_ATTACHED)
        state: dict[int, int] = defaultdict(int)
        unknown: dict[str, None] = {}
        for step in steps:
            held = [p for p in chain.from_iterable(step.members.values()) if not is_lazy(p)]
            for parameter, found in zip(held, self._state_bytes(step.optimizer, held), strict=True):
                if found is None:
                    unknown[type(step.optimizer).__qualname__] = None
                else:
                    state[id(parameter)] += found
        sizes = {}
        for group, members in self._groups().members.items():
            parameters = [member.parameter for member in members if not is_lazy(member.parameter)]
            elements = sum(p.numel() for p in parameters)
            gradient = sum(p.numel() * p.element_size() for p in parameters)
            sizes[group] = Size(elements, gradient, sum(state[id(p)] for p in parameters))
        return sizes, list(unknown)
