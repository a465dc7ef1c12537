"""A trial: a twin of an optimizer under the gate, its small parameters given gradients as backward would."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
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


@dataclass(frozen=True)
class How:
    """How a twin is built and stepped.

    Args:
        plan: What stands in for the optimizer's parameters.
        build: How a twin is made over that.
        gradients: ``dense``, ``sparse``, or ``graph`` for those that derive them once more.
        closure: Whether its step is handed a closure: ``no``, ``yes``, ``after backward``, for those that read gradients
            before they call it (SAM), or ``pair``, for those whose closure says outputs and loss (GSAM).
        early: Whether gradients are emptied before a step that is handed a closure, too.
    """

    plan: Plan
    build: Callable[[Optimizer, StandIns], Twin]
    gradients: str
    closure: str
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
        for gradients, given in product(("dense", "sparse", "graph"), closures):
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


class Trial:
    """A twin under the gate.

    Args:
        optimizer: The optimizer that it is a twin of.
        how: How it is built and stepped.
        leaves_out: Whether what is frozen is left out of its param groups.
    """

    def __init__(self, optimizer: Optimizer, how: How, leaves_out: bool = False) -> None:
        self.twin = how.build(optimizer, how.plan.make())
        _seed(self.twin)
        self._how = how
        self.count = self.calls = self.heard = 0
        held = self.twin.stand_ins
        moving = {number: held.moving(number) for number in held.groups if held.moving(number)}
        first = tuple(moving)[:1] if len(moving) > 1 else ()
        members = {
            MOVING: tuple(p for number, each in moving.items() if number not in first for p in each),
            FIRST: tuple(p for number in first for p in moving[number]),
            FROZEN: held.frozen,
        }
        self.members = {group: held for group, held in members.items() if held}
        self._pool = {p: _gradients(p, number) for number, p in enumerate(self._every())}
        for group in self.twin.optimizer.param_groups:
            rate = group.get("lr")
            if isinstance(rate, (int, float, Tensor)) and float(rate) < _LEAST_RATE:
                group["lr"] = torch.full_like(rate, _LEAST_RATE) if isinstance(rate, Tensor) else _LEAST_RATE
        begin = getattr(self.twin.optimizer, "train", None)
        if callable(begin):  # schedule-free ones ask for it
            begin()
        self._step = Step(0, self.twin.optimizer, self.members, excludes=leaves_out, reads_early=how.early)
        StepHooks([self._step], Holds([SetGradsToNone(), ExcludeParams()]), ran=self._hear).attach()

    def _every(self) -> Iterator[torch.nn.Parameter]:
        for held in self.members.values():
            yield from held

    def _hear(self, *_: Any) -> None:
        self.heard += 1

    def run(self, trains: frozenset[str], times: int = 1) -> None:
        """Steps in which these groups train; every parameter is given a gradient, as backward would."""
        self._step.train(trains.intersection(self.members))
        for _ in range(times):
            self.count += 1
            if self._how.closure in ("no", "after backward"):
                self._backward()
                self.calls -= 1
            if self._how.closure == "no":
                self.twin.optimizer.step()
            elif self._how.closure == "pair":
                self.twin.optimizer.step(lambda: (None, self._backward()))  # type: ignore[arg-type,return-value]
            else:
                self.twin.optimizer.step(self._backward)  # type: ignore[arg-type]  # of a tensor, as torch documents

    @torch.enable_grad()
    def _backward(self) -> Tensor:
        self.calls += 1
        if self._how.gradients == "graph":
            held = list(self._every())
            loss = torch.stack(
                [(p * p * p * p / 4 + p * pool[self.count % len(pool)]).sum().real for p, pool in self._pool.items()]
            ).sum()
            for p, gradient in zip(held, torch.autograd.grad(loss, held, create_graph=True), strict=True):
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

    def moves_in_backward(self) -> bool:
        """Whether a backward alone moves anything."""
        before = [snapshot(p) for p in self._every()]
        torch.stack([(p * p).sum().real for p in self._every()]).sum().backward()
        return not all(map(same, before, self._every()))

    def values(self, *groups: str) -> list[Any]:
        """The values of these groups now."""
        return [snapshot(p) for group in groups for p in self.members.get(group, ())]

    def states(self, *groups: str) -> list[Any]:
        """What the optimizer, and those in it, keep for these groups now; nothing and an empty dict are the same."""
        members = family(self.twin.optimizer)
        held = [p for group in groups for p in self.members.get(group, ())]
        return [[snapshot(member.state.get(p)) or None for member in members] for p in held]

    def clocks(self) -> list[Any]:
        """The entries of the param groups now."""
        return [snapshot(options(group)) for group in self.twin.optimizer.param_groups]

    def attributes(self) -> dict[str, Any]:
        """What the optimizer, and those in it, keep elsewhere."""
        found = {}
        for number, member in enumerate(family(self.twin.optimizer)):
            for key, value in vars(member).items():
                listed = isinstance(value, (list, tuple)) and any(isinstance(p, torch.nn.Parameter) for p in value)
                if not (NOT_OURS.fullmatch(key) or isinstance(value, Optimizer) or listed):
                    found["optimizer." * number + key] = snapshot(value, 3)
        return found


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
