"""YAML read strictly, so that every error can name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_freeze.errors import Shortened

_MERGE = "tag:yaml.org,2002:merge"
_MOST = 100_000


class ConfigError(Shortened, ValueError):
    """A configuration that cannot be used; the message begins with file, line and key."""


class _Loader(yaml.SafeLoader):
    """Reads `1e-1` as a number, as YAML 1.2 and a LightningCLI do."""


_EXPONENT = re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


@dataclass(frozen=True)
class Place:
    """A value in a YAML file."""

    path: Path | None  # None for a value on the command line
    key: str  # from the root, such as `trainer.callbacks[0].init_args`
    node: Node  # as YAML's composer made it

    @property
    def where(self) -> str:
        """File, line and key; on the command line the option."""
        if self.path is None:
            return f"--{self.key}"
        return f"{self.path}, line {self.node.start_mark.line + 1}, {self.key or 'the whole file'}"

    def error(self, message: str) -> ConfigError:
        """An error about this value."""
        return ConfigError(f"{self.where}: {message}")

    def items(self) -> dict[str, Place]:
        """A mapping's values by key; empty for anything else."""
        if not isinstance(self.node, MappingNode):
            return {}
        return {str(key.value): self.under(key, value) for key, value in self.node.value}

    def under(self, key: Node, node: Node) -> Place:
        """A node of this mapping under one of its keys, or the key itself."""
        return Place(self.path, f"{self.key}.{key.value}" if self.key else str(key.value), node)

    def elements(self) -> list[Place]:
        """A sequence's elements; empty for anything else."""
        if not isinstance(self.node, SequenceNode):
            return []
        return [Place(self.path, f"{self.key}[{i}]", value) for i, value in enumerate(self.node.value)]

    def children(self) -> tuple[Place, ...]:
        """A mapping's values, or a sequence's elements."""
        return (*self.items().values(), *self.elements())

    def plain(self) -> Any:
        """The value as builtins."""
        loader = _Loader("")
        try:
            return loader.construct_object(self.node, deep=True)
        except (yaml.YAMLError, ValueError) as error:  # a whole number of thousands of digits
            raise self.error(f"the value cannot be read ({error}).") from error
        finally:
            loader.dispose()

    def walk(self, seen: set[int] | None = None) -> Iterator[Place]:
        """This value and everything below it; what aliases share is walked once."""
        seen = set() if seen is None else seen
        if id(self.node) in seen:
            return
        seen.add(id(self.node))
        yield self
        for child in self.children():
            yield from child.walk(seen)

    def file(self) -> Path | None:
        """The YAML file that a string value names, relative to this file's folder; None for anything else."""
        value = self.node.value if isinstance(self.node, ScalarNode) else None
        if not isinstance(value, str) or not value.endswith((".yaml", ".yml")) or "\n" in value:
            return None
        near = self.path.parent / value if self.path is not None else Path(value)
        return near if near.exists() or not Path(value).exists() else Path(value)


def read(path: Path, named_by: Place | None = None, fix: str = "") -> Place:
    """The root of a YAML file without duplicate keys, its merge keys (``<<``) resolved.

    Where it does not exist, the error is about the value that names it (``named_by``) and ends with ``fix``.

    Raises:
        ConfigError: The file does not exist, is not YAML, is empty, or has a duplicate key.
    """
    if not path.is_file():
        around = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, around, 3) or around[:3]
        hint = f" Did you mean (in {str(path.parent)!r}): {', '.join(close)}?" if close else " Check the path."
        message = f"the file {str(path)!r} does not exist.{hint}{fix}"
        raise named_by.error(message) if named_by is not None else ConfigError(message)
    try:
        return compose(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML in UTF-8: {error}.") from error


def compose(text: str, path: Path | None = None, key: str = "") -> Place:
    """The root of a YAML text, checked as `read` does; without a path it is of the command line."""
    root = Place(path, key, _node(text, str(path or f"--{key}"), bool(path)))
    _refuse_endless(root, (), {})
    merger = _Loader("")
    for place in root.walk():
        if isinstance(place.node, MappingNode):
            _refuse_duplicates(place)
            try:
                merger.flatten_mapping(place.node)
            except yaml.YAMLError as error:
                raise place.error(f"`<<` takes a mapping, by an alias: `<<: *name` ({error}).") from error
    return root


def _node(text: str, where: str, has_lines: bool) -> Node:
    """The root of a YAML text as YAML's composer makes it."""
    try:
        node = yaml.compose(text, _Loader)
    except RecursionError as error:
        raise ConfigError(f"{where}: the values are nested too deep to be read. Is it the right file?") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where += f", line {mark.line + 1}" if has_lines and mark is not None else ""
        fix = 'Quote patterns that begin with * or hold braces: each: "layers.*".'
        fix = "Indent with spaces." if "\\t" in str(problem) else fix
        raise ConfigError(f"{where}: not YAML: {problem}. {fix}") from error
    if node is None:
        raise ConfigError(f"{where}: the file is empty.")
    return node


def _refuse_endless(place: Place, above: tuple[int, ...], sizes: dict[int, int]) -> int:
    """Refuse a value that contains itself or, with its aliases written out, too much; its size."""
    if id(place.node) in above:
        raise place.error(
            "the value contains itself, by an alias (`*name`). Write it out; phases are repeated by `repeat: 10`."
        )
    if id(place.node) not in sizes:
        below = (_refuse_endless(child, (*above, id(place.node)), sizes) for child in place.children())
        sizes[id(place.node)] = size = 1 + sum(below)
        if size > _MOST:
            raise place.error(
                f"it holds {size:,} values, its aliases (`*name`) written out; at most {_MOST:,} are read. Write fewer."
            )
    return sizes[id(place.node)]


def _refuse_duplicates(place: Place) -> None:
    seen: dict[Any, int] = {}
    for key, value in place.node.value:
        if key.value in seen and key.tag != _MERGE:
            raise place.under(key, key).error(
                f"duplicate key {key.value!r}, first in line {seen[key.value]}. YAML would silently take the last one "
                f"({value.value if isinstance(value, ScalarNode) else '…'}). Keep the one you mean."
            )
        if not isinstance(key.value, list):
            seen[key.value] = int(key.start_mark.line) + 1
