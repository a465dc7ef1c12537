"""The metrics of an earlier run, for phases that end by one."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning_freeze.errors import ScheduleError


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Epoch to the last value of each metric logged in it, from the ``metrics.csv`` of Lightning's CSVLogger."""
    found: dict[int, dict[str, float]] = {}
    for number, row in enumerate(_rows(path), start=2):
        epoch = int(_number(path, number, "epoch", row["epoch"]))
        for name, value in row.items():
            if name not in ("epoch", "step") and value:
                found.setdefault(epoch, {})[name] = _number(path, number, name, value)
    for logged in found.values():
        for name in [name for name in logged if name.endswith("_epoch")]:  # logged on_step and on_epoch
            logged.setdefault(name.removesuffix("_epoch"), logged[name])
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a column ``epoch``, each of as many values as there are columns."""
    if not path.is_file():
        raise ScheduleError(f"the file of metrics {str(path)!r} is not there. It is what Lightning's CSVLogger writes.")
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    if "epoch" not in columns:
        raise ScheduleError(
            f"{str(path)!r} has no column `epoch` (columns: {', '.join(map(str, columns)) or 'none'}). Give the metrics.csv of "
            "Lightning's CSVLogger, or a file like it: epoch,val_loss."
        )
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ScheduleError(f"{str(path)!r}, line {number}: it has another number of values than the first line.")
    return rows


def _number(path: Path, line: int, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ScheduleError(f"{str(path)!r}, line {line}: {name} is {value!r}, which is not a number.") from error
