"""The YAML file of declared inputs: read, and written from findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_freeze.errors import did_you_mean
from lightning_freeze.inputs.declarations import DeclarationError, parse_metadata, parse_whitelist
from lightning_freeze.report.findings import Finding, some_modules
from lightning_freeze.yaml_file import Place, read

_KEYS = ("whitelist", "metadata_inputs")
_HEADER = """\
# Inputs that modules do not use, as `lightning-freeze inputs` found them. For each: remove the input, or say in a sentence
# why it stays. An entry that no longer matches is a finding too, so the list stays true.
# InputAudit(on_finding="raise", whitelist="<this file>") then stops a run for new ones only.
"""


def read_declarations(path: Path, named_by: Place | None = None) -> tuple[dict[str, Any], list[str]]:
    """The whitelist and the metadata inputs of a file.

    Args:
        path: The file.
        named_by: The YAML value that names it, if one does.

    Raises:
        ConfigError: With file, line and key.
    """
    command = f"`lightning-freeze inputs --config <config without this line> --out {path}`"
    root = read(path, named_by, f" To write it, run {command}.")
    items = root.items()
    for key, place in items.items():
        if key not in _KEYS:
            raise place.error(f"{key!r} is not a key of a whitelist's file.{did_you_mean(key, _KEYS, 2)}")
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


def write_declarations(path: Path, findings: Sequence[Finding], today: str) -> int:
    """Write, or extend, a file that covers findings; returns the number of new entries.

    Entries that the file has stay as they are; without a new one, so does the file.

    Raises:
        ConfigError: The file is there and cannot be read.
    """
    known, shapes = read_declarations(path) if path.exists() else ({}, [])
    new = _declare(findings, known, shapes, today)
    if new or not path.exists():
        body = {key: value for key, value in (("whitelist", known), ("metadata_inputs", shapes)) if value}
        text = yaml.safe_dump(body or {"whitelist": {}}, sort_keys=False, width=1000, allow_unicode=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_HEADER + text, encoding="utf-8")
    return new


def _declare(findings: Sequence[Finding], known: dict[str, Any], shapes: list[str], today: str) -> int:
    """Add entries for findings; returns their number."""
    before = len(known) + len(shapes)
    by_key: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.kind != "stale":
            by_key.setdefault(f"{finding.module_class}.{finding.argument}", []).append(finding)
    for key, same in by_key.items():
        kinds = list(dict.fromkeys(finding.kind for finding in same))
        if kinds != ["metadata"]:
            known.setdefault(key, f"{' or '.join(kinds)} in {some_modules(same)} on {today}; not reviewed yet")
        elif key not in shapes:
            shapes.append(key)
    return len(known) + len(shapes) - before


def place_of(root: Place, error: DeclarationError) -> Place:
    """The place of the deepest key that an error of a declaration names.

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
