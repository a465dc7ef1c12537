"""Trials of an optimizer: steps in which groups of its parameters train; of a clone, under the holds of a run."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.holds.hold import Holds
from lightning_freeze.holds.param_groups import ExcludeParams
from lightning_freeze.holds.snapshots import same, snapshot
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.membership import Step
from lightning_freeze.probe.clone import clone_by_constructor, clone_by_parts, options
from lightning_freeze.probe.proxies import CloneError, Proxies, ProxyPlan, full_plan, nested_optimizers, small_plan

_WARMEST = 15  # steps in which an optimizer that only gathers at first should have moved something
_LEAST_RATE = 1e-3  # at less, what moves might not show; a warm-up begins at 0
TORCHS = re.compile(
    "state|param_groups|defaults|_opt_called|_zero_grad_profile_name|_optimizer_.*hooks|step|_step_count"
)
"""Attributes of an optimizer that are torch's own, and compared elsewhere or not at all."""

MOVING, FIRST, FROZEN = "moving", "first", "frozen"
"""The groups of a trial: what trains; the part of it in the first param group, where there are several; what is frozen."""
ALL = frozenset({MOVING, FIRST, FROZEN})

GRADIENTS = ("dense", "sparse", "graph")
"""What a step finds: dense or sparse gradients, or ``graph``, gradients that can be differentiated once more."""

Build = Callable[[Optimizer, Proxies], Optimizer]
_CLONES: Sequence[tuple[Callable[[Optimizer], ProxyPlan], Build]] = (
    (small_plan, clone_by_parts),
    (small_plan, clone_by_constructor),
    (full_plan, clone_by_parts),  # for shapes that must fit each other, as those of LoRA's pairs
)


@dataclass(frozen=True)
class StepRecipe:
    """How a clone is built and stepped."""

    plan: ProxyPlan
    build: Build  # makes the clone over the plan's proxies
    gradients: str = "dense"  # one of `GRADIENTS`
    closure: str = "no"  # see `step`
    reads_before_closure: bool = False  # gradients are set to None before a step with a closure, too


def step_recipes(optimizer: Optimizer, closure: bool | None, failures: list[str]) -> Iterator[StepRecipe]:
    """The recipes by which a clone can be built and makes two steps; why others fail is added to ``failures``."""
    closures = ("yes", "after backward", "pair", "no") if closure else ("no", "yes", "after backward", "pair")
    for make_plan, build in _CLONES:
        try:
            plan = make_plan(optimizer)
            for gradients, given in product(GRADIENTS, closures):
                recipe = StepRecipe(plan, build, gradients, given)
                try:
                    CloneTrial(optimizer, recipe).run(ALL, 2)
                except CloneError:
                    raise
                except Exception as error:  # third-party code of any kind
                    failures.append(f"{type(error).__name__}: {error}")
                else:
                    yield recipe
        except CloneError as error:
            failures.append(str(error))


def step(optimizer: Optimizer, closure: str, backward: Callable[[], Tensor]) -> None:
    """Make one step, where ``backward`` gives gradients.

    It is given ``no`` closure; ``yes``; ``after backward``, for those that read gradients before they call it (SAM); or a
    ``pair``, for those whose closure returns outputs and loss (GSAM).
    """
    if closure in ("no", "after backward"):
        backward()
    # The closures return a tensor, as torch documents.
    given: dict[str, tuple[Any, ...]] = {"no": (), "pair": (lambda: (None, backward()),)}
    optimizer.step(*given.get(closure, (backward,)))


def states_of(optimizer: Optimizer, parameter: Tensor) -> list[Any]:
    """What an optimizer and each nested one keep for a parameter; nothing and an empty dict are the same."""
    return [snapshot(getattr(member, "state", {}).get(parameter, {})) for member in nested_optimizers(optimizer)]


def distance(update: Tensor) -> float:
    """The L2 norm of an update."""
    return float(torch.linalg.vector_norm(update.detach().double()))


def error_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Trial:
    """Steps of an optimizer, and what becomes of some groups of its parameters."""

    def __init__(
        self, optimizer: Optimizer, members: Mapping[str, tuple[nn.Parameter, ...]], gradients: str, closure: str
    ) -> None:
        self.optimizer, self.members = optimizer, members
        self.count = 0
        self._gradients, self._closure = gradients, closure  # see `StepRecipe`

    def run(self, trains: frozenset[str], times: int = 1) -> None:
        """Make steps in which these groups train."""
        for _ in range(times):
            self.count += 1
            self._begin(trains)
            step(self.optimizer, self._closure, self._backward)

    def values(self, *groups: str) -> list[Any]:
        """The values of these groups now."""
        return [snapshot(p) for p in self._held(*groups)]

    def states(self, *groups: str) -> list[Any]:
        """What the optimizer and nested ones keep for these groups now."""
        return [states_of(self.optimizer, p) for p in self._held(*groups)]

    def _held(self, *groups: str) -> list[nn.Parameter]:
        return [p for group in groups for p in self.members.get(group, ())]

    def _begin(self, trains: frozenset[str]) -> None:
        raise NotImplementedError

    def _backward(self) -> Tensor:
        raise NotImplementedError


