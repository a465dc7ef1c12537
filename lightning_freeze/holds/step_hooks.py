"""The gate: empties the gradients of frozen parameters before their optimizer steps, and counts what truly ran."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from types import MethodType
from typing import Any, TypeVar

import torch
from torch.nn import Parameter
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer

from lightning_freeze.holds.left_out import LeftOut
from lightning_freeze.holds.param_groups import SplitGroups

_KEPT_SETS = 64
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Sides:
    """One optimizer's parameters under one trainable set; ``spots`` has one of each frozen group."""

    groups: frozenset[str]
    frozen: tuple[Parameter, ...]
    spots: tuple[Parameter, ...]
    active: tuple[tuple[str, tuple[Parameter, ...]], ...]

    @cached_property
    def identities(self) -> frozenset[int]:
        """Those of what is frozen."""
        return frozenset(map(id, self.frozen))


@dataclass
class Lane:
    """One optimizer and what it holds.

    Args:
        index: Its place among the run's optimizers.
        optimizer: The optimizer.
        members: Group to the parameters of it that this optimizer holds, ``rest`` included.
        attempted: Whether it came to a step in this epoch, a skipped one included.
        asked: Whether its step is none: `torch.distributed.checkpoint` makes one at a rate of zero, to see its state.
        leaves_out: Whether what is frozen is left out of the optimizer's param groups for each step, since it moves what
            has no gradient.
        early: Whether it reads gradients before it calls its closure, so that they are emptied before the step, too.
        param_groups: How many param groups the optimizer had when ``members`` was made.
    """

    index: int
    optimizer: Optimizer
    members: Mapping[str, tuple[Parameter, ...]]
    attempted: bool = False
    asked: bool = False
    leaves_out: bool = False
    early: bool = False
    param_groups: int = 0
    _sides: dict[frozenset[str], _Sides] = field(default_factory=dict, repr=False)
    _now: _Sides = field(default=_Sides(frozenset(), (), (), ()), repr=False)
    _updated: frozenset[str] = field(default=frozenset(), repr=False)
    _factors: dict[int, float] = field(default_factory=dict, repr=False)
    _split: SplitGroups | None = field(default=None, repr=False)
    _left: LeftOut | None = field(default=None, repr=False)
    _depth: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.param_groups = len(self.optimizer.param_groups)

    def rebind(self, members: Mapping[str, tuple[Parameter, ...]]) -> None:
        """The optimizer holds other parameters now; say anew what it is to train."""
        self.members = members
        self.param_groups = len(self.optimizer.param_groups)
        self._sides.clear()

    def train(self, groups: frozenset[str]) -> None:
        """From here on these groups train and the others are frozen."""
        sides = self._sides.get(groups)
        if sides is None:
            if len(self._sides) >= _KEPT_SETS:
                self._sides.clear()
            frozen = [held for group, held in self.members.items() if group not in groups]
            active = tuple([(group, held) for group, held in self.members.items() if group in groups])
            sides = _Sides(
                frozenset([group for group, _ in active]),
                tuple(chain.from_iterable(frozen)),
                tuple([held[0] for held in frozen]),
                active,
            )
            self._sides[groups] = sides
        self._now = sides

    def rate(self, rates: Mapping[str, float]) -> None:
        """From here on the learning rates of these groups are multiplied at each step.

        Args:
            rates: Group to factor, where that is not 1.
        """
        self._factors = {id(p): factor for group, factor in rates.items() for p in self.members.get(group, ())}

    def split(self) -> None:
        """Right before a step, give each group its own learning rate."""
        if self._factors and self._split is None:  # a step may call its closure more than once
            self._split = SplitGroups(self.optimizer, self._factors)

    def leave_out(self) -> None:
        """Take what is frozen out of the param groups, where the optimizer moves it otherwise."""
        if self.leaves_out and self._left is None and self._now.frozen:
            self._left = LeftOut(self.optimizer, self._now.identities)

    def put_back(self) -> None:
        """The param groups hold everything again."""
        self.unite()
        if self._left is not None:
            self._left.put_back()
            self._left = None

    def unite(self) -> None:
        """The parts that `split` made are one again."""
        if self._split is not None:
            self._split.merge()
            self._split = None

    def merge(self) -> None:
        """After a step, or after one that failed: the param groups as the optimizer's owner made them."""
        self._depth = 0
        self.put_back()

    @property
    def whole(self) -> bool:
        """Whether the param groups are as the optimizer's owner made them."""
        return self._left is None and self._split is None

    def enter(self) -> None:
        """A step begins; one of a class that calls its parent's is within another."""
        self._depth += 1

    def leave(self) -> None:
        """A step ends."""
        self._depth -= 1
        if self._depth <= 0:
            self.merge()

    @property
    def training(self) -> frozenset[str]:
        """The groups of this optimizer that train now."""
        return self._now.groups

    def hold(self) -> None:
        """Empty the gradients of what is frozen."""
        for parameter in self._now.frozen:
            parameter.grad = None

    def bypassed(self, everywhere: bool) -> list[Parameter]:
        """What is frozen and has a gradient all the same.

        Args:
            everywhere: Whether to look at every parameter, or at one of each group.
        """
        looked_at = self._now.frozen if everywhere else self._now.spots
        return [parameter for parameter in looked_at if parameter.grad is not None]

    @property
    def derived(self) -> bool:
        """Whether there was a backward for what trains."""
        return any(parameter.grad is not None for _, held in self._now.active for parameter in held)

    def note_gradients(self) -> None:
        """Remember which groups have a gradient, right before the step."""
        now = self._now
        without = [group for group, held in now.active if held[0].grad is None and _without_gradient(held)]
        self._updated = now.groups.difference(without) if without else now.groups

    def take_updated(self) -> frozenset[str]:
        """The groups that the step has updated."""
        updated, self._updated = self._updated, frozenset()
        return updated


