"""A black-box oracle for the audit of inputs: does replacing one tensor of one call change anything at all?

It knows nothing of operators or graphs. It records every module call of one run (arguments, random state, state of the
module), then makes each call again on its own, with one leaf of its arguments replaced, and compares bit by bit what
can be seen from outside: everything returned, the arguments afterwards, the state of the module, and the gradients.
A leaf is irrelevant in a call when no replacement shows. What the oracle cannot see is a leaf that is kept somewhere
else than in the result, the arguments or the module (a global, a closure).

The two meanings of "no effect" differ: values that happen to have none (a mask of a fully visible text) and values that
nobody reads. The replacements are made to tell them apart (NaN, other indices, flipped masks), yet a real use can in
principle hide behind a number, e.g. behind a weight that is exactly zero. So give random weights and realistic inputs.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import random
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Key = tuple[str, str]
"""Name of the module, path of the leaf as one would write it inside ``forward``."""

_MACHINERY = frozenset(vars(nn.Module())) - {"training", "_buffers", "_parameters"}  # hooks, children, ...
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SHARED = (nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)


# ------------------------------------------------------------------------------------------------- leaves


def _is_config(value: Any) -> bool:
    """Configurations are many, large and never changed by a call."""
    return hasattr(value, "to_diff_dict") or type(value).__name__.endswith("Config")


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """What a container of the specification holds, as (path, value); None for whatever is no such container."""
    if isinstance(value, Mapping):  # ModelOutput is a dict
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not _is_config(value):
        return [(f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value) if hasattr(value, f.name)]
    return None


def _leaves(value: Any, path: str, seen: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif id(value) not in seen:
        for name, item in _fields(value) or ():
            yield from _leaves(item, path + name, (*seen, id(value)))


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    key = type(module)
    if "forward" in vars(module):
        return list(inspect.signature(module.forward).parameters.values())
    if key not in _SIGNATURES:
        _SIGNATURES[key] = list(inspect.signature(module.forward).parameters.values())
    return _SIGNATURES[key]


_SIGNATURES: dict[type, list[inspect.Parameter]] = {}


def _bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The arguments under the names that ``forward`` gives them, first those by position, then those by keyword."""
    kind = inspect.Parameter
    positional: list[str] = []
    rest = named_rest = None
    names = set()
    for parameter in _parameters(module):
        if parameter.kind is kind.VAR_POSITIONAL:
            rest = parameter.name
        elif parameter.kind is kind.VAR_KEYWORD:
            named_rest = parameter.name
        else:
            names.add(parameter.name)
            if parameter.kind is not kind.KEYWORD_ONLY:
                positional.append(parameter.name)
    bound = []
    for index, value in enumerate(args):
        at = index - len(positional)
        bound.append((positional[index] if at < 0 else f"{rest}[{at}]", value))
    for name, value in kwargs.items():
        bound.append((name if name in names or named_rest is None else f"{named_rest}[{name!r}]", value))
    return bound


def _leaves_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    return {path: leaf for name, value in _bind(module, args, kwargs) for path, leaf in _leaves(value, name)}


# ------------------------------------------------------------------------------------------------- copies


def _tensors_within(value: Any, found: dict[int, Tensor], shared: dict[int, Any]) -> None:
    """Every tensor that a copy of ``value`` has to copy, and every object that it must not copy, by identity."""
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (*_SHARED, nn.Parameter)) or _is_config(item):
            shared[id(item)] = item
        elif isinstance(item, Tensor):
            found[id(item)] = item
        elif isinstance(item, Mapping):
            stack += [*item.values(), *getattr(item, "__dict__", {}).values()]
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            stack += item
        elif hasattr(item, "__dict__"):
            stack += vars(item).values()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _copy(value: Any, tracked: list[Tensor] | None = None) -> Any:
    """A copy that shares no tensor with ``value`` but parameters; what came of a graph becomes a leaf of a new one.

    With ``tracked``, a copy to call a module with: tensors that need gradients may be written in place, and
    ``tracked`` takes the leaves that gradients arrive at.
    """
    tensors: dict[int, Tensor] = {}
    memo: dict[int, Any] = {}
    _tensors_within(value, tensors, memo)
    for key, tensor in tensors.items():
        new = _copied(tensor)
        if tensor.requires_grad:
            new.requires_grad_()
            if tracked is not None:
                tracked.append(new)
                new = new.clone() if torch.is_grad_enabled() else new
        memo[key] = new
    return copy.deepcopy(value, memo)


