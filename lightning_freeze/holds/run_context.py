"""What wraps a model and its optimizers: DDP, FSDP, Fabric, torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_freeze.errors import UnsupportedError


class Unwrapped(NamedTuple):
    """What `unwrapped` finds."""

    module: nn.Module  # the model as its user wrote it; compiled, where it was compiled before it was wrapped
    wrapper: nn.Module  # the outermost that distributes it, or the model itself
    compiled: bool  # whether `torch.compile` was called on a wrapper, so that its graphs cover the whole model


def unwrapped(module: nn.Module) -> Unwrapped:
    """The model within DistributedDataParallel, FSDP1, ``fabric.setup``, or what is compiled around them.

    Raises:
        UnsupportedError: It is a DeepSpeed engine.
    """
    wrapper: nn.Module | None = None
    compiled = False
    while (inner := _within(module)) is not None:
        if _is_wrapper(module):
            wrapper = wrapper or module
        compiled = compiled or "_orig_mod" in module._modules
        module = inner
    return Unwrapped(module, wrapper or module, compiled)


def _within(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for a model."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if "DeepSpeedEngine" in names:
        raise UnsupportedError(
            "the model is a DeepSpeed engine, which keeps gradients of its own: neither a gradient of None nor "
            "requires_grad=False keeps a parameter frozen in ZeRO 1, 2 or 3. Use DDP, or FSDP2 (`fully_shard`)."
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
    """Whether a module is FSDP1's FullyShardedDataParallel."""
    return type(module).__name__ == "FullyShardedDataParallel"


def is_split(wrapper: nn.Module) -> bool:
    """Whether this process holds only parts of parameters."""
    return any(hasattr(p, "to_local") for p in wrapper.parameters()) or any(map(is_fsdp1, wrapper.modules()))


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer within Lightning's or Fabric's wrapper, or the optimizer itself."""
    wrappers = {"LightningOptimizer", "_FabricOptimizer"}
    wraps = not wrappers.isdisjoint(kind.__name__ for kind in type(optimizer).__mro__)
    inner: Any = optimizer
    return inner.optimizer if wraps else optimizer


def world_size() -> int:
    """How many processes torch.distributed knows of."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


@dataclass(frozen=True)
class RunContext:
    """What is known of a run before its first step.

    Args:
        module: The model.
        wrapper: What is called instead of it: a DistributedDataParallel around it, or the model itself.
        world: The number of processes; by default that of torch.distributed.
        manual_optimization: Whether the model steps its optimizers itself, so that what trains can change within a batch.
        fully_frozen: Under a GradScaler, why an optimizer can come to a step with nothing to train.
        toggles: The method of the model that calls Lightning's `toggle_optimizer`.
        strategy: The name of what distributes the run.
        precision: How the run computes, in Lightning's words.
        versions: The package that trains, and its version.
        device: Where processes exchange what is small; by default that of the model's first parameter.
        local_sgd: Whether weights differ between processes, and are averaged now and then.
        compiled: Whether code is compiled around both, so that neither shows it.
        variable_batch_size: Whether batches may differ in size, so that compiled code needs graphs for each size.
        hook: The hook that Lightning is in.
        optimizers: Gives the run's optimizers as they are now; none where nobody replaces them.
    """

    module: nn.Module
    wrapper: nn.Module
    world: int = field(default_factory=world_size)
    manual_optimization: bool = False
    fully_frozen: str | None = None
    toggles: str | None = None
    strategy: str = ""
    precision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    device: torch.device | None = None
    local_sgd: bool = False
    compiled: bool = False
    variable_batch_size: bool = False
    hook: Callable[[], str | None] = lambda: None
    optimizers: Callable[[], Sequence[Optimizer]] = tuple

    @property
    def ddp(self) -> DistributedDataParallel | None:
        """The DistributedDataParallel around the model."""
        return self.wrapper if isinstance(self.wrapper, DistributedDataParallel) else None

    @property
    def plain_ddp(self) -> DistributedDataParallel | None:
        """The same, where it waits in each backward for every parameter."""
        return None if self.ddp is None or self.ddp.find_unused_parameters else self.ddp


def compiled(module: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that are compiled, or hold a compiled function as an attribute, by name."""
    if getattr(module, "_compiler_ctx", None) is not None:  # a LightningModule, which Lightning unwraps
        return {"": module}
    found: dict[str, nn.Module] = {}
    for name, each in module.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer in found)
        if not inside and (type(each).__name__ == "OptimizedModule" or _is_compiled(each)):
            found[name] = each
    return found


def _is_compiled(module: nn.Module) -> bool:
    functions = (value for value in vars(module).values() if callable(value))
    return module._compiled_call_impl is not None or any(hasattr(f, "_torchdynamo_orig_callable") for f in functions)
