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
from types import FunctionType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torchs

from lightning_freeze.holds.snapshots import elements
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
            inner = [value, *elements(value)] if value is not getattr(each, "state", None) else []
            found += [one for one in inner if isinstance(one, Optimizer) and all(one is not other for other in found)]
    return found


def enter_train_mode(optimizer: Optimizer) -> None:
    """Let an optimizer that has a mode for training enter it, as schedule-free ones ask for."""
    enter = getattr(optimizer, "train", None)
    if callable(enter):
        enter()


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
        _copy_attributes(member, memo[id(member)], stand_ins, memo)
    twin = memo[id(optimizer)]
    enter_train_mode(twin)
    return Twin(twin, stand_ins, built=False)


def twin_by_constructor(optimizer: Optimizer, stand_ins: StandIns) -> Twin:
    """A twin made by the class's own constructor, with the hyper-parameters that it can be handed.

    Args:
        optimizer: Left as it is.
        stand_ins: Its parameters.

    Raises:
        NoTwinError: The constructor asks for what is not known.
    """
    kind: Any = type(optimizer)
    arguments = signature(kind).parameters
    inner = [type(each) for each in vars(optimizer).values() if isinstance(each, Optimizer)]
    if "optimizer" in arguments and inner:
        raise NoTwinError("it wraps an optimizer that could not be copied")
    known = _constructor_knows(optimizer, arguments, stand_ins) | dict(zip(("base_optimizer",), inner, strict=False))
    asked = [name for name, each in arguments.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    for name in asked:
        if name not in known and arguments[name].default is Argument.empty:
            raise NoTwinError(f"its constructor asks for `{name}`, which it does not keep")
    try:
        twin = kind(**{name: known[name] for name in asked if name in known})
    except Exception as error:  # third-party code of any kind
        raise NoTwinError(f"its constructor raised {type(error).__name__}: {error}") from error
    enter_train_mode(twin)
    return Twin(twin, stand_ins, built=True)


def _constructor_knows(optimizer: Optimizer, arguments: Mapping[str, Argument], stand_ins: StandIns) -> dict[str, Any]:
    """What an optimizer's constructor can be handed, by the names of its arguments."""
    kept = {key: copy.copy(value) for key, value in vars(optimizer).items() if is_plain(value)}
    groups = [{**options(optimizer.param_groups[n]), "params": list(held)} for n, held in stand_ins.groups.items()]
    models = [name for name, each in arguments.items() if each.annotation in (nn.Module, "nn.Module")]
    known = kept | groups[0] | dict.fromkeys([*arguments][:1], groups) | {"params": groups}
    return known | dict.fromkeys([*_MODELS, *models], _Small(list(stand_ins.likes)))


@contextmanager
def undisturbed(parameters: Iterable[Tensor] = ()) -> Iterator[None]:
    """A context that leaves no trace: every global random state as it was, and nobody's global step hooks called.

    Args:
        parameters: Those whose devices' generators may be used, beside the CPU's.
    """
    hooks: list[dict[Any, Any]] = [torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks]
    kept = [dict(each) for each in hooks]
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy is not None else None
    gpus = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
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


class _Small(nn.Module):
    """A model of small parameters, for optimizers that ask for a model."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.layers = nn.ParameterList(parameters)


def _copy_attributes(member: Optimizer, shell: Optimizer, stand_ins: StandIns, memo: dict[int, Any]) -> None:
    """Give a member's copy what the member holds, but hooks."""
    for key, value in vars(member).items():
        if key.startswith("_optimizer_") and key.endswith("_hooks"):
            shell.__dict__[key] = OrderedDict()
            continue
        if key == "step" or (isinstance(value, FunctionType) and key in dir(type(member))):
            continue  # a learning-rate scheduler's, or a compiled one, which steps the user's own optimizer
        _survey(key, value, stand_ins, memo)
        try:
            shell.__dict__[key] = copy.deepcopy(value, memo)
        except NoTwinError as error:
            raise NoTwinError(f"its `{key}` {error}") from error
        except Exception as error:
            raise NoTwinError(f"its `{key}` cannot be copied ({type(error).__name__}: {error})") from error


def _other_groups(member: Optimizer, stand_ins: StandIns, memo: dict[int, Any]) -> None:
    """Let copies of a member's param groups hold the parameters that stand in for theirs; those without any are left out."""
    if id(member.param_groups) in memo:
        return
    others = []
    for group in member.param_groups:
        held = stand_ins.of_group(group)
        if not held:
            continue
        if id(group) not in memo:
            other = {key: _copied(value, memo) for key, value in group.items() if key not in ("params", "param_names")}
            if "param_names" in group:
                names = dict(zip(map(id, group["params"]), group["param_names"], strict=True))
                other["param_names"] = [f"{names[id(stand_ins.likes[p])]}{place}" for place, p in enumerate(held)]
            memo[id(group)] = {"params": held, **other}
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
    here, of = _local(value), _local(like)
    if here.shape != like.shape or (here.dtype == of.dtype and torch.equal(here[corner], of[corner])):
        return small.detach().clone()  # a copy of the parameter itself, as slow weights are
    return here[corner].clone()


def _local(tensor: Any) -> Any:
    """A tensor's values; of one that is sharded, those of this process."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _identity(key: object) -> int:
    """The identity of a parameter that is a key, or whose identity is."""
    return key if isinstance(key, int) else id(key)


def _keyed(value: Mapping[Any, Any], stand_ins: StandIns, memo: dict[int, Any]) -> dict[Any, Any]:
    """A copy of what is kept by parameters, or by their identities."""
    copies: dict[Any, Any] = {}
    for key, each in value.items():
        for parameter in stand_ins.of[_identity(key)]:
            like = stand_ins.likes[parameter]
            same_shape = isinstance(each, Tensor) and each.shape == like.shape
            other = _cut(each, like, parameter, memo) if same_shape else _copied(each, _Memo(memo))
            copies[id(parameter) if isinstance(key, int) else parameter] = other
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
    replaced = _replaced(value, stand_ins, memo) if depth or isinstance(value, nn.Module) else None
    if replaced is not None:
        memo[id(value)] = replaced
        return
    if refusal := _refusal(value, stand_ins, memo):
        raise NoTwinError(f"its `{key}` {refusal}")
    if depth and not isinstance(value, (nn.Module, Tensor, type, Optimizer)) and not _shared(value):
        for each in _held_by(value):
            _survey(key, each, stand_ins, memo, depth - 1)


def _replaced(value: object, stand_ins: StandIns, memo: dict[int, Any]) -> Any:
    """What takes the place of a model, or of a container of parameters; None of anything else."""
    if isinstance(value, nn.Module) and not stand_ins.of.keys().isdisjoint(map(id, value.parameters())):
        return _Small(list(stand_ins.likes))
    if isinstance(value, Mapping) and stand_ins.cover(map(_identity, value)):
        return _keyed(value, stand_ins, memo)
    if isinstance(value, (list, tuple, set)) and stand_ins.cover(map(id, value)):
        return type(value)(dict.fromkeys(p for each in value for p in stand_ins.of[id(each)]))
    return None


def _refusal(value: object, stand_ins: StandIns, memo: Mapping[int, Any]) -> str:
    """Why a value must not be copied; nothing where it may be."""
    if isinstance(value, nn.Module) and sum(p.numel() for p in value.parameters()) > MOST_COPIED:
        return "is a large module"
    if isinstance(value, Tensor) and value.numel() > MOST_COPIED:
        return f"is a tensor of {value.numel()} elements beside its state"
    if _shared(value) and reaches(value, stand_ins.of.keys() | memo.keys()):
        return "holds a function or a reference that reaches the run's own parameters"
    return ""


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
    if not depth or isinstance(value, (NoneType, str, int, float, type, ModuleType, Tensor)):
        return False
    if isinstance(value, nn.Module):
        return any(id(p) in own for p in value.parameters())
    return any(reaches(each, own, depth - 1) for each in (*_called_with(value), *_held_by(value)))


def _held_by(value: object) -> list[object]:
    """What a container or an object holds."""
    return [*elements(value), *getattr(value, "__dict__", {}).values()]


_OF_CALLABLES = ("__self__", "__func__", "func", "args", "keywords", "__wrapped__", "_torchdynamo_orig_callable")


def _called_with(value: object) -> list[object]:
    """What a function, a method or a reference leads to, beside its attributes."""
    held = [getattr(value, name, None) for name in _OF_CALLABLES]
    if isinstance(value, weakref.ref):
        held.append(value())
    if isinstance(value, FunctionType):
        held += map(_contents, value.__closure__ or ())
        held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return held


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a param group holds beside its parameters."""
    return {key: copy.copy(value) for key, value in group.items() if key not in ("params", "param_names")}
