"""Leaving out the backward work of what is frozen: where that is safe, and doing it.

A parameter with ``requires_grad=False`` gets no gradient, and autograd keeps nothing for it in forward and computes
nothing for it in backward. Unlike a gradient of None that is visible outside: to DistributedDataParallel's reducer, to
compiled code, to checkpointing. Here is what each of them asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.gate.refusals import UnsupportedError
from lightning_freeze.gate.wrapped import is_fsdp1

SkipBackward = bool | Literal["auto"]
SKIP_BACKWARD: tuple[SkipBackward, ...] = ("auto", True, False)

_SPARE_GRAPHS = 2  # for validation and its last, smaller batch
_SETS = 1000


@dataclass(frozen=True)
class Circumstances:
    """What is known of a run before its first step.

    Args:
        module: The model.
        wrapper: What is called instead of it: a DistributedDataParallel around it, or the model itself.
        world: The processes that share the run; by default those of torch.distributed.
        by_hand: Whether the model steps its optimizers itself, so that what trains can change within a batch.
        idle: Under a GradScaler, why an optimizer can come to a step with nothing to train.
        toggles: The method of the model that turns ``requires_grad`` on and off itself, by Lightning's `toggle_optimizer`.
        strategy: What one calls the way in which processes share the run.
        device: Where processes exchange what is small; by default that of the model's first parameter.
        averages: Whether the strategy lets processes go apart, and averages their weights now and then.
        compiled: Whether code is compiled around both, so that neither shows it.
        uneven: Whether batches may differ in size, each of which compiled code asks for graphs of its own.
    """

    module: nn.Module
    wrapper: nn.Module
    world: int = field(
        default_factory=lambda: (
            torch.distributed.get_world_size()
            if torch.distributed.is_available() and torch.distributed.is_initialized()
            else 1
        )
    )
    by_hand: bool = False
    idle: str | None = None
    toggles: str | None = None
    strategy: str = ""
    device: torch.device | None = None
    averages: bool = False
    compiled: bool = False
    uneven: bool = False


@dataclass(frozen=True)
class Choice:
    """Whether the backward work of frozen groups is left out.

    Args:
        skips: Whether it is.
        why: In a few words, why.
        reducer: The DistributedDataParallel whose reducer waits to hear of every parameter, frozen ones included.
    """

    skips: bool
    why: str
    reducer: DistributedDataParallel | None = None


def choose(
    asked: SkipBackward, around: Circumstances, sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> Choice:
    """Whether to leave out the backward work of what is frozen.

    Args:
        asked: What the user asked for.
        around: What is known of the run.
        sets: The sets of groups that the schedule comes to train; asked for where code is compiled alone.
        groups: Identity of a parameter to its group, of those that are frozen at times.

    Raises:
        UnsupportedError: It was asked for where it is not safe.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> choose("auto", Circumstances(model, model), [], {})
        Choice(skips=True, why='there is only one process', reducer=None)
    """
    if asked is False:
        return Choice(False, "as asked by `skip_backward: false`")
    unsafe = _unsafe(around) or _recompiles(around, sets, groups)
    if asked == "auto" and around.by_hand and unsafe is None:
        return Choice(
            False,
            "the model steps its optimizers itself, so what trains can change within a batch (`skip_backward: true` "
            "skips all the same)",
        )
    if unsafe is None:
        plain = isinstance(around.wrapper, DistributedDataParallel) and not around.wrapper.find_unused_parameters
        return Choice(True, _where(around), around.wrapper if plain else None)  # type: ignore[arg-type]
    why, mend = unsafe
    if asked == "auto":
        return Choice(False, f"{why}; {mend}")
    raise UnsupportedError(
        f"`skip_backward` is true, which is not safe here: {why}. Set `skip_backward: auto`, which then only empties the "
        f"gradients; or, to skip: {mend}."
    )


def _where(around: Circumstances) -> str:
    if isinstance(around.wrapper, DistributedDataParallel):
        if around.wrapper.find_unused_parameters:
            return "DDP looks for unused parameters itself"
        return "DDP is told gradients of zero for what is frozen"
    return (
        "there is only one process"
        if around.world == 1
        else "the parameters are sharded, and each process derives by its own"
    )


def _unsafe(around: Circumstances) -> tuple[str, str] | None:
    """Why skipping would go wrong with these processes, and the mend."""
    ddp = around.wrapper
    if around.idle is not None:
        return (
            f"under a GradScaler, torch fails for an optimizer without any gradient, and {around.idle}",
            "use precision 'bf16-mixed', which needs no scaler",
        )
    if around.toggles is not None:
        return (
            f"the code of {around.toggles} calls `toggle_optimizer`, which turns `requires_grad` on and off, and puts back "
            "what it found before a step, whatever the schedule says after it",
            "leave the toggling away, which is then done for you",
        )
    if isinstance(ddp, DistributedDataParallel):
        if ddp.static_graph:
            return (
                "DDP with static_graph=True assumes that every step uses the same parameters",
                "build DDP without static_graph",
            )
        if around.by_hand and not ddp.find_unused_parameters:
            return (
                "plain DDP waits in every backward for every parameter, and a model that steps its optimizers itself makes "
                "several",
                "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')",
            )
        if not ddp.find_unused_parameters and any(map(_has_hooks, around.module.parameters())):
            return (
                "plain DDP is told of frozen parameters by gradients of zero, and a parameter has a hook of its own, which "
                "would take those for gradients",
                "build DDP with find_unused_parameters=True (strategy='ddp_find_unused_parameters_true')",
            )
        if around.compiled or compiled(around.module) or compiled(ddp):
            return "the model is compiled under DDP, which cuts its graph by buckets", "compile it without DDP"
        return None
    if any(map(is_fsdp1, ddp.modules())):
        return (
            "FSDP1 keeps several parameters in one flat one, which trains as a whole",
            "use FSDP2, through ModelParallelStrategy",
        )
    if around.world > 1 and not any(hasattr(p, "to_local") for p in around.module.parameters()):
        if not around.strategy:
            return (
                f"it is not known what shares the run among {around.world} processes, nor whether it waits for gradients of "
                "what is frozen",
                "hand over what is called in the model's place, such as DistributedDataParallel(model)",
            )
        return (
            f"{around.strategy} shares the run among {around.world} processes, and it is not known whether it waits for "
            "gradients of what is frozen",
            "use strategy='ddp', or FSDP2 through ModelParallelStrategy",
        )
    return None


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def compiled(module: nn.Module) -> dict[str, nn.Module]:
    """The modules within that `torch.compile` has compiled, by name, without those inside of others.

    Where one holds a compiled function as an attribute, it counts as a whole; compiled functions elsewhere are not seen.
    """
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


def _recompiles(
    around: Circumstances, sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> tuple[str, str] | None:
    """Why compiled code would be compiled too often, and the mend.

    A graph holds for one pattern of ``requires_grad`` over the parameters of a compiled module, and over its inputs where
    it is not the whole model. Modules of one class share their graphs.
    """
    regions = {"": around.module} if around.compiled else compiled(around.module)
    if not regions:
        return None
    limit: int = torch._dynamo.config.recompile_limit
    held = {name: [groups.get(id(p)) for p in region.parameters()] for name, region in regions.items()}
    patterns: dict[object, set[tuple[bool, ...]]] = {}
    for trained in islice(sets, _SETS):
        for name, owners in held.items():
            seen = patterns.setdefault(_code(regions[name]), set())
            seen.add(tuple(owner is None or owner in trained for owner in owners))
            graphs = len(seen) * (1 if name == "" else 2) * (2 if around.uneven else 1) + _SPARE_GRAPHS
            if graphs > limit:
                what = f"{name!r}" if name else "the model"
                return (
                    f"{what} is compiled, each set of trainable groups asks for a graph of its own"
                    + (" for each size of a batch" if around.uneven else "")
                    + f", and with those for validation torch would compile at least {graphs} where "
                    f"torch._dynamo.config.recompile_limit is {limit}, after which it runs uncompiled",
                    "raise that limit, or compile the blocks one by one"
                    + (", or let all batches be of one size (`drop_last=True`)" if around.uneven else ""),
                )
    return None


def _code(region: nn.Module) -> object:
    inner = getattr(region, "_orig_mod", region)
    return type(inner).forward


class BackwardSkip:
    """Turns ``requires_grad`` off for what is frozen, and on again; the gradients of what freezes are given up.

    Args:
        reducer: A DistributedDataParallel whose reducer must hear of every parameter in each backward that synchronises.
        plain_attention: Whether attention's fast path is off meanwhile. In eval mode `torch.nn.MultiheadAttention` takes it
            where nothing requires a gradient, and it rounds otherwise.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> skip = BackwardSkip()
        >>> skip.freeze([layer.bias])
        >>> layer.weight.requires_grad, layer.bias.requires_grad
        (True, False)
        >>> skip.release()
        >>> layer.bias.requires_grad
        True
    """

    def __init__(self, reducer: DistributedDataParallel | None = None, plain_attention: bool = False) -> None:
        self._reducer: Any = reducer
        self._held: dict[int, nn.Parameter] = {}
        self._plain_attention = plain_attention
        self._fast_attention = True
        self._told = False

    @property
    def holds(self) -> bool:
        """Whether anything is held now."""
        return bool(self._held)

    @property
    def tells(self) -> bool:
        """Whether `tell` has something to do after a backward."""
        return self._reducer is not None

    def insist(self) -> None:
        """Before an optimizer's step: the reducer must have been told.

        Raises:
            RuntimeError: It was not, since the last time.
        """
        if self._held and self._reducer is not None and not self._told:
            raise RuntimeError(
                "`after_backward()` was not called between a backward and this step. Under DDP without "
                "find_unused_parameters, frozen groups are told to the reducer there, without which gradients are not "
                "averaged. Call it after each backward, or set `skip_backward=False`, or build DDP with "
                "find_unused_parameters=True."
            )
        self._told = False

    def freeze(self, parameters: Iterable[nn.Parameter]) -> None:
        """These get no gradients from here on; what is the user's own to freeze is left alone."""
        before = bool(self._held)
        for parameter in parameters:
            if parameter.requires_grad:
                self._held[id(parameter)] = parameter
                parameter.requires_grad = False  # not requires_grad_(), which lazy parameters refuse
                parameter.grad = None
        if self._held and not before and self._plain_attention:
            self._fast_attention = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)

    def thaw(self, parameters: Iterable[nn.Parameter]) -> None:
        """These get their gradients again."""
        for parameter in parameters:
            if self._held.pop(id(parameter), None) is not None:
                parameter.requires_grad = True
                if not self._held and self._plain_attention:
                    torch.backends.mha.set_fastpath_enabled(self._fast_attention)

    def release(self) -> None:
        """Everything gets its gradients again."""
        self.thaw(list(self._held.values()))

    def tell(self) -> None:
        """After a backward: let the reducer hear of the frozen parameters, too, by gradients of zero.

        Without it plain DDP raises in the next forward, which finds parameters that it still waits for, or, where there is
        no next one, leaves the ranks with gradients that were never averaged.
        """
        self._told = True
        # Within an accumulation nothing is averaged, and the reducer does not listen.
        if not self._held or not self._reducer.require_backward_grad_sync:
            return
        frozen = list(self._held.values())
        zeros: list[Tensor] = [parameter.new_zeros(()).expand_as(parameter) for parameter in frozen]
        for parameter in frozen:
            parameter.requires_grad_(True)
        torch.autograd.backward(frozen, zeros)
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
