"""What stands around a model and its optimizers: DDP, FSDP, Fabric, torch.compile; and what of it cannot be held."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_freeze.gate.refusals import UnsupportedError


class Unwrapped(NamedTuple):
    """What `unwrapped` finds.

    Args:
        module: The model as its user wrote it; compiled, where it was compiled before it was wrapped.
        wrapper: The outermost wrapper that shares it among processes, or the model itself.
        compiled: Whether `torch.compile` was called on a wrapper, so that its graphs reach over the whole model.
    """

    module: nn.Module
    wrapper: nn.Module
    compiled: bool


def unwrapped(module: nn.Module) -> Unwrapped:
    """The model within whatever one calls in its place.

    Args:
        module: A model, or what DistributedDataParallel, FSDP1, ``fabric.setup`` or ``torch.compile`` made of one. What was
            compiled stays compiled: names are cleaned of it.

    Raises:
        UnsupportedError: It is a DeepSpeed engine.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> unwrapped(model).module is model
        True
    """
    wrapper: nn.Module | None = None
    compiled = False
    while True:
        inner = _within(module)
        if inner is None:
            return Unwrapped(module, wrapper or module, compiled)
        if _is_wrapper(module):
            wrapper = wrapper or module
        compiled = compiled or "_orig_mod" in module._modules
        module = inner


def _within(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for a model."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if "DeepSpeedEngine" in names:
        raise UnsupportedError(
            "the model is a DeepSpeed engine, which keeps gradients of its own: neither an emptied gradient nor "
            "requires_grad=False holds a parameter still in ZeRO 1, 2 or 3. Use DDP, or FSDP2 (`fully_shard`)."
        )
    if "_FabricModule" in names:
        return module._modules["_forward_module"]
    if _is_wrapper(module):
        return module.module  # type: ignore[return-value]
    inner = module._modules.get("_orig_mod")
    return inner if inner is not None and _within(inner) is not None else None


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, DistributedDataParallel) or is_fsdp1(module)


def is_fsdp1(module: nn.Module) -> bool:
    """Whether a module is wrapped by FullyShardedDataParallel, of which FSDP2 knows nothing."""
    return type(module).__name__ == "FullyShardedDataParallel"


def is_split(wrapper: nn.Module) -> bool:
    """Whether this process holds parts of parameters, of which others hold the rest."""
    return any(hasattr(p, "to_local") for p in wrapper.parameters()) or any(map(is_fsdp1, wrapper.modules()))


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer that Lightning's or Fabric's wrapper steps, or the optimizer itself."""
    wrappers = {"LightningOptimizer", "_FabricOptimizer"}
    wraps = not wrappers.isdisjoint(kind.__name__ for kind in type(optimizer).__mro__)
    inner: Any = optimizer
    return inner.optimizer if wraps else optimizer


def refuse_flattened(module: nn.Module) -> None:
    """Refuse a model whose parameters FSDP1 has flattened into one, or ZeRO has partitioned.

    Raises:
        UnsupportedError: Groups cannot be told apart in it.
    """
    for name, parameter in module.named_parameters():
        if getattr(parameter, "_is_flat_param", False):  # its type is plain Parameter
            raise UnsupportedError(
                f"{name!r} is a flat parameter: FSDP with use_orig_params=False shows nothing else, so groups cannot be told "
                "apart. Use use_orig_params=True, or FSDP2 (`fully_shard`, ModelParallelStrategy)."
            )
        if hasattr(parameter, "ds_id"):
            raise UnsupportedError(
                f"{name!r} is partitioned by DeepSpeed ZeRO-3, which keeps gradients of its own, so nothing holds it still. "
                "Use DDP, or FSDP2 (`fully_shard`, ModelParallelStrategy)."
            )


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
