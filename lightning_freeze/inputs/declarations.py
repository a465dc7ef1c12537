"""What a project declares of its inputs: used for their shape alone, or known not to be used."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_freeze.report.findings import Finding, covered_nothing, lacks_reason

from .calls import Frame
from .leaves import Leaf, signature_of
from .modules import Tree
from .verdicts import BLAMED, Verdict


class DeclarationError(ValueError):
    """A declaration about inputs that cannot be read: its key, as ``whitelist['B.mask'].when``, and the problem."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.problem)


@dataclass(frozen=True)
class Known:
    """One entry of the whitelist."""

    key: str  # `Class.argument`, the argument by its name or its leaf path
    reason: str
    when: tuple[tuple[str, Any], ...] = ()  # attributes of the module (dotted), and the values under which it holds

    def holds(self, module: object) -> bool:
        """Whether a module's attributes have the values of the condition."""
        return all(_attribute(module, path) == value for path, value in self.when)

    def never(self, module: object) -> str | None:
        """Why the condition cannot hold for a module in any state; None where it can."""
        for path, value in self.when:
            owner, _, name = path.rpartition(".")
            holder = _attribute(module, owner) if owner else module
            held = getattr(holder, name, _MISSING)
            if held is _MISSING:
                return f"{type(module).__name__} has no attribute {path!r}.{_did_you_mean(name, dir(holder))}"
            if isinstance(value, str) and isinstance(held, (bool, int, float)):
                return f"{path!r} is {held!r}, and {value!r} is a string. Write {path}: {value} without quotes."
        return None


_MISSING = object()


def _attribute(module: object, path: str) -> Any:
    return functools.reduce(lambda held, name: getattr(held, name, _MISSING), path.split("."), module)


