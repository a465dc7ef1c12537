"""Reads what a project declares of its inputs: used for their shape alone, or known not to be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class DeclarationError(ValueError):
    """A declaration about inputs that cannot be read.

    Args:
        key: Its key, as ``whitelist['Block.mask'].when``.
        problem: What is wrong, and the fix.
    """

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.problem)


@dataclass(frozen=True)
class Known:
    """One entry of the whitelist.

    Args:
        key: ``Class.argument``, the argument by its name or its leaf path.
        reason: Why it is not used.
        when: Attributes of the module (dotted) with the values under which the entry holds; empty for always.
    """

    key: str
    reason: str
    when: tuple[tuple[str, Any], ...] = ()

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
                return f"{type(module).__name__} has no attribute {path!r}.{nearest(name, dir(holder))}"
            if isinstance(value, str) and isinstance(held, (bool, int, float)):
                return f"{path!r} is {held!r}, and {value!r} is a string. Write {path}: {value} without quotes."
        return None


_MISSING = object()


def _attribute(module: object, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, _MISSING)
    return value


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence that proposes the most similar name; empty where none is similar."""
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_key(where: str, key: object) -> str:
    if not isinstance(key, str) or not all(key.partition(".")[::2]):
        raise DeclarationError(where, f"{key!r} is no `Class.argument`. Write it as `BertLayer.head_mask`.")
    return key


def parse_whitelist(entries: Mapping[str, Any] | None) -> list[Known]:
    """A whitelist from YAML: ``Class.argument`` to a reason, or to a mapping of ``reason`` and ``when``.

    Raises:
        DeclarationError: An entry has no reason, or cannot be read.

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
        raise DeclarationError("whitelist", f"{entries!r} is no mapping of `Class.argument` to a reason. {fix}")
    return [_entry(key, value) for key, value in entries.items()]


def _entry(key: Any, value: Any) -> Known:
    where = f"whitelist[{key!r}]"
    _check_key(where, key)
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"reason": value}
    for option in given:
        if option not in ("reason", "when"):
            near = nearest(str(option), ["reason", "when"]) or " Did you mean 'reason'?"
            raise DeclarationError(f"{where}.{option}", f"no such key.{near}")
    reason, when = given.get("reason"), given.get("when")
    if not isinstance(reason, str) or not reason.strip():
        problem = f"{reason!r} is no reason. Say in a sentence why the input is not used: by it others decide later "
        raise DeclarationError(f"{where}.reason", problem + "whether the entry still stands.")
    if when is not None and not (isinstance(when, Mapping) and all(isinstance(path, str) for path in when)):
        problem = f"{when!r} is no mapping of the module's attributes to values, as {{training: false}} or "
        raise DeclarationError(f"{where}.when", problem + "{config.use_cache: true}.")
    return Known(key, reason, tuple((when or {}).items()))


def parse_metadata(keys: Iterable[Any] | None) -> frozenset[str]:
    """The inputs declared to be used for their shape, data type or device alone.

    Raises:
        DeclarationError: A key is no ``Class.argument``.
    """
    if keys is not None and not isinstance(keys, (list, tuple, set, frozenset)):
        raise DeclarationError("metadata_inputs", f"{keys!r} is no list. Write a list: [{keys}].")
    return frozenset(_check_key(f"metadata_inputs[{i}]", key) for i, key in enumerate(keys or ()))


def declared_on(module: object) -> frozenset[str]:
    """The names that a module's class declares in ``metadata_inputs``.

    Raises:
        DeclarationError: The class declares something else than names.
    """
    names = getattr(type(module), "metadata_inputs", ())
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(n, str) for n in names):
        problem = f"{names!r} is not a list of argument names. Write metadata_inputs = ('like',)."
        raise DeclarationError(f"{type(module).__name__}.metadata_inputs", problem)
    return frozenset(names)
