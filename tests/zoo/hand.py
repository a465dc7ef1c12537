"""What an optimizer really does to what is frozen: plain loops, without lightning-freeze."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.zoo.net import LAYERS, ZooNet, data
from tests.zoo.zoo import Specimen

STRETCHES = ((3, 21), (0, 20), (0, 23))
"""After how many steps something freezes, and for how many: until a step that is a multiple of usual periods, and until others."""

_WARM = 3
_PATIENCE = 16  # steps within which what trains should have moved; AdaShift gathers for ten


@dataclass
class Real:
    """What really happens, as `lightning_freeze.OptimizerTraits` names it; None where it could not be seen.

    Args:
        fails: Why it does not even train without anything frozen.
        reasons: What happened, of each that is False.
    """

    fails: str = ""
    skips_none: bool | None = None
    holds_excluded: bool | None = None
    all_none_ok: bool | None = None
    late_first_step_ok: bool | None = None
    steps_in_backward: bool | None = None
    closure_reentrant: bool | None = None
    step_counters: tuple[str, ...] = ()
    reasons: dict[str, str] | None = None


class Loop:
    """A net and its optimizer, stepped in a plain loop."""

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self.net = ZooNet(specimen)
        self.optimizer = specimen.build(self.net)
        self._batches = itertools.cycle(list(data(specimen, 7)))
        self.calls = 0

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """What is frozen at a time: each layer, and each param group where there are several."""
        groups = self.optimizer.param_groups if len(self.optimizer.param_groups) > 1 else []
        layers = {layer: self.net.layer(layer) for layer in LAYERS}
        return layers | {f"param group {number}": list(group["params"]) for number, group in enumerate(groups)}

    def step(self, held: Sequence[nn.Parameter] = (), excludes: bool = False, times: int = 1) -> None:
        """Steps in which these have no gradient, or are not in a param group, too."""
        for _ in range(times):
            x, y = next(self._batches)

            @torch.enable_grad()
            def closure(x: Tensor = x, y: Tensor = y) -> Any:
                self.calls += 1
                for p in self.net.parameters():
                    p.grad = None
                loss = self.net.loss(x, y)
                loss.backward(create_graph=self.specimen.graph)
                for p in held:
                    p.grad = None
                return (None, loss) if self.specimen.steps == "pair" else loss

            with _without(self.optimizer, held if excludes else []):
                if self.specimen.steps in ("plain", "after", "backward"):
                    closure()
                if self.specimen.steps == "plain":
                    self.optimizer.step()
                elif self.specimen.steps != "backward":
                    self.optimizer.step(closure)

    def look(self, held: Sequence[nn.Parameter]) -> tuple[list[bytes], list[Any]]:
        """The values and the states of these now."""
        return values(held), states(held, self.optimizer)

    def moves(self, held: Sequence[nn.Parameter]) -> bool:
        """Whether these train, within some steps."""
        before = values(held)
        for _ in range(_PATIENCE):
            self.step()
            if values(held) != before:
                return True
        return False


def values(held: Sequence[nn.Parameter]) -> list[bytes]:
    """The bits of parameters."""
    return [_bits(p) for p in held]


def states(held: Sequence[nn.Parameter], optimizer: Any) -> list[Any]:
    """What an optimizer, and those that it wraps, keep for parameters; nothing and an empty dict are the same."""
    return [[plain(member.state.get(p)) or None for member in members(optimizer)] for p in held]


def members(optimizer: Any) -> list[Any]:
    """An optimizer and those that it wraps."""
    held = [each for each in vars(optimizer).values() if isinstance(each, Optimizer)]
    return [optimizer, *(one for each in held for one in members(each) if one is not optimizer)]


def step_counters(optimizer: Any) -> list[dict[str, Any]]:
    """What param groups hold beside their parameters."""
    return [{key: plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def plain(value: Any) -> Any:
    """A copy of a value that compares by bits: tensors as their bytes, objects as what they hold."""
    if isinstance(value, Tensor):
        return _bits(value)
    if isinstance(value, dict):
        return {id(key) if isinstance(key, Tensor) else key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value.hex()
    if value is None or isinstance(value, (bool, int, str, torch.dtype, torch.device)):
        return value
    return plain(vars(value)) if hasattr(value, "__dict__") and not callable(value) else repr(value)


def _bits(tensor: Tensor) -> bytes:
    tensor = tensor.detach()
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return (
        repr((dense.dtype, tuple(dense.shape))).encode()
        + dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )


@contextmanager
def _without(optimizer: Any, held: Sequence[Tensor]) -> Any:
    """An optimizer whose param groups lack some parameters, and what is left empty by that."""
    lacking = {id(p) for p in held}
    groups = list(optimizer.param_groups) if held else []
    before = [list(group["params"]) for group in groups]
    for group in groups:
        group["params"][:] = [p for p in group["params"] if id(p) not in lacking]
    if groups:
        optimizer.param_groups[:] = [group for group in groups if group["params"]]
    try:
        yield
    finally:
        for group, whole in zip(groups, before, strict=True):
            group["params"][:] = whole
        if groups:
            optimizer.param_groups[:] = groups


def observe(specimen: Specimen) -> Real:
    """What a specimen really does."""
    real = Real(reasons={})
    try:
        loop = Loop(specimen)
        loop.step(times=_WARM)
        real.steps_in_backward = _moves_in_backward(specimen)
        if real.steps_in_backward:
            return real
        real.closure_reentrant = loop.calls - _WARM * (specimen.steps == "after") > _WARM
        for part, held in loop.parts().items():
            if not loop.moves(held):
                real.fails = f"{part} does not move in {_PATIENCE} steps"
                return real
    except Exception as error:  # third-party code of any kind
        real.fails = _named(error)
        return real
    real.skips_none, late = _holds(specimen, False, real, "skips_none")
    real.holds_excluded, late_left = _holds(specimen, True, real, "holds_excluded")
    out = not real.skips_none and bool(real.holds_excluded)
    if real.skips_none or real.holds_excluded:  # else it is nobody's matter
        real.late_first_step_ok = late_left if out else late
    real.all_none_ok = _idles(specimen, out, real)
    return real


def _moves_in_backward(specimen: Specimen) -> bool:
    loop = Loop(specimen)
    before = values(list(loop.net.parameters()))
    loop.net.loss(*next(iter(data(specimen, 1)))).backward(create_graph=specimen.graph)
    return before != values(list(loop.net.parameters()))


def _holds(specimen: Specimen, excludes: bool, real: Real, trait: str) -> tuple[bool, bool]:
    """Whether each part is held after some steps, and from the first on; and whether the latter trains later."""
    late = True
    try:
        for part, (first, steps) in itertools.product(Loop(specimen).parts(), STRETCHES):
            loop = Loop(specimen)
            held = loop.parts()[part]
            loop.step(times=first)
            before, ticks = loop.look(held), step_counters(loop.optimizer)
            loop.step(held, excludes, steps)
            after = loop.look(held)
            if before != after:
                what = "value" if before[0] != after[0] else "state"
                real.reasons[trait] = f"the {what} of {part}, frozen after {first} steps, changed"
                return False, False
            if first:
                real.step_counters = tuple(
                    sorted({*real.step_counters, *_changed(ticks, step_counters(loop.optimizer))})
                )
            try:
                thaws = loop.moves(held) or not loop.moves(list(loop.net.parameters()))  # TRAC stands still at times
            except Exception as error:
                real.reasons[f"{trait}, thawed after {first}"] = _named(error)
                thaws = False
            if not thaws and first:
                real.reasons.setdefault(trait, f"{part} does not train again")
                return False, False
            late = late and thaws
    except Exception as error:
        real.reasons[trait] = _named(error)
        return False, False
    return True, late


def _idles(specimen: Specimen, excludes: bool, real: Real) -> bool:
    try:
        loop = Loop(specimen)
        loop.step(times=_WARM)
        every = list(loop.net.parameters())
        before = loop.look(every)
        loop.step(every, excludes, _WARM)
        if before != loop.look(every):
            real.reasons["all_none_ok"] = "something moved"
            return False
        loop.step()
    except Exception as error:
        real.reasons["all_none_ok"] = _named(error)
        return False
    return True


def _changed(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> set[str]:
    pairs = list(zip(before, after, strict=True))
    return {key for one, other in pairs for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
