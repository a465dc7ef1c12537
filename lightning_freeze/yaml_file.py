"""YAML read strictly, so that every error can name file, line and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message begins with file, line and key."""


@dataclass(frozen=True)
class Place:
    """A value in a YAML file.

    Args:
        path: The file.
        key: Its key from the root, such as ``trainer.callbacks[0].init_args``.
        node: The value as YAML's composer made it.
    """

    path: Path
    key: str
    node: Node

    @property
    def line(self) -> int:
        """The line it begins at, from 1."""
        return int(self.node.start_mark.line) + 1

    def error(self, message: str) -> ConfigError:
        """An error about this value."""
        return ConfigError(f"{self.path}, line {self.line}, {self.key or 'the whole file'}: {message}")

    def items(self) -> dict[str, Place]:
        """A mapping's values by key; empty for anything else."""
        if not isinstance(self.node, MappingNode):
            return {}
        return {str(key.value): self.under(key, value) for key, value in self.node.value}

    def under(self, key: Node, node: Node) -> Place:
        """A node of this mapping that stands under one of its keys, or the key itself."""
        return Place(self.path, f"{self.key}.{key.value}" if self.key else str(key.value), node)

    def elements(self) -> list[Place]:
        """A sequence's elements; empty for anything else."""
        if not isinstance(self.node, SequenceNode):
            return []
        return [Place(self.path, f"{self.key}[{i}]", value) for i, value in enumerate(self.node.value)]

    def children(self) -> tuple[Place, ...]:
        """What stands right below: a mapping's values, or a sequence's elements."""
        return (*self.items().values(), *self.elements())

    def plain(self) -> Any:
        """The value as builtins."""
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(self.node, deep=True)
        except yaml.YAMLError as error:
            raise self.error(f"the value cannot be read ({error}).") from error
        finally:
            loader.dispose()

    def walk(self) -> Iterator[Place]:
        """This value and everything below it; what an alias names again is walked once."""
        yield from self._walk(set())

    def _walk(self, seen: set[int]) -> Iterator[Place]:
        if id(self.node) in seen:
            return
        seen.add(id(self.node))
        yield self
        for child in self.children():
            yield from child._walk(seen)

    def file(self) -> Path | None:
        """The YAML file that a string value names, as from this file's own folder; None for anything else."""
        value = self.node.value if isinstance(self.node, ScalarNode) else None
        if not isinstance(value, str) or not value.endswith((".yaml", ".yml")) or "\n" in value:
            return None
        near = self.path.parent / value
        return near if near.exists() or not Path(value).exists() else Path(value)


def read(path: Path, named_by: Place | None = None, mend: str = "") -> Place:
    """The root of a YAML file, with every mapping checked for keys that stand twice.

    Args:
        path: The file.
        named_by: The value that names the file, if one does.
        mend: What else to do where it is not there.

    Raises:
        ConfigError: The file is not there, is no YAML, is empty, or holds a key twice.
    """
    if not path.is_file():
        around = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, around, 3) or around[:3]
        hint = f" Nearest in {str(path.parent)!r}: {', '.join(close)}." if close else " Check the path."
        message = f"the file {str(path)!r} is not there.{hint}{mend}"
        raise named_by.error(message) if named_by is not None else ConfigError(message)
    node = _compose(path)
    if node is None:
        raise ConfigError(f"{path}: the file is empty.")
    root = Place(path, "", node)
    _refuse_endless(root, (), set())
    for place in root.walk():
        _refuse_twice(place)
    return root


def _compose(path: Path) -> Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        mend = (
            "Indent with spaces."
            if "\\t" in str(problem)
            else 'Patterns that begin with * or hold braces must be quoted: each: "layers.*".'
        )
        raise ConfigError(f"{path}{where}: this is no YAML: {problem}. {mend}") from error


def _refuse_endless(place: Place, above: tuple[int, ...], fine: set[int]) -> None:
    """Refuse a value that an alias puts inside itself."""
    if id(place.node) in above:
        raise place.error(
            "the value contains itself, by an alias (`*name`) of what it stands in, so it has no end. Write it out; phases "
            "are repeated by `repeat: 10`."
        )
    if id(place.node) in fine:
        return
    for child in place.children():
        _refuse_endless(child, (*above, id(place.node)), fine)
    fine.add(id(place.node))


def _refuse_twice(place: Place) -> None:
    if not isinstance(place.node, MappingNode):
        return
    seen: dict[Any, int] = {}
    for key, value in place.node.value:
        if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
            raise place.under(key, key).error(
                f"the key {key.value!r} stands twice; it was given first in line {seen[key.value]}. YAML would silently "
                f"take the last one ({value.value if isinstance(value, ScalarNode) else '…'}). Keep the one you mean."
            )
        if not isinstance(key.value, list):
            seen[key.value] = int(key.start_mark.line) + 1