def _with(value: Any, path: str, leaf: str, new: Tensor) -> Any:
    """``value`` with another tensor at ``leaf``; containers on the way there are new, all else is shared."""
    if path == leaf:
        return new
    fields = _fields(value)
    if fields is None or not leaf.startswith(path):
        return value
    items = [_with(item, path + name, leaf, new) for name, item in fields]
    if all(a is b for a, (_, b) in zip(items, fields, strict=True)):
        return value
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    made = copy.copy(value)
    if isinstance(value, Mapping):
        for key, item in zip(value.keys(), items, strict=True):
            made[key] = item
    elif isinstance(value, list):
        made[:] = items
    else:
        for (name, _), item in zip(fields, items, strict=True):
            object.__setattr__(made, name[1:], item)
    return made


# ------------------------------------------------------------------------------------------------- what can be seen

Sight = list[tuple[str, Any]]


def _flat(value: Any, path: str, out: Sight, seen: set[int]) -> None:
    """Everything in ``value`` that a comparison looks at: tensors, arrays and plain values, by path."""
    if isinstance(value, (Tensor, np.ndarray, *_PLAIN)):
        out.append((path, value))
        return
    if isinstance(value, _SHARED) or _is_config(value) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flat(item, f"{path}[{key!r}]", out, seen)
    elif isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(value):
            _flat(item, f"{path}[{index}]", out, seen)
    if hasattr(value, "__dict__") and not (isinstance(value, Mapping) and dataclasses.is_dataclass(value)):
        for name, item in vars(value).items():  # of a ModelOutput these are its items once more
            _flat(item, f"{path}.{name}", out, seen)


def _bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def same(a: Any, b: Any) -> bool:
    """Bit by bit for tensors and arrays."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


def _alike(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: a copy lies otherwise in memory than a slice, so that other kernels may read it."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout is not torch.strided or not a.is_floating_point():
        return same(a, b)
    return torch.allclose(a.detach().double(), b.detach().double(), rtol=1e-3, atol=1e-5, equal_nan=True)


def _all_same(a: Sight, b: Sight) -> bool:
    return len(a) == len(b) and all(p == q and (x is y or same(x, y)) for (p, x), (q, y) in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------- state


class _Values:
    """Copies of tensors at the moments they were met, few of them: a value that came before is not copied again.

    Versions tell for parameters alone: ``batch_norm`` writes its running statistics without raising theirs.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        known = self._kept.get(id(tensor))
        if known is None or _is_changed(*known):
            known = self._kept[id(tensor)] = (tensor, tensor._version, _copied(tensor))
        return known[2]


def _is_changed(tensor: Tensor, version: int, value: Tensor) -> bool:
    return tensor._version != version if isinstance(tensor, nn.Parameter) else not same(tensor, value)


