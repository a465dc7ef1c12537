"""Skips the backward work of what is frozen, while a batch runs; `holds/skip_decision.py` says where that is safe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.holds.fsdp2 import Shards
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.patch import Patch
from lightning_freeze.plan.membership import ParamSet, Split


def _as_it_was(original: Callable[..., Any], users: Callable[[], Iterator[SkipBackward]]) -> Any:
    def copied(parameter: nn.Parameter, *args: Any) -> Any:
        held = any(id(parameter) in user.held for user in users())
        if held:
            parameter.requires_grad = True
        try:
            return original(parameter, *args)
        finally:
            if held:
                parameter.requires_grad = False

    return copied


_FAST_ATTENTION = Patch.of(torch.backends.mha, "_is_fastpath_enabled", lambda original, users: False)
_COPIES = [Patch.of(nn.Parameter, name, _as_it_was) for name in ("__deepcopy__", "__reduce_ex__")]


class SkipBackward(Hold):
    """Turns ``requires_grad`` off for what is frozen, whose gradients are set to None, and on again.

    Args:
        shards: The layers of FSDP2, which must show their own parameters, and be prepared where they train late.
        manual: Whether the model steps its optimizers itself, so that the next forward may come within the same batch.
        plain_attention: Whether attention's fast path is off meanwhile. In eval mode `torch.nn.MultiheadAttention` takes it
            where nothing requires a gradient, and it rounds otherwise.
        logged: The keys of messages that were logged already.
        describe: Says what trains, what is frozen, and where the run is, for messages.
    """

    def __init__(
        self,
        shards: Shards | None = None,
        manual: bool = False,
        plain_attention: bool = False,
        logged: set[str] | None = None,
        describe: Callable[[], tuple[str, str, str, str]] = lambda: ("", "", "", ""),
    ) -> None:
        self.active = False
        """Whether backward makes no gradients of what is frozen now."""
        self.allowed = True
        """Whether it may; revoked where code was compiled since."""
        self._shards = Shards(nn.Module()) if shards is None else shards
        self._manual = manual
        self._plain_attention = plain_attention
        self._describe = describe
        self._logged = set() if logged is None else logged
        self.held: dict[int, nn.Parameter] = {}
        """The parameters whose ``requires_grad`` is off now, by identity."""
        self._released: dict[int, nn.Parameter] = {}
        self._split: Split | None = None
        self._paused: frozenset[int] = frozenset()  # what a pause released
        self._patched = False

    def turn_off(self, parameters: Iterable[nn.Parameter]) -> None:
        """These get no gradients from here on, except those that require none already."""
        held = self.held
        for parameter in parameters:
            if parameter.requires_grad or id(parameter) in self._released:
                held[id(parameter)] = parameter  # first, where an interrupt falls between
                parameter.requires_grad = False  # not requires_grad_(), which lazy parameters refuse
                parameter.grad = None
        if held:
            self._patch()

    def turn_on(self, parameters: Iterable[nn.Parameter]) -> None:
        """Those of these that are held get their gradients again."""
        held = self.held
        for parameter in parameters:
            if id(parameter) in held:
                parameter.requires_grad = True
                del held[id(parameter)]
                if self._manual:  # else it is between batches
                    self._released[id(parameter)] = parameter
        if self._plain_attention and not self.held:
            _FAST_ATTENTION.discard(self)

    def decided(self, split: Split) -> None:
        if self.active and self._manual:
            self._split = split
            self._hold()

    def replaced(self, pairs: Iterable[tuple[str, nn.Parameter, nn.Parameter]]) -> None:
        for _, old, new in pairs:
            if id(old) in self.held or id(old) in self._paused:
                new.requires_grad = True  # it may have been made with that of the old one

    def thaw(self, params: ParamSet, split: Split) -> None:
        if self.active:
            self.turn_on(params)

    def freeze(self, params: ParamSet, split: Split) -> None:
        self._split = split
        if self.active:
            self.turn_off(params)
            self._shards.prepare()

    def before_forward(self) -> None:
        if self.allowed and not self.active:
            self._hold()
            self.active, self._paused = True, frozenset()
        if self._released:
            self._settle()

    def pause(self) -> None:
        self._paused |= self.held.keys()
        self.turn_on([*self.held.values()])
        self._settle()
        self.active = self._patched = False
        for patch in _COPIES:
            patch.discard(self)

    def detach(self, bring_back: bool = True) -> None:
        self.pause()
        self._split = None

    def before_backward(self, loss: Tensor) -> None:
        """Let a loss that depends on nothing that trains update nothing, as without skipping, in place of torch's error."""
        if not self.held or loss.requires_grad:
            return
        loss.requires_grad_()
        if "loss" in self._logged:
            return
        self._logged.add("loss")
        trainable, frozen, when, place = self._describe()
        warnings.warn(
            f"a loss, {when}, depends on nothing that trains now{place}, so its backward updates nothing: trainable are "
            f"{trainable}; frozen are {frozen}. To update something, put a group that it depends on into the phase. If it "
            "does depend on what trains, an autograd function passes no gradient on above a frozen bottom: set "
            "`skip_backward: false`.",
            stacklevel=2,
        )

    def explain(self, error: BaseException) -> None:
        asks = any(text in str(error) for text in ("does not require grad", "doesn't require grad"))
        if self.held and isinstance(error, RuntimeError) and asks:
            error.add_note(
                f"freeze: {self._describe()[1]} are frozen now, and have requires_grad=False meanwhile. Code that asks for "
                "their gradients itself (`torch.autograd.grad`, `register_hook`) needs `skip_backward: false`."
            )

    def _patch(self) -> None:
        if self._plain_attention:
            _FAST_ATTENTION.add(self)
        if not self._patched:  # until a pause: what is held changes more often
            self._patched = True
            for patch in _COPIES:
                patch.add(self)

    def _settle(self) -> None:
        """Turn on what is held no more: code that toggled it may have restored what it found."""
        for key, parameter in self._released.items():
            if key not in self.held:
                parameter.requires_grad = True
        self._released.clear()

    def _hold(self) -> None:
        """Hold what is frozen, and nothing else."""
        self._shards.close()
        now = self._split.frozen if self._split is not None else ParamSet()
        frozen = set(map(id, now))
        self.turn_on([parameter for key, parameter in self.held.items() if key not in frozen])
        self.turn_off(now)
        self._shards.prepare()
