"""``lightning-freeze plan``: what a run will train when, before it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_freeze.cli.command import Command, at_least_one, check_picture, on_one_cpu
from lightning_freeze.report.table import print_line
from lightning_freeze.trainer.forecast import Horizon, forecast
from lightning_freeze.trainer.metrics_file import read_metrics
from lightning_freeze.trainer.seam import LightningModule, Trainer


class PlanCommand(Command):
    """Shows what a run will train when, by the code that the run itself uses, on one CPU process."""

    options = {
        "updates": (int, "optimizer steps to show; by default the whole run"),
        "epochs": (int, "epochs to show; by default the whole run"),
        "batches": (int, "training batches an epoch; by default as many as the data has"),
        "metrics": (Path, "metrics.csv of an earlier run, for phases that end by a metric"),
        "out": (Path, "the picture to draw (plan.png, plan.svg, plan.pdf)"),
    }

    def __init__(self, given: Any) -> None:
        at_least_one(given, "updates", "epochs", "batches")
        self._metrics, self._out = given.get("metrics"), given.get("out")
        if self._out is not None:
            check_picture("--out", self._out)
        self._horizon = Horizon(given.get("updates"), given.get("epochs"), given.get("batches"))

    def configure(self, trainer: Any) -> None:
        """On one CPU process, whatever the run has."""
        self._horizon = replace(self._horizon, world=on_one_cpu(trainer))

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Print the tables, draw the picture."""
        metrics = read_metrics(self._metrics) if self._metrics is not None else {}
        found = forecast(trainer, fit, replace(self._horizon, metrics=metrics))
        found.print_to(console := Console())
        if self._out is not None:
            found.draw(self._out)
            print_line(console, f"The picture is in {self._out}.")
