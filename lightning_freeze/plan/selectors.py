"""Selectors: patterns over whole segments of names, and what they select."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

import torch
from torch.nn import Module

from lightning_freeze.errors import SelectionError, is_list, nearest
from lightning_freeze.plan.schedule import ALL, REST

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WILD = frozenset("*{}")
_KEYS = ("select", "re", "type", "each", "except")

Selector = str | Sequence[str | Mapping[str, object]] | Mapping[str, object]
"""What a user writes for a group; see `resolve_groups`."""


@dataclass(frozen=True)
class _Pattern:
    """One parsed selector: ``text`` as written, and how it finds parameters."""

    text: str
    kind: Literal["glob", "re", "type"]
    body: str

    @property
    def regex(self) -> re.Pattern[str]:
        return _glob(self.body) if self.kind == "glob" else _regex(self.body, self.text)


@dataclass(frozen=True)
class _Selector:
    """A parsed group: what it takes, what it takes away, and whether each match is a group of its own."""

    include: tuple[_Pattern, ...]
    exclude: tuple[_Pattern, ...]
    each: bool


def _parse(group: str, selector: object) -> _Selector:
    """The selector of one group as typed values; past here nothing is ``str | list | dict``."""
    include: list[_Pattern] = []
    exclude: list[_Pattern] = []
    each: list[_Pattern] = []
    for item in _as_list(selector):
        for key, text in _texts(group, item):
            {"except": exclude, "each": each}.get(key, include).append(_pattern(group, text, key))
    if each and include:
        raise SelectionError(
            f"group {group!r} mixes `each:` (one group for each match) with other selectors (one group together). "
            "Make it two groups."
        )
    if len(each) > 1:
        raise SelectionError(
            f"group {group!r} has {len(each)} patterns under `each:` ({', '.join(repr(p.text) for p in each)}), whose "
            "groups could not be told apart by name. Make it a family for each pattern."
        )
    if not each and not include:
        raise SelectionError(
            f"group {group!r} selects nothing: {selector!r}. Name a module or a parameter, such as 'encoder'."
        )
    return _Selector(tuple(each or include), tuple(exclude), bool(each))


def check_selector(group: str, selector: object) -> None:
    """Check a group's name and the form of its selector, without a model.

    Raises:
        SelectionError: The name is reserved, or the selector is none.
    """
    _check_group_name(group)
    parsed = _parse(group, selector)
    for pattern in (*parsed.include, *parsed.exclude):
        if pattern.kind != "type":
            _ = pattern.regex


def _as_list(selector: object) -> Sequence[object]:
    return selector if is_list(selector) else [selector]


def _texts(group: str, item: object) -> Iterator[tuple[str, str]]:
    """Each text of one element of a selector, with the key that it stands under."""
    if isinstance(item, str):
        yield "select", item
    elif isinstance(item, Mapping):
        for key, value in item.items():
            if key not in _KEYS:
                close = nearest(str(key), _KEYS, 1) or [_KEYS[0]]
                raise SelectionError(
                    f"group {group!r} has the unknown key {key!r}; the keys of a selector are {', '.join(_KEYS)}. "
                    f"Nearest: {close[0]!r}."
                )
            texts = [text for text in _as_list(value) if isinstance(text, str)]
            if len(texts) < len(_as_list(value)):
                raise SelectionError(
                    f"group {group!r} has `{key}: {value!r}`, but a selector is text. In YAML, quote patterns that begin "
                    "with * or hold braces."
                )
            yield from ((key, text) for text in texts)
    else:
        raise SelectionError(
            f"group {group!r} has the selector {item!r}; write a name such as 'encoder.layers.0', a list of names, "
            f"or a mapping with the keys {', '.join(_KEYS)}."
        )


def _pattern(group: str, text: str, key: str = "select") -> _Pattern:
    kind, body = ("glob", text) if key in ("select", "each", "except") else (key, text)
    for prefix in ("re", "type"):
        if kind == "glob" and text.startswith(f"{prefix}:"):
            kind, body = prefix, text.removeprefix(f"{prefix}:").strip()
    body = body.strip()
    if not body or (kind == "glob" and not all(_split(body))):
        raise SelectionError(
            f"group {group!r} has the selector {text!r}, in which a name is empty. Write whole names between dots, "
            "such as 'encoder.layers.0'."
        )
    return _Pattern(text, kind, body)  # type: ignore[arg-type]


@cache
def _glob(body: str) -> re.Pattern[str]:
    """A glob over whole segments as a regular expression; each wildcard is a group that tells what it stood for.

    The empty match of a ``**`` at either end takes the dot beside it along.
    """
    pieces: list[str] = []
    for segment in _split(body):
        if segment == "**":
            pieces.append(r"((?:[^.]+\.)*)")
            continue
        pieces.append(_segment(segment, body) + r"\.")
    # Names are matched with a dot at their end, so that every piece may end in one.
    return re.compile("".join(pieces))


def _split(body: str) -> list[str]:
    """The segments of a selector: split at its dots, except those of a range in braces."""
    return re.split(r"\.(?![^{}]*\})", body)


def _segment(segment: str, body: str) -> str:
    out = ""
    for part in re.split(r"(\*|\{[^}]*\})", segment):
        if part == "*":
            out += r"([^.]+)" if segment == "*" else r"([^.]*)"
        elif part.startswith("{"):
            numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
            if numbers is None or int(numbers[1]) > int(numbers[2]):
                raise SelectionError(
                    f"the selector {body!r} holds {part!r}; braces hold a range of whole numbers, low to high and both "
                    "included, such as {0..5}."
                )
            out += "(" + "|".join(str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)) + ")"
        else:
            out += re.escape(part)
    return out


@cache
def _regex(body: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(body)
    except re.error as error:
        raise SelectionError(f"the selector {text!r} is no regular expression: {error}.") from error


@cache
def _class(path: str) -> type[Module]:
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module_name), name) if module_name else getattr(torch.nn, name)
    except (ImportError, AttributeError) as error:
        close = [f"torch.nn.{c}" for c in nearest(name, (n for n in dir(torch.nn) if n[0].isupper()), 1)]
        hint = f" Nearest: {close[0]!r}." if close else ""
        raise SelectionError(
            f"`type: {path}` names no class that can be imported ({error}). Write the full path, such as "
            f"`type: torch.nn.LayerNorm`.{hint}"
        ) from error
    if not isinstance(found, type) or not issubclass(found, torch.nn.Module):
        raise SelectionError(f"`type: {path}` names {found!r}, which is no torch.nn.Module class.")
    return found


class _Names:
    """A model's parameters under all their names, and which names a pattern finds."""

    def __init__(self, module: Module) -> None:
        self.parameters = {clean_name(n): p for n, p in module.named_parameters(remove_duplicate=False)}
        self.modules = {clean_name(n): m for n, m in module.named_modules(remove_duplicate=False) if clean_name(n)}
        flat = [name for name in self.parameters if name.rpartition(".")[2].startswith("_flat_param")]
        if flat:
            raise SelectionError(
                f"the model shows only flattened parameters ({flat[0]!r}): FSDP without original parameters. Use "
                "FSDPStrategy(use_orig_params=True), or FSDP2 through ModelParallelStrategy."
            )
        # Each name, of a module or of a parameter, with the parameters at or below it.
        self.below: dict[str, list[str]] = {}
        for name in self.parameters:
            end = name.find(".")
            while end >= 0:
                self.below.setdefault(name[:end], []).append(name)
                end = name.find(".", end + 1)
            self.below.setdefault(name, []).append(name)

    def found(self, pattern: _Pattern) -> dict[str, str]:
        """Each parameter name that a pattern selects, with what its wildcards stood for."""
        if pattern.kind == "type":
            wanted = _class(pattern.body)
            roots = tuple(f"{name}." for name, module in self.modules.items() if isinstance(module, wanted))
            return {name: "" for name in self.parameters if name.startswith(roots)}
        if pattern.kind == "glob":
            return self._globbed(pattern)
        regex = pattern.regex
        return {name: "" for name in self.parameters if regex.fullmatch(name)}

    def _globbed(self, pattern: _Pattern) -> dict[str, str]:
        if not _WILD.intersection(pattern.body):
            return dict.fromkeys(self.below.get(pattern.body, ()), "")
        glob = pattern.regex
        found: dict[str, str] = {}
        for prefix, names in self.below.items():  # a prefix stands before the longer ones that begin with it
            if match := glob.fullmatch(f"{prefix}."):
                part = ".".join(part.rstrip(".") for part in match.groups() if part)
                for name in names:
                    found.setdefault(name, part)
        return {name: found[name] for name in self.parameters if name in found}

    def near(self, text: str) -> list[str]:
        """The names of modules and parameters nearest to one that is none."""
        return nearest(text, [*self.modules, *self.parameters])


def clean_name(name: str) -> str:
    """A parameter's or module's name as the user wrote it, without the segments that compiling or wrapping adds.

    Example:
        >>> clean_name("_orig_mod.encoder._checkpoint_wrapped_module.weight")
        'encoder.weight'
    """
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def _check_group_name(group: object) -> None:
    if not isinstance(group, str) or not group.strip():
        raise SelectionError(f"`groups` has the name {group!r}; a group's name is text.")
    if group in (REST, ALL):
        raise SelectionError(
            f"`groups` has a group called {group!r}, which is reserved: `rest` is every parameter outside the groups, "
            f"`all` every named group. Call it something else, such as '{group}_parameters'."
        )
    # A selector written in a schedule is its own group's name.
    if "/" in group and "*" not in group and not group.startswith(("re:", "type:")):
        raise SelectionError(
            f"group {group!r} has a slash in its name; slashes name the groups of a family (layers/0)."
        )
