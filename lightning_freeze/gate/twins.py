"""Twins of an optimizer: its class and its hyper-parameters once more, over small parameters that are nobody's."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import signature
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer
from torch.optim import optimizer as torchs

LARGE = 4096
"""Elements from which a small parameter keeps at least so many: 8-bit optimizers treat smaller ones apart."""

_MOST_COPIED = 1 << 20  # elements of a tensor that an optimizer holds beside its state
_MODELS = ("model", "module", "net", "network")


class NoTwinError(RuntimeError):
    """Why an optimizer cannot be built once more."""


@dataclass(frozen=True)
class Pair:
    """Two small parameters like one of the optimizer's, of which the second is to be frozen.

    Args:
        group: The number of the param group that they are in.
        like: The parameter that they are like, in dtype, device and number of dimensions.
        moving: The one.
        frozen: The other.
    """

    group: int
    like: Tensor
    moving: nn.Parameter
    frozen: nn.Parameter


@dataclass(frozen=True)
class Twin:
    """An optimizer built once more.

    Args:
        optimizer: The optimizer.
        pairs: What it holds.
        built: Whether its class's own constructor was called, which may have put hooks on parameters.
    """

    optimizer: Optimizer
    pairs: tuple[Pair, ...]
    built: bool


def family(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps, whatever attribute holds them; the outermost first."""
    found: list[Optimizer] = [optimizer]
    for each in found:  # which grows meanwhile
        for value in vars(each).values():
            inner = value if isinstance(value, (list, tuple)) else [value]
            found += [one for one in inner if isinstance(one, Optimizer) and all(one is not other for other in found)]
    return found


def twin_by_parts(optimizer: Optimizer) -> Twin:
    """A twin with copies of everything that the optimizer and those in it hold, but small parameters and their state.

    Args:
        optimizer: Left as it is.

    Raises:
        NoTwinError: It holds what cannot be copied, or could not be copied without reaching what is the user's.
    """
    members = family(optimizer)
    pairs, alike = small_pairs(optimizer)
    memo: dict[int, Any] = {}
    shells = []
    for member in members:
        shell = object.__new__(type(member))
        shells.append(shell)
        memo[id(member)] = shell
    for parameter, pair in alike.items():
        memo[parameter] = pair.moving
    for member in members:
        _small_groups(member, pairs, memo, optimizer.param_groups)
        memo[id(member.state)] = _small_state(member, pairs, memo)
    for member, shell in zip(members, shells, strict=True):
        for key, value in vars(member).items():
            if key.startswith("_optimizer_") and key.endswith("_hooks"):
                shell.__dict__[key] = OrderedDict()
            elif key == "step" or (isinstance(value, FunctionType) and key in dir(type(member))):
                continue  # a learning-rate scheduler's, or a compiled one, which steps the user's own optimizer
            else:
                _survey(key, value, alike, memo)
                try:
                    shell.__dict__[key] = copy.deepcopy(value, memo)
                except Exception as error:
                    raise NoTwinError(f"its `{key}` cannot be copied ({type(error).__name__}: {error})") from error
    listen(shells[0])
    return Twin(shells[0], pairs, built=False)


def twin_by_constructor(optimizer: Optimizer) -> Twin:
    """A twin made by the class's own constructor, with the hyper-parameters that it can be handed.

    Args:
        optimizer: Left as it is.

    Raises:
        NoTwinError: The constructor asks for what is not known.
    """
    pairs, _ = small_pairs(optimizer)
    kind: Any = type(optimizer)
    arguments = list(signature(kind).parameters.values())
    kept = sorted({pair.group for pair in pairs})
    groups = [options(optimizer.param_groups[number]) for number in kept]
    for number, group in zip(kept, groups, strict=True):
        group["params"] = [p for pair in pairs if pair.group == number for p in (pair.moving, pair.frozen)]
    inner = [each for each in vars(optimizer).values() if isinstance(each, Optimizer)]
    given: dict[str, Any] = {}
    for place, argument in enumerate(arguments):
        name = argument.name
        if argument.kind in (Argument.VAR_KEYWORD, Argument.VAR_POSITIONAL):
            continue
        if name in _MODELS or argument.annotation in (nn.Module, "nn.Module"):
            given[name] = _Small([p for group in groups for p in group["params"]])
        elif name == "optimizer" and inner:
            raise NoTwinError("it wraps an optimizer that could not be copied")
        elif name == "base_optimizer" and inner:
            given[name] = type(inner[0])
        elif place == 0 or name == "params":
            given[name] = groups
        elif name in groups[0]:
            given[name] = groups[0][name]
        elif name in vars(optimizer) and is_plain(vars(optimizer)[name]):
            given[name] = copy.copy(vars(optimizer)[name])
        elif argument.default is Argument.empty:
            raise NoTwinError(f"its constructor asks for `{name}`, which it does not keep")
    try:
        twin = kind(**given)
    except Exception as error:  # third-party code of any kind
        raise NoTwinError(f"its constructor raised {type(error).__name__}: {error}") from error
    listen(twin)
    return Twin(twin, pairs, built=True)


