"""A run, read back from its records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape

from lightning_freeze.errors import did_you_mean
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.page import html_page, in_a_frame
from lightning_freeze.report.records import ENVELOPE, FILE_NAME, Record, read_records
from lightning_freeze.report.run_data import RunData
from lightning_freeze.report.run_view import lines, run_view
from lightning_freeze.report.timeline_picture import draw_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class RunReport(RunData):
    """What a run planned, did and proved, by its records.

    Args:
        path: The file of records.
        runs: The ``run`` records: where it was resumed, oldest first.
        phases: The ``phase`` records.
        counts: The ``counts`` records, one an epoch.
        findings: Everything that was found.

    Example:
        >>> RunReport(Path("freeze_audit.jsonl"), [{"run": "f00d", "groups": {}}]).verdict
        'nothing was frozen'
    """

    def to_html(self, path: Path | str) -> None:
        """Write one HTML file that needs no network, to open in a browser or to send."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(html_page(self), encoding="utf-8")

    def to_png(self, path: Path | str | None = None) -> Figure:
        """Draw the timeline; a path's suffix names the format. Needs matplotlib, the extra ``plot``."""
        return draw_run(None if path is None else Path(path), self)

    def _repr_html_(self) -> str:
        return in_a_frame(html_page(self))

    def __repr__(self) -> str:
        return f"<RunReport of {self.path}: {self.verdict}>"

    def __rich__(self) -> Group:
        return Group(run_view(self), *map(escape, lines(self)))


def read_report(path: Path | str, run: str | None = None) -> RunReport:
    """Read the report of a run.

    Args:
        path: A file ``freeze_audit.jsonl``, or a folder below which the newest one is taken.
        run: The id of a run in it, or its beginning; by default the last. With the runs that it goes on from.

    Returns:
        The report; in a notebook, its last expression shows it.

    Raises:
        ValueError: There is no such file or no such run, or the file is not one of records.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "freeze_audit.jsonl"
        >>> line = '{"version": 2, "type": "run", "run": "f00d", "groups": {}, "updates_before": 0, "resumed": false}'
        >>> _ = path.write_text(line)
        >>> read_report(path).verdict
        'nothing was frozen'
    """
    file = _file(Path(path))
    by_id = _by_run(read_records(file))
    if not by_id:
        raise ValueError(f"{file} holds no run. A fit with a FreezeScheduler or a FreezeAudit writes one.")
    last = next(reversed(by_id)) if run is None else _chosen(run, by_id, file)
    try:
        return _report(file, by_id, last)
    except Exception as error:  # whatever somebody made of the file
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: the records of run {last} are not as a run writes them ({problem}).") from error


def _report(file: Path, by_id: dict[str, list[Record]], last: str) -> RunReport:
    """The report of a run and those that it goes on from; what it needs of their records is there."""
    chain = [last]
    while (before := by_id[chain[0]][0].get("resumes")) in by_id and before not in chain:
        chain.insert(0, before)
    records = [record for each in chain for record in by_id[each]]
    kinds = ("run", "phase", "counts", "finding")
    runs, phases, counts, found = ([each for each in records if each["type"] == kind] for kind in kinds)
    findings = [Finding.from_dict({k: v for k, v in each.items() if k not in ENVELOPE}) for each in found]
    report = RunReport(file, runs, phases, counts, findings, records)  # type: ignore[arg-type]
    _ = report.steps, report.sizes, report.updates, report.total, report.verdict
    return report


def _file(path: Path) -> Path:
    """A file of records, where a folder is given the newest below it."""
    if path.is_dir():
        found = sorted(path.rglob(FILE_NAME), key=lambda file: file.stat().st_mtime)
        if not found:
            raise ValueError(f"there is no {FILE_NAME} below {path}. A fit writes it into its logger's folder.")
        return found[-1]
    if not path.exists():
        above = path.parent if path.parent.is_dir() else path.parent.parent
        others = [str(file) for level in ("", "*/", "*/*/") for file in above.glob(level + FILE_NAME)]
        raise ValueError(f"{path} does not exist.{did_you_mean(str(path), others)} Give the folder of a run's logger.")
    return path


def _by_run(records: Any) -> dict[str, list[Record]]:
    """The records of each run, in the order in which the runs began; those without an id belong to the run before them."""
    found: dict[str, list[Record]] = {}
    last = ""
    for record in records:
        name, begins = str(record.get("run") or last), record.get("type") == "run"
        if begins and not record.get("run"):  # of the first version, which had no ids
            last, name = name, str(len(found) + 1)
            record |= {"run": name, "resumes": last if record.get("resumed") else None}
        if begins:
            last = name
            found.setdefault(name, []).append(record)
        elif name in found:
            found[name].append(record)
    return found


def _chosen(run: str, known: dict[str, list[Record]], file: Path) -> str:
    found = [name for name in known if name.startswith(run)]
    if len(found) != 1:
        what = "is the beginning of several" if found else "is not one"
        raise ValueError(f"{run!r} {what} of the runs in {file}: {', '.join(known)}.")
    return found[0]