class CloneTrial(Trial):
    """A clone under the holds of a run, given gradients; ``excludes``: what is frozen is excluded from its param groups."""

    def __init__(self, optimizer: Optimizer, recipe: StepRecipe, excludes: bool = False) -> None:
        self._plan, self._proxies = recipe.plan, Proxies(recipe.plan)
        clone = recipe.build(optimizer, self._proxies)
        super().__init__(clone, _groups(self._proxies), recipe.gradients, recipe.closure)
        _seed([*self._proxies.originals])
        self._backwards = 0
        self.hooked: list[Step] = []  # each time that torch's step hooks ran
        self._pool = {
            p: [torch.full_like(p, 0.25)] if recipe.plan.uniform else _gradients(p, number)
            for number, p in enumerate(self._held(*self.members))
        }
        _raise_rates(clone)
        self._step = Step(0, clone, self.members, excludes=excludes, reads_before_closure=recipe.reads_before_closure)
        StepHooks([self._step], Holds([SetGradsToNone(), ExcludeParams()]), ran=self.hooked.append).attach()

    def _begin(self, trains: frozenset[str]) -> None:
        self._step.train(trains.intersection(self.members))

    @property
    def reentrant(self) -> bool:
        """Whether steps have called their closure more than once."""
        return self._backwards > self.count * (2 if self._closure == "after backward" else 1)

    @torch.enable_grad()
    def _backward(self) -> Tensor:
        self._backwards += 1
        gradients = {p: pool[self.count % len(pool)] for p, pool in self._pool.items()}
        if self._gradients == "graph":
            loss = torch.stack([(p * p * p * p / 4 + p * gradients[p]).sum().real for p in gradients]).sum()
            made = torch.autograd.grad(loss, [*gradients], create_graph=True)
            for p, gradient in zip(gradients, made, strict=True):
                p.grad = gradient
            return loss
        for p, gradient in gradients.items():
            p.grad = gradient.to_sparse(1) if self._gradients == "sparse" and p.dim() else gradient.clone()
        return torch.tensor(1.0)

    def moves(self, group: str) -> bool:
        """Whether a group moves within some steps in which everything trains."""
        before = self.values(group)
        for _ in range(_WARMEST):
            self.run(ALL)
            if not same(before, self.values(group)):
                return True
        return False

    def update(self, group: str) -> list[Tensor]:
        """What a step in which everything trains adds to a group, with the same random numbers in each trial."""
        torch.default_generator.manual_seed(0)
        before = self.values(group)
        self.run(ALL)
        return [new - old for old, new in zip(before, self.values(group), strict=True)]

    def moves_in_backward(self) -> bool:
        """Whether a backward alone moves anything."""
        before = self.values(*self.members)
        torch.stack([(p * p).sum().real for p in self._pool]).sum().backward()
        return not same(before, self.values(*self.members))

    @torch.no_grad()
    def forget(self, group: str) -> None:
        """Drop the optimizer's state of a group, and restore the first values of every parameter."""
        for p in self._held(group):
            self.optimizer.state.pop(p, None)
        for p, first in zip(self._proxies.originals, Proxies(self._plan).originals, strict=True):
            p.copy_(first)

    def group_entries(self) -> list[dict[str, Any]]:
        """The entries of the param groups now."""
        return [snapshot(options(group)) for group in self.optimizer.param_groups]

    def attributes(self) -> dict[str, Any]:
        """What the optimizer and nested ones keep elsewhere."""
        found = {}
        for number, member in enumerate(nested_optimizers(self.optimizer)):
            for key, value in vars(member).items():
                listed = isinstance(value, (list, tuple)) and any(isinstance(p, nn.Parameter) for p in value)
                if not (TORCHS.fullmatch(key) or isinstance(value, Optimizer) or listed):
                    found["optimizer." * number + key] = snapshot(value, 3)
        return found


def _groups(proxies: Proxies) -> Mapping[str, tuple[nn.Parameter, ...]]:
    frozen = set(proxies.frozen)
    trained = [[p for p in held if p not in frozen] for held in proxies.groups.values()]
    trained = list(filter(None, trained))
    first = trained.pop(0) if len(trained) > 1 else []
    groups = {MOVING: [*chain(*trained)], FIRST: first, FROZEN: proxies.frozen}
    return {group: tuple(held) for group, held in groups.items() if held}


def _raise_rates(optimizer: Optimizer) -> None:
    """Raise learning rates at which nothing would be seen to move."""
    for group in optimizer.param_groups:
        rate = group.get("lr")
        if isinstance(rate, (int, float, Tensor)) and float(rate) < _LEAST_RATE:
            group["lr"] = torch.full_like(rate, _LEAST_RATE) if isinstance(rate, Tensor) else _LEAST_RATE


def _seed(parameters: Sequence[Tensor]) -> None:
    """Give each trial the same random numbers; `undisturbed` restores the generators."""
    random.seed(0)
    torch.default_generator.manual_seed(0)
    for device in {p.device for p in parameters if p.is_cuda}:
        torch.cuda.default_generators[device.index or 0].manual_seed(0)


def _gradients(parameter: Tensor, seed: int) -> list[Tensor]:
    """A few gradients of a parameter, the same in each process."""
    generator = torch.Generator("cpu").manual_seed(1000 + seed)
    kind = torch.complex64 if parameter.is_complex() else torch.float32
    made = [torch.randn(parameter.shape, generator=generator, dtype=kind, device="cpu") for _ in range(5)]
    return [each.to(parameter.device, parameter.dtype) for each in made]
