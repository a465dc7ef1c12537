"""Declarations of inputs in YAML: read, drafted from findings, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_freeze.errors import nearest
from lightning_freeze.inputs.declarations import DeclarationError, parse_metadata, parse_whitelist
from lightning_freeze.report.findings import Finding, some_modules
from lightning_freeze.yaml_file import Place, read

_KEYS = ("whitelist", "metadata_inputs")


_HEADER = """\
# Inputs that modules are handed and do not use, as `lightning-freeze inputs` found them. For each: remove the input, or
# say in a sentence why it stays. An entry that no longer matches is itself found, so the list stays true.
# InputAudit(on_finding="raise", whitelist="<this file>") then stops a run for new ones only.
"""


def read_declarations(path: Path, named_by: Place | None = None) -> tuple[dict[str, Any], list[str]]:
    """The whitelist and the metadata inputs of a YAML file.

    Args:
        path: A file with the keys ``whitelist`` and ``metadata_inputs``, either or both.
        named_by: The value that names the file, if one does.

    Raises:
        ConfigError: With file, line and key.
    """
    command = f"`lightning-freeze inputs --config <config without this line> --out {path}`"
    root = read(path, named_by, f" To write it, run {command}.")
    items = root.items()
    for key, place in items.items():
        if key not in _KEYS:
            near = ", ".join(map(repr, nearest(key, _KEYS) or _KEYS))
            raise place.error(f"{key!r} is no key of a whitelist's file. Nearest: {near}.")
    if not items:
        raise root.error("the file must be a mapping with the key `whitelist` or `metadata_inputs`.")
    plain = {key: place.plain() for key, place in items.items()}
    known: Mapping[str, Any] = plain.get("whitelist") or {}
    shapes: list[str] = plain.get("metadata_inputs") or []
    try:
        parse_whitelist(known)
        parse_metadata(shapes)
    except DeclarationError as error:
        raise place_of(root, error).error(error.problem) from None
    return dict(known), list(shapes)


def draft(findings: Sequence[Finding], today: str) -> tuple[dict[str, Any], list[str]]:
    """A whitelist and metadata inputs that cover findings, each reason saying that nobody has judged it yet.

    Args:
        findings: What is there today.
        today: The date, for the reasons.

    Example:
        >>> one = Finding(audit="inputs", kind="unused", severity="warning", message="…", module="encoder.0",
        ...               module_class="Block", argument="mask", confirmed=True)
        >>> draft([one], "2030-01-01")
        ({'Block.mask': "unused in 'encoder.0' on 2030-01-01; not judged yet"}, [])
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.kind != "stale":
            kinds.setdefault(f"{finding.module_class}.{finding.argument}", []).append(finding)
    known: dict[str, Any] = {}
    shapes = []
    for key, same in kinds.items():
        if all(finding.kind == "metadata" for finding in same):
            shapes.append(key)
            continue
        what = " or ".join(dict.fromkeys(finding.kind for finding in same))
        known[key] = f"{what} in {some_modules(same)} on {today}; not judged yet"
    return known, shapes


def write_declarations(path: Path, findings: Sequence[Finding], today: str) -> int:
    """Write, or add to, the file that makes what is there today known, so that only what is new is found.

    Entries that the file has already stay as they are; without a new one, so does the file.

    Args:
        path: The file.
        findings: What is there today.
        today: The date.

    Returns:
        How many entries are new.

    Raises:
        ConfigError: There is a file that cannot be read.
    """
    known, shapes = read_declarations(path) if path.exists() else ({}, [])
    drafted, further = draft(findings, today)
    new = {key: reason for key, reason in drafted.items() if key not in known}
    more = [key for key in further if key not in shapes]
    if path.exists() and not new and not more:
        return 0
    body = {"whitelist": {**known, **new}, "metadata_inputs": [*shapes, *more]}
    text = yaml.safe_dump({k: v for k, v in body.items() if v}, sort_keys=False, width=1000, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_HEADER + (text if any(body.values()) else "whitelist: {}\n"), encoding="utf-8")
    return len(new) + len(more)


def place_of(root: Place, error: DeclarationError) -> Place:
    """Where a declaration stands that cannot be read: the deepest key that the error's names.

    Args:
        root: The mapping that holds ``whitelist`` and ``metadata_inputs``.
        error: The error.
    """
    shapes = root.items().get("metadata_inputs", root)
    for index, place in enumerate(shapes.elements()):
        if error.key == f"metadata_inputs[{index}]":
            return place
    table = root.items().get("whitelist")
    entries = table.items() if table is not None else {}
    for key, place in entries.items():
        if error.key.startswith(f"whitelist[{key!r}]"):
            return place.items().get(error.key.rpartition("].")[2], place)
    return shapes if error.key.startswith("metadata") else table or root
