"""The comparison of methods of freezing: what becomes of a frozen weight, measured for any optimizer."""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from lightning_freeze.controller import FreezeController
from lightning_freeze.errors import SelectionError, UnsupportedError
from lightning_freeze.holds.snapshots import changed, same
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.probe.clone import enter_train_mode, undisturbed
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.probe.trial import ALL, FROZEN, GRADIENTS, MOVING, Trial, distance, error_line
from lightning_freeze.probe.verdict import hold_method

WARM_UP = 3  # steps in which everything trains, before a layer is frozen
STEPS = 20  # steps in which it is frozen, by default
ZEROS, NONE, OFF, STALE, RATE, OURS = WAYS = (
    "zero gradients",
    "None",
    "requires_grad=False",
    "stale gradient",
    "lr=0",
    "lightning-freeze",
)
"""The methods of freezing."""

# `state moved`: only its optimizer state; `unknown`: the method does not apply to this optimizer.
Outcome = Literal["held", "state moved", "moved", "refused", "raised", "unknown"]
_LR = 0.01  # of a class that has no default
_MODELS = ("model", "module")
_BY_WAY = {"none": "None", "excluded": "excluded", "unknown": "None, unproved"}


@dataclass(frozen=True)
class Cell:
    """What became of the frozen weight, by one optimizer and one method.

    Args:
        outcome: In a word.
        share: How far it moved (L2), as a share of how far the trained weight moved in the same steps.
        state: The entries of its optimizer state that changed.
        says: How lightning-freeze held it, why it refused, what was raised, or why nothing is known.
    """

    outcome: Outcome
    share: float | None = None
    state: tuple[str, ...] = ()
    says: str = ""


