"""Twins of an optimizer: its class and its hyper-parameters once more, over small parameters that are nobody's."""

from __future__ import annotations

import copy
import random
import sys
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import signature
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torchs

from lightning_freeze.probe.proxies import MOST_COPIED, NoTwinError, StandIns, is_plain

_MODELS = ("model", "module", "net", "network")


@dataclass(frozen=True)
class Twin:
    """An optimizer built once more.

    Args:
        optimizer: The optimizer.
        stand_ins: What it holds.
        built: Whether its class's own constructor was called, which may have put hooks on parameters.
    """

    optimizer: Optimizer
    stand_ins: StandIns
    built: bool


def family(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps, whatever attribute holds them; the outermost first."""
    found: list[Optimizer] = [optimizer]
    for each in found:  # which grows meanwhile
        for value in vars(each).values():
            within = list(value.values()) if isinstance(value, dict) and value is not each.state else value
            inner = within if isinstance(within, (list, tuple)) else [within]
            found += [one for one in inner if isinstance(one, Optimizer) and all(one is not other for other in found)]
    return found


class _Memo(dict[int, Any]):
    """What is copied already, for `copy.deepcopy`, which asks it for each object by its identity."""

    several: Collection[int] = ()
    """Parameters for which several stand in: none of them can take the place of one that is held in just any way."""

    def get(self, key: int, default: Any = None) -> Any:
        """What an object has become."""
        if key in self.several:
            raise NoTwinError("holds single parameters, for which several would stand in")
        return super().get(key, default)


def twin_by_parts(optimizer: Optimizer, stand_ins: StandIns) -> Twin:
    """A twin with copies of everything that the optimizer and those in it hold, but other parameters, and their state.

    Args:
        optimizer: Left as it is.
        stand_ins: Its parameters.

    Raises:
        NoTwinError: It holds what cannot be copied, or could not be copied without reaching what is the user's.
    """
    members = family(optimizer)
    memo = _Memo({id(member): object.__new__(type(member)) for member in members})
    memo |= {parameter: held[0] for parameter, held in stand_ins.of.items()}
    memo.several = {parameter for parameter, held in stand_ins.of.items() if len(held) > 1}
    for member in members:
        _other_groups(member, stand_ins, memo)
        memo[id(member.state)] = _other_state(member, stand_ins, memo)
    for member in members:
        shell = memo[id(member)]
        for key, value in vars(member).items():
            if key.startswith("_optimizer_") and key.endswith("_hooks"):
                shell.__dict__[key] = OrderedDict()
            elif key == "step" or (isinstance(value, FunctionType) and key in dir(type(member))):
                continue  # a learning-rate scheduler's, or a compiled one, which steps the user's own optimizer
            else:
                _survey(key, value, stand_ins, memo)
                try:
                    shell.__dict__[key] = copy.deepcopy(value, memo)
                except NoTwinError as error:
                    raise NoTwinError(f"its `{key}` {error}") from error
                except Exception as error:
                    raise NoTwinError(f"its `{key}` cannot be copied ({type(error).__name__}: {error})") from error
    return Twin(memo[id(optimizer)], stand_ins, built=False)


def twin_by_constructor(optimizer: Optimizer, stand_ins: StandIns) -> Twin:
    """A twin made by the class's own constructor, with the hyper-parameters that it can be handed.

    Args:
        optimizer: Left as it is.
        stand_ins: Its parameters.

    Raises:
        NoTwinError: The constructor asks for what is not known.
    """
    kind: Any = type(optimizer)
    arguments = list(signature(kind).parameters.values())
    groups = [{**options(optimizer.param_groups[n]), "params": list(held)} for n, held in stand_ins.groups.items()]
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
    return Twin(twin, stand_ins, built=True)


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


def _other_groups(member: Optimizer, stand_ins: StandIns, memo: dict[int, Any]) -> None:
    """Let copies of a member's param groups hold the parameters that stand in for theirs; those without any are left out."""
    if id(member.param_groups) in memo:
        return
    others = []
    for group in member.param_groups:
        held = list({id(p): p for each in group["params"] for p in stand_ins.of.get(id(each), ())}.values())
        first = any(
            stand_ins.likes[p] is each for p in held for each in group["params"]
        )  # not one that is like another
        if not first:
            continue
        if id(group) not in memo:
            given = {key: _copied(value, memo) for key, value in group.items() if key not in ("params", "param_names")}
            held = [p for p in held if any(stand_ins.likes[p] is each for each in group["params"])]
            if "param_names" in group:
                names = dict(zip(map(id, group["params"]), group["param_names"], strict=True))
                given["param_names"] = [f"{names[id(stand_ins.likes[p])]}{place}" for place, p in enumerate(held)]
            memo[id(group)] = {"params": held, **given}
            memo[id(group["params"])] = held
        others.append(memo[id(group)])
    memo[id(member.param_groups)] = others


def _other_state(member: Optimizer, stand_ins: StandIns, memo: dict[int, Any]) -> Any:
    """What a member keeps for its parameters, cut to the size of the others."""
    state: Any = defaultdict(dict) if isinstance(member.state, defaultdict) else {}
    for key, value in member.state.items():
        if not isinstance(key, Tensor):
            state[key] = _copied(value, memo)
    for parameter, like in stand_ins.likes.items():
        if like in member.state:
            state[parameter] = {key: _cut(value, like, parameter, memo) for key, value in member.state[like].items()}
    return state


def _cut(value: Any, like: Tensor, small: nn.Parameter, memo: dict[int, Any]) -> Any:
    if not isinstance(value, Tensor):
        return _copied(value, _Memo(memo))  # not shared with the other of the pair
    if value.numel() == 1 and like.numel() != 1:
        return value.detach().clone()
    if value.shape != like.shape:
        raise NoTwinError("it has state already, whose shape is not its parameters'")
    corner = tuple(slice(size) for size in small.shape)
    here, of = (each.to_local() if hasattr(each, "to_local") else each for each in (value.detach(), like.detach()))
    if here.shape != like.shape or (here.dtype == of.dtype and torch.equal(here[corner], of[corner])):
        return small.detach().clone()  # a copy of the parameter itself, as slow weights are
    return here[corner].clone()


def _keyed(value: Mapping[Any, Any], stand_ins: StandIns, memo: dict[int, Any]) -> dict[Any, Any]:
    """A copy of what is kept by parameters, or by their identities."""
    copies: dict[Any, Any] = {}
    for key, each in value.items():
        for parameter in stand_ins.of[key if isinstance(key, int) else id(key)]:
            same_shape = isinstance(each, Tensor) and each.shape == stand_ins.likes[parameter].shape
            copy_ = (
                _cut(each, stand_ins.likes[parameter], parameter, memo) if same_shape else _copied(each, _Memo(memo))
            )
            copies[id(parameter) if isinstance(key, int) else parameter] = copy_
    return copies


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        raise NoTwinError(f"{type(value).__name__} cannot be copied ({type(error).__name__}: {error})") from error


def _survey(key: str, value: object, stand_ins: StandIns, memo: dict[int, Any], depth: int = 3) -> None:
    """Before an attribute is copied: put stand-ins into lists of parameters and models, and refuse what is large.

    Raises:
        NoTwinError: It is large, or could still reach what is the user's.
    """
    if id(value) in memo:
        return
    if isinstance(value, nn.Module):
        if any(id(p) in stand_ins.of for p in value.parameters()):
            memo[id(value)] = _Small(list(stand_ins.likes))
        elif sum(p.numel() for p in value.parameters()) > MOST_COPIED:
            raise NoTwinError(f"its `{key}` is a large module")
    elif isinstance(value, Tensor):
        if value.numel() > MOST_COPIED:
            raise NoTwinError(f"its `{key}` is a tensor of {value.numel()} elements beside its state")
    elif _shared(value):
        if reaches(value, stand_ins.of.keys() | memo.keys()):
            raise NoTwinError(f"its `{key}` holds a function or a reference that reaches the run's own parameters")
    elif depth and isinstance(value, Mapping):
        if value and all((each if isinstance(each, int) else id(each)) in stand_ins.of for each in value):
            memo[id(value)] = _keyed(value, stand_ins, memo)
            return
        for each in value.values():
            _survey(key, each, stand_ins, memo, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        if value and all(id(each) in stand_ins.of for each in value):
            others = {id(p): p for each in value for p in stand_ins.of[id(each)]}
            memo[id(value)] = type(value)(others.values())
            return
        for each in value:
            _survey(key, each, stand_ins, memo, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (type, Optimizer)):
        for each in vars(value).values():
            _survey(key, each, stand_ins, memo, depth - 1)


def _shared(value: object) -> bool:
    """Whether copies of what holds a value hold the very same one."""
    return isinstance(value, (FunctionType, weakref.ref)) or hasattr(value, "_torchdynamo_orig_callable")


def reaches(value: object, own: Collection[int], depth: int = 6) -> bool:
    """Whether a function, or something that it holds, leads to one of these objects.

    Args:
        value: Anything.
        own: The identities of the objects.
        depth: How many steps are looked at.
    """
    if id(value) in own:
        return True
    if not depth or value is None or isinstance(value, (str, int, float, type, ModuleType)):
        return False
    if isinstance(value, nn.Module):
        return any(id(p) in own for p in value.parameters())
    if isinstance(value, Tensor):
        return False
    held: list[object] = []
    if isinstance(value, weakref.ref):
        held.append(value())
    if isinstance(value, FunctionType):
        held += [_contents(cell) for cell in value.__closure__ or ()] + list(value.__defaults__ or ())
        held += [*(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    if isinstance(value, Mapping):
        held += value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        held += value
    for name in ("__self__", "__func__", "func", "args", "keywords", "__wrapped__", "_torchdynamo_orig_callable"):
        held.append(getattr(value, name, None))
    if not isinstance(value, FunctionType):
        held += getattr(value, "__dict__", {}).values()
    return any(reaches(each, own, depth - 1) for each in held)


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a param group holds beside its parameters."""
    return {key: copy.copy(value) for key, value in group.items() if key not in ("params", "param_names")}
