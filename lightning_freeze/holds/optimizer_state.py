"""The optimizer state of what is frozen: kept, dropped, or offloaded to host memory; a ``state_dict`` holds all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import ParamSet, Split, Step

OptimizerState = Literal["keep", "offload", "reset"]
OPTIMIZER_STATE: tuple[OptimizerState, ...] = get_args(OptimizerState)

SHORTEST = 10
"""State of a group that trains again within so many updates is not moved: that would cost more than it saves."""

_SMALL = 4096  # bytes; what is smaller is not worth a copy of its own (Adam's step counters)

_Place = tuple[Any, Any, torch.device]
"""Of a tensor of state: the dict or list that holds it, its key there, its device."""


class _StateHold(Hold):
    """Treats the state of what freezes, and again where an optimizer has loaded another state."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.needs_refreeze = False
        self._optimizers = optimizers
        self._frozen = ParamSet()
        self._hooks: list[Any] = []

    def attach(self) -> None:
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_load_state_dict_post_hook(self._loaded))

    def detach(self, bring_back: bool = True) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._frozen = ParamSet()

    def before_forward(self) -> None:
        if self.needs_refreeze:
            self.needs_refreeze = False
            self._treat(self._frozen)

    def freeze(self, params: ParamSet, split: Split) -> None:
        self._frozen = split.frozen
        self._treat(params)

    def _loaded(self, optimizer: Optimizer) -> None:
        self.needs_refreeze = True

    def _treat(self, params: ParamSet) -> None:
        raise NotImplementedError


class ResetState(_StateHold):
    """Drops the state of what freezes, so that it starts from none when it trains, as in BAdam (arXiv 2404.02827)."""

    def _treat(self, params: ParamSet) -> None:
        for optimizer, parameter in params.held:
            optimizer.state.pop(parameter, None)


class OffloadState(_StateHold):
    """Moves the state of what freezes from an accelerator to host memory, and back when it thaws.

    Tensors are found in an optimizer's dict for a parameter, and in dicts and lists in there. On CUDA the host memory is
    pinned, the copies run on a stream of their own, and the host waits for none of them: the device waits, right before
    the optimizer's step. At a switch the state of both groups is on the device for a moment.

    Args:
        optimizers: The run's optimizers.
        soon: Gives the groups that train again within a few updates, whose state is not moved.
        moves: Which tensors are moved; by default those on an accelerator.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        soon: Callable[[], frozenset[str]] = frozenset,
        moves: Callable[[Tensor], bool] | None = None,
    ) -> None:
        super().__init__(optimizers)
        self._soon = soon
        self._moves = moves or _on_accelerator
        self._offloaded: dict[int, dict[int, list[_Place]]] = {}  # by parameter, then by optimizer
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._coming: set[torch.device] = set()

    def attach(self) -> None:
        super().attach()
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_state_dict_pre_hook(lambda _: self.wait_for_copies()))

    def detach(self, bring_back: bool = True) -> None:
        super().detach()
        with suppress(torch.OutOfMemoryError):  # a run that ends must not fail by that: state then stays on the host
            if bring_back:
                self._fetch([(optimizer, p) for p, holders in self._offloaded.items() for optimizer in holders])
        self._offloaded.clear()
        self.synchronize()
        self.wait_for_copies()

    def thaw(self, params: ParamSet, split: Split) -> None:
        if self._offloaded:
            self._fetch((id(optimizer), id(parameter)) for optimizer, parameter in params.held)

    def before_clipping(self, step: Step, clipped: bool) -> None:
        self.synchronize()  # what comes next may look at it

    def before_step(self, step: Step) -> None:
        self.synchronize()

    def offloaded(self, parameter: Tensor) -> bool:
        """Whether state of a parameter is in host memory now, in any optimizer."""
        return bool(self._offloaded.get(id(parameter)))

    def bring(self, params: ParamSet) -> None:
        """Bring the state of some parameters back for a while."""
        self._fetch((id(optimizer), id(parameter)) for optimizer, parameter in params.held)
        self.synchronize()

    def send(self, params: ParamSet) -> None:
        """Move the state of some parameters to host memory."""
        for optimizer, parameter in params.held:
            state = optimizer.state.get(parameter)
            if isinstance(state, MutableMapping) and id(optimizer) not in self._offloaded.get(id(parameter), ()):
                places = [place for place in _places(state) if self._moves(place[0][place[1]])]
                for within, key, _ in places:
                    within[key] = self._to_host(within[key])
                if places:
                    self._offloaded.setdefault(id(parameter), {})[id(optimizer)] = places

    def synchronize(self) -> None:
        """Let the device wait for what comes back; the host does not."""
        while self._coming:
            device = self._coming.pop()
            torch.cuda.current_stream(device).wait_stream(self._streams[device])

    def wait_for_copies(self) -> None:
        """Let the host wait for copies under way: what is in host memory is about to be read."""
        for stream in self._streams.values():
            stream.synchronize()

    def copy_stream(self) -> AbstractContextManager[Any]:
        """A context on the copy stream, after what comes back; results may be read after `synchronize`."""
        if len(self._coming) != 1:
            self.synchronize()
            return nullcontext()
        (device,) = self._coming
        self._streams[device].wait_stream(torch.cuda.current_stream(device))
        return torch.cuda.stream(self._streams[device])

    def _treat(self, params: ParamSet) -> None:
        self.send(params.without(self._soon()))

    def _loaded(self, optimizer: Optimizer) -> None:
        super()._loaded(optimizer)
        for holders in self._offloaded.values():
            holders.pop(id(optimizer), None)

    def _fetch(self, held: Iterable[tuple[int, int]]) -> None:
        for optimizer, parameter in held:
            holders = self._offloaded.get(parameter, {})
            for within, key, device in holders.get(optimizer, ()):
                within[key] = self._to_device(within[key], device)
            holders.pop(optimizer, None)

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
        # Allocated on the step's stream: memory of another stream's pool would come on top of what the step uses.
        tensor = torch.empty_like(host, device=device)
        stream.wait_stream(torch.cuda.current_stream(device))  # whatever used that memory before
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
    """Whether a tensor is on an accelerator, not small, of plain type, and not part of another."""
    if tensor.device.type == "cpu" or type(tensor) is not Tensor or tensor.nbytes < _SMALL:
        return False
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def _places(holder: Any) -> Iterator[_Place]:
    """Where each tensor in nested dicts and lists belongs."""
    for key, value in list(holder.items() if isinstance(holder, MutableMapping) else enumerate(holder)):
        if isinstance(value, Tensor):
            yield holder, key, value.device
        elif isinstance(value, (MutableMapping, list)):
            yield from _places(value)
