"""jsonargparse's errors in a sentence: the key, its value, what it must be, the nearest."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any

from lightning_freeze.errors import did_you_mean

_NO_CLASS = (
    "names no class. Write `class_path: package.module.Class`, and the arguments of the class under `init_args`. For a "
    "LightningCLI of your own that names it in its code: preview_run(cli.trainer, cli.model, cli.datamodule), in Python."
)
_LIGHTNING = ("torch", "pytorch_lightning", "lightning.")


def in_a_sentence(message: str) -> tuple[str, str]:
    """The key that an error of jsonargparse is about, and what is wrong with it.

    Args:
        message: The error, which lists every branch of a union; the first is the one that the user meant.

    Example:
        >>> in_a_sentence('Parser key "steps":\\n  Expected a <class \\'int\\'>. Got value: many')
        ('steps', "is 'many', but must be int.")
    """
    key, kind, branch = _first_branch(message)
    if option := re.search(r"Option '([^']+)' is not accepted", branch):
        if getattr(kind, "__name__", "") in ("LightningModule", "LightningDataModule"):
            return key, _NO_CLASS
        known = [*inspect.signature(kind).parameters] if callable(kind) else []
        name = option[1].removeprefix(f"{key}.")
        end = f" Its arguments: {', '.join(known)}." if known else ""
        of = getattr(kind, "__name__", "it")
        return f"{key}.{name}".strip("."), f"{name!r} is not an argument of {of}.{did_you_mean(name, known)}{end}"
    if (missing := re.search(r"arguments are required: (.*)", branch)) and kind is not None:
        return f"{key}.{missing[1]}".strip("."), f"is missing: {kind.__name__} has no default for it."
    if taught := re.search(r"^\s*(?:- )?(`[\w.]+` (?:is|has|names) .*)", branch, re.M):  # an error of ours
        return key, taught[1]
    return key, _wrong_class(message, branch) or _wrong_type(message, branch)


def _wrong_class(message: str, branch: str) -> str:
    """What is wrong with a class; nothing where another type was expected."""
    if absent := re.search(r"module '([^']+)' has no attribute '([^']+)'", branch):
        found = [value for value in vars(import_module(absent[1])).values() if isinstance(value, type)]
        own = [value.__name__ for value in found if not value.__module__.startswith(_LIGHTNING)]
        return f"{absent[1]} has no {absent[2]!r}.{did_you_mean(absent[2], own)}"
    if other := re.search(r"Import path (?:\S+ )?does not correspond to a subclass of (\w+)", branch):
        base = re.search(rf"<class '([\w.]+\.{other[1]})'>", message)
        path = re.search(r"Given value: (?:\{'class_path': ')?([\w.]+)", message)
        return f"is {path[1] if path else ''!r}, which is not a subclass of {base[1] if base else other[1]}."
    word = re.search(r"Expected a dot import path string: (.*)", branch)
    if word and not re.search("Expected an? <class '(?!NoneType)", branch):
        base = re.search(r"Subtypes: .*?([\w.]+\.[A-Z]\w+)", message)
        known = [each.__name__ for each in _subclasses(_imported(base[1]))] if base else []
        return f"is {word[1]!r}, but must be a class: package.module.Class.{did_you_mean(word[1], known)}"
    problem = re.search(r"(No module named .*)", branch)
    return f"{problem[1]}. Install it, or write the class as package.module.Class." if problem else ""


def _first_branch(message: str, key: str = "", kind: Any = None) -> tuple[str, Any, str]:
    """The key, the class and the error of the innermost first class that was tried."""
    lines = message.splitlines()
    keys = re.findall(r'Parser key "([^"]+)"', message.partition("Problem with given class_path")[0])
    key = ".".join(filter(None, [key, *keys]))
    begin = next((i for i, line in enumerate(lines) if "Problem with given class_path" in line), None)
    if begin is None:
        return key, kind, message
    depth = _indent(lines[begin])
    end = next((i for i in range(begin + 1, len(lines)) if lines[i] and _indent(lines[i]) <= depth), len(lines))
    path = re.search(r"class_path '([^']+)'", lines[begin])
    return _first_branch("\n".join(lines[begin + 1 : end]), key, _imported(path[1]) if path else kind)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):  # the very error that is explained
        return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _wrong_type(message: str, branch: str) -> str:
    types = re.findall(r"Expected an? ((?:<class|typing|list|dict|tuple).*?)(?:\. Got value: .*)?$", branch, re.M)
    value = re.search(r"Got value: (.*)", branch) or re.search(r"(?:val=|Given value: )(.*?)\)?$", message, re.M)
    if not types or value is None:
        return " ".join(message.split())
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", ", ".join(dict.fromkeys(types)))
    words = re.findall(r"'([^']+)'", names)
    shown = names.replace("NoneType", "null")
    given = value[1].strip("'")
    written = ' A sequence is written "[0.9, 0.95]".' if re.search(r"\b(tuple|list)\b", names) else ""
    return f"is {given!r}, but must be {' or '.join(shown.rsplit(', ', 1))}.{did_you_mean(given, words)}{written}"


def _subclasses(kind: Any) -> set[type]:
    return {kind, *(below for each in kind.__subclasses__() for below in _subclasses(each))} if kind else set()