def twin_of(optimizer: Optimizer, group: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The optimizer's class once more, with one group's hyper-parameters, over parameters of the caller's own.

    Args:
        optimizer: Left as it is.
        group: One of its parameter groups.
        parameters: What the twin holds instead of the group's parameters.
    """
    twin = type(optimizer).__new__(type(optimizer))
    Optimizer.__init__(twin, [{**options(group), "params": list(parameters)}], dict(optimizer.defaults))
    for key, value in vars(optimizer).items():
        # Not callables: a learning-rate scheduler wraps `step` in one that steps the user's own optimizer.
        if key not in vars(twin) and not callable(value) and not isinstance(value, Tensor):
            setattr(twin, key, copy.copy(value))
    return twin


def listen(optimizer: Optimizer) -> None:
    """Let an optimizer whose constructor leaves out torch's own run step hooks, as one that was unpickled does.

    Args:
        optimizer: Any optimizer; one that runs them already is left as it is.
    """
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if not hasattr(optimizer, name):
            setattr(optimizer, name, OrderedDict())
    if not getattr(type(optimizer).step, "hooked", False):
        optimizer._patch_step_function()


@contextmanager
def undisturbed(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """A context that leaves no trace: every global random state as it was, and nobody's global step hooks called.

    Args:
        devices: The devices whose generators may be used, beside the CPU's.
    """
    hooks: list[dict[Any, Any]] = [torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks]
    kept = [dict(each) for each in hooks]
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy is not None else None
    gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        stack.enter_context(torch.enable_grad())
        for each in hooks:
            each.clear()
        try:
            yield
        finally:
            for each, before in zip(hooks, kept, strict=True):
                each.update(before)
            random.setstate(states[0])
            if numpy is not None:
                numpy.random.set_state(states[1])


def is_sparse_only(error: BaseException) -> bool:
    """Whether an optimizer has refused gradients for being dense."""
    return "dense grad" in str(error)


class _Small(nn.Module):
    """A model of small parameters, for optimizers that ask for a model."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.layers = nn.ParameterList(parameters)


def small_pairs(optimizer: Optimizer) -> tuple[tuple[Pair, ...], dict[int, Pair]]:
    """For each kind of param group, and each kind of parameter in it, two small ones; and which each parameter is like."""
    pairs: dict[Any, Pair] = {}
    alike: dict[int, Pair] = {}
    for number, group in enumerate(optimizer.param_groups):
        how = repr(sorted((k, v) for k, v in group.items() if k not in ("params", "param_names", "lr", "initial_lr")))
        for p in group["params"]:
            if isinstance(p, UninitializedTensorMixin):
                continue
            kind = (how, p.dim(), p.dtype, p.device, p.numel() >= LARGE)
            if kind not in pairs:
                pairs[kind] = _pair(number, p)
            alike[id(p)] = pairs[kind]
    if not pairs:
        raise NoTwinError("none of its parameters has a shape yet")
    return tuple(pairs.values()), alike


def _pair(number: int, like: Tensor) -> Pair:
    shape = _small(like)
    device = torch.device("cpu") if like.device.type == "meta" else like.device
    moving, frozen = (_parameter(shape, like, device, seed) for seed in (number, number + 1))
    return Pair(number, like, moving, frozen)


def _parameter(shape: Sequence[int], like: Tensor, device: torch.device, seed: int) -> nn.Parameter:
    """Values of many magnitudes, so that a small step shows in low precision, too."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(*shape, generator=generator)
    values = size * torch.logspace(0, -3, size.numel()).reshape(size.shape)
    parameter = nn.Parameter(values.to(device, like.dtype))
    for key, value in getattr(like, "__dict__", {}).items():  # what optimizers are told by
        if is_plain(value):
            parameter.__dict__[key] = value
    return parameter


def _small(like: Tensor) -> tuple[int, ...]:
    """A shape of as many dimensions, and few elements; the longer side stays the longer."""
    shape = [max(1, size) for size in like.shape] if like.numel() else [2] * like.dim()
    most = 2 * LARGE if like.numel() >= LARGE else 64
    while torch.Size(shape).numel() >= most:
        longest = max(range(len(shape)), key=shape.__getitem__)
        shape[longest] = (shape[longest] + 1) // 2
    return tuple(shape)


def _small_groups(member: Optimizer, pairs: Sequence[Pair], memo: dict[int, Any], outermost: list[Any]) -> None:
    """Let copies of a member's param groups be small ones. Those of a member in another are the same in number."""
    groups = member.param_groups
    if id(groups) in memo:
        return
    if len(groups) != len(outermost):
        raise NoTwinError("it wraps an optimizer with other param groups than its own")
    small = []
    for number in sorted({pair.group for pair in pairs}):
        group = groups[number]
        if id(group) not in memo:
            mine = [pair for pair in pairs if pair.group == number]
            given = {key: _copied(value, memo) for key, value in group.items() if key not in ("params", "param_names")}
            if "param_names" in group:
                names = dict(zip(map(id, group["params"]), group["param_names"], strict=True))
                given["param_names"] = [names[id(pair.like)] + end for pair in mine for end in ("", "_")]
            memo[id(group)] = {"params": [p for pair in mine for p in (pair.moving, pair.frozen)], **given}
            memo[id(group["params"])] = memo[id(group)]["params"]
        small.append(memo[id(group)])
    memo[id(groups)] = small


def _small_state(member: Optimizer, pairs: Sequence[Pair], memo: dict[int, Any]) -> Any:
    """What a member keeps for its parameters, cut to the size of the small ones."""
    small: Any = defaultdict(dict) if isinstance(member.state, defaultdict) else {}
    for key, value in member.state.items():
        if not isinstance(key, Tensor):
            small[key] = _copied(value, memo)
    for pair in pairs:
        if pair.like in member.state:
            for parameter in (pair.moving, pair.frozen):
                small[parameter] = {
                    key: _cut(value, pair.like, parameter, memo) for key, value in member.state[pair.like].items()
                }
    return small


def _cut(value: Any, like: Tensor, small: nn.Parameter, memo: dict[int, Any]) -> Any:
    if not isinstance(value, Tensor):
        return _copied(value, dict(memo))  # not shared with the other of the pair
    if value.numel() == 1 and like.numel() != 1:
        return value.detach().clone()
    if value.shape != like.shape:
        raise NoTwinError("it has state already, whose shape is not its parameters'")
    corner = tuple(slice(size) for size in small.shape)
    here, of = (each.to_local() if hasattr(each, "to_local") else each for each in (value.detach(), like.detach()))
    if here.shape != like.shape or (here.dtype == of.dtype and torch.equal(here[corner], of[corner])):
        return small.detach().clone()  # a copy of the parameter itself, as slow weights are
    return here[corner].clone()


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise NoTwinError(f"{type(value).__name__} cannot be copied ({type(error).__name__}: {error})") from error


def _survey(key: str, value: object, alike: Mapping[int, Pair], memo: dict[int, Any], depth: int = 3) -> None:
    """Refuse to copy what is large or could still reach what is the user's; of lists of parameters, make small ones.

    Raises:
        NoTwinError: It is of that sort.
    """
    if id(value) in memo:
        return
    if isinstance(value, nn.Module):
        if any(id(p) in alike for p in value.parameters()) or sum(p.numel() for p in value.parameters()) > _MOST_COPIED:
            raise NoTwinError(f"its `{key}` is the model")
    elif isinstance(value, Tensor):
        if value.numel() > _MOST_COPIED:
            raise NoTwinError(f"its `{key}` is a tensor of {value.numel()} elements beside its state")
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            held = cell.cell_contents
            if isinstance(held, (Tensor, nn.Module, Optimizer)):
                raise NoTwinError(f"its `{key}` is a function that holds a {type(held).__name__} of the run")
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            _survey(key, each, alike, memo, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        if value and all(id(each) in alike for each in value):
            pairs = {id(pair): pair for pair in (alike[id(each)] for each in value)}
            memo[id(value)] = type(value)(p for pair in pairs.values() for p in (pair.moving, pair.frozen))
            return
        for each in value:
            _survey(key, each, alike, memo, depth - 1)


def is_plain(value: object) -> bool:
    """Whether a value is a number, a word, or a row of such."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a param group holds beside its parameters."""
    return {key: copy.copy(value) for key, value in group.items() if key not in ("params", "param_names")}
