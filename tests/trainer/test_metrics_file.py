"""Metrics of an earlier run are read as its CSVLogger wrote them, and nothing else is taken for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_freeze.errors import ScheduleError
from lightning_freeze.trainer.metrics_file import read_metrics


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch,val_loss\n0,1\n1,0.5\n", {0: {"val_loss": 1.0}, 1: {"val_loss": 0.5}}),
        ("epoch,step,a,b\n0,3,1,\n0,4,,2\n0,5,7,\n", {0: {"a": 7.0, "b": 2.0}}),  # the last of an epoch
        ("step,val_loss,epoch\n9,1e-3,2.0\n", {2: {"val_loss": 0.001}}),
        ("epoch,val_loss\n0,\n", {}),
        ("epoch,val_loss\n1,-inf\n", {1: {"val_loss": float("-inf")}}),
        pytest.param("\ufeffepoch,val_loss\n0,1\n", {0: {"val_loss": 1.0}}),
    ],
)
def test_metrics_are_read(text: str, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    assert read_metrics(tmp_path / "metrics.csv") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "the file of metrics '{path}' is not there. It is what Lightning's CSVLogger writes."),
        ("a,b\n1,2\n", "'{path}' has no column `epoch` (columns: a, b). Give the metrics.csv of Lightning's CSVLogger"),
        ("", "'{path}' has no column `epoch` (columns: none)."),
        ("epoch,step,val_loss\n0,0,1\n1,1,low\n", "'{path}', line 3: val_loss is 'low', which is not a number."),
        pytest.param("epoch,val_loss\n,0.5\n", "epoch is ''"),
        pytest.param("epoch,val_loss\n0,1,7\n", "line 2"),
        pytest.param("val_loss,epoch\n1\n", "line 2"),
    ],
    ids=["no file", "no epoch", "empty", "no number", "epoch missing", "long row", "short row"],
)
def test_a_bad_file_of_metrics_is_told(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ScheduleError) as caught:
        read_metrics(path)
    assert said.format(path=path) in str(caught.value)
