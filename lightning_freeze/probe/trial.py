"""A trial: a twin of an optimizer under the gate, its small parameters given gradients as backward would.

All that is learnt of an optimizer by running it is learnt here: what holds (`probe`), what a param group's clock does
(`step_counters`), whether it can begin anew (`state_reset`), and how much state it makes (`state_size`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.holds.hold import Holds
from lightning_freeze.holds.param_groups import ExcludeParams
from lightning_freeze.holds.snapshots import same, snapshot
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.membership import Step
from lightning_freeze.probe.clone import Twin, family, options, twin_by_constructor, twin_by_parts
from lightning_freeze.probe.proxies import NoTwinError, Plan, StandIns, small_ones, whole_ones

WARMEST = 15
"""Steps in which an optimizer that only gathers at first should have moved something."""

_LEAST_RATE = 1e-3  # at less, what moves might not show; a warm-up begins at 0
NOT_OURS = re.compile(
    r"state|param_groups|defaults|_opt_called|_zero_grad_profile_name|_optimizer_.*hooks|step|_step_count"
)
"""Attributes of an optimizer that are looked at elsewhere, or are torch's own bookkeeping."""

MOVING, FIRST, FROZEN = "moving", "first", "frozen"
"""The groups of a trial: what trains; the part of it in the first param group, where there are several; what is frozen."""
ALL = frozenset({MOVING, FIRST, FROZEN})
MAKERS: tuple[tuple[Callable[[Optimizer, Sequence[Optimizer]], Plan], Callable[[Optimizer, StandIns], Twin]], ...] = (
    (small_ones, twin_by_parts),
    (small_ones, twin_by_constructor),
    (whole_ones, twin_by_parts),  # for shapes that must fit each other, as those of LoRA's pairs
)
"""Which parameters stand in, and how a twin is built over them, in the order in which that is tried."""

GRADIENTS = ("dense", "sparse", "graph")
"""What a step finds: dense gradients, sparse ones, or ``graph`` where it derives them once more."""


@dataclass(frozen=True)
class How:
    """How a twin is built and stepped.

    Args:
        plan: What stands in for the optimizer's parameters.
        build: How a twin is made over that.
        gradients: One of `GRADIENTS`.
        closure: Whether its step is handed a closure, see `step`.
        early: Whether gradients are emptied before a step that is handed a closure, too.
    """

    plan: Plan
    build: Callable[[Optimizer, StandIns], Twin]
    gradients: str = "dense"
    closure: str = "no"
    early: bool = False


def ways(optimizer: Optimizer, closure: bool | None, said: list[str]) -> Iterator[How]:
    """The ways in which a twin can be built and makes its first steps.

    Args:
        optimizer: What the twin is one of.
        closure: Whether the run's steps are handed a closure; None where that is not known.
        said: Takes why the other ways are none.
    """
    closures = ("yes", "after backward", "pair", "no") if closure else ("no", "yes", "after backward", "pair")
    for planned, build in MAKERS:
        try:
            plan = planned(optimizer, family(optimizer)[1:])
        except NoTwinError as error:
            said.append(str(error))
            continue
        for gradients, given in product(GRADIENTS, closures):
            how = How(plan, build, gradients, given)
            try:
                Trial(optimizer, how).run(ALL, 2)
            except NoTwinError as error:
                said.append(str(error))
                break
            except Exception as error:  # third-party code of any kind
                said.append(f"{type(error).__name__}: {error}")
            else:
                yield how


def step(optimizer: Optimizer, closure: str, backward: Callable[[], Tensor]) -> None:
    """Make one step.

    Args:
        optimizer: What steps.
        closure: Whether it is handed a closure: ``no``, ``yes``, ``after backward``, for those that read gradients before
            they call it (SAM), or ``pair``, for those whose closure says outputs and loss (GSAM).
        backward: Gives its parameters their gradients.
    """
    if closure in ("no", "after backward"):
        backward()
    # The closures return a tensor, as torch documents.
    given: dict[str, tuple[Any, ...]] = {"no": (), "pair": (lambda: (None, backward()),)}
    optimizer.step(*given.get(closure, (backward,)))


def states_of(optimizer: Optimizer, parameter: Tensor) -> list[Any]:
    """What an optimizer, and each of those in it, keeps for a parameter; nothing and an empty dict are the same."""
    return [snapshot(getattr(member, "state", {}).get(parameter, {})) for member in family(optimizer)]


def distance(update: Tensor) -> float:
    """How far an update goes (L2)."""
    return float(torch.linalg.vector_norm(update.detach().double()))