def _did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence that proposes the most similar name; empty where none is similar."""
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_key(where: str, key: object) -> str:
    if not isinstance(key, str) or not all(key.partition(".")[::2]):
        raise DeclarationError(where, f"{key!r} is no `Class.argument`. Write it as `BertLayer.head_mask`.")
    return key


def parse_whitelist(entries: Mapping[str, Any] | None) -> list[Known]:
    """A whitelist from YAML: ``Class.argument`` to a reason, or to a mapping of ``reason`` and ``when``.

    Example:
        >>> parse_whitelist({"Block.mask": {"reason": "only the decoder masks", "when": {"training": False}}})[0].when
        (('training', False),)
    """
    if entries is None:
        return []
    if not isinstance(entries, Mapping):
        if isinstance(entries, str) and entries.endswith((".yaml", ".yml")):
            fix = f"In plain PyTorch, load the file yourself: whitelist=yaml.safe_load(open({entries!r}))['whitelist']."
        else:
            listed = entries if isinstance(entries, (list, tuple)) else [entries]
            key = next((key for key in listed if isinstance(key, str) and "." in key), "Block.mask")
            fix = f"Write: whitelist: {{{key}: <why it is not used>}}."
        raise DeclarationError("whitelist", f"{entries!r} is not a mapping of `Class.argument` to a reason. {fix}")
    return [_entry(key, value) for key, value in entries.items()]


def _entry(key: Any, value: Any) -> Known:
    where = f"whitelist[{key!r}]"
    _check_key(where, key)
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"reason": value}
    _check_options(where, given)
    reason, when = given.get("reason", ""), given.get("when")
    if problem := lacks_reason(reason, "the input is not used"):
        raise DeclarationError(f"{where}.reason", problem)
    if when is not None and not (isinstance(when, Mapping) and all(isinstance(path, str) for path in when)):
        problem = f"{when!r} is not a mapping of the module's attributes to values, as {{training: false}} or "
        raise DeclarationError(f"{where}.when", problem + "{config.use_cache: true}.")
    return Known(key, reason, tuple((when or {}).items()))


def _check_options(where: str, given: Iterable[Any]) -> None:
    for option in given:
        if option not in ("reason", "when"):
            near = _did_you_mean(str(option), ["reason", "when"]) or " Did you mean 'reason'?"
            raise DeclarationError(f"{where}.{option}", f"no such key.{near}")


def parse_metadata(keys: Iterable[Any] | None) -> frozenset[str]:
    """The keys of inputs declared to be used for their shape, data type or device alone."""
    if keys is not None and not isinstance(keys, (list, tuple, set, frozenset)):
        raise DeclarationError("metadata_inputs", f"{keys!r} is not a list. Write a list: [{keys}].")
    return frozenset(_check_key(f"metadata_inputs[{i}]", key) for i, key in enumerate(keys or ()))


class Declared:
    """What is declared of the inputs of a tree; its arguments are those of `audit_inputs`."""

    def __init__(self, metadata_inputs: Iterable[str], whitelist: Mapping[str, Any] | None) -> None:
        self._metadata = parse_metadata(metadata_inputs)
        self._known = {known.key: known for known in parse_whitelist(whitelist)}
        self._classes: dict[type, tuple[tuple[str, ...], frozenset[str]]] = {}
        self._seen: set[str] = set()  # declarations about an input of a call, and those that covered one
        self._matched: set[str] = set()
        self._never: dict[str, str] = {}  # declarations whose condition cannot hold, and why
        self._takes: dict[str, frozenset[str] | None] = {}  # arguments of each class's forwards; None for any

    def of_class(self, module: nn.Module) -> tuple[tuple[str, ...], frozenset[str]]:
        """The names of a module's class and its bases, and what the class declares."""
        kind = type(module)
        if kind not in self._classes:
            self._classes[kind] = (tuple(base.__name__ for base in _written_bases(kind)), _declared_on(module))
        return self._classes[kind]

    def check(self, module: nn.Module) -> None:
        """Refuse what a module's class declares and its ``forward`` does not take."""
        _, declared = self.of_class(module)
        kind, takes = type(module), signature_of(module.forward).takes
        if "metadata_inputs" not in vars(kind) or takes is None:
            return
        for written in sorted(declared):
            name = _parameter(written)
            if name not in takes:
                problem = f"{written!r} is not an argument of forward.{_did_you_mean(name, takes)}"
                raise DeclarationError(f"{kind.__name__}.metadata_inputs", problem)

    def excuses(self, frame: Frame, verdicts: list[Verdict]) -> list[str | None]:
        """The declaration that covers each leaf of a call, or None."""
        classes, declared = self.of_class(frame.target)
        if self._known or self._metadata:
            takes = frame.signature.takes
            for kind in classes:
                before: frozenset[str] | None = self._takes.get(kind, frozenset())
                self._takes[kind] = None if takes is None or before is None else before | takes
        elif not declared:
            return [None] * len(verdicts)
        return [self._excuse(frame, leaf, verdict) for leaf, verdict in zip(frame.leaves, verdicts, strict=True)]

    def _excuse(self, frame: Frame, leaf: Leaf, verdict: Verdict) -> str | None:
        found = None
        for key, listed in self._about(frame, leaf):
            self._seen.add(key)
            if verdict in BLAMED:
                self._matched.add(key)
                # an input declared to be used for its shape alone may be unused in some calls, but not dead
                found = found or (key if listed or verdict != "dead" else None)
        return found

    def _about(self, frame: Frame, leaf: Leaf) -> Iterator[tuple[str, bool]]:
        """The declarations about a leaf, each with whether it is on the whitelist."""
        classes, declared = self.of_class(frame.target)
        for kind, path in itertools.product(classes, dict.fromkeys((leaf.argument, leaf.name))):
            key = f"{kind}.{path}"
            known = self._known.get(key)
            if known is not None and (why := known.never(frame.target)):
                self._never[key] = why
            if key in self._metadata or (known is not None and known.holds(frame.target)):
                yield key, known is not None
        if leaf.name in declared or leaf.argument in declared:
            yield f"{classes[0]}.{leaf.name}", False

    def stale(self, tree: Tree) -> list[Finding]:
        """The declarations that covered nothing."""
        found = dict.fromkeys(self._seen - self._matched, "")
        if self._takes:  # else nothing was called
            for key in {*self._known, *self._metadata} - self._seen:
                if why := self._never.get(key) or self._nowhere(key, tree):
                    found[key] = why
        return [stale(key, self._known.get(key), why) for key, why in sorted(found.items())]

    def _nowhere(self, key: str, tree: Tree) -> str:
        """Why a declaration can match nothing; empty where it may match, or may be another model's."""
        kind, _, argument = key.partition(".")
        if kind in self._takes:
            takes, name = self._takes[kind], _parameter(argument)
            if takes is None or name in takes:
                return ""  # not passed, this time
            return f"{kind}.forward takes no `{name}`.{_did_you_mean(name, takes)}"
        for name, module in sorted(tree.named(), key=lambda found: -len(found[0])):
            if name and key.startswith(f"{name}."):
                return f"{name!r} is a module; entries are by class: `{type(module).__name__}.{key[len(name) + 1 :]}`."
        for known in self._takes:
            if f".{known}." in key:
                return f"entries are by the class's name alone: `{key[key.index(f'.{known}.') + 1 :]}`."
        near = _did_you_mean(kind, self._takes, 0.75)
        return f"no module of a class {kind!r} was called.{near}" if near else ""


def _declared_on(module: object) -> frozenset[str]:
    names = getattr(type(module), "metadata_inputs", ())
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(n, str) for n in names):
        problem = f"{names!r} is not a list of argument names. Write metadata_inputs = ('like',)."
        raise DeclarationError(f"{type(module).__name__}.metadata_inputs", problem)
    return frozenset(names)


def _written_bases(kind: type) -> list[type]:
    """A class and its bases, without those that torch makes for sharded and parametrized modules."""
    own = [base for base in kind.__mro__ if base.__module__ != "builtins" and base is not nn.Module]
    while len(own) > 1 and own[0].__name__ in (f"FSDP{own[-1].__name__}", f"Parametrized{own[1].__name__}"):
        del own[0]
    if "FSDPModule" in (base.__name__ for base in own):
        own = [b for b in own if b.__name__ != "FSDPModule" and not b.__name__.startswith("FSDP")] or own
    return own


def _parameter(argument: str) -> str:
    """The parameter that a leaf path begins with."""
    return re.split(r"[.\[]", argument)[0]


def stale(key: str, known: Known | None, why: str = "") -> Finding:
    """The finding about a declaration that covered nothing: why it can match nothing, else its input was used."""
    kind, _, argument = key.partition(".")
    what, used = f"metadata_inputs: {key!r} is declared to be used for its shape alone", "but its values were used"
    if known is not None:
        under = f" under {dict(known.when)}" if known.when else ""
        what, used = f"whitelist: {key!r} ({known.reason}) is listed as not used{under}", "but was used"
    about: dict[str, Any] = {"module_class": kind, "argument": argument, "confirmed": True}
    return covered_nothing("inputs", what, f"{used} in every call", why, **about)
