"""``freeze_audit.jsonl``: typed, versioned records of a run, one JSON object a line, from which its report is made.

Each has a ``version``, a ``type``, and in ``run`` the id of its run, since a file may hold several.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict
from uuid import uuid4

from lightning_freeze.report.findings import Finding, Findings

VERSION = 2
FILE_NAME = "freeze_audit.jsonl"
_BEGINNING = b'{"version": '
_BLOCK = 1 << 16
ENVELOPE = {"version", "type", "run"}  # what every record has

Record = dict[str, Any]


class GroupRecord(TypedDict):
    """How large a group is."""

    parameters: int
    elements: int
    bytes: NotRequired[int]  # of the parameters
    gradient_bytes: NotRequired[int]
    state_bytes: NotRequired[int | None]  # of optimizer state once it was updated; None where that is not known


class OptimizerRecord(TypedDict, total=False):
    """An optimizer, and what the probe learnt of it (None where it was not probed)."""

    name: str
    groups: list[str]  # that it holds
    excludes: bool  # whether frozen parameters are excluded from its param groups
    skips_none: bool | None
    late_first_step_ok: bool | None
    step_counters: list[str]  # of param groups
    why: str  # it could not be probed


class RunRecord(TypedDict, total=False):
    """``run``: a fit began or went on."""

    type: str
    run: str  # its id
    resumes: str | None  # the id of the run that it goes on from
    time: str  # UTC, by ISO 8601
    versions: dict[str, str]  # of Python and packages
    model: str  # its class, as the others below
    strategy: str | None
    precision: str | None
    processes: int
    device: str
    seed: int | None  # by `seed_everything`
    skip_backward: dict[str, Any] | None  # asked, skips, why
    optimizer_state: str | None
    frozen_modules: str | None
    schedule: dict[str, Any] | None  # as in YAML; None without a scheduler
    rest: str | None
    groups: dict[str, GroupRecord]
    users_own: list[str]  # found with requires_grad=False
    moved_by: dict[str, str]  # exempt group to the reason
    optimizers: list[OptimizerRecord]
    updates_before: int
    epoch: int
    resumed: bool


class PhaseRecord(TypedDict, total=False):
    """``phase``: the optimizer steps since the last one, as `Steps.as_dict` writes them."""

    type: str
    run: str
    epoch: int
    first: int  # the updates before them
    epoch_first: int  # those before their epoch, where records before this one have a part of it
    steps: list[Any]  # [optimizer, set, count], or {"times": n, "steps": [...]}
    sets: list[list[str]]  # the groups that were updated; each of the following has an entry for each set
    planned: list[list[str] | None]  # the groups that could have been, where others
    places: list[str]  # the phase's key in the schedule
    lr_factors: list[dict[str, float]]  # by group, as such a step was first made
    seconds: list[float]  # the time of the batches that ended in such a step


class CountsRecord(TypedDict, total=False):
    """``counts``: sums at an epoch's end."""

    type: str
    run: str
    epoch: int
    stage: str  # the phase for people, at the epoch's last step
    phase: int | None  # how many phases have begun
    updates: dict[str, int]  # by group, so far
    updates_before_epoch: dict[str, int]
    total: int
    intervals: int  # frozen intervals compared so far
    intervals_in_epoch: int
    findings: dict[str, int]  # by severity
    seconds: float  # of training
    step_seconds: float | None  # of a step in the mean
    trainable_elements: float  # of a step in the mean
    gradient_bytes: int  # of the step with the most
    state_bytes: int  # of optimizer state on the parameters' devices
    lr: dict[str, float]  # by group, with the phase's factor


class Log:
    """The one list of a run's findings, and the one channel through which its records leave.

    Args:
        record: Called with each record of the run.
    """

    def __init__(self, record: Callable[[Record], None]) -> None:
        self.findings = Findings()
        self.run = ""  # the id of the run, or of the one that it goes on from
        self.resumes: str | None = None  # the id of the run that it goes on from
        self._record = record

    def begin_run(self) -> None:
        """A run begins; it goes on from the one before, if there is one."""
        self.run, self.resumes = uuid4().hex[:12], self.run or None

    def record(self, record: Record) -> None:
        """Let a record of the run leave."""
        self._record({**record, "run": self.run})

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

    Args:
        path: The file; made with its folder at the first record. A file that is there loses the unfinished last line of a
            killed run. Where one cannot be written, as on a full disk, it warns and writes no more.

    Raises:
        ValueError: What is there is not a regular file of records.
    """

    def __init__(self, path: Path) -> None:
        _refuse_others(path)
        self.path = path
        self._failed = self._began = False

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
            if not self._began:  # later, another process may be in the middle of a line
                file.truncate(_whole_lines(file))
            self._began = True
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
                record = json.loads(line, parse_constant=lambda name: None)  # NaN and infinities, which JSON has not
                if not isinstance(record, dict) or not isinstance(record.get("version", 0), int):
                    raise ValueError(f"{record!r} is not a mapping with a version")
            except (ValueError, RecursionError) as error:  # as JSON, or already as UTF-8
                if not line.endswith(b"\n"):
                    return
                raise ValueError(f"{path}, line {number}: no JSON record ({error}). Was the file edited?") from error
            if record.get("version", 0) > VERSION:
                raise ValueError(
                    f"{path}, line {number}: a record of version {record['version']}; this release reads up to {VERSION}. "
                    "Update lightning-freeze."
                )
            yield _as_now(record)


def _as_now(record: Record) -> Record:
    """A record of an earlier version in today's form."""
    if isinstance(record.get("optimizers"), list):
        record["optimizers"] = [{"name": each} if isinstance(each, str) else each for each in record["optimizers"]]
    return record
