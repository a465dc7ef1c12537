"""The layers of FSDP2: resharded before anybody looks, prepared where they train late."""

from __future__ import annotations

from typing import Any

from torch import nn


class Shards:
    """The layers of FSDP2 in a model, as the gate and the audit need them.

    A forward without a backward, such as validation's, leaves the outermost layer unsharded: its module then shows other
    parameters than those that the optimizer holds, and keeps the ``requires_grad`` of before. `close` ends that.

    A layer that was frozen as a whole when it was first used must be prepared anew once it trains. FSDP2 takes the dtype of
    a layer's gradients from those of its parameters that require one at its first forward; where none does, it later refuses
    its gradients under a mixed precision policy ("attempting to assign a gradient with dtype …"). `settle` sees to that.

    Neither sends a message to other processes.

    Args:
        module: The model; without FSDP2 there is nothing to do.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers: list[Any] = [
            each
            for each in module.modules()
            if hasattr(each, "set_requires_gradient_sync") and hasattr(each, "reshard")
        ]
        self.close()
        owners: dict[int, tuple[Any, nn.Parameter]] = {}
        for each in self._layers:  # outer ones first: what an inner one holds is its own
            owners.update({id(parameter): (each, parameter) for parameter in each.parameters()})
        self._late: dict[Any, list[nn.Parameter]] = {}
        for layer, parameter in owners.values():
            self._late.setdefault(layer, []).append(parameter)
        self._begun = False

    def close(self) -> None:
        """From here on modules show the parameters that the optimizer holds, until the next forward."""
        for layer in self._layers:
            layer.reshard()

    def settle(self) -> None:
        """What is to require gradients now does so: remember what does not at first, and prepare it when it does."""
        if not self._begun:
            self._begun = True
            self._late = {layer: held for layer, held in self._late.items() if not any(p.requires_grad for p in held)}
            return
        for layer, held in list(self._late.items()):
            if any(parameter.requires_grad for parameter in held):
                _prepare(layer)
                del self._late[layer]


def _prepare(layer: Any) -> None:
    """Let FSDP2 prepare a layer as at its first forward."""
    try:
        state = layer._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)  # several since torch 2.13
        for group in [state._fsdp_param_group] if groups is None else groups:
            if group is not None:
                group.lazy_init()
    except (
        AttributeError
    ):  # private names that another torch does not have: this does it, too, with a message for each layer
        layer.unshard()
        layer.reshard()
