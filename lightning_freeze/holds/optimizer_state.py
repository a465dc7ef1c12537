"""The optimizer state of frozen groups: kept where it is, moved to host memory until they train again, or dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OptimizerState = Literal["keep", "offload", "reset"]
OPTIMIZER_STATE: tuple[OptimizerState, ...] = get_args(OptimizerState)

SHORTEST = 10
"""State is left where it is when its group trains again within so many updates: moving it would cost more than it saves."""

_SMALL = 4096  # bytes; what is smaller is not worth a copy of its own (Adam's counters of steps)

Held = tuple[Optimizer, nn.Parameter]
"""A parameter and an optimizer that holds it."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor of state belongs.

    Args:
        within: What holds it: an optimizer's state of a parameter, or a dict or list in there.
        key: Its key there.
        device: The device that it was on.
    """

    within: Any
    key: Any
    device: torch.device


class FrozenState:
    """What becomes of the optimizer state of a group while the group is frozen.

    ``keep`` leaves it where it is. ``reset`` drops it when the group freezes, as BAdam does (arXiv 2404.02827), so that
    the group begins anew when it trains again. ``offload`` moves the tensors in an optimizer's dict for a parameter, and
    in dicts and lists in there, from an accelerator to host memory and back. On CUDA that memory is pinned, the copies run
    on a stream of their own, beside the step's own work, and nothing waits on the host: a state that comes back is waited
    for, on the device, right before the optimizer's step. At a switch both groups' state is on the device for a moment.
    An optimizer's ``state_dict`` holds everything in each case, and can be loaded under any other.

    Args:
        mode: ``keep``, ``offload`` or ``reset``.
        moves: Which tensors are moved; by default those on an accelerator.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> adam = torch.optim.Adam([weight])
        >>> weight.grad = torch.ones(2)
        >>> adam.step()
        >>> state = FrozenState("reset")
        >>> state.freeze([(adam, weight)])
        >>> adam.state_dict()["state"]
        {}
    """

    def __init__(self, mode: OptimizerState = "keep", moves: Callable[[Tensor], bool] | None = None) -> None:
        self.mode = mode
        self.needs_refreeze = False
        """Whether an optimizer was given another state since, so that what is frozen must be frozen anew."""
        self._moves = moves or _on_accelerator
        self._away: dict[int, dict[int, list[_Place]]] = {}  # by parameter, then by optimizer
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._coming: set[torch.device] = set()
        self._hooks: list[Any] = []

    def attach(self, optimizers: Iterable[Optimizer]) -> None:
        """Follow what is saved from and loaded into these optimizers."""
        if self.mode == "keep":
            return
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_state_dict_pre_hook(lambda _: self.synchronize()))
            self._hooks.append(optimizer.register_load_state_dict_post_hook(self._loaded))

    def detach(self, bring_back: bool = True) -> None:
        """Let go of the optimizers. Safe to call again.

        Args:
            bring_back: Whether everything comes back to its device, as far as that has room for it; else what is in host
                memory stays there.
        """
        while self._hooks:
            self._hooks.pop().remove()
        try:
            for parameter, optimizers in list(self._away.items()) if bring_back else ():
                for optimizer in list(optimizers):
                    self._fetch(optimizer, parameter)
        except torch.OutOfMemoryError:
            pass  # a run that ends must not fail by that
        self._away.clear()
        self.wait_for_prefetch()
        self.synchronize()

    def away(self, parameter: Tensor) -> bool:
        """Whether state of this parameter is in host memory now, in whichever optimizer."""
        return id(parameter) in self._away

    def freeze(self, held: Iterable[Held]) -> None:
        """These are frozen from here on."""
        if self.mode == "reset":
            for optimizer, parameter in held:
                optimizer.state.pop(parameter, None)
        elif self.mode == "offload":
            for optimizer, parameter in held:
                self._park(optimizer, parameter)

    def thaw(self, held: Iterable[Held]) -> None:
        """These train from here on."""
        if self._away:
            for optimizer, parameter in held:
                self._fetch(id(optimizer), id(parameter))

    def wait_for_prefetch(self) -> None:
        """Before an optimizer's step: the device waits for what comes back. The host does not."""
        while self._coming:
            device = self._coming.pop()
            torch.cuda.current_stream(device).wait_stream(self._streams[device])

    def synchronize(self) -> None:
        """Wait, on the host, for copies that are under way: what is in host memory is about to be read."""
        for stream in self._streams.values():
            stream.synchronize()

    def on_copy_stream(self) -> AbstractContextManager[Any]:
        """A context in which the device's work comes after the step's so far and what comes back, beside the step's own.

        What is made in there may be read after `wait_for_prefetch`.
        """
        if len(self._coming) != 1:
            self.wait_for_prefetch()
            return nullcontext()
        (device,) = self._coming
        self._streams[device].wait_stream(torch.cuda.current_stream(device))
        return torch.cuda.stream(self._streams[device])

    def _loaded(self, optimizer: Optimizer) -> None:
        for parameter in list(self._away):
            self._forget(id(optimizer), parameter)
        self.needs_refreeze = True

    def _park(self, optimizer: Optimizer, parameter: nn.Parameter) -> None:
        state = optimizer.state.get(parameter)
        if not isinstance(state, MutableMapping) or id(optimizer) in self._away.get(id(parameter), ()):
            return
        places = [place for place in _places(state) if self._moves(place.within[place.key])]
        for place in places:
            place.within[place.key] = self._to_host(place.within[place.key])
        if places:
            self._away.setdefault(id(parameter), {})[id(optimizer)] = places

    def _fetch(self, optimizer: int, parameter: int) -> None:
        for place in self._away.get(parameter, {}).get(optimizer, ()):
            place.within[place.key] = self._to_device(place.within[place.key], place.device)
        self._forget(optimizer, parameter)

    def _forget(self, optimizer: int, parameter: int) -> None:
        holders = self._away.get(parameter, {})
        holders.pop(optimizer, None)
        if not holders:
            self._away.pop(parameter, None)

    def _to_host(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.to("cpu", copy=True)
        stream = self._stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))  # the step that has just changed it
        with torch.cuda.stream(stream):
            host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given to others before the copy is made
        return host

    def _to_device(self, host: Tensor, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return host.to(device, copy=True)
        stream = self._stream(device)
        # Of the memory that the step uses, not of another stream's, which would come on top of it.
        tensor = torch.empty_like(host, device=device)
        stream.wait_stream(torch.cuda.current_stream(device))  # whatever was there before
        with torch.cuda.stream(stream):
            tensor.copy_(host, non_blocking=True)
        tensor.record_stream(stream)
        self._coming.add(device)
        return tensor

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def _on_accelerator(tensor: Tensor) -> bool:
    """Whether a tensor is worth moving, and can be: of a kind of its own, or a part of another, it is left alone."""
    if tensor.device.type == "cpu" or type(tensor) is not Tensor or tensor.nbytes < _SMALL:
        return False
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def _places(holder: Any) -> Iterator[_Place]:
    """Where each tensor in nested dicts and lists belongs."""
    for key, value in list(holder.items() if isinstance(holder, MutableMapping) else enumerate(holder)):
        if isinstance(value, Tensor):
            yield _Place(holder, key, value.device)
        elif isinstance(value, (MutableMapping, list)):
            yield from _places(value)
