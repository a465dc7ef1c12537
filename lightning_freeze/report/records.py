"""``freeze_audit.jsonl``: typed, versioned records of a run, one JSON object a line, from which its report is made.

- ``run``: a fit began or went on: schedule, groups, optimizers, and the count of updates it goes on from.
- ``phase``: the optimizer steps of an epoch, run-length encoded: ``steps`` holds ``[optimizer, set, count]``, ``sets``
  the groups that were updated, ``first`` the count of updates before it.
- ``counts``: at an epoch's end, the updates of each group, the frozen intervals compared and the findings.
- ``finding``: one finding.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from lightning_freeze.report.findings import Finding

VERSION = 1
FILE_NAME = "freeze_audit.jsonl"
_BEGINNING = b'{"version": '
_BLOCK = 1 << 16

Record = dict[str, Any]


class Log:
    """The one list of a run's findings, and the one channel through which its records leave.

    Args:
        record: Called with each record of the run.
    """

    def __init__(self, record: Callable[[Record], None]) -> None:
        self.findings: list[Finding] = []
        self.record = record

    def add(self, findings: Iterable[Finding]) -> list[Finding]:
        """Add findings, each with a record."""
        found = list(findings)
        for finding in found:
            self.record({"type": "finding", **finding.as_dict()})
        self.findings += found
        return found

    def severities(self, epoch: int) -> dict[str, int]:
        """How many findings an epoch has of each severity."""
        counts = {"error": 0, "warning": 0, "info": 0}
        for finding in self.findings:
            counts[finding.severity] += finding.epoch == epoch
        return counts


class Recorder:
    """Appends records to a file, each written at once.

    Where one cannot be written, as on a full disk, it warns and writes no more.

    Args:
        path: The file; made with its folder at the first record. A file that is there loses the unfinished last line of a
            killed run. Where it cannot be written later, the run goes on without, with a warning.

    Raises:
        ValueError: What is there is not a regular file of records.
    """

    def __init__(self, path: Path) -> None:
        _refuse_others(path)
        self.path = path
        self._failed = False

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        try:
            if not self._failed:
                self._append(record)
        except (OSError, ValueError) as error:
            self._failed = True
            warnings.warn(
                f"the records of this run are no longer written to {self.path}: {error}. The run goes on.", stacklevel=2
            )

    def _append(self, record: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_others(self.path)
        with self.path.open("a+b") as file:
            file.truncate(_whole_lines(file))
            file.write(json.dumps({"version": VERSION, **record}, ensure_ascii=False).encode() + b"\n")


def _refuse_others(path: Path) -> None:
    """Refuse what is not a regular file of records."""
    if path.is_symlink() or not path.is_file():
        what = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "a device" if path.exists() else ""
    else:
        with path.open("rb") as file:
            line = file.readline(_BLOCK)
        what = "" if b'"version": ' in line or _BEGINNING.startswith(line) else "a file of something else"
    if what:
        raise ValueError(
            f"{path} is {what}: records of a run are written to, and read from, regular files of their own alone. Move it "
            "away, or give the Trainer another `default_root_dir` (its logger another `save_dir`)."
        )


def _whole_lines(file: IO[bytes]) -> int:
    """The bytes until the end of the last line that has one, found from the file's end."""
    end, found = file.seek(0, 2), 0
    while end and not found:
        begin = file.seek(max(0, end - _BLOCK))
        end, found = begin, file.read(end - begin).rfind(b"\n") + 1
    return end + found


class Steps:
    """The optimizer steps of an epoch, run-length encoded while they happen."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._sets: dict[frozenset[str], int] = {}
        self._runs: list[list[int]] = []

    def add(self, optimizer: int, groups: frozenset[str]) -> None:
        """Add a step that updated these groups."""
        number = self._sets.setdefault(groups, len(self._sets))
        if not self._runs or self._runs[-1][0] != optimizer or self._runs[-1][1] != number:
            self._runs.append([optimizer, number, 0])
        self._runs[-1][2] += 1

    def as_dict(self) -> dict[str, Any]:
        """As builtins: what a ``phase`` record and a checkpoint hold."""
        return {"first": self.first, "sets": [*map(sorted, self._sets)], "steps": [list(run) for run in self._runs]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Steps:
        """The steps that `as_dict` wrote."""
        steps = cls(plain["first"])
        steps._sets = {frozenset(groups): number for number, groups in enumerate(plain["sets"])}
        steps._runs = [list(run) for run in plain["steps"]]
        return steps


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, without the unfinished last line of a killed run.

    Raises:
        ValueError: It is not a regular file of records, a line is not a record, or was written by a newer version; the
            message names file and line.
    """
    _refuse_others(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"{record!r} is not a mapping")
            except ValueError as error:  # as JSON, or already as UTF-8
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}: no JSON record ({error}). Was the file edited?") from error
            if record.get("version", 0) > VERSION:
                raise ValueError(
                    f"{path}, line {number}: a record of version {record['version']}; this release reads up to {VERSION}. "
                    "Update lightning-freeze."
                )
            yield record


def steps_of(records: Iterable[Record]) -> list[tuple[int, frozenset[str]]]:
    """Every update of a run in order, as (optimizer, groups); those that a resumed run repeated, once, as last done."""
    steps: list[tuple[int, frozenset[str]]] = []
    for record in records:
        if record["type"] == "run":
            del steps[record["updates_before"] :]
        elif record["type"] == "phase":
            del steps[record["first"] :]
            for optimizer, number, count in record["steps"]:
                steps += [(optimizer, frozenset(record["sets"][number]))] * count
    return steps
