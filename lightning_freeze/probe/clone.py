"""Clones of an optimizer: its class and hyper-parameters once more, over proxy parameters."""

from __future__ import annotations

import copy
import random
import sys
import threading
import warnings
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from inspect import Parameter as Argument
from inspect import signature
from types import FunctionType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torchs

from lightning_freeze.holds.snapshots import elements
from lightning_freeze.probe.proxies import MOST_COPIED, CloneError, Proxies, is_plain, nested_optimizers

_MODELS = ("model", "module", "net", "network")
_ONE_AT_A_TIME = threading.RLock()  # of threads, each of which restores what it found


@contextmanager
def undisturbed(parameters: Iterable[Tensor] = ()) -> Iterator[None]:
    """Restores random states, also of these parameters' devices, and hides step hooks and warnings."""
    gpus = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    numpy: Any = sys.modules.get("numpy")
    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # a class that warns has done so when the user made it
        stack.callback(random.setstate, random.getstate())
        if numpy is not None:
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        hooks: Any
        for hooks in (torchs._global_optimizer_pre_hooks, torchs._global_optimizer_post_hooks):
            stack.callback(hooks.update, dict(hooks))
            hooks.clear()
        yield


def enter_train_mode(optimizer: Optimizer) -> None:
    """Call `train()` of an optimizer that has it, as schedule-free ones need."""
    enter = getattr(optimizer, "train", None)
    if callable(enter):
        enter()


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a param group holds besides its parameters."""
    return {key: copy.copy(value) for key, value in group.items() if key not in ("params", "param_names")}


def clone_by_constructor(optimizer: Optimizer, proxies: Proxies) -> Optimizer:
    """A clone made by the class's constructor, with the hyper-parameters that it can be given."""
    kind: Any = type(optimizer)
    arguments = signature(kind).parameters
    inner = [type(each) for each in vars(optimizer).values() if isinstance(each, Optimizer)]
    if "optimizer" in arguments and inner:
        raise CloneError("it wraps an optimizer that could not be copied")
    known = _constructor_arguments(optimizer, arguments, proxies) | dict(zip(("base_optimizer",), inner, strict=False))
    asked = [name for name, each in arguments.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    for name in asked:
        if name not in known and arguments[name].default is Argument.empty:
            raise CloneError(f"its constructor asks for `{name}`, which it does not keep")
    try:
        clone: Optimizer = kind(**{name: known[name] for name in asked if name in known})
    except Exception as error:  # third-party code of any kind
        raise CloneError(f"its constructor raised {type(error).__name__}: {error}") from error
    enter_train_mode(clone)
    return clone


def _constructor_arguments(optimizer: Optimizer, arguments: Mapping[str, Argument], proxies: Proxies) -> dict[str, Any]:
    """What a constructor can be given, by the names of its arguments."""
    kept = {key: copy.copy(value) for key, value in vars(optimizer).items() if is_plain(value)}
    groups = [{**options(optimizer.param_groups[n]), "params": list(held)} for n, held in proxies.groups.items()]
    models = [name for name, each in arguments.items() if each.annotation in (nn.Module, "nn.Module")]
    known = kept | groups[0] | dict.fromkeys([*arguments][:1], groups) | {"params": groups}
    return known | dict.fromkeys([*_MODELS, *models], _ProxyModel(proxies))


class _ProxyModel(nn.Module):
    """A model of the proxies, for optimizers that hold or ask for a model."""

    def __init__(self, proxies: Proxies) -> None:
        super().__init__()
        self.layers = nn.ParameterList([*proxies.originals])


def clone_by_parts(optimizer: Optimizer, proxies: Proxies) -> Optimizer:
    """A clone made without the constructor, from copies of all that the optimizer and nested ones hold."""
    members = nested_optimizers(optimizer)
    memo = _Memo({id(member): object.__new__(type(member)) for member in members})
    memo |= {parameter: held[0] for parameter, held in proxies.of.items()}
    memo.shared = {parameter for parameter, held in proxies.of.items() if len(held) > 1}
    for member in members:
        _copy_groups(member, proxies, memo)
        memo[id(member.state)] = _copied_state(member, proxies, memo)
    for member in members:
        _copy_attributes(member, memo[id(member)], proxies, memo)
    clone: Optimizer = memo[id(optimizer)]
    enter_train_mode(clone)
    return clone


class _Memo(dict[int, Any]):
    """The memo of `copy.deepcopy`: identities to copies."""

    shared: Collection[int] = ()  # parameters with several proxies: a reference to one of them alone has no copy

    def get(self, key: int, default: Any = None) -> Any:
        """The copy of an object."""
        if key in self.shared:
            raise CloneError("holds single parameters, which have several proxies")
        return super().get(key, default)


def _copy_groups(member: Optimizer, proxies: Proxies, memo: _Memo) -> None:
    """Make param groups over the proxies; groups without any are dropped."""
    if id(member.param_groups) in memo:
        return
    copies = []
    for group in member.param_groups:
        held = proxies.of_group(group)
        if not held:
            continue
        if id(group) not in memo:
            kept = {key: _copied(value, memo) for key, value in group.items() if key not in ("params", "param_names")}
            if "param_names" in group:
                names = dict(zip(map(id, group["params"]), group["param_names"], strict=True))
                kept["param_names"] = [f"{names[id(proxies.originals[p])]}{place}" for place, p in enumerate(held)]
            memo[id(group)] = {"params": held, **kept}
            memo[id(group["params"])] = held
        copies.append(memo[id(group)])
    memo[id(member.param_groups)] = copies


def _copied_state(member: Optimizer, proxies: Proxies, memo: _Memo) -> Any:
    """The state, cut to the size of the proxies."""
    state: Any = defaultdict(dict) if isinstance(member.state, defaultdict) else {}
    for key, value in member.state.items():
        if not isinstance(key, Tensor):
            state[key] = _copied(value, memo)
    for proxy, original in proxies.originals.items():
        if original in member.state:
            state[proxy] = {key: _cut(value, original, proxy, memo) for key, value in member.state[original].items()}
    return state


def _cut(value: Any, original: Tensor, proxy: nn.Parameter, memo: _Memo) -> Any:
    """What is kept for a parameter, as it would be for its proxy."""
    if not isinstance(value, Tensor):
        return _copied(value, _Memo(memo))  # not shared with the other of the pair
    if value.numel() == 1 and original.numel() != 1:
        return value.detach().clone()
    if value.shape != original.shape:
        raise CloneError("it has state already, whose shape is not its parameters'")
    corner = tuple(slice(size) for size in proxy.shape)
    here, of = _local(value), _local(original)
    if here.shape != original.shape or (here.dtype == of.dtype and torch.equal(here[corner], of[corner])):
        return proxy.detach().clone()  # a copy of the parameter itself, as slow weights are
    return here[corner].clone()


def _local(tensor: Any) -> Any:
    """A tensor's values; of a sharded one, those of this process."""
    return tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _copied(value: Any, memo: _Memo, name: str = "") -> Any:
    name = name or type(value).__name__
    try:
        return copy.deepcopy(value, memo)
    except CloneError as error:
        raise CloneError(f"{name} {error}") from error
    except Exception as error:
        raise CloneError(f"{name} cannot be copied ({type(error).__name__}: {error})") from error


def _copy_attributes(member: Optimizer, clone: Optimizer, proxies: Proxies, memo: _Memo) -> None:
    """Give a clone what the optimizer holds, except hooks."""
    for key, value in vars(member).items():
        if key.startswith("_optimizer_") and key.endswith("_hooks"):
            clone.__dict__[key] = OrderedDict()
            continue
        if key == "step" or (isinstance(value, FunctionType) and key in dir(type(member))):
            continue  # a learning-rate scheduler's, or a compiled one, which steps the user's own optimizer
        _prepare(key, value, proxies, memo)
        clone.__dict__[key] = _copied(value, memo, f"its `{key}`")


def _prepare(key: str, value: object, proxies: Proxies, memo: _Memo, depth: int = 3) -> None:
    """Before an attribute is copied, replace lists of parameters and models within it by those of proxies."""
    if id(value) in memo:
        return
    replaced = _replaced(value, proxies, memo) if depth or isinstance(value, nn.Module) else None
    if replaced is not None:
        memo[id(value)] = replaced
        return
    if refusal := _refusal(value, proxies, memo):
        raise CloneError(f"its `{key}` {refusal}")
    if depth and not isinstance(value, (nn.Module, Tensor, type, Optimizer)) and not _is_shared(value):
        for each in _held_by(value):
            _prepare(key, each, proxies, memo, depth - 1)


def _replaced(value: object, proxies: Proxies, memo: _Memo) -> Any:
    """What replaces a model or a container of parameters; None for anything else."""
    if isinstance(value, nn.Module) and not proxies.of.keys().isdisjoint(map(id, value.parameters())):
        return _ProxyModel(proxies)
    if isinstance(value, Mapping) and proxies.cover(map(_identity, value)):
        return _keyed(value, proxies, memo)
    if isinstance(value, (list, tuple, set)) and proxies.cover(map(id, value)):
        return type(value)(dict.fromkeys(p for each in value for p in proxies.of[id(each)]))
    return None


def _identity(key: object) -> int:
    """The identity of a parameter that is a key, or whose identity is."""
    return key if isinstance(key, int) else id(key)


def _keyed(value: Mapping[Any, Any], proxies: Proxies, memo: _Memo) -> dict[Any, Any]:
    """A copy of a mapping from parameters, or from their identities."""
    copies: dict[Any, Any] = {}
    for key, each in value.items():
        for proxy in proxies.of[_identity(key)]:
            original = proxies.originals[proxy]
            same_shape = isinstance(each, Tensor) and each.shape == original.shape
            kept = _cut(each, original, proxy, memo) if same_shape else _copied(each, _Memo(memo))
            copies[id(proxy) if isinstance(key, int) else proxy] = kept
    return copies


def _refusal(value: object, proxies: Proxies, memo: _Memo) -> str:
    """Why a value must not be copied; empty where it may be."""
    if isinstance(value, nn.Module) and sum(p.numel() for p in value.parameters()) > MOST_COPIED:
        return "is a large module"
    if isinstance(value, Tensor) and value.numel() > MOST_COPIED:
        return f"is a tensor of {value.numel()} elements besides its state"
    if _is_shared(value) and reaches(value, proxies.of.keys() | memo.keys()):
        return "holds a function or a reference that reaches the run's own parameters"
    return ""


def _is_shared(value: object) -> bool:
    """Whether `copy.deepcopy` returns the value itself."""
    return isinstance(value, (FunctionType, weakref.ref)) or hasattr(value, "_torchdynamo_orig_callable")


def reaches(value: object, own: Collection[int], depth: int = 6) -> bool:
    """Whether a function, or something that it holds, leads to one of these objects, given by identity."""
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
    """What a function, a method or a reference leads to, besides its attributes."""
    held = [getattr(value, name, None) for name in _OF_CALLABLES]
    if isinstance(value, weakref.ref):
        held.append(value())
    if isinstance(value, FunctionType):
        held += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not filled yet
                held.append(cell.cell_contents)
    return held