def _without_gradient(held: Sequence[Parameter]) -> bool:
    """Whether no parameter of a group has a gradient.

    Of those without elements, which FSDP1 keeps on other ranks as a whole, it is not known; a group of nothing else is taken
    to have one.
    """
    here = [parameter for parameter in held if isinstance(parameter, UninitializedTensorMixin) or parameter.numel()]
    return bool(here) and all(parameter.grad is None for parameter in here)


@torch._disable_dynamo  # type: ignore[attr-defined]
def _unseen(function: Callable[..., _T], *args: Any) -> _T:
    """Call a hook where a compiled optimizer step leaves it alone.

    What the hooks read changes with each step, such as the counts of updates: compiled with the step, every step would
    ask for graphs of its own, until torch gives up. Only a step that is being compiled comes this way, since the detour
    takes longer than what a hook may cost.
    """
    return function(*args)


def _only_asks(optimizer: Optimizer) -> bool:
    """Whether a step is to make an optimizer's first state and nothing else: no rate, no gradient, no state yet."""
    if optimizer.state or not all("lr" in group and float(group["lr"]) == 0 for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not any(bool((g.to_local() if hasattr(g, "to_local") else g).any()) for g in gradients)


def _listen(optimizer: Optimizer) -> Callable[[], None]:
    """Let an optimizer whose constructor leaves out torch's own run step hooks; one that runs them is left as it is.

    Returns:
        What undoes it.
    """
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        hooks = getattr(optimizer, name, {})
        if type(hooks) is dict:  # none, or one that torch cannot take a hook out of again
            setattr(optimizer, name, OrderedDict(hooks))
    if getattr(type(optimizer).step, "hooked", False):
        return lambda: None
    own = vars(optimizer).get("step")  # a learning-rate scheduler's
    inner: Any = optimizer.step
    # On the object: a class that runs hooks breaks those of its objects that have none.
    outer: Any = MethodType(Optimizer.profile_hook_step(lambda _, *args, **kwargs: inner(*args, **kwargs)), optimizer)
    outer.__func__.__dict__.update(getattr(inner, "__dict__", {}))
    vars(optimizer)["step"] = outer

    def undo() -> None:
        if vars(optimizer).get("step") is outer:
            del vars(optimizer)["step"]
            if own is not None:
                vars(optimizer)["step"] = own

    return undo


class Gate:
    """Holds the frozen parameters of every optimizer still, through torch's own step hooks.

    Frozen gradients are emptied twice: by `hold`, early enough to be left out of clipping, and again at the last moment
    before the step, after everything that could have filled them since. With a closure that moment is inside the step,
    so the closure is wrapped. A step that is compiled runs the hooks as they are, between its graphs.

    Args:
        lanes: The optimizers and what they hold.
        before_step: Called with the lane at the last moment before its step.
        after_step: Called with the lane, the groups updated and the frozen parameters that had a gradient all the same,
            after a step that was not skipped by a scaler.
        changed: Called when an optimizer comes to a step with another number of param groups than it had.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        before_step: Callable[[Lane], None],
        after_step: Callable[[Lane, frozenset[str], Sequence[Parameter]], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.lanes = tuple(lanes)
        self._by_optimizer = {id(lane.optimizer): lane for lane in lanes}
        self._before_step = before_step
        self._after_step = after_step
        self._changed = changed
        self._hooks: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self.last_moment = True
        """Whether gradients are emptied again right before the step; switched off only to prove that the audit sees."""

    def lane(self, optimizer: object) -> Lane | None:
        """The lane of an optimizer, or of the Lightning wrapper around it."""
        return self._by_optimizer.get(id(optimizer)) or self._by_optimizer.get(
            id(getattr(optimizer, "optimizer", None))
        )

    def attach(self) -> None:
        """Hook into every optimizer. Safe to call again."""
        if self._hooks:
            return
        for lane in self.lanes:
            self._undo.append(_listen(lane.optimizer))
            self._hooks.append(lane.optimizer.register_step_pre_hook(self._pre_step))
            self._hooks.append(lane.optimizer.register_step_post_hook(self._post_step))
            if lane.leaves_out:  # before hooks that somebody has registered earlier
                first = lane.optimizer.register_step_post_hook(self._back)
                lane.optimizer._optimizer_step_post_hooks.move_to_end(first.id, last=False)  # type: ignore[attr-defined]
                self._hooks.append(first)

    def detach(self) -> None:
        """Take every hook out again."""
        while self._hooks:
            self._hooks.pop().remove()
        while self._undo:
            self._undo.pop()()
        for lane in self.lanes:
            lane.merge()

    def _pre_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.compiler.is_dynamo_compiling():
            return _unseen(Gate._pre_step, self, optimizer, args, kwargs)
        lane = self._by_optimizer[id(optimizer)]
        # torch hands its hooks the optimizer itself as the first of the arguments.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        lane.asked = "closure" in kwargs and closure is None and _only_asks(optimizer)
        if lane.asked:
            return None
        if lane.leaves_out:
            lane.enter()
        if not callable(closure):
            self._last_moment(lane)
            return None
        if lane.leaves_out or lane.early:  # it may act before it calls its closure, or call none
            lane.attempted = True
            self._hold_still(lane)

        def held() -> Any:
            lane.put_back()  # for whatever the closure does with the optimizer: a checkpoint, another param group
            result = closure()
            self._last_moment(lane)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": held}
        return (args[0], held, *args[2:]), kwargs

    def _last_moment(self, lane: Lane) -> None:
        if torch.compiler.is_dynamo_compiling():  # where the step's closure is compiled with it
            return _unseen(Gate._last_moment, self, lane)
        lane.attempted = True
        lane.unite()  # where the step before failed
        if lane.whole and len(lane.optimizer.param_groups) != lane.param_groups:
            self._changed()
        self._before_step(lane)
        self._hold_still(lane)

    def _hold_still(self, lane: Lane) -> None:
        """From here on the step finds of what is frozen no gradient, and nothing at all where that is left out."""
        if self.last_moment:
            lane.hold()
        lane.note_gradients()
        if self.last_moment:
            lane.leave_out()
        lane.split()

    def _back(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After the outermost step, the param groups are whole again."""
        lane = self._by_optimizer[id(optimizer)]
        if lane._depth <= 1:
            lane.put_back()

    def _post_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_dynamo_compiling():
            return _unseen(Gate._post_step, self, optimizer, args, kwargs)
        lane = self._by_optimizer[id(optimizer)]
        if lane.asked:
            return
        lane.leave()
        updated = lane.take_updated()
        found_inf = getattr(optimizer, "found_inf", None)  # set by a GradScaler on fused optimizers alone
        if found_inf is not None and float(found_inf) != 0:
            return  # a fused optimizer's kernel has skipped the step by itself
        # Once emptied at the last moment, a frozen gradient can only come from a hook that runs after ours or from the
        # step itself. Where there is no such hook, one parameter of each group tells.
        everywhere = not self.last_moment or len(optimizer._optimizer_step_pre_hooks) > 1
        self._after_step(lane, updated, lane.bypassed(everywhere))