def named(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Trial:
    """A twin under the gate.

    Args:
        optimizer: The optimizer that it is a twin of.
        how: How it is built and stepped.
        excludes: Whether what is frozen is left out of its param groups.
    """

    def __init__(self, optimizer: Optimizer, how: How, excludes: bool = False) -> None:
        self.twin = how.build(optimizer, how.plan.make())
        self.optimizer = self.twin.optimizer
        _seed(self.twin)
        self._how = how
        self.count = self.heard = self._backwards = 0
        self.members = _groups(self.twin.stand_ins)
        self._pool = {
            p: [torch.full_like(p, 0.25)] if how.plan.uniform else _gradients(p, number)
            for number, p in enumerate(self._held(*self.members))
        }
        _raise_rates(self.optimizer)
        self._step = Step(0, self.optimizer, self.members, excludes=excludes, reads_before_closure=how.early)
        StepHooks([self._step], Holds([SetGradsToNone(), ExcludeParams()]), ran=self._hear).attach()

    def _held(self, *groups: str) -> list[torch.nn.Parameter]:
        return [p for group in groups for p in self.members.get(group, ())]

    def _hear(self, *_: Any) -> None:
        self.heard += 1

    def run(self, trains: frozenset[str], times: int = 1) -> None:
        """Steps in which these groups train; every parameter is given a gradient, as backward would."""
        self._step.train(trains.intersection(self.members))
        for _ in range(times):
            self.count += 1
            step(self.optimizer, self._how.closure, self._backward)

    @property
    def reentrant(self) -> bool:
        """Whether steps have called their closure more than once."""
        return self._backwards > self.count * (2 if self._how.closure == "after backward" else 1)

    @torch.enable_grad()
    def _backward(self) -> Tensor:
        self._backwards += 1
        if self._how.gradients == "graph":
            loss = torch.stack(
                [(p * p * p * p / 4 + p * pool[self.count % len(pool)]).sum().real for p, pool in self._pool.items()]
            ).sum()
            for p, gradient in zip(
                self._pool, torch.autograd.grad(loss, [*self._pool], create_graph=True), strict=True
            ):
                p.grad = gradient
            return loss
        for p, pool in self._pool.items():
            gradient = pool[self.count % len(pool)]
            p.grad = gradient.to_sparse(1) if self._how.gradients == "sparse" and p.dim() else gradient.clone()
        return torch.tensor(1.0)

    def moves(self, group: str) -> bool:
        """Whether a group moves within some steps in which everything trains."""
        before = self.values(group)
        for _ in range(WARMEST):
            self.run(ALL)
            if not same(before, self.values(group)):
                return True
        return False

    def update(self, group: str) -> list[Tensor]:
        """What a step in which everything trains adds to a group; one that draws draws the same in each trial."""
        torch.default_generator.manual_seed(0)
        before = self.values(group)
        self.run(ALL)
        return [new - old for old, new in zip(before, self.values(group), strict=True)]

    def moves_in_backward(self) -> bool:
        """Whether a backward alone moves anything."""
        before = self.values(*self.members)
        torch.stack([(p * p).sum().real for p in self._pool]).sum().backward()
        return not same(before, self.values(*self.members))

    def values(self, *groups: str) -> list[Any]:
        """The values of these groups now."""
        return [snapshot(p) for p in self._held(*groups)]

    def states(self, *groups: str) -> list[Any]:
        """What the optimizer, and those in it, keep for these groups now."""
        return [states_of(self.optimizer, p) for p in self._held(*groups)]

    @torch.no_grad()
    def forget(self, group: str) -> None:
        """Drop the optimizer's state of a group; the values of every parameter are the first ones again."""
        for p in self._held(group):
            self.optimizer.state.pop(p, None)
        for p, first in zip(self.twin.stand_ins.likes, self._how.plan.make().likes, strict=True):
            p.copy_(first)

    def step_counters(self) -> list[Any]:
        """The entries of the param groups now."""
        return [snapshot(options(group)) for group in self.optimizer.param_groups]

    def attributes(self) -> dict[str, Any]:
        """What the optimizer, and those in it, keep elsewhere."""
        found = {}
        for number, member in enumerate(family(self.optimizer)):
            for key, value in vars(member).items():
                listed = isinstance(value, (list, tuple)) and any(isinstance(p, torch.nn.Parameter) for p in value)
                if not (NOT_OURS.fullmatch(key) or isinstance(value, Optimizer) or listed):
                    found["optimizer." * number + key] = snapshot(value, 3)
        return found


def _groups(held: StandIns) -> dict[str, tuple[torch.nn.Parameter, ...]]:
    """The groups of a trial that hold something."""
    moving = held.moving
    first = moving[:1] if len(moving) > 1 else []
    groups = {MOVING: chain(*moving[len(first) :]), FIRST: chain(*first), FROZEN: held.frozen}
    return {group: members for group, each in groups.items() if (members := tuple(each))}


def _raise_rates(optimizer: Optimizer) -> None:
    """Let no param group have a learning rate at which nothing would be seen to move."""
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if isinstance(rate, (int, float, Tensor)) and float(rate) < _LEAST_RATE:
            group["lr"] = torch.full_like(rate, _LEAST_RATE) if isinstance(rate, Tensor) else _LEAST_RATE


def _seed(twin: Twin) -> None:
    """Let an optimizer that draws draw the same in each trial; `undisturbed` puts the generators back."""
    random.seed(0)
    torch.default_generator.manual_seed(0)
    for device in {p.device for p in twin.stand_ins.likes if p.is_cuda}:
        torch.cuda.default_generators[device.index or 0].manual_seed(0)


def _gradients(parameter: Tensor, seed: int) -> list[Tensor]:
    """A few gradients of a parameter, the same in each process."""
    generator = torch.Generator("cpu").manual_seed(1000 + seed)
    kind = torch.complex64 if parameter.is_complex() else torch.float32
    made = [torch.randn(parameter.shape, generator=generator, dtype=kind, device="cpu") for _ in range(5)]
    return [each.to(parameter.device, parameter.dtype) for each in made]
