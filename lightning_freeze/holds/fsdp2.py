"""The layers of FSDP2: resharded before their parameters are read, prepared again where they train late."""

from __future__ import annotations

from typing import Any

from torch import nn


class Shards:
    """The layers of FSDP2 in a model; without any there is nothing to do, and other processes are sent nothing.

    A forward without a backward, such as validation's, leaves the outermost layer unsharded: its module then shows other
    parameters than the optimizer holds, with the ``requires_grad`` of before. `close` reshards it.

    At a layer's first forward, FSDP2 takes the dtype of its gradients from those of its parameters that require one. Where
    none does, it later refuses gradients under mixed precision ("attempting to assign a gradient with dtype …"), unless
    `prepare` lets it look again.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers: list[Any] = [
            m for m in module.modules() if hasattr(m, "set_requires_gradient_sync") and hasattr(m, "reshard")
        ]
        self.close()
        owners: dict[nn.Parameter, Any] = {}
        for each in self._layers:  # outer ones first: what an inner one holds is its own
            owners.update(dict.fromkeys(each.parameters(), each))
        self._late: dict[Any, list[nn.Parameter]] = {}
        for parameter, layer in owners.items():
            self._late.setdefault(layer, []).append(parameter)
        self._begun = False

    def close(self) -> None:
        """From here on modules show the parameters that the optimizer holds, until the next forward."""
        for layer in self._layers:
            layer.reshard()

    def prepare(self) -> None:
        """Remember which layers require no gradient at first, and prepare each when it does."""
        for layer, held in list(self._late.items()):
            if any(parameter.requires_grad for parameter in held):
                if self._begun:
                    _prepare(layer)
                del self._late[layer]
        self._begun = True


def _prepare(layer: Any) -> None:
    """Let FSDP2 prepare a layer as at its first forward."""
    try:
        state = layer._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)  # several since torch 2.13
        for group in [state._fsdp_param_group] if groups is None else groups:
            if group is not None:
                group.lazy_init()
    except AttributeError:  # in a torch with other private names; this works, too, with a message for each layer
        layer.unshard()
        layer.reshard()