@dataclass(frozen=True)
class Row:
    """What one optimizer does: method to cell, or why nothing could be measured."""

    name: str
    cells: Mapping[str, Cell] = field(default_factory=dict)
    traits: OptimizerTraits | None = None
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """How an optimizer is made, over any parameters.

    Required arguments that are not given are put in where they are plain: a learning rate of 0.01, the model, AdamW where
    it wraps an optimizer.

    Example:
        >>> Recipe(torch.optim.SGD, {"momentum": 0.9}).name
        'SGD(momentum=0.9)'
    """

    kind: type[Optimizer]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> str:
        """The class, with the arguments given or put in."""
        every = {**self.arguments, **{key: value for key, value in self.put_in.items() if key not in _MODELS}}
        given = ", ".join(f"{key}={_written(value)}" for key, value in every.items())
        return f"{self.title or self.kind.__name__}{f'({given})' if given else ''}"

    @property
    def put_in(self) -> dict[str, Any]:
        """The required arguments that were not given; of the model, only the name is known yet."""
        arguments = inspect.signature(self.kind).parameters
        known: dict[str, Any] = {**dict.fromkeys(_MODELS), "base_optimizer": AdamW, "lr": _LR}
        if [*arguments][:1] == ["optimizer"]:
            known["optimizer"] = AdamW
        asked = [name for name, each in arguments.items() if each.default is each.empty and name not in self.arguments]
        return {name: known[name] for name in asked if name in known}

    def make(self, model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
        """The optimizer over these param groups, ready to train."""
        try:
            optimizer = self._made(model, groups)
        except Exception as error:
            try:  # what several Muons ask of each group
                optimizer = self._made(model, [{**group, "use_muon": True} for group in groups])
            except Exception:
                raise error from None
        enter_train_mode(optimizer)
        return optimizer

    def _made(self, model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
        fresh = [dict(group) for group in groups]  # which torch writes into
        given = {key: model if key in _MODELS else value for key, value in self.put_in.items()} | dict(self.arguments)
        first, *others = inspect.signature(self.kind).parameters
        kind: Any = self.kind
        if first == "optimizer":
            given[first] = AdamW(fresh)
        elif "params" in others:
            given["params"] = fresh
        optimizer: Optimizer = kind(**given) if first in given else kind(fresh, **given)
        return optimizer


def _written(value: object) -> str:
    return value.__name__ if isinstance(value, type) else f"{value!r}"


def measure(recipe: Recipe, steps: int = STEPS) -> Row:
    """What an optimizer does to a frozen weight: two layers train, then one is frozen by each method for some steps.

    Nothing that the optimizer raises is raised from here. Random states are restored, and what it prints is dropped.

    Example:
        >>> row = measure(Recipe(torch.optim.AdamW))
        >>> row.cells["zero gradients"].outcome, row.cells["zero gradients"].state
        ('moved', ('exp_avg', 'exp_avg_sq', 'step'))
        >>> row.cells["None"].outcome, row.cells["lightning-freeze"].outcome
        ('held', 'held')
    """
    with undisturbed(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # of classes that warn of themselves at every step
        try:
            made = _Run(recipe)
        except Exception as error:  # third-party code of any kind, here and below
            return Row(recipe.name, why=f"could not be built: {_named(error)}")
        try:
            traits = probe_optimizer(made.optimizer)
        except Exception as error:
            traits = OptimizerTraits(type(made.optimizer).__qualname__, why=_named(error))
        how, why = _how_to_step(recipe)
        if how is None and traits.steps_in_backward:
            return Row(recipe.name, traits=traits, why="updates parameters within backward, so a run refuses it")
        if how is None:
            return Row(recipe.name, traits=traits, why=f"could not be stepped: {why}")
        return Row(recipe.name, {way: _cell(recipe, how, way, steps) for way in WAYS}, traits)


class _Layers(nn.Module):
    """Two layers, one of which is to be frozen."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.frozen: nn.Module = nn.Embedding(8, 8, sparse=True) if sparse else nn.Linear(8, 8, bias=False)
        self.trainable: nn.Module = nn.Embedding(8, 8, sparse=True) if sparse else nn.Linear(8, 4, bias=False)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8**0.5)
        # More numbers to fit than there are weights, so that no optimizer is ever done.
        self._batches = [torch.randn(64, 8, generator=generator) for _ in range(5)]
        self._targets = [torch.randn(64, 4, generator=generator) for _ in range(5)]
        self._rows = [torch.randint(4, (16,), generator=generator) for _ in range(5)]
        self._sparse = sparse

    def loss(self, batch: int, cut: bool) -> Tensor:
        """The loss of a batch, without a gradient of the first layer where that is cut off."""
        at = batch % len(self._batches)
        rows = self._rows[at]
        features = self.frozen(rows) if self._sparse else torch.tanh(self.frozen(self._batches[at]))
        features = features.detach() if cut else features
        if self._sparse:
            return functional.mse_loss(features * self.trainable(rows + at % 4), features.new_ones(()).expand(16, 8))
        return functional.mse_loss(self.trainable(features), self._targets[at])


class _Run(Trial):
    """Training of the two layers, of which one is frozen by a method."""

    def __init__(self, recipe: Recipe, gradients: str = "dense", closure: str = "no", way: str = "") -> None:
        self.model = _Layers(gradients == "sparse")
        self.frozen, self.trained = both = tuple(self.model.parameters())
        optimizer = recipe.make(self.model, [{"params": [p]} for p in both] if way == RATE else [{"params": [*both]}])
        super().__init__(optimizer, {FROZEN: both[:1], MOVING: both[1:]}, gradients, closure)
        self.controller: FreezeController | None = None
        self._way, self._by = way, ""

    def _begin(self, trains: frozenset[str]) -> None:
        before, self._by = self._by, "" if FROZEN in trains else self._way
        if self.controller is not None:  # which freezes by its schedule
            self.controller.begin_step()
        elif self._by == OFF:
            self.frozen.requires_grad_(False)
        elif self._by == RATE != before:  # once: some set their rate themselves
            for group in self.optimizer.param_groups:
                if any(p is self.frozen for p in group["params"]):
                    group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0

    @torch.enable_grad()
    def _backward(self) -> Tensor:
        self.trained.grad = None
        if self._by == ZEROS:  # as `zero_grad(set_to_none=False)` leaves them
            self.frozen.grad = torch.zeros_like(self.frozen if self.frozen.grad is None else self.frozen.grad)
        elif self._by not in (STALE, OFF):
            self.frozen.grad = None
        loss = self.model.loss(self.count, cut=self._by in (ZEROS, NONE, STALE))
        torch.autograd.backward(loss, create_graph=self._gradients == "graph")
        if self.controller is not None:
            self.controller.before_optimizer_step(self.optimizer)
        return loss

    def state(self) -> dict[str, Any]:
        """The frozen layer's entries in the state of the optimizer, and of those in it."""
        found: dict[str, Any] = {}
        for number, held in enumerate(*self.states(FROZEN)):
            entries = held if isinstance(held, Mapping) else {"state": held}
            found |= {"optimizer." * number + str(key): value for key, value in entries.items()}
        return found


def _how_to_step(recipe: Recipe) -> tuple[tuple[str, str] | None, str]:
    """The gradients and closure by which an optimizer steps, best so that something moves; or None, and why not."""
    still, why = None, ""
    for how in product(GRADIENTS, ("no", "yes", "after backward")):
        try:
            run = _Run(recipe, *how)
            before = run.values(MOVING)
            run.run(ALL, WARM_UP)
        except Exception as error:
            why = why or _named(error)  # what the plainest way raised is the answer
            continue
        if not same(before, run.values(MOVING)):
            return how, ""
        still = still or how
    return still, why


def _cell(recipe: Recipe, how: tuple[str, str], way: str, steps: int) -> Cell:
    try:
        run = _Run(recipe, *how, way)
        if way == RATE and not all("lr" in group for group in run.optimizer.param_groups):
            return Cell("unknown", says="its param groups have no `lr`")
        if way != OURS:
            return _outcome(run, steps)
        schedule = Phases([Phase(["all"], updates=WARM_UP), Phase(["trainable"])])
        groups = {"frozen": "frozen", "trainable": "trainable"}
        with FreezeController(run.model, schedule, groups) as run.controller:
            run.controller.attach(run.optimizer, closures=how[1] != "no")
            run.controller.begin()
            return _outcome(run, steps, _BY_WAY[hold_method(run.controller.traits[0], 0)])
    except (UnsupportedError, SelectionError) as error:
        return Cell("refused", says=str(error))
    except Exception as error:
        return Cell("raised", says=_named(error))


def _outcome(run: _Run, steps: int, held: str = "") -> Cell:
    run.run(ALL, WARM_UP)
    if run.controller is not None and "frozen" in run.controller.trainable:
        return Cell("unknown", says=f"of {WARM_UP} steps, the controller counted {run.controller.total}")
    (before, trained), state = run.values(FROZEN, MOVING), run.state()
    run.run(ALL - {FROZEN}, steps)
    entries = tuple(sorted(changed(state, run.state())))
    if same(before, run.frozen):
        if same(trained, run.trained):
            return Cell("unknown", None, entries, "the trained weight did not move either")
        return Cell("state moved" if entries else "held", 0.0, entries, held)
    share = distance(run.frozen - before) / (distance(run.trained - trained) or math.nan)
    if not math.isfinite(share):
        return Cell("moved", None, entries, "by a distance that is not a finite share of the trained weight's")
    return Cell("moved", share, entries, held)


def _named(error: Exception) -> str:
    return error_line(error).removesuffix(": ")
