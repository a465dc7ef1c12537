"""What a project declares of its inputs: used for their shape alone, or not used and known about."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class DeclarationError(ValueError):
    """A declaration about inputs that cannot be read.

    Args:
        key: Where it stands, as ``whitelist['Block.mask'].when``.
        problem: What is wrong, and the mend.
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
        reason: Why it is not used, for whoever reads the list.
        when: Attributes of the module (dotted) with the values under which the entry holds; empty for always.
    """

    key: str
    reason: str
    when: tuple[tuple[str, Any], ...] = ()

    def holds(self, module: object) -> bool:
        """Whether a module's attributes are as the entry asks."""
        return all(_attribute(module, path) == value for path, value in self.when)

    def never(self, module: object) -> str | None:
        """Why the condition cannot hold for a module, whatever its state; None where it can."""
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
    """The sentence that proposes the name most like one that is not there; empty where none is like it."""
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f" Nearest: {near[0]!r}." if near else ""


def parse_key(where: str, key: object) -> str:
    """A ``Class.argument``.

    Raises:
        DeclarationError: It is none.
    """
    if not isinstance(key, str) or not all(key.partition(".")[::2]):
        raise DeclarationError(
            where, f"{key!r} is no `Class.argument`. Write the class and its argument, as `BertLayer.head_mask`."
        )
    return key


def parse_whitelist(entries: Mapping[str, Any] | None) -> list[Known]:
    """A whitelist from what YAML holds: ``Class.argument`` to a reason, or to a mapping of ``reason`` and ``when``.

    Raises:
        DeclarationError: An entry without a reason, or one that cannot be read.

    Example:
        >>> parse_whitelist({"Block.mask": {"reason": "only the decoder masks", "when": {"training": False}}})[0].when
        (('training', False),)
    """
    if entries is None:
        return []
    if not isinstance(entries, Mapping):
        raise DeclarationError(
            "whitelist", f"{entries!r} is no mapping of `Class.argument` to a reason. {_as_mapping(entries)}"
        )
    return [_entry(key, value) for key, value in entries.items()]


def _entry(key: Any, value: Any) -> Known:
    where = f"whitelist[{key!r}]"
    parse_key(where, key)
    given: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"reason": value}
    _check_options(where, given)
    reason, when = given.get("reason"), given.get("when")
    if not isinstance(reason, str) or not reason.strip():
        raise DeclarationError(
            f"{where}.reason",
            f"{reason!r} is no reason. Say in a sentence why the input is not used: whoever reads the list later "
            "decides by it whether the entry still stands.",
        )
    if when is not None and not (isinstance(when, Mapping) and all(isinstance(path, str) for path in when)):
        raise DeclarationError(
            f"{where}.when",
            f"{when!r} is no mapping of the module's attributes to values, as {{training: false}} or "
            "{config.use_cache: true}.",
        )
    return Known(key, reason, tuple((when or {}).items()))


def _check_options(where: str, given: Iterable[Any]) -> None:
    for option in given:
        if option not in ("reason", "when"):
            near = difflib.get_close_matches(str(option), ["reason", "when"], 1) or ["reason"]
            raise DeclarationError(f"{where}.{option}", f"no such key; did you mean {near[0]!r}?")


def _as_mapping(entries: object) -> str:
    if isinstance(entries, str) and entries.endswith((".yaml", ".yml")):
        return f"In plain PyTorch, load the file yourself: whitelist=yaml.safe_load(open({entries!r}))['whitelist']."
    listed = entries if isinstance(entries, (list, tuple)) else [entries]
    key = next((key for key in listed if isinstance(key, str) and "." in key), "Block.mask")
    return f"Write: whitelist: {{{key}: <why it is not used>}}."


def parse_metadata(keys: Iterable[Any] | None) -> frozenset[str]:
    """The inputs declared to be used for their shape, data type or device alone.

    Raises:
        DeclarationError: A key that is no ``Class.argument``.
    """
    if keys is not None and not isinstance(keys, (list, tuple, set, frozenset)):
        raise DeclarationError("metadata_inputs", f"{keys!r} is no list. Write a list: [{keys}].")
    return frozenset(parse_key(f"metadata_inputs[{i}]", key) for i, key in enumerate(keys or ()))


def keys_of(classes: Iterable[str], argument: str, name: str) -> list[str]:
    """The keys by which an input can be declared: by its leaf path or its name, for its class and those it inherits from.

    Example:
        >>> keys_of(["Block"], "batch['a']", "batch")
        ["Block.batch['a']", 'Block.batch']
    """
    return [f"{kind}.{path}" for kind in classes for path in dict.fromkeys((argument, name))]


def declared_on(module: object) -> frozenset[str]:
    """The names that a module's class declares in ``metadata_inputs``.

    Raises:
        DeclarationError: The class declares something that is no row of names.
    """
    names = getattr(type(module), "metadata_inputs", ())
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(n, str) for n in names):
        raise DeclarationError(
            f"{type(module).__name__}.metadata_inputs",
            f"{names!r} is no row of argument names. Write metadata_inputs = ('like',).",
        )
    return frozenset(names)
