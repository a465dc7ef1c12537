"""Selectors: patterns over whole segments of names (``layer.1`` never selects ``layer.10``), and what they select."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module

import torch
from torch.nn import Module, Parameter

from lightning_freeze.errors import SelectionError, did_you_mean, is_list, nearest, offer
from lightning_freeze.plan.schedule import ALL, REST

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WILD = frozenset("*{}")
_KEYS = ("select", "re", "type", "each", "except", "by")
_CHOICES = {"re": re.compile(r"[*+?{|]"), "glob": re.compile(r"\*\*|[^.]\*|\*[^.]")}
"""Where a pattern has a choice of what it matches."""
_SECONDS = 3.0
_MATCH = """
import faulthandler, json, re, sys
regex, names, seconds = json.load(sys.stdin)
faulthandler.dump_traceback_later(seconds, exit=True)
print(json.dumps([match and match.groups() for match in map(re.compile(regex).fullmatch, names)]))
"""

Selector = str | Sequence[str | Mapping[str, object]] | Mapping[str, object]
"""What a user writes for a group; see `resolve_groups`."""


@dataclass(frozen=True)
class Pattern:
    """One parsed selector."""

    text: str  # as written
    kind: str  # glob, re or type
    body: str

    @property
    def regex(self) -> re.Pattern[str]:
        """What matches names; of a glob, names with a dot at their end."""
        return _glob(self.body) if self.kind == "glob" else _regex(self.body, self.text)

    def matches(self, names: Iterable[str]) -> dict[str, Sequence[str | None]]:
        """The names that it matches whole, with what its groups matched."""
        return _matches(self, tuple(names))


@dataclass(frozen=True)
class ParsedSelector:
    """What a group takes, what it takes away, and whether each match is a group of its own."""

    include: list[Pattern]
    exclude: list[Pattern]
    each: bool
    by: str | None  # ``user``, or ``user: <the reason>``, where the user's own code moves the group


def parse(group: str, selector: object) -> ParsedSelector:
    """The selector of one group as typed values."""
    include: list[Pattern] = []
    exclude: list[Pattern] = []
    each: list[Pattern] = []
    for item in _as_list(selector):
        for key, text in _texts(group, item):
            {"except": exclude, "each": each}.get(key, include).append(_pattern(group, text, key))
    if each and include:
        raise SelectionError(f"group {group!r} mixes `each:` with other selectors. Make it two groups.")
    if len(each) > 1:
        patterns = ", ".join(repr(pattern.text) for pattern in each)
        raise SelectionError(
            f"group {group!r} has {len(each)} patterns under `each:` ({patterns}). Make each a family."
        )
    if not each and not include:
        raise SelectionError(f"group {group!r} selects nothing: {selector!r}. Name a module, such as 'encoder'.")
    return ParsedSelector(each or include, exclude, bool(each), _moved_by(selector))


def _moved_by(selector: object) -> str | None:
    return next((item["by"] for item in _as_list(selector) if isinstance(item, Mapping) and "by" in item), None)


def check_selector(group: str, selector: object) -> None:
    """Check a group's name and the form of its selector, without a model."""
    check_group_name(group)
    parsed = parse(group, selector)
    for pattern in (*parsed.include, *parsed.exclude):
        if pattern.kind != "type":
            _ = pattern.regex


def _as_list(selector: object) -> Sequence[object]:
    return selector if is_list(selector) else [selector]


def _texts(group: str, item: object) -> Iterator[tuple[str, str]]:
    """Each text of one element of a selector, with its key."""
    if not isinstance(item, (str, Mapping)):
        raise SelectionError(
            f"group {group!r} has the selector {item!r}; write a name, a list of names, or a mapping of {', '.join(_KEYS)}."
        )
    for key, value in ({"select": item} if isinstance(item, str) else item).items():
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS, 1)
            raise SelectionError(
                f"group {group!r} has the unknown key {key!r}; the keys of a selector are {', '.join(_KEYS)}.{hint}"
            )
        if key == "by":
            if str(value).partition(":")[0] != "user" or not {"select", "re", "type"}.intersection(item):
                raise SelectionError(
                    f"group {group!r} has `by: {value}`. Write `by: user` beside `select:`, for what your own code moves; a "
                    "family (`each:`) is scheduled."
                )
            continue
        for text in _as_list(value):
            if not isinstance(text, str):
                raise SelectionError(
                    f"group {group!r} has `{key}: {value!r}`, but a selector is text. In YAML, quote * and braces."
                )
            yield key, text