class _State:
    """All that a module and its children hold at one moment, to be put back."""

    def __init__(self, module: nn.Module, values: _Values) -> None:
        self._values = values
        self._tensors: dict[int, tuple[Tensor, int, Tensor]] = {}  # the tensor, its version, its value
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        for child in module.modules():
            attributes = dict(vars(child))  # hooks as well: some models put them on during their first call
            self._attributes.append((child, attributes))
            for value in attributes.values():
                if not isinstance(value, _PLAIN):
                    self._note(value)

    def _note(self, value: Any, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = (value, value._version, self._values.keep(value))
        elif depth > 6 or isinstance(value, (*_SHARED, *_PLAIN)) or _is_config(value):
            return
        elif isinstance(value, (dict, list, set, deque)):
            self._contents.append((value, copy.copy(value)))
            for item in value.values() if isinstance(value, dict) else value:
                self._note(item, depth + 1)
        elif isinstance(value, tuple):
            for item in value:
                self._note(item, depth + 1)
        elif hasattr(value, "__dict__"):
            self._contents.append((vars(value), dict(vars(value))))
            for item in list(vars(value).values()):
                self._note(item, depth + 1)

    def seen(self) -> Sight:
        """What a call has changed of the state, and all that is in it besides tensors."""
        out: Sight = []
        for index, (child, attributes) in enumerate(self._attributes):
            for name, value in vars(child).items():
                if name in _MACHINERY or (isinstance(value, _PLAIN) and value is attributes.get(name, _PLAIN)):
                    continue
                if not isinstance(value, _SHARED):
                    _flat(value, f"state {index} {name}", out, set())
        return [(path, value) for path, value in out if not isinstance(value, Tensor) or self._changed(value)]

    def _changed(self, tensor: Tensor) -> bool:
        known = self._tensors.get(id(tensor))
        return known is None or known[0] is not tensor or _is_changed(*known)

    def restore(self) -> None:
        for child, attributes in self._attributes:
            own = vars(child)
            for name in [n for n in own if n not in attributes]:
                del own[name]
            own.update(attributes)
        for container, content in self._contents:
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(content)
            else:
                container.update(content)
        for key, (tensor, version, value) in self._tensors.items():
            if _is_changed(tensor, version, value):
                with torch.no_grad():
                    tensor.detach().copy_(value)  # raises the version, so that other states see the change
                self._tensors[key] = (tensor, tensor._version, value)


@dataclasses.dataclass
class _Random:
    of_torch: Tensor
    of_python: Any
    of_numpy: Any

    @staticmethod
    def now() -> _Random:
        return _Random(torch.get_rng_state(), random.getstate(), np.random.get_state())

    def put(self) -> None:
        torch.set_rng_state(self.of_torch)
        random.setstate(self.of_python)
        np.random.set_state(self.of_numpy)


# ------------------------------------------------------------------------------------------------- recording


@dataclasses.dataclass
class _Call:
    """One call of a module as it was made."""

    fqn: str
    index: int
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: dict[str, Tensor]  # the tensors themselves: kept, so that identities stay true during the run
    state: _State
    random: _Random
    grad: bool
    handed: dict[str, set[Key]] = dataclasses.field(default_factory=dict)
    handed_views: dict[str, set[Key]] = dataclasses.field(default_factory=dict)
    returned: set[str] = dataclasses.field(default_factory=set)
    result: Sight | None = None  # None when the call raised

    @property
    def name(self) -> str:
        return f"{self.fqn or '<root>'} (call {self.index})"


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _hand_on(parent: _Call, child: str, leaves: dict[str, Tensor]) -> None:
    storages: dict[int, list[str]] = {}
    for path, tensor in parent.leaves.items():
        storages.setdefault(_storage(tensor), []).append(path)
    for argument, tensor in leaves.items():
        for path in storages.get(_storage(tensor), ()):
            how = parent.handed if parent.leaves[path] is tensor else parent.handed_views
            how.setdefault(path, set()).add((child, argument))


@contextmanager
def _recording(model: nn.Module, cap: int, only: str | None, into: Examination) -> Iterator[list[_Call]]:
    """Wrap ``nn.Module.__call__`` for a while, and list the calls on the tree of ``model``."""
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        names.setdefault(module, name)
    calls: list[_Call] = []
    counts: dict[str, int] = {}
    values = _Values()
    stack: list[_Call | None] = []
    original = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fqn = names.get(self)
        if fqn is None:
            return original(self, *args, **kwargs)
        leaves = _leaves_of(self, args, kwargs)
        if stack and stack[-1] is not None:
            _hand_on(stack[-1], fqn, leaves)
        index = counts.get(fqn, 0)
        counts[fqn] = index + 1
        made = None
        if index >= cap:
            into.capped.add(fqn)
        elif leaves and only in (None, fqn):
            try:
                kept_args, kept_kwargs = _copy((args, kwargs))
            except Exception as error:
                into.skipped[f"{fqn or '<root>'} (call {index})"] = f"cannot be copied: {error!r}"
            else:
                state = _State(self, values)
                grad = torch.is_grad_enabled()
                made = _Call(fqn, index, self, kept_args, kept_kwargs, leaves, state, _Random.now(), grad)
                calls.append(made)
        stack.append(made)
        try:
            result = original(self, *args, **kwargs)
        finally:
            stack.pop()
        if made is not None:
            out: Sight = []
            _flat(result, "", out, set())
            storages = {_storage(value) for _, value in out if isinstance(value, Tensor)}
            made.returned = {path for path, leaf in leaves.items() if _storage(leaf) in storages}
            made.result = [(path, _copied(value)) for path, value in out if isinstance(value, Tensor)]
        return result

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


# ------------------------------------------------------------------------------------------------- making calls again


def replacements(leaf: Tensor) -> Iterator[Tensor]:
    """Other values of the same shape and type, first those that a use is likeliest to show with."""
    base = _copied(leaf)
    if base.numel() == 0 or base.layout is not torch.strided:
        return
    made = torch.Generator().manual_seed(20240607)
    mixed = base.reshape(-1)[torch.randperm(base.numel(), generator=made)].reshape(base.shape)
    if base.dtype is torch.bool:
        drawn = torch.rand(base.shape, generator=made) < 0.5
        tries = [~base, drawn, mixed, torch.ones_like(base), torch.zeros_like(base)]
    elif base.is_floating_point() or base.is_complex():
        tries = [torch.full_like(base, float("nan"))]
        if base.element_size() > 1:
            spread = float(torch.nan_to_num(base.abs().double(), posinf=1.0).amax().clamp(1e-3, 1e3))
            noise = torch.randn(base.shape, generator=made) * spread
            tries += [noise.to(base.dtype), base + 1, mixed, torch.zeros_like(base), -base]
    else:
        low, high = int(base.min()), int(base.max())
        tries = []
        if high > low:
            drawn = torch.randint(low, high + 1, base.shape, generator=made).to(base.dtype)
            tries = [drawn, low + high - base, mixed]
        tries += [torch.zeros_like(base), torch.ones_like(base), base + 1, base - 1, torch.full_like(base, high)]
    for other in tries:
        new = torch.empty_like(base).copy_(other)  # with the strides of the leaf
        if not same(new, base):
            yield new


class _Failed(Exception):
    """A call that was made again did not return."""


@dataclasses.dataclass
class _Seen:
    result: Sight
    effects: Sight
    gradients: Sight


def _again(call: _Call, leaf: str | None = None, new: Tensor | None = None, backward: bool = False) -> _Seen:
    """Make a recorded call once more, alone, with at most one leaf replaced, and say all that can be seen of it."""
    call.state.restore()
    tracked: list[Tensor] = []
    args, kwargs = call.args, call.kwargs
    if leaf is not None and new is not None:
        new = _copied(new).requires_grad_(_leaves_of(call.module, args, kwargs)[leaf].requires_grad)
        bound = [_with(value, name, leaf, new) for name, value in _bind(call.module, args, kwargs)]
        args, kwargs = tuple(bound[: len(args)]), dict(zip(kwargs, bound[len(args) :], strict=True))
    with torch.set_grad_enabled(call.grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strange values make modules complain; the run itself has had its say
        args, kwargs = _copy((args, kwargs), tracked)
        before: Sight = []
        _flat((args, kwargs), "arguments", before, set())
        known = {(path, id(value)): value._version for path, value in before if isinstance(value, Tensor)}
        call.random.put()
        try:
            returned = call.module(*args, **kwargs)
            result: Sight = []
            _flat(returned, "result", result, set())
            after: Sight = []
            _flat((args, kwargs), "arguments", after, set())
            effects = [
                *result,
                *((p, v) for p, v in after if not isinstance(v, Tensor) or known.get((p, id(v))) != v._version),
                *call.state.seen(),
            ]
            gradients = _gradients(call, effects, tracked) if backward else []
        except Exception as error:
            raise _Failed(repr(error)) from error
        # a tensor of the state is written when the state is put back
        effects = [(p, _copied(v) if p.startswith("state") and isinstance(v, Tensor) else v) for p, v in effects]
    return _Seen(result, effects, gradients)


def _gradients(call: _Call, effects: Sight, tracked: list[Tensor]) -> Sight:
    """Gradients of a random weighting of everything differentiable that came of a call."""
    made = torch.Generator().manual_seed(20240608)
    outputs: dict[int, Tensor] = {}
    for _, value in effects:
        if isinstance(value, Tensor) and value.requires_grad and value.grad_fn is not None:
            outputs.setdefault(id(value), value)
    sources = [p for p in call.module.parameters() if p.requires_grad] + tracked
    if not outputs or not sources:
        return []
    weights = [torch.randn(value.shape, generator=made).to(value.dtype) for value in outputs.values()]
    grads = torch.autograd.grad(list(outputs.values()), sources, weights, allow_unused=True)
    return [(f"gradient {index}", grad) for index, grad in enumerate(grads)]


class _Again:
    """All questions about one recorded call; what it does by itself is found out once."""

    def __init__(self, call: _Call) -> None:
        self.call = call
        self.reruns = 0
        self.trouble: str | None = None
        self.faithful = True
        self._plain: dict[tuple[str | None, bool], _Seen | None] = {}
        self.leaves = _leaves_of(call.module, call.args, call.kwargs)
        if call.result is None:
            self.trouble = "raised"
            return
        try:
            plain = self._baseline(None, False)
        except _Failed as error:
            self.trouble = f"cannot be made again: {error}"
            return
        if plain is None:
            self.trouble = "is not deterministic"
        else:
            tensors = [(p.removeprefix("result"), v) for p, v in plain.result if isinstance(v, Tensor)]
            self.faithful = len(tensors) == len(call.result) and all(
                p == q and _alike(x, y) for (p, x), (q, y) in zip(tensors, call.result, strict=True)
            )

    def _again(self, *args: Any) -> _Seen:
        self.reruns += 1
        return _again(self.call, *args)

    def _baseline(self, leaf: str | None, backward: bool) -> _Seen | None:
        """The call as it was; None when it does not come out the same twice.

        A tensor that is handed in under several names is one object, but not once one of them is replaced: such a
        leaf is compared with a call in which it is an object of its own with the same values.
        """
        if (leaf, backward) not in self._plain:
            new = None if leaf is None else self.leaves[leaf]
            first, second = (self._again(leaf, new, backward) for _ in range(2))
            steady = _all_same(first.effects, second.effects) and _all_same(first.gradients, second.gradients)
            self._plain[leaf, backward] = first if steady else None
        return self._plain[leaf, backward]

    def has_effect(self, leaf: str) -> bool | None:
        """Whether any replacement shows; None where nothing can be said."""
        value = self.leaves[leaf]
        alias = leaf if sum(other is value for other in self.leaves.values()) > 1 else None
        tries = list(replacements(value))
        for backward in (False, True) if self.call.grad else (False,):
            try:
                plain = self._baseline(alias, backward)
            except _Failed:
                return None
            if plain is None or not tries:
                return None
            if backward and not plain.gradients:
                continue
            for new in tries:
                try:
                    seen = self._again(leaf, new, backward)
                except _Failed:
                    return True
                if not (_all_same(seen.effects, plain.effects) and _all_same(seen.gradients, plain.gradients)):
                    return True
        return False


# ------------------------------------------------------------------------------------------------- the answers


@dataclasses.dataclass
class Leaf:
    """What was found of one (module, argument), over its calls."""

    effect: int = 0
    no_effect: int = 0
    untested: int = 0  # empty, not deterministic, ...
    handed: set[Key] = dataclasses.field(default_factory=set)  # the very tensor, to a child that the call called
    handed_views: set[Key] = dataclasses.field(default_factory=set)  # another tensor on the same memory
    returned: bool = False  # it, or another tensor on the same memory


@dataclasses.dataclass
class Examination:
    """All answers about one run."""

    leaves: dict[Key, Leaf] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)  # calls that nothing can be said of, and why
    unfaithful: list[str] = dataclasses.field(default_factory=list)  # alone, these calls give clearly other results
    capped: set[str] = dataclasses.field(default_factory=set)  # modules with more calls than were looked at
    calls: int = 0
    reruns: int = 0

    @property
    def irrelevant(self) -> set[Key]:
        """Leaves without any effect in all calls that were looked at."""
        return {key for key, leaf in self.leaves.items() if leaf.no_effect and not leaf.effect and not leaf.untested}

    @property
    def sometimes(self) -> set[Key]:
        """Leaves with an effect in some calls and none in others."""
        return {key for key, leaf in self.leaves.items() if leaf.no_effect and leaf.effect}

    @property
    def untested(self) -> set[Key]:
        """Leaves that nothing can be said of in one call or more."""
        return {key for key, leaf in self.leaves.items() if leaf.untested}

    @property
    def origins(self) -> set[Key]:
        """Irrelevant leaves that their module handed to no irrelevant leaf of a child: where the fault lies."""
        return {key for key in self.irrelevant if not (self.leaves[key].handed & self.irrelevant)}


def run(model: nn.Module, inputs: Mapping[str, Any], seed: int = 0) -> Any:
    """Call the model as the oracle does: with copies of the inputs and from a known random state."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return model(**_copy(dict(inputs)))


def examine(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    seed: int = 0,
    cap: int = 4,
    only: Key | None = None,
    call: Callable[[], Any] | None = None,
) -> Examination:
    """Run ``model(**inputs)``, or ``call()``, as the mode and the gradients are set now, and question every call.

    Of a module that is called more than ``cap`` times the first ``cap`` calls are questioned. The model is left in
    the state that the one run leaves it in.
    """
    found = Examination()
    fqn, argument = only if only is not None else (None, None)
    with _recording(model, cap, fqn, found) as calls:
        if call is None:
            run(model, inputs, seed)
        else:
            call()
    end, end_random = _State(model, _Values()), _Random.now()
    try:
        for made in calls:
            asked = _Again(made)
            if asked.trouble is not None:
                found.skipped[made.name] = asked.trouble
            elif not asked.faithful:
                found.unfaithful.append(made.name)
            for path in asked.leaves:
                if argument not in (None, path):
                    continue
                leaf = found.leaves.setdefault((made.fqn, path), Leaf())
                effect = None if asked.trouble is not None else asked.has_effect(path)
                leaf.effect += effect is True
                leaf.no_effect += effect is False
                leaf.untested += effect is None
                leaf.handed |= made.handed.get(path, set())
                leaf.handed_views |= made.handed_views.get(path, set())
                leaf.returned |= path in made.returned
            found.calls += 1
            found.reruns += asked.reruns
    finally:
        end.restore()
        end_random.put()
    return found


def irrelevant_leaves(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> set[Key]:
    """The (module, argument) whose values changed nothing in any call."""
    return examine(model, inputs, **options).irrelevant


def has_effect(model: nn.Module, inputs: Mapping[str, Any], fqn: str, argument: str, **options: Any) -> bool | None:
    """Whether the values of one argument changed anything in any call; None where nothing can be said."""
    leaf = examine(model, inputs, only=(fqn, argument), **options).leaves[fqn, argument]
    return True if leaf.effect else None if leaf.untested else False
