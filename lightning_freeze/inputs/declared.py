"""Applies the declarations of an audit: which input each covers, and which cover nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from lightning_freeze.report.findings import Finding

from .calls import Frame
from .declarations import DeclarationError, declared_on, nearest, parse_metadata, parse_whitelist
from .leaves import Leaf, signature_of
from .messages import stale
from .modules import Tree
from .verdicts import BLAMED, Verdict


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
            self._classes[kind] = (tuple(base.__name__ for base in _written_bases(kind)), declared_on(module))
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
                problem = f"{written!r} is no argument of forward.{nearest(name, takes)}"
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
        for key in [f"{kind}.{path}" for kind in classes for path in dict.fromkeys((leaf.argument, leaf.name))]:
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
            return f"{kind}.forward takes no `{name}`.{nearest(name, takes)}"
        for name, module in sorted(tree.named(), key=lambda found: -len(found[0])):
            if name and key.startswith(f"{name}."):
                return f"{name!r} is a module; entries are by class: `{type(module).__name__}.{key[len(name) + 1 :]}`."
        for known in self._takes:
            if f".{known}." in key:
                return f"entries are by the class's name alone: `{key[key.index(f'.{known}.') + 1 :]}`."
        near = nearest(kind, self._takes, 0.75)
        return f"no module of a class {kind!r} was called.{near}" if near else ""


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