def _pattern(group: str, text: str, key: str) -> Pattern:
    kind, body = (key, text) if key in ("re", "type") else ("glob", text)
    for prefix in ("re", "type"):
        if kind == "glob" and text.startswith(f"{prefix}:"):
            kind, body = prefix, text.removeprefix(f"{prefix}:")
    body = body.strip()
    if not body or (kind == "glob" and not all(_split(body))):
        raise SelectionError(
            f"group {group!r} has the selector {text!r}, in which a name is empty. Write whole names: 'encoder.layers.0'."
        )
    return Pattern(text, kind, body)


@cache
def _glob(body: str) -> re.Pattern[str]:
    """A glob over names that end in a dot; each wildcard is a group of the expression."""
    segments = _split(body)
    return re.compile("".join(r"((?:[^.]+\.)*)" if s == "**" else _segment(s, body) + r"\." for s in segments))


def _split(body: str) -> list[str]:
    """The segments of a selector: split at its dots, except those of a range in braces."""
    return re.split(r"\.(?![^{}]*\})", body)


def _segment(segment: str, body: str) -> str:
    out = ""
    for part in re.split(r"(\*|\{[^}]*\})", segment):
        if part == "*":
            out += r"([^.]+)" if segment == "*" else r"([^.]*)"
        elif part.startswith("{"):
            numbers = re.fullmatch(r"\{(\d{1,18})\.\.(\d{1,18})\}", part)
            if numbers is None or int(numbers[1]) > int(numbers[2]):
                raise SelectionError(
                    f"the selector {body!r} holds {part!r}; braces hold a range of whole numbers, low to high: {{0..5}}."
                )
            low, high = int(numbers[1]), int(numbers[2])
            lengths = range(len(str(low)), len(str(high)) + 1)
            bounds = [(max(low, 10 ** (n - 1) if n > 1 else 0), min(high, 10**n - 1)) for n in lengths]
            out += "(" + "|".join(_between(str(first), str(last)) for first, last in bounds) + ")"
        else:
            out += re.escape(part)
    return out


def _between(low: str, high: str) -> str:
    """A regular expression of the numbers from low to high, which have the same length."""
    if not low:
        return ""
    if low[0] == high[0]:
        return low[0] + _between(low[1:], high[1:])
    zeros, nines = "0" * len(low[1:]), "9" * len(low[1:])
    least, most = low[1:] == zeros, high[1:] == nines
    parts = [] if least else [low[0] + _between(low[1:], nines)]
    first, last = int(low[0]) + (not least), int(high[0]) - (not most)
    if first <= last:
        parts.append(f"[{first}-{last}]" + "[0-9]" * len(zeros))
    parts += [] if most else [high[0] + _between(zeros, high[1:])]
    return f"(?:{'|'.join(parts)})"


@cache
def _regex(body: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(body)
    except (re.error, OverflowError, RecursionError) as error:
        raise SelectionError(f"the selector {text!r} is not a regular expression: {error}.") from error


@lru_cache
def _matches(pattern: Pattern, names: tuple[str, ...]) -> dict[str, Sequence[str | None]]:
    """Match names, within a limit on time.

    `re` knows no such limit and keeps the GIL: nothing within this process ends it, but a signal on the main thread. Two
    choices take at most the square of a name's length; any other pattern is matched by a process that ends itself.
    """
    regex, found = pattern.regex, None
    if len(_CHOICES[pattern.kind].findall(pattern.body)) > 2 or re.search(r"\)[*+?{]", pattern.body):
        with suppress(OSError):  # where no process can be started, there is no limit
            given = json.dumps([regex.pattern, names, _SECONDS])
            command = [sys.executable, "-IS", "-c", _MATCH]
            child = subprocess.run(command, input=given, capture_output=True, text=True, errors="replace")
            if "Timeout" in child.stderr:
                raise SelectionError(
                    f"the selector {pattern.text!r} takes more than {_SECONDS:g} s over {len(names)} names: it has too many "
                    "ways to match one. Write no repetition within or beside another: `a+` for `(a+)+`, `.*` once."
                )
            found = json.loads(child.stdout) if child.stdout else None
    if found is None:
        found = [match and match.groups() for match in map(regex.fullmatch, names)]
    return {name: groups for name, groups in zip(names, found, strict=True) if groups is not None}


@cache
def _class(path: str) -> type[Module]:
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module_name), name) if module_name else getattr(torch.nn, name)
    except (ImportError, AttributeError) as error:
        close = [f"torch.nn.{c}" for c in nearest(name, (n for n in dir(torch.nn) if n[0].isupper()), 1)]
        raise SelectionError(
            f"`type: {path}` names no class that can be imported ({error}). Write the full path, such as "
            f"`type: torch.nn.LayerNorm`.{offer(close)}"
        ) from error
    if not isinstance(found, type) or not issubclass(found, torch.nn.Module):
        raise SelectionError(f"`type: {path}` names {found!r}, which is not a torch.nn.Module class.")
    return found


class ParamNames:
    """A model's parameters under all their names, and which names a pattern finds."""

    def __init__(self, module: Module) -> None:
        self.parameters: dict[str, Parameter] = {}
        written: dict[str, str] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            clean = clean_name(name)
            if self.parameters.setdefault(clean, parameter) is not parameter:
                raise SelectionError(
                    f"{written[clean]!r} and {name!r} are both called {clean!r} without the segments that torch's wrappers add "
                    f"({', '.join(sorted(_WRAPPERS))}). Rename the module or the parameter of yours that has that name."
                )
            written[clean] = name
        self.modules = {clean_name(n): m for n, m in module.named_modules(remove_duplicate=False) if clean_name(n)}
        flat = [name for name in self.parameters if name.rpartition(".")[2].startswith("_flat_param")]
        if flat:
            raise SelectionError(
                f"the model shows only flattened parameters ({flat[0]!r}): FSDP without original parameters. Use "
                "FSDPStrategy(use_orig_params=True), or FSDP2 through ModelParallelStrategy."
            )
        self.below: dict[str, list[str]] = {}
        """Each name, of a module or of a parameter, with the parameters at or below it."""
        for name in self.parameters:
            end = name.find(".")
            while end >= 0:
                self.below.setdefault(name[:end], []).append(name)
                end = name.find(".", end + 1)
            self.below.setdefault(name, []).append(name)

    def found(self, pattern: Pattern) -> dict[str, str]:
        """Each parameter name that a pattern selects, with what its wildcards stood for."""
        if pattern.kind == "type":
            roots = tuple(f"{name}." for name in self._modules_of(pattern))
            return {name: "" for name in self.parameters if name.startswith(roots)}
        if pattern.kind == "glob":
            return self._globbed(pattern)
        return dict.fromkeys(pattern.matches(self.parameters), "")

    def _globbed(self, pattern: Pattern) -> dict[str, str]:
        if not _WILD.intersection(pattern.body):
            return dict.fromkeys(self.below.get(pattern.body, ()), "")
        matched, found = pattern.matches(f"{prefix}." for prefix in self.below), dict[str, str]()
        for prefix, groups in matched.items():  # a prefix comes before the longer ones that begin with it
            part = ".".join(part.rstrip(".") for part in groups if part)
            for name in self.below[prefix.removesuffix(".")]:
                found.setdefault(name, part)
        return {name: found[name] for name in self.parameters if name in found}

    def _modules_of(self, pattern: Pattern) -> list[str]:
        """The modules that a glob or a type names, with or without parameters."""
        if pattern.kind == "type":
            wanted = _class(pattern.body)
            return [name for name, module in self.modules.items() if isinstance(module, wanted)]
        names = self.modules if pattern.kind == "glob" else ()
        return [name.removesuffix(".") for name in pattern.matches(f"{name}." for name in names)]

    def require(self, group: str, pattern: Pattern, key: str) -> dict[str, str]:
        """What a pattern finds, which must be something."""
        if found := self.found(pattern):
            return found
        if pattern.kind == "type":
            known = sorted(
                {f"{type(m).__module__}.{type(m).__qualname__}" for n, m in self.modules.items() if n in self.below}
            )
        else:
            known = list(self.below)
        raise SelectionError(
            f"group {group!r}: the selector {key + pattern.text!r} matches no parameter{self.why_nothing(pattern)}."
            + (did_you_mean(pattern.body, known) or f" Known: {', '.join(map(repr, known[:3])) or 'no parameters'}.")
            + (
                " A `re:` must match a parameter's whole name: `re:.*norm.*`."
                if pattern.kind == "re"
                else " Selectors name whole segments between dots; `**.` before a name finds it at any depth."
            )
        )

    def why_nothing(self, pattern: Pattern) -> str:
        """What modules a pattern names that have no parameters."""
        names = self._modules_of(pattern)
        if not names:
            return ""
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        return f": {names[0]!r} is a {type(self.modules[names[0]]).__name__} without parameters{others}"


def clean_name(name: str) -> str:
    """A name as the user wrote it, without the segments that compiling or wrapping adds."""
    if "_mod" not in name:  # as in most of many thousand names
        return name
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def check_group_name(group: object) -> None:
    """Refuse what cannot be a group's name."""
    if not isinstance(group, str) or not group.strip():
        raise SelectionError(f"`groups` has the name {group!r}; a group's name is text.")
    if group in (REST, ALL):
        raise SelectionError(
            f"`groups` has a group called {group!r}, which is reserved: `rest` is every parameter outside the groups, `all` "
            f"every named group. Rename it, such as to '{group}_parameters'."
        )
    # A selector written in a schedule is its own group's name.
    if "/" in group and "*" not in group and not group.startswith(("re:", "type:")):
        raise SelectionError(f"group {group!r} has a slash in its name, as the groups of a family have (layers/0).")
